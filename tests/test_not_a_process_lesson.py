"""Lesson 07: its exercises can't be passed without their point, and its grid finds a runtime that allows too much."""

import json

import nbformat
import pytest
from conftest import CHECKOUT
from test_structure import codes, tags

from helpers import bundles, checks, processes

LESSON = nbformat.read(CHECKOUT / "notebooks/07-not-a-process.ipynb", as_version=4)


def cell(sign):
    """The source of the one code cell that has this tag, or this in its text."""
    found = [c.source for c in codes(LESSON) if sign in tags(c) or sign in c.source]
    assert len(found) == 1, sign
    return found[0]


@pytest.fixture
def judge(lab, capsys):
    """A function that runs the cell of an exercise and says whether it was reached."""

    def reached(number):
        capsys.readouterr()
        exec(cell(f"exercise:07.{number}"), {"exercise": checks.exercise, "lab": lab, "json": json})
        return capsys.readouterr().out.startswith("✓")

    return reached


def writable(config):
    config["root"]["readonly"] = False


def test_a_container_that_has_run_is_not_spoiled(lab, judge):
    assert not judge(1)
    bundles.make(lab, "spoiled", ["touch", "/i-ran"], change=writable)
    lab.run(["runc", "run", "--detach", "--bundle", "spoiled", "spoiled"], stdout="log")
    processes.wait_until(lambda: lab.status("spoiled") == "stopped", "its end", 30)
    assert not judge(1)
    lab.run(["runc", "delete", "spoiled"])
    lab.path("spoiled/rootfs/i-ran").unlink()
    lab.run(["runc", "create", "--bundle", "spoiled", "spoiled"])
    assert not judge(1)
    lab.run(["runc", "kill", "spoiled", "KILL"])
    processes.wait_until(lambda: lab.status("spoiled") == "stopped", "its end", 30)
    assert judge(1)


def test_an_interface_that_came_later_is_not_by_a_hook(lab, judge):
    bundles.make(lab, "wired", ["sleep", "1000"])
    lab.run(["runc", "run", "--detach", "--bundle", "wired", "wired"], stdout="log")
    assert not judge(2)
    pid = str(lab.container("wired").pid)
    lab.run(["ip", "link", "add", "wire", "netns", pid, "type", "veth", "peer", "name", "plug"])
    assert not judge(2)


def test_a_container_that_runc_made_is_not_of_a_runtime_of_ones_own(lab, judge):
    bundles.make(lab, "logged", ["sleep", "1000"])
    lab.run(["runc", "run", "--detach", "--bundle", "logged", "logged"], stdout="log")
    assert not judge(3)
    lab.path("myrun").write_text('#!/bin/sh\nexec runc "$@"\n')
    lab.path("myrun").chmod(0o755)
    assert not judge(3), "it writes nothing down"


@pytest.mark.parametrize("fault", ["", 'case $1 in start) runc "$@"; exit 0;; esac'])
def test_the_grid_finds_a_runtime_that_allows_too_much(lab, fault):
    lab.path("other").write_text(f'#!/bin/sh\n{fault}\nexec runc "$@"\n')
    lab.path("other").chmod(0o755)
    names = {"lab": lab, "bundles": bundles, "processes": processes}
    for sign in ('bundles.make(lab, "idle"', "def move(", "PATHS = {", "def try_move(", "LEGAL = {"):
        exec(cell(sign), names)
    pairs = [(state, operation) for state in names["PATHS"] for operation in names["FIVE"]]
    results = {pair: names["try_move"](*pair, "/run/lab/other") for pair in pairs}
    done = {pair for pair, (_, against) in results.items() if not against}
    assert names["LEGAL"] <= done
    extra = {("none", "start"), ("running", "start"), ("stopped", "start")} if fault else set()
    assert done - names["LEGAL"] - {("created", "delete")} == extra
