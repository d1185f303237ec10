"""Bars: a few measured numbers beside each other, each as long as it is large."""

from helpers.pictures.base import COLOURS, FILLS, Picture, digraph, escape

LONGEST = 420  # points, for the largest number
BESIDE = 100  # points, for a number beside its bar
BLOCKS = 40  # characters, likewise, in the text twin


def bars(rows, caption, unit=""):
    """A picture of `rows`: (name, number, role), where role is a key of base.COLOURS. The order is kept.

    Raises ValueError when there is nothing to draw, or a number is negative.
    """
    rows = [(name, number, role) for name, number, role in rows]
    if not rows or min(number for _, number, _ in rows) < 0:
        raise ValueError("bars need at least one number, and none below zero")
    largest = max(number for _, number, _ in rows) or 1
    return Picture(caption, digraph(caption, [f"bars [shape=plain, style=\"\", label={table(rows, largest, unit)}]"]),
                   text(rows, largest, unit))  # fmt: skip


def table(rows, largest, unit):
    """The graphviz HTML label: one row a bar."""
    lines = []
    for name, number, role in rows:
        width = max(2, round(LONGEST * number / largest))
        # All widths are fixed and add up to the same: else graphviz stretches the cells of short bars.
        bar = f'<td border="1" color="{COLOURS[role]}" bgcolor="{FILLS[role]}" {fixed(width)}></td>'
        beside = f'<td align="left" {fixed(LONGEST + BESIDE - width)}>&nbsp;{escape(figure(number, unit))}</td>'
        inner = f'<table border="0" cellborder="0" cellspacing="0" cellpadding="0"><tr>{bar}{beside}</tr></table>'
        lines.append(f'<tr><td align="right">{escape(name)}&nbsp;</td><td>{inner}</td></tr>')
    return f'<<table border="0" cellborder="0" cellspacing="4" cellpadding="2">{"".join(lines)}</table>>'


def fixed(width):
    return f'width="{width}" height="20" fixedsize="true"'


def text(rows, largest, unit):
    """The text twin: blocks instead of bars."""
    wide = max(len(name) for name, _, _ in rows)
    return "\n".join(
        f"{name.rjust(wide)}  {'█' * max(1, round(BLOCKS * number / largest))} {figure(number, unit)}"
        for name, number, _ in rows
    )


def figure(number, unit):
    """`1,330 ms`: whole, but for numbers below ten."""
    return f"{number:,.1f} {unit}".strip() if number < 10 else f"{number:,.0f} {unit}".strip()
