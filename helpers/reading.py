"""A lesson as one HTML page that needs no JavaScript and no network: for reading, and what the slides are made from.

    reading.page("notebooks/01-runc.ipynb", "dark")

See also: nbconvert.exporters.HTMLExporter.
"""

import base64
import html
import mimetypes
import re
from pathlib import Path

import nbformat

PICTURE = re.compile(r'(<img\b[^>]*?\bsrc=")([^":]+)(")')
LIGHT = {"text": "#1b1b1b", "page": "#ffffff", "soft": "#555555", "line": "#c9c9c9", "code": "#f4f4f4",
         "link": "#005a9c", "quote": "#eef5fb"}  # fmt: skip
DARK = {"text": "#e8e8e8", "page": "#161616", "soft": "#b5b5b5", "line": "#4a4a4a", "code": "#222222",
        "link": "#7cc4ff", "quote": "#1c2833"}  # fmt: skip
STYLE = """
body { font: 17px/1.55 system-ui, "DejaVu Sans", sans-serif; color: var(--text); background: var(--page); margin: 0 }
main { max-width: 54rem; margin: 0 auto; padding: 1rem 1.2rem 4rem }
a { color: var(--link) } h1, h2, h3 { line-height: 1.25 } h2 { margin-top: 2.2rem }
pre, code, kbd { font-family: "DejaVu Sans Mono", monospace; font-size: .86em }
pre { background: var(--code); padding: .6rem .8rem; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: .6rem 0 }
.output pre { background: transparent; border-left: 3px solid var(--line); border-radius: 0 }
.words { color: var(--soft) }
blockquote { margin: 1rem 0; padding: .3rem 1rem; background: var(--quote); border-left: 4px solid var(--link) }
img { max-width: 100%; background: #fff; border-radius: 4px } table { border-collapse: collapse }
th, td { border: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top }
.wide { overflow-x: auto }
"""


def colours(theme):
    """The style rules of a theme: light, dark, or auto (as the reader's system has it)."""

    def variables(named):
        return "".join(f"--{name}: {value}; " for name, value in named.items())

    rules = f":root {{ color-scheme: light dark; {variables(DARK if theme == 'dark' else LIGHT)} }}"
    if theme == "auto":
        rules += f" @media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}"
    return rules


def page(path, theme="light"):
    """The whole lesson as a page."""
    path = Path(path)
    notebook = nbformat.read(path, as_version=4)
    title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
    body = "\n".join(cell(one, path.parent) for one in notebook.cells)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{colours(theme)}{STYLE}</style></head>
<body><main>
{body}
</main></body></html>
"""


def cell(one, place):
    """One cell as HTML. `place` is the directory that relative pictures start from."""
    if one.cell_type == "markdown":
        return f'<section class="text">{markdown(one.source, place)}</section>'
    shown, outputs = "", list(one.outputs)
    while outputs:
        first, twin = outputs.pop(0), ""
        if "image/png" in first.get("data", {}) and outputs and outputs[0].output_type == "stream":
            twin = outputs.pop(0).text  # what is printed beside a picture says it in words
        shown += output(first, twin)
    return f'<section class="code"><pre tabindex="0"><code>{html.escape(one.source)}</code></pre>{shown}</section>'


def markdown(text, place):
    """Markdown as HTML, with the pictures it names inside it."""
    from nbconvert.filters import markdown2html

    return PICTURE.sub(lambda found: found[1] + inlined(place / found[2]) + found[3], plain(markdown2html(text)))


def plain(text):
    """Without the anchors that nbconvert adds to headings: a sign without words."""
    return re.sub(r'<a class="anchor-link"[^>]*>.*?</a>', "", text)


def inlined(path):
    """A picture file as a data: address."""
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def output(one, twin=""):
    """One output of a cell, as HTML: what it printed, its picture with the `twin` in words, its table or its text."""
    if one.output_type == "stream":
        return f'<div class="output"><pre tabindex="0">{html.escape(one.text)}</pre></div>'
    if one.output_type == "error":
        return f'<div class="output"><pre tabindex="0">{html.escape(f"{one.ename}: {one.evalue}")}</pre></div>'
    data, twin = one.data, html.escape(twin or one.data.get("text/plain", ""))
    if "image/png" in data:
        words = html.escape(one.metadata.get("image/png", {}).get("alt", ""), quote=True)
        image = f'<img alt="{words}" src="data:image/png;base64,{"".join(data["image/png"].split())}">'
        told = f"<details><summary>The picture in words</summary><pre tabindex=\"0\">{twin}</pre></details>"
        return f'<div class="output">{image}{told}</div>'
    if "text/html" in data:
        return f'<div class="output wide" tabindex="0">{data["text/html"]}</div>'
    return f'<div class="output"><pre tabindex="0">{twin}</pre></div>'
