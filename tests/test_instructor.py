"""The instructor's page: its tables are those that the lessons give, and every lesson's running time is measured."""

from conftest import CHECKOUT

from helpers import timetable

GUIDE = CHECKOUT / "notebooks/INSTRUCTOR.md"


def test_the_tables_are_those_of_the_lessons_as_they_are():
    text = GUIDE.read_text()
    made = timetable.filled(text, timetable.known(text))
    assert made == text, "`python -m helpers.timetable --run` makes them anew"


def test_every_lesson_in_the_table_was_run_and_measured():
    assert "not measured" not in GUIDE.read_text(), "`python -m helpers.timetable --run` measures"
    assert set(timetable.known(GUIDE.read_text())) == set(timetable.lessons())


def test_a_plan_adds_up_and_leaves_out_what_is_not_written():
    part = timetable.Section("x", 170 * 40, 0, 0, 2)  # 40 minutes of text and two exercises: 52, planned as 55
    table = timetable.plan({"01-a": [part]}, "9:30", ["01-a", timetable.BREAK, "02-b", "01-a"])
    assert table.splitlines()[2:] == [
        "| 9:30 | 10:25 | [01-a](01-a.ipynb) |", "| 10:25 | 10:40 | break |", "| 10:40 | 11:35 | [01-a](01-a.ipynb) |",
    ]  # fmt: skip


def test_a_whole_day_fits_into_a_day():
    for name, latest in (("half-day", 13 * 60), ("full-day", 18 * 60), ("second-day", 18 * 60)):
        last = timetable.plan(timetable.lessons(), *timetable.PLANS[name]).splitlines()[-1]
        hours, minutes = map(int, last.split("|")[2].split(":"))
        assert hours * 60 + minutes <= latest, last
