"""What this machine can and can't show, each thing tried for real: the table of `./lab doctor` and of every lesson.

Standard library only. A `Finding` is what was learned about one thing; what to do about it stands beside it.
"""

import contextlib
import html
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from helpers import cgroups, kernel, machine

TITLES = ("This lesson needs", "Here", "Without it")
NEXT_TO_CHECKOUT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Finding:
    """One thing that a lesson needs. `detail` says what was found; `lost` what can't be seen without it; `mend` how."""

    name: str
    here: bool
    detail: str = ""
    lost: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Preflight:
    """The findings for one lesson. Shows itself as a table; `"limits" in it` is True when that need is met."""

    findings: dict

    def __contains__(self, need):
        return self.findings[need].here

    def rows(self):
        """(name, is it here and what was found, what will be missed and the mend), in words."""
        for one in self.findings.values():
            loss = "" if one.here else ". ".join(filter(None, [one.lost, one.mend]))
            yield one.name, ("yes: " if one.here else "no: ") + one.detail, loss

    def __repr__(self):
        return table(self.rows())

    def _repr_html_(self):
        left = 'align="left" style="text-align: left"'  # GitHub drops the style, and Jupyter's own beats the attribute

        def row(kind, cells):
            return "<tr>" + "".join(f"<{kind} {left}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"

        body = "".join(row("td", cells) for cells in self.rows())
        return f"<table><thead>{row('th', TITLES)}</thead><tbody>{body}</tbody></table>"


def preflight(lab, *, needs=()):
    """What a lesson needs, and whether it is here, as a `Preflight`. `needs` are keys of NEEDS or names of tools.

    Raises LookupError for a need that nobody knows.
    """
    return Preflight({"lab": the_lab(lab), **{need: look(need, lab) for need in needs}})


def look(need, lab=None):
    """The `Finding` for one need."""
    return NEEDS[need](lab) if need in NEEDS else the_tool(machine.tool(need))


def table(rows):
    """Rows of strings as text in columns. Lines can be long: the last column is free text."""
    rows = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def the_tool(tool):
    """Whether a program is here, and its version."""
    if machine.find(tool.name):
        return Finding(tool.name, True, machine.version(tool) or tool.purpose)
    return Finding(tool.name, False, "missing", tool.purpose, machine.install_command([tool]))


def the_lab(lab):
    """The way in which the lab was started."""
    return Finding("a lab", True, lab.way.name)


def the_limits(lab):
    """Whether the lab may set memory and process limits."""
    wanted = [name for name in ("memory", "pids", "cpu", "freezer") if name in lab.limits]
    lost = "The cells about limits say so and go on"
    mend = "Limits need root, or cgroup v2 with systemd (log in on the machine itself)"
    here = {"memory", "pids"} <= set(lab.limits)
    return Finding("cgroup limits", here, ", ".join(wanted) or "none may be set", lost, mend)


def the_users(lab):
    """Whether the lab has more than one user to give files to."""
    lines = Path(f"/proc/{lab.pid}/uid_map").read_text().splitlines()
    count = sum(int(line.split()[2]) for line in lines)
    mend = f"{machine.install_command([machine.tool('newuidmap')])}, and a range of yours in /etc/subuid"
    return Finding("more users", count > 1, "root and others" if count > 1 else "root alone", "chown to others", mend)


def the_process_events(_lab=None):
    """Whether the kernel tells this process of every fork, exec and exit. See also: linux/cn_proc.h."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 11) as connector:
        connector.bind((0, 1))  # NETLINK_CONNECTOR, the group CN_IDX_PROC
        _subscribe(connector, True)
        deadline = time.monotonic() + 0.5
        subprocess.run(["true"], timeout=5, stdin=subprocess.DEVNULL)
        heard = 0
        while heard < 2 and select.select([connector], [], [], max(0, deadline - time.monotonic()))[0]:
            connector.recv(4096)  # the first message only says that the request was understood
            heard += 1
        _subscribe(connector, False)
        if heard == 2:
            return Finding("process events", True, "the kernel reports every fork")
    lost = "Films are made by looking at /proc very often: they miss the shortest processes"
    return Finding("process events", False, "the kernel tells them to real root only", lost, "sudo ./lab")


def _subscribe(connector, on):
    message = struct.pack("=IIIIHHI", 1, 1, 0, 0, 4, 0, 1 if on else 2)  # cn_msg, then listen or ignore
    connector.send(struct.pack("=IHHII", 16 + len(message), 3, 0, 0, os.getpid()) + message)


def docker(_lab=None):
    """Whether a Docker daemon answers, or could be started in the lab."""
    version = machine.ask(["docker", "version", "--format", "{{.Server.Version}}"]).splitlines()
    if version and version[0][:1].isdigit():
        return Finding("Docker", True, f"{version[0]}, running")
    if all(map(machine.find, ("docker", "dockerd", "containerd"))):
        return Finding("Docker", True, "installed: a lesson starts one of its own")
    lost = "The cells that compare with Docker show what it said elsewhere"
    return Finding("Docker", False, "missing", lost, machine.install_command([machine.tool("dockerd")]))


def podman(_lab=None):
    """Whether Podman is here."""
    found = the_tool(machine.tool("podman"))
    lost = "The cells that compare with Podman show what it said elsewhere"
    return Finding("Podman", found.here, found.detail, lost, found.mend)


def node(_lab=None):
    """Whether containerd can be spoken to as a kubelet does."""
    from helpers import engines  # here: it needs more than this module does

    lacking = engines.lacking_for_cri()
    lost = "The cells that make a pod as a node does say so and go on"
    tools = [machine.tool("containerd"), machine.tool("curl")]
    mend = f"{machine.install_command(tools)}, and its network plugins (on Debian: containernetworking-plugins)"
    detail = f"missing: {', '.join(lacking)}" if lacking else "containerd, curl and network plugins"
    return Finding("a Kubernetes node", not lacking, detail, lost, mend)


def emulator(_lab=None):
    """Whether a virtual machine can be started, and how fast."""
    found = the_tool(machine.tool(machine.QEMU))
    lost = "The cells about virtual machines stay empty"
    if not found.here:
        return Finding("virtual machines", False, "QEMU is missing", lost, found.mend)
    if not any((kernel.HOME / name).exists() for name in ("vmlinux", "vmlinuz")):
        return Finding("virtual machines", False, "QEMU is here, and no kernel for it", lost, "./lab kernel")
    cpu = Path("/proc/cpuinfo").read_text()
    quick = (" vmx" in cpu or " svm" in cpu) and os.access("/dev/kvm", os.W_OK)
    detail = f"QEMU {found.detail}, with {'KVM' if quick else 'emulation only: slower, same facts'}"
    return Finding("virtual machines", True, detail)


WAYS = "Ways to make a lab (tried for real)"

NEEDS = {
    "limits": the_limits,
    "users": the_users,
    "events": the_process_events,
    "docker": docker,
    "podman": podman,
    "node": node,
    "vm": emulator,
}


def try_way(way):
    """Start a lab in this way, run one command in it and end it: (Finding, controllers it may limit)."""
    from helpers import lab as labs

    began = time.monotonic()
    try:
        lab = labs.start_lab([way])
    except labs.LabError as error:
        reason = str(error).splitlines()[-1].removeprefix(f"- {way.name}: ").removesuffix(f". {way.mend}")
        return Finding(way.name, False, f"refused: {reason}", "", way.mend), ()
    try:
        lab.run(["true"], echo=False)
    finally:
        lab.close()
    took = (time.monotonic() - began) * 1000
    return Finding(way.name, True, f"made a lab and ended it in {took:.0f} ms"), lab.limits


def spared(way):
    """Podman's way, untried: `podman unshare` leaves a process of Podman's own behind, as every podman command does."""
    return Finding(way.name, True, "not tried, because another way works"), ()


def survey():
    """Everything the course could use, as {group: [Finding]}."""
    tried = []
    for way in machine.ways():
        works = any(found.here for found, _ in tried)
        tried.append(spared(way) if works and "podman" in way.prefix else try_way(way))
    granted = next((limits for found, limits in tried if found.here), ())
    limits = [name for name in granted if name in ("memory", "pids", "cpu", "freezer")]
    venv = (NEXT_TO_CHECKOUT / ".venv/stamp").exists() or os.path.exists(f"{sys.prefix}/bin/jupyter-lab")
    mode = {"v1": "version 1", "v2": "version 2", "hybrid": "version 1, and 2 beside it", "none": "not mounted"}
    return {
        WAYS: [found for found, _ in tried],
        "Programs": [
            Finding("python3", True, platform.python_version()),
            Finding("JupyterLab", venv, "set up" if venv else "not set up yet", "", "./lab sets it up"),
            *(the_tool(tool) for tool in machine.TOOLS),
        ],
        "Cgroups": [
            Finding("cgroups", cgroups.mode() != "none", mode[cgroups.mode()]),
            Finding("limits in a lab", bool(limits), ", ".join(limits) or "none may be set",
                    "the cells about limits", "Limits need root, or cgroup v2 with systemd"),
        ],
        "Engines and more": [docker(), podman(), emulator(), the_process_events()],
    }  # fmt: skip


def doctor():
    """Print the survey. Returns 0 when lesson 01 can run here, else 1."""
    groups = survey()
    name, _ = machine.distribution()
    who = "root" if os.getuid() == 0 else "an ordinary user"
    print(f"{name}, Linux {platform.release()}, {platform.machine()}; you are {who}.")
    for title, findings in groups.items():
        print(f"\n{title}")
        rows = [("  " + ("yes" if one.here else "no"), one.name, described(one)) for one in findings]
        print(table(rows))
    ways = groups[WAYS]
    obstacles = [tool.name for tool in machine.TOOLS if tool.needed and not machine.find(tool.name)]
    if not any(one.here for one in ways):
        obstacles.append("a way to make a lab")
    print("\nLesson 01 can run here." if not obstacles else f"\nLesson 01 can't run here yet: {', '.join(obstacles)}.")
    return 1 if obstacles else 0


def described(finding):
    """A finding in one line: what was found, what is lost without it, and the mend."""
    if finding.here:
        return finding.detail
    loss = f" ({finding.lost})" if finding.lost else ""
    return f"{finding.detail}{loss}. {finding.mend}".rstrip(". ")
