"""How far a learner has come: which claims of each lesson have been seen to hold on this machine.

`check` and `exercise` note what has passed, in a small file of this user's own; `./lab progress` shows it. Only
notebooks that a Jupyter server opened count: there the server tells the kernel its notebook's path. Noting never
disturbs a lesson: where it can't write, it doesn't. Standard library only.
See also: the XDG Base Directory Specification (XDG_STATE_HOME); jupyter-server (JPY_SESSION_NAME).
"""

import contextlib
import fcntl
import json
import os
from functools import lru_cache
from pathlib import Path

from helpers import course


def place():
    """The file. It holds {lesson: [words of a claim that has passed, ...]}."""
    base = os.environ.get("XDG_STATE_HOME", "")
    base = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return base / "uncontained" / "progress.json"


def load():
    """{lesson: set of words}; empty where there is no file, or an unreadable one."""
    try:
        found = json.loads(place().read_text())
        return {lesson: set(words) for lesson, words in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def note(kind, said):
    """A claim of the notebook that runs here has passed; `said` is what was printed of it."""
    path = Path(os.environ.get("JPY_SESSION_NAME", ""))
    if path.suffix != ".ipynb" or path.parent.name != course.LESSONS.name:
        return  # no Jupyter server, or no lesson of ours: a solution does not count
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # RuntimeError: a user without a home
        claim = next((c for c in _claims(path.name) if c.kind == kind and course.fits(c, said)), None)
        if claim and claim.words not in load().get(path.stem, ()):
            _add(path.stem, claim.words)


@lru_cache(maxsize=1)  # a kernel has one notebook
def _claims(name):
    return course.read(course.LESSONS / name).claims


def _add(lesson, words):
    place().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(place().with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two notebooks may run at once
        found = {name: sorted(known) for name, known in load().items()}
        found[lesson] = sorted({words, *found.get(lesson, ())})
        draft = place().with_suffix(".new")
        draft.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        os.replace(draft, place())


def forget():
    """Begin anew. True when there was something to forget."""
    there = place().exists()
    for suffix in (".json", ".lock", ".new"):
        place().with_suffix(suffix).unlink(missing_ok=True)
    return there


def rows(lessons, passed):
    """[(lesson, "3 of 20" checks, "0 of 2" exercises)] for these lessons; `passed` is as `load` gives it."""
    found = []
    for lesson in lessons:
        seen = passed.get(lesson.name, set())
        counts = []
        for kind in ("check", "exercise"):
            claims = [claim for claim in lesson.claims if claim.kind == kind]
            counts.append(f"{sum(claim.words in seen for claim in claims)} of {len(claims)}")
        found.append((lesson.name, *counts))
    return found


def where_next(lessons, passed):
    """(lesson, section) to go on with: after the last claim that has passed, in the last lesson that was begun.

    (None, "") when nothing is left; the exercises are not counted.
    """
    begun = [position for position, lesson in enumerate(lessons) if passed.get(lesson.name)]
    for lesson in lessons[begun[-1] if begun else 0 :]:
        seen = passed.get(lesson.name, set())
        claims = [claim for claim in lesson.claims if claim.kind == "check"]
        done = [position for position, claim in enumerate(claims) if claim.words in seen]
        rest = claims[done[-1] + 1 if done else 0 :]
        if rest:
            return lesson, rest[0].section if done else ""
    return None, ""


def main(*, reset=False):
    """Print the table and where to go on. Returns 0."""
    from helpers.preflight import table

    if reset:
        print("Forgotten: the next lesson is the first." if forget() else "There was nothing to forget.")
        return 0
    lessons, passed = course.lessons(), load()
    print(table([("lesson", "claims seen", "exercises"), *rows(lessons, passed)]))
    lesson, section = where_next(lessons, passed)
    if lesson is None:
        print("\nYou have seen all that is written.")
    elif section:
        print(f"\nGo on in {lesson.name}, at “{section}”. Click on that heading, then in the menu Run,\n"
              "Run All Above Selected Cell: what it builds on is there again in seconds.")  # fmt: skip
    else:
        print(f"\nNext: {lesson.name}, {lesson.question}")
    return 0
