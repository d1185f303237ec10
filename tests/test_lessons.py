"""Every lesson and every solution runs, as root and as an ordinary user, and leaves nothing; even when it is killed."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
from conftest import CHECKOUT, LeakCheck, snapshot, wanted
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


# ---- all of them, by everybody, side by side

ME = "who runs the tests"
LEARNERS = ("with subordinate IDs", "without")
RUN_ALL = """
import json, sys
import nbformat
from helpers import rendering
for path in sys.argv[1:]:
    notebook = trouble = None
    try:
        notebook = nbformat.writes(rendering.execute(path))
    except rendering.RenderError as error:
        trouble = str(error)
    print(json.dumps([path, notebook, trouble]), flush=True)
"""


@pytest.fixture(scope="module")
def runs(request):
    """{(who, name of a notebook): (the notebook with its outputs, or None; why there is none)} of all that are wanted;
    under "left" what stayed behind.

    Each person runs one notebook after the other, and all of them work side by side, for a lesson mostly waits. They
    begin at different places, so that no two are at the same lesson.
    """
    leaks, lists = LeakCheck(frozenset(snapshot())), {}
    for params in wanted(request):
        lists.setdefault(params["who"], []).append(by_name(params["path"]))
    learners = request.getfixturevalue("learners") if lists.keys() & set(LEARNERS) and os.getuid() == 0 else {}

    def work(number, who):
        names = [f"notebooks/{name}" for name in lists[who]]
        first = len(names) * number // len(lists)
        names = names[first:] + names[:first]
        if who == ME:
            argv = [sys.executable, "-c", RUN_ALL, *names]
            done = subprocess.run(argv, cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
                                  capture_output=True, text=True, timeout=900)  # fmt: skip
        elif who in learners:
            done = learners[who].run([learners[who].python, "-c", RUN_ALL, *names], timeout=900)
        else:
            return {}
        found = dict.fromkeys(names, (None, f"not reached: {done.stderr[-2000:]}"))
        found |= {name: (notebook, trouble) for name, notebook, trouble in map(json.loads, done.stdout.splitlines())}
        return {(who, name.removeprefix("notebooks/")): outcome for name, outcome in found.items()}

    found = {}
    with ThreadPoolExecutor(max(1, len(lists))) as pool:
        for outcomes in pool.map(work, range(len(lists)), lists):
            found |= outcomes
    return found | {"left": leaks.left()}


@each
@pytest.mark.parametrize("who", [ME])
def test_it_runs_from_top_to_bottom_and_shows_what_is_committed(who, path, runs):
    run, committed = finished(runs, who, path), nbformat.read(path, as_version=4)
    for cell, (first, kinds, claims), expected in zip(codes(run), shape(run), shape(committed), strict=True):
        if lacks(run, cell):  # it says so, or shows what else it can
            assert first == expected[0] and set(claims) <= set(expected[2])
        else:
            assert (first, kinds, claims) == expected
    assert rendering.flaws(run) == []


@each
@pytest.mark.parametrize("who", LEARNERS)
def test_an_ordinary_user_can_run_it(who, path, runs):
    if os.getuid() != 0:
        pytest.skip("only root can make users to try the lessons as")
    assert len(lines_about(finished(runs, who, path), "✓")) >= 2


def finished(runs, who, path):
    """The notebook after its run, as it would be committed."""
    notebook, trouble = runs[who, by_name(path)]
    assert trouble is None, trouble
    return rendering.clean(nbformat.reads(notebook, as_version=4))


def test_nothing_is_left_of_all_these_runs(runs):
    assert runs["left"] == []


@pytest.mark.parametrize("path", [path for path in EVERY if "solutions" in path.parts], ids=by_name)
def test_the_solutions_reach_every_exercise_that_the_lesson_leaves_open(path):
    solved = nbformat.read(path, as_version=4)
    exercises = [cell for cell in codes(solved) if tags(cell, "exercise:")]
    assert len(lines_about(solved, "✓")) >= len(exercises) >= 2
    assert lines_about(solved, "○") == []
    lesson = nbformat.read(CHECKOUT / "notebooks" / path.name, as_version=4)
    assert len(lines_about(lesson, "○")) == len(exercises), "an exercise that is done before the reader begins"


# ---- killed, and run twice

# For each number that this reads, a process of its own runs that many code cells in a new kernel, says so, and stays.
# What the cells have made is still there then. It is forked, for to import all that it needs takes a second.
RUN_SOME = """
import os, signal, sys, tempfile, traceback
from helpers import rendering
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            running, start = rendering.client(sys.argv[1], tempfile.mkdtemp())
            codes = [i for i, cell in enumerate(running.nb.cells) if cell.cell_type == "code"]
            with running.setup_kernel(**start):
                for index in codes[:int(line)]:
                    running.execute_cell(running.nb.cells[index], index)
                os.write(1, b"%d %d\\n" % (os.getpid(), running.km.provisioner.pid))
                signal.pause()
        except BaseException:
            traceback.print_exc()
            os.write(1, b"failed\\n")
            os._exit(1)
"""


def test_nothing_is_left_after_kill_9_of_the_kernel_at_any_cell(leak_check, tmp_path):
    """Each boundary between two cells of lesson 01 once: the kernel that has come so far is killed, a new one starts.

    Eight runs go side by side. What they leave when they are killed, such as the kernel's connection file, is in
    `tmp_path`.
    """
    total = len(codes(nbformat.read(KILLED, as_version=4)))
    boundaries = list(range(2, total))  # after the cell that starts the lab, up to the one that ends it
    assert len(boundaries) > 20
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(tmp_path)}
    with open(tmp_path / "stderr", "ab") as errors, subprocess.Popen(
        [sys.executable, "-c", RUN_SOME, str(KILLED)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        env=environment, text=True,
    ) as runs:  # fmt: skip
        leaks = LeakCheck(frozenset(snapshot()))
        for group in (boundaries[n : n + 8] for n in range(0, len(boundaries), 8)):
            runs.stdin.write("".join(f"{number}\n" for number in group))
            runs.stdin.flush()
            for _ in group:
                line = runs.stdout.readline()
                assert re.fullmatch(r"\d+ \d+\n", line), (tmp_path / "stderr").read_text()[-3000:]
                run, kernel = map(int, line.split())
                os.kill(kernel, signal.SIGKILL)
                os.kill(run, signal.SIGKILL)
            assert leaks.left() == [], f"left behind after a kill at {group}"
        runs.stdin.close()


def test_a_lesson_can_be_run_twice_in_one_kernel(leak_check, tmp_path):
    running, start = rendering.client(LESSONS[1], tmp_path)
    indexes = [i for i, cell in enumerate(running.nb.cells) if cell.cell_type == "code"]
    with running.setup_kernel(**start):
        for index in indexes[:-1] + indexes:  # the second time round the lab of the first is still alive
            running.execute_cell(running.nb.cells[index], index)
    assert leak_check.left() == []
