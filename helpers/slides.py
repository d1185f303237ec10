"""Slides from a lesson: one HTML file that needs no network, worked by the keyboard. `./lab slides [NAME]`.

Each text of the lesson begins a slide; the cells after it that show something are its steps. What the lesson's set-up,
exercises and clean-up need is left out: an audience watches. Without JavaScript, and on paper, all slides stand one
below the other.
"""

import html
import re
from pathlib import Path

import nbformat

from helpers import reading

CHECKOUT = Path(__file__).resolve().parent.parent
PLACE = CHECKOUT / ".lab" / "slides"
LEFT_OUT = ("## Set-up", "## Clean up", "## Read on", "## Exercises")
MOST = 2  # code cells on a slide

STYLE = """
body { font-size: 24px } main { max-width: none; padding: 0 }
.slide { box-sizing: border-box; min-height: 100vh; padding: 3vh 6vw 9vh; border-bottom: 1px solid var(--line) }
.slide > * { max-width: 66rem; margin-left: auto; margin-right: auto } .slide h1 { font-size: 1.7em; margin: .3em 0 }
.slide h2 { font-size: .85em; font-weight: normal; color: var(--soft); margin: 0 } .slide p { margin: .5em 0 }
.slide { scroll-padding-bottom: 4rem } .slide pre { font-size: 19px; line-height: 1.3 }
.slide pre code { font-size: 1em }
.slide blockquote { margin: .5em 0 } .output pre { max-height: 46vh; overflow: auto }
.slide img { max-height: 58vh; max-width: 100%; width: auto; display: block }
details { font-size: .7em } .wide { font-size: .8em } .speaker { display: none }
nav { position: fixed; right: 0; bottom: 0; display: flex; gap: .6rem; align-items: center; font-size: 17px;
  background: var(--page); padding: .3rem .8rem; border-top: 1px solid var(--line) }
nav button { font: inherit; color: inherit; background: transparent; border: 1px solid var(--soft); border-radius: 4px;
  padding: .1rem .7rem; cursor: pointer } :focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
.paged .slide { display: none; border: 0; height: 100vh; overflow: auto } .paged .slide.now { display: block }
.paged .later { visibility: hidden } .noted .speaker { display: block; color: var(--soft); font-size: .75em }
nav { visibility: hidden } .paged nav { visibility: visible }
@media print { .slide { display: block !important; height: auto !important; min-height: 0; break-after: page }
  .later { visibility: visible !important } nav { display: none } }
"""

SCRIPT = """
const slides = [...document.querySelectorAll(".slide")], place = document.getElementById("place")
let at = 0, step = 0
const steps = slide => [...slide.querySelectorAll(":scope > .step")]
function show(slide, shown) {
  at = Math.max(0, Math.min(slides.length - 1, slide))
  const all = steps(slides[at])
  step = Math.max(0, Math.min(all.length, shown))
  slides.forEach((one, n) => one.classList.toggle("now", n === at))
  all.forEach((one, n) => one.classList.toggle("later", n >= step))
  if (step) all[step - 1].scrollIntoView({ block: "nearest" }); else slides[at].scrollTop = 0
  place.textContent = `Slide ${at + 1} of ${slides.length}` + (all.length ? `, step ${step} of ${all.length}` : "")
  history.replaceState(null, "", "#" + (at + 1) + (step ? "." + step : ""))
}
const next = () => step < steps(slides[at]).length ? show(at, step + 1) : at + 1 < slides.length && show(at + 1, 0)
const back = () => step ? show(at, step - 1) : at && show(at - 1, Infinity)
const deeds = { ArrowRight: next, PageDown: next, " ": next, ArrowLeft: back, PageUp: back,
  Home: () => show(0, 0), End: () => show(slides.length - 1, Infinity),
  n: () => document.body.classList.toggle("noted"), f: () => document.documentElement.requestFullscreen() }
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || !deeds[event.key]) return
  if (event.key === " " && event.target.closest("button, summary")) return
  event.preventDefault()
  deeds[event.key]()
})
document.getElementById("next").addEventListener("click", next)
document.getElementById("back").addEventListener("click", back)
document.body.classList.add("paged")
const [first, second] = location.hash.slice(1).split(".").map(Number)
show((first || 1) - 1, second || 0)
"""


def parts(notebook):
    """The lesson as slides: (heading, cells). A text begins a slide, and so does a code cell after `MOST` of them."""
    found, wanted, heading = [], True, ""
    for cell in notebook.cells:
        named = cell.cell_type == "markdown" and re.match(r"#{1,2} .*", cell.source)
        if named:
            heading, wanted = named[0], not named[0].startswith(LEFT_OUT)
        if not wanted or {"setup", "cleanup"} & set(cell.metadata.get("tags", [])) or not shown(cell):
            continue
        codes = [one for one in found[-1][1] if one.cell_type == "code"] if found else []
        if cell.cell_type == "markdown" or not found or found[-1][0] != heading or len(codes) == MOST:
            found.append((heading, []))
        found[-1][1].append(cell)
    return found


def slide(heading, cells, place, again):
    """One slide: its heading and text stand, and every code cell is a step. `again`: a smaller heading."""
    words = reading.markdown(re.sub("^#+", "##" if again else "#", heading), place)
    body = [f'<div class="{"again" if again else "first"}">{words}</div>']
    for one in cells:
        if one.cell_type == "markdown":
            text = one.source.removeprefix(heading).strip()
            body.append(f'<section class="text">{reading.markdown(brief(text), place)}</section>' if text else "")
        else:
            body.append(f'<div class="step">{reading.cell(one, place)}</div>')
    return f'<section class="slide" tabindex="0">{"".join(body)}</section>'


def brief(text):
    """What of a text stands on a slide: its pictures, lists, predictions, and the first paragraph of what is left."""
    kept, told = [], False
    for block in re.split(r"\n\s*\n", text.strip()):
        if block.startswith(("!", "- ", ">", "|", "**")):
            kept.append(block)
        elif not told:
            kept.append(block)
            told = True
        else:
            kept.append(f'<p class="speaker">{html.escape(block)}</p>')
    return "\n\n".join(kept)


def shown(cell):
    """Code that shows nothing is for the notebook; texts stand."""
    return cell.cell_type == "markdown" or bool(cell.outputs)


def page(path):
    """The slides of one lesson, as a page."""
    path = Path(path)
    notebook = nbformat.read(path, as_version=4)
    made, before = [], ""
    for heading, cells in parts(notebook):
        made.append(slide(heading, cells, path.parent, heading == before))
        before = heading
    slides = "\n".join(made)
    title = html.escape(notebook.cells[0].source.splitlines()[0].removeprefix("# "))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>{reading.colours("auto")}{reading.STYLE}{STYLE}</style></head>
<body><main>{slides}</main>
<nav aria-label="Slides"><span id="place" role="status"></span><button id="back">Back</button>
<button id="next">Next</button></nav>
<script>{SCRIPT}</script></body></html>
"""


def write(path):
    """Write the slides of a lesson to `.lab/slides` and return the path."""
    PLACE.mkdir(parents=True, exist_ok=True)
    made = PLACE / f"{Path(path).stem}.html"
    made.write_text(page(path))
    return made
