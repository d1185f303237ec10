"""What the kernel says about processes: records read from /proc. Reads only, decides little, draws nothing.

`proc` is a mounted procfs; the lab's is seen through /proc/PID/root/proc, and then every PID here is the
lab's own. A process that ends while it is read is left out. See also: proc(5), namespaces(7).
"""

import contextlib
import os
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from stat import S_ISCHR, S_ISFIFO, S_ISREG

from helpers import cgroups

PTS = 136  # the major number of pseudo-terminals, /dev/pts/N
NAMESPACES = ("pid", "mnt", "net", "ipc", "uts", "cgroup", "user", "time")


@dataclass(frozen=True)
class Process:
    """One process. `pids` are its PIDs from the reader's PID namespace inwards (the NSpid line of its status)."""

    pid: int
    ppid: int  # 0: the parent is outside this PID namespace
    name: str  # the kernel's `comm`, 15 bytes at most
    argv: tuple = ()  # empty for a zombie
    state: str = "S"
    pids: tuple = ()
    namespaces: tuple = ()  # (kind, inode) pairs
    started: int = 0  # clock ticks since boot; with the PID it names the process for good
    cgroup: str = ""  # the path in the memory hierarchy, else in the first one

    def __hash__(self):  # the live tree asks a thousand processes for it, in every look
        return hash((self.pid, self.started))

    @property
    def inner_pid(self):
        """The PID by which the process knows itself."""
        return self.pids[-1] if self.pids else self.pid

    def namespace(self, kind):
        """The inode number of its namespace of this kind, or None when it could not be read."""
        return dict(self.namespaces).get(kind)


@dataclass(frozen=True)
class Descriptor:
    """One open file descriptor: what /proc/PID/fd/NUMBER points at.

    `kind` is pipe, fifo, socket, pty, device, file or other. `inode` names a pipe or socket for good, and with
    `device`, the file system that it is on, a fifo or file. `access` is r, w or rw, or "" for a place that was opened
    with O_PATH: that is no end of anything. `peer` is the inode of a connected unix socket's other end, else None.
    `pty` is the number of the pseudo-terminal, for both of its sides; `device` is then the devpts that it belongs to:
    every container has a /dev/pts/0 of its own.
    """

    pid: int
    number: int
    target: str
    kind: str
    inode: int
    access: str
    peer: int | None = None
    pty: int | None = None
    device: int = 0


def read(proc="/proc"):
    """All processes, by PID."""
    with directory(proc) as place:
        pids = sorted(int(name) for name in os.listdir(proc) if name.isdigit())
        home = _pid_namespace(proc)
        return [p for p in (_read(pid, place, home) for pid in pids) if p is not None]


def read_one(pid, proc="/proc"):
    """One process, or None when there is none. Its namespaces are () where the kernel doesn't let us look."""
    with directory(proc) as place:
        return _read(pid, place, _pid_namespace(proc))


def _read(pid, place, home):
    """One process from the procfs that is open as `place`, whose PID namespace is `home`; or None."""
    try:
        stat = slurp(f"{pid}/stat", place)
        cmdline = slurp(f"{pid}/cmdline", place)
        cgroup = _one_cgroup(slurp(f"{pid}/cgroup", place))
        namespaces = _namespaces(pid, place)
        # The kernel takes long over `status`: it is asked only where there can be a second PID to learn.
        pids = (pid,) if namespaces[:1] == (home,) else _pids(slurp(f"{pid}/status", place), pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    before, _, after = stat.rpartition(")")
    fields = after.split()
    return Process(
        pid=pid,
        ppid=int(fields[1]),
        name=before[before.index("(") + 1 :],
        argv=tuple(cmdline.rstrip("\0").split("\0")) if cmdline else (),
        state=fields[0],
        pids=pids,
        namespaces=namespaces,
        started=int(fields[19]),
        cgroup=cgroup,
    )


@contextlib.contextmanager
def directory(path):
    """A descriptor of a directory, from which the kernel has a short way to the files in it."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def slurp(path, place=None):
    """The text of a small file of /proc, below the `directory` that is open as `place`; much quicker than open()."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=place)
    try:
        data = os.read(descriptor, 4096)  # nearly all come in one piece
        while len(data) % 4096 == 0 and (more := os.read(descriptor, 4096)):
            data += more
        return data.decode(errors="replace")
    finally:
        os.close(descriptor)


def _pids(status, pid):
    nspid = re.search(r"^NSpid:(.*)$", status, re.M)
    return tuple(int(number) for number in nspid[1].split()) if nspid else (pid,)


def _pid_namespace(proc):
    """("pid", inode) of this procfs' own PID namespace: who is in it has one PID here."""
    try:
        return _pointer("pid", os.readlink(f"{proc}/{'self' if proc == '/proc' else 1}/ns/pid"))
    except OSError:
        return None


def read_namespaces(pid, proc="/proc"):
    """((kind, inode), ...) in the order of NAMESPACES; kinds that can't be read are left out."""
    with contextlib.suppress(OSError), directory(proc) as place:
        return _namespaces(pid, place)
    return ()


def _namespaces(pid, place):
    try:
        links = os.open(f"{pid}/ns", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
    except OSError:
        return ()
    found = []
    for kind in NAMESPACES:
        try:
            found.append(_pointer(kind, os.readlink(kind, dir_fd=links)))
        except OSError:
            continue
    os.close(links)
    return tuple(found)


@lru_cache(maxsize=1000)  # most processes share most of their namespaces
def _pointer(kind, link):
    """(kind, 4026531840) for the link `net:[4026531840]`."""
    return kind, int(link[link.index("[") + 1 : -1])


@lru_cache(maxsize=1000)
def _one_cgroup(text):
    """The path in the memory hierarchy of v1, else in v2, else in the first one, from the text of /proc/PID/cgroup."""
    found = re.search(r":memory:(.*)", text) or re.search(r"^0::(.*)", text, re.M) or re.search(r":[^:]*:(.*)", text)
    return found[1] if found else ""


def ancestors(process, family):
    """The parent, its parent, and so on, as far as they are in `family`."""
    by_pid = {p.pid: p for p in family}
    found = []
    while process.ppid in by_pid and by_pid[process.ppid] not in found:
        process = by_pid[process.ppid]
        found.append(process)
    return found


def descriptors(pid, proc="/proc", sockets=None):
    """The open descriptors of a process, by number; [] when it has gone.

    `sockets` is {inode: inode of the other end} from `socket_peers`.
    """
    found = []
    try:
        numbers = sorted(int(n) for n in os.listdir(f"{proc}/{pid}/fd"))
    except OSError:
        return []
    for number in numbers:
        try:
            target = os.readlink(f"{proc}/{pid}/fd/{number}")
            info = slurp(f"{proc}/{pid}/fdinfo/{number}")
            status = os.stat(f"{proc}/{pid}/fd/{number}")
        except OSError:
            continue
        flags = int(re.search(r"^flags:\s*(\d+)", info, re.M)[1], 8)
        access = "" if flags & os.O_PATH else ("r", "w", "rw", "rw")[flags & 3]
        peer = (sockets or {}).get(status.st_ino)
        pty, device = _pty(target, info, status, f"{proc}/{pid}/root")
        found.append(Descriptor(pid, number, target, _kind(target, status), status.st_ino, access, peer, pty, device))
    return found


def _kind(target, status):
    if target.startswith("pipe:"):
        return "pipe"
    if target.startswith("socket:"):
        return "socket"
    if S_ISCHR(status.st_mode):
        terminal = os.major(status.st_rdev) in (4, 5, PTS)
        return "pty" if terminal else "device"
    return "fifo" if S_ISFIFO(status.st_mode) else "file" if S_ISREG(status.st_mode) else "other"


def _pty(target, info, status, root):
    """(number, devpts) of a pseudo-terminal's side, or (None, the file system that any other thing is on)."""
    master = re.search(r"^tty-index:\s*(\d+)", info, re.M)
    if master and target == "/dev/ptmx":  # a device file of its own: the kernel takes the devpts that is beside it
        try:
            return int(master[1]), os.stat(f"{root}/dev/pts").st_dev
        except OSError:
            return int(master[1]), status.st_dev
    if master:
        return int(master[1]), status.st_dev
    slave = S_ISCHR(status.st_mode) and os.major(status.st_rdev) == PTS
    return (os.minor(status.st_rdev) if slave else None), status.st_dev


def socket_peers(ss_output):
    """{inode: inode of the other end} for connected unix sockets, from what `ss --unix --all` prints (ss(8))."""
    line = re.compile(r"\S+\s+\S+\s+\d+\s+\d+\s+\S.*\s(\d+)\s+\S+\s+(\d+)\s*")  # a path may have spaces
    found = filter(None, map(line.fullmatch, ss_output.splitlines()))
    peers = {int(one[1]): int(one[2]) for one in found if one[2] != "0"}
    return peers


def wait_until(condition, what, timeout=10):
    """Call `condition` until it returns something true, and return that.

    `what` completes the sentence of the TimeoutError: "waited 10 s in vain for ...".
    """
    deadline = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s in vain for {what}")
        time.sleep(0.005)


def cgroup_file(feature, pid, proc="/proc"):
    """The file that holds a cgroup feature (a key of cgroups.FILES) of this process, as a Path."""
    return Path(cgroups.find_file(feature, pid, proc))


def cgroup_number(feature, pid, proc="/proc"):
    """The first number in the file of a cgroup feature, such as a limit in bytes; None when it says no limit."""
    said = cgroup_file(feature, pid, proc).read_text().split()[0]
    return None if said == "max" or int(said) < 0 or int(said) > 1 << 60 else int(said)


def listening(pid, proc="/proc"):
    """The TCP ports on which somebody listens, in the network namespace of this process. See also: proc_pid_net(5)."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in _lines(f"{proc}/{pid}/net/{table}"):
            fields = line.split()
            if fields[3] == "0A":  # TCP_LISTEN
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def _lines(path):
    """The lines of a table of /proc below its title; [] where there is none, as without IPv6."""
    try:
        return slurp(path).splitlines()[1:]
    except OSError:
        return []
