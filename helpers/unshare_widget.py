"""A widget for lesson 02: tick namespaces, and see what `unshare` makes of them and what a process then sees.

    unshare_widget.show(lab, ["uts", "net"])

Each tick runs the command that is on display, in the lab, with a small shell script that reads /proc. Where no
kernel and no JavaScript is at hand, the same output shows the table for the first ticks, as a drawing and as text.
See also: unshare(1), namespaces(7), proc_pid_ns(5).
"""

import shlex
from pathlib import Path

import anywidget
import traitlets

from helpers.lab import LabError, StepFailed
from helpers.pictures.base import COLOURS, FILLS, Picture, digraph, escape

DAYS = 10  # by which the clock of a new time namespace is ahead; without an offset it would look unchanged
FLAGS = {
    "mnt": ["--mount"], "uts": ["--uts"], "ipc": ["--ipc"], "net": ["--net"], "pid": ["--pid"], "user": ["--user"],
    "cgroup": ["--cgroup"], "time": ["--time", "--boottime", str(DAYS * 86400)],
}  # fmt: skip
VIEWS = [  # kind, what of it a process sees, the key in the script's output
    ("mnt", "mounts in its table", "mounts"), ("uts", "host name", "name"), ("ipc", "message queues", "queues"),
    ("net", "network interfaces", "links"), ("pid", "its own PID", "self"), ("pid", "PID 1 in /proc", "first"),
    ("user", "user number", "uid"), ("cgroup", "its cgroup", "path"), ("time", "days since boot", "days"),
]  # fmt: skip
SCRIPT = r"""
for kind in mnt uts ipc net pid user cgroup time; do echo $kind $(readlink /proc/self/ns/$kind); done
echo mounts $(wc -l < /proc/self/mountinfo)
echo name $(uname -n)
echo queues $(($(wc -l < /proc/sysvipc/msg) - 1))
ip -brief link | while read name state rest; do
    case $rest in *,UP*|*UP,*) state=up;; *) state=down;; esac
    echo link ${name%@*} $state
done
echo self $$
read name < /proc/1/comm
echo first $name
echo uid $(id -u)
echo path $(tail -n 1 /proc/self/cgroup)
read seconds rest < /proc/uptime
echo days $((${seconds%.*} / 86400))
"""


def command(kinds):
    """The `unshare` command line for these kinds, without the program; [] for none. LookupError: no such kind."""
    known(kinds)
    flags = [flag for kind in FLAGS if kind in kinds for flag in FLAGS[kind]]
    if {"pid", "time"} & set(kinds):
        flags.append("--fork")  # only children enter these two
    if {"pid", "mnt"} <= set(kinds):
        flags.append("--mount-proc")
    return ["unshare", *flags] if flags else []


def known(kinds):
    """Raise LookupError for a kind that there is not."""
    for kind in kinds:
        if kind not in FLAGS:
            raise LookupError(f"there is no namespace {kind!r}: take some of {', '.join(FLAGS)}")


def look(lab, kinds):
    """What a process in new namespaces of these kinds sees, as {key: text}; the inode numbers are under the kinds."""
    said = lab.run([*command(kinds), "sh", "-c", SCRIPT], echo=False).stdout
    return read(said)


def read(said):
    """The script's output as {key: text}."""
    seen, links = {}, []
    for line in said.splitlines():
        key, _, value = line.partition(" ")
        if key == "link":
            links.append(value.replace(" ", " is "))
        elif key in FLAGS:  # uts:[4026531838]
            seen[key] = value.partition("[")[2].rstrip("]") or "?"
        else:
            seen[key] = value
    return {**seen, "links": ", ".join(links)}


def rows(kinds, lab_sees, process_sees):
    """The table: one {kind, ticked, new, inode, views} a kind; a view is [what, in the lab, in the process]."""
    return [
        {
            "kind": kind,
            "ticked": kind in kinds,
            "inode": process_sees.get(kind, "?"),
            "new": process_sees.get(kind) != lab_sees.get(kind),
            "views": [
                [what, lab_sees.get(key) or "none", process_sees.get(key) or "none"]
                for of, what, key in VIEWS
                if of == kind
            ],
        }
        for kind in FLAGS
    ]


def words(kinds):
    """The command line in words for the page."""
    return "# " + shlex.join([*command(kinds), "PROGRAM"])


def picture(kinds, table):
    """The table as a `Picture`: the static twin of the widget."""
    new = [row["kind"] for row in table if row["new"]]
    caption = f"With {words(kinds)[2:]} these namespaces are new: {', '.join(new) or 'none'}."
    lines = [["new", "namespace", "a process sees", "in the lab", "in the process"]]
    lines += [
        ["☑" if row["ticked"] else "☐", f"{row['kind']} {row['inode']}" + (" new" if row["new"] else ""), *view]
        for row in table
        for view in row["views"]
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    cells = "".join(map(_line, lines[1:]))
    titles = "".join(f'<td border="0" align="left"><b>{escape(title)}</b></td>' for title in lines[0])
    label = (
        '<table border="0" cellborder="1" cellspacing="0" cellpadding="5" color="#999999">'
        f"<tr>{titles}</tr>{cells}</table>"
    )
    return Picture(caption, digraph(caption, [f"table [shape=plain, style=solid, label=<{label}>];"]), text)


def _line(line):
    tick, namespace, what, before, now = line
    new = namespace.endswith(" new")
    fill = FILLS["container"] if new else FILLS["plain"]
    edge = f' color="{COLOURS["container"]}"' if new else ""
    cells = [f'<td align="left" bgcolor="{fill}"{edge}>{escape(text)}</td>' for text in (tick, namespace)]
    cells += [f'<td align="left">{escape(text)}</td>' for text in (what, before)]
    changed = f'<font color="{COLOURS["change"]}"><b>{escape(now)}</b></font>' if new and now != before else escape(now)
    return f'<tr>{"".join(cells)}<td align="left">{changed}</td></tr>'


class Unshare(anywidget.AnyWidget):
    """The widget behind `show`. The page sets `ticked`; `rows`, `words` and `trouble` follow."""

    _esm = Path(__file__).with_suffix(".js").read_text()
    ticked = traitlets.List(traitlets.Unicode()).tag(sync=True)
    rows = traitlets.List().tag(sync=True)
    words = traitlets.Unicode().tag(sync=True)
    trouble = traitlets.Unicode("").tag(sync=True)

    def __init__(self, lab, ticked):
        self._lab, self._before = lab, look(lab, [])
        table = rows(ticked, self._before, look(lab, ticked))
        self.twin = picture(ticked, table)
        super().__init__(ticked=list(ticked), rows=table, words=words(ticked))
        self.observe(lambda _: self._tick(), "ticked")

    def _tick(self):
        try:
            self.rows = rows(self.ticked, self._before, look(self._lab, self.ticked))
            self.words, self.trouble = words(self.ticked), ""
        except (LabError, StepFailed, LookupError, OSError) as error:
            self.trouble = str(error).partition("\n")[0]

    def _repr_mimebundle_(self, **_):
        data, metadata = self.twin.bundle()
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {**data, "application/vnd.jupyter.widget-view+json": view}, metadata


def show(lab, ticked=()):
    """The widget, with these kinds ticked. Raises LookupError for a kind that there is not."""
    known(ticked)
    return Unshare(lab, ticked)
