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
    lines = connections(descriptors)
    ends = {d for line in lines for d in line}
    drawn = [d for d in descriptors if d in ends or d.pid and (d.number <= 2 or all_descriptors)]
    ports = {}  # the same open thing for the same process -> its descriptors
    for d in drawn:
        ports.setdefault((d.pid, d.target, d.access, d.device, d.inode, d.pty), []).append(d)
    names = {d: f"d{rank}" for rank, row in enumerate(ports.values()) for d in row}
    body = ["rankdir=LR; nodesep=0.25; ranksep=0.9;"]
    text = []
    for p in processes:
        rows = [row for (pid, *_), row in ports.items() if pid == p.pid]
        body.append(_node(p, rows, names, base, labels.get(p.pid)))
        text += _text(p, rows, lines, {q.pid: labels.get(q.pid) or title(q) for q in processes})
    body += [f"{{ rank=same; {'; '.join(f'p{p.pid}' for p in column)} }}" for column in columns if len(column) > 1]
    for left, right in zip(columns, columns[1:], strict=False):
        body += [f"p{a.pid} -> p{b.pid} [style=invis];" for a in left for b in right]
    seen = set()
    order = {p.pid: position for position, column in enumerate(columns) for p in column}
    for writer, reader in lines:
        edge = (names[writer], names[reader])
        if edge in seen or edge[::-1] in seen:
            continue
        seen.add(edge)
        both = "dir=both, arrowtail=normal, " if writer.access == "rw" and reader.access == "rw" else ""
        dashed = "style=dashed, " if writer.kind == "file" else ""
        backwards = order[writer.pid] > order[reader.pid]
        sides = ("w", "e") if backwards else ("e", "w")
        body.append(
            f"p{writer.pid}:{edge[0]}:{sides[0]} -> p{reader.pid}:{edge[1]}:{sides[1]} "
            f'[{both}{dashed}arrowhead=normal, arrowsize=0.7, color="#444444", constraint=false];'
        )
    return Picture(caption, digraph(caption, body), "\n".join(text))


def connections(descriptors):
    """[(from, to)] for every two descriptors of two processes that are ends of one thing.

    That is a pipe, a fifo, a socket pair, a terminal, or a file that one only writes and the other only reads.
    """
    return [(a, b) for a in descriptors for b in descriptors if a.pid != b.pid and _connected(a, b)]


def _connected(a, b):
    """Whether a line goes from `a` to `b`. Two ends in one process are its own plumbing, and left out before."""
    if a.kind != b.kind:
        return False
    if a.kind in ("pipe", "fifo"):
        return _same(a, b) and "w" in a.access and "r" in b.access
    if a.kind == "file":
        return _same(a, b) and (a.access, b.access) == ("w", "r")
    if a.kind == "socket":
        return a.peer == b.inode and a.pid < b.pid  # one line for both ways
    if a.kind == "pty":
        ends = a.pty == b.pty is not None and a.device == b.device  # /dev/pts/0 is another one in every container
        return ends and _is_master(a) and not _is_master(b)
    return False


def _same(a, b):
    return (a.device, a.inode) == (b.device, b.inode)


def _is_master(d):
    return "ptmx" in d.target


def _what(d):
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
        others = {}  # (arrow, process) -> its descriptors
        for a, b in [line for d in row for line in lines if d in line]:
            other = b if a in row else a
            arrow = "<->" if a.access == b.access == "rw" else ("->" if a in row else "<-")
            numbers = others.setdefault((arrow, other.pid), [])
            numbers += [other.number] if other.number not in numbers else []
        ends = [
            f"{arrow} {names[pid]}{f' {pid}' if pid else ''} ({' '.join(map(str, numbers))})"
            for (arrow, pid), numbers in others.items()
        ]
        numbers = " ".join(str(d.number) for d in row)
        said.append(f"  {numbers:<6} {_what(row[0]):<16} {', '.join(ends)}".rstrip())
    return said
