"""A workshop with real seats: everybody works at once, and one who means harm does none to the others.

SEATS=20 makes it a full room; the load is then the real one, and so are the numbers that are printed.
"""

import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from classroom import sign_in
from conftest import CHECKOUT, EXCUSE
from test_accessibility import shot, violations
from test_structure import codes

from helpers import cgroups, cleanup
from helpers.processes import wait_until
from helpers.workshop import board, keeper, page, places, plan, proxy

SEATS = int(os.environ.get("SEATS", "3"))
TOGETHER = [path for path in (CHECKOUT / "notebooks/01-runc.ipynb", CHECKOUT / "notebooks/05-attach-vs-exec.ipynb")
            if path.exists()]  # fmt: skip
MEGABYTES = 700  # of memory for a seat in these tests: enough for a lesson, little enough to fill


# ---- pure


def test_seats_have_users_addresses_and_ranges_of_their_own():
    members = plan.seats(30)
    assert [seat.name for seat in members[:3]] == ["instructor", "seat-01", "seat-02"]
    assert len({seat.uid for seat in members}) == len({seat.address for seat in members}) == 31
    taken = sorted((seat.first_subordinate, seat.first_subordinate + plan.RANGE) for seat in members)
    assert all(end <= begin for (_, end), (begin, _) in zip(taken, taken[1:], strict=False))
    assert taken[0][0] > members[-1].uid and taken[-1][1] < 2**31
    with pytest.raises(ValueError, match="1 to 200 seats"):
        plan.seats(0)


def test_a_code_is_taken_however_it_is_typed_and_no_two_are_alike():
    seat = plan.seats(1)[1]
    made = {plan.code(seat) for _ in range(100)}
    assert len(made) == 100 and all(re.fullmatch(r"01(-[2-9a-z]{5}){2}", code) for code in made)
    assert {plan.normal(typed) for typed in ("01-ABCDE-fghjk", " 01 abcde fghjk ", "01-abcde-fghjk")} == {
        "01-abcde-fghjk"
    }


@pytest.mark.parametrize(("path", "found"), [
    ("/", 80), ("/hub/login", 80), ("/user/seat-01/lab", 1), ("/user/seat-01", 1), ("/user/seat-010/lab", 80),
])  # fmt: skip
def test_the_proxy_takes_the_longest_route_and_no_name_that_only_begins_alike(path, found):
    routes = {"/": {"target": "http://hub:80"}, "/user/seat-01/": {"target": "http://seat:1"}}
    assert proxy.target_of(routes, path)[1] == found


def test_the_proxy_says_who_asks_and_believes_no_client_that_says_so_itself():
    head = (b"GET /x HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.2.3.4\r\nConnection: keep-alive\r\n"
            b"x-forwarded-proto: https\r\nCookie: a=b\r\n\r\n")  # fmt: skip
    assert proxy.rewritten(head, "5.6.7.8", "http") == (
        b"GET /x HTTP/1.1\r\nHost: h\r\nCookie: a=b\r\nX-Forwarded-For: 5.6.7.8\r\nX-Forwarded-Proto: http\r\n"
        b"Connection: close\r\n\r\n")  # fmt: skip
    upgrade = proxy.rewritten(head.replace(b"Host: h", b"Host: h\r\nUpgrade: websocket"), "5.6.7.8", "http")
    assert b"\r\nUpgrade: websocket\r\n" in upgrade and upgrade.endswith(b"Connection: Upgrade\r\n\r\n")


@pytest.mark.parametrize("head", [b"", b"GET", b"GET http://elsewhere/ HTTP/1.1\r\n", b"GET / SSH/2\r\n"])
def test_the_proxy_refuses_what_is_no_request(head):
    with pytest.raises(proxy.Refused):
        proxy.path_of(head)


LESSON = board.Lesson("01-x", "What?", frozenset({"it is so", "and so"}), {"make one": "01.1", "make two": "01.2"})


def said(words, kind="check", done=True, lesson="01-x"):
    return json.dumps({"lesson": lesson, "kind": kind, "words": words, "done": done}).encode()


def test_the_board_tells_where_a_seat_stands():
    told = board.Board([LESSON], ["seat-01", "seat-02"])
    assert told.row("seat-01")["lesson"] == ""
    for message in (said("it is so"), said("it is so"), said("make one", "exercise", False),
                    said("make one", "exercise", True), said("make two", "exercise", False)):  # fmt: skip
        assert told.hear("seat-01", message, now=10)
    row = told.row("seat-01", now=75)
    assert (row["lesson"], row["checks"], row["red"], row["silent"]) == ("01-x", "1 of 2", "", 65)
    assert [(e["number"], e["done"], e["tries"]) for e in row["exercises"]] == [("01.1", True, 2), ("01.2", False, 1)]
    told.hear("seat-01", said("and so", done=False))
    assert told.row("seat-01")["red"] == "and so"
    assert told.row("seat-02")["lesson"] == ""
    told.forget("seat-01")
    assert told.row("seat-01")["lesson"] == ""


@pytest.mark.parametrize("message", [
    b"", b"\xff", b"[]", b"{}", b"[" * 4000, said("<script>alert(1)</script>"), said("it is so", lesson="../x"),
    said("it is so", kind="code"), said(["it is so"]), said("make one"),
])  # fmt: skip
def test_the_board_takes_no_words_that_no_lesson_says(message):
    told = board.Board([LESSON], ["seat-01"])
    assert not told.hear("seat-01", message)
    assert told.row("seat-01")["lesson"] == ""


def test_the_page_shows_words_and_not_only_signs_and_escapes_them():
    told = board.Board([board.Lesson("01-x", "a < b?", frozenset(), {"make <b>": "01.1"})], ["seat-01"])
    told.hear("seat-01", said("make <b>", "exercise", False))
    shown = page.page({"seat-01": {**told.row("seat-01"), "state": "ready", "memory": 120}}, "/hub/seats", "x", "")
    assert "○ 01.1 tried once: make &lt;b&gt;" in shown and "<b>" not in shown
    done = page.exercise({"number": "01.2", "words": "long", "done": True, "tries": 3}, False)
    assert "✓ 01.2 done<" in done and "long" not in done  # words for the exercise that the seat is at, no more
    assert 'aria-label="Reset seat-01"' in shown and "120 MB" in shown and "a &lt; b?" in shown


def test_every_exercise_of_every_lesson_is_known_to_the_board():
    for path in sorted(CHECKOUT.glob("notebooks/*.ipynb")):
        asked = [tag for cell in codes(nbformat.read(path, 4)) for tag in cell.metadata.get("tags", [])
                 if tag.startswith("exercise:")]  # fmt: skip
        known = board.read_lesson(path)
        assert [f"exercise:{number}" for number in known.exercises.values()] == asked
        assert len(known.checks) >= 3


# ---- its end: comes first, for a machine holds one workshop at a time, and the one below lives as long as its tests


def test_nothing_is_left_of_a_workshop_that_is_stopped_or_killed(leak_check):
    """Ended from another terminal, and with kill -9 of the process that holds it."""
    if os.getuid() != 0:
        pytest.skip("only root can hold a workshop")
    users = Path("/etc/passwd").read_text()
    for end in ("stop", "kill"):
        argv = [sys.executable, "-m", "helpers.command", "workshop", "--seats", "1", "--port", "0"]
        with subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            lines = iter(process.stdout.readline, "")
            assert any("All seats are ready" in line for line in lines)
            second = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
            assert (second.returncode, second.stdout) == (1, "Making 1 seats ...\n")
            assert "running already" in second.stderr
            if end == "stop":
                done = subprocess.run([*argv[:4], "--stop"], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
                assert (done.returncode, done.stdout) == (0, "The workshop has ended.\n"), done.stderr
                assert "nothing of it is left" in process.stdout.read()
            else:
                os.kill(process.pid, signal.SIGKILL)
                process.wait(10)
                wait_until(lambda: not keeper.running(), "the room to end", 20)
                swept = subprocess.run([str(CHECKOUT / "lab"), "reset"], capture_output=True, text=True, timeout=60)
                assert swept.returncode == 0, swept.stderr
    assert Path("/etc/passwd").read_text() == users
    assert leak_check.left() == []


# ---- a real one


@pytest.fixture(scope="module")
def held():
    """A workshop whose seats are all ready."""
    if os.getuid() != 0:
        pytest.skip("only root can hold a workshop")
    began = time.monotonic()
    running = keeper.start(keeper.Wanted(seats=SEATS, port=0, memory=MEGABYTES, processes=300, disk=64))
    try:
        running.seat_everyone()
        print(f"\n{SEATS} seats and the instructor's were ready after {time.monotonic() - began:.1f} s")
        yield running
    finally:
        problems = running.end()
    assert problems == []


def everyone(held):
    return [f"seat-{number:02}" for number in range(1, held.wanted.seats + 1)]


def at(held, name):
    return sign_in(held.address, name, held.codes[name])


def memory(held, name):
    """MB that a seat uses, by its cgroup; None without one."""
    return places.usage([value for kind, value in cleanup.entries(held.ledger) if kind == "cgroup"],
                        plan.Seat(1, name, 0))  # fmt: skip


def most_memory(held, name):
    """MB that a seat has used at most, files in memory among them; None where nobody counts."""
    for kind, place in cleanup.entries(held.ledger):
        for file in ("memory.max_usage_in_bytes", "memory.peak"):
            if kind == "cgroup" and os.path.exists(f"{place}/{name}/{file}"):
                return int(cgroups.read(place, name, file)) >> 20
    return None


def work_through(held, name, path):
    """Run every cell of a lesson at a seat: (name, ticks, the first error, s)."""
    began = time.monotonic()
    kernel = at(held, name).open(f"notebooks/{path.name}")
    ticks = 0
    for cell in codes(nbformat.read(path, as_version=4)):
        text, trouble = kernel.run(cell.source)
        ticks += text.count("✓")
        if trouble:
            return name, ticks, f"{cell.source.splitlines()[0]}: {trouble}\n{text}", 0
    kernel.shut()
    return name, ticks, "", time.monotonic() - began


@pytest.mark.parametrize("path", TOGETHER, ids=lambda path: path.stem)
def test_all_seats_run_a_lesson_to_its_end_at_the_same_time_with_all_checks_green(held, path):
    idle = [memory(held, name) for name in everyone(held)]
    with concurrent.futures.ThreadPoolExecutor(SEATS) as pool:
        done = list(pool.map(lambda name: work_through(held, name, path), everyone(held)))
    troubles = [f"{name}: {trouble}" for name, _, trouble, _ in done if trouble]
    assert troubles == []
    assert len({ticks for _, ticks, _, _ in done}) == 1 and done[0][1] >= 20
    slowest = max(seconds for _, _, _, seconds in done)
    most = [most_memory(held, name) for name in everyone(held)]
    print(f"\n{path.stem} at {SEATS} seats at once: {slowest:.0f} s for the slowest; MB a seat: {idle} before, "
          f"{most} at most")  # fmt: skip
    rows = instructors_rows(held)
    assert {path.stem in rows[name]["lesson"] for name in everyone(held)} == {True}
    known = board.read_lesson(path)
    for name in everyone(held):
        green, total = map(int, rows[name]["checks"].split(" of "))
        assert green == total == len(known.checks)
        assert all(f"○ {number} tried once" in rows[name]["exercises"] for number in known.exercises.values())


def instructors_rows(held):
    boss = at(held, plan.INSTRUCTOR)
    return boss.session.get(f"{held.address}/hub/seats/rows", timeout=60).json()


def test_a_lab_at_a_seat_has_limits_where_the_machine_grants_them(held):
    kernel = at(held, "seat-01").open("notebooks/01-runc.ipynb")
    kernel.run("import time; from helpers.lab import start_lab; lab = start_lab()")
    found = kernel.value("lab.limits")
    kernel.run("began = time.monotonic(); closed = lab.close()")
    assert kernel.value("closed.left") == [] and kernel.value("len(closed.processes)") >= 1
    assert kernel.value("time.monotonic() - began") < 5  # it may leave its own cgroup, and so remove it
    kernel.shut()
    assert ({"memory", "pids"} <= set(found)) == ({"memory", "pids"} <= set(held.limits))


def test_only_a_code_lets_in_and_only_to_its_seat(held):
    with pytest.raises(AssertionError, match="403"):
        sign_in(held.address, "seat-01", "01-aaaaa-aaaaa")
    first = at(held, "seat-01")
    assert first.session.get(f"{held.address}/user/seat-02/api/contents", timeout=60).status_code in (403, 404)
    assert first.session.get(f"{held.address}/hub/seats", timeout=60).status_code == 403
    assert first.session.get(f"{held.address}/hub/api/users", timeout=60).status_code == 403
    stranger = sign_in(held.address, plan.INSTRUCTOR, held.codes[plan.INSTRUCTOR])
    assert "Who is on which exercise" in stranger.session.get(f"{held.address}/hub/seats", timeout=60).text
    # The instructor sees the checks, and no notebook.
    assert stranger.session.get(f"{held.address}/user/seat-01/api/contents", timeout=60).status_code in (403, 404)


def test_a_learner_signs_in_by_the_keyboard_and_sits_before_lesson_00(held, browser):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(60_000)
    page.goto(held.address)
    page.get_by_label("The code on your card").wait_for()
    shot(page, "sign-in")
    assert violations(page) == []
    page.keyboard.type(" ".join(held.codes["seat-01"].upper().split("-")))
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="What can this machine show me").first.wait_for()
    page.locator(".jp-Terminal").first.wait_for()
    shot(page, "seat")
    page.close()
    page = browser.new_context().new_page()
    page.goto(f"{held.address}/hub/login")
    page.get_by_label("The code on your card").fill("01-wrong-wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    page.get_by_label("The code on your card").fill(held.codes[plan.INSTRUCTOR])
    page.keyboard.press("Enter")
    page.get_by_role("table", name="Who is on which exercise").wait_for()
    shot(page, "room")
    assert violations(page) == []
    page.close()


HARM = """
import ctypes, errno, os, signal, socket, subprocess, glob, json
def attempt(deed):
    try:
        deed()
    except TimeoutError:
        return "ETIMEDOUT"
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def join(pid, kind):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY), 0):
        raise OSError(ctypes.get_errno(), kind)
def reach(address, port):
    with socket.socket() as any_socket:
        any_socket.settimeout(3)
        any_socket.connect((address, port))
"""


def test_a_seat_sees_no_process_file_or_server_of_another_and_joins_nothing(held):
    victim = at(held, "seat-02").open("notebooks/01-runc.ipynb")
    victim.run("from helpers.lab import start_lab; lab = start_lab(); open('/tmp/mine', 'w').write('private')")
    victim.run("step = lab.start(['sleep', '1000'])")
    hostile = at(held, "seat-01").open("notebooks/01-runc.ipynb")
    hostile.run(HARM)
    # Processes: those of this seat, and its root PID 1, which it can't stop or enter.
    owners = hostile.value("sorted({os.stat(p).st_uid for p in glob.glob('/proc/[0-9]*')})")
    assert owners == [0, plan.FIRST_UID + 1]
    assert hostile.value("[p for p in glob.glob('/proc/[0-9]*/stat') if '(sleep)' in open(p).read()]") == []
    assert victim.value("len([p for p in lab.processes() if p.name == 'sleep'])") == 1
    assert hostile.value("attempt(lambda: os.kill(1, 9))") == "EPERM"
    assert hostile.value("[attempt(lambda: join(1, kind)) for kind in ('mnt', 'pid', 'net')]") == ["EACCES"] * 3
    # Killing by number what it can't see: every number that the machine has in use.
    hostile.run("for pid in range(2, 40000):\n    if pid != os.getpid() and not os.path.exists(f'/proc/{pid}'):\n"
                "        try:\n            os.kill(pid, 9)\n        except OSError:\n            pass")  # fmt: skip
    assert victim.value("lab.run(['echo', 'alive'], echo=False).stdout") == "alive\n"
    # Files.
    assert hostile.value("os.path.exists('/tmp/mine')") is False
    assert hostile.value("os.listdir('/home')") == ["seat-01"]
    assert hostile.value("sorted(os.listdir('/run'))") == ["uncontained"]
    assert hostile.value("attempt(lambda: open('/etc/shadow'))") == "EACCES"
    assert hostile.value(f"attempt(lambda: open({str(held._file)!r}))") in ("EACCES", "ENOENT")
    # The others' servers, the machine's own, and the hub's doors other than its API.
    other = plan.seats(SEATS)[2].address
    port = held.wanted.port
    unreachable = ("ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED", "ETIMEDOUT")
    tries = [(other, plan.SEAT_PORT), ("127.0.0.1", port), (plan.HUB, port), (plan.HUB, 22)]
    for address, number in tries:
        assert hostile.value(f"attempt(lambda: reach({address!r}, {number}))") in unreachable, (address, number)
    assert hostile.value(f"attempt(lambda: reach({plan.HUB!r}, {plan.HUB_PORT}))") == "done"  # it could reach something
    victim.shut()
    hostile.shut()


def test_filling_the_disk_ends_at_the_seats_own_limit(held):
    hostile = at(held, "seat-01").open("notebooks/01-runc.ipynb")
    victim = at(held, "seat-02").open("notebooks/01-runc.ipynb")
    hostile.run(HARM)
    hostile.run("def fill(path):\n    with open(path, 'wb', 0) as file:\n        while file.write(bytes(1 << 20)):\n"
                "            pass")  # fmt: skip
    for path in ("/home/seat-01/big", "/tmp/big", "/dev/shm/big", "/var/tmp/big2"):
        assert hostile.value(f"attempt(lambda: fill({path!r}))") == "ENOSPC"
    places = "[p for p in ('/', '/etc', '/usr', '/var', '/opt', '/srv', '/mnt', '/run', '/dev', '/home', '/var/lib') "
    assert hostile.value(places + "if os.access(p, os.W_OK)]") == []
    assert victim.value("open('/tmp/still', 'w').write('room')") == 4
    hostile.run("import glob, os\nfor p in glob.glob('/tmp/big*') + glob.glob('/dev/shm/big'): os.remove(p)\n"
                "os.remove('/home/seat-01/big')")  # fmt: skip
    hostile.shut()
    victim.shut()


BOMB = """
import os, time
while True:  # every process of it does this: it doubles until it is refused, and then tries again, for ever
    try:
        os.fork()
    except OSError:
        time.sleep(5)  # others use this machine too
"""


def test_a_fork_bomb_and_a_memory_hog_hurt_their_own_seat_only_and_a_reset_ends_them(held):
    if not {"memory", "pids"} <= set(held.limits):
        pytest.skip(f"{EXCUSE}limit a seat: it grants no cgroups")
    before = set(os.listdir("/proc"))
    bomber, hog = (at(held, name).open("notebooks/01-runc.ipynb") for name in ("seat-01", "seat-03"))
    _, trouble = hog.run("held = []\nwhile True: held.append(b'x' * (16 << 20))")
    assert "KernelDied" in trouble  # the Linux kernel ended it, for there was no memory left in its cgroup
    assert memory(held, "seat-03") <= MEGABYTES + 1
    bomber.run(f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {BOMB!r}], start_new_session=True)")
    pids = next(value for kind, value in cleanup.entries(held.ledger)
                if kind == "cgroup" and os.path.exists(f"{value}/seat-01/pids.max"))  # fmt: skip
    wait_until(lambda: int(cgroups.read(pids, "seat-01", "pids.current")) >= 290, "the bomb to hit its limit", 30)
    assert len(set(os.listdir("/proc")) - before) < 500
    # Meanwhile the others work.
    name, ticks, trouble, seconds = work_through(held, "seat-02", TOGETHER[0])
    assert trouble == "" and ticks >= 20
    print(f"\n01-runc at seat-02 beside a fork bomb: {seconds:.0f} s")
    reset(held, "seat-01")
    wait_until(lambda: int(cgroups.read(pids, "seat-01", "pids.current")) < 50, "the bomb to be gone", 30)


def reset(held, name, deed="reset"):
    boss = at(held, plan.INSTRUCTOR)
    shown = boss.session.get(f"{held.address}/hub/seats", timeout=60).text
    token = re.search(r'name="_xsrf" value="([^"]*)"', shown)[1]
    data = {"_xsrf": token, "seat": name, "deed": deed}
    answer = boss.session.post(f"{held.address}/hub/seats", data=data, timeout=60)
    assert answer.status_code == 200 and answer.url.endswith("/hub/seats"), answer.text[:500]


def test_a_restart_keeps_the_files_and_a_reset_makes_the_seat_new(held):
    first = at(held, "seat-02")
    kernel = first.open("notebooks/01-runc.ipynb")
    kernel.run("open('/home/seat-02/uncontained/notebooks/note.txt', 'w').write('mine')")
    reset(held, "seat-02", "restart")
    again = at(held, "seat-02")
    assert again.ask("GET", "api/kernels").json() == []
    assert again.ask("GET", "api/contents/notebooks/note.txt").json()["content"] == "mine"
    kernel = again.open("notebooks/01-runc.ipynb")
    kernel.run("from helpers.checks import exercise; exercise('x', lambda: True)")
    reset(held, "seat-02")
    anew = at(held, "seat-02")
    assert anew.ask("GET", "api/contents/notebooks/note.txt").status_code == 404
    assert anew.ask("GET", "api/contents/notebooks/01-runc.ipynb").status_code == 200
    assert instructors_rows(held)["seat-02"]["lesson"] == "no check yet"


# ---- the command line


def test_an_ordinary_user_is_told_to_use_sudo(learners):
    user = learners["without"]
    said = user.run(["./lab", "workshop", "--seats", "2"])
    assert (said.returncode, said.stdout) == (1, "")
    assert "sudo ./lab workshop" in said.stderr


@pytest.mark.parametrize("arguments", [["--seats"], ["--seats", "0"], ["--seats", "x"], ["--port", "99999"], ["now"]])
def test_a_mistyped_option_is_one_sentence(arguments):
    argv = [sys.executable, "-m", "helpers.command", "workshop", *arguments]
    said = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert (said.returncode, said.stdout) == (2, "")
    assert re.fullmatch(r"lab: .+--help says what there is\n", said.stderr)


def test_opening_the_room_to_a_network_says_what_that_means():
    open_to_all = keeper.warning(keeper.Wanted(ip="0.0.0.0"))
    assert "every network of this machine" in open_to_all and "not encrypted" in open_to_all
    assert "encrypted" in keeper.warning(keeper.Wanted(ip="192.168.1.2", certificate=("a", "b")))
