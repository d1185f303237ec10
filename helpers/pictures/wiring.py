"""The stdio wiring: which process holds which end of which pipe, socket, terminal or file."""

from helpers.pictures.base import COLOURS, FILLS, Picture, digraph, escape, shorten
from helpers.pictures.roles import outermost, pids, role, title


def wiring(processes, descriptors, caption, base=None, all_descriptors=False, labels=None):
    """Processes from left to right in the given order, their descriptors, and the lines between the ends.

    `descriptors` are those of all these processes. Drawn are 0, 1 and 2, and any other whose other end is
    in the picture too; `all_descriptors` draws the rest as well.
    `labels` is {pid: words} to stand before a process's name. An arrow points the way the bytes go.
    """
    base = base or outermost(processes)
    labels = labels or {}
    lines = connections(descriptors)
    ends = {d for line in lines for d in line}
    drawn = [d for d in descriptors if d.number <= 2 or d in ends or all_descriptors]
    ports = {}  # (pid, row) -> descriptors that are the same open file for this process
    for d in drawn:
        ports.setdefault((d.pid, d.target, d.access), []).append(d)
    names = {d: f"d{rank}" for rank, row in enumerate(ports.values()) for d in row}
    body = ["rankdir=LR; nodesep=0.25; ranksep=1.1;"]
    text = []
    for p in processes:
        rows = [row for (pid, *_), row in ports.items() if pid == p.pid]
        body.append(_node(p, rows, names, base, labels.get(p.pid)))
        text += _text(p, rows, lines, {q.pid: labels.get(q.pid) or title(q) for q in processes})
    for left, right in zip(processes, processes[1:], strict=False):
        body.append(f"p{left.pid} -> p{right.pid} [style=invis];")
    seen = set()
    order = {p.pid: position for position, p in enumerate(processes)}
    for writer, reader in lines:
        edge = (names[writer], names[reader])
        if edge in seen:
            continue
        seen.add(edge)
        both = "dir=both, arrowtail=normal, " if writer.access == "rw" and reader.access == "rw" else ""
        backwards = order[writer.pid] > order[reader.pid]
        sides = ("w", "e") if backwards else ("e", "w")
        body.append(
            f"p{writer.pid}:{edge[0]}:{sides[0]} -> p{reader.pid}:{edge[1]}:{sides[1]} "
            f'[{both}arrowhead=normal, arrowsize=0.7, color="#444444", constraint=false];'
        )
    return Picture(caption, digraph(caption, body), "\n".join(text))


def connections(descriptors):
    """[(from, to)] for every two descriptors that are ends of one thing: a pipe, a socket pair, a terminal."""
    return [(a, b) for a in descriptors for b in descriptors if a.pid != b.pid and _connected(a, b)]


def _connected(a, b):
    """Whether a line goes from `a` to `b`. Two ends in one process are its own plumbing, and left out before."""
    if a.kind != b.kind:
        return False
    if a.kind in ("pipe", "fifo"):
        return a.inode == b.inode and "w" in a.access and "r" in b.access
    if a.kind == "socket":
        return a.peer == b.inode and a.pid < b.pid  # one line for both ways
    if a.kind == "pty":
        return a.pty == b.pty is not None and "ptmx" in a.target and "ptmx" not in b.target
    return False


def _what(d):
    """A descriptor's other side in a few words."""
    names = {"pipe": "pipe", "fifo": "fifo", "socket": "socket", "pty": "terminal"}
    if d.kind == "pty":
        return f"terminal {'master' if 'ptmx' in d.target else 'pts/' + str(d.pty)}"
    if d.kind in names:
        return names[d.kind]
    target = d.target.removesuffix(" (deleted)")
    if target.startswith("/memfd:"):
        return f"memory file {target.removeprefix('/memfd:')}"
    return shorten(target.rsplit("/", 1)[-1] if d.kind == "file" else target, 28)


def _node(process, rows, names, base, label):
    part = role(process, base)
    cells = [
        f'<tr><td bgcolor="{FILLS[part]}"><b>{escape(label or title(process))}</b> {escape(pids(process))}</td></tr>'
    ]
    for row in rows:
        numbers = " ".join(str(d.number) for d in row)
        cells.append(f'<tr><td port="{names[row[0]]}" align="left"> {numbers}   {escape(_what(row[0]))} </td></tr>')
    look = f'border="0" cellborder="1" cellspacing="0" cellpadding="4" color="{COLOURS[part]}"'
    table = f"<table {look}>{''.join(cells)}</table>"
    return f"p{process.pid} [shape=plain, style=solid, label=<{table}>];"


def _text(process, rows, lines, names):
    said = [f"{names[process.pid]} {pids(process)}"]
    for row in rows:
        others = []
        for d in row:
            for a, b in lines:
                if d in (a, b):
                    other = b if d == a else a
                    arrow = "<->" if a.access == b.access == "rw" else ("->" if d == a else "<-")
                    others.append(f"{arrow} {names[other.pid]} {other.pid} ({other.number})")
        numbers = " ".join(str(d.number) for d in row)
        said.append(f"  {numbers:<6} {_what(row[0]):<16} {', '.join(dict.fromkeys(others))}".rstrip())
    return said
