"""A terminal with a command of the lab on it, for cells that do what a person at a keyboard does.

    terminal = terminals.start(lab, ["docker", "attach", "web"], env=docker)
    terminal.type("hello\\n")
    terminal.read_until("hello")

See also: pty(7), termios(3) (what Ctrl-C and Enter become).
"""

import contextlib
import fcntl
import os
import struct
import termios
import time
from dataclasses import dataclass, field

from helpers.steps import read_until

APART = 0.05  # s between two keys: the kernel hands a key on a moment after the write, and until then it can't be seen
PATIENCE = 5  # s for which the next key waits, if a program doesn't read
TIOCGPTPEER = 0x5441  # opens the other side; see ioctl_tty(2)
CTRL_C, CTRL_P, CTRL_Q = "\x03", "\x10", "\x11"


@dataclass(frozen=True)
class Terminal:
    """The keyboard and the screen of the command `step`. `master` is the descriptor of the pseudo-terminal's side."""

    step: object
    master: int
    _seen: list = field(repr=False, default_factory=list)

    def type(self, *keys):
        """Press keys: each string goes off alone, when the one before has been read, as a person's keys do."""
        for key in keys:
            os.write(self.master, key.encode())
            deadline = time.monotonic() + PATIENCE
            time.sleep(APART)
            while self._unread() and time.monotonic() < deadline:
                time.sleep(0.005)

    def _unread(self):
        """How many bytes wait at the terminal's other side for a program to read them."""
        slave = fcntl.ioctl(self.master, TIOCGPTPEER, os.O_RDONLY | os.O_NOCTTY)
        try:
            return struct.unpack("i", fcntl.ioctl(slave, termios.FIONREAD, bytes(4)))[0]
        finally:
            os.close(slave)

    def read_until(self, words, timeout=20):
        """Wait until `words` have come on the screen, and return the text up to there. Raises TimeoutError."""
        return read_until(self.master, self._seen, words, timeout)

    def close(self):
        """Unplug it: whoever has this as controlling terminal gets SIGHUP."""
        with contextlib.suppress(OSError):
            os.close(self.master)


def start(lab, argv, *, rows=24, columns=80, **options):
    """Start a command of the lab on a new terminal. The options are those of `lab.start`."""
    master, slave = os.openpty()
    os.set_inheritable(master, False)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    try:
        with open(slave, "r+b", buffering=0) as end:
            return Terminal(lab.start(argv, stdin=end, stdout=end, stderr=end, terminal=True, **options), master)
    except BaseException:
        os.close(master)
        raise
