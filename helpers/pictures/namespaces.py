"""The namespace map: which processes share which namespaces, by inode."""

from helpers.pictures.base import COLOURS, FILLS, Picture, digraph, escape
from helpers.pictures.roles import outermost, pids, title
from helpers.processes import NAMESPACES


def namespace_map(processes, caption, kinds=NAMESPACES, labels=None, base=None, base_name="lab", given=False):
    """One row a process, one column a kind of namespace. A cell that spans rows is one shared namespace.

    `labels` is {pid: words} for the rows. `base` is the process whose namespaces count as ordinary (grey), by
    default the outermost of `processes`, and `base_name` what these are called. Kinds that could not be read
    for anyone are left out. The rows are sorted so that who shares stands together, or stay in the `given` order.
    """
    base = base or outermost(processes)
    kinds = [kind for kind in kinds if any(p.namespace(kind) for p in processes)]

    def alike(p):
        others = [p.namespace(k) != base.namespace(k) for k in kinds]
        return p != base, others, [p.namespace(k) or 0 for k in kinds], p.pid

    rows = list(processes) if given else sorted(processes, key=alike)
    names = {kind: _letters(rows, kind, base, base_name) for kind in kinds}
    labels = labels or {}
    body = [f"map [shape=plain, style=solid, label=<{_table(rows, kinds, names, labels)}>];"]
    return Picture(caption, digraph(caption, body), _text(rows, kinds, names, labels))


def _letters(rows, kind, base, base_name):
    """{inode: short name}: `base_name` for the base's own, then A, B, C in the order of the rows."""
    found = {base.namespace(kind): base_name}
    for p in rows:
        if p.namespace(kind) not in found:
            found[p.namespace(kind)] = _letter(len(found) - 1)
    return found


def _letter(number):
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def _row_name(process, labels):
    return " ".join(filter(None, (labels.get(process.pid), title(process), pids(process))))


def _table(rows, kinds, names, labels):
    lines = ['<table border="0" cellborder="1" cellspacing="0" cellpadding="5" color="#999999">']
    lines.append('<tr><td border="0"></td>' + "".join(f'<td border="0"><b>{kind}</b></td>' for kind in kinds) + "</tr>")
    for number, p in enumerate(rows):
        cells = [f'<td align="left" border="0">{escape(_row_name(p, labels))}</td>']
        for kind in kinds:
            inode = p.namespace(kind)
            if number and rows[number - 1].namespace(kind) == inode:
                continue  # the cell above spans this row
            span = 1
            while number + span < len(rows) and rows[number + span].namespace(kind) == inode:
                span += 1
            cells.append(
                _cell(inode, names[kind][inode], span, ordinary=names[kind][inode] == next(iter(names[kind].values())))
            )
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "".join(lines) + "</table>"


def _cell(inode, name, span, ordinary):
    fill = "#F4F4F4" if ordinary else FILLS["container"]
    edge = "" if ordinary or span == 1 else f' border="3" color="{COLOURS["container"]}"'
    shared = f"<br/>shared by {span}" if span > 1 and not ordinary else ""
    label = f'<b>{escape(name)}</b><br/><font point-size="9">{inode or "?"}{shared}</font>'
    return f'<td rowspan="{span}" bgcolor="{fill}"{edge}>{label}</td>'


def _text(rows, kinds, names, labels):
    table = [["", *kinds]] + [[_row_name(p, labels), *(names[k][p.namespace(k)] for k in kinds)] for p in rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )
