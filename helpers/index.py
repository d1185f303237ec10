"""The pages that lead across the lessons, made from the lessons themselves: `./lab index` writes them.

The glossary, notebooks/GLOSSARY.md, is written by hand; tests/test_index.py looks after it.
"""

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


def write(place=course.LESSONS):
    """Write the pages, and return the names of those that have changed."""
    changed = []
    for name, text in pages(course.lessons(place)).items():
        path = place / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            changed.append(name)
    return changed
