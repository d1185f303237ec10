"""The stdio wiring: which process holds which end of which pipe, socket, terminal or file."""

from helpers.pictures.base import COLOURS, FILLS, Picture, digraph, escape, shorten
from helpers.pictures.roles import outermost, pids, role, title


def wiring(processes, descriptors, caption, base=None, all_descriptors=False, labels=None):
    """Processes from left to right in the given order, their descriptors, and the lines between the ends.

    A list among the `processes` is a column: these stand one below the other. `descriptors` are those of
    all these processes. Drawn are 0, 1 and 2, and any other whose other end is in the picture too;
    `all_descriptors` draws the rest as well, but not of the notebook (PID 0).
    `labels` is {pid: words} to stand before a process's name. An arrow points the way the bytes go; it is
    dashed where they rest in a file until somebody reads them.
    """
    columns = [item if isinstance(item, list) else [item] for item in processes]
    processes = [p for column in columns for p in column]
    base = base or outermost([p for p in processes if p.pid])
    labels = labels or {}
    rows, lines = plan(processes, descriptors, all_descriptors)
    names = {row: f"d{rank}" for rank, row in enumerate(row for own in rows.values() for row in own)}
    titles = {p.pid: labels.get(p.pid) or title(p) for p in processes}
    body = ["rankdir=LR; nodesep=0.25; ranksep=0.9;"]
    body += [_node(p, rows[p.pid], names, base, titles[p.pid]) for p in processes]
    body += [f"{{ rank=same; {'; '.join(f'p{p.pid}' for p in column)} }}" for column in columns if len(column) > 1]
    for left, right in zip(columns, columns[1:], strict=False):
        body += [f"p{a.pid} -> p{b.pid} [style=invis];" for a in left for b in right]
    order = {p.pid: position for position, column in enumerate(columns) for p in column}
    for writer, reader, both in lines:
        (a, *_), (b, *_) = writer, reader
        sides = ("w", "e") if order[a.pid] > order[b.pid] else ("e", "w")
        look = ("dir=both, arrowtail=normal, " if both else "") + ("style=dashed, " if a.kind == "file" else "")
        body.append(
            f"p{a.pid}:{names[writer]}:{sides[0]} -> p{b.pid}:{names[reader]}:{sides[1]} "
            f'[{look}arrowhead=normal, arrowsize=0.7, color="#444444", constraint=false];'
        )
    width = max([16, *(len(what(row[0])) for row in names)])
    text = [line for p in processes for line in _text(p, rows[p.pid], lines, titles, width)]
    return Picture(caption, digraph(caption, body), "\n".join(text), colours=32)


def plan(processes, descriptors, all_descriptors=False):
    """What is to be drawn: ({pid: [row, ...]}, [(from row, to row, both ways?), ...]).

    A row is a tuple of descriptors: those by which one process holds the same end of the same thing.
    """
    joined = connections(descriptors)
    ends = {d for line in joined for d in line}
    rows = {}
    for d in descriptors:
        if d in ends or d.pid and (d.number <= 2 or all_descriptors):
            rows.setdefault((d.pid, d.target, d.access, d.device, d.inode, d.pty), []).append(d)
    row_of = {d: tuple(row) for row in rows.values() for d in row}
    lines = {}
    for a, b in joined:
        there = (row_of[a], row_of[b])
        if there[::-1] not in lines:
            lines[there] = a.access == b.access == "rw"
    own = {p.pid: [row for row in dict.fromkeys(row_of.values()) if row[0].pid == p.pid] for p in processes}
    return own, [(*there, both) for there, both in lines.items()]


def connections(descriptors):
    """[(from, to)] for every two descriptors of two processes that are ends of one thing.

    That is a pipe, a fifo, a socket pair, a terminal, or a file that one only writes and the other only reads.
    Two ends in one process are its own plumbing, and left out.
    """
    things = {}  # what can be one thing -> its descriptors
    for d in descriptors:
        things.setdefault(_thing(d), []).append(d)
    found = []
    for a in descriptors:
        found += [(a, b) for b in things.get(_thing(a, other=True), ()) if a.pid != b.pid and _goes(a, b)]
    return found


def _thing(d, other=False):
    """What a descriptor is an end of. For a socket, whose two ends have numbers of their own, this or the `other`."""
    if d.kind == "socket":
        return "socket", d.peer if other else d.inode
    if d.kind == "pty":
        return "pty", d.device, d.pty  # /dev/pts/0 is another one in every container
    return d.kind, d.device, d.inode


def _goes(a, b):
    """Whether bytes go from `a` to `b`, two descriptors of one thing. A line for both ways is drawn from one side."""
    if a.kind in ("pipe", "fifo"):
        return "w" in a.access and "r" in b.access
    if a.kind == "file":
        return (a.access, b.access) == ("w", "r")
    if a.kind == "socket":
        return a.pid < b.pid
    return a.kind == "pty" and a.pty is not None and _is_master(a) and not _is_master(b)


def _is_master(d):
    return "ptmx" in d.target


def what(d):
    """A descriptor's other side in a few words."""
    if d.kind == "pty":
        return f"terminal {'master' if _is_master(d) else shorten(d.target.removeprefix('/dev/'), 12)}"
    if d.kind == "fifo":
        return f"fifo {_tail(d.target)}"
    if d.kind in ("pipe", "socket"):
        return d.kind
    target = d.target.removesuffix(" (deleted)")
    if target.startswith("/memfd:"):
        return f"memory file {target.removeprefix('/memfd:')}"
    return _tail(target) if d.kind == "file" else shorten(target, 28)


def _tail(path):
    """The last part of a path; of a long one the end, where engines put what tells files apart."""
    name = path.removesuffix(" (deleted)").rsplit("/", 1)[-1]
    return name if len(name) <= 24 else "…" + name[-18:]


def _node(process, rows, names, base, words):
    part = role(process, base)
    cells = [f'<tr><td bgcolor="{FILLS[part]}"><b>{escape(words)}</b> {escape(pids(process))}</td></tr>']
    for row in rows:
        numbers = " ".join(str(d.number) for d in row)
        cells.append(f'<tr><td port="{names[row]}" align="left"> {numbers}   {escape(what(row[0]))} </td></tr>')
    look = f'border="0" cellborder="1" cellspacing="0" cellpadding="4" color="{COLOURS[part]}"'
    table = f"<table {look}>{''.join(cells)}</table>"
    return f"p{process.pid} [shape=plain, style=solid, label=<{table}>];"


def _text(process, rows, lines, names, width):
    said = [f"{names[process.pid]} {pids(process)}"]
    for row in rows:
        others = {}  # (arrow, process) -> its descriptors
        for a, b, both in lines:
            if row in (a, b):
                other = b if row == a else a
                arrow = "<->" if both else ("->" if row == a else "<-")
                others.setdefault((arrow, other[0].pid), []).extend(d.number for d in other)
        ends = [
            f"{arrow} {names[pid]}{f' {pid}' if pid else ''} ({' '.join(map(str, numbers))})"
            for (arrow, pid), numbers in others.items()
        ]
        numbers = " ".join(str(d.number) for d in row)
        said.append(f"  {numbers:<6} {what(row[0]):<{width}} {', '.join(ends)}".rstrip())
    return said
