"""Where a film's events come from: two sources that tell of every fork, exec, renaming and exit as it happens.

Each source gives (told, look, members). `told` is a generator of `Told`s, with a None where there is nothing to
tell; `look(who)` is the `Seen` of a process, or None when it has gone; `members` are the (who, parent) of all
processes of the lab at that time, parents first. Reads only; which events belong to a lab is decided in film.py.
See also: netlink(7), linux/connector.h, linux/cn_proc.h, proc_pid_status(5) (NSpid).
"""

import collections
import errno
import os
import re
import shlex
import socket
import struct
import time

PERIOD = 0.001  # s between two looks at /proc

#: What a source tells of one process. `kind` is fork, exec, name, parent, exit; or thread (one has ended), or lost.
#: `ns` is the time on CLOCK_MONOTONIC. `who` and `parent` are PIDs of this machine (connector) or of the lab (/proc).
Told = collections.namedtuple("Told", "ns kind who parent name code", defaults=(None, None, None, None))
STATUS = re.compile(r"Name:\t(?P<name>[^\n]*)\n.*?\nPPid:\t(?P<parent>\d+)\n.*?\nNSpid:\t(?P<pids>[\d\t]+)\n", re.S)
#: What a look at one process shows. `parent` is a PID of the same kind as `who` in `Told`.
Seen = collections.namedtuple("Seen", "pid inner_pid host_pid parent name argv inside")


def command(argv):
    """A command as it is shown: the program without its directory, and its arguments."""
    if not argv:
        return ""
    return " ".join([os.path.basename(argv[0]) or argv[0], *(shlex.quote(word) for word in argv[1:])])


def by_connector(lab):
    """The source that the kernel itself tells: its proc connector. Raises OSError where it refuses.

    Since Linux 6.6 it tells ordinary users too; before, only root; never anybody in a container.
    """
    connection = _listen()
    return _told_by_kernel(connection), _looker("/proc", lab.pid), _members(_scan("/proc"), lab.pid)


def by_looking(lab):
    """The source that looks at the lab's /proc every PERIOD. It misses what lives shorter than that."""
    proc = f"/proc/{lab.pid}/root/proc"
    before = _scan(proc)
    return _told_by_proc(proc, before), _looker(proc, 1), _members(before, 1)


NETLINK_CONNECTOR, CN_IDX_PROC, LISTEN, IGNORE = 11, 1, 1, 2
ENVELOPE = struct.Struct("=IHHIIIIIIHH")  # struct nlmsghdr and struct cn_msg
EVENT = struct.Struct("=IIQIIII")  # struct proc_event: kind, CPU, time stamp, and four numbers


def _listen():
    """A netlink socket that receives the proc events of the whole machine."""
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, NETLINK_CONNECTOR)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        connection.bind((0, CN_IDX_PROC))
        connection.settimeout(0.2)
        _ask(connection, LISTEN)
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline:  # in a container the kernel keeps silent
            told = _parse(connection.recv(4096))
            if told and told.kind == "answer":
                if told.code:
                    raise OSError(told.code, os.strerror(told.code))
                connection.settimeout(0.01)
                return connection
        raise TimeoutError(errno.ETIMEDOUT, "the proc connector doesn't answer")
    except OSError:
        connection.close()
        raise


def _ask(connection, what):
    done = 3  # NLMSG_DONE
    head = ENVELOPE.pack(ENVELOPE.size + 4, done, 0, 0, 0, CN_IDX_PROC, 1, 0, 0, 4, 0)
    connection.send(head + struct.pack("=I", what))


def _told_by_kernel(connection):
    try:
        while True:
            try:
                message, sender = connection.recvfrom(4096)
            except TimeoutError:
                yield None
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield Told(time.monotonic_ns(), "lost")
            else:
                told = _parse(message) if sender[0] == 0 else None  # 0: it comes from the kernel
                if told and told.kind != "answer":
                    yield told
    finally:
        with connection:
            _ask(connection, IGNORE)


def _parse(message):
    """One message of the connector as `Told`, or None. A new thread is nothing new: it is no process."""
    if len(message) < ENVELOPE.size + 20:
        return None
    kind, _, ns, one, two, three, four = EVENT.unpack_from(message.ljust(96, b"\0"), ENVELOPE.size)
    if kind == 0:
        return Told(ns, "answer", code=one)
    if kind == 0x1:  # the parent's thread and process, the child's thread and process
        return Told(ns, "fork", three, two) if three == four else None
    if kind == 0x80000000 and one != two:
        return Told(ns, "thread", two)
    if one != two:  # all others begin with a thread and its process; the first thread has the PID of the process
        return None
    if kind == 0x2:
        return Told(ns, "exec", one)
    if kind == 0x200:
        name = message[ENVELOPE.size + 24 :].split(b"\0")[0]
        return Told(ns, "name", one, name=name.decode(errors="replace"))
    if kind == 0x80000000:
        return Told(ns, "exit", one, code=os.waitstatus_to_exitcode(three & 0xFF7F))  # without the core dump's bit
    return None


def _told_by_proc(proc, before):
    while True:
        now, ns = _scan(proc), time.monotonic_ns()
        for who, (parent, name, argv) in sorted(now.items()):
            old_parent, old_name, old_argv = before.get(who) or (parent, *now.get(parent, (0, name, argv))[1:])
            if not argv:  # in the midst of an exec, or of its end: the next look will show
                name, argv = old_name, old_argv
                now[who] = parent, name, argv
            if who not in before:
                yield Told(ns, "fork", who, parent)
            elif parent != old_parent:
                yield Told(ns, "parent", who, parent)
            if argv != old_argv and ":" not in name:  # with a colon it has already renamed itself, as runc:[2:INIT]
                yield Told(ns, "exec", who, name=command(argv))
            elif name != old_name and not command(argv).startswith(name):
                yield Told(ns, "name", who, name=name)
        for who in sorted(before.keys() - now.keys()):
            yield Told(ns, "exit", who)
        yield None
        before = now
        time.sleep(PERIOD)  # a sampling period, not a wait for something


def _scan(proc):
    """{pid: (ppid, name, argv)} of all that are alive."""
    found = {}
    for pid in (int(name) for name in os.listdir(proc) if name.isdigit()):
        try:
            stat = _read(f"{proc}/{pid}/stat")
            fields = stat[stat.rindex(")") + 2 :].split()
            if fields[0] not in "ZX":
                name = stat[stat.index("(") + 1 : stat.rindex(")")]
                found[pid] = int(fields[1]), name, _argv(_read(f"{proc}/{pid}/cmdline"))
        except (OSError, ValueError):
            continue  # it has just gone
    return found


def _members(processes, init):
    children = collections.defaultdict(list)
    for pid, (parent, _, _) in processes.items():
        children[parent].append(pid)
    found = [(init, None)]
    for parent, _ in found:  # it grows while it is walked
        found += [(pid, parent) for pid in sorted(children[parent])]
    return found


def _looker(proc, init):
    """The function that looks at one process of the lab whose PID 1 is `init` in `proc`."""
    depth = len(re.search(r"^NSpid:(.*)$", _read(f"{proc}/{init}/status"), re.M)[1].split()) - 1
    home = _mounts(proc, init)

    def look(who):
        try:
            argv = _argv(_read(f"{proc}/{who}/cmdline"))  # first: a process that has exited has none
            status = _read(f"{proc}/{who}/status")
        except OSError:
            return None
        found = STATUS.match(status)
        pids = [int(pid) for pid in found["pids"].split()] if found else ()
        if len(pids) <= depth:  # the kernel no longer tells
            return None
        inside = len(pids) > depth + 1 or _mounts(proc, who) not in (home, None)
        host_pid = pids[0] if proc == "/proc" else None
        return Seen(pids[depth], pids[-1], host_pid, int(found["parent"]), found["name"], argv, inside)

    return look


def _mounts(proc, pid):
    try:
        return os.readlink(f"{proc}/{pid}/ns/mnt")
    except OSError:
        return None


def _argv(cmdline):
    return tuple(cmdline.rstrip("\0").split("\0")) if cmdline else ()


def _read(path):
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # quicker than open(): some processes live for 0.3 ms
    try:
        return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b"")).decode(errors="replace")
    finally:
        os.close(descriptor)
