"""Lesson 05: its wiring against what was built by hand and against lsof, its terminals, its widget, and no engine."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import CHECKOUT, EXCUSE
from test_live import SETUP

from helpers import attach_widget, bundles, engines, machine, pictures, rendering, terminals
from helpers.browser import run
from helpers.lab import PIPE, LabError, start_lab
from helpers.pictures.wiring import connections
from helpers.processes import Descriptor, Process, socket_peers, wait_until

LISTEN = ["sh", "-c", "echo ready; while read line; do echo heard $line; done"]
LESSON = CHECKOUT / "notebooks/05-attach-vs-exec.ipynb"


@pytest.fixture(scope="module")
def shared():
    """One lab for all that only looks."""
    try:
        started = start_lab()
    except LabError as error:
        pytest.skip(f"{EXCUSE}make a lab ({error})")
    with contextlib.ExitStack() as stack:
        stack.callback(started.close)
        yield started


# ---- on made-up records


def joined(*ends):
    """The connections between descriptors of process 1, 2, ..., one each: {(from, to)}."""
    made = [Descriptor(pid, 5, *end) for pid, end in enumerate(ends, 1)]
    return {(a.pid, b.pid) for a, b in connections(made)}


def pty(target, number, devpts):
    return (target, "pty", 3, "rw", None, number, devpts)


def test_terminals_of_one_number_in_two_containers_have_nothing_to_do_with_each_other():
    master, slave = "/dev/pts/ptmx", "/dev/pts/0"
    assert joined(pty(master, 0, 70), pty(slave, 0, 70), pty(slave, 0, 71), pty(slave, 1, 70)) == {(1, 2)}


def test_fifos_and_files_are_told_apart_by_their_file_system():
    def end(kind, access, device):
        return ("/x", kind, 9, access, None, None, device)

    assert joined(end("fifo", "w", 1), end("fifo", "r", 1), end("fifo", "r", 2)) == {(1, 2)}
    assert joined(end("file", "w", 1), end("file", "r", 1), end("file", "r", 2)) == {(1, 2)}
    assert joined(end("file", "rw", 1), end("file", "rw", 1), end("file", "r", 1)) == set()
    assert joined(end("fifo", "", 1), end("fifo", "r", 1), end("fifo", "w", 1)) == {(3, 2)}


def test_the_text_names_each_end_once_and_the_notebook_without_a_number():
    cat = Process(7, 1, "cat", ("cat",), pids=(7,))
    ends = [Descriptor(7, n, "/dev/pts/1", "pty", 4, "rw", None, 1, 9) for n in (0, 1, 2)]
    ends.append(Descriptor(0, 30, "/dev/ptmx", "pty", 2, "rw", None, 1, 9))
    picture = pictures.wiring([Process(0, 0, "notebook"), cat], ends, "A terminal")
    assert picture.text == (
        "notebook outside the lab\n  30     terminal master  <-> cat 7 (0 1 2)\n"
        "cat 7\n  0 1 2  terminal pts/1   <-> notebook (30)"
    )
    assert picture.dot.count("dir=both") == 1


def test_a_script_is_called_by_its_name_and_a_list_is_a_column():
    one = Process(7, 1, "python3", ("/usr/bin/python3", "-I", "./attach.py", "x"), pids=(7,))
    two = Process(8, 1, "python3", ("python3",), pids=(8,))
    picture = pictures.wiring([[one, two]], [], "Two")
    assert picture.text == "attach.py 7\npython3 8"
    assert "{ rank=same; p7; p8 }" in picture.dot


def test_a_path_with_spaces_does_not_hide_the_other_end():
    said = "u_seq ESTAB 0 0 /run/my 12 dir/a 7001 * 7002\nu_seq ESTAB 0 0 * 7002 * 7001\nu_str LISTEN 0 9 /x y 5 * 0\n"
    assert socket_peers(said) == {7001: 7002, 7002: 7001}


# ---- against what was built by hand

BUILDER = r"""
import fcntl, json, os, signal, socket, struct, subprocess, sys

held, null = [], os.open("/dev/null", os.O_RDWR)

def hold(*descriptors):
    "Fork a process that has these as 10, 11, ..., /dev/null as 0, 1 and 2, and nothing else."
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        high = [fcntl.fcntl(d, fcntl.F_DUPFD, 100) for d in (*descriptors, done)]
        for number in range(3):
            os.dup2(null, number)
        for number, d in enumerate(high[:-1], 10):
            os.dup2(d, number)
        os.dup2(high[-1], 99)
        os.closerange(3, 10), os.closerange(10 + len(descriptors), 99), os.closerange(100, 4096)
        os.write(99, b"x"), os.close(99)
        while True:
            signal.pause()
    os.close(done)
    os.read(ready, 1)
    held.append(pid)

def mount(kind, place, options):
    os.mkdir(place)
    subprocess.run(["mount", "-t", kind, "-o", options, kind, place], check=True)

def terminal(place):
    "A master and a slave of the devpts that is mounted there."
    master = os.open(place + "/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, 0x40045431, struct.pack("i", 0))
    number = struct.unpack("i", fcntl.ioctl(master, 0x80045430, bytes(4)))[0]
    assert number == 0, number
    return master, os.open(place + "/0", os.O_RDWR | os.O_NOCTTY)

def fifo(path):
    os.mkfifo(path)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK), os.open(path, os.O_WRONLY)

def connect(kind, path, accept=True):
    server, client = socket.socket(socket.AF_UNIX, kind), socket.socket(socket.AF_UNIX, kind)
    server.bind(path), server.listen(3), client.connect(path)
    return server, client, (server.accept()[0] if accept else None)

exec(sys.argv[1])
print(json.dumps(held), flush=True)
sys.stdin.read()
"""
#: name: (what is built, {(writer, its descriptor, reader, its descriptor)}); both ways for sockets and terminals.
BUILT = {
    "a pipe": ("r, w = os.pipe(); hold(r); hold(w)", {(1, 10, 0, 10)}),
    "two pipes, as of a filter": (
        "r, w = os.pipe(); R, W = os.pipe(); hold(r, W); hold(w, R)", {(1, 10, 0, 10), (0, 11, 1, 11)},
    ),
    "a pipe with two writers, and one that both ends know": (
        "r, w = os.pipe(); hold(r); hold(w); hold(w); hold(r, w)",
        {(1, 10, 0, 10), (2, 10, 0, 10), (3, 11, 0, 10), (1, 10, 3, 10), (2, 10, 3, 10)},
    ),
    "a fifo": ("r, w = fifo('f1'); hold(r); hold(w)", {(1, 10, 0, 10)}),
    "a fifo that is open both ways": (
        "os.mkfifo('f2'); b = os.open('f2', os.O_RDWR); hold(b); hold(os.open('f2', os.O_RDONLY))", {(0, 10, 1, 10)},
    ),
    "two fifos of one inode number": (
        "mount('tmpfs', 't1', 'size=9k'); mount('tmpfs', 't2', 'size=9k'); r, w = fifo('t1/f'); R, W = fifo('t2/f')\n"
        "assert os.fstat(r).st_ino == os.fstat(R).st_ino\nhold(r); hold(w); hold(R); hold(W)",
        {(1, 10, 0, 10), (3, 10, 2, 10)},
    ),
    "a fifo that is only named, with O_PATH": (
        "r, w = fifo('f3'); hold(os.open('f3', os.O_PATH)); hold(w); hold(r)", {(1, 10, 2, 10)},
    ),
    "a terminal": ("m, s = os.openpty(); hold(m); hold(s, s)", {(0, 10, 1, 10), (0, 10, 1, 11)}),
    "two terminals of one number": (
        "mount('devpts', 'p1', 'newinstance,ptmxmode=0666'); mount('devpts', 'p2', 'newinstance,ptmxmode=0666')\n"
        "m, s = terminal('p1'); M, S = terminal('p2'); hold(m); hold(s); hold(M); hold(S)",
        {(0, 10, 1, 10), (2, 10, 3, 10)},
    ),
    "a socket pair": ("a, b = socket.socketpair(); hold(a.fileno()); hold(b.fileno())", {(0, 10, 1, 10)}),
    "packets over a socket whose path has spaces": (
        "s, c, a = connect(socket.SOCK_SEQPACKET, 'a 1 b'); hold(c.fileno()); hold(a.fileno(), s.fileno())",
        {(0, 10, 1, 10)},
    ),
    "a call that nobody has taken": (
        "s, c, a = connect(socket.SOCK_STREAM, 'later', False); hold(c.fileno()); hold(s.fileno())", set(),
    ),
    "/dev/null, twice": ("hold(null); hold(null)", set()),
    "a log and its reader": (
        "w = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND); hold(w); hold(os.open('log', os.O_RDONLY))",
        {(0, 10, 1, 10)},
    ),
    "a file that both write, and two readers of another": (
        "w = os.open('both', os.O_RDWR | os.O_CREAT); hold(w); hold(os.open('both', os.O_RDWR))\n"
        "r = os.open('/etc/passwd', os.O_RDONLY); hold(r); hold(r)", set(),
    ),
}  # fmt: skip


def build(lab, source, *prefix):
    """Have it built, in a directory of its own; the processes that hold the ends."""
    place = lab.run(["mktemp", "-d"], echo=False).stdout.strip()
    builder = lab.start([*prefix, machine.find("python3"), "-c", BUILDER, source], cwd=place, echo=False,
                        stdin=PIPE, stdout=PIPE, stderr="builder.log")  # fmt: skip
    try:
        said = builder.read_until("\n")
    except TimeoutError:
        pytest.fail(Path(lab.path("builder.log", place)).read_text())
    return builder, [lab.process(pid) for pid in json.loads(said)]


def found(lab, members):
    order = {p.pid: position for position, p in enumerate(members)}
    pairs = connections(lab.descriptors(*members))
    return {(order[a.pid], a.number, order[b.pid], b.number) for a, b in pairs}


@pytest.mark.parametrize("name", BUILT)
def test_the_lines_are_those_that_were_built(shared, name):
    source, wanted = BUILT[name]
    builder, members = build(shared, source)
    assert found(shared, members) == wanted
    picture = pictures.wiring(members, shared.descriptors(*members), name)
    assert drawn(picture) == lines_of(picture)
    assert lines_of(picture) == undirected((members[a].pid, m, members[b].pid, n) for a, m, b, n in wanted)
    assert picture.png().startswith(b"\x89PNG")
    builder.stdin.close()


def test_sockets_are_found_in_a_network_of_their_own(shared):
    source, wanted = BUILT["a socket pair"]
    builder, members = build(shared, source, "unshare", "--net")
    assert members[0].namespace("net") != shared.process(1).namespace("net")
    assert found(shared, members) == wanted
    builder.stdin.close()


def test_the_ends_that_this_process_holds_are_drawn(shared):
    step = shared.start(["cat"], stdin=PIPE, stdout=PIPE, echo=False)
    terminal = terminals.start(shared, ["cat"], echo=False)
    for number, held in ((0, (step.stdin, step.stdout)), (1, (terminal.master,))):
        cat = shared.process((step, terminal.step)[number].pid)
        members = [shared.notebook(), cat]
        ends = {(a.pid, a.number, b.pid, b.number) for a, b in connections(shared.descriptors(*members))}
        if number == 0:
            assert ends == {(0, held[0].fileno(), cat.pid, 0), (cat.pid, 1, 0, held[1].fileno())}
        else:
            assert ends == {(0, held[0], cat.pid, n) for n in (0, 1, 2)}
    step.kill()
    terminal.close()


# ---- against lsof

O_PATH = 0x200000


def lsof(lab, members):
    """{(from pid, descriptor, to pid, descriptor)} as lsof(8) says it, between these processes."""
    pids = ",".join(str(p.pid) for p in members)
    said = lab.run(["lsof", "-n", "-P", "-w", "-E", "+fG", "-F", "fatDinG", "-p", pids], echo=False, check=False).stdout
    files = {}
    for line in said.splitlines():
        key, value = line[:1], line[1:]
        if key == "p":
            pid = int(value)
        elif key == "f":
            now = files.setdefault((pid, value), {})
        else:
            now[key] = value
    files = {(pid, int(n)): one for (pid, n), one in files.items() if n.isdigit()}
    lines = set()
    for (pid, number), one in files.items():
        if int(one.get("G", "0").split(";")[0], 16) & O_PATH:
            continue
        for (other, n), two in files.items():
            same = (one.get("D"), one.get("i"), one["t"]) == (two.get("D"), two.get("i"), two["t"])
            if pid == other or not same or int(two.get("G", "0").split(";")[0], 16) & O_PATH:
                continue
            if one["t"] == "FIFO" and one["a"] in "wu" and two["a"] in "ru":
                lines.add((pid, number, other, n))
            if one["t"] == "REG" and (one["a"], two["a"]) == ("w", "r"):
                lines.add((pid, number, other, n))
        if one["t"] == "unix" or "ptmx" in one["n"]:
            for other, n in re.findall(r" (\d+),[^,]+,(\d+)[rwu]", one["n"]):
                there = (pid, number, int(other), int(n))
                if there[::2] != (pid, pid) and (int(other), int(n)) in files:
                    lines.add(there if one["t"] != "unix" or pid < int(other) else (*there[2:], *there[:2]))
    return lines


def lines_of(picture):
    """The lines of a wiring as its text tells them: {{(pid, descriptor), (pid, descriptor)}}.

    Each must be told at both of its ends, and an arrow must point the same way at both.
    """
    there, back = set(), set()
    for line in picture.text.splitlines():
        if not line.startswith(" "):
            pid = int(re.search(r" (\d+)(,|$)", line)[1])
            continue
        numbers = [int(n) for n in re.match(r"  ([\d ]+?)  ", line)[1].split()]
        for arrow, other, ends in re.findall(r"(<->|->|<-) [^(]+? (\d+) \(([\d ]+)\)", line):
            for one in [(pid, number) for number in numbers]:
                for two in [(int(other), int(end)) for end in ends.split()]:
                    there |= {(one, two)} if arrow != "<-" else set()
                    back |= {(two, one)} if arrow != "->" else set()
    assert there == back
    return undirected((*one, *two) for one, two in there)


def drawn(picture):
    """The same lines, as the drawing has them."""
    port = re.compile(r'<td port="(d\d+)" align="left"> ([\d ]+?)   ')
    ends = {}
    for node in re.finditer(r"^\s*p(\d+) \[shape=plain.*$", picture.dot, re.M):
        ends |= {name: [(int(node[1]), int(n)) for n in numbers.split()] for name, numbers in port.findall(node[0])}
    edges = re.findall(r"p(\d+):(d\d+):[we] -> p(\d+):(d\d+):[we]", picture.dot)
    for a, one, b, two in edges:
        assert (ends[one][0][0], ends[two][0][0]) == (int(a), int(b))
    return {frozenset([x, y]) for _, one, _, two in edges for x in ends[one] for y in ends[two]}


def undirected(lines):
    return {frozenset([(a, m), (b, n)]) for a, m, b, n in lines}


def exec_of(lab, first, name="cat"):
    """The process that exec has added to a container."""

    def seen():
        return next((p for p in lab.inside(first) if p.pid != first.pid and p.name == name), None)

    return wait_until(seen, "exec's process", 30)


def on_shim(lab, how):
    if not lab.path("oracle").exists():
        engines.shim(lab)
        bundles.make(lab, "oracle", LISTEN)
        engines.create(lab, "oracle", "--stdin", "--leave-stdin-open")
        lab.run(["runc", "start", "oracle"], echo=False)
    first = lab.container("oracle")
    added = []
    if how == "attach":
        step = engines.attach(lab, "oracle")
        step.stdin.write(b"hello\n")
        step.read_until("hello\n")
    elif how == "exec":
        step = lab.start(["runc", "exec", "oracle", "cat"], stdin=PIPE, stdout=PIPE, echo=False)
        step.stdin.write(b"hello\n")
        step.read_until("hello\n")
        added = [exec_of(lab, first)]
    else:
        step = lab.start(["tail", "-f", "oracle/log"], stdout=PIPE, echo=False)
        step.read_until("ready\n")
    return step, [lab.process(step.pid), lab.process(first.ppid), first, *added]


def on_engine(lab, engine, how):
    try:
        env = getattr(engines, engine)(lab)
    except engines.EngineError as error:
        pytest.skip(str(error))
    tty = how == "exec -it"
    name = f"{engine}-{how.split()[0]}"
    engines.make_image(lab, engine, env)
    begin = [engine, "run", "--detach", "--interactive", "--network", "none", "--name", name, "box", *LISTEN]
    lab.run(begin, env=env, echo=False)
    pid = lab.run([engine, "inspect", "--format", "{{.State.Pid}}", name], env=env, echo=False).stdout
    first = lab.process(int(pid))
    added = []
    if tty:
        terminal = terminals.start(lab, [engine, "exec", "-it", name, "cat"], env=env, echo=False)
        terminal.type("hello\n")
        terminal.read_until("hello\r\nhello")
        step, added = terminal.step, [exec_of(lab, first)]
    elif how == "attach":
        step = lab.start([engine, "attach", name], stdin=PIPE, stdout=PIPE, env=env, echo=False)
        step.stdin.write(b"hello\n")
        step.read_until("heard hello\n")
    else:
        step = lab.start([engine, "logs", "--follow", name], stdout=PIPE, env=env, echo=False)
        step.read_until("ready\n")
    shims = {p.ppid: lab.process(p.ppid) for p in (first, *added)}
    return step, [lab.process(step.pid), *lab.find("dockerd"), *shims.values(), first, *added]


#: How many lines each set-up has at least: an oracle that sees nothing would agree with a picture of nothing.
SEEN = {
    "shim attach": 4, "shim exec": 6, "shim logs": 4, "docker attach": 7, "docker exec -it": 5, "docker logs": 7,
    "podman attach": 4, "podman exec -it": 7, "podman logs": 4,
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_lsof_sees_the_same_lines(shared, name):
    if not shutil.which("lsof"):
        pytest.skip("lsof is missing")
    engine, how = name.split(maxsplit=1)
    step, members = on_shim(shared, how) if engine == "shim" else on_engine(shared, engine, how)

    def look():
        """What both see, or None while somebody opens or closes something between the two looks."""
        ends = shared.descriptors(*members)
        seen = lsof(shared, members)
        return (ends, seen) if ends == shared.descriptors(*members) else None

    ends, seen = wait_until(look, "two equal looks", 30)
    picture = pictures.wiring(members, ends, name)
    assert len(seen) >= SEEN[name]
    assert {(a.pid, a.number, b.pid, b.number) for a, b in connections(ends)} == seen
    assert drawn(picture) == lines_of(picture) == undirected(seen)
    step.kill(9)


# ---- terminals, and reading until


def test_ctrl_c_on_a_terminal_is_a_signal_for_the_command(shared):
    terminal = terminals.start(shared, ["sh", "-c", "trap 'echo heard; exit 4' INT; echo ready; read x"], echo=False)
    terminal.read_until("ready")
    terminal.type(terminals.CTRL_C)
    terminal.read_until("heard")
    assert terminal.step.wait(30) == 4
    terminal.close()


def test_a_terminal_has_its_size_and_closing_it_hangs_up(shared):
    terminal = terminals.start(shared, ["sh", "-c", "stty size; exec sleep 1000"], rows=7, columns=33, echo=False)
    terminal.read_until("7 33")
    wait_until(lambda: shared.process(terminal.step.pid).name == "sleep", "the sleep", 30)
    terminal.close()
    assert terminal.step.wait(30) == -1  # SIGHUP


def test_reading_until_keeps_the_rest_and_says_what_came_instead(shared):
    step = shared.start(["printf", "one two three"], stdout=PIPE, echo=False)
    assert step.read_until("one") == "one"
    assert step.read_until("two") == " two"
    with pytest.raises(TimeoutError, match="'four' did not come before the end: ' three'"):
        step.read_until("four")
    silent = shared.start(["sleep", "1000"], stdout=PIPE, echo=False)
    with pytest.raises(TimeoutError, match="in 0.1 s"):
        silent.read_until("x", timeout=0.1)


# ---- the widget, on made-up records

SHIM = Process(3, 1, "shim", ("shim",), pids=(3,), namespaces=(("pid", 1),))
INIT = Process(5, 3, "sh", ("sh",), pids=(5, 1), namespaces=(("pid", 2),))
CLIENT = Process(8, 1, "runc", ("runc", "exec"), pids=(8,), namespaces=(("pid", 1),))
ADDED = Process(9, 8, "cat", ("cat",), pids=(9, 4), namespaces=(("pid", 2),))


def test_the_sentence_counts_what_came():
    before = [SHIM, INIT]
    assert attach_widget.sentence("", before, before, INIT) == "Nobody is connected. The container has 1 process."
    assert attach_widget.sentence("exec", before, [*before, CLIENT, ADDED], INIT) == (
        "exec: new in the container: cat 9, inside 4; new outside: runc 8. The container has 2 processes."
    )
    assert attach_widget.sentence("logs", before, [*before, CLIENT], INIT) == (
        "logs: nothing new in the container; new outside: runc 8. The container has 1 process."
    )


def test_the_path_is_the_shortest_and_there_may_be_none():
    def row(pid):
        return (Descriptor(pid, 1, "", "pipe", 1, "r"),)

    lines = [(row(a), row(b), False) for a, b in ((1, 2), (2, 3), (1, 4), (4, 5), (5, 3))]
    assert attach_widget.path(lines, 1, 3) == [1, 2, 3]
    assert attach_widget.path(lines, 3, 4) == [3, 5, 4]
    assert attach_widget.path(lines, 1, 6) == []


def test_the_scene_marks_what_is_new_and_names_lines_by_their_ends():
    ends = [Descriptor(5, 1, "pipe:[7]", "pipe", 7, "w"), Descriptor(3, 9, "pipe:[7]", "pipe", 7, "r")]
    scene = attach_widget.scene([[SHIM], [INIT, ADDED]], ends, [SHIM, INIT, ADDED], [SHIM, INIT])
    assert scene["lines"] == [["5-1", "3-9", False, False]]
    assert [[p["title"], p["new"], p["role"], p["ports"]] for column in scene["columns"] for p in column] == [
        ["shim", False, "shim", [["3-9", "9", "pipe"]]],
        ["sh", False, "container", [["5-1", "1", "pipe"]]],
        ["cat", True, "container", []],
    ]
    assert [(p["title"], p["level"]) for p in scene["tree"]] == [("shim", 0), ("sh", 1), ("cat", 0)]


# ---- the widget, in a real lab

BUTTONS = {
    "attach": ["./attach.py", "glass/attach"],
    "exec": ["runc", "exec", "glass", "cat"],
    "logs": ["tail", "-f", "glass/log"],
}


def glass(lab):
    engines.shim(lab)
    bundles.make(lab, "glass", LISTEN)
    engines.create(lab, "glass", "--stdin", "--leave-stdin-open")
    lab.run(["runc", "start", "glass"], echo=False)
    return lab.container("glass")


def boxes(widget):
    return [[p["title"] for p in column] for column in widget.scene["columns"]]


def test_each_button_shows_what_its_command_brings_and_takes_it_away_again(lab):
    first = glass(lab)
    widget = attach_widget.show(lab, first, BUTTONS)
    assert boxes(widget) == [["notebook"], ["shim"], ["sh"]]
    widget.pressed = "attach"
    assert widget.trouble == ""
    assert boxes(widget) == [["notebook"], ["attach.py"], ["shim"], ["sh"]]
    assert [p.name for p in lab.inside(first)] == ["sh"]
    client = lab.find("python3")[0].pid
    widget.pressed = "exec"
    assert boxes(widget) == [["notebook"], ["runc"], ["shim"], ["sh", "cat"]]
    assert lab.process(client) is None
    added = next(p for p in lab.inside(first) if p.pid != first.pid)
    assert [p["title"] for p in widget.scene["tree"] if p["new"]] == ["runc", "cat"]
    assert f"cat {added.pid}, inside {added.inner_pid}" in widget.said
    widget.pressed = "logs"
    assert boxes(widget) == [["notebook"], ["tail"], ["shim"], ["sh"]]
    assert [p.pid for p in lab.inside(first)] == [first.pid]
    assert [line[3] for line in widget.scene["lines"]].count(True) == 1  # the file
    widget.pressed = ""
    assert boxes(widget) == [["notebook"], ["shim"], ["sh"]]
    assert lab.find("tail") == []


def test_the_static_twin_has_the_tree_and_the_wiring(lab):
    widget = attach_widget.show(lab, glass(lab), BUTTONS, pressed="exec")
    data = widget._repr_mimebundle_()[0]
    assert data["image/png"].startswith(b"\x89PNG")
    assert re.search(r"^\+ .*runc .* new$", data["text/plain"], re.M)
    assert re.search(r"^cat \d+, inside \d+\n  0 +pipe +<- runc \d+ \(\d+\)$", data["text/plain"], re.M)
    assert "application/vnd.jupyter.widget-view+json" in data


def test_a_command_that_fails_is_said_and_another_button_works(lab):
    widget = attach_widget.show(lab, glass(lab), {**BUTTONS, "exec": ["runc", "exec", "glass", "nosuch"]})
    widget.pressed = "exec"
    assert "runc exec glass nosuch" in widget.trouble and "nosuch" in widget.trouble.partition("ended")[2]
    widget.pressed = "logs"
    assert widget.trouble == "" and boxes(widget)[1] == ["tail"]
    lab.close()
    widget.pressed = "attach"
    assert "start_lab()" in widget.trouble


def test_a_button_that_there_is_not_is_named(lab):
    with pytest.raises(LookupError, match="'run'"):
        attach_widget.show(lab, lab.process(1), BUTTONS, pressed="run")
    with pytest.raises(LookupError, match="logs"):
        attach_widget.show(lab, lab.process(1), {"attach": ["true"], "exec": ["true"]})


# ---- the widget, in JupyterLab

CELLS = [
    SETUP + """
from helpers import attach_widget, bundles, engines
from helpers.lab import start_lab
lab = start_lab()
engines.shim(lab)
bundles.make(lab, "glass", ["sh", "-c", "echo ready; while read line; do echo heard $line; done"])
engines.create(lab, "glass", "--stdin", "--leave-stdin-open")
lab.run(["runc", "start", "glass"])""",
    f"attach_widget.show(lab, lab.container('glass'), {BUTTONS!r})",
    "lab.close()",
]  # fmt: skip
ENDS = """paths => paths.map(path => {
  const at = key => document.querySelector(`.att [data-key="${key}"]`).getBoundingClientRect();
  const box = document.querySelector(".att .wires").getBoundingClientRect();
  const near = (point, r) => Math.abs(point.y + box.top - (r.top + r.bottom) / 2) < 3 &&
    Math.min(Math.abs(point.x + box.left - r.left), Math.abs(point.x + box.left - r.right)) < 3;
  return near(path.getPointAtLength(0), at(path.dataset.from)) &&
    near(path.getPointAtLength(path.getTotalLength()), at(path.dataset.to));
})"""


def titles(page, part):
    return page.locator(f".att {part} b").all_inner_texts()


def test_the_widget_is_worked_by_the_keyboard_and_its_lines_end_at_their_descriptors(leak_check, notebook):
    page = notebook(CELLS)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    run(page, 0)
    run(page, 1)
    buttons = page.locator(".att button")
    buttons.first.wait_for(timeout=60_000)
    assert buttons.all_inner_texts() == ["attach", "exec", "logs"]
    assert titles(page, ".box") == ["notebook", "shim", "sh"]
    assert page.locator(".att path.line").count() == 3

    buttons.first.focus()
    page.keyboard.press("Enter")
    wait_until(lambda: titles(page, ".box") == ["notebook", "attach.py", "shim", "sh"], "attach", 30)
    assert titles(page, ".tree .new") == ["attach.py"]
    assert buttons.first.get_attribute("aria-pressed") == "true"
    assert page.locator(".att code").inner_text() == "# ./attach.py glass/attach"
    assert "nothing new in the container" in page.locator(".att [aria-live]").inner_text()
    assert page.locator(".att path.line").count() == 7
    assert all(page.locator(".att path.line").evaluate_all(ENDS))

    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    wait_until(lambda: titles(page, ".box") == ["notebook", "runc", "shim", "sh", "cat"], "exec", 30)
    assert titles(page, ".tree .new") == ["runc", "cat"]
    assert all(page.locator(".att path.line").evaluate_all(ENDS))
    assert page.evaluate("document.activeElement.dataset.kind") == "exec"  # the keyboard keeps its place

    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    wait_until(lambda: titles(page, ".box") == ["notebook", "tail", "shim", "sh"], "logs", 30)
    assert page.locator(".att path.line[stroke-dasharray]").count() == 1
    page.keyboard.press("Space")
    wait_until(lambda: titles(page, ".box") == ["notebook", "shim", "sh"], "nobody", 30)
    assert page.locator(".att .new").count() == 0

    run(page, 2)
    page.keyboard.press("Escape")
    buttons.first.focus()
    page.keyboard.press("Space")
    page.locator(".att .trouble", has_text="start_lab()").wait_for(timeout=30_000)
    assert complaints == []


# ---- without an engine


def test_without_any_engine_the_lesson_runs_with_the_shim_and_says_what_it_leaves_out(
    tmp_path, monkeypatch, leak_check
):  # fmt: skip
    programs = tmp_path / "bin"
    programs.mkdir()
    for place in ("/usr/local/bin", "/usr/bin", "/bin"):
        for program in (p for p in sorted(Path(place).glob("*")) if p.is_file()):
            if program.name not in ("docker", "podman") and not (programs / program.name).exists():
                (programs / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(programs))
    notebook = rendering.execute(LESSON)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    facts = {tag for cell in cells for tag in cell.metadata.get("tags", ()) if tag.startswith("fact:")}
    whole = "".join(o.get("text", "") for cell in cells for o in cell.outputs)
    assert "Docker is missing" in whole and "Podman is missing" in whole
    assert "# docker" not in whole and "# podman" not in whole
    shown = {
        tag for cell in cells for tag in cell.metadata.get("tags", ())
        if tag.startswith("fact:") and any("✓" in o.get("text", "") for o in cell.outputs)
    }  # fmt: skip
    assert facts - shown == {"fact:A2", "fact:A12"}  # what only an engine has
