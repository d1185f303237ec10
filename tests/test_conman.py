"""conman in a lab, on our shim and on Debian's conmon alike: commands, exit codes, and kill -9 at every line."""

import contextlib
import fcntl
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import struct
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from conftest import CHECKOUT, EXCUSE, LeakCheck, snapshot

from helpers import bundles, machine
from helpers.lab import PIPE, Lab, LabError, start_lab
from helpers.processes import descriptors, read_one, wait_until
from notebooks.programs import image

PROGRAMS = CHECKOUT / "notebooks/programs"
#: A shell without a line editor: it takes what was typed early, too.
TALKER = ["sh", "-c", "echo begun; while read -r line; do eval \"$line\"; done"]
FOREVER = ["sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done"]
SHIMS = {"shim": "bin/shim", "conmon": shutil.which("conmon") or "/usr/bin/conmon"}
SEED = int(os.environ.get("CONMAN_SEED", random.randrange(10**6)))
PATIENT = bool(os.environ.get("CONMAN_FAULTS"))  # then a kill at every line, not at a few
MANY = int(os.environ.get("CONMAN_MANY", 20))


@dataclass(frozen=True)
class Manager:
    """`conman` with a state directory of its own, in a lab that has a root file system at `box`."""

    lab: Lab
    shim: str
    root: str = "/run/lab/state"

    def words(self, *words):
        return ["bin/conman", "--root", self.root, "--shim", self.shim, *map(str, words)]

    def run(self, *words, **options):
        """The Output of a conman command, whatever its exit code."""
        return self.lab.run(self.words(*words), echo=False, check=False, **options)

    def must(self, *words, **options):
        """What a conman command printed. AssertionError when it fails."""
        done = self.run(*words, **options)
        assert done.code == 0, f"{words}: {done}"
        return done.stdout.strip()

    def refused(self, *words, code=125):
        """The one sentence of a command that must be refused."""
        done = self.run(*words)
        assert done.code == code and done.stdout == "", done
        assert re.fullmatch(r"conman: [^\n]{5,600}\n", done.stderr), done.stderr
        return done.stderr

    def start(self, *words, **options):
        return self.lab.start(self.words(*words), echo=False, **options)

    def inspect(self, name):
        return json.loads(self.must("inspect", name))

    def status(self, name):
        return self.inspect(name)["status"]

    def rows(self):
        """{name: status} as `ps` prints them."""
        lines = self.must("ps").splitlines()[1:]
        return {line.split()[0]: re.split(r"\s{2,}", line)[1] for line in lines}

    def output(self, name):
        return self.must("logs", name)

    def forever(self, name, *options):
        """Run a container that ends with 5 at a TERM; it has begun when this returns."""
        self.must("run", "-d", "--name", name, *options, "box", *FOREVER)
        wait_until(lambda: "ready" in self.output(name), f"{name} to be ready", 20)

    def path(self, name=""):
        return self.lab.path(f"{self.root}/{name}")

    def process(self, pid):
        return read_one(pid, self.lab.proc)

    def left(self):
        """What is left of containers in the lab. The ideal is []."""
        found = [f"process {p.pid} {p.name} {p.argv}" for p in self.lab.processes() if p.name not in ("lab", "ps")]
        for place in ("containers", "drafts", "runtime"):
            found += [f"{place}/{path.name}" for path in self.path(place).glob("*")]
        return found

    def clean(self):
        names = {path.name: (path / "shm").exists() for path in self.path("containers").glob("*")}
        for name in (name for name, is_pod in names.items() if is_pod):
            self.must("pod", "rm", "-f", name)
        names = [path.name for path in self.path("containers").glob("*")]
        if names:
            self.run("rm", "-f", *names)
        wait_until(lambda: not self.left(), f"nothing to be left: {self.left()}", 20)


@pytest.fixture(scope="module")
def home():
    """A lab with the programs in `bin` and a root file system in `box`."""
    check = LeakCheck(frozenset(snapshot()))
    try:
        lab = start_lab()
    except LabError as error:
        pytest.skip(f"{EXCUSE}make a lab ({error})")
    lab.path("bin").mkdir()
    for name in ("conman", "shim", "image.py"):
        shutil.copy2(PROGRAMS / name, lab.path("bin"))
    lab.path("box").mkdir()
    bundles.fill_rootfs(lab.path("box"))
    yield lab
    assert lab.close().left == ()
    assert check.left() == []


@pytest.fixture(params=SHIMS)
def conman(request, home):
    """The manager, once on each shim; nothing may be left of what it ran."""
    if request.param == "conmon" and not machine.find("conmon"):
        pytest.skip("conmon is missing")
    manager = Manager(home, SHIMS[request.param])
    yield manager
    manager.clean()


@pytest.fixture
def ours(home):
    """The manager on our shim only, for what has nothing to do with the shim."""
    manager = Manager(home, SHIMS["shim"])
    yield manager
    manager.clean()


class Terminal:
    """A command that has a terminal, as in a window: we are the one who types and looks."""

    def __init__(self, conman, *words, rows=24, columns=80):
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        with open(slave, "r+b", buffering=0) as side:
            command = ["setsid", "--ctty", "--wait", *conman.words(*words)]
            self.step = conman.lab.start(command, stdin=side, stdout=side, stderr=side, echo=False)
        self.seen = b""

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.master, text)

    def expect(self, text, timeout=20):
        """Wait until `text` has been shown, and forget what came up to it."""
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.master], [], [], left)[0], f"no {text!r} in {self.seen!r}"
            try:
                self.seen += os.read(self.master, 4096)
            except OSError:  # everybody else has closed the terminal
                raise AssertionError(f"no {text!r} in {self.seen!r}, and then the end") from None
        self.seen = self.seen.partition(text)[2]

    def shows(self, text):
        """Whether `text` is shown soon."""
        with contextlib.suppress(AssertionError):
            self.expect(text, 0.3)
            return True
        return False

    def wait(self):
        return self.step.wait(20)


def collect(step, wanted=None, timeout=20):
    """Read a step's stdout until it ends, or until `wanted` has come."""
    seen, deadline = b"", time.monotonic() + timeout
    while wanted is None or wanted not in seen:
        left = deadline - time.monotonic()
        assert left > 0 and select.select([step.stdout], [], [], left)[0], f"no {wanted!r} in {seen!r}"
        data = os.read(step.stdout.fileno(), 65536)
        if not data:
            break
        seen += data
    return seen


# ---- exit codes: Docker's


CODES = [
    (0, ["true"]),
    (1, ["false"]),
    (3, ["sh", "-c", "exit 3"]),
    (143, ["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"]),
    (126, ["/etc/passwd"]),
    (126, ["/etc"]),
    (127, ["no-such-program"]),
    (127, ["/no/such/program"]),
]


def test_the_exit_code_is_that_of_the_program_or_says_why_there_was_none(conman):
    conman.forever("x")
    for code, words in CODES:
        assert conman.run("run", "--rm", "box", *words).code == code
        assert conman.run("exec", "x", *words).code == code
    assert conman.rows() == {"x": "running"}


def test_a_signal_that_ended_it_makes_128_plus_its_number(conman):
    conman.forever("x")
    conman.must("kill", "x")
    assert conman.must("wait", "x") == "137"
    assert conman.rows() == {"x": "exited (137)"}
    conman.must("start", "x")
    conman.must("kill", "-s", "SIGTERM", "x")  # for which it has a handler
    assert conman.must("wait", "x") == "5"
    step = conman.start("run", "--name", "y", "box", *FOREVER, stdout=PIPE)
    collect(step, b"ready")
    conman.must("kill", "y")
    assert step.wait(20) == 137
    step = conman.start("exec", "x", "true")
    assert step.wait(20) == 125


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "required: COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["run"], "required: SOURCE"),
        (["run", "box"], "name a command"),
        (["run", "no-box", "true"], "'no-box' is neither a directory nor oci:"),
        (["run", "box/etc/passwd", "true"], "neither a directory"),
        (["run", "oci:nowhere", "true"], "oci-layout is missing"),
        (["run", "--pod", "nowhere", "box", "true"], "no container 'nowhere'"),
        (["run", "--name", "", "--pod", "x/y", "box", "true"], "can't be a name"),
        (["run", "-e", "PATH", "box", "true"], "'PATH' is not NAME=VALUE"),
        (["run", "--rma", "box", "true"], "unrecognized arguments: --rma"),
        (["exec", "x"], "needs a program"),
        (["exec", "x", "true"], "no container 'x'"),
        (["stop", "--time", "-1", "x"], "not a number of seconds"),
        (["stop", "--time", "9" * 5000, "x"], "not a number of seconds"),
        (["kill", "--signal", "DANCE", "x"], "'DANCE' is not a signal"),
        (["kill", "--signal", "99", "x"], "'99' is not a signal"),
        (["logs", "x"], "no container 'x'"),
        (["attach", "x"], "no container 'x'"),
        (["inspect", "x"], "no container 'x'"),
        (["pod", "rm", "x"], "no container 'x'"),
        (["wait", "x"], "no container 'x'"),
        (["rm", "x"], "no container 'x'"),
    ],
)
def test_what_cannot_be_done_is_refused_with_one_sentence_and_125(ours, words, part):
    assert part in ours.refused(*words)


HOSTILE = ["; rm -rf /", "../x", "/x", ".", "..", ".x", "-x-", "a b", "a\nb", "a\n", "x" * 10_000, "x" * 64, "ü",
           "x\x1b[2J", "a/b", "$(id)", "*", ""]  # fmt: skip


@pytest.mark.parametrize("verb", [["start"], ["stop"], ["kill"], ["rm"], ["rm", "-f"], ["wait"], ["pod", "rm"]])
def test_hostile_names_are_refused_and_touch_nothing(ours, verb):
    ours.must("create", "--name", "x", "box", "true")
    done = ours.run(*verb, "--", *HOSTILE)
    lines = done.stderr.splitlines()
    assert done.code == 125 and done.stdout == "" and len(lines) == len(HOSTILE)
    assert all("can't be a name" in line and len(line) < 200 and line.isascii() for line in lines)
    assert ours.rows() == {"x": "new"}


@pytest.mark.parametrize("name", ["../x", "a\n", "x" * 10_000])
def test_a_hostile_name_for_something_new_or_just_looked_at_is_refused(ours, name):
    for words in (
        ["create", f"--name={name}", "box", "true"],
        ["run", "--name", "x", f"--pod={name}", "box", "true"],
        *[[verb, "--", name] for verb in ("logs", "attach", "inspect")],
        ["exec", "--", name, "true"],
        ["pod", "create", "--", name],
    ):
        assert "can't be a name" in ours.refused(*words)
    assert ours.left() == []


def test_hostile_arguments_reach_the_program_as_they_are_or_are_refused(ours):
    hostile = "a\nb; $(id) \"' \\ \x1b[31m ü \u2028"
    assert ours.run("run", "--name", "x", "-e", f"V={hostile}", "box", "sh", "-c", 'printf %s "$V$1"', "sh",
                    hostile).stdout == hostile * 2  # fmt: skip
    assert len(ours.must("ps").splitlines()) == 2 and "\x1b" not in ours.must("ps")
    assert "UTF-8" in ours.refused("run", "box", "echo", b"\xff\xfe".decode(errors="surrogateescape"))


def test_other_programs_of_ours_that_are_missing_are_named(ours):
    assert "no-shim" in ours.refused("--shim", "no-shim", "run", "--rm", "box", "true")
    assert "'no-runtime' is missing" in ours.refused("--runtime", "no-runtime", "ps")
    assert "box/etc/passwd" in ours.refused("--root", "box/etc/passwd", "ps")
    assert "shim failed" in ours.refused("--shim", "/bin/false", "run", "--rm", "box", "true")
    assert "was killed before" in ours.refused("--shim", "/bin/true", "run", "--rm", "box", "true")


# ---- the life of a container


def test_its_life_step_by_step_as_ps_tells_it(conman):
    assert conman.must("create", "--name", "x", "box", *FOREVER) == "x"
    assert conman.rows() == {"x": "new"}
    assert conman.must("start", "x") == "x"
    assert conman.rows() == {"x": "running"}
    one = conman.inspect("x")
    assert conman.process(one["pid"]).ppid == one["shim"] and conman.process(one["shim"]).ppid == 1
    assert "stop it first" in conman.refused("rm", "x")
    assert "a container 'x' already" in conman.refused("create", "--name", "x", "box", "true")
    wait_until(lambda: "ready" in conman.output("x"), "it to be ready", 20)
    conman.must("stop", "x")
    assert conman.rows() == {"x": "exited (5)"}
    conman.must("stop", "x")
    assert "is not running: it is exited" in conman.refused("kill", "x")
    conman.must("start", "x")
    assert conman.status("x") == "running"
    conman.must("start", "x")  # already done
    conman.must("rm", "-f", "x")
    assert conman.rows() == {} and conman.left() == []


def test_a_container_holds_nothing_open_but_its_own_three(conman):
    conman.forever("x")
    assert [d.number for d in descriptors(conman.inspect("x")["pid"], conman.lab.proc) if d.number < 10] == [0, 1, 2]


def test_stop_waits_as_long_as_it_is_told_and_then_kills(conman):
    conman.must("run", "-d", "--name", "deaf", "box", "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    begin = time.monotonic()
    conman.must("stop", "--time", "1", "deaf")
    assert 1 <= time.monotonic() - begin < 8
    assert conman.rows() == {"deaf": "exited (137)"}


def test_rm_as_an_option_removes_it_whoever_is_still_there(conman):
    assert conman.run("run", "--rm", "box", "sh", "-c", "exit 4").code == 4
    assert conman.rows() == {}
    conman.must("run", "-d", "--rm", "--name", "x", "box", *FOREVER)
    conman.must("stop", "x")
    wait_until(lambda: conman.rows() == {}, "it to be removed", 20)
    step = conman.start("run", "--rm", "--name", "y", "box", *FOREVER, stdout=PIPE)
    collect(step, b"ready")
    step.kill(signal.SIGKILL)
    assert conman.rows() == {"y": "running"}
    conman.must("kill", "y")
    wait_until(lambda: conman.rows() == {}, "it to be removed without its manager", 20)


def test_who_removes_it_waits_for_those_who_still_want_its_exit_code(conman):
    step = conman.start("run", "--rm", "--name", "x", "box", *FOREVER, stdout=PIPE)
    collect(step, b"ready")
    step.kill(signal.SIGSTOP)  # a client that is slow to ask
    conman.must("kill", "x")
    removing = lambda: [p for p in conman.lab.processes() if "--only" in p.argv]  # noqa: E731
    gone = lambda: not conman.path("containers/x").exists()  # noqa: E731
    wait_until(lambda: removing() or gone(), "the shim's last command", 20)
    with contextlib.suppress(TimeoutError):
        wait_until(gone, "it to be removed", 2)  # in vain
    step.kill(signal.SIGCONT)
    assert step.wait(20) == 137
    wait_until(gone, "it to be removed", 20)


def test_several_names_get_their_turn_even_if_one_is_refused(ours):
    for name in "abc":
        ours.must("create", "--name", name, "box", "true")
    done = ours.run("rm", "a", "nobody", "b")
    assert done.code == 125 and done.stdout == "a\nb\n" and "nobody" in done.stderr
    assert ours.rows() == {"c": "new"}


def test_wait_hears_of_an_end_that_comes_later(conman):
    conman.forever("x")
    step = conman.start("wait", "x", stdout=PIPE)
    assert select.select([step.stdout], [], [], 0.3)[0] == []
    conman.must("stop", "x")
    assert collect(step) == b"5\n" and step.wait(20) == 0
    conman.must("create", "--name", "y", "box", "true")
    assert "never started" in conman.refused("wait", "y")


def test_the_environment_and_the_name_are_its_own(ours):
    said = ours.must("run", "--rm", "--name", "me", "-e", "A=1=2", "box", "sh", "-c", "echo $A; hostname; echo $$")
    assert said.splitlines() == ["1=2", "me", "1"]


# ---- output


def test_logs_are_complete_and_keep_the_two_streams_apart(conman):
    conman.must("run", "-d", "--name", "x", "box", "sh", "-c", "seq 20000; echo oops >&2; printf rest")
    conman.must("wait", "x")
    done = conman.run("logs", "x")
    assert done.stdout == "".join(f"{n}\n" for n in range(1, 20001)) + "rest" and done.stderr == "oops\n"


def test_logs_that_follow_give_each_line_at_once_and_end_with_the_container(conman):
    conman.must("run", "-d", "--name", "x", "-i", "box", "sh", "-c", "echo one; read line; echo $line")
    step = conman.start("logs", "-f", "x", stdout=PIPE)
    assert collect(step, b"one\n") == b"one\n"
    conman.run("attach", "x", stdin="two\n")
    assert collect(step) == b"two\n" and step.wait(20) == 0


def test_a_reader_of_logs_that_dies_disturbs_nobody(conman):
    conman.must("run", "-d", "--name", "x", "-i", "box", "sh", "-c", "seq 100000; read line; echo end")
    step = conman.start("logs", "-f", "x", stdout=PIPE)
    step.stdout.close()
    assert step.wait(20) == 141
    conman.run("attach", "x", stdin="go\n")
    assert conman.must("wait", "x") == "0" and conman.output("x").endswith("end")


def test_no_output_and_no_exit_code_is_lost_in_the_foreground(conman):
    for number in range(4):
        done = conman.run("run", "--rm", "box", "sh", "-c", f"echo out; echo err >&2; exit {number}")
        assert (done.code, done.stdout, done.stderr) == (number, "out\n", "err\n")


def test_10_megabytes_come_back_as_they_went_in(conman):
    data = random.Random(SEED).randbytes(5_000_000).hex()
    assert conman.run("run", "--rm", "-i", "box", "cat", stdin=data, timeout=60).stdout == data
    conman.forever("x")
    assert conman.run("exec", "-i", "x", "cat", stdin=data, timeout=60).stdout == data


# ---- interactive


def test_two_clients_at_once_hear_the_same_and_both_may_speak(conman):
    conman.must("run", "-d", "-i", "--name", "x", "box", "cat")
    one, two = (conman.start("attach", "x", stdin=PIPE, stdout=PIPE) for _ in range(2))
    for client in (one, two):  # each has an echo, so each is attached
        client.stdin.write(b"hello\n")
        collect(client, b"hello\n")
    for speaker, line in [(one, b"from one\n"), (two, b"from two\n")]:
        speaker.stdin.write(line)
        assert collect(one, line) and collect(two, line)
    one.kill(signal.SIGKILL)
    two.stdin.write(b"alone\n")
    assert collect(two, b"alone\n")  # the container was run with -d: its input stays open
    conman.must("kill", "x")
    assert two.wait(20) == 137


def test_who_only_listens_sends_nothing(conman):
    conman.must("run", "-d", "-i", "--name", "x", "box", "sh", "-c", "while read line; do echo got $line; done")
    listener = conman.start("attach", "--no-stdin", "x", stdin=PIPE, stdout=PIPE)
    speaker = conman.start("attach", "x", stdin=PIPE)
    listener.stdin.write(b"not for you\n")
    wait_until(lambda: speaker.stdin.write(b"for you\n") and select.select([listener.stdout], [], [], 0.2)[0], "it", 20)
    conman.must("kill", "x")
    assert b"not" not in collect(listener) and listener.wait(20) == 137
    assert "not for you" not in conman.output("x")


def test_start_attached_loses_no_first_line_and_ends_with_its_code(conman):
    conman.must("create", "-i", "--name", "x", "box", "sh", "-c", "echo first; cat; exit 6")
    for _ in range(3):
        done = conman.run("start", "-a", "x", stdin="input\n")
        assert (done.stdout, done.code) == ("first\ninput\n", 6)


def test_a_terminal_has_our_size_and_learns_of_a_new_one(conman):
    window = Terminal(conman, "run", "-it", "--rm", "box", *TALKER, rows=31, columns=71)
    window.expect(b"begun")
    window.type(b"stty size; tty\n")
    window.expect(b"31 71\r\n/dev/")
    window.resize(33, 99)
    wait_until(lambda: window.type(b"stty size\n") or window.shows(b"33 99\r\n"), "the new size", 20)
    window.type(b"exit 9\n")
    assert window.wait() == 9


def test_an_exec_with_a_terminal_has_our_size_too(conman):
    conman.forever("x")
    window = Terminal(conman, "exec", "-it", "x", *TALKER, rows=32, columns=72)
    window.expect(b"begun")
    window.type(b"stty size\n")
    window.expect(b"32 72\r\n")
    window.resize(12, 42)
    wait_until(lambda: window.type(b"stty size\n") or window.shows(b"12 42\r\n"), "the new size", 20)
    window.type(b"exit 8\n")
    assert window.wait() == 8


@pytest.mark.parametrize("keys", [[b"\x10\x11"], [b"\x10", b"\x11"]], ids=["at once", "one by one"])
def test_ctrl_p_ctrl_q_leaves_the_container_running_for_the_next_client(conman, keys):
    window = Terminal(conman, "run", "-it", "--name", "x", "box", *TALKER)
    window.expect(b"begun")
    window.type(b"A=kept; echo re''ady\n")
    window.expect(b"ready\r\n")
    for part in keys:
        window.type(part)
    window.expect(b"x runs on without you")
    assert window.wait() == 0 and conman.status("x") == "running"
    again = Terminal(conman, "attach", "x")
    again.type(b"echo $A-still\n")
    again.expect(b"kept-still\r\n")
    again.type(b"\x10x\x7f\x7fexit 3\n")  # the first key alone is typed like any other
    again.expect(b"exit 3")
    assert again.wait() == 3


def test_ctrl_c_goes_to_the_program_and_not_to_the_client(conman):
    program = "trap 'echo caught' INT; echo ready; while :; do sleep 0.1; done"
    window = Terminal(conman, "run", "-it", "--name", "x", "box", "sh", "-c", program)
    window.expect(b"ready\r\n")
    window.type(b"\x03")
    window.expect(b"caught\r\n")
    conman.must("kill", "x")
    assert window.wait() == 137


def test_our_terminal_is_as_it_was_afterwards_even_after_a_term(conman):
    window = Terminal(conman, "run", "-it", "--name", "x", "box", *TALKER)
    window.expect(b"begun")
    assert not termios.tcgetattr(window.master)[3] & termios.ECHO
    client = next(p for p in conman.lab.find("conman") if "run" in p.argv)
    conman.lab.kill(client.pid, signal.SIGTERM)
    assert window.wait() in (143, 128 + 15)
    assert termios.tcgetattr(window.master)[3] & termios.ECHO and conman.status("x") == "running"


def test_without_a_terminal_signals_are_passed_on(conman):
    step = conman.start("run", "--name", "x", "box", *FOREVER, stdout=PIPE)
    collect(step, b"ready")
    step.kill(signal.SIGTERM)
    assert step.wait(20) == 5


def test_an_exec_in_the_background_goes_on_alone(conman):
    conman.forever("x")
    conman.must("exec", "-d", "x", "sh", "-c", "echo done > /tmp/done; sleep 1000")
    wait_until(lambda: conman.run("exec", "x", "cat", "/tmp/done").stdout == "done\n", "it to be done", 20)
    assert conman.run("exec", "-e", "A=b", "x", "sh", "-c", "echo $A").stdout == "b\n"
    conman.must("stop", "x")


# ---- pods


def test_members_of_a_pod_share_net_ipc_and_uts_and_nothing_else(conman):
    assert conman.must("pod", "create", "p") == "p"
    conman.forever("a", "--pod", "p")
    conman.forever("b", "--pod", "p")
    conman.forever("c")
    pause, a, b, c = (conman.process(conman.inspect(name)["pid"]) for name in "pabc")
    for kind in ("net", "ipc", "uts"):
        assert pause.namespace(kind) == a.namespace(kind) == b.namespace(kind) != c.namespace(kind)
    for kind in ("pid", "mnt"):
        assert len({p.namespace(kind) for p in (pause, a, b, c)}) == 4
    assert conman.rows() == {"a": "running", "b": "running", "c": "running", "p": "created"}
    assert conman.run("exec", "b", "hostname").stdout == "p\n"


def test_in_a_pod_localhost_is_shared_and_so_is_dev_shm(conman):
    conman.must("pod", "create", "p")
    serve = "echo up; while :; do echo hello | nc -l -p 8080; done"
    conman.must("run", "-d", "--name", "a", "--pod", "p", "box", "sh", "-c", f"echo x > /dev/shm/x; {serve}")
    ask = "until nc 127.0.0.1 8080 2>/dev/null; do sleep 0.05; done; cat /dev/shm/x"
    assert conman.must("run", "--rm", "--pod", "p", "box", "sh", "-c", ask) == "hello\nx"
    outside = conman.run("run", "--rm", "box", "sh", "-c", "nc 127.0.0.1 8080")
    assert outside.code == 1 and "refused" in outside.stderr


def test_a_pod_outlives_its_members_and_goes_with_them_when_it_is_removed(conman):
    conman.must("pod", "create", "p")
    conman.forever("a", "--pod", "p")
    address = conman.process(conman.inspect("a")["pid"]).namespace("net")
    conman.must("stop", "a")
    conman.must("start", "a")
    assert conman.process(conman.inspect("a")["pid"]).namespace("net") == address
    assert "members that run: a" in conman.refused("pod", "rm", "p")
    for verb in ("start", "stop", "kill", "rm", "attach"):
        assert "p is a pod" in conman.refused(verb, "p")
    assert "is a container and not a pod" in conman.refused("run", "--rm", "--pod", "a", "box", "true")
    conman.must("pod", "rm", "-f", "p")
    assert conman.rows() == {} and conman.left() == []


def test_a_pod_whose_pause_was_killed_gets_a_new_one_when_nobody_is_left_in_the_old(conman):
    conman.must("pod", "create", "p")
    conman.forever("a", "--pod", "p")
    conman.must("create", "--name", "b", "--pod", "p", "box", "true")
    conman.lab.kill(conman.inspect("p")["pid"], signal.SIGKILL)
    wait_until(lambda: conman.rows()["p"] == "exited (137)", "the pause to be dead", 20)
    assert conman.status("a") == "running"
    assert "still members in them: a" in conman.refused("start", "b")
    conman.must("stop", "a")
    assert conman.run("start", "-a", "b").code == 0
    assert conman.status("p") == "created"


# ---- images


@pytest.fixture(scope="module")
def layout(home):
    """An image `hello:1` and one that nobody should trust, in the layout `images` of the lab."""
    config = {"Cmd": ["sh", "-c", "echo $GREETING from $PWD as $(id -u)"], "Env": ["PATH=/bin", "GREETING=Hi"]}
    place = home.path("images")
    image.add(place, "hello:1", [image.pack(home.path("box"))], {**config, "WorkingDir": "/tmp", "User": "0"})
    image.add(place, "empty", [], {})
    shutil.copytree(place, home.path("spoilt"))
    blob = max(home.path("spoilt/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    return "oci:images:hello:1"


def test_an_image_says_what_to_run_where_and_with_which_environment(conman, layout):
    assert conman.must("run", "--rm", layout) == "Hi from /tmp as 0"
    assert conman.must("run", "--rm", "-e", "GREETING=Ho", layout, "sh", "-c", "echo $GREETING $PWD") == "Ho /tmp"


def test_each_container_of_an_image_has_files_of_its_own(ours, layout):
    for name in ("x", "y"):
        assert ours.must("run", "--name", name, layout, "sh", "-c", "ls / | grep note; echo > /note") == ""
    assert ours.must("start", "-a", "x") == "note"


def test_an_image_that_is_not_whole_is_refused_and_nothing_of_it_stays(ours, layout):
    assert "digest mismatch" in ours.refused("run", "oci:spoilt:hello:1")
    assert "0 images called 'nobody'" in ours.refused("run", "oci:images:nobody")
    assert "2 images, and one is wanted" in ours.refused("run", "oci:images")
    assert "name a command" in ours.refused("run", "oci:images:empty")
    assert ours.left() == []


# ---- state on disk


def test_no_reader_ever_sees_half_a_file(ours):
    ours.must("pod", "create", "p")
    ours.must("create", "--name", "m", "--pod", "p", "box", "true")
    seen, over = [0], []

    def read():
        while not over:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # removed, but never half there
                for path in ours.path("containers").glob("*/*.json"):
                    seen[0] += isinstance(json.loads(path.read_bytes()), dict)

    with ThreadPoolExecutor() as pool:
        reader = pool.submit(read)
        try:
            for number in range(6):
                ours.must("run", "--rm", "--name", f"x{number}", "box", "true")
                ours.must("start", "m")  # this writes config.json anew
        finally:
            over.append(True)
        reader.result(20)
    assert seen[0] > 100


def test_the_writing_itself_is_never_seen_half_done(tmp_path):
    """The same, thousands of times: by the function that does it."""
    write = program()["write"]
    path, big = tmp_path / "state.json", [{"n": "x" * 5000}, {"n": "y" * 9000}]
    write(path, big[0])
    with ThreadPoolExecutor() as pool:
        writer = pool.submit(lambda: [write(path, big[number % 2]) for number in range(2000)])
        while not writer.done():
            assert json.loads(path.read_text()) in big
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def program():
    """conman's names, without running it."""
    import runpy

    return runpy.run_path(str(PROGRAMS / "conman"), run_name="conman")


SPOILT = ["", "{", "null", "[]", '"x"', "{}", "[" * 100_000, '{"id": 1}', "\0\0", '{"pod": "../../etc"}', "9" * 9999]


def test_a_state_file_that_somebody_has_spoilt_breaks_only_its_own_container(ours):
    ours.must("create", "--name", "whole", "box", "true")
    names = {f"x{number}": text for number, text in enumerate(SPOILT)}
    for name, text in names.items():
        shutil.copytree(ours.path("containers/whole"), ours.path(f"containers/{name}"))
        ours.path(f"containers/{name}/state.json").write_text(text)
    assert ours.rows() == {**dict.fromkeys(names, "broken"), "whole": "new"}
    for verb in ("start", "stop", "rm"):
        said = ours.run(verb, *names).stderr.splitlines()
        assert len(said) == len(names) and all("can't be used" in line for line in said), said
    assert "state.json of x1 can't be used" in ours.refused("logs", "x1")
    ours.must("rm", "-f", *names)
    assert ours.rows() == {"whole": "new"}


def test_a_config_that_somebody_has_spoilt_gives_a_sentence(ours):
    ours.must("create", "--name", "x", "box", "true")
    ours.path("containers/x/config.json").write_text("{")
    assert ours.run("start", "x").code == 125
    assert ours.rows() == {"x": "new"}


# ---- many at once


def test_many_containers_at_once(ours):
    names = [f"c{number}" for number in range(MANY)]
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda name: ours.run("run", "-d", "--name", name, "box", *FOREVER, timeout=120), names))
        assert [one.code for one in done] == [0] * MANY
        assert ours.rows() == dict.fromkeys(names, "running")
        assert len({ours.path(f"containers/{name}/pid").read_text() for name in names}) == MANY
        codes = pool.map(lambda name: ours.run("wait", name, timeout=120).stdout, names)
        stopped = [ours.start("stop", *names[number::4]) for number in range(4)]
        assert [step.wait(120) for step in stopped] == [0] * 4
        assert list(codes) == ["5\n"] * MANY
    ours.must("rm", *names, timeout=120)
    assert ours.rows() == {}


def test_20_commands_at_once_on_one_container_leave_it_whole(conman):
    verbs = [["start", "x"], ["stop", "--time", "0", "x"], ["rm", "x"], ["exec", "x", "true"], ["logs", "x"],
             ["kill", "x"], ["inspect", "x"], ["ps"], ["create", "--name", "x", "box", "sleep", "1000"],
             ["run", "-d", "--name", "x", "box", "sleep", "1000"]]  # fmt: skip
    order = verbs * 2
    random.Random(SEED).shuffle(order)
    with ThreadPoolExecutor(20) as pool:
        for done in pool.map(lambda words: conman.run(*words, timeout=60), order):
            assert done.code in (0, 125, 126, 137), (SEED, done)
            assert "Traceback" not in done.stderr, (SEED, done)
            assert "not as conman wrote it" not in done.stderr, (SEED, done)
    assert set(conman.rows().values()) <= {"new", "running", "exited (137)"}, SEED
    conman.run("rm", "-f", "x")
    assert conman.must("run", "--name", "x", "box", "echo", "whole") == "whole"


def test_of_20_who_want_one_name_one_gets_it(ours):
    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(lambda _: ours.run("create", "--name", "x", "box", "true", timeout=60), range(20)))
    assert sorted(one.code for one in done) == [0] + [125] * 19
    assert all("already" in one.stderr for one in done if one.code)
    assert ours.left() == ["containers/x"]


# ---- the manager dies: it is restarted by the next command, and by nothing else


def test_after_a_kill_of_the_manager_the_list_and_the_container_are_the_same(conman):
    step = conman.start("run", "-i", "--name", "x", "box", "sh", "-c", "echo one; sleep 0.3; echo two; exec sleep 1000",
                        stdin=PIPE, stdout=PIPE)  # fmt: skip
    collect(step, b"one")
    before = conman.inspect("x")
    step.kill(signal.SIGKILL)
    step.wait(20)
    after = conman.inspect("x")
    assert after == before and after["status"] == "running" and conman.process(after["pid"])
    wait_until(lambda: conman.output("x") == "one\ntwo", "the output that came while no manager ran", 20)


def test_one_can_attach_again_after_the_manager_was_killed_because_the_socket_is_the_shim_s(conman):
    window = Terminal(conman, "run", "-it", "--name", "x", "box", *TALKER)
    window.type(b"A=kept; echo re''ady\n")
    window.expect(b"ready\r\n")
    client = next(p for p in conman.lab.find("conman") if "run" in p.argv)
    conman.lab.kill(client.pid, signal.SIGKILL)
    assert window.wait() == signal.SIGKILL  # as setsid(1) says it
    again = Terminal(conman, "attach", "x")
    again.type(b"echo $A-still\n")
    again.expect(b"kept-still\r\n")
    again.type(b"exit 2\n")
    assert again.wait() == 2


def test_a_container_whose_shim_was_killed_runs_on_and_can_be_stopped_but_its_exit_code_is_lost(conman):
    conman.must("run", "-d", "--name", "x", "box", "sleep", "1000")
    one = conman.inspect("x")
    conman.lab.kill(one["shim"], signal.SIGKILL)
    wait_until(lambda: conman.inspect("x")["shim"] == 0, "the shim to be gone", 20)
    assert conman.inspect("x") == {**one, "shim": 0}
    assert "no shim that listens" in conman.refused("attach", "x")
    assert conman.run("exec", "x", "echo", "alive").stdout == "alive\n"
    conman.must("stop", "--time", "0", "x")
    assert conman.rows() == {"x": "lost"}
    assert "nobody knows how x ended: its shim was killed" in conman.refused("wait", "x")
    assert conman.must("logs", "-f", "x") == ""
    conman.must("start", "x")
    assert conman.status("x") == "running"


def test_a_client_learns_that_the_shim_was_killed(conman):
    step = conman.start("run", "--name", "x", "box", *FOREVER, stdout=PIPE, stderr="said")
    collect(step, b"ready")
    conman.lab.kill(conman.inspect("x")["shim"], signal.SIGKILL)
    wait_until(lambda: conman.inspect("x")["shim"] == 0, "the shim to be gone", 20)
    conman.must("stop", "x")
    assert step.wait(20) == 125
    assert "nobody knows how x ended" in conman.lab.path("said").read_text()


# ---- kill -9 at every line

TRACED = """
import os, runpy, signal, sys
program, last = sys.argv[1], int(sys.argv[2])
sys.argv[:] = [program, *sys.argv[3:]]
lines, begun = set(), False
def trace(frame, event, argument):
    global begun
    if frame.f_code.co_filename != program:
        return None
    begun = begun or frame.f_code.co_name == "main"
    if begun and event == "line":
        lines.add(frame.f_lineno)
        if len(lines) >= last:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace
sys.settrace(trace)
try:
    runpy.run_path(program, run_name="__main__")
finally:
    sys.settrace(None)
    sys.stderr.write(f" {len(lines)} lines")
"""
#: The last: the shim could not report the container, since the manager had gone, and ended it.
ANY = {"new", "starting", "created", "running", "ending", "exited (0)", "exited (137)"}
VERBS = {  # what comes before the command; the command; the statuses in which it may leave x when it is killed
    "run": ([], ["run", "--name", "x", "box", "true"], ANY),
    "run -d --rm": ([], ["run", "-d", "--rm", "--name", "x", "box", "true"], ANY),
    "create from an image": ([], ["create", "--name", "x", "oci:images:hello:1"], {"new"}),
    "start": (["ended"], ["start", "x"], ANY),
    "stop": (["running"], ["stop", "--time", "0", "x"], {"running", "ending", "exited (137)"}),
    "rm -f": (["running"], ["rm", "-f", "x"], {"running", "ending", "exited (137)", "new"}),
    "exec": (["running"], ["exec", "x", "true"], {"running"}),
    "pod create": ([], ["pod", "create", "x"], ANY),
    "pod rm -f": (["pod"], ["pod", "rm", "-f", "x"], {"created", "ending", "exited (137)", "new"}),
}  # fmt: skip
BEFORE = {
    "running": [["run", "-d", "--name", "x", "box", "sleep", "1000"]],
    "ended": [["run", "-d", "--name", "x", "box", "sleep", "1000"], ["stop", "--time", "0", "x"]],
    "pod": [["pod", "create", "x"], ["run", "-d", "--name", "m", "--pod", "x", "box", "sleep", "1000"]],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_killed_at_any_line_leaves_what_the_next_one_understands(ours, layout, verb):
    before, words, statuses = VERBS[verb]
    lines = killed_at(ours, before, words, 10**6)
    ours.clean()
    assert lines > 60
    points = range(1, lines + 1) if PATIENT else sorted(random.Random(SEED).sample(range(1, lines + 1), 6))
    for point in points:
        killed_at(ours, before, words, point)
        found = ours.rows()
        assert found.get("x", "new") in statuses, (verb, point, SEED, found)
        if "x" in found and "pod" not in verb:
            done = ours.run("rm", "-f", "x")
            quicker = re.search("no container|just been removed", done.stderr)  # --rm may be
            assert done.code == 0 or quicker, (verb, point, SEED, done)
            assert "x" not in ours.rows()
        ours.clean()
        assert ours.left() == [], (verb, point, SEED)


def killed_at(ours, before, words, point):
    """Run a command that is killed at the line that is its `point`-th; returns how many it ran when it wasn't."""
    for stage in before:
        for command in BEFORE[stage]:
            ours.must(*command)
    done = ours.lab.run([sys.executable, "-ISc", TRACED, "/run/lab/bin/conman", str(point), *ours.words(*words)[1:]],
                        echo=False, check=False)  # fmt: skip
    assert done.code in (-9, 0), done
    return int(done.stderr.split()[-2]) if done.code == 0 else point


def test_a_command_killed_at_a_random_moment_leaves_what_the_next_one_understands(conman):
    chance = random.Random(SEED)
    for _ in range(6):
        step = conman.start("run", "-d", "--name", "x", "box", "sleep", "1000")
        with contextlib.suppress(TimeoutError):
            step.wait(chance.uniform(0.03, 0.4))
        step.kill(signal.SIGKILL)
        conman.must("ps")
        done = conman.run("rm", "-f", "x")
        assert done.code == 0 or "no container" in done.stderr, (SEED, done)
        assert conman.rows() == {}
        wait_until(lambda: not conman.left(), f"nothing to be left: {conman.left()}", 20)


# ---- an ordinary user


def test_an_ordinary_user_has_the_same(learners):
    user = learners["without"]
    wanted = "exit_code or life_step or localhost or image_says or size"
    command = [user.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_conman.py"]
    done = user.run([*command, "-k", f"not conmon and ({wanted})"], timeout=300)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]
