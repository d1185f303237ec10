"""The widgets: their rows on made-up records, their thread in a real lab, and all of it in a real JupyterLab."""

import base64
import re
import signal
import threading
from pathlib import Path

import nbformat
import pytest

from helpers import live
from helpers.browser import outputs, run
from helpers.film import Event, Film
from helpers.processes import Process, wait_until

CHECKOUT = Path(__file__).resolve().parent.parent


def process(pid, ppid, name, *, argv=(), pids=(), pidns=1, started=None, cgroup="/lab"):
    namespaces = (("pid", pidns), ("net", pidns))
    return Process(pid, ppid, name, argv, "S", pids or (pid,), namespaces, started or pid * 10, cgroup)


LAB = process(1, 0, "lab")
SHELL = process(11, 1, "sh", argv=("sh", "-c", "date"), pids=(11, 1), pidns=2)
SLEEP = process(17, 11, "sleep", argv=("sleep", "1"), pids=(17, 7), pidns=2)


# ---- rows, on made-up records


def test_a_row_says_which_namespaces_are_new_where_they_begin_and_not_below():
    lab, shell, sleep = live.rows([LAB, SHELL, SLEEP], {}, {})
    assert [r["badge"] for r in (lab, shell, sleep)] == ["", "new namespaces: pid net", ""]
    assert [r["level"] for r in (lab, shell, sleep)] == [1, 2, 3]
    assert [r["role"] for r in (lab, shell, sleep)] == ["plain", "container", "container"]
    assert (shell["title"], shell["numbers"], shell["command"]) == ("sh", "11 → inside 1", "-c date")
    assert sleep["parent"] == shell["key"] == "11-110"


def test_the_details_of_a_row_have_the_pids_inside_and_outside():
    _, shell = live.rows([LAB, SHELL], {}, {(11, 110): 4711})
    assert shell["details"] == [
        ["PID in the lab", "11"],
        ["PID inside, as it sees itself", "1"],
        ["PID on this machine", "4711"],
        ["Command", "sh -c date"],
        ["Part", "container"],
        ["Namespaces other than the lab's", "pid net"],
        ["Cgroup", "/lab"],
    ]


def words(marks):
    return {pid: word for (pid, _), (_, word, _) in marks.items()}


def keyed(*processes):
    return {(p.pid, p.started): p for p in processes}


def test_the_first_look_marks_nothing_and_the_next_one_what_has_changed():
    first = live.mark({}, {}, keyed(LAB, SHELL), 0)
    assert first == {}
    adopted = process(11, 5, "sh", started=110)
    assert words(live.mark(first, keyed(LAB, SHELL), keyed(LAB, adopted, SLEEP), 1)) == {11: "re-parented", 17: "new"}
    assert words(live.mark(first, keyed(LAB, SHELL), keyed(LAB), 1)) == {11: "gone"}


def test_a_mark_fades_after_two_seconds():
    marks = live.mark({}, keyed(LAB), keyed(LAB, SHELL), 10)
    assert words(live.mark(marks, keyed(LAB, SHELL), keyed(LAB, SHELL), 11.9)) == {11: "new"}
    assert words(live.mark(marks, keyed(LAB, SHELL), keyed(LAB, SHELL), 12.1)) == {}


def test_a_pid_that_is_used_again_is_another_process():
    again = process(11, 1, "sh", started=999)
    marks = live.mark({}, keyed(LAB, SHELL), keyed(LAB, again), 0)
    assert {key: word for key, (_, word, _) in marks.items()} == {(11, 110): "gone", (11, 999): "new"}


def small_film():
    runc, init = "runc run demo", "runc:[2:INIT]"
    return Film(
        argv=("runc", "run", "demo"), source="the kernel's proc connector", output=None, returned=50.0, length=60.0,
        events=(
            Event(0, "here", 0, None, "lab", 1, 1, 901),
            Event(1, "fork", 1, 0, "lab", 5, 5, 905),
            Event(2, "exec", 1, 0, runc, 5, 5, 905),
            Event(10, "fork", 2, 1, runc, 9, 1, 909, True),
            Event(12, "name", 2, 1, init, 9, 1, 909, True),
            Event(30, "exec", 2, 1, "sleep 1", 9, 1, 909, True),
            Event(40, "exit", 1, 0, runc, 5, 5, 905, False, 0),
            Event(40, "parent", 2, 0, "sleep 1", 9, 1, 909, True),
        ),
    )  # fmt: skip


def test_the_frames_of_a_film_say_what_happened_and_mark_whom_it_happened_to():
    widget = live.film(small_film(), caption="A container is born.")
    shown = [
        (ms, said, [(r["title"], r["level"], r["role"], r["change"]) for r in (widget.rows[n] for n in positions)])
        for ms, said, positions in widget.frames
    ]
    assert shown[3] == (
        10, "PID 5 forks: PID 9 (1 inside) begins.",
        [("lab", 1, "plain", ""), ("runc", 2, "runtime", ""), ("runc", 3, "runtime", "new")],
    )  # fmt: skip
    assert shown[5][2][2] == ("sleep", 3, "container", "changed")
    assert shown[6][2][1] == ("runc", 2, "runtime", "gone")
    assert shown[7] == (
        40, "The parent of PID 9 (1 inside) has gone: PID 1 adopts it.",
        [("lab", 1, "plain", ""), ("sleep", 2, "container", "re-parented")],
    )  # fmt: skip


def test_a_widget_carries_its_picture_and_its_text_for_pages_where_nothing_moves():
    widget = live.film(small_film(), caption="A container is born.")
    data, metadata = widget._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert data["text/plain"].startswith("A container is born.\nPID ")
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.model_id
    assert metadata["image/png"]["alt"] == "A container is born."


def test_beside_its_picture_a_film_has_its_frames_in_words():
    data, metadata = live.film(small_film(), caption="A container is born.", picture=False)._repr_mimebundle_()
    assert "image/png" not in data and metadata == {}
    assert data["text/plain"].splitlines()[:3] == [
        "A container is born.", "   0.0 ms  Before the command.", "   1.0 ms  PID 1 forks: PID 5 begins."
    ]  # fmt: skip
    assert data["text/plain"].endswith("40.0 ms  The parent of PID 9 (1 inside) has gone: PID 1 adopts it.")


# ---- the thread, in a real lab


def live_threads():
    return [t for t in threading.enumerate() if t.name == "live"]


@pytest.fixture
def no_thread_left():
    assert live_threads() == []
    yield
    wait_until(lambda: not live_threads(), "the end of the widget's thread", 5)


def names(widget):
    return [row["title"] for row in widget.rows]


def test_nobody_looks_at_the_lab_before_somebody_looks_at_the_widget(lab, no_thread_left):
    live.tree(lab)
    assert live_threads() == []


def test_the_tree_follows_the_lab_while_it_is_shown(lab, no_thread_left):
    widget = live.tree(lab)
    widget._heard({"view": "a", "shown": True})
    sleeper = lab.start(["busybox", "sleep", "1000"], echo=False)
    wait_until(lambda: "busybox" in names(widget), "the new process")
    row = next(row for row in widget.rows if row["title"] == "busybox")
    assert (row["change"], row["numbers"]) in (("new", str(sleeper.pid)), ("", str(sleeper.pid)))
    outside = dict(row["details"])["PID on this machine"]
    assert Path(f"/proc/{outside}/cmdline").read_bytes() == b"busybox\0sleep\x001000\0"
    sleeper.kill(signal.SIGKILL)
    wait_until(lambda: any(r["change"] == "gone" for r in widget.rows), "the mark of the one that has gone")
    wait_until(lambda: names(widget) == ["lab"], "the fading of the mark")
    widget._heard({"view": "a", "shown": False})


def test_a_pause_ends_the_thread_and_play_starts_it_again(lab, no_thread_left):
    widget = live.tree(lab)
    widget._heard({"view": "a", "shown": True})
    widget.playing = False
    wait_until(lambda: not live_threads(), "the end of the thread", 3)
    widget.playing = True
    wait_until(live_threads, "the thread", 3)
    widget.close()


def test_the_thread_ends_when_its_last_view_is_closed(lab, no_thread_left):
    widget = live.tree(lab)
    for view in "ab":
        widget._heard({"view": view, "shown": True})
    widget._heard({"view": "a", "shown": False})
    assert live_threads()
    widget._heard({"view": "b", "shown": False})


def test_the_thread_ends_when_the_browser_was_closed_without_a_word(lab, no_thread_left, monkeypatch):
    monkeypatch.setattr(live, "FORGOTTEN", 0.3)
    live.tree(lab)._heard({"view": "a", "shown": True})
    wait_until(lambda: not live_threads(), "the end of the thread", 3)


def test_the_widget_says_that_the_lab_has_ended(lab, no_thread_left):
    widget = live.tree(lab)
    widget._heard({"view": "a", "shown": True})
    lab.close()
    wait_until(lambda: widget.ended, "the end of the lab")


# ---- in JupyterLab

SETUP = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})"
CELLS = [
    SETUP + """
import threading
from helpers import film, live
from helpers.lab import start_lab
lab = start_lab()""",
    'tree = live.tree(lab, caption="The lab, now.")\ntree',
    'sleeper = lab.start(["busybox", "sleep", "1000"])',
    "sleeper.kill(9); sleeper.wait()",
    """reel = film.record(lab, ["busybox", "sh", "-c", "busybox true; busybox false"], check=False)
live.film(reel, "A film.")""",
    "lab.close()",
    'print("threads:", [t.name for t in threading.enumerate() if t.name == "live"])',
]  # fmt: skip


def titles(page):
    return page.locator(".unc [role=treeitem]").evaluate_all("rows => rows.map(row => row.getAttribute('aria-label'))")


def label(page, attribute="aria-label"):
    return page.evaluate("name => document.activeElement.getAttribute(name) ?? ''", attribute)


def test_the_widgets_live_in_jupyterlab(leak_check, notebook):
    page = notebook(CELLS)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    run(page, 0)
    run(page, 1)

    # The tree moves.
    rows = page.locator(".unc [role=treeitem]")
    rows.first.wait_for()
    assert [said.split(",")[0] for said in titles(page)] == ["lab"]
    run(page, 2)
    rows.nth(1).wait_for()
    assert "busybox, PID" in titles(page)[1]
    assert rows.nth(1).get_attribute("data-change") in ("new", "")

    # The keyboard reaches all of it, and the notebook does not take the keys.
    page.locator(".unc button").first.focus()
    page.keyboard.press("Tab")
    assert label(page).startswith("lab")
    page.keyboard.press("ArrowDown")
    assert label(page).startswith("busybox")
    details = page.locator(".unc-details").first
    assert "busybox sleep 1000" in details.inner_text() and "PID on this machine" in details.inner_text()
    page.keyboard.press("ArrowLeft")
    assert label(page).startswith("lab")
    assert page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCellIndex") == 1

    # The mouse shows details too, without a click.
    rows.nth(1).hover()
    wait_until(lambda: "busybox sleep 1000" in details.inner_text(), "the details under the mouse")

    # A pause holds the picture, and play brings it up to date.
    button = page.locator(".unc button").first
    button.click()
    page.get_by_text("2 processes, paused").wait_for()
    run(page, 3)
    page.wait_for_timeout(600)  # two looks, if there were any
    assert rows.count() == 2
    button.click()
    wait_until(lambda: rows.count() == 1, "the end of the sleeper in the tree")

    # The slider of the film, by the keyboard.
    run(page, 4)
    slider = page.locator(".unc input[type=range]")
    slider.wait_for()
    frames = int(slider.get_attribute("max")) + 1
    words = page.locator(".unc-words")
    assert words.inner_text() == "Before the command."
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert words.inner_text().startswith("PID 1 forks: PID ")
    page.keyboard.press("End")
    assert slider.input_value() == str(frames - 1)
    assert re.search(r", ends( with status 1)?\.$", words.inner_text())  # /proc alone doesn't tell the status
    page.keyboard.press("Home")
    page.locator(".unc button").nth(1).click()  # Play
    wait_until(lambda: slider.input_value() == "1", "the film's next frame")
    page.locator(".unc button").nth(1).click()

    # A cell that is run again has one tree, whose thread is the only one.
    run(page, 1)
    wait_until(lambda: page.locator(".unc button").count() == 2, "the new tree in the place of the old one")
    page.wait_for_timeout(600)
    run(page, 6)
    wait_until(lambda: "threads: ['live']" in outputs(page), "the list of threads")

    # The lab ends.
    run(page, 5)
    page.get_by_text("The lab has ended.").wait_for()
    run(page, 6)
    wait_until(lambda: "threads: []" in outputs(page), "a list without a thread")
    assert complaints == []


def test_a_page_without_javascript_shows_the_pictures(browser, tmp_path):
    """What nbconvert makes of an output that was saved: the widget has no model there."""
    from nbconvert import HTMLExporter

    data, metadata = live.film(small_film(), caption="A container is born.")._repr_mimebundle_()
    data["image/png"] = base64.b64encode(data["image/png"]).decode()
    cell = nbformat.v4.new_code_cell("live.film(...)")
    cell.outputs = [nbformat.v4.new_output("display_data", data, metadata=metadata)]
    page_source, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    (tmp_path / "page.html").write_text(page_source)
    page = browser.new_page(java_script_enabled=False)
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator(".jp-OutputArea-output img").bounding_box()["width"] > 500
    assert "widget-view" not in page_source


def test_a_thousand_processes_cost_no_more_elements_than_the_window_shows(browser, tmp_path):
    """live.js alone, with a model made up here: no kernel, no server."""
    many = [process(pid, 1, "sleep", argv=("sleep", "1")) for pid in range(2, 1002)]
    rows = live.packed(live.rows([LAB, *many], {}, {}))
    state = {"kind": "tree", "caption": "", "rows": rows, "playing": True, "ended": False}
    page = browser.new_page()
    page.set_content("<div id=place></div>")
    page.evaluate(
        """async ([source, state]) => {
             const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
             const model = { get: (key) => state[key], set() {}, on() {}, off() {}, send() {}, save_changes() {} };
             module.default.render({ model, el: document.getElementById("place") });
           }""",
        [(CHECKOUT / "helpers/live.js").read_text(), state],
    )
    rows = page.locator(".unc [role=treeitem]")
    assert 15 <= rows.count() <= 60
    rows.first.focus()
    page.keyboard.press("End")
    assert label(page).startswith("sleep, PID 1001")
    page.keyboard.press("ArrowUp")
    assert label(page).startswith("sleep, PID 1000")
    assert 15 <= rows.count() <= 60
    page.keyboard.press("ArrowLeft")
    assert label(page).startswith("lab")
