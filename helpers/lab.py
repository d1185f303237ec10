"""The lab: one long-lived set of namespaces in which all privileged steps run. The only spawner.

    lab = start_lab()
    lab.run(["runc", "--version"])

The notebook's kernel never enters the lab. It starts PID 1 of the lab (`init.py`) and asks it, over a
socket, to fork each step. The socket is the lifeline: when the kernel process ends, however it ends,
PID 1 reads end-of-file and takes everything in the lab with it.
See also: unshare(1), nsenter(1), namespaces(7), user_namespaces(7).
"""

import array
import contextlib
import json
import marshal
import os
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

from helpers import cleanup, machine, processes
from helpers.steps import LabError, Output, Step, StepFailed, checked, environment

CHECKOUT = Path(__file__).resolve().parent.parent
#: Imported, not run as a script: Python keeps what it compiled of a module.
START = "import sys; sys.path.insert(0, sys.argv[1]); from helpers import init; init.main(*sys.argv[2:])"
HOME = "/run/lab"  # where steps start; see init.py
NAMESPACES = ["--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]

PIPE = subprocess.PIPE


CGROUPS = ("cgroup", "elsewhere")  # kinds in the ledger: made for the lab, and made by engines beside that


@dataclass(frozen=True)
class Closed:
    """How a lab ended: the `processes` and `cgroups` that it had, and what of it is `left`: normally nothing."""

    processes: tuple
    cgroups: tuple
    left: tuple


@dataclass(frozen=True)
class Lab:
    """A running lab. `pid` is the PID of its PID 1 on this machine; `limits` the controllers it may use."""

    name: str
    way: machine.Way
    pid: int
    limits: tuple
    ledger: str
    _control: socket.socket = field(repr=False)
    _starter: subprocess.Popen = field(repr=False)

    def run(self, argv, *, stdin="", stdout=None, echo=True, check=True, timeout=30, cwd=HOME, env=None):
        """Run one command as the lab's root, to its end, and return its `Output`.

        `argv` is a list; no shell sees it. `stdin` is text or bytes for it to read. `stdout` names a file
        (in `cwd`) to append both streams to, as `>> file 2>&1` does. Raises StepFailed on a status other than
        0 (unless check=False), TimeoutError after `timeout` seconds, when the step has been killed.
        """
        stdin = stdin.encode() if isinstance(stdin, str) else stdin
        # Files, not pipes: a detached container keeps its stdout open, and a pipe would never end.
        with contextlib.ExitStack() as stack:
            given = stack.enter_context(open(os.memfd_create("stdin") if stdin else os.devnull, "w+b"))
            given.write(stdin)
            given.seek(0)
            if stdout is None:
                out = stack.enter_context(open(os.memfd_create("stdout"), "w+b"))
                err = stack.enter_context(open(os.memfd_create("stderr"), "w+b"))
            else:
                out = err = stack.enter_context(open(self.path(stdout, cwd), "ab"))
            step = self._fork(argv, [given, out, err], cwd, env)
            with step._status:
                if echo:
                    print("# " + shlex.join(argv) + (f" >> {shlex.quote(str(stdout))} 2>&1" if stdout else ""))
                try:
                    code = step.wait(timeout)
                except (TimeoutError, KeyboardInterrupt) as error:
                    self.kill(-step.pid, signal.SIGKILL)  # the step's process group
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    raise TimeoutError(f"`{shlex.join(argv)}` did not end in {timeout} s, and was killed") from None
            texts = ["", ""]
            if stdout is None:
                for position, file in enumerate((out, err)):
                    file.seek(0)
                    texts[position] = file.read().decode(errors="replace")
        output = Output(tuple(argv), code, *texts)
        if check and code != 0:
            raise StepFailed(output)
        return output

    def start(self, argv, *, stdin=None, stdout=None, stderr=None, echo=True, cwd=HOME, env=None, terminal=False):
        """Start one command and return its `Step` while it runs, as `&` does in a shell.

        Each of stdin, stdout, stderr is None (/dev/null), PIPE (a pipe: the other end is in the `Step`), the
        name of a file in `cwd`, or an open file. With `terminal`, stdin is a terminal and controls the command:
        Ctrl-C, typed there, becomes a signal (helpers/terminals.py makes one).
        """
        theirs, ours = [], []
        with contextlib.ExitStack() as stack:
            for number, wanted in enumerate((stdin, stdout, stderr)):
                mode = "rb" if number == 0 else "ab"
                mine = None
                if wanted is None:
                    wanted = stack.enter_context(open(os.devnull, mode))
                elif wanted == PIPE:
                    read, write = os.pipe()
                    # Unbuffered, and not closed here: it goes to the caller in the Step.
                    mine = open(write if number == 0 else read, "wb" if number == 0 else "rb", buffering=0)  # noqa: SIM115
                    wanted = stack.enter_context(open(read if number == 0 else write, mode))
                elif isinstance(wanted, (str, os.PathLike)):
                    wanted = stack.enter_context(open(self.path(wanted, cwd), mode))
                theirs.append(wanted)
                ours.append(mine)
            step = self._fork(argv, theirs, cwd, env, ours, terminal)
        if echo:
            print("# " + shlex.join(argv) + " &")
        return step

    def _fork(self, argv, stdio, cwd, env, ours=(None, None, None), terminal=False):
        argv = checked(argv)
        status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            descriptors = [file.fileno() for file in (*stdio, theirs)]
            request = {"argv": argv, "cwd": str(cwd), "env": environment(env), "tty": terminal}
            self._send(request, descriptors)
        status.settimeout(30)
        message = status.recv(4096)
        if not message:
            raise LabError(f"the lab {self.name} has ended: start a new one with start_lab()")
        return Step(self, tuple(argv), json.loads(message)["pid"], *ours, status)

    def _send(self, request, descriptors=()):
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._control.sendmsg([marshal.dumps(request)], ancillary)
        except (BrokenPipeError, ConnectionResetError, OSError) as error:
            raise LabError(
                f"the lab {self.name} has ended ({error.strerror}): start a new one with start_lab()"
            ) from None

    def kill(self, pid, number=signal.SIGTERM):
        """Have the lab's PID 1 send a signal to a process of the lab (a negative `pid`: a process group)."""
        self._send({"kill": pid, "signal": int(number)})

    def path(self, name, cwd=HOME):
        """A file of the lab as this notebook's process sees it: the lab has its own mounts."""
        return Path(f"/proc/{self.pid}/root", str(Path(cwd, name)).lstrip("/"))

    @property
    def proc(self):
        """The lab's own /proc, as this notebook's process sees it: the PIDs in it are the lab's."""
        return f"/proc/{self.pid}/root/proc"

    @property
    def cgroup(self):
        """The lab's cgroup, as `cgroupsPath` and `--cgroup-parent` take it; "" when it has none. All below it goes
        with the lab."""
        return processes.read_one(1, self.proc).cgroup.removesuffix("/steps") if self.limits else ""

    def processes(self):
        """Every process in the lab, as `processes.Process` records with the lab's PIDs."""
        return processes.read(self.proc)

    def notebook(self):
        """This notebook's own process as the lab sees it: outside of its PID namespace, where 0 is the only number."""
        return processes.Process(0, 0, "notebook")

    def descriptors(self, *members):
        """The open descriptors of these processes of the lab, with the other ends of their unix sockets.

        The kernel lists the sockets of each network namespace apart: the other end is found where both are in one.
        """
        peers = {}
        for pid in {p.namespace("net"): p.pid for p in members if p.pid}.values():
            listed = ["nsenter", f"--net=/proc/{pid}/ns/net", "ss", "--unix", "--all", "--no-header"]
            peers |= processes.socket_peers(self.run(listed, echo=False, check=False).stdout)
        outside = [replace(d, pid=0) for p in members if not p.pid for d in processes.descriptors(os.getpid())]
        return outside + [d for p in members if p.pid for d in processes.descriptors(p.pid, self.proc, peers)]

    def process(self, pid):
        """One process of the lab, or None when there is none of this PID."""
        return processes.read_one(pid, self.proc)

    def inside(self, first):
        """The processes in the pid namespace of this one: if it is a container's, all of the container."""
        return [p for p in self.processes() if p.namespace("pid") == first.namespace("pid")]

    def find(self, name):
        """The processes of the lab with this command name."""
        return [p for p in self.processes() if p.name == name]

    def container(self, name, runtime="runc"):
        """The first process of a container, found by the PID that `runc state` prints.

        Of one that is `running` it waits for the program: for a moment after the start the process is still runc.
        """
        state = self.run([runtime, "state", name], echo=False).json()

        def itself():
            found = processes.read_one(state["pid"], self.proc)
            return found if found is None or not found.name.startswith("runc:") else False

        if state["status"] == "running":
            processes.wait_until(lambda: itself() is not False, f"{name} to become its program")
        return processes.read_one(state["pid"], self.proc)

    def status(self, name, runtime="runc"):
        """The `status` that the runtime's `state` prints for a container, or None when it knows none of that name."""
        said = self.run([runtime, "state", name], echo=False, check=False)
        return said.json()["status"] if said.code == 0 else None

    def enter_command(self):
        """What to type in a terminal of this machine to join the lab, as an argument list."""
        join = ["nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", "--ipc", "--uts", "--wd"]
        if os.getuid() != 0:
            join[1:1] = ["--user", "--preserve-credentials"]
        return [*join, "bash"]

    def close(self):
        """End the lab and everything in it, look whether that is so, and return a `Closed`."""
        known = cleanup.entries(self.ledger) if os.path.exists(self.ledger) else []
        init = dict(known).get("init")
        lives = init and init == cleanup.identity(self.pid)
        members = tuple(f"{p.pid} {p.name}" for p in self.processes()) if lives else ()
        cgroups = tuple(value for kind, value in known if kind in CGROUPS and os.path.isdir(value))
        self._control.close()
        try:
            self._starter.wait(15)
        except subprocess.TimeoutExpired:
            self._starter.kill()  # --kill-child: PID 1 goes with it
            self._starter.wait(5)
        left = tuple(cleanup.undo(self.ledger)) if os.path.exists(self.ledger) else ()
        left += tuple(place for place in cgroups if os.path.exists(place))
        # The kernel ends every process of a PID namespace before its PID 1 can be reaped.
        left += (f"PID 1 of the lab, {self.pid}",) if init and init == cleanup.identity(self.pid) else ()
        return Closed(members, cgroups, left)


_current = None  # the lab of this kernel: running the set-up cell again ends the one before


def start_lab(ways=None):
    """Start a lab, by the first of the `ways` (machine.ways()) that this machine allows, and return it.

    Labs that died without a clean-up are swept first. Raises LabError with the reason of each way and its mend.
    """
    global _current
    if _current is not None:
        _current.close()
        _current = None
    cleanup.sweep()
    refusals = []
    for way in machine.ways() if ways is None else ways:
        try:
            _current = _start(way)
            return _current
        except LabError as error:
            refusals.append(f"- {way.name}: {error}. {way.mend}")
    raise LabError("this machine refused every way to make namespaces:\n" + "\n".join(refusals))


def _start(way):
    name = uuid.uuid4().hex[:8]
    try:
        ledger = cleanup.open_ledger(name)
    except OSError as error:
        raise LabError(f"no place for the ledger: {error}") from None
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    python = os.path.realpath(sys.executable)
    argv = [*way.prefix, *NAMESPACES, python, "-I", "-S", "-c", START, str(CHECKOUT), name, ledger]
    with theirs, open(os.memfd_create("stderr"), "w+b") as errors:
        try:
            # With this user's own environment: podman looks for its files in HOME. No step sees it.
            own = {**os.environ, "PATH": environment()["PATH"]}
            starter = subprocess.Popen(
                argv, stdin=theirs, stdout=errors, stderr=errors, start_new_session=True, env=own, cwd="/"
            )
        except OSError as error:
            cleanup.undo(ledger)
            raise LabError(f"{way.prefix[0]}: {error.strerror}") from None
        theirs.close()
        message, pid = _first_message(control, starter)
        if not message:
            control.close()
            # unshare(1) may leave a helper behind when it fails, which waits for ever.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(starter.pid, signal.SIGKILL)
            starter.wait(10)
            cleanup.undo(ledger)
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise LabError(said[-1])
    cleanup.register(ledger, "init", cleanup.identity(pid))
    return Lab(name, way, pid, tuple(json.loads(message)["limits"]), ledger, control, starter)


def _first_message(control, starter, timeout=30):
    """(what PID 1 says when it is ready, its PID), or (b"", None) when it has ended or takes too long."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        ended = starter.poll() is not None  # asked first: whoever has ended may have said something before
        if select.select([control], [], [], 0 if ended else 0.05)[0]:
            return _receive_with_pid(control)
        if ended:
            break
    return b"", None


def _receive_with_pid(control):
    """One message, and the PID of its sender on this side of the PID namespace, as the kernel vouches for it."""
    message, ancillary, _, _ = control.recvmsg(4096, socket.CMSG_SPACE(struct.calcsize("3i")))
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            return message, struct.unpack("3i", payload)[0]
    return message, None
