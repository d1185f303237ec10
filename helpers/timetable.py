"""How long the lessons take: reading counted from their text, running measured. Makes the tables of INSTRUCTOR.md.

    python -m helpers.timetable          write the tables anew, with the running times that stand there
    python -m helpers.timetable --run [NAME]   run every lesson first, or those named, and measure
"""

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat

CHECKOUT = Path(__file__).resolve().parent.parent
GUIDE = CHECKOUT / "notebooks" / "INSTRUCTOR.md"
WORDS = 170  # read in a minute: technical prose, in a room, by people whose first language is another one
PREDICTION = 0.5  # minutes for one "Predict": to say it, and to hear the neighbour's
CELL = 0.4  # minutes for a code cell: to read it, to run it, to look
EXERCISE = 6.0  # minutes for an exercise, of which half the room needs all
BREAK, LUNCH, QUESTIONS = "break", "lunch", "questions, and what to read on"
PLANS = {
    "half-day": ("9:00", ["00-start-here", "01-runc", BREAK, "02-namespaces", QUESTIONS]),
    "full-day": ("9:00", ["00-start-here", "01-runc", BREAK, "02-namespaces", LUNCH, "04-shim", "05-attach-vs-exec",
                          BREAK, "06-pods", QUESTIONS]),
    "second-day": ("9:00", ["03-no-image", BREAK, "07-not-a-process", LUNCH, "08-manager", QUESTIONS]),
}  # fmt: skip
PAUSES = {BREAK: 15, LUNCH: 60, QUESTIONS: 15}


@dataclass(frozen=True)
class Section:
    """One section of a lesson, with what takes time in it."""

    heading: str
    words: int
    predictions: int
    cells: int
    exercises: int

    @property
    def minutes(self):
        return (self.words / WORDS + self.predictions * PREDICTION + self.cells * CELL + self.exercises * EXERCISE)


def sections(notebook):
    """The sections of a lesson, its opening first."""
    found = [["the opening", "", []]]
    for cell in notebook.cells:
        heading = re.match(r"## (.*)", cell.source) if cell.cell_type == "markdown" else None
        if heading:
            found.append([heading[1], "", []])
        if cell.cell_type == "markdown":
            found[-1][1] += cell.source + "\n"
        else:
            found[-1][2].append(cell)
    return [
        Section(
            heading, len(text.split()), text.count("**Predict.**"), len(cells),
            sum(tag.startswith("exercise:") for cell in cells for tag in cell.metadata.get("tags", [])),
        )
        for heading, text, cells in found
    ]  # fmt: skip


def lessons():
    """{name: sections} of every lesson that is written."""
    paths = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
    return {path.stem: sections(nbformat.read(path, as_version=4)) for path in paths}


def measured(names=()):
    """(name, seconds) of each lesson whose name begins with one of `names`, of all without: run once from top to
    bottom, in a fresh kernel on this machine. A lesson that fails is named, and left out.
    """
    from helpers import rendering

    for path in sorted((CHECKOUT / "notebooks").glob("*.ipynb")):
        if names and not path.name.startswith(tuple(names)):
            continue
        began = time.monotonic()
        try:
            rendering.execute(path)
        except rendering.RenderError as error:
            print(f"lab: {error}", file=sys.stderr)
            continue
        yield path.stem, round(time.monotonic() - began)


def known(text):
    """{name: seconds} as the table in the guide has them."""
    return {name: int(seconds) for name, seconds in re.findall(r"^\| \[(\S+)\].*\| (\d+) s \|", text, re.M)}


def five(minutes):
    """A time as people plan it: in steps of five minutes, up."""
    return -(-round(minutes) // 5) * 5


def total(parts):
    return sum(part.minutes for part in parts)


def looking(parts):
    """The minutes for a lesson without its exercises, as its first cell and the README say them."""
    return five(total(parts) - sum(part.exercises for part in parts) * EXERCISE)


def longest(parts):
    """The section that takes longest, the exercises apart."""
    return max((part for part in parts if not part.exercises), key=lambda part: part.minutes)


def timings(written, seconds):
    """The table of timings."""
    rows = [
        "| lesson | reading and looking | exercises | in all | longest section | its cells run for |",
        "|---|---|---|---|---|---|",
    ]
    for name, parts in written.items():
        work = sum(part.exercises for part in parts) * EXERCISE
        top = longest(parts)
        ran = f"{seconds[name]} s" if name in seconds else "not measured"
        rows.append(f"| [{name}]({name}.ipynb) | {looking(parts)} min | {five(work)} min | "
                    f"{five(total(parts))} min | {top.heading} ({round(top.minutes)} min) | {ran} |")  # fmt: skip
    return "\n".join(rows)


def plan(written, start, stops):
    """A plan of a day as a table. Lessons that are not written yet are left out."""
    rows, now = ["| from | to | what |", "|---|---|---|"], int(start.split(":")[0]) * 60 + int(start.split(":")[1])
    for stop in stops:
        if stop in PAUSES:
            takes, what = PAUSES[stop], stop
        elif stop in written:
            takes, what = five(total(written[stop])), f"[{stop}]({stop}.ipynb)"
        else:
            continue
        rows.append(f"| {clock(now)} | {clock(now + takes)} | {what} |")
        now += takes
    return "\n".join(rows)


def clock(minutes):
    return f"{minutes // 60}:{minutes % 60:02}"


def filled(text, seconds):
    """The guide with its generated parts made anew."""
    written = lessons()
    tables = {"timings": timings(written, seconds)}
    tables |= {name: plan(written, *wanted) for name, wanted in PLANS.items()}
    for name, table in tables.items():
        marks = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, count = re.subn(marks, lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text, flags=re.S)
        if count != 1:
            raise LookupError(f"{GUIDE.name} has no place for the table `{name}`")
    return text


def main(argv):
    seconds = known(GUIDE.read_text())
    for name, took in measured(argv[1:]) if argv[:1] == ["--run"] else ():
        seconds[name] = took
        GUIDE.write_text(filled(GUIDE.read_text(), seconds))  # after each: what is measured stays
    GUIDE.write_text(filled(GUIDE.read_text(), seconds))
    print(f"{GUIDE.relative_to(CHECKOUT)}: {len(lessons())} lessons")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
