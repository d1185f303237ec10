"""What a learner has seen is noted where they may, and never at the cost of a lesson."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import CHECKOUT

from helpers import checks, course, progress
from helpers.course import Claim, Lesson

ONE = Lesson("01-one", "One?", 10, (
    Claim("check", "it is made", "What is it?"),
    Claim("check", "… of 3 are here", "Where is it?"),
    Claim("check", "it is gone", "How does it end?"),
    Claim("exercise", "you ended it", "Exercises"),
), ())  # fmt: skip
TWO = Lesson("02-two", "Two?", 10, (Claim("check", "two", "Why?"),), ())


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A state directory of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    progress._claims.cache_clear()
    yield tmp_path
    progress._claims.cache_clear()


@pytest.fixture
def in_lesson_00(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", str(course.LESSONS / "00-start-here.ipynb"))


def first_check():
    return next(c for c in course.read(course.LESSONS / "00-start-here.ipynb").claims if c.kind == "check")


def test_the_table_counts_claims_and_exercises_and_says_where_to_go_on():
    assert progress.rows([ONE, TWO], {}) == [("01-one", "0 of 3", "0 of 1"), ("02-two", "0 of 1", "0 of 0")]
    assert progress.where_next([ONE, TWO], {}) == (ONE, "")
    passed = {"01-one": {"it is made", "… of 3 are here", "you ended it", "a claim of last year's"}}
    assert progress.rows([ONE], passed) == [("01-one", "2 of 3", "1 of 1")]
    assert progress.where_next([ONE, TWO], passed) == (ONE, "How does it end?")
    passed["01-one"].add("it is gone")
    assert progress.where_next([ONE, TWO], passed) == (TWO, "")
    assert progress.where_next([ONE, TWO], {**passed, "02-two": {"two"}}) == (None, "")


def test_a_claim_with_a_value_in_it_is_known_by_its_other_words():
    assert course.fits(ONE.claims[1], "2 of 3 are here")
    assert not course.fits(ONE.claims[1], "2 of 4 are here")
    assert course.calls('check(f"{n} of 3 are here", n > 1)') == [("check", "… of 3 are here")]


@pytest.mark.parametrize("source", ["%time check('a', True)", "check('a', True", "!ls", ""])
def test_a_learners_own_cell_may_be_anything(source):
    assert course.calls(source) == []


def test_what_passes_is_noted_once_and_what_fails_is_not(state, in_lesson_00):
    claim = first_check().words
    with pytest.raises(checks.CheckFailed):
        checks.check(claim, False)
    assert progress.load() == {}
    for _ in range(2):
        checks.check(claim, True)
    checks.check("no claim of this lesson", True)
    assert progress.load() == {"00-start-here": {claim}}
    assert (state / "uncontained").stat().st_mode & 0o777 == 0o700
    assert progress.forget() and progress.load() == {} and not progress.forget()


@pytest.mark.parametrize("name", ["", "notebooks/solutions/00-start-here.ipynb", "elsewhere/00-start-here.ipynb"])
def test_only_a_lesson_that_a_server_opened_is_noted(name, state, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", name)
    checks.check(first_check().words, True)
    assert list(state.iterdir()) == []


@pytest.mark.parametrize("broken", ["[]", "{", '{"00-start-here": 3}', ""])
def test_a_broken_file_or_a_place_that_can_t_be_written_stops_no_lesson(broken, state, in_lesson_00):
    (state / "uncontained").write_text("a file where the directory would be")
    checks.check(first_check().words, True)
    (state / "uncontained").unlink()
    (state / "uncontained").mkdir()
    progress.place().write_text(broken)
    assert progress.load() == {}
    checks.check(first_check().words, True)
    assert progress.load() == {"00-start-here": {first_check().words}}


def test_two_notebooks_can_note_at_the_same_time(state):
    note = "import sys; from helpers import progress; [progress._add(sys.argv[1], str(n)) for n in range(100)]"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    both = [subprocess.Popen([sys.executable, "-c", note, name], env=environment) for name in ("one", "two")]
    assert [process.wait(60) for process in both] == [0, 0]
    assert {name: len(words) for name, words in progress.load().items()} == {"one": 100, "two": 100}


def test_the_command_shows_it_and_forgets_it(state):
    (state / "uncontained").mkdir()
    lesson = course.read(course.LESSONS / "00-start-here.ipynb")
    seen = [claim.words for claim in lesson.claims if claim.kind == "check"][:3]
    progress.place().write_text(json.dumps({"00-start-here": seen}))

    def lab(*argv):
        return subprocess.run([CHECKOUT / "lab", *argv], capture_output=True, text=True, timeout=60).stdout

    said = lab("progress")
    assert re.search(r"^00-start-here +3 of \d+ +0 of", said, re.M)
    assert "Go on in 00-start-here, at “" in said and "Run All Above" in said
    assert lab("progress", "--forget") == "Forgotten: the next lesson is the first.\n"
    assert re.search(r"^00-start-here +0 of", lab("progress"), re.M)
