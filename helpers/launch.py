"""Start something in the lab up to its first line of output, and say what it is made of: time, fences, memory.

    launch.measure(lab, ["runc", "run", "--bundle", "demo", "demo"])  # of: sh -c 'echo here; exec sleep 1000'

It works for whatever runs in the lab: a plain program, a container, a virtual machine. All of it is ended afterwards.
See also: proc(5) (Seccomp, CapEff, smaps_rollup).
"""

import os
import time
from dataclasses import dataclass

from helpers import processes
from helpers.preflight import table

PATIENCE = 90  # seconds for each command, and for the end of everything: a machine may boot beside others


@dataclass(frozen=True)
class Launched:
    """What was seen. `namespaces`, `seccomp` and `capabilities` are those of the innermost process, the last to come.

    `milliseconds` count from the command to its first `line`; `megabytes` are the memory of all its processes, what
    they share with others divided (Pss); `names` are the commands of these processes.
    """

    line: str
    milliseconds: float
    namespaces: tuple
    seccomp: bool
    capabilities: int
    megabytes: float
    names: tuple


def measure(lab, *commands):
    """Run the commands in turn, the last one in the background, and return a `Launched` once there is a line.

    None of it is left afterwards. Returns what was said against it, as text, when it ended without a line.
    """
    before = {p.pid for p in lab.processes()}

    def new():
        return [p for p in lab.processes() if p.pid not in before]

    try:
        line, seconds, step, trouble = _first_line(lab, commands)
        if not line:
            return trouble
        if len(commands) > 1:  # the last one only gave the word, and goes
            step.wait(PATIENCE)
        processes.wait_until(lambda: not any(map(_passes, new())), "the program", PATIENCE)
        return _look(lab, line, seconds, new())
    finally:
        processes.wait_until(lambda: not _killed(lab, new()), "the end of what was launched", PATIENCE)


def _killed(lab, family):
    """These processes, each of which gets a KILL. One that dies may have made another since they were counted."""
    for process in family:
        lab.kill(process.pid, 9)
    return family


def _passes(process):
    """True for what is there for a moment only: a shell about to become the program, a runtime's helpers, the dead."""
    # busybox becomes another of its programs by way of /proc/self/exe, and then takes that one's name.
    return process.name in ("sh", "exe") or process.name.startswith("runc:[") or process.state == "Z"


def _first_line(lab, commands):
    errors = lab.path("launch.err")
    errors.write_text("")
    read, write = os.pipe()
    with open(read) as output:
        with open(write, "wb") as given:
            began = time.monotonic()
            for argv in commands:
                step = lab.start(argv, stdout=given, stderr=errors.name, echo=False)
                if argv is not commands[-1] and step.wait(PATIENCE) != 0:
                    break
        line = output.readline().strip()
    said = errors.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    return line, time.monotonic() - began, step, said[-1]


def _look(lab, line, seconds, family):
    outside = processes.read_one(1, lab.proc)
    for inner in reversed(family):  # the last one that is still there
        status = dict(row.split(":\t", 1) for row in _read(lab, inner, "status") if ":\t" in row)
        if status:
            break
    rollups = [row for p in family for row in _read(lab, p, "smaps_rollup") if row.startswith("Pss:")]
    return Launched(
        line,
        seconds * 1000,
        tuple(kind for kind, inode in inner.namespaces if outside.namespace(kind) != inode),
        status["Seccomp"] == "2",
        int(status["CapEff"], 16).bit_count(),
        sum(int(row.split()[1]) for row in rollups) / 1024,
        tuple(p.name for p in family),
    )


def _read(lab, process, name):
    try:
        return lab.path(f"/proc/{process.pid}/{name}").read_text().splitlines()
    except OSError:
        return []  # it has just ended


def compare(launched):
    """{name: Launched or text} as a table in text. What did not start stands below it, with what it said."""
    rows = [["", "new namespaces", "seccomp", "capabilities", "ms", "MB", "processes"]]
    for name, one in launched.items():
        if isinstance(one, Launched):
            numbers = f"{one.capabilities}", f"{one.milliseconds:.0f}", f"{one.megabytes:.1f}"
            spaces, filtered = " ".join(one.namespaces) or "none", "yes" if one.seccomp else "no"
            rows.append([name, spaces, filtered, *numbers, " ".join(one.names)])
    failed = [f"{name} can't, here: {one}" for name, one in launched.items() if not isinstance(one, Launched)]
    return "\n".join([table(rows), *failed])
