"""Slides from a lesson: one HTML file that needs no network, worked by the keyboard. `./lab slides [NAME]`.

Each section of the lesson begins a slide; each cell that shows something is a step of it. What the lesson's set-up,
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
LONGEST = 14  # lines of code or output on a slide; the rest scrolls

STYLE = """
body { font-size: 24px } main { max-width: none; padding: 0 }
.slide { box-sizing: border-box; min-height: 100vh; padding: 3vh 6vw 9vh; border-bottom: 1px solid var(--line) }
.slide h1 { font-size: 2em } .slide h2 { margin-top: 0 } .slide > section, .slide > h2 { max-width: 62rem;
  margin-left: auto; margin-right: auto } .slide pre { font-size: 19px; line-height: 1.35 }
.output pre { max-height: 46vh; overflow: auto } .output img { max-height: 58vh; max-width: 100%; display: block }
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
    """The lesson as slides: lists of cells. A heading of the second level begins one, and so does its first cell."""
    found, wanted = [], True
    for cell in notebook.cells:
        heading = cell.cell_type == "markdown" and re.match(r"#{1,2} .*", cell.source)
        if heading:
            wanted = not heading[0].startswith(LEFT_OUT)
            if wanted:
                found.append([])
        if wanted and not {"setup", "cleanup"} & set(cell.metadata.get("tags", [])):
            found[-1].append(cell)
    return found


def slide(cells, place):
    """One slide: its heading and the first paragraph stand; every cell that follows is a step."""
    first, *others = cells
    heading, _, text = first.source.partition("\n")
    body = [reading.markdown(heading, place)]
    if text.strip():
        body.append(f'<section class="step">{reading.markdown(brief(text), place)}</section>')
    body += [f'<div class="step">{reading.cell(one, place)}</div>' for one in others if shown(one)]
    return f'<section class="slide">{"".join(body)}</section>'


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
    """Code that shows nothing is for the notebook; text between cells stands."""
    return cell.cell_type == "markdown" or bool(cell.outputs)


def page(path):
    """The slides of one lesson, as a page."""
    path = Path(path)
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and not cell.source.startswith("#"):
            cell.source = brief(cell.source)
    slides = "\n".join(slide(cells, path.parent) for cells in parts(notebook))
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
