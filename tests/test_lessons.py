"""Every lesson and every solution runs, as root and as an ordinary user, and leaves nothing; even when it is killed."""

import json
import os
import re
import signal
import subprocess
import sys

import nbformat
import pytest
from conftest import CHECKOUT
from test_structure import EVERY, LESSONS, by_name, codes, tags

from helpers import rendering

each = pytest.mark.parametrize("path", EVERY, ids=by_name)
KILLED = CHECKOUT / "notebooks/01-runc.ipynb"


def shape(notebook):
    """What of a notebook's outputs must be the same on every machine: kinds of output, and claims without numbers."""
    shapes = []
    for cell in codes(notebook):
        kinds = sorted({kind for output in cell.outputs for kind in output.get("data", {"text": ""})})
        said = "".join(output.get("text", "") for output in cell.outputs)
        claims = [re.sub(r"\d+", "N", line) for line in said.splitlines() if line.startswith("✓")]
        shapes.append((cell.source.splitlines()[0], kinds, claims))
    return shapes


def names_of_needs():
    """{need: its name in the table that a lesson begins with}; for a tool both are the same."""
    return {"limits": "cgroup limits", "users": "more users", "events": "process events", "docker": "Docker",
            "podman": "Podman", "vm": "virtual machines"}  # fmt: skip


def lacks(notebook, cell):
    """True when a cell depends on something that this run of its notebook didn't have."""
    needs = {tag.removeprefix("needs:") for tag in tags(cell, "needs:")}
    needs |= set(re.findall(r'"(\w+)" in here', cell.source))
    table = "".join(output.get("data", {}).get("text/plain", "") for output in codes(notebook)[1].outputs)
    return any(re.search(rf"^{names_of_needs().get(need, need)} +no: ", table, re.M) for need in needs)


def lines_about(notebook, sign):
    return [line for cell in codes(notebook) for output in cell.outputs
            for line in output.get("text", "").splitlines() if line.startswith(sign)]  # fmt: skip


@each
def test_it_runs_from_top_to_bottom_shows_what_is_committed_and_leaves_nothing(path, leak_check):
    committed = nbformat.read(path, as_version=4)
    run = rendering.clean(rendering.execute(path))
    for cell, (first, kinds, claims), expected in zip(codes(run), shape(run), shape(committed), strict=True):
        if lacks(run, cell):  # it says so, or shows what else it can
            assert first == expected[0] and set(claims) <= set(expected[2])
        else:
            assert (first, kinds, claims) == expected
    assert rendering.flaws(run) == []
    assert leak_check.left() == []


@pytest.mark.parametrize("path", [path for path in EVERY if "solutions" in path.parts], ids=by_name)
def test_the_solutions_reach_every_exercise_that_the_lesson_leaves_open(path):
    solved = nbformat.read(path, as_version=4)
    exercises = [cell for cell in codes(solved) if tags(cell, "exercise:")]
    assert len(lines_about(solved, "✓")) >= len(exercises) >= 2
    assert lines_about(solved, "○") == []
    lesson = nbformat.read(CHECKOUT / "notebooks" / path.name, as_version=4)
    assert len(lines_about(lesson, "○")) == len(exercises), "an exercise that is done before the reader begins"


RUN_ALL = """
import json, sys
from helpers import rendering
for path in sys.argv[1:]:
    notebook = rendering.execute(path)
    said = [o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    print(json.dumps([path, "".join(said).count("✓")]), flush=True)
"""


@pytest.mark.parametrize("kind", ["with subordinate IDs", "without"])
def test_an_ordinary_user_can_run_every_lesson_and_solution(kind, learners, leak_check):
    user = learners[kind]
    names = [f"notebooks/{by_name(path)}" for path in EVERY]
    done = user.run([user.python, "-c", RUN_ALL, *names], timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    ticks = dict(map(json.loads, done.stdout.splitlines()))
    assert list(ticks) == names
    assert all(count >= 2 for count in ticks.values())
    assert leak_check.left() == []


# A kernel that stops for good after so many code cells, and says so. What it has made is still there then.
RUN_SOME = """
import sys, time
from helpers import rendering
running, start = rendering.client(sys.argv[1])
codes = [i for i, cell in enumerate(running.nb.cells) if cell.cell_type == "code"]
with running.setup_kernel(**start):
    kernel = running.km.provisioner.pid
    for number, index in enumerate(codes):
        running.execute_cell(running.nb.cells[index], index)
        print(number + 1, kernel, flush=True)
        sys.stdin.readline()
"""


def test_nothing_is_left_after_kill_9_of_the_kernel_at_any_cell(leak_check, tmp_path):
    """Each boundary between two cells of lesson 01 once: the kernel that has come so far is killed, a new one starts.

    Four runs go side by side: starting a kernel is mostly waiting.
    """
    total = len(codes(nbformat.read(KILLED, as_version=4)))
    boundaries = list(range(2, total))  # after the cell that starts the lab, up to the one that ends it
    assert len(boundaries) > 20
    for group in (boundaries[n : n + 4] for n in range(0, len(boundaries), 4)):
        runs = [(last, start_run(tmp_path)) for last in group]
        try:
            for last, run in runs:
                os.kill(advance(run, last, tmp_path), signal.SIGKILL)
        finally:
            for _, run in runs:
                run.kill()
                run.wait(10)
                run.stdin.close()
                run.stdout.close()
        assert leak_check.left() == [], f"left behind after a kill at {group}"


def start_run(place):
    """A run that has begun. What it leaves when it is killed, such as the kernel's connection file, is in `place`."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(place)}
    with open(place / "stderr", "ab") as errors:
        return subprocess.Popen([sys.executable, "-c", RUN_SOME, str(KILLED)], stdin=subprocess.PIPE, env=environment,
                                stdout=subprocess.PIPE, stderr=errors, text=True)  # fmt: skip


def advance(run, last, place):
    """Let a run go on to the end of code cell number `last`; returns the PID of its kernel."""
    while True:
        line = run.stdout.readline()
        assert line, f"the run ended by itself: {(place / 'stderr').read_text()[-3000:]}"
        number, kernel = map(int, line.split())
        if number == last:
            return kernel
        run.stdin.write("\n")
        run.stdin.flush()


def test_a_lesson_can_be_run_twice_in_one_kernel(leak_check):
    running, start = rendering.client(LESSONS[1])
    indexes = [i for i, cell in enumerate(running.nb.cells) if cell.cell_type == "code"]
    with running.setup_kernel(**start):
        for index in indexes[:-1] + indexes:  # the second time round the lab of the first is still alive
            running.execute_cell(running.nb.cells[index], index)
    assert leak_check.left() == []
