"""Which part a process plays, from its name and namespaces: manager, shim, runtime, container or plain."""

import os
import shlex

from helpers.pictures.base import shorten

BY_NAME = {
    "runtime": {"runc", "crun", "youki", "vmrun"},
    "shim": {"conmon", "shim"},
    "manager": {"dockerd", "docker", "containerd", "podman", "conman", "ctr"},
}


def outermost(processes):
    """The process that the others are measured against: the first one whose parent is not among them."""
    pids = {p.pid for p in processes}
    return next((p for p in processes if p.ppid not in pids), None)


def role(process, base):
    """One of the keys of base.COLOURS but `change`. `base` is the `outermost` process."""
    if process.pid == 0:
        return "plain"
    name = title(process).split(":")[0]  # runc names its stages runc:[2:INIT]
    if name.startswith("containerd-shim"):
        return "shim"
    for part, names in BY_NAME.items():
        if name in names:
            return part
    return "container" if base and process.namespace("pid") != base.namespace("pid") else "plain"


def new_namespaces(process, base):
    """The kinds of namespace in which this process stands apart from `base`, in the course's order."""
    theirs = dict(base.namespaces) if base else {}
    return tuple(kind for kind, inode in process.namespaces if kind in theirs and theirs[kind] != inode)


def title(process):
    """The short name: the kernel's, or that of the script which an interpreter runs."""
    if process.name.startswith("python") and process.argv:
        script = next((word for word in process.argv[1:] if not word.startswith("-") or word in ("-c", "-m")), "-")
        return process.name if script.startswith("-") else os.path.basename(script)
    return process.name or "?"


def command(process, longest=36):
    """The command line as typed, cut to `longest` characters; says so for the lab's PID 1 and for zombies.

    Nobody types the interpreter of a script: the kernel puts it there, with the options of the script's first line.
    """
    if process.state == "Z":
        return "zombie: has exited, not yet reaped"
    if process.name == "lab":
        return "PID 1 of the lab, reaps orphans"
    if not process.argv:
        return ""
    names = [os.path.basename(word) for word in process.argv[:5]]
    first = names.index(title(process)) if title(process) in names else 0
    line = shlex.join((names[first], *process.argv[first + 1 :]))
    return "" if line == process.name else shorten(line.replace("\n", " "), longest)


def pids(process):
    """`11`, or `11, inside 1` when the process has another PID in its own namespace; 0 is whoever is outside."""
    if process.pid == 0:
        return "outside the lab"
    return str(process.pid) + (f", inside {process.inner_pid}" if process.inner_pid != process.pid else "")
