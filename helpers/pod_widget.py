"""A widget for lesson 06: two members of a pod, and a switch for each thing to share: own, the pod's, the host's.

    pod_widget.show(lab, {"net": ["own", "own"]})

A run starts both members in the lab, with the commands that are on display: A offers a port, a host name, memory of
both kinds and itself, and B looks for them (pod_probe.py). The numbers of their namespaces prove why. Where no kernel
and no JavaScript is at hand, the same output shows the first run, as a drawing and as text.
See also: nsenter(1), unshare(1), namespaces(7).
"""

import json
import os
import select
import shlex
import sys
import uuid
from pathlib import Path

import anywidget
import traitlets

from helpers import processes
from helpers.lab import PIPE, LabError, StepFailed
from helpers.pictures.base import COLOURS, FILLS, Picture, digraph, escape

CHOICES = ("own", "pod", "host")
#: kind: (what it is called, what B tries)
KINDS = {
    "net": ("net", "reach A on localhost"),
    "uts": ("uts", "see the host name that A sets"),
    "ipc": ("ipc", "find A's System V memory"),
    "pid": ("pid", "see A in /proc, as ps does"),
    "shm": ("mnt: /dev/shm", "open A's file in /dev/shm"),
}
FLAGS = {"net": "--net", "uts": "--uts", "ipc": "--ipc", "pid": "--pid"}
PLAIN = {"net": ["pod", "pod"], "uts": ["pod", "pod"], "ipc": ["pod", "pod"], "pid": ["own", "own"],
         "shm": ["pod", "pod"]}  # fmt: skip
SCRIPT = """set -e
mount -t proc proc /proc
case $1 in own) mount -t tmpfs shm /dev/shm;; pod) mount --bind "$4" /dev/shm;; esac
[ "$2" != own ] || ip link set lo up
[ "$3" != own ] || hostname own
shift 4
exec "$@"
"""
PROBE = Path(__file__).with_name("pod_probe.py")


def checked(switches):
    """All five kinds, those that aren't named as in a usual pod. Raises LookupError for what there isn't."""
    for kind, choices in switches.items():
        if kind not in KINDS:
            raise LookupError(f"there is no switch {kind!r}: take some of {', '.join(KINDS)}")
        if len(choices) != 2 or set(choices) - set(CHOICES):
            raise LookupError(f"{kind} takes two of {', '.join(CHOICES)}, for A and for B, not {choices}")
    return {kind: list(switches.get(kind, PLAIN[kind])) for kind in KINDS}


def command(choices, holder):
    """The command line that puts a member where these choices ({kind: choice}) say. `holder` is the pod's pause."""
    join = [FLAGS[kind] for kind in FLAGS if choices[kind] == "pod"]
    make = [FLAGS[kind] for kind in FLAGS if choices[kind] == "own"]
    enter = ["nsenter", "--target", str(holder), *join] if join else []
    return [*enter, "unshare", "--mount", *make, *(["--fork"] if "--pid" in make else [])]


def hold(lab):
    """Make the namespaces of a pod, and a process that waits in them: (its PID in the lab, its /dev/shm)."""
    if lab.path("/dev/shm").stat().st_dev == os.stat("/dev/shm").st_dev:  # the machine's: the lab gets one of its own
        lab.run(["mount", "-t", "tmpfs", "shm", "/dev/shm"], echo=False)
    memory = f"pod-{uuid.uuid4().hex[:8]}"
    lab.run(["mkdir", memory], echo=False)
    lab.run(["mount", "-t", "tmpfs", "-o", "size=1m", "shm", memory], echo=False)
    made = ["unshare", *FLAGS.values(), "--mount-proc", "--fork", "sleep", "infinity"]
    step = lab.start(made, echo=False)
    pause = processes.wait_until(
        lambda: next((p for p in lab.find("sleep") if p.ppid == step.pid), None), "the pod's first process", 20
    )
    inside = ["nsenter", "--target", str(pause.pid)]
    lab.run([*inside, "--net", "ip", "link", "set", "lo", "up"], echo=False)
    lab.run([*inside, "--uts", "hostname", "pod"], echo=False)
    return pause.pid, f"/run/lab/{memory}"


def look(lab, pod, switches):
    """Start A and B as the switches say: rows of {kind, title, test, choices, inodes, works}. `pod` is from `hold`."""
    holder, memory = pod
    python = [os.path.realpath(sys.executable), "-I", "-S", str(PROBE)]

    def member(number, *words):
        choices = {kind: pair[number] for kind, pair in switches.items()}
        script = ["sh", "-c", SCRIPT, "sh", choices["shm"], choices["net"], choices["uts"], memory]
        return [*command(choices, holder), *script, *python, *words]

    errors = open(os.memfd_create("stderr"), "w+b")  # noqa: SIM115 (closed below, after A's end)
    a = None
    try:
        a = lab.start(member(0, "offer", uuid.uuid4().hex), stdin=PIPE, stdout=PIPE, stderr=errors, echo=False)
        heard = select.select([a.stdout], [], [], 20)[0]
        offered = a.stdout.readline() if heard else b""
        if not offered:
            errors.seek(0)
            raise LabError(f"A did not start: {errors.read().decode(errors='replace').strip()}")
        said = lab.run(member(1, "find"), stdin=offered, echo=False, timeout=20).json()
    finally:
        errors.close()
        if a is not None:
            a.stdin.close()  # A takes back what it has offered, and ends
            a.stdout.close()
            with a._status:
                a.wait(20)
    first, second = json.loads(offered)["inodes"], said["inodes"]
    return [
        {
            "kind": kind, "title": title, "test": test, "choices": switches[kind],
            "inodes": [first[kind], second[kind]], "works": said["found"][kind],
        }
        for kind, (title, test) in KINDS.items()
    ]  # fmt: skip


def words(switches, holder):
    """The two command lines, for the page."""
    lines = []
    for number, name in enumerate("AB"):
        choices = {kind: pair[number] for kind, pair in switches.items()}
        lines.append(f"# {shlex.join([*command(choices, holder), name])}")
    return lines


def verdict(rows):
    """What B could do, in one sentence."""
    can = [row["test"] for row in rows if row["works"]]
    return f"B can {', '.join(can)}." if can else "B can do none of it."


def picture(rows):
    """The table as a `Picture`: the static twin of the widget."""
    lines = [["namespace", "A", "B", "can B ...", "answer"]]
    for row in rows:
        sides = [f"{choice} {inode}" for choice, inode in zip(row["choices"], row["inodes"], strict=True)]
        lines.append([row["title"], *sides, row["test"] + "?", "yes" if row["works"] else "no"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    titles = "".join(f'<td border="0" align="left"><b>{escape(title)}</b></td>' for title in lines[0])
    body = "".join(_line(line, row["inodes"]) for line, row in zip(lines[1:], rows, strict=True))
    label = (
        '<table border="0" cellborder="1" cellspacing="0" cellpadding="6" color="#999999">'
        f"<tr>{titles}</tr>{body}</table>"
    )
    return Picture(verdict(rows), digraph(verdict(rows), [f"table [shape=plain, style=solid, label=<{label}>];"]), text)


def _line(line, inodes):
    title, a, b, test, works = map(escape, line)
    same = inodes[0] == inodes[1]
    fill = FILLS["container"] if same else FILLS["plain"]
    edge = f' color="{COLOURS["container"]}"' if same else ""
    sides = (
        f'<td colspan="2" bgcolor="{fill}"{edge}>{a}  =  {b}</td>' if same else
        f'<td align="left" bgcolor="{fill}">{a}</td><td align="left" bgcolor="{fill}">{b}</td>'
    )  # fmt: skip
    result = f'<font color="{COLOURS["runtime"] if works == "yes" else COLOURS["change"]}"><b>{works}</b></font>'
    return f'<tr><td align="left">{title}</td>{sides}<td align="left">{test}</td><td>{result}</td></tr>'


class PodGrid(anywidget.AnyWidget):
    """The widget behind `show`. The page sets `switches` and counts up `runs`; the rest follows."""

    _esm = Path(__file__).with_suffix(".js").read_text()
    kinds = traitlets.List().tag(sync=True)  # [kind, title, test]
    switches = traitlets.Dict().tag(sync=True)
    runs = traitlets.Int(0).tag(sync=True)  # asked for by the page
    done = traitlets.Int(0).tag(sync=True)  # and done
    rows = traitlets.List().tag(sync=True)
    words = traitlets.List().tag(sync=True)
    said = traitlets.Unicode().tag(sync=True)
    trouble = traitlets.Unicode("").tag(sync=True)

    def __init__(self, lab, switches):
        self._lab, self._pod = lab, hold(lab)
        rows = look(lab, self._pod, switches)
        self.twin = picture(rows)
        super().__init__(
            kinds=[[kind, *texts] for kind, texts in KINDS.items()], switches=switches, rows=rows,
            words=words(switches, self._pod[0]), said=verdict(rows),
        )  # fmt: skip
        self.observe(lambda _: self._switched(), "switches")
        self.observe(lambda _: self._run(), "runs")

    def _switched(self):
        try:
            self.words, self.trouble = words(checked(self.switches), self._pod[0]), ""
        except LookupError as error:
            self.trouble = str(error)

    def _run(self):
        try:
            rows = look(self._lab, self._pod, checked(self.switches))
            self.rows, self.said, self.trouble = rows, verdict(rows), ""
        except (LabError, StepFailed, LookupError, OSError, ValueError) as error:
            self.trouble = str(error).partition("\n")[0]
        finally:
            self.done = self.runs

    def _repr_mimebundle_(self, **_):
        data, metadata = self.twin.bundle()
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {**data, "application/vnd.jupyter.widget-view+json": view}, metadata


def show(lab, switches=None):
    """The widget, with these switches; kinds that aren't named stand as in a usual pod. Raises LookupError."""
    return PodGrid(lab, checked(switches or {}))
