"""What a machine is said to show is what it shows; and what is said stays short."""

import os
import re
import subprocess
import sys

import nbformat
import pytest
from conftest import CHECKOUT

from helpers import preflight, server

TWO_LABS = """
import os, subprocess
from helpers import lab
old = lab.start_lab()
lab._current = None  # a second notebook: each has a lab of its own
new = lab.start_lab()
for words in ([], [old.name]):
    ask = {"input": "readlink /proc/self/ns/net; hostname; pwd", "text": True, "capture_output": True, "timeout": 30}
    print(*subprocess.run(["./lab", "enter", *words], **ask).stdout.split()[-3:])
print(*(os.readlink(f"/proc/{one.pid}/ns/net") for one in (new, old)))
old.close()
new.close()
"""


@pytest.mark.parametrize("kind", ["with subordinate IDs", "without"])
def test_an_ordinary_user_can_ask_the_doctor(kind, learners, leak_check):
    done = learners[kind].run(["./lab", "doctor"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "you are an ordinary user" in done.stdout
    assert re.search(r"^  yes +user namespace.* made a lab and ended it in \d+ ms$", done.stdout, re.M)
    assert leak_check.left() == []


def test_the_preflight_of_a_lesson_is_a_short_table_without_paths(lab):
    table = preflight.preflight(lab, needs=["runc", "limits", "users", "events", "docker", "podman", "vm"])
    text, page = repr(table), table._repr_html_()
    assert len(text.splitlines()) == 8
    assert page.count("<tr>") == 9
    for shown in (text, page):
        assert "/usr" not in shown and os.uname().nodename not in shown.split()
    assert "runc" in table
    assert ("limits" in table) == ({"memory", "pids"} <= set(lab.limits))
    with pytest.raises(LookupError, match="no tool called pixies"):
        preflight.preflight(lab, needs=["pixies"])


def test_a_need_that_is_not_met_says_what_is_lost_and_the_mend():
    found = {"x": preflight.Finding("Docker", False, "missing", "One cell", "install <it>")}
    table = preflight.Preflight(found)
    assert "x" not in table
    assert repr(table) == "Docker  no: missing  One cell. install <it>"
    assert ">One cell. install &lt;it&gt;</td>" in table._repr_html_()


def test_the_table_stands_to_the_left_on_a_page_of_its_notebook(browser, tmp_path):
    from nbconvert import HTMLExporter

    table = preflight.Preflight({"x": preflight.Finding("Docker", True, "24.0")})
    cell = nbformat.v4.new_code_cell("preflight(lab)")
    cell.outputs = [nbformat.v4.new_output("display_data", {"text/html": table._repr_html_()})]
    source, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    (tmp_path / "page.html").write_text(source)
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    aligned = page.locator("table th, table td").evaluate_all("cells => cells.map(c => getComputedStyle(c).textAlign)")
    assert len(aligned) == 6 and set(aligned) == {"left"}


def test_a_refused_way_says_why_and_what_mends_it():
    from helpers.machine import Way

    found, limits = preflight.try_way(Way("a way", ("sh", "-c", "echo not today >&2; exit 1"), "Wait until tomorrow"))
    assert (found.here, limits) == (False, ())
    assert preflight.described(found) == "refused: not today. Wait until tomorrow"


def test_enter_takes_the_newest_lab_or_the_one_that_is_named(learners, leak_check):
    user = learners["without"]
    done = user.run([user.python, "-c", TWO_LABS])
    assert done.returncode == 0, done.stderr
    newest, named, namespaces = (line.split() for line in done.stdout.splitlines())
    assert newest == [namespaces[0], "lab", "/run/lab"]
    assert named == [namespaces[1], "lab", "/run/lab"]
    assert namespaces[0] != namespaces[1]


def test_the_layout_names_a_notebook_that_exists():
    lesson = server.first_lesson()
    assert lesson == "notebooks/00-start-here.ipynb"
    tabs = server.layout(lesson)["data"]["layout-restorer:data"]["main"]["dock"]["children"]
    assert [tab["widgets"] for tab in tabs] == [[f"notebook:{lesson}"], ["terminal:1"]]


def test_the_readers_own_arrangement_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "STATE", tmp_path)
    server.prepare()
    (workspace,) = (tmp_path / "workspaces").iterdir()
    workspace.write_text(workspace.read_text().replace("0.66", "0.5"))
    arranged = workspace.read_bytes()
    server.prepare()
    assert workspace.read_bytes() == arranged


@pytest.mark.parametrize("display", [{"DISPLAY": ":0"}, {"WAYLAND_DISPLAY": "wayland-0"}])
def test_a_browser_opens_only_where_the_reader_could_see_it(display, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    assert not server.has_display()
    for name, value in display.items():
        monkeypatch.setenv(name, value)
    assert server.has_display()
    monkeypatch.setenv("SSH_CONNECTION", "there")
    assert not server.has_display()


SKIPS = """
import nbformat
import pytest
def test_runs(): pass
def test_excused(): pytest.skip("this machine can't: fly")
def test_lazy(): pytest.skip("no time")
"""


@pytest.mark.parametrize(("ci", "summary"), [("true", "1 failed, 1 passed, 1 skipped"), ("", "1 passed, 2 skipped")])
def test_a_skip_fails_in_continuous_integration_unless_the_machine_is_the_reason(ci, summary, tmp_path):
    (tmp_path / "test_skips.py").write_text(SKIPS)
    (tmp_path / "conftest.py").symlink_to(CHECKOUT / "tests/conftest.py")


    argv = [sys.executable, "-m", "pytest", "--rootdir", tmp_path, "-p", "no:cacheprovider", tmp_path]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path)
    assert summary in done.stdout.splitlines()[-1]
    assert "1 skipped: this machine can't: fly" in done.stdout
    assert ("1 skipped: no time" in done.stdout) == (ci == "")
