"""The pictures, from made-up records: exact text, and a drawing that graphviz takes."""

import io
import itertools

import pytest
from PIL import Image

from helpers import pictures
from helpers.pictures.base import Picture, escape
from helpers.pictures.roles import command, role
from helpers.pictures.wiring import connections
from helpers.processes import Descriptor, Process, socket_peers

LAB_NS = (("pid", 1), ("mnt", 2), ("net", 3), ("user", 4))
OWN_NS = (("pid", 11), ("mnt", 12), ("net", 13), ("user", 4))
LAB = Process(1, 0, "lab", ("python3",), pids=(1,), namespaces=LAB_NS, started=1)
RUNC = Process(4, 1, "runc", ("runc", "run", "web"), pids=(4,), namespaces=LAB_NS, started=2)
SH = Process(11, 4, "sh", ("/bin/sh", "-c", "sleep 1; date"), pids=(11, 1), namespaces=OWN_NS, started=3)
SLEEP = Process(17, 11, "sleep", ("sleep", "1"), pids=(17, 7), namespaces=OWN_NS, started=4)
ORPHAN = Process(11, 1, "sh", SH.argv, pids=(11, 1), namespaces=OWN_NS, started=3)


def test_a_tree_says_who_is_whose_parent_and_what_is_new():
    assert pictures.tree([LAB, RUNC, SH, SLEEP], "All").text == (
        "1 lab                        PID 1 of the lab, reaps orphans\n"
        "└─ 4 runc                    runc run web\n"
        "   └─ 11 sh        inside 1  sh -c 'sleep 1; date' · new: pid mnt net\n"
        "      └─ 17 sleep  inside 7  sleep 1 · new: pid mnt net"
    )


def test_before_and_after_marks_what_came_went_and_was_adopted():
    picture = pictures.before_after([LAB, RUNC, SH], [LAB, ORPHAN, SLEEP], "runc was killed")
    assert picture.text == (
        "  1 lab                     PID 1 of the lab, reaps orphans\n"
        "- ├─ 4 runc                 runc run web · gone\n"
        "~ └─ 11 sh        inside 1  sh -c 'sleep 1; date' · new: pid mnt net · re-parented, was 4's\n"
        "+    └─ 17 sleep  inside 7  sleep 1 · new"
    )


def test_a_pid_that_was_used_again_is_another_process():
    later = Process(4, 1, "date", ("date",), pids=(4,), namespaces=LAB_NS, started=9)
    text = pictures.before_after([LAB, RUNC], [LAB, later], "PID 4 twice").text
    assert "- ├─ 4 runc" in text and "+ └─ 4 date" in text


def test_a_zombie_is_called_one():
    dead = Process(5, 1, "sh", (), "Z", pids=(5,), namespaces=LAB_NS)
    assert "zombie" in pictures.tree([LAB, dead], "A zombie").text


def test_the_namespace_map_shows_what_is_shared():
    other = Process(30, 1, "nc", ("nc",), pids=(30, 1), namespaces=(("pid", 21), ("mnt", 22), ("net", 13), ("user", 4)))
    picture = pictures.namespace_map([LAB, SH, other], "A pod", labels={11: "web:"})
    assert picture.text == (
        "                      pid  mnt  net  user\n"
        "lab 1                 lab  lab  lab  lab\n"
        "web: sh 11, inside 1  A    A    A    lab\n"
        "nc 30, inside 1       B    B    A    lab"
    )
    assert 'rowspan="2"' in picture.dot and "shared by 2" in picture.dot


def test_the_wiring_joins_the_two_ends_of_a_pipe():
    ends = [Descriptor(4, 9, "pipe:[7]", "pipe", 7, "r"), Descriptor(11, 1, "pipe:[7]", "pipe", 7, "w")]
    picture = pictures.wiring([RUNC, SH], ends, "runc reads what sh writes")
    assert picture.text == (
        "runc 4\n  9      pipe             <- sh 11 (1)\nsh 11, inside 1\n  1      pipe             -> runc 4 (9)"
    )


@pytest.mark.parametrize(
    ("one", "other", "joined"),
    [
        (("pipe", 7, "w", None, None, ""), ("pipe", 7, "r", None, None, ""), True),
        (("pipe", 7, "w", None, None, ""), ("pipe", 8, "r", None, None, ""), False),
        (("pipe", 7, "w", None, None, ""), ("pipe", 7, "w", None, None, ""), False),
        (("fifo", 7, "rw", None, None, ""), ("fifo", 7, "r", None, None, ""), True),
        (("socket", 7, "rw", 8, None, ""), ("socket", 8, "rw", 7, None, ""), True),
        (("socket", 7, "rw", None, None, ""), ("socket", 7, "rw", None, None, ""), False),
        (("pty", 2, "rw", None, 3, "/dev/ptmx"), ("pty", 6, "rw", None, 3, "/dev/pts/3"), True),
        (("pty", 2, "rw", None, 3, "/dev/pts/3"), ("pty", 6, "rw", None, 3, "/dev/pts/3"), False),
    ],
)
def test_only_ends_of_one_thing_are_joined(one, other, joined):
    ends = [
        Descriptor(pid, 1, target, kind, inode, access, peer, pty)
        for pid, (kind, inode, access, peer, pty, target) in ((4, one), (11, other))
    ]
    assert len(connections(ends)) == joined


def test_the_peers_of_sockets_are_read_from_what_ss_prints():
    said = (
        "u_str ESTAB 0 0 /run/x.sock 8444 * 8443\n"
        "u_str ESTAB 0 0 * 8443 * 8444\n"
        "u_str LISTEN 0 128 /run/x.sock 99 * 0\n"
    )
    assert socket_peers(said) == {8444: 8443, 8443: 8444}


def test_a_script_is_shown_as_it_was_typed_without_its_interpreter():
    kept = Process(7, 1, "vmrun", ("/usr/bin/python3", "-IS", "/run/lab/vmrun", "create", "web"), started=1)
    asked = Process(8, 1, "python3", ("python3", "-I", "attach.py", "a b"), started=1)
    typed = Process(9, 1, "python3", ("python3", "-c", "print(1)"), started=1)
    words = [command(process) for process in (kept, asked, typed)]
    assert words == ["vmrun create web", "attach.py 'a b'", "python3 -c 'print(1)'"]


def test_the_role_is_told_by_name_and_namespace():
    assert [role(p, LAB) for p in (LAB, RUNC, SH)] == ["plain", "runtime", "container"]
    shim = Process(3, 1, "containerd-shim", ("x",), pids=(3,), namespaces=LAB_NS)
    assert role(shim, LAB) == "shim"


def test_no_markup_of_a_command_line_reaches_the_drawing():
    evil = Process(5, 1, '"><b>', ('"]; }', "<table>", "a\nb", "\x1b[31m"), pids=(5,), namespaces=OWN_NS)
    for picture in (
        pictures.tree([LAB, evil], 'A "caption" <b>'),
        pictures.namespace_map([LAB, evil], "x"),
        pictures.wiring([LAB, evil], [], "x"),
    ):
        assert picture.png().startswith(b"\x89PNG")
    assert escape("<&\x1b") == "&lt;&amp;?"


def test_a_picture_is_a_sharp_png_with_its_words():
    picture = pictures.tree([LAB, RUNC, SH, SLEEP], "runc stays")
    data, metadata = picture.bundle()
    drawing = Image.open(io.BytesIO(data["image/png"]))
    assert metadata["image/png"]["alt"] == "runc stays"
    assert metadata["image/png"]["width"] < drawing.width  # shown smaller than it is: sharp on fine screens
    assert data["text/plain"].startswith("runc stays\n1 lab")


def test_there_is_room_between_a_drawing_and_its_caption():
    drawing = Image.open(io.BytesIO(pictures.tree([LAB, RUNC], "runc stays").png())).convert("L")
    inked = [drawing.crop((0, y, drawing.width, y + 1)).getextrema()[0] < 128 for y in range(drawing.height)]
    last, white = [(ink, len(list(rows))) for ink, rows in itertools.groupby(reversed(inked))][1:3]  # below is the pad
    assert last[0] and not white[0] and white[1] > last[1] / 2, "half a line"


def test_without_graphviz_the_text_is_shown_and_the_mend(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    data, _ = Picture("a caption", "digraph {}", "the text").bundle()
    assert "image/png" not in data
    assert "install the package graphviz" in data["text/plain"] and "the text" in data["text/plain"]
