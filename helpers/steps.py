"""Steps: the commands that run in the lab, what they said, and how they ended."""

import json
import os
import select
import shlex
import signal
import socket
import time
from dataclasses import dataclass, field

LONGEST_ARGUMENT = 100_000  # characters of one command line; the kernel's own bound is a little higher


class LabError(RuntimeError):
    """The lab could not be started, or has ended. The message says why, and the mend."""


class StepFailed(RuntimeError):
    """A command in the lab ended with a status other than 0. `output` is its `Output`."""

    def __init__(self, output):
        self.output = output
        said = output.stderr.strip() or output.stdout.strip() or "(it said nothing)"
        super().__init__(f"`{shlex.join(output.argv)}` ended with status {output.code}: {said}")


@dataclass(frozen=True)
class Output:
    """What a finished step said. `code` is its exit status; a negative one names the signal that ended it."""

    argv: tuple
    code: int
    stdout: str
    stderr: str

    def json(self):
        return json.loads(self.stdout)

    def __str__(self):
        return (self.stdout + self.stderr).rstrip("\n")

    def _ipython_display_(self):
        if str(self):
            print(self)


@dataclass(frozen=True)
class Step:
    """A command that was started in the lab and may still run. `pid` is its PID in the lab."""

    lab: object = field(repr=False)
    argv: tuple
    pid: int
    stdin: object = field(repr=False)  # binary files of this side, or None
    stdout: object = field(repr=False)
    stderr: object = field(repr=False)
    _status: socket.socket = field(repr=False)
    _code: list = field(repr=False, default_factory=list)
    _heard: list = field(repr=False, default_factory=list)

    def wait(self, timeout=10):
        """Its exit status, as in `Output.code`. Raises TimeoutError after `timeout` seconds; it runs on."""
        if not self._code:
            self._status.settimeout(timeout)
            message = self._status.recv(4096)
            if not message:
                raise LabError(f"the lab ended while `{shlex.join(self.argv)}` ran")
            self._code.append(json.loads(message)["exit"])
        return self._code[0]

    def read_until(self, words, timeout=20):
        """Read its standard output (a PIPE) until `words` have come, and return the text up to there.

        Raises TimeoutError after `timeout` seconds, and at the end of the output; the message has what came.
        """
        return read_until(self.stdout.fileno(), self._heard, words, timeout)

    def kill(self, number=signal.SIGTERM):
        """Send a signal to this process alone."""
        self.lab.kill(self.pid, number)


def read_until(descriptor, kept, words, timeout):
    """Read until `words` have come; the text up to there. What came after it stays in the list `kept`."""
    deadline = time.monotonic() + timeout
    while words not in (said := "".join(kept)):
        if not select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0]:
            raise TimeoutError(f"{words!r} did not come in {timeout} s: {said!r}")
        try:
            more = os.read(descriptor, 65536)
        except OSError:  # the last process has closed the terminal
            more = b""
        if not more:
            raise TimeoutError(f"{words!r} did not come before the end: {said!r}")
        kept.append(more.decode(errors="replace"))
    before, _, after = said.partition(words)
    kept[:] = [after]
    return before + words


def checked(argv):
    """`argv` as a list of strings that exec can take, or ValueError with one sentence."""
    if isinstance(argv, (str, bytes)) or not argv:
        raise ValueError("a command is a list, like ['runc', 'list']: no shell splits it")
    argv = [os.fspath(word) for word in argv]
    if any("\0" in word for word in argv):
        raise ValueError("a command can't contain a zero byte")
    if sum(map(len, argv)) > LONGEST_ARGUMENT:
        raise ValueError(f"this command has over {LONGEST_ARGUMENT} characters: put the data in a file")
    return argv


def environment(extra=None):
    """The environment of every step: little, and the same for every reader.

    USER is root and XDG_RUNTIME_DIR is absent, so that runc keeps its state in /run/runc as it does for root.
    """
    path = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"
    return {"PATH": path, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8", "TERM": "xterm", **(extra or {})}
