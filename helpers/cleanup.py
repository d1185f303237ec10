"""The ledger: what would outlive a lab is written down before it is made, and undone last-in-first-out.

Processes, mounts, interfaces and containers of a lab go with its namespaces. A cgroup directory does
not; neither does a directory on disk. Each gets a line here first, so that it can be found
and removed even after `kill -9` of everything. A line is a kind and its values, with zero bytes between
them, which no path can contain. The lab's PID 1 imports this module: it keeps to imports that cost nothing.
"""

import errno
import os
import stat
import time

from helpers.cgroups import read, write

LEDGER = ".ledger"  # how the names of ledgers end


def state_directory():
    """`/tmp/uncontained-UID`: one fixed place, so that `./lab reset` finds it from any session."""
    return f"/tmp/uncontained-{os.getuid()}"


def is_ours(place):
    """True for a directory that belongs to this user and that nobody else can write to or read."""
    info = os.lstat(place)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o077


def open_ledger(name):
    """Make the ledger file of a new lab and return its path. Raises PermissionError for a foreign directory."""
    place = state_directory()
    path = os.path.join(place, f"{name}{LEDGER}")
    while True:
        try:
            os.mkdir(place, 0o700)
        except FileExistsError:
            pass
        try:
            if not is_ours(place):
                raise PermissionError(f"{place} is not yours alone: remove it, or have its owner remove it")
            register(path, "owner", identity(os.getpid()))
            break
        except FileNotFoundError:
            continue  # a lab that ended just now took the directory along: it was empty
    register(path, "namespace", os.readlink("/proc/self/ns/pid"))
    return path


def identity(pid, proc="/proc"):
    """[pid, start time, boot id]: names one process for good, as a bare PID does not. None when it has gone."""
    try:
        after_name = read(proc, str(pid), "stat").rpartition(")")[2].split()
    except OSError:
        return None
    return [pid, int(after_name[19]), read("/proc/sys/kernel/random/boot_id").strip()]


def register(ledger, kind, value):
    """Append one line: `value` is a text, or a list of texts and numbers.

    Call it BEFORE the deed; a line for something never made does no harm.
    """
    values = value if isinstance(value, list) else [value]
    with open(ledger, "a") as file:
        file.write("\0".join([kind, *map(str, values)]) + "\n")


def entries(ledger):
    """The lines of a ledger as (kind, value). A half-written last line is a deed that never happened."""
    found = []
    try:
        lines = read(ledger).split("\n")[:-1]
    except FileNotFoundError:
        return []  # undone by somebody else a moment ago: the lab itself, or another sweep
    for line in lines:
        kind, *values = line.split("\0")
        values = [int(value) if value.isdecimal() else value for value in values]
        found.append((kind, values[0] if len(values) == 1 else values))
    return found


def is_alive(ledger):
    """True while the lab's PID 1 lives or, before there is one, while the process that starts it does."""
    known = dict(entries(ledger))
    if known.get("namespace", os.readlink("/proc/self/ns/pid")) != os.readlink("/proc/self/ns/pid"):
        return True  # its PIDs mean nothing here: leave it to those who know them
    who = known.get("init") or known.get("owner")
    return bool(who) and identity(who[0]) == who


def undo(ledger):
    """Undo every line, last first, and delete the ledger. Returns what could not be removed, as text."""
    deeds = {
        "cgroup": remove_cgroup, "elsewhere": remove_cgroup, "parent": remove_parent,
        "controller": withdraw_controller, "directory": remove_directory,
    }  # fmt: skip
    problems = []
    for kind, value in reversed(entries(ledger)):
        try:
            if kind in deeds:
                deeds[kind](value)
        except OSError as error:
            problems.append(f"{kind} {value}: {error.strerror or error}")
    if not problems:
        for remove, path in ((os.unlink, ledger), (os.rmdir, os.path.dirname(ledger))):
            try:
                remove(path)
            except OSError:
                pass  # undone by somebody else too; or other labs have ledgers there
    return problems


def ledgers():
    """The ledgers of this user, by name. A directory that somebody else made in our place is never read."""
    try:
        names = os.listdir(state_directory()) if is_ours(state_directory()) else []
    except OSError:
        return []
    return [os.path.join(state_directory(), name) for name in sorted(names) if name.endswith(LEDGER)]


def sweep():
    """Undo the ledgers of all dead labs of this user. Returns (ledgers undone, problems)."""
    dead = [ledger for ledger in ledgers() if not is_alive(ledger)]
    return dead, [problem for ledger in dead for problem in undo(ledger)]


def only_ours(path):
    """Guards every removal: a directory that a lab made carries the project's name."""
    if not os.path.basename(path).startswith("uncontained-"):
        raise OSError(f"refused to remove {path}: no lab made it")


def remove_cgroup(top, patience=5.0):
    """Remove a cgroup directory of a lab and all below it: thaw, kill who is inside, wait, rmdir."""
    only_ours(top)
    deadline = time.monotonic() + patience
    while os.path.isdir(top):
        try:
            thaw(top)
            for place, _, _ in os.walk(top, topdown=False):
                _kill_members(place)
                os.rmdir(place)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)  # the kernel frees a cgroup a moment after its last process


def remove_parent(place):
    """Remove a cgroup that a runtime made above one of a lab's, as long as nobody else has come to use it."""
    try:
        os.rmdir(place)  # takes an empty one only
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
            raise


def thaw(top):
    """Let every frozen process below `top` run: on v1 a frozen process can't even be killed."""
    for place, _, files in os.walk(top):
        for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if name in files:
                try:
                    write(value, place, name)
                except OSError:
                    pass  # a cgroup that has just gone


def _kill_members(place):
    for line in read(place, "cgroup.procs").split():
        if int(line) > 1 and int(line) != os.getpid():
            try:
                os.kill(int(line), 9)
            except ProcessLookupError:
                pass


def withdraw_controller(value):
    """Take back a v2 controller that a lab had handed down in a cgroup of the machine, unless others use it now."""
    place, controller = value
    try:
        write(f"-{controller}", place, "cgroup.subtree_control")
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOENT, errno.EINVAL):
            raise


def remove_directory(top):
    """Remove a directory that a lab made; one that is already gone is fine."""
    import shutil  # here, because the lab's PID 1 seldom needs it and it is slow to load

    only_ours(top)
    if os.path.isdir(top):
        shutil.rmtree(top)
