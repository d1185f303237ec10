"""Every lesson and solution has the anatomy of the course, so that a reader finds the same moves everywhere."""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
LESSONS = sorted(CHECKOUT.glob("notebooks/*.ipynb"))
SOLUTIONS = sorted(CHECKOUT.glob("notebooks/solutions/*.ipynb"))
EVERY = [*LESSONS, *SOLUTIONS]
#: Lessons that are planned: a link to one of these may lead nowhere yet.
PLANNED = {
    *("02-namespaces", "03-no-image", "04-shim", "05-attach-vs-exec", "06-pods", "07-not-a-process", "08-manager"),
}
CHECKS = {"check", "exercise", "expect_failure"}
FACTS = {
    **{f"A{n}": None for n in range(1, 20)},
    **{f"P{n}": None for n in range(1, 24)},
    **{f"C{n}": None for n in range(1, 14)},
    **{f"I{n}": None for n in range(1, 14)},
    **{f"S{n}": None for n in range(1, 13)},
    **{f"F{n}": None for n in range(1, 13)},
    **{f"T{n}": None for n in range(1, 9)},
}
#: The facts that each written lesson owes its readers.
OWED = {
    "01-runc": "S1 S2 S3 S4 S10 S11 C1 C2 C3 C4 C6 I5 I6",
    "02-namespaces": "P1 P2 P5 P16 C7 C8 C11 C13 I7 I8 A17",
    "03-no-image": "I1 I2 I3 I4 I9 I10 I11 I12 I13",
    "04-shim": "S5 S6 S7 S8 S9 S12 F1 F2 F3 F4 F5 F6 F7 F8 F9 F12 T1 T2 T3 T4 T5 T6 T7",
    "05-attach-vs-exec": "A1 A2 A3 A4 A5 A6 A7 A8 A9 A10 A11 A12 A13 A14 A15 A16 A18 A19",
    "06-pods": "P3 P4 P6 P7 P8 P9 P10 P11 P12 P13 P14 P15 P17 P18 P19 P20 P21 P22 P23",
    "07-not-a-process": "C5 C9 C10 C12",
    "08-manager": "F10 F11 T8",
}


def read(path):
    return nbformat.read(path, as_version=4)


def codes(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def tags(cell, prefix=""):
    return [tag for tag in cell.metadata.get("tags", []) if tag.startswith(prefix)]


def calls(source):
    """The names of the functions that are called in a cell."""
    nodes = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return {node.id if isinstance(node, ast.Name) else getattr(node, "attr", "") for node in nodes}


def by_name(path):
    return path.relative_to(CHECKOUT / "notebooks").as_posix()


each = pytest.mark.parametrize("path", EVERY, ids=by_name)
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=by_name)


def test_there_are_lessons_and_each_has_its_solutions():
    assert len(LESSONS) >= 2
    assert [path.name for path in LESSONS] == [path.name for path in SOLUTIONS]


@each
def test_the_file_is_a_valid_notebook_for_any_python3(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata, "widget state makes a page on GitHub fail"
    assert path.stat().st_size < 300_000
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


@each_lesson
def test_the_lesson_opens_with_its_question_and_what_it_needs(path):
    first = read(path).cells[0].source
    assert re.match(r"# .+\?\n", first)
    assert first.count("\n# ") == 0
    promised = first.split("**You will see**")[1]
    assert 1 <= len(re.findall(r"^- ", promised, re.M)) <= 3
    assert re.search(r"^Needs: .+ · about \d+ minutes$", first, re.M)


@each_lesson
def test_the_lesson_has_its_parts_in_the_order_of_the_design(path):
    headings = [line for text in texts(read(path)) for line in text.splitlines() if line.startswith("## ")]
    fixed = ["## Set-up", "## What we saw", "## Questions people ask", "## Exercises", "## Read on", "## Clean up"]
    assert [heading for heading in headings if heading in fixed] == fixed
    asked = headings[1 : headings.index("## What we saw")]
    assert len(asked) >= 3
    assert sum(heading.endswith("?") for heading in asked) >= len(asked) * 0.7, "most sections ask a question"


@each_lesson
def test_the_reader_predicts_before_most_sections(path):
    said = "\n".join(texts(read(path)))
    body = said.split("## What we saw")[0]
    assert body.count("**Predict.**") >= 0.6 * (body.count("\n## ") - 1)


@each_lesson
def test_the_set_up_comes_first_and_the_clean_up_last(path):
    cells = codes(read(path))
    assert [bool(tags(cell, "setup")) for cell in cells[:2]] == [True, True]
    assert {"start_lab", "preflight"} <= calls(cells[1].source)
    assert tags(cells[-1]) == ["cleanup"]
    assert {"close", "check"} <= calls(cells[-1].source)


@each
def test_cells_are_short(path):
    lines = [len(cell.source.splitlines()) for cell in codes(read(path)) if not tags(cell, "setup")]
    assert max(lines) <= 20
    assert statistics.median(lines) <= 5


@each_lesson
def test_there_is_more_prose_than_code(path):
    notebook = read(path)
    assert sum(map(len, texts(notebook))) > 0.8 * sum(len(cell.source) for cell in codes(notebook))


@each
def test_cells_hide_nothing_and_wait_for_nothing(path):
    for cell in codes(read(path)):
        for line in cell.source.splitlines():
            assert not re.match(r"\s*[!%]", line), f"a command that can fail and stay green: {line}"
            assert len(line) <= 100, f"too wide for a page: {line}"
        for node in ast.walk(ast.parse(cell.source)):
            assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*")
        assert "sleep" not in calls(cell.source), "wait for a condition, not for a time"
        assert "system" not in calls(cell.source) and "shell=True" not in cell.source


@each
def test_a_cell_with_a_fact_checks_it(path):
    for cell in codes(read(path)):
        for tag in tags(cell, "fact:"):
            assert tag.removeprefix("fact:") in FACTS
            assert "check" in calls(cell.source), f"{tag} is claimed and not checked"


@each
def test_a_check_can_fail(path):
    for cell in codes(read(path)):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check":
                assert len(node.args) == 2, "check(claim, condition)"
                assert not isinstance(node.args[1], ast.Constant), "a constant is not a condition"


@pytest.mark.parametrize("name", [name for name in OWED if (CHECKOUT / f"notebooks/{name}.ipynb").exists()])
def test_the_lesson_shows_the_facts_that_it_owes(name):
    shown = {tag.removeprefix("fact:") for cell in codes(read(CHECKOUT / f"notebooks/{name}.ipynb"))
             for tag in tags(cell, "fact:")}  # fmt: skip
    assert set(OWED[name].split()) <= shown


@each_lesson
def test_exercises_are_checked_and_solved_with_the_same_cell(path):
    asked = {tag: cell.source for cell in codes(read(path)) for tag in tags(cell, "exercise:")}
    solved = {tag: cell.source for cell in codes(read(path.parent / "solutions" / path.name))
              for tag in tags(cell, "exercise:")}  # fmt: skip
    assert 2 <= len(asked) <= 4
    assert asked == solved
    assert all("exercise" in calls(source) and "hint" in source for source in asked.values())
    places = [tag for cell in codes(read(path)) for tag in tags(cell, "work:")]
    assert places == [tag.replace("exercise:", "work:") for tag in asked]


@each_lesson
def test_every_question_that_people_ask_is_answered_by_a_cell(path):
    cells = read(path).cells
    first = next(n for n, cell in enumerate(cells) if "## Questions people ask" in cell.source)
    last = next(n for n, cell in enumerate(cells) if "## Exercises" in cell.source)
    asked = [n for n in range(first, last) if cells[n].cell_type == "markdown" and "?**" in cells[n].source]
    assert len(asked) >= 3
    assert all(cells[n + 1].cell_type == "code" for n in asked)


@each
def test_links_and_images_lead_somewhere_and_images_say_what_they_show(path):
    for text in texts(read(path)):
        for mark, words, target in re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", text):
            assert not (mark and len(words) < 30), f"the picture {target} needs words for those who don't see it"
            if not target.startswith("https://"):
                found = (path.parent / target).resolve()
                assert found.exists() or found.stem in PLANNED, f"{target} leads nowhere"


@each_lesson
def test_the_lessons_are_linked_in_reading_order(path):
    navigation = next(line for text in texts(read(path)) for line in text.splitlines() if "next: [" in line)
    number = LESSONS.index(path)
    if number:
        assert f"({LESSONS[number - 1].name})" in navigation.split("next:")[0]
    if number + 1 < len(LESSONS):
        assert f"({LESSONS[number + 1].name})" in navigation.split("next:")[1]


@each
def test_the_committed_outputs_come_from_one_clean_run(path):
    cells = codes(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "./lab render makes them"
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert not any("widget" in kind for kind in output.get("data", {}))
            said = output.get("text", output.get("data", {}).get("text/plain"))
            assert not re.search(r"/(home|Users|root)/\w", str(said))


@each
def test_every_picture_has_a_text_twin_and_an_alternative_text(path):
    pictures = 0
    for cell in codes(read(path)):
        for position, output in enumerate(cell.outputs):
            if "image/png" in output.get("data", {}):
                pictures += 1
                assert len(output.metadata["image/png"]["alt"]) > 20
                beside = "".join(str(o.get("text", "")) for o in cell.outputs[position + 1 :])
                assert len(output.data["text/plain"]) > 40 or len(beside) > 40
    assert pictures or path in SOLUTIONS


@each
def test_prose_is_plain(path):
    for text in texts(read(path)):
        words = re.sub(r"`[^`]*`|\([^)]*\)", "", text)
        for bad in ("Note that", "note that", "Simply", " simply ", "As you can see", "!\n", "! ", "obviously"):
            assert bad not in words, f"{bad!r} in: {text[:80]}"


def test_the_notebooks_are_formatted(tmp_path):
    argv = [sys.executable, "-m", "ruff", "format", "--check", "notebooks"]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, timeout=60,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
