"""The lessons as data: their questions, claims, facts and exercises, as they stand in the notebook files.

Only sources are read, no outputs: what is made from this changes when a lesson's words do, and not with each run.
Standard library only. See also: nbformat, "The notebook file format".
"""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

LESSONS = Path(__file__).resolve().parent.parent / "notebooks"
VALUE = "…"  # stands in a claim's words for what is known only when it is tested
ASKED = "Questions people ask"


@dataclass(frozen=True)
class Claim:
    """One call of `check` or `exercise` (its `kind`), below the heading `section`, in a cell tagged with `facts`."""

    kind: str
    words: str
    section: str
    facts: tuple = ()


@dataclass(frozen=True)
class Lesson:
    """One lesson. `asked` has (question, answer) for each of its "Questions people ask"."""

    name: str  # "01-runc"
    question: str
    minutes: int
    claims: tuple
    asked: tuple


def lessons(place=LESSONS):
    """All lessons that are written, in reading order."""
    return [read(path) for path in sorted(Path(place).glob("[0-9]*.ipynb"))]


def read(path):
    """The `Lesson` in a notebook file."""
    cells = json.loads(Path(path).read_text())["cells"]
    claims, asked, section = [], [], ""
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            for heading in re.findall(r"^## (.+)$", source, re.M):
                section = heading
            if section == ASKED:
                asked += re.findall(r"\*\*([^*]+\?)\*\*\s*([^*]*)", source.split(f"## {ASKED}")[-1])
        elif cell["cell_type"] == "code":
            facts = tuple(tag.removeprefix("fact:") for tag in cell["metadata"].get("tags", []) if tag[:5] == "fact:")
            claims += [Claim(kind, words, section, facts) for kind, words in calls(source)]
    first = "".join(cells[0]["source"])
    minutes = re.search(r"about (\d+) minutes", first)
    asked = tuple((question, answer.strip()) for question, answer in asked)
    question = first.splitlines()[0].removeprefix("# ")
    return Lesson(Path(path).stem, question, int(minutes[1]) if minutes else 0, tuple(claims), asked)


def calls(source):
    """[(kind, words)] for each `check` and `exercise` in a cell's source, from top to bottom."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []  # a learner's own cell, half-written or with a magic
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = [node for node in found if getattr(node.func, "id", "") in ("check", "exercise") and node.args]
    return [(node.func.id, words(node.args[0])) for node in sorted(found, key=lambda node: node.lineno)]


def words(node):
    """The words of a claim in the source: those of a text, with VALUE for all that is no constant."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(words, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return words(node.left) + words(node.right)
    return VALUE


def fits(claim, said):
    """True when `said`, as it was printed, is this `Claim`."""
    pattern = ".+".join(map(re.escape, claim.words.split(VALUE)))
    return re.fullmatch(pattern, said, re.S) is not None
