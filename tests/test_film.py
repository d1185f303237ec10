"""The film: its notes and pictures on made-up records, and real films against oracles that are not ours."""

import ast
import collections
import dataclasses
import json
import re
import shutil
import signal
import struct
import sys
import threading
from pathlib import Path

import pytest

from helpers import bundles, pictures, proc_events
from helpers.film import CONNECTOR, Event, Film, Notes, film_frames, record
from helpers.pictures.film import lives
from helpers.proc_events import Seen, Told
from helpers.processes import wait_until

MS = 1_000_000


# ---- notes, on made-up tellings


def seen(pid, name, *, inner=None, parent=100, argv=(), inside=False):
    return Seen(pid, inner or pid, 100 + pid, parent, name, argv, inside)


def told(*tellings, looks=(), argv=("runc", "run", "demo")):
    """Notes of a lab whose PID 1 is 100 on the machine. `looks` are {PID: Seen}."""
    shown = {100: seen(1, "lab", parent=99), **dict(looks)}
    notes = Notes(shown.get, [(100, None)], argv)
    for one in tellings:
        notes.take(one)
    return notes


def brief(notes):
    return [(e.kind, e.process, e.parent, e.name) for e in notes.finished(0)]


def test_what_happens_outside_the_lab_is_left_out():
    notes = told(
        Told(1 * MS, "fork", 200, 99), Told(2 * MS, "exec", 200), Told(3 * MS, "fork", 105, 100),
        Told(4 * MS, "exit", 200, code=0), Told(5 * MS, "exit", 4711, code=1),
    )  # fmt: skip
    assert brief(notes) == [("here", 0, None, "lab"), ("fork", 1, 0, "lab")]


def test_a_program_that_ended_before_it_could_be_read_has_a_question_mark_but_the_command_itself_is_known():
    notes = told(
        Told(1 * MS, "fork", 105, 100), Told(2 * MS, "exec", 105), Told(3 * MS, "fork", 106, 105),
        Told(4 * MS, "exec", 106), Told(5 * MS, "exit", 106, code=0),
    )  # fmt: skip
    assert brief(notes)[2:] == [
        ("exec", 1, 0, "runc run demo"),
        ("fork", 2, 1, "runc run demo"),
        ("exec", 2, 1, "?"),
        ("exit", 2, 1, "?"),
    ]
    assert notes.finished(0)[-1].pid is None


def test_an_orphan_is_adopted_when_the_last_thread_of_its_parent_has_gone_and_not_before():
    parents = {106: seen(6, "sh", parent=105), 105: seen(5, "runc")}
    notes = told(Told(1 * MS, "fork", 105, 100), Told(2 * MS, "fork", 106, 105), looks=parents)
    notes.look = parents.get
    notes.take(Told(3 * MS, "exit", 105, code=0))
    assert brief(notes)[-1] == ("exit", 1, 0, "lab")
    parents[106] = seen(6, "sh", parent=100)
    notes.take(Told(4 * MS, "thread", 105))
    assert brief(notes)[-1] == ("parent", 2, 0, "lab")
    assert notes.command_ended


def test_processes_to_which_nothing_happens_are_not_in_the_film():
    looks = {150: seen(50, "sleep", argv=("sleep", "9")), 151: seen(51, "sh", argv=("sh",))}
    notes = Notes({100: seen(1, "lab"), **looks}.get, [(100, None), (150, 100), (151, 100)], ["true"])
    notes.take(Told(1 * MS, "exit", 151, code=3))
    assert [(e.kind, e.process, e.name, e.code) for e in notes.finished(0)] == [
        ("here", 0, "lab", None), ("here", 1, "sh", None), ("exit", 1, "sh", 3),
    ]  # fmt: skip


# ---- the connector's messages


def message(kind, *numbers, text=b""):
    event = struct.pack("=IIQ", kind, 0, 7) + struct.pack(f"={len(numbers)}I", *numbers) + text
    return bytes(proc_events.ENVELOPE.size) + event.ljust(40, b"\0")


def test_a_message_of_the_kernel_becomes_a_telling():
    fork, exit_, comm = 0x1, 0x80000000, 0x200
    assert proc_events._parse(message(fork, 5, 5, 9, 9)) == Told(7, "fork", 9, 5)
    assert proc_events._parse(message(exit_, 9, 9, 3 << 8)) == Told(7, "exit", 9, code=3)
    assert proc_events._parse(message(exit_, 9, 9, 0x80 | signal.SIGSEGV)) == Told(7, "exit", 9, code=-11)
    assert proc_events._parse(message(comm, 9, 9, text=b"runc:[2:INIT]")) == Told(7, "name", 9, name="runc:[2:INIT]")
    assert proc_events._parse(b"") is None


def test_a_new_thread_is_no_process():
    assert proc_events._parse(message(0x1, 5, 5, 10, 9)) is None


# ---- pictures and words, on a made-up film


def made_up(*, detached=True):
    """PID 5 is runc, which makes the container 9 and leaves."""
    runc, name = "runc run demo", "runc:[2:INIT]"
    ends = [
        Event(42, "exit", 1, 0, runc, 5, 5, 905, False, 0),
        Event(42.2, "parent", 3, 0, "sleep 1", 9, 1, 909, True),
    ] if detached else [
        Event(80, "exit", 3, 1, "sleep 1", 9, 1, 909, True, -13),
        Event(82, "exit", 1, 0, runc, 5, 5, 905, False, 141),
    ]  # fmt: skip
    return Film(
        argv=("runc", "run", "demo"), source=CONNECTOR, output=None, returned=43.0 if detached else 83.0, length=95.0,
        events=(
            Event(0, "here", 0, None, "lab", 1, 1, 901),
            Event(1, "fork", 1, 0, "lab", 5, 5, 905),
            Event(4, "exec", 1, 0, runc, 5, 5, 905),
            Event(10, "fork", 2, 1, runc, 7, 7, 907),
            Event(10.5, "exec", 2, 1, "runc init", 7, 7, 907),
            Event(12, "exec", 2, 1, "runc init", 7, 7, 907),
            Event(26, "name", 2, 1, "runc:[0:PARENT]", 7, 7, 907),
            Event(27, "fork", 3, 1, runc, 9, 1, 909, True),
            Event(27.2, "name", 3, 1, name, 9, 1, 909, True),
            Event(28, "exit", 2, 1, "runc:[0:PARENT]", 7, 7, 907, False, 0),
            Event(40, "exec", 3, 1, "sleep 1", 9, 1, 909, True),
            *ends,
        ),
    )  # fmt: skip


def test_the_text_of_a_film_is_a_table_of_lives():
    assert str(pictures.film(made_up(), "The container stays.")) == """\
The container stays.
PID                from ms  to ms  what it was, and how it ended
1                   before         lab · runs on
└─ 5                   1.0   42.0  runc run demo · status 0
   ├─ 7               10.0   28.0  runc init → runc:[0:PARENT] · status 0
   └─ 9, inside 1     27.0         runc:[2:INIT] → sleep 1 · runs on · adopted by PID 1 at 42.2 ms
The command returned after 43.0 ms. Recorded by the kernel's proc connector."""


def test_a_death_by_a_signal_is_named_in_the_table_and_in_the_drawing():
    picture = pictures.film(made_up(detached=False), "SIGPIPE")
    assert "sleep 1 · is killed by SIGPIPE" in picture.text
    assert "killed by SIGPIPE" in picture.dot


def test_a_bar_changes_its_colour_where_the_runtime_becomes_the_containers_program():
    container = lives(made_up())[3]
    assert [(s.name, s.role, s.start, s.end) for s in container.segments[1:]] == [
        ("runc:[2:INIT]", "runtime", 27.2, 40),
        ("sleep 1", "container", 40, pytest.approx(47.2)),
    ]
    assert container.segments[0].born


def test_a_film_is_drawn_no_wider_than_a_page_even_with_hostile_names_and_many_processes():
    hostile = '<b>"\\N\x1b]0;\n</b>' * 30
    forks = [Event(5 + n / 10, "fork", 4 + n, 1, hostile, 20 + n, 20 + n, 920 + n) for n in range(300)]
    film = dataclasses.replace(made_up(), events=(*made_up().events, *forks))
    picture = pictures.film(film, "Many")
    data, metadata = picture.bundle()
    assert metadata["image/png"]["width"] <= 900
    assert "and 264 more processes" in picture.dot
    assert picture.text.count("\n") == 1 + 304


def test_the_frames_tell_the_film_in_words():
    assert [frame.words for frame in film_frames(made_up(detached=False))] == [
        "Before the command.",
        "PID 1 forks: PID 5 begins.",
        "PID 5 becomes `runc run demo`.",
        "PID 5 forks: PID 7 begins.",
        "PID 7 becomes `runc init`.",
        "PID 7 becomes `runc init`.",
        "PID 7 now calls itself `runc:[0:PARENT]`.",
        "PID 5 forks: PID 9 (1 inside) begins.",
        "PID 9 (1 inside) now calls itself `runc:[2:INIT]`.",
        "PID 7, `runc:[0:PARENT]`, ends with status 0.",
        "PID 9 (1 inside) becomes `sleep 1`.",
        "PID 9 (1 inside), `sleep 1`, is killed by SIGPIPE.",
        "PID 5, `runc run demo`, ends with status 141.",
    ]


def test_a_frame_has_those_who_are_alive_and_for_one_frame_the_one_who_has_just_gone():
    frames = film_frames(made_up())
    alive = [[(row.pid, row.change) for row in frame.rows] for frame in frames]
    assert alive[9:11] == [[(1, ""), (5, ""), (7, "gone"), (9, "")], [(1, ""), (5, ""), (9, "changed")]]
    assert [(row.pid, row.parent, row.change) for row in frames[-1].rows] == [(1, None, ""), (9, 0, "moved")]


# ---- real films


def told_by_kernel():
    try:
        proc_events._listen().close()
    except OSError:
        return False
    return True


@pytest.fixture
def connector():
    if not told_by_kernel():
        pytest.skip("this machine can't: the kernel doesn't tell us of processes")


@pytest.fixture
def by_looking(monkeypatch):
    """The kernel refuses the connector, as in a container or before Linux 6.6."""

    def refuse(lab):
        raise PermissionError

    monkeypatch.setattr(proc_events, "by_connector", refuse)


def kinds(film, kind):
    return [event for event in film.events if event.kind == kind]


def test_the_film_agrees_with_strace(lab, connector):
    script = "busybox true; (busybox false); busybox sh -c 'kill -PIPE $$'; busybox sh -c 'exit 7'; busybox true"
    strace = ["strace", "-f", "-e", "trace=fork,vfork,clone,clone3,execve", "-o", "log"]
    film = record(lab, [*strace, "busybox", "sh", "-c", script], echo=False)
    log = lab.path("log").read_text()
    forks = re.findall(r"(?:fork|vfork|clone|clone3)(?:\(.*| resumed>.*)\) += (\d+)$", log, re.M)
    execs = re.findall(r"^(\d+) +.*execve(?:\(.*| resumed>.*)\) += 0$", log, re.M)
    ends = {int(pid): int(code) for pid, code in re.findall(r"^(\d+) .*exited with (\d+) \+\+\+$", log, re.M)}
    ends |= {int(pid): -signal.SIGPIPE for pid in re.findall(r"^(\d+) .*killed by SIGPIPE \+\+\+$", log, re.M)}
    assert len(forks) >= 4 and len(ends) >= 5 and {0, 7, -signal.SIGPIPE} <= set(ends.values())

    [(shell, _)] = collections.Counter(event.parent for event in kinds(film, "fork")).most_common(1)
    traced = {shell} | descendants(film, shell)
    forked = [e.pid for e in kinds(film, "fork") if e.process in traced - {shell}]
    ended = {e.process: (e.pid, e.code) for e in kinds(film, "exit") if e.process in traced}
    assert len(forked) == len(forks)
    assert set(forked) - {None} <= set(map(int, forks))  # None: it had gone when we looked
    assert len([e for e in kinds(film, "exec") if e.process in traced]) == len(execs)
    assert sorted(code for _, code in ended.values()) == sorted(ends.values())
    assert all(pid is None or ends[pid] == code for pid, code in ended.values())


def descendants(film, process):
    found = {process}
    for event in kinds(film, "fork"):
        if event.parent in found:
            found.add(event.process)
    return found - {process}


def test_every_fork_and_exit_of_a_known_script_is_in_the_film(lab, connector):
    film = record(lab, ["busybox", "sh", "-c", "for i in 1 2 3 4 5 6 7; do busybox true; done; exit 5"],
                  check=False, echo=False)  # fmt: skip
    assert len(kinds(film, "fork")) == 1 + 7
    assert [e.code for e in kinds(film, "exit")] == [0] * 7 + [5]
    assert film.output.code == 5
    assert all(event.ms <= film.length for event in film.events)


def test_a_thread_is_not_a_process_in_the_film(lab, connector):
    threads = "import threading; t=[threading.Thread(target=print) for _ in range(9)]; [x.start() for x in t]"
    film = record(lab, ["/usr/bin/python3", "-c", threads], echo=False)
    assert len(kinds(film, "fork")) == len(kinds(film, "exit")) == 1


def test_a_death_by_sigpipe_is_in_the_film(lab, connector):
    film = record(lab, ["busybox", "sh", "-c", "busybox yes | busybox head -n 1"], echo=False)
    writer, reader = sorted(kinds(film, "exit"), key=lambda event: event.code)[:2]
    assert (writer.code, reader.code) == (-signal.SIGPIPE, 0)
    assert writer.name in ("busybox yes", "busybox", "?")  # it may be too short-lived to be read


def test_what_runc_calls_its_stages_is_in_the_film_and_the_container_has_the_pid_that_runc_prints(lab, connector):
    bundles.make(lab, "web", ["sleep", "1000"])
    film = record(lab, ["runc", "run", "--detach", "--bundle", "web", "web"], echo=False)
    state = json.loads(lab.run(["runc", "state", "web"], echo=False).stdout)
    stages = {event.name for event in kinds(film, "name")}
    assert {"runc:[1:CHILD]", "runc:[2:INIT]"} <= stages
    container = next(row for row in lives(film) if row.segments[-1].name == "sleep 1000")
    assert (container.pid, container.inner_pid, container.end) == (state["pid"], 1, None)
    assert [s.role for s in container.segments] == ["runtime", "runtime", "container"]
    [(_, parent)] = container.adopted
    assert parent == 0
    host = Path(f"/proc/{next(e.host_pid for e in film.events if e.pid == state['pid'])}/cmdline")
    assert host.read_bytes() == b"sleep\x001000\0"
    lab.run(["runc", "delete", "--force", "web"], echo=False)


def test_in_the_foreground_runc_outlives_its_container(lab, connector):
    bundles.make(lab, "short", ["sleep", "0.05"])
    film = record(lab, ["runc", "run", "--bundle", "short", "short"], echo=False)
    ends = {row.segments[-1].name.split()[0]: row.end for row in lives(film) if row.end is not None}
    assert ends["sleep"] < ends["runc"]
    assert all(row.end is not None for row in lives(film)[1:])


def test_two_labs_at_once_and_the_rest_of_the_machine_stay_out_of_the_film(lab, connector):
    import subprocess

    from helpers import lab as lab_module

    mine, lab_module._current = lab_module._current, None  # else the second lab would end the first
    try:
        other = lab_module.start_lab()
    finally:
        lab_module._current = mine
    stop = threading.Event()

    def noise():
        while not stop.is_set():
            other.run(["busybox", "true"], echo=False)
            subprocess.run(["true"], check=True, timeout=10)

    thread = threading.Thread(target=noise)
    thread.start()
    try:
        films = [record(lab, ["busybox", "sleep", "0.1"], echo=False) for _ in range(2)]
    finally:
        stop.set()
        thread.join(10)
        other.close()
    for film in films:
        assert [(e.kind, e.name) for e in film.events] == [
            ("here", "lab"), ("fork", "lab"), ("exec", "busybox sleep 0.1"), ("exit", "busybox sleep 0.1"),
        ]  # fmt: skip


def test_without_the_connector_the_film_is_made_by_looking_and_says_so(lab, by_looking):
    bundles.make(lab, "short", ["sleep", "0.4"])
    film = record(lab, ["runc", "run", "--bundle", "short", "short"], echo=False)
    assert re.fullmatch(r"looking at /proc every \S+ ms", film.source)
    rows = lives(film)
    assert rows[1].segments[-1].name == "runc run --bundle short short"
    assert [r.inner_pid for r in rows if r.segments[-1].name == "sleep 0.4"] == [1]
    assert all(row.end is not None and row.code is None for row in rows[1:])


def test_the_end_of_a_container_from_before_the_film_is_in_it(lab, connector):
    bundles.make(lab, "old", ["sleep", "1000"])
    lab.run(["runc", "run", "--detach", "--bundle", "old", "old"], echo=False)
    wait_until(lambda: lab.find("sleep"), "the container's program")  # runc is gone a moment before
    film = record(lab, ["runc", "delete", "--force", "old"], echo=False)
    old = next(event for event in film.events if event.kind == "here" and event.name.startswith("sleep"))
    end = next(event for event in kinds(film, "exit") if event.process == old.process)
    assert end.code == -signal.SIGKILL


def test_a_film_of_a_command_that_does_not_exist_raises_and_leaves_no_thread(lab):
    with pytest.raises(Exception, match="command not found"):
        record(lab, ["no-such-command"], echo=False)
    wait_until(lambda: "film" not in {t.name for t in threading.enumerate()}, "the end of the film's thread")


LEARNERS_FILM = """
from helpers.film import record
from helpers.lab import start_lab
lab = start_lab()
film = record(lab, ["busybox", "sh", "-c", "busybox true; exit 3"], check=False, echo=False)
print(film.source)
print([(e.kind, e.name.split(" ")[-1], e.pid is not None, e.code) for e in film.events])
lab.close()
"""


@pytest.mark.parametrize("kind", ["with subordinate IDs", "without"])
def test_an_ordinary_user_can_record_a_film(learners, kind):
    learner = learners[kind]
    done = learner.run([learner.python, "-c", LEARNERS_FILM], timeout=60)
    assert done.returncode == 0, done.stderr
    source, events = done.stdout.splitlines()
    assert source == CONNECTOR or source.startswith("looking at /proc")
    if source == CONNECTOR:
        ends = [event for event in ast.literal_eval(events) if event[0] == "exit"]
        assert [code for *_, code in ends] == [0, 3]  # what `true` was called may have been gone too soon to read
        assert "3)]" in events


@pytest.fixture(autouse=True)
def tools():
    for tool in ("runc", "busybox", "strace"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    assert sys.version_info >= (3, 11)
