"""What all pictures share: colours, the text twin, and how a picture shows itself in a notebook.

A picture is made from records and never reads the machine, so that it can be tested on made-up ones.
"""

import html
import io
import struct
import textwrap
from dataclasses import dataclass

import graphviz
from PIL import Image

# Okabe-Ito, told apart with any colour vision; each role is also named in words.
COLOURS = {
    "manager": "#0072B2",
    "shim": "#E69F00",
    "runtime": "#009E73",
    "container": "#CC79A7",
    "change": "#D55E00",
    "plain": "#555555",
}
FILLS = {
    "manager": "#DCEBF5",
    "shim": "#FBECCC",
    "runtime": "#D6F0E7",
    "container": "#F7E3EE",
    "change": "#FBE3D3",
    "plain": "#F4F4F4",
}
FONT = "DejaVu Sans"
RESOLUTION = 144  # dots an inch in the PNG; it is shown at half size, so that it is sharp on fine screens
WIDEST = 900  # CSS pixels; wider pictures are shown smaller


@dataclass(frozen=True)
class Picture:
    """A drawing: `dot` for graphviz, `text` as its twin for terminals and screen readers, `caption` its point.

    `colours` is how many the PNG has at most.
    """

    caption: str
    dot: str
    text: str
    engine: str = "dot"
    colours: int = 64

    def png(self):
        """The drawing as PNG bytes. Raises LookupError when graphviz is not installed."""
        try:
            source = graphviz.Source(self.dot, engine=self.engine)
            return smaller(source.pipe("png", quiet=True), self.colours)
        except graphviz.ExecutableNotFound:
            raise LookupError("`dot` is missing: install the package graphviz to see pictures") from None

    def bundle(self):
        """(data, metadata) for a notebook: the PNG with its caption as alternative text, and the text twin."""
        try:
            png = self.png()
        except LookupError as error:
            return {"text/plain": f"({error})\n{self}"}, {}
        width, height = struct.unpack(">II", png[16:24])
        shown = min(width * 72 // RESOLUTION * 4 // 3, WIDEST)
        return {"image/png": png, "text/plain": str(self)}, {"image/png": {"alt": self.caption, "width": shown}}

    def _ipython_display_(self):
        # The text follows the drawing as an output of its own: a page on GitHub shows one form of an output only.
        from IPython.display import display

        data, metadata = self.bundle()
        if "image/png" in data:
            display(data, metadata=metadata, raw=True)
            print(self.text)  # the drawing carries the caption
        else:
            print(self)

    def __str__(self):
        return f"{self.caption}\n{self.text}"


def smaller(png, colours=64):
    """The same PNG with few colours: a third of the bytes, and the notebooks carry many."""
    drawing, packed = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    drawing.quantize(colours, dither=Image.Dither.NONE).save(packed, "png", optimize=True)
    return packed.getvalue()


def escape(text):
    """Text for a graphviz HTML label: no markup from outside gets through, nor a control character."""
    return html.escape("".join(c if c.isprintable() else "?" for c in str(text)))


def shorten(text, longest):
    """At most `longest` characters, with an ellipsis where something was cut."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def digraph(caption, body, **options):
    """A whole dot file with the project's look. `body` is a list of lines; the caption goes below the drawing."""
    settings = {
        "bgcolor": "#ffffff", "fontname": FONT, "fontsize": "12", "dpi": str(RESOLUTION), "pad": "0.2",
        "nodesep": "0.3", "ranksep": "0.4", "labelloc": "b", **options,
    }  # fmt: skip
    label = "<br/>".join(escape(line) for line in textwrap.wrap(caption, 95))  # a longer line widens the drawing
    label = f'<font point-size="10"><br/></font>{label}' if label else ""  # graphviz puts it close under the drawing
    head = "\n".join(f"  {name}={quote(value)};" for name, value in settings.items())
    return (
        f"digraph picture {{\n{head}\n  label=<{label}>;\n"
        f'  node [shape=box, style="rounded,filled", fontname="{FONT}", fontsize=11, height=0.45, penwidth=1.2];\n'
        f'  edge [arrowhead=none, fontname="{FONT}", fontsize=10, color="#777777", penwidth=1.2];\n'
        + "\n".join("  " + line for line in body)
        + "\n}\n"
    )


def quote(value):
    """A dot string."""
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
