"""What leads across the lessons, made from the lessons themselves: `./lab index` writes it.

Two pages, and in each lesson the line "previous: ... | next: ...". The glossary, notebooks/GLOSSARY.md, is
written by hand; tests/test_index.py looks after it.
"""

import json
import re
from itertools import groupby

from helpers import course

MADE = "*Made from the lessons by `./lab index`: change the lesson, not this page.*"


def pages(lessons):
    """{file name in notebooks/: text} of the pages that are made from these `course.Lesson`s."""
    return {"WHAT-YOU-CAN-SEE.md": facts(lessons), "QUESTIONS.md": questions(lessons)}


def facts(lessons):
    """What the lessons show, as claims that they test: one row for each cell that shows a fact of the course's list."""
    lines = [
        "# What you can see for yourself", "",
        "Each line below is tested, on your machine, in the place where its lesson says it. The marks, such as S1, "
        "are the numbers of the facts that this course promises to show; the cells that show them carry the same "
        "marks as tags.", "", MADE,
    ]  # fmt: skip
    for lesson in lessons:
        shown = [claim for claim in lesson.claims if claim.facts]
        if not shown:
            continue
        lines += ["", f"## [{lesson.name}]({lesson.name}.ipynb): {lesson.question}", "", "| you can see that | fact |",
                  "|---|---|"]  # fmt: skip
        for section, claims in groupby(shown, key=lambda claim: claim.section):
            lines.append(f"| **{cell(section)}** | |")
            for marks, together in groupby(claims, key=lambda claim: claim.facts):
                lines.append(f"| {'; '.join(cell(claim.words) for claim in together)} | {' '.join(marks)} |")
    return "\n".join(lines) + "\n"


def questions(lessons):
    """The questions that people ask, with the answers that the lessons give and show."""
    lines = [
        "# Questions people ask", "",
        "The confusions that readers of this subject have. The answer stands here in short; the lesson shows it, "
        "in its section of this name.", "", MADE,
    ]  # fmt: skip
    for lesson in lessons:
        lines += ["", f"## [{lesson.name}]({lesson.name}.ipynb): {lesson.question}"]
        lines += [f"\n**{question}** {short(answer)}".rstrip() for question, answer in lesson.asked]
    return "\n".join(lines) + "\n"


def short(answer):
    """An answer without the sentence that leads over to the lesson's own cell."""
    return re.sub(r"(^|(?<=[.?!)]) )[^.?!]*:$", "", " ".join(answer.split())).strip()


def cell(text):
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def navigation(lessons, position, old=""):
    """The line that leads from the lesson at this position to those beside it.

    Its `old` line keeps its link to a next lesson that is still to be written.
    """
    parts = [f"previous: {link(lessons[position - 1])}"] if position else []
    planned = re.search(r"next: \[.*", old)
    if position + 1 < len(lessons):
        parts.append(f"next: {link(lessons[position + 1])}")
    elif planned and not any(f"({lesson.name}.ipynb)" in planned[0] for lesson in lessons):
        parts.append(planned[0])
    return " | ".join(parts)


def link(lesson):
    """`[00 What can this machine show me?](00-start-here.ipynb)`: the first half of a question in two halves."""
    return f"[{lesson.name[:2]} {lesson.question.split(', and ')[0].rstrip('?')}?]({lesson.name}.ipynb)"


def line_of(path):
    """The line in a lesson that leads to those beside it."""
    sources = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    lines = [line for source in sources for line in source.splitlines()]
    return next((line for line in reversed(lines) if re.match(r"(previous|next): \[", line)), "")


def write(place=course.LESSONS):
    """Write the pages and the lines, and return the names of the files that have changed."""
    lessons, changed = course.lessons(place), []
    texts = pages(lessons)
    for position, lesson in enumerate(lessons):
        name = f"{lesson.name}.ipynb"
        old = line_of(place / name)
        # In the file a line is part of a JSON text. Nothing else in it changes.
        was, now = (json.dumps(line, ensure_ascii=False)[1:-1] for line in (old, navigation(lessons, position, old)))
        texts[name] = (place / name).read_text().replace(was, now) if was else (place / name).read_text()
    for name, text in texts.items():
        path = place / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            changed.append(name)
    return changed
