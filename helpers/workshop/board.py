"""Who is on which exercise: what the seats' checks said, against what the lessons claim. Pure, and wary.

A seat sends `{"lesson": ..., "kind": "check" or "exercise", "words": ..., "done": ...}`. Only words that stand in a
lesson count: whatever else a seat sends, the page can't show it. Nobody's notebook is read.
"""

import ast
import json
import time
from dataclasses import dataclass, field

import nbformat


@dataclass(frozen=True)
class Lesson:
    """What a lesson claims (`checks`, words) and asks for (`exercises`, {words: number as in "01.2"})."""

    name: str
    title: str
    checks: frozenset
    exercises: dict


@dataclass
class Progress:
    """What is known of one seat in one lesson. `red` is the claim that failed last, until another one is green."""

    green: set = field(default_factory=set)
    done: set = field(default_factory=set)
    tries: dict = field(default_factory=dict)
    red: str = ""


@dataclass
class Standing:
    """One seat: its lesson of the moment, its progress by lesson, and when it was last heard of (monotonic time)."""

    lesson: str = ""
    lessons: dict = field(default_factory=dict)
    heard: float | None = None


def read_lesson(path):
    """The `Lesson` in a notebook file."""
    notebook = nbformat.read(path, as_version=4)
    checks, exercises = set(), {}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        numbers = [tag.removeprefix("exercise:") for tag in cell.metadata.get("tags", []) if "exercise:" in tag]
        for node in ast.walk(ast.parse(cell.source)):
            name, words = getattr(getattr(node, "func", None), "id", ""), first_word(node)
            if name == "check" and words:
                checks.add(words)
            elif name == "exercise" and words and numbers:
                exercises[words] = numbers[0]
    title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
    return Lesson(path.stem, title, frozenset(checks), exercises)


def first_word(node):
    """The first argument of a call, when it is a plain text."""
    given = getattr(node, "args", None)
    constant = isinstance(given, list) and given and isinstance(given[0], ast.Constant)
    return given[0].value if constant and isinstance(given[0].value, str) else ""


class Board:
    """All seats. `hear` takes what a seat sent; `row` tells where it stands."""

    def __init__(self, lessons, names):
        self.lessons = {lesson.name: lesson for lesson in lessons}
        self.standings = {name: Standing() for name in names}

    def forget(self, name):
        """The seat begins anew."""
        self.standings[name] = Standing()

    def hear(self, name, message, now=None):
        """Take one message (bytes). Returns True when it said something that a lesson says."""
        try:
            said = json.loads(message)
            lesson, kind, words, done = (said[key] for key in ("lesson", "kind", "words", "done"))
            known = self.lessons[lesson]
            relevant = words in (known.checks if kind == "check" else known.exercises)
        except (ValueError, TypeError, KeyError, RecursionError):
            return False
        if not relevant or kind not in ("check", "exercise"):
            return False
        standing = self.standings[name]
        standing.lesson, standing.heard = lesson, time.monotonic() if now is None else now
        progress = standing.lessons.setdefault(lesson, Progress())
        if kind == "check":
            progress.red = "" if done is True else words
            (progress.green.add if done is True else progress.green.discard)(words)
        else:
            number = known.exercises[words]
            progress.tries[number] = progress.tries.get(number, 0) + 1
            (progress.done.add if done is True else progress.done.discard)(number)
        return True

    def row(self, name, now=None):
        """Where a seat stands, as JSON-like data; empty texts and lists before its first check."""
        standing = self.standings[name]
        lesson = self.lessons.get(standing.lesson)
        if lesson is None:
            return {"lesson": "", "title": "", "checks": "", "exercises": [], "red": "", "silent": None}
        progress = standing.lessons[lesson.name]
        exercises = [
            {"number": number, "words": words, "done": number in progress.done,
             "tries": progress.tries.get(number, 0)}
            for words, number in lesson.exercises.items()
        ]  # fmt: skip
        now = time.monotonic() if now is None else now
        return {
            "lesson": lesson.name, "title": lesson.title, "checks": f"{len(progress.green)} of {len(lesson.checks)}",
            "exercises": exercises, "red": progress.red, "silent": int(now - standing.heard),
        }  # fmt: skip
