"""The pages that lead across the lessons are as the lessons are, and every fact of the course's list has its place."""

import json
import re
from pathlib import Path

import pytest
from conftest import CHECKOUT
from test_structure import FACTS

from helpers import course, index
from helpers.course import Claim, Lesson

PLACE = CHECKOUT / "notebooks"
#: Where each fact is to be seen, by the course's design. A lesson that isn't written yet owes nothing yet.
DESIGN = {
    "01-runc": "S1-S4 S10 S11 C1-C4 C6 I5 I6",
    "02-namespaces": "P1 P2 P5 P16 C7 C8 C11 C13 I7 I8 A17",
    "03-no-image": "I1-I4 I9-I13",
    "04-shim": "S3-S9 S12 F1-F9 F12",
    "05-attach-vs-exec": "A1-A19 T1-T8",
    "06-pods": "P3 P4 P6-P15 P17-P23",
    "07-not-a-process": "C5 C9 C10 C12",
    "08-manager": "F10 F11 T8",
}
LESSONS = course.lessons()


def spread(ranges):
    """{"S1", "S2", "S3"} for "S1-S3"."""
    found = set()
    for word in ranges.split():
        kind, first, last = re.fullmatch(r"([A-Z])(\d+)(?:-[A-Z](\d+))?", word).groups()
        found |= {f"{kind}{number}" for number in range(int(first), int(last or first) + 1)}
    return found


def test_the_pages_are_as_the_lessons_are():
    for name, text in index.pages(LESSONS).items():
        assert (PLACE / name).read_text() == text, f"{name} is older than the lessons: ./lab index makes it anew"


def test_the_design_has_a_place_for_every_fact():
    assert set().union(*map(spread, DESIGN.values())) == set(FACTS)


@pytest.mark.parametrize("fact", FACTS)
def test_every_fact_is_shown_by_a_lesson_that_is_written_or_is_owed_by_one_that_is_not(fact):
    shown = [lesson.name for lesson in LESSONS for claim in lesson.claims if fact in claim.facts]
    written = {lesson.name for lesson in LESSONS}
    owed = [name for name, ranges in DESIGN.items() if name not in written and fact in spread(ranges)]
    assert shown or owed
    if shown:
        rows = [line for line in (PLACE / "WHAT-YOU-CAN-SEE.md").read_text().splitlines() if line.startswith("| ")]
        assert any(fact in row.rstrip(" |").rpartition("| ")[2].split() for row in rows)


def test_a_fact_stands_with_its_claims_below_its_lesson_and_section():
    lesson = Lesson("01-one", "One?", 10, (
        Claim("check", "a | b", "Why?", ("S1",)), Claim("check", "and …", "Why?", ("S1",)),
        Claim("check", "no fact", "Why?"), Claim("check", "other", "How?", ("S2", "C1")),
    ), ())  # fmt: skip
    assert index.facts([lesson]).split("## ")[1] == r"""[01-one](01-one.ipynb): One?

| you can see that | fact |
|---|---|
| **Why?** | |
| a \| b; and … | S1 |
| **How?** | |
| other | S2 C1 |
"""


def test_every_question_of_a_lesson_is_in_the_index_with_its_answer():
    page = (PLACE / "QUESTIONS.md").read_text()
    for lesson in LESSONS:
        asked = set(re.findall(r"\*\*([^*]+\?)\*\*", (PLACE / f"{lesson.name}.ipynb").read_text().replace("\\\"", '"')))
        assert len(lesson.asked) >= 3
        for question, answer in lesson.asked:
            assert question in asked
            assert f"**{question}** {index.short(answer)}" in page and index.short(answer)


def test_a_sentence_that_leads_over_to_a_cell_is_left_out():
    assert index.short("No. Three run now. Look for it:") == "No. Three run now."
    assert index.short("In files, one a container.") == "In files, one a container."


def test_each_lesson_leads_to_those_beside_it():
    for position, lesson in enumerate(LESSONS):
        line = index.line_of(PLACE / f"{lesson.name}.ipynb")
        assert line == index.navigation(LESSONS, position, line), f"{lesson.name}: ./lab index makes it anew"
        assert ("previous: [" in line) == (position > 0)
        assert "next: [" in line or lesson.name == list(DESIGN)[-1]


def test_the_command_writes_what_the_lessons_say_and_changes_nothing_the_second_time(tmp_path):
    for lesson in LESSONS:
        text = (PLACE / f"{lesson.name}.ipynb").read_text()
        (tmp_path / f"{lesson.name}.ipynb").write_text(text.replace("next: [", "next: [99 "))
    assert index.write(tmp_path)[:3] == ["WHAT-YOU-CAN-SEE.md", "QUESTIONS.md", f"{LESSONS[0].name}.ipynb"]
    assert index.write(tmp_path) == []
    for lesson in LESSONS[:-1]:
        path = f"{lesson.name}.ipynb"
        assert (tmp_path / path).read_text() == (PLACE / path).read_text()


# ---- the glossary


def glossary():
    """{term: (the words about it, its references, the lessons that it names)}."""
    found = {}
    for line in (PLACE / "GLOSSARY.md").read_text().splitlines():
        if entry := re.fullmatch(r"\*\*(.+?)\*\* (.+) \*(.+?)\* · (.+)", line):
            found[entry[1]] = (entry[2], entry[3], re.findall(r"\[(\d\d)\]\((\d\d[\w-]+)\.ipynb\)", entry[4]))
    return found


TERMS = glossary()


def test_every_paragraph_of_the_glossary_is_an_entry_and_they_are_in_order():
    text = (PLACE / "GLOSSARY.md").read_text()
    assert text.count("\n**") == len(TERMS) >= 40
    assert list(TERMS) == sorted(TERMS, key=str.casefold)


@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_explained_in_two_sentences_has_a_source_and_is_used_in_its_lessons(term):
    words, source, lessons = TERMS[term]
    assert 30 < len(words) < 300
    assert len(re.findall(r"[.?](?= |$)", re.sub(r"`[^`]*`", "", words))) <= 2
    assert re.search(r"\w\(\d\)|Spec|Docker|Podman|Kubernetes", source), "a man page, or a part of a specification"
    assert lessons
    for number, name in lessons:
        assert name.startswith(number)
        path = PLACE / f"{name}.ipynb"
        assert path.exists() or name in DESIGN
        if path.exists():
            said = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
            forms = "|".join(map(re.escape, term.split(", ")))
            assert re.search(rf"(?<![A-Za-z])({forms})", said, re.I), f"{name} doesn't speak of it"


@pytest.mark.parametrize("name", ["GLOSSARY.md", "WHAT-YOU-CAN-SEE.md", "QUESTIONS.md"])
def test_the_links_of_a_page_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", (PLACE / name).read_text()):
        if not target.startswith("https://"):
            assert (PLACE / target).exists() or Path(target).stem in DESIGN, target
