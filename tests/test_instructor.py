"""The instructor's page: its tables are those that the lessons give, and running times are measured."""

import re

from conftest import CHECKOUT

from helpers import course, timetable

GUIDE = CHECKOUT / "notebooks/INSTRUCTOR.md"


def test_the_tables_are_those_of_the_lessons_as_they_are():
    text = GUIDE.read_text()
    made = timetable.filled(text, timetable.known(text))
    assert made == text, "`python -m helpers.timetable --run` makes them anew"


def test_each_lesson_and_the_readme_say_the_minutes_that_are_counted():
    readme = (CHECKOUT / "README.md").read_text()
    for name, parts in timetable.lessons().items():
        minutes = timetable.looking(parts)
        assert course.read(CHECKOUT / "notebooks" / f"{name}.ipynb").minutes == minutes, name
        assert re.search(rf"^\| \[{name}\]\(.+\) \| .+ \| {minutes} \|", readme, re.M), name


def test_running_times_are_measured_and_those_of_lessons():
    measured = timetable.known(GUIDE.read_text())
    assert set(measured) <= set(timetable.lessons())
    assert len(measured) >= len(timetable.lessons()) * 0.7, "`python -m helpers.timetable --run` measures"
    assert all(seconds > 0 for seconds in measured.values())


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
