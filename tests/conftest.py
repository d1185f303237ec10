"""What the tests share: skips that count, a lab that must leave nothing, and learners who are not root."""

import contextlib
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from helpers import cgroups  # noqa: E402
from helpers.lab import LabError, start_lab  # noqa: E402

EXCUSE = "this machine can't: "  # such a skip is one even in CI

# ---- skips: counted, and with CI=true a failure


def _judge(report):
    """In CI, a skip without the excuse is a failure."""
    if not report.skipped or hasattr(report, "wasxfail") or os.environ.get("CI") != "true":
        return
    reason = _reason(report)
    if not reason.startswith(EXCUSE):
        report.outcome = "failed"
        report.longrepr = f"skipped, and in CI nothing may be skipped: {reason}"


def _reason(report):
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return said.removeprefix("Skipped: ")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    _judge(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    _judge(report)
    return report


def pytest_terminal_summary(terminalreporter):
    """All reasons in one place, each with the number of tests that it took."""
    counts = {}
    for report in terminalreporter.stats.get("skipped", []):
        counts[_reason(report)] = counts.get(_reason(report), 0) + 1
    if counts:
        terminalreporter.section("not tested here")
        for reason, count in sorted(counts.items()):
            terminalreporter.write_line(f"{count} skipped: {reason}")


# ---- many tests that are done at once, by one fixture


def wanted(request):
    """The parameters of all selected tests that use the fixture which asks, in their order."""
    return [item.callspec.params for item in request.session.items
            if request.fixturename in item.fixturenames and hasattr(item, "callspec")]  # fmt: skip


# ---- leaks


def snapshot():
    """Everything that a lesson could leave on the machine, as a set of (kind, what) pairs."""
    found = {("mount", line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    found |= {("device", name) for name in os.listdir("/sys/class/net")}
    found |= {("file", str(path)) for path in Path("/tmp").glob("uncontained-*")}
    for hierarchy in cgroups.hierarchies():
        for place, _, _ in os.walk(hierarchy.mountpoint):
            if "uncontained-" in place or not place.endswith((".service", ".scope", ".slice", ".mount", ".socket")):
                found.add(("cgroup", place))
    for pid in filter(str.isdigit, os.listdir("/proc")):
        found |= _traces(pid)
    return found


def _traces(pid):
    """The namespaces of a process, and the process itself when it could be ours: a child, or not in our namespaces."""
    found = set()
    try:
        for kind in os.listdir(f"/proc/{pid}/ns"):
            link = os.readlink(f"/proc/{pid}/ns/{kind}")
            if link != os.readlink(f"/proc/self/ns/{kind.removesuffix('_for_children')}"):
                found.add(("namespace", link))
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return found
    name, fields = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
    if found or int(fields[1]) == os.getpid():
        found.add(("process", f"{pid} {name}, started at {fields[19]}"))
    return found


@dataclass(frozen=True)
class LeakCheck:
    """`left()` waits until the machine is as it was when this was made, and returns what is left over: normally []."""

    before: frozenset

    def left(self, timeout=10):
        deadline = time.monotonic() + timeout
        while True:
            left = snapshot() - self.before
            if not left or time.monotonic() > deadline:
                return sorted(left)
            time.sleep(0.05)


@pytest.fixture
def leak_check():
    """A look at the machine before the test; the test fails when something is left after it."""
    check = LeakCheck(frozenset(snapshot()))
    yield check
    assert check.left() == []


@pytest.fixture
def lab(leak_check):
    """A lab of this test's own; nothing of it may be left afterwards."""
    try:
        started = start_lab()
    except LabError as error:
        pytest.skip(f"{EXCUSE}make a lab ({error})")
    yield started
    assert started.close().left == ()


# ---- learners


@dataclass(frozen=True)
class Learner:
    """An ordinary user without sudo, who has a copy of this checkout at `checkout` and can run `python` with all that
    the lessons need."""

    name: str
    home: Path
    checkout: Path
    python: Path

    def command(self, argv):
        """The command line by which root runs `argv` as this user, with a clean environment, in their checkout."""
        environment = {
            "HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": "/bin/bash", "LANG": "C.UTF-8",
            "PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": self.checkout,
        }  # fmt: skip
        settings = [f"{key}={value}" for key, value in environment.items()]
        ids = [f"--reuid={self.name}", f"--regid={self.name}", "--init-groups", "--inh-caps=-all"]
        return ["setpriv", *ids, "env", "--ignore-environment", f"--chdir={self.checkout}", *settings, *map(str, argv)]

    def run(self, argv, *, timeout=120, **options):
        """Run a command as this user; a CompletedProcess with text."""
        defaults = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
        return subprocess.run(self.command(argv), timeout=timeout, **{**defaults, **options})


@pytest.fixture(scope="session")
def learners():
    """{"with subordinate IDs": Learner, "without": Learner}: two users, made for the tests and removed again."""
    if os.getuid() != 0:
        pytest.skip("only root can make users to try the lessons as")
    for account in pwd.getpwall():  # of runs that were killed
        if (stale := re.fullmatch(r"uncontained-[ab](\d*)", account.pw_name)) and not _is_process(stale[1]):
            _remove_user(account.pw_name)
    names = {"with subordinate IDs": f"uncontained-a{os.getpid()}", "without": f"uncontained-b{os.getpid()}"}
    place = Path(tempfile.mkdtemp(prefix="learners-"))
    try:
        place.chmod(0o755)
        for name in names.values():
            _make_user(name)
        python = _python_for(names["without"], place)
        yield {kind: _settle(name, python) for kind, name in names.items()}
    finally:
        for name in names.values():
            _remove_user(name)
        shutil.rmtree(place)


def _is_process(pid):
    return bool(pid) and Path(f"/proc/{pid}").exists()


def _make_user(name):
    _root("useradd", "--create-home", "--shell", "/bin/bash", name)
    wanted = name.startswith("uncontained-a")
    for file, option in (("/etc/subuid", "subuids"), ("/etc/subgid", "subgids")):
        lines = [line for line in Path(file).read_text().splitlines() if line.startswith(f"{name}:")]
        if wanted and not lines:
            _root("usermod", f"--add-{option}", "1000000000-1000065535", name)
        for line in [] if wanted else lines:
            _, first, count = line.split(":")
            _root("usermod", f"--del-{option}", f"{first}-{int(first) + int(count) - 1}", name)


def _remove_user(name):
    try:
        uid = pwd.getpwnam(name).pw_uid
    except KeyError:
        return
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{pid}").st_uid == uid:
                os.kill(int(pid), 9)
        except OSError:
            continue  # it has just ended
    _root("userdel", "--force", "--remove", name)
    shutil.rmtree(f"/home/{name}", ignore_errors=True)
    for left in ("uncontained", "containers-user", "podman-run"):  # the latter two are Podman's own
        shutil.rmtree(f"/tmp/{left}-{uid}", ignore_errors=True)


def _root(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 or argv[0] == "userdel", done.stderr
    return done


def _python_for(name, place):
    """A Python with all packages that this user can run: the one that runs the tests, else a copy of its packages."""
    mine = Path(sys.executable)
    trial = ["setpriv", f"--reuid={name}", f"--regid={name}", "--clear-groups", mine, "-I", "-c", "import nbclient"]
    if subprocess.run(trial, cwd="/", capture_output=True, timeout=60).returncode == 0:
        return mine
    packages = Path(sys.prefix, "lib", f"python3.{sys.version_info.minor}", "site-packages")
    _root("/usr/bin/python3", "-m", "venv", "--without-pip", str(place / "venv"))
    theirs = next(place.glob("venv/lib/python3.*/site-packages"))
    assert theirs.parent.name == packages.parent.name, "the tests must run with the Python in /usr/bin: ./lab test does"
    shutil.copytree(packages, theirs, dirs_exist_ok=True)
    shutil.copytree(Path(sys.prefix, "share"), place / "venv/share", dirs_exist_ok=True)
    return place / "venv/bin/python"


def _settle(name, python):
    """Give the user a copy of what is, or would be, in the repository."""
    account = pwd.getpwnam(name)
    learner = Learner(name, Path(account.pw_dir), Path(account.pw_dir, "uncontained"), python)
    copy_checkout(learner.checkout)
    for path in (learner.checkout, *learner.checkout.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    return learner


def copy_checkout(target):
    """Copy the files of the repository, and those that git would add, to a new directory."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={CHECKOUT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, check=True, capture_output=True, text=True, timeout=30,
    ).stdout  # fmt: skip
    target.mkdir()
    for name in filter(None, listed.split("\0")):
        if (CHECKOUT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, target / name, follow_symlinks=False)


# ---- the browser


@contextlib.contextmanager
def opened_chromium():
    """A headless Chromium, the distribution's own; a skip where there is none."""
    from helpers import browser

    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(browser.chromium())
        except LookupError as missing:  # and none that comes later, from what is done with it
            pytest.skip(str(missing))
        yield opened


@pytest.fixture
def browser():
    with opened_chromium() as opened:
        yield opened


@pytest.fixture
def notebook(browser, tmp_path):
    """A function that opens a notebook of these code cells in a JupyterLab of its own, and gives the page."""
    from helpers.browser import jupyter, open_notebook

    with contextlib.ExitStack() as servers:
        yield lambda cells: open_notebook(browser, servers.enter_context(jupyter(tmp_path, cells)))
