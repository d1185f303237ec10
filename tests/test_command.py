"""./lab as a person uses it: in a terminal, and in the browser that it opens."""

import ast
import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import CHECKOUT, EXCUSE, LeakCheck, opened_chromium, snapshot, wanted
from playwright.sync_api import Error as PlaywrightError
from test_structure import LESSONS, by_name, codes, read

from helpers import cgroups, cleanup, course, processes
from helpers.lab import start_lab

LAB = str(CHECKOUT / "lab")
TOGETHER = 3  # lessons that run in the browser
TROUBLE = ".jp-OutputArea-output[data-mime-type$='.stderr']"  # JupyterLab shows an error as it shows stderr


def run(*arguments, timeout=60, **environment):
    return subprocess.run([LAB, *arguments], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
                          env={**os.environ, **environment}, cwd="/")  # fmt: skip


def test_help_names_every_command():
    said = run("--help")
    assert said.returncode == 0
    for word in ("test", "doctor", "reset", "enter", "render", "bench", "kernel", "--yes"):
        assert word in said.stdout


@pytest.mark.parametrize("arguments", [["frobnicate"], ["doctor", "now"], ["setup", "x"], ["reset", "--everything"]])
def test_an_unknown_argument_is_one_sentence_and_status_2(arguments):
    said = run(*arguments)
    assert said.returncode == 2
    assert said.stdout == ""
    assert re.fullmatch(r"lab: .+--help says what there is\n", said.stderr)


def test_the_doctor_says_what_can_be_shown_and_needs_no_more_than_python():
    said = run("doctor", PATH="/usr/bin:/bin:/usr/sbin:/sbin")
    assert said.returncode == 0, said.stdout + said.stderr
    for word in ("Ways to make a lab", "runc", "Cgroups", "process events", "Lesson 01 can run here"):
        assert word in said.stdout


def test_the_doctor_says_so_when_lesson_01_can_not_run_and_how_to_mend_it():
    program = (
        "import sys; from helpers import command, machine; found = machine.find\n"
        "machine.find = lambda name: None if name == 'runc' else found(name)\n"
        "sys.exit(command.main(['doctor']))"
    )
    argv = ["/usr/bin/python3", "-c", program]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=CHECKOUT)
    assert said.returncode == 1
    assert re.search(r"no +runc +missing.*install", said.stdout)


def test_reset_removes_what_a_dead_lab_left_and_nothing_else(leak_check):
    """A ledger of a process that has long gone, with real cgroups, beside a stranger's that looks alike."""
    hierarchy = next((h for h in cgroups.hierarchies() if os.access(h.mountpoint, os.W_OK)), None)
    if hierarchy is None:
        pytest.skip(f"{EXCUSE}make cgroups")
    mine, strangers = (Path(hierarchy.mountpoint, f"uncontained-{name}") for name in ("planted", "stranger"))
    ledger = cleanup.open_ledger("planted")
    cleanup.register(ledger, "init", [os.getpid(), 1, "another boot"])
    cleanup.register(ledger, "cgroup", str(mine))
    (mine / "inner").mkdir(parents=True)
    strangers.mkdir()
    try:
        said = run("reset")
        assert said.returncode == 0 and said.stdout.startswith("Removed what 1 lab had left.")
        assert not mine.exists() and strangers.exists() and not os.path.exists(ledger)
        assert run("reset").stdout.startswith("No lab has left anything.")
    finally:
        strangers.rmdir()


def test_reset_leaves_a_living_lab_alone_and_ends_it_when_told_to(leak_check):
    mine = start_lab()
    assert "1 lab in use" in run("reset").stdout
    assert mine.run(["echo", "alive"]).stdout == "alive\n"
    assert run("reset", "--all").stdout == "Removed what 1 lab had left.\n"
    processes.wait_until(lambda: not Path(f"/proc/{mine.pid}").exists(), "the lab to end")
    assert mine.close().left == ()


def test_enter_without_a_lab_is_one_sentence():
    said = run("enter", "no-such-lab")
    assert (said.returncode, said.stdout) == (1, "")
    assert re.fullmatch(r"lab: No lab .+\n", said.stderr)


def test_enter_is_a_root_shell_in_the_lab_whose_containers_go_with_it(lab):
    parent, child = pty.openpty()
    shell = subprocess.Popen([LAB, "enter", lab.name], stdin=child, stdout=child, stderr=child, start_new_session=True)
    os.close(child)
    os.write(parent, b"hostname; id -u; pwd; sleep 1234 & echo cgroup $(grep -c uncontained /proc/self/cgroup)\n")
    said = read_until(parent, "cgroup ", 1)
    assert re.search(r"# nsenter (--user --preserve-credentials )?--target=", said)
    assert re.search(r"[\r\n]lab\r\n0\r\n/run/lab\r\n", said)
    sleeper = processes.wait_until(lambda: lab.find("sleep"), "the sleep")[0]
    if lab.limits:
        assert f"uncontained-{lab.name}" in sleeper.cgroup
    lab.close()
    assert shell.wait(10) != 0  # the shell went with the lab
    os.close(parent)


def read_until(descriptor, word, digits):
    """What a terminal shows, until `word` is followed by a number."""
    said, deadline = "", time.monotonic() + 15
    while not re.search(rf"{word}\d{{{digits},}}", said):
        assert time.monotonic() < deadline, said
        if select.select([descriptor], [], [], 1)[0]:
            said += os.read(descriptor, 65536).decode(errors="replace")
    return said


# ---- in the browser


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The directory where the server's learner has their state."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def address(state):
    """The address that ./lab prints, of a server that it started. It saves nothing: the lessons are the checkout's."""
    saving = state / "settings/@jupyterlab/docmanager-extension/plugin.jupyterlab-settings"
    saving.parent.mkdir(parents=True)
    saving.write_text('{"autosave": false}')
    environment = {
        **os.environ, "SSH_CONNECTION": "x", "XDG_STATE_HOME": str(state),
        "JUPYTERLAB_SETTINGS_DIR": str(state / "settings"),
    }  # fmt: skip
    with subprocess.Popen([LAB, "--yes"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, cwd="/",
                          stderr=subprocess.DEVNULL, env=environment) as server:  # fmt: skip
        line = server.stdout.readline()
        yield re.search(r"http://127\.0\.0\.1:\d+/\S+", line)[0]
        server.send_signal(signal.SIGINT)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def test_a_second_start_is_quick(address):
    """Nothing is installed again: what is here is looked at, and that is all."""
    began = time.monotonic()
    assert run("setup", "--yes").returncode == 0
    assert time.monotonic() - began < 10  # an installation takes longer; on an idle machine it is a tenth of a second


def test_the_server_wants_its_token(address):
    import urllib.error
    import urllib.request

    base = re.match(r"http://[^/]+", address)[0]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{base}/api/contents", timeout=10)
    token = address.rpartition("=")[2]
    listed = json.load(urllib.request.urlopen(f"{base}/api/contents?token={token}", timeout=10))
    assert "notebooks" in {entry["name"] for entry in listed["content"]}


def test_it_opens_on_lesson_00_beside_a_terminal(address, browser):
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    page.goto(address)
    notebook = page.locator(".jp-NotebookPanel").first
    terminal = page.locator(".jp-Terminal").first
    notebook.wait_for(timeout=40_000)
    terminal.wait_for(timeout=40_000)
    page.get_by_role("heading", name="What can this machine show me").first.wait_for(timeout=20_000)
    left, right = notebook.bounding_box(), terminal.bounding_box()
    assert left["x"] + left["width"] <= right["x"] + 10 and right["width"] > 250
    if os.environ.get("SHOTS"):
        page.screenshot(path=f"{os.environ['SHOTS']}/start.png")
    page.close()


@pytest.fixture(scope="module")
def shown(request, address, state):
    """{name of a lesson: what its page showed after Run All, or why it didn't}, and under "left" what stayed behind.

    Each lesson is begun while those before it still run: they mostly wait.
    """
    leaks, found, running = LeakCheck(frozenset(snapshot())), {}, {}
    paths = [params["path"] for params in wanted(request)]

    def finish(path):
        try:
            found[by_name(path)] = look(running[path], path, state)
        except PlaywrightError as error:
            found[by_name(path)] = error
        if path != paths[-1]:
            running[path].close()

    with opened_chromium() as opened:
        for number, path in enumerate(paths):
            running[path] = open_lesson(opened, address, path)
            choose(running[path], "Run", "Run All Cells")
            if number >= TOGETHER:
                finish(paths[number - TOGETHER])
        for path in paths[-TOGETHER:]:
            finish(path)
        close(running[paths[-1]], address)
    return found | {"left": leaks.left()}


def look(page, path, state):
    """(errors, number of pictures, whether the last claim is in the learner's notes), once the last cell has run."""
    # A cell that fails stops the run: the words of the last cell are the proof that all before it were green.
    last = page.get_by_text(last_claim(path))
    trouble = page.locator(TROUBLE)
    last.or_(trouble).first.wait_for(timeout=240_000)
    if os.environ.get("SHOTS"):
        page.screenshot(path=f"{os.environ['SHOTS']}/{path.stem}.png")
    if trouble.count():
        return trouble.all_inner_texts(), 0, False
    last_words, file = course.read(path).claims[-1].words, state / "uncontained" / "progress.json"
    noted = lambda: last_words in json.loads(file.read_text()).get(path.stem, {})  # noqa: E731
    with contextlib.suppress(TimeoutError):
        processes.wait_until(noted, "the note of the last claim")
    return trouble.all_inner_texts(), page.locator(".jp-OutputArea-output img").count(), noted()


@pytest.mark.parametrize("path", LESSONS, ids=by_name)
def test_run_all_in_the_browser_turns_every_check_green_and_shows_the_pictures(path, shown):
    if isinstance(shown[by_name(path)], Exception):
        raise shown[by_name(path)]
    trouble, pictures, noted = shown[by_name(path)]
    assert trouble == []
    assert pictures >= 1 and noted


def test_nothing_is_left_of_the_lessons_in_the_browser(shown):
    assert shown["left"] == []


def test_a_lesson_can_be_begun_in_the_middle(address, browser, leak_check):
    """As lesson 00 and `./lab progress` say: all cells above the heading, then the section."""
    claims = [claim for claim in course.read(LESSONS[0]).claims if claim.kind == "check"]
    section = claims[len(claims) // 2].section
    above = [claim for claim in claims if claim.section != section][: [c.section for c in claims].index(section)]
    page = open_lesson(browser, address, LESSONS[0])
    page.get_by_role("heading", name=section).first.click()
    choose(page, "Run", "Run All Above Selected Cell")
    page.get_by_text(f"✓ {above[-1].words}").wait_for(timeout=120_000)
    assert page.get_by_text("✓").count() < len(claims) - 1
    choose(page, "Run", "Run Selected Cell and All Below")
    page.get_by_text(last_claim(LESSONS[0])).wait_for(timeout=120_000)
    assert page.locator(TROUBLE).count() == 0
    close(page, address)
    assert leak_check.left() == []


def open_lesson(browser, address, path):
    """The lesson in JupyterLab, with its kernel ready and without any output."""
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    base, token = re.match(r"http://[^/]+", address)[0], address.rpartition("=")[2]
    page.goto(f"{base}/lab/workspaces/test-{path.stem}/tree/{path.relative_to(CHECKOUT)}?reset&token={token}")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=40_000)
    page.get_by_text("| Idle").first.wait_for(timeout=60_000)  # without a kernel, Run All does nothing
    choose(page, "Edit", "Clear Outputs of All Cells")
    assert page.get_by_text("✓").count() == 0
    return page


def choose(page, menu, item):
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.get_by_role("menuitem", name=re.compile(f"^{item}")).click()


def close(page, address):
    """Close the page, and end all kernels of its server."""
    base, token = re.match(r"http://[^/]+", address)[0], address.rpartition("=")[2]
    for kernel in page.request.get(f"{base}/api/kernels?token={token}").json():
        page.request.delete(f"{base}/api/kernels/{kernel['id']}?token={token}")
    page.close()


def last_claim(path):
    """What the last check of a lesson prints, as a pattern: an f-string's values are not known yet."""
    calls = [node for node in ast.walk(ast.parse(codes(read(path))[-1].source)) if isinstance(node, ast.Call)]
    claim = [call.args[0] for call in calls if getattr(call.func, "id", "") == "check"][-1]
    parts = claim.values if isinstance(claim, ast.JoinedStr) else [claim]
    words = [re.escape(part.value) if isinstance(part, ast.Constant) else ".+" for part in parts]
    return re.compile("✓ " + "".join(words))
