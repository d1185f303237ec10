"""Bundles for the lessons after the first: a root file system and a config.json, as lesson 01 makes them by hand."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath

from helpers import machine

APPLETS = [
    *("sh", "cat", "cp", "date", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "ip", "ipcs", "kill"),
    *("ln", "ls", "mkdir", "mkfifo", "mount", "mv", "nc", "ping", "printf", "ps", "readlink", "rm", "seq", "sleep"),
    *("sort", "stat", "stty", "tail", "test", "top", "touch", "tr", "true", "tty", "uname", "wc", "wget", "yes"),
]


class BundleError(RuntimeError):
    """A bundle could not be made. What was begun has been removed again."""


def make(lab, name, args, *, change=None, root=None, place="."):
    """Make the bundle `name` in the lab and return its name, as `runc --bundle` takes it.

    The config is what `runc spec` writes, with `args` and without a terminal; `change(config)` edits the rest.
    `root` names another bundle's root file system to use; `place` a directory of the lab to make it in.
    Raises BundleError with one sentence.
    """
    if not name or len(name) > 100 or "\0" in name or name in (".", "..") or "/" in name:
        raise BundleError(f"{name[:40]!r} can't name a bundle: take up to 100 characters, none of them a slash")
    home = f"/run/lab/{place}/{name}"
    place = lab.path(home)
    if place.exists():
        raise BundleError(f"there is a bundle {name!r} already: remove it or take another name")
    try:
        (place / "rootfs").mkdir(parents=True)
        if root is None:
            fill_rootfs(place / "rootfs")
        lab.run(["runc", "spec"], cwd=home, echo=False)
        config = json.loads((place / "config.json").read_text())
        config["process"].update(terminal=False, args=list(args))
        if root is not None:
            config["root"]["path"] = f"/run/lab/{root}/rootfs"
        adapt(config, lab)
        if change:
            change(config)
        (place / "config.json").write_text(json.dumps(config, indent=2))
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if isinstance(error, OSError):
            raise BundleError(f"the bundle {name!r} could not be made: {error.strerror}") from error
        raise
    return name


def adapt(config, lab):
    """Take out of a `runc spec` config what this lab can't have; returns what was taken out, in words.

    A user namespace with one user in it has no group 5 to give terminals to.
    """
    taken = []
    if not _maps_group(lab, 5):
        for mount in config["mounts"]:
            if "gid=5" in mount.get("options", []):
                mount["options"].remove("gid=5")
                taken.append(f"gid=5 of {mount['destination']}")
    return taken


def keep_cgroup(config, lab, name):
    """Have whichever runtime make the container's cgroup below the lab's own: crun's default is at the very top.

    Where the lab may make none, the config stays as it is. See also: cgroups(7).
    """
    if lab.cgroup:
        config["linux"]["cgroupsPath"] = f"{lab.cgroup}/{name}"


def _maps_group(lab, number):
    for line in Path(f"/proc/{lab.pid}/gid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= number < first + count:
            return True
    return False


def fill_rootfs(place):
    """Put a small userland into the directory `place`: busybox with its links, else this machine's own programs.

    Returns "busybox" or "host programs".
    """
    place = Path(place)
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "root", "run"):
        (place / name).mkdir(exist_ok=True)
    (place / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (place / "etc/group").write_text("root:x:0:\n")
    busybox = machine.find("busybox")
    if busybox and not libraries(busybox):
        shutil.copy(busybox, place / "bin/busybox")
        for applet in APPLETS:
            (place / "bin" / applet).symlink_to("busybox")
        return "busybox"
    for applet in APPLETS:
        program = machine.find(applet)
        if program:
            copy_program(program, place, f"bin/{applet}")
    return "host programs"


def copy_program(program, place, target):
    """Copy a program and all the libraries that it is linked with into the root file system `place`."""
    place = Path(place)
    (place / target).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(os.path.realpath(program), place / target)
    for library in libraries(program):
        copy = place / PurePosixPath(library).relative_to("/")
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.realpath(library), copy)


def libraries(program):
    """The loader and libraries of a dynamic program, as absolute paths; [] for a static one. See also: ldd(1)."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    return re.findall(r"(?:^\s*|=> )(/\S+)", said.stdout, re.M)
