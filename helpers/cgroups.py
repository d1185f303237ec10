"""Where a process stands in the cgroup hierarchies, on cgroup v1, hybrid and v2.

The lab's PID 1 imports this module and must start in milliseconds: here stands no `import` that costs one.
See also: cgroups(7), proc_pid_cgroup(5).
"""

import os

#: A feature, and the file that shows or sets it: (v1 controller, v1 file, v2 file).
FILES = {
    "memory.limit": ("memory", "memory.limit_in_bytes", "memory.max"),
    "memory.use": ("memory", "memory.usage_in_bytes", "memory.current"),
    "memory.events": ("memory", "memory.oom_control", "memory.events"),
    "pids.limit": ("pids", "pids.max", "pids.max"),
    "pids.use": ("pids", "pids.current", "pids.current"),
    "cpu.limit": ("cpu", "cpu.cfs_quota_us", "cpu.max"),
    "cpu.stat": ("cpu", "cpu.stat", "cpu.stat"),
    "freeze": ("freezer", "freezer.state", "cgroup.freeze"),
}

ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))  # in mountinfo; the last one last


class Hierarchy:
    """One mounted cgroup hierarchy: version (1 or 2), controllers (a tuple; `name=systemd` is one on v1),
    mountpoint, and root: which cgroup of the hierarchy is mounted there, "/" outside containers."""

    __slots__ = ("version", "controllers", "mountpoint", "root")

    def __init__(self, version, controllers, mountpoint, root):
        self.version, self.controllers, self.mountpoint, self.root = version, controllers, mountpoint, root


def read(*parts):
    """The text of the file at this path, given in parts."""
    with open(os.path.join(*parts)) as file:
        return file.read()


def write(text, *parts):
    """Write to an existing control file, whose path is given in parts."""
    with open(os.path.join(*parts), "w") as file:
        file.write(text)


def enter(place, version):
    """Move this process, which must have one thread only, into the cgroup directory `place`.

    On v1 through `tasks`, a thread at a time: with `cgroup.procs` the kernel (since 5.17) makes every fork and exit
    of the machine wait, and for that it first waits some 10 ms itself.
    """
    write("0", place, "tasks" if version == 1 else "cgroup.procs")


def hierarchies(proc="/proc/self"):
    """All hierarchies mounted in the mount namespace of `proc`, v1 first."""
    found = {}
    for line in read(proc, "mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        root, mountpoint = left.split()[3:5]
        for escaped, character in ESCAPES:
            mountpoint = mountpoint.replace(escaped, character)
        if kind == "cgroup2":
            found.setdefault(("v2",), Hierarchy(2, v2_controllers(mountpoint), mountpoint, root))
        elif kind == "cgroup":
            names = tuple(o for o in options.split(",") if o not in ("rw", "ro", "xattr", "none"))
            names = tuple(n for n in names if "=" not in n or n.startswith("name="))
            found.setdefault(names, Hierarchy(1, names, mountpoint, root))
    return sorted(found.values(), key=lambda h: (h.version, h.controllers))


def v2_controllers(mountpoint):
    """The controllers that a v2 hierarchy has to give; none of them in hybrid mode."""
    try:
        return tuple(read(mountpoint, "cgroup.controllers").split())
    except OSError:
        return ()


def memberships(proc="/proc/self"):
    """{controllers: path} of a process; v2 under the empty tuple. Raises OSError when it has gone."""
    paths = {}
    for line in read(proc, "cgroup").splitlines():
        number, names, path = line.split(":", 2)
        paths[() if number == "0" else tuple(names.split(","))] = path
    return paths


def directory(hierarchy, paths):
    """The directory of a process with these `memberships` in one hierarchy, or None when it is not mounted."""
    path = paths.get(() if hierarchy.version == 2 else hierarchy.controllers)
    if path is None:
        return None
    relative = os.path.relpath(path, hierarchy.root)
    return None if relative.startswith("..") else os.path.normpath(os.path.join(hierarchy.mountpoint, relative))


def mode(mounted=None):
    """`v1`, `hybrid` (v1 controllers, v2 mounted beside them), `v2`, or `none`. `mounted` are the `hierarchies()`."""
    versions = {h.version for h in (hierarchies() if mounted is None else mounted)}
    return {frozenset(): "none", frozenset({1}): "v1", frozenset({2}): "v2"}.get(frozenset(versions), "hybrid")


def find_file(feature, pid, proc="/proc"):
    """The file that holds `feature` (a key of FILES) for process `pid`, as a path.

    Raises LookupError when no mounted hierarchy has the controller.
    """
    controller, v1, v2 = FILES[feature]
    paths = memberships(f"{proc}/{pid}")
    for hierarchy in hierarchies():
        place = directory(hierarchy, paths)
        if place is None:
            continue
        if hierarchy.version == 1 and controller in hierarchy.controllers:
            return os.path.join(place, v1)
        if hierarchy.version == 2 and os.path.exists(os.path.join(place, v2)):
            return os.path.join(place, v2)
    raise LookupError(f"no mounted cgroup hierarchy has {feature} for process {pid}")
