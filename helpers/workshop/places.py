"""What is made in the room for each seat: mounts, a network, a home with the course in it, cgroups. Runs as root."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from helpers import cgroups, server
from helpers.workshop import plan

CHECKOUT = Path(__file__).resolve().parent.parent.parent
ROOM = Path("/run/uncontained")  # on a tmpfs of the room's own
PYTHON = ROOM / "python"  # the environment with JupyterLab, wherever it is on the machine
TEMPLATE = ROOM / "template"
NETWORKS = "/run/netns"
LEFT_OUT = (".git", ".venv", ".lab", ".ci", "tests", "__pycache__", ".ipynb_checkpoints", ".*_cache")
SHARED = ("home", "tmp", "shm")  # one tmpfs, so that one limit holds for all that a seat can fill


def call(*argv, text=None, timeout=60):
    """Run one command. Raises OSError with what it said when it fails."""
    done = subprocess.run(list(map(str, argv)), input=text, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise OSError(f"`{' '.join(map(str, argv))}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def place(seat):
    """The seat's tmpfs, as the room sees it."""
    return ROOM / "seats" / seat.name


def door(seat):
    """The directory with the socket on which the seat's notebooks say what they have checked."""
    return ROOM / "doors" / seat.name


def make_users(members):
    """Give the room an /etc/passwd and its like in which the seats are users. The machine's own stay as they are."""
    additions = {
        "passwd": plan.passwd(members), "group": plan.group(members),
        "subuid": plan.subordinates(members), "subgid": plan.subordinates(members),
    }  # fmt: skip
    for name, lines in additions.items():
        theirs, ours = Path("/etc", name), ROOM / name
        if theirs.exists():  # without the package uidmap there is no subuid, and the labs have one user each
            ours.write_text(theirs.read_text().rstrip("\n") + "\n" + lines)
            call("mount", "--bind", ours, theirs)


def make_template():
    """The tree that every seat gets a copy of: the course, compiled, with JupyterLab's settings."""
    shutil.copytree(CHECKOUT, TEMPLATE, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    call(sys.executable, "-m", "compileall", "-q", TEMPLATE / "helpers")
    server.prepare(TEMPLATE / ".lab")


def furnish(seat, disk):
    """Give a seat its files, new: a tmpfs of `disk` MB. Whatever was there is gone."""
    top = place(seat)
    top.mkdir(parents=True, exist_ok=True)
    door(seat).mkdir(parents=True, exist_ok=True)
    while os.path.ismount(top):
        call("umount", "--lazy", top)
    options = f"size={disk}m,nr_inodes={disk * 250},mode=711,nosuid,nodev"
    call("mount", "-t", "tmpfs", "-o", options, seat.name, top)
    for name in SHARED:
        (top / name).mkdir(mode=0o700 if name == "home" else 0o1777)
        (top / name).chmod(0o700 if name == "home" else 0o1777)
    shutil.copytree(TEMPLATE, top / "home/uncontained", symlinks=True)
    call("chown", "-R", f"{seat.uid}:{seat.uid}", top / "home")


def make_networks(members):
    """Each seat gets a network of its own with one wire to the hub, and no way from there to anywhere else."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
    lines = ["link set lo up", f"address add {plan.HUB}/32 dev lo"]
    for seat in members:
        call("ip", "netns", "add", seat.name)
        wire = f"seat{seat.number}"
        lines += [
            f"link add {wire} type veth peer name eth0 netns {seat.name}",
            f"address add {seat.network}.1/24 dev {wire}",
            f"link set {wire} up",
        ]
    call("ip", "-batch", "-", text="\n".join(lines))
    for seat in members:
        inner = ["link set lo up", f"address add {seat.address}/24 dev eth0", "link set eth0 up",
                 f"route add default via {seat.network}.1"]  # fmt: skip
        call("ip", "-netns", seat.name, "-batch", "-", text="\n".join(inner))


def make_limits(tops, seat, memory, processes):
    """A cgroup for a seat below each of the room's own `tops`, with limits, and lent to its user.

    Returns the directories that the seat's first process moves into. The limits stay root's; below them the seat may
    make cgroups, so that labs have limits of their own. Memory in MB.
    """
    entered = []
    for top in tops:
        mine = Path(top, seat.name)
        mine.mkdir(exist_ok=True)
        mine.chmod(0o755)  # a lesson walks through the cgroups, and must not stumble over a seat's
        if (mine / "cpuset.cpus").exists() and not (mine / "cgroup.controllers").exists():
            for name in ("cpuset.cpus", "cpuset.mems"):
                (mine / name).write_text(Path(top, name).read_text())
        limits = {"memory.limit_in_bytes": memory << 20, "memory.max": memory << 20, "memory.swap.max": 0,
                  "pids.max": processes,
                  "cpu.shares": 128, "cpu.weight": 12}  # fmt: skip # equal for all, and the hub counts for eight
        for name, value in limits.items():
            if (mine / name).exists():
                (mine / name).write_text(str(value))
        inner = mine
        if (mine / "cgroup.controllers").exists():  # v2: see helpers/init.py for why there is a leaf
            inner = mine / "starter"
            inner.mkdir(exist_ok=True)
            inner.chmod(0o755)
            for file in (mine / "cgroup.subtree_control", inner, inner / "cgroup.procs"):
                os.chown(file, seat.uid, seat.uid)
        for file in (mine, mine / "cgroup.procs", mine / "tasks"):  # a lab that ends goes back to where it came from
            if file.exists():
                os.chown(file, seat.uid, seat.uid)
        entered.append(str(inner))
    return entered


def usage(tops, seat):
    """MB of memory that a seat uses, by its cgroup; None where nobody counts."""
    for top in tops:
        for name in ("memory.usage_in_bytes", "memory.current"):
            try:
                return int(cgroups.read(top, seat.name, name)) >> 20
            except OSError:
                continue
    return None
