"""Lesson 02: its widget on made-up records, against lsns in a real lab, and in a real JupyterLab."""

import shutil

import pytest
from test_live import SETUP

from helpers import unshare_widget
from helpers.browser import run
from helpers.processes import wait_until

SAID = """mnt mnt:[11]
uts uts:[12]
ipc ipc:[13]
net net:[14]
pid pid:[15]
user user:[16]
cgroup cgroup:[17]
time time:[18]
mounts 23
name lab
queues 0
link lo up
self 5
first lab
uid 0
path 0::/lab
days 3
"""
CELLS = [
    SETUP + """
from helpers import unshare_widget
from helpers.lab import start_lab
lab = start_lab()""",
    "unshare_widget.show(lab)",
    "lab.close()",
]  # fmt: skip

# ---- on made-up records


def test_the_command_has_the_flags_in_one_order_and_forks_where_only_children_enter():
    assert unshare_widget.command([]) == []
    assert unshare_widget.command(["net", "uts"]) == ["unshare", "--uts", "--net"]
    assert unshare_widget.command(["pid"]) == ["unshare", "--pid", "--fork"]
    assert unshare_widget.command(["pid", "mnt"]) == ["unshare", "--mount", "--pid", "--fork", "--mount-proc"]
    assert unshare_widget.command(["time"]) == ["unshare", "--time", "--boottime", "864000", "--fork"]


def test_a_kind_that_does_not_exist_is_named():
    with pytest.raises(LookupError, match="no namespace 'network'"):
        unshare_widget.command(["network"])


def test_the_picture_marks_what_is_new_and_says_what_the_process_sees():
    lab = unshare_widget.read(SAID)
    changed = SAID.replace("net:[14]", "net:[99]").replace("lo up", "lo down").replace("self 5", "self 9")
    process = unshare_widget.read(changed)
    picture = unshare_widget.picture(["net"], unshare_widget.rows(["net"], lab, process))
    assert str(picture).rstrip() == """\
With unshare --net PROGRAM these namespaces are new: net.
new  namespace   a process sees       in the lab  in the process
☐    mnt 11      mounts in its table  23          23
☐    uts 12      host name            lab         lab
☐    ipc 13      message queues       0           0
☑    net 99 new  network interfaces   lo is up    lo is down
☐    pid 15      its own PID          5           9
☐    pid 15      PID 1 in /proc       lab         lab
☐    user 16     user number          0           0
☐    cgroup 17   its cgroup           0::/lab     0::/lab
☐    time 18     days since boot      3           3"""
    assert picture.png().startswith(b"\x89PNG")


def test_a_process_that_said_nothing_leaves_question_marks_and_no_error():
    table = unshare_widget.rows([], unshare_widget.read(""), unshare_widget.read(""))
    assert {row["inode"] for row in table} == {"?"}
    assert unshare_widget.picture([], table).png().startswith(b"\x89PNG")


# ---- in a real lab


def listed(lab):
    """The numbers of all namespaces that lsns knows in the lab, by kind."""
    found = {}
    for line in lab.run(["lsns", "--noheadings", "--output", "TYPE,NS"], echo=False).stdout.splitlines():
        kind, number = line.split()
        found.setdefault(kind, set()).add(number)
    return found


@pytest.mark.parametrize("kind", unshare_widget.FLAGS)
def test_a_tick_makes_this_namespace_new_and_no_other(lab, kind):
    if not shutil.which("lsns"):
        pytest.skip("lsns is missing")
    known = listed(lab)
    widget = unshare_widget.show(lab)
    widget.ticked = [kind]
    assert [row["kind"] for row in widget.rows if row["new"]] == [kind]
    for row in widget.rows:
        assert (row["inode"] in known[row["kind"]]) == (row["kind"] != kind)


def test_the_widget_says_what_went_wrong_and_keeps_its_rows(lab):
    widget = unshare_widget.show(lab, ["uts"])
    before = widget.rows
    widget.ticked = ["everything"]
    assert "no namespace 'everything'" in widget.trouble
    lab.close()
    widget.ticked = ["net"]
    assert "start_lab()" in widget.trouble
    assert widget.rows == before


# ---- in JupyterLab


def cells(page, column):
    return page.locator(f".uns td.{column}").all_inner_texts()


def test_the_widget_is_worked_by_the_keyboard_alone(leak_check, notebook):
    page = notebook(CELLS)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    run(page, 0)
    run(page, 1)
    boxes = page.locator(".uns input[type=checkbox]")
    boxes.first.wait_for()
    assert boxes.count() == 8
    assert page.locator(".uns td.new").count() == 0
    assert [box.inner_text() for box in page.locator(".uns label").all()] == list(unshare_widget.FLAGS)

    boxes.first.focus()
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")  # net
    wait_until(lambda: "lo is down" in cells(page, "now"), "the new network")
    assert cells(page, "before")[3] == "lo is up"
    assert page.locator(".uns td.new").count() == 1
    assert page.locator(".uns code").inner_text() == "# unshare --net PROGRAM"
    assert "network interfaces: lo is down" in page.locator(".uns [aria-live]").inner_text()
    assert page.evaluate("document.activeElement.dataset.kind") == "net"  # the keyboard keeps its place

    page.keyboard.press("Space")
    wait_until(lambda: "lo is down" not in cells(page, "now"), "the lab's network")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")  # mnt
    page.keyboard.press("Tab")
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")  # pid
    wait_until(lambda: "sh" in cells(page, "now"), "a /proc of its own")
    assert cells(page, "now")[4] == "1"

    run(page, 2)
    boxes.nth(1).focus()
    page.keyboard.press("Space")
    page.get_by_text("start_lab()").first.wait_for()
    assert complaints == []
