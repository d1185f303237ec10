"""Bars: lengths in proportion, every number in words, no markup from outside."""

import io
import re

import pytest
from PIL import Image

from helpers import pictures

ROWS = [("runc", 36.4, "container"), ("vmrun", 1330.0, "runtime"), ("chroot", 2.04, "plain")]


def test_the_text_twin_has_a_bar_for_each_number_in_proportion():
    assert str(pictures.bars(ROWS, "Time to the first line", "ms")) == (
        "Time to the first line\n"
        "  runc  █ 36 ms\n"
        " vmrun  ████████████████████████████████████████ 1,330 ms\n"
        "chroot  █ 2.0 ms"
    )


def test_the_drawing_has_the_same_bars():
    picture = pictures.bars([("a", 1, "plain"), ("b", 2, "container")], "Twice as long")
    widths = [int(width) for width in re.findall(r'bgcolor="#\w+" width="(\d+)"', picture.dot)]
    assert widths[1] == 2 * widths[0] > 0
    drawing = Image.open(io.BytesIO(picture.png())).convert("RGB")
    pink = [drawing.getpixel((x, y)) for x in range(0, drawing.width, 4) for y in range(0, drawing.height, 4)]
    assert pink.count((0xF7, 0xE3, 0xEE)) > 50, "the second bar is there, in its colour"


def test_bars_of_nothing_and_below_zero_are_refused():
    for rows in ([], [("a", -1, "plain")]):
        with pytest.raises(ValueError, match="bars need"):
            pictures.bars(rows, "none")
    assert "a" in str(pictures.bars([("a", 0, "plain")], "nothing at all"))


def test_names_from_outside_bring_no_markup_into_the_drawing():
    picture = pictures.bars([("<b>&", 1, "plain")], "<i>")
    assert "<b>&" not in picture.dot and "&lt;b&gt;&amp;" in picture.dot
    picture.png()
