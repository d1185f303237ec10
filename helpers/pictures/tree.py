"""The process tree, and what a command changed in it."""

from helpers.pictures.base import COLOURS, FILLS, Picture, digraph, escape, quote
from helpers.pictures.roles import command, new_namespaces, outermost, role, title

SIGNS = {"n": "+", "g": "-", "r": "~", "": " "}  # by the first letter of the mark


def tree(processes, caption):
    """Who is whose parent. Frames hold the processes that share a set of new namespaces."""
    return _draw(processes, {}, caption)


def before_after(before, after, caption):
    """What came, went, and got another parent between two readings.

    New: thick outline. Gone: dashed. Re-parented: orange edge. Each is also said in words.
    """
    old = {(p.pid, p.started): p for p in before}
    now = {(p.pid, p.started): p for p in after}
    marks = {}
    for key in old | now:
        if key not in now:
            marks[key] = "gone"
        elif key not in old:
            marks[key] = "new"
        elif old[key].ppid != now[key].ppid:
            marks[key] = f"re-parented, was {old[key].ppid}'s"
    both = sorted((old | now).values(), key=lambda p: (p.pid, p.started))
    return _draw(both, marks, caption)


def _key(process):
    return (process.pid, process.started)


def children(processes):
    """[(process, branch)] in the order of a printed tree; a PPID that is not there makes a root.

    `branch` has one truth for each level: whether that ancestor, and last the process itself, is the last child.
    """
    known = {p.pid for p in processes}
    by_parent = {}
    for p in processes:
        by_parent.setdefault(p.ppid if p.ppid in known else None, []).append(p)
    found = []

    def walk(family, above):
        for position, p in enumerate(family):
            branch = (*above, position == len(family) - 1)
            found.append((p, branch))
            walk(by_parent.pop(p.pid, []), branch)  # pop: two processes may have had one PID, before and after

    walk(by_parent.pop(None, []), ())
    return found


def _text(processes, marks, base):
    rows = []
    for p, branch in children(processes):
        lines = "".join("   " if last else "│  " for last in branch[1:-1]) + ("└─ " if branch[-1] else "├─ ")
        mark = marks.get(_key(p), "")
        kinds = new_namespaces(p, base) if p.inner_pid == 1 or not marks else ()
        said = [command(p, 60), "new: " + " ".join(kinds) if kinds else "", mark]
        inside = f"inside {p.inner_pid}" if p.inner_pid != p.pid else ""
        sign = f"{SIGNS[mark[:1]]} " if marks else ""
        rows.append((sign, f"{lines if len(branch) > 1 else ''}{p.pid} {title(p)}", inside, filter(None, said)))
    left = max((len(r[1]) for r in rows), default=0)
    middle = max((len(r[2]) for r in rows), default=0)
    return "\n".join(f"{m}{a:<{left}}  {b:<{middle}}  {' · '.join(w)}".rstrip() for m, a, b, w in rows)


def _node(process, mark, base):
    part = role(process, base)
    number = f"{process.pid}" + (f" → inside <b>{process.inner_pid}</b>" if process.inner_pid != process.pid else "")
    second = command(process)
    label = f"<b>{escape(title(process))}</b> {number}"
    if second:
        label += f'<br/><font point-size="9">{escape(second)}</font>'
    if mark:
        label += f'<br/><font point-size="9" color="{COLOURS["change"] if mark != "gone" else "#666666"}">{mark}</font>'
    style = {"new": "penwidth=3", "gone": 'style="rounded,dashed,filled" fontcolor="#666666"'}.get(mark, "penwidth=1.4")
    fill = "#ffffff" if mark == "gone" else FILLS[part]
    return f"{_id(process)} [label=<{label}>, color={quote(COLOURS[part])}, fillcolor={quote(fill)}, {style}];"


def _id(process):
    return f"p{process.pid}_{process.started}"


def _draw(processes, marks, caption):
    base = outermost(processes)
    living = {}
    for p in processes:  # a gone parent may share its PID with a living process: the living one wins
        if marks.get(_key(p)) != "gone" or p.pid not in living:
            living[p.pid] = p
    groups = {}
    for p in processes:
        groups.setdefault(p.namespaces if new_namespaces(p, base) else None, []).append(p)
    body = [_node(p, marks.get(_key(p), ""), base) for p in groups.pop(None, [])]
    for number, (_, members) in enumerate(groups.items()):
        kinds = " ".join(new_namespaces(members[0], base))
        look = f'color="{COLOURS["container"]}"; fontcolor="#8A3A6B"; style="rounded"; penwidth=1.6; fontsize=10;'
        body.append(f"subgraph cluster_{number} {{ label={quote('new namespaces: ' + kinds)}; {look}")
        body += ["  " + _node(p, marks.get(_key(p), ""), base) for p in members]
        body.append("}")
    for p in processes:
        mark = marks.get(_key(p), "")
        parent = living.get(p.ppid)
        if parent is not None and parent != p:
            look = {"r": f'color="{COLOURS["change"]}", penwidth=2.6', "g": 'style=dashed, color="#BBBBBB"'}.get(
                mark[:1], ""
            )
            body.append(f"{_id(parent)} -> {_id(p)} [{look}];")
    return Picture(caption, digraph(caption, body), _text(processes, marks, base))
