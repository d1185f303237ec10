"""The film of a command as a timeline: one bar for each process, from its fork to its exit."""

from dataclasses import dataclass

from helpers.film import UNREAD, ending
from helpers.pictures.base import COLOURS, FILLS, FONT, Picture, digraph, escape, quote, shorten
from helpers.pictures.roles import role
from helpers.processes import Process

LEFT, TRACK, RIGHT = 112, 440, 88  # points: the PIDs, the bars, how each ended
ROW, BAR = 23, 16  # points: from one row to the next, the height of a bar
SMALL = 9  # font size in points
MOST = 40  # rows in the drawing; the text has them all
BASE = Process(pid=1, ppid=0, name="lab", namespaces=(("pid", 0),))


@dataclass(frozen=True)
class Segment:
    """A part of a process's life in which it had one name. `born` says that the name is its parent's, from the fork."""

    start: float
    end: float
    name: str
    role: str
    born: bool = False


@dataclass(frozen=True)
class Life:
    """One process of a film, as a row: when it lived and under which names. `end` is None while it runs on."""

    process: int
    parent: int | None
    branch: tuple  # for each level down to here: is it the last child
    pid: int | None
    inner_pid: int | None
    start: float | None  # None: it was there before
    end: float | None
    code: int | None
    segments: tuple
    adopted: tuple = ()  # (ms, number of the new parent), in order


def film(film, caption):
    """A film (helpers.film) as a `Picture`: who forked whom, what each became, and when each ended."""
    rows = lives(film)
    return Picture(caption, _drawing(film, rows, caption), _text(film, rows), engine="neato")


def part(name, inside):
    """The role (a key of COLOURS) of a process with this name, inside namespaces of its own or not."""
    return role(Process(2, 1, name.split(" ")[0], namespaces=(("pid", int(inside)),)), BASE)


def lives(film):
    """The processes of a film as `Life`s, each below the parent that forked it."""
    end = _end(film)
    events = {}
    for event in film.events:
        events.setdefault(event.process, []).append(event)
    found, children = {}, {}
    for number, mine in events.items():
        first, last = mine[0], mine[-1]
        gone = next((e for e in mine if e.kind == "exit"), None)
        named = [e for e in mine if e.kind not in ("exit", "parent")]
        stops = [e.ms for e in named[1:]] + [gone.ms if gone else end]
        segments = []
        for event, stop in zip(named, stops, strict=True):
            plays = part(event.name, event.inside)
            one = Segment(event.ms, stop, event.name, plays, event.kind == "fork" and len(named) > 1)
            if segments and segments[-1].name == one.name and segments[-1].role == plays and not segments[-1].born:
                one = Segment(segments.pop().start, stop, event.name, plays)
            segments.append(one)
        children.setdefault(first.parent, []).append(number)
        found[number] = dict(
            process=number, parent=first.parent, pid=last.pid, inner_pid=last.inner_pid,
            start=None if first.kind == "here" else first.ms, end=gone.ms if gone else None,
            code=gone.code if gone else None, segments=tuple(segments),
            adopted=tuple((e.ms, e.parent) for e in mine if e.kind == "parent"),
        )  # fmt: skip
    rows = []

    def walk(family, above):
        for position, number in enumerate(family):
            branch = (*above, position == len(family) - 1)
            rows.append(Life(**found[number], branch=branch))
            walk(children.get(number, []), branch)

    walk(children.get(None, []), ())
    return rows


def _end(film):
    """The right edge of the time axis, in ms: after the last thing that happened, with room to name what runs on."""
    last, gone = {}, set()
    for event in film.events:
        if event.kind == "exit":
            gone.add(event.process)
        elif event.kind != "parent":
            last[event.process] = event.ms
    running = [ms for process, ms in last.items() if process not in gone]
    return max([film.returned * 1.03, *(event.ms * 1.03 for event in film.events), max(running, default=0) * 1.18, 1.0])


def _pids(life):
    if life.pid is None:
        return "PID ?"
    return str(life.pid) + (f", inside {life.inner_pid}" if life.inner_pid != life.pid else "")


def _names(life):
    """What it was, one after the other. The name that it only had from its parent's fork is left out."""
    return [_name(s) for s in life.segments if not s.born]


def _name(segment):
    return "(name not read)" if segment.name == UNREAD else _plain(segment.name)


def _plain(text):
    """The text on one line, without control characters."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def _ended(life):
    if life.end is None:
        return "runs on"
    return {None: "ended", 0: "status 0"}.get(life.code, ending(life.code).removeprefix("ends with "))


def _adopters(life, rows):
    by_number = {row.process: row for row in rows}
    return [(ms, _pids(by_number[parent]) if parent in by_number else "?") for ms, parent in life.adopted]


def _text(film, rows):
    table = []
    for life in rows:
        lines = "".join("   " if last else "│  " for last in life.branch[1:-1])
        lines += ("└─ " if life.branch[-1] else "├─ ") if len(life.branch) > 1 else ""
        said = [" → ".join(shorten(name, 60) for name in _names(life)), _ended(life)]
        said += [f"adopted by PID {who} at {ms:.1f} ms" for ms, who in _adopters(life, rows)]
        start = "before" if life.start is None else f"{life.start:.1f}"
        end = "" if life.end is None else f"{life.end:.1f}"
        table.append((lines + _pids(life), start, end, " · ".join(said)))
    head = ("PID", "from ms", "to ms", "what it was, and how it ended")
    widths = [max(len(row[column]) for row in [head, *table]) for column in range(3)]
    shown = [
        f"{pid:<{widths[0]}}  {start:>{widths[1]}}  {end:>{widths[2]}}  {said}".rstrip()
        for pid, start, end, said in [head, *table]
    ]
    return "\n".join([*shown, f"The command returned after {film.returned:.1f} ms. Recorded by {film.source}."])


# The drawing: every box and every line at a place of its own (points, y downwards); neato only paints them.


def _drawing(film, rows, caption):
    shown, span = rows[:MOST], _end(film)

    def x(ms):
        return LEFT + TRACK * ms / span

    bottom = ROW * len(shown) + 4
    ys = {life.process: ROW * position + ROW / 2 for position, life in enumerate(shown)}
    lines, boxes = _axis(film, span, bottom, x)
    for life in shown:
        y = ys[life.process]
        if life.start is not None and life.parent in ys:
            lines.append(_line(x(life.start), ys[life.parent], x(life.start), y, 'color="#888888", penwidth=1'))
        boxes += _row(life, shown, y, x)
    if len(rows) > len(shown):
        boxes.append(_words(0, bottom + 8, LEFT + TRACK, f"and {len(rows) - len(shown)} more processes", "#555555"))
    boxes.append(_words(0, -8, 60, "PID", "#555555"))
    boxes.append(_words(LEFT + TRACK + 6, -8, RIGHT - 6, "how it ended", "#555555"))
    boxes += _legend(shown, bottom + 40, film)
    layout = {"inputscale": "72", "splines": "line", "outputorder": "edgesfirst", "overlap": "true"}
    return digraph(caption, list(_numbered(lines, boxes)), **layout)


def _axis(film, span, bottom, x):
    """Lines at round numbers of ms, and the one where the command returned."""
    lines, boxes = [], []
    step = next(s for e in range(-2, 9) for s in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if span / s <= 7)
    for count in range(int(span / step) + 1):
        ms = count * step
        lines.append(_line(x(ms), 0, x(ms), bottom, 'color="#E4E4E4", penwidth=1'))
        if x(ms) < LEFT + TRACK - 16:  # else it would touch the words on the right
            boxes.append(_words(x(ms) - 30, -8, 60, f"{ms:g}" + (" ms" if count == 0 else ""), "#555555", align="n"))
    at = x(film.returned)
    lines.append(_line(at, 0, at, bottom + 8, 'color="#333333", penwidth=1.2, style=dashed'))
    label = f"the command returned: {film.returned:.1f} ms"
    boxes.append(_words(min(at - 100, LEFT + TRACK + RIGHT - 200), bottom + 16, 200, label, "#333333", align="n"))
    return lines, boxes


def _row(life, rows, y, x):
    indent = 11 * (len(life.branch) - 1)
    boxes = [_words(indent, y, LEFT - indent - 4, _pids(life), "#222222", bold=True)]
    homeless = []  # names for which their segment is too narrow
    for segment in life.segments:
        left, right = x(segment.start), x(segment.end)
        room = int((right - left - 6) / (SMALL * 0.6))
        name = _name(segment)
        fits = room >= min(len(name), 12)
        label = shorten(name, room) if fits and not segment.born else ""
        if segment.role == "plain" and segment.born:
            label = name if room >= len(name) else ""
        if not label and not segment.born:
            homeless.append(shorten(name, 24))
        boxes.append(_box(left, y, right - left, BAR, label, COLOURS[segment.role], FILLS[segment.role]))
    for ms, _ in life.adopted:
        boxes.append(_box(x(ms) - 5, y, 10, 10, "", COLOURS["change"], "#ffffff", "shape=diamond, penwidth=2"))
    said = [(", ".join(homeless), "#222222")] if homeless else []
    before = bool(homeless) and label != ""  # what it was earlier stands on the left
    said += [(f"◇ adopted by PID {who}", "#A84300") for _, who in _adopters(life, rows)]
    boxes += _aside(life, said, y, x, before)
    colour = "#A84300" if life.code else "#222222"
    if life.start is not None or life.end is not None:
        ended = "→ runs on" if life.end is None else _ended(life).removeprefix("is ")
        boxes.append(_words(LEFT + TRACK + 6, y, RIGHT - 6, ended, colour))
    return boxes


def _aside(life, said, y, x, before):
    """Words beside the bar, on the left first if `before`; those for which neither side has room are left out."""
    boxes = []
    start, end = x(life.segments[0].start), x(life.segments[-1].end)
    for words, colour in said:
        width = len(words) * SMALL * 0.62 + 4
        left, right = start - width - 4 >= LEFT, end + width + 4 <= LEFT + TRACK
        if left and (before or not right):
            boxes.append(_words(start - width - 4, y, width, words, colour, align="r"))
            start -= width + 8
        elif right:
            boxes.append(_words(end + 4, y, width, words, colour))
            end += width + 8
    return boxes


def _legend(rows, y, film):
    parts = {s.role for life in rows for s in life.segments}
    at, boxes = LEFT, []
    for part in [p for p in COLOURS if p in parts and p != "plain"]:
        boxes += [_box(at, y, 12, 10, "", COLOURS[part], FILLS[part]), _words(at + 16, y, 70, part, "#333333")]
        at += 86
    if any(life.adopted for life in rows):
        boxes.append(_box(at + 1, y, 10, 10, "", COLOURS["change"], "#ffffff", "shape=diamond, penwidth=2"))
        boxes.append(_words(at + 16, y, 150, "another process adopts it", "#333333"))
    boxes.append(_words(LEFT, y + (16 if boxes else 0), TRACK + RIGHT, f"Recorded by {film.source}.", "#555555"))
    return boxes


def _box(left, y, width, height, label, colour, fill, more='shape=box, style="filled"'):
    """The attributes of one node, by the middle of its left edge."""
    width = max(width, 1.5)
    return (
        f'label=<{escape(label)}>, pos="{left + width / 2:.1f},{-y:.1f}!", width={width / 72:.4f}, '
        f"height={height / 72:.4f}, fixedsize=true, color={quote(colour)}, fillcolor={quote(fill)}, "
        f'fontsize={SMALL}, fontcolor="#222222", margin=0, {more}'
    )


def _words(left, y, width, words, colour, *, bold=False, align="l"):
    """The attributes of a node that is only text; `align` is l, r or n (in the middle). Lines pass behind it."""
    label = quote(_plain(words))[1:-1]
    return (
        f'label="{label}\\{align}", pos="{left + width / 2:.1f},{-y:.1f}!", width={width / 72:.4f}, '
        f"height=0.18, fixedsize=true, shape=box, style=filled, penwidth=0, margin=0, fillcolor=\"#ffffff\", "
        f'fontsize={SMALL}, fontcolor={quote(colour)}, fontname="{FONT}{" bold" if bold else ""}"'
    )


def _line(x1, y1, x2, y2, look):
    """The attributes of the two ends, and of the line between them."""
    invisible = 'label="", shape=none, style="", width=0, height=0'
    return *(f'{invisible}, pos="{x:.1f},{-y:.1f}!"' for x, y in ((x1, y1), (x2, y2))), look


def _numbered(lines, boxes):
    """Dot statements for lines and boxes, each node with a name of its own."""
    for number, (one, two, look) in enumerate(lines):
        yield f"a{number} [{one}]; b{number} [{two}]; a{number} -> b{number} [{look}];"
    for number, box in enumerate(boxes):
        yield f"n{number} [{box}];"
