"""The lab: what runs in it, what never reaches it, what stays apart, and what is left after it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import CHECKOUT, EXCUSE

from helpers import bundles, cgroups, cleanup, init, machine, processes
from helpers import lab as labs
from helpers.checks import CheckFailed, check, expect_failure

OTHER_LAB = """
from helpers.lab import start_lab
lab = start_lab()
print(lab.pid, lab.name, flush=True)
input()
"""


@pytest.fixture
def other_lab(leak_check):
    """A lab of another process: (that process, host PID of the lab's PID 1, name)."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen([sys.executable, "-c", OTHER_LAB], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               env=environment, text=True)  # fmt: skip
    pid, name = process.stdout.readline().split()
    yield process, int(pid), name
    process.kill()
    process.wait(10)
    process.stdin.close()
    process.stdout.close()


def run(*argv):
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)


# ---- what a step is


def test_a_step_is_root_in_the_lab_and_its_parent_is_the_labs_pid_1(lab):
    said = lab.run(["sh", "-c", "id -u; echo $PPID"])
    assert said.stdout == "0\n1\n"


def test_output_error_and_status_are_told_apart(lab):
    said = lab.run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False)
    assert (said.stdout, said.stderr, said.code) == ("out\n", "err\n", 3)
    with pytest.raises(labs.StepFailed, match="ended with status 3: err"):
        lab.run(["sh", "-c", "echo err >&2; exit 3"])


def test_the_command_is_shown_as_it_would_be_typed(lab, capsys):
    lab.run(["echo", "two words", "it's"])
    assert capsys.readouterr().out == "# echo 'two words' 'it'\"'\"'s'\n"


def test_a_step_reads_what_it_is_given_and_nothing_else(lab):
    assert lab.run(["cat"], stdin="a line\n").stdout == "a line\n"
    assert lab.run(["cat"]).stdout == ""


def test_ten_megabytes_pass_through_a_step_unchanged(lab):
    data = os.urandom(5_000_000).hex()
    assert lab.run(["cat"], stdin=data).stdout == data


def test_a_command_that_leaves_a_background_process_returns_at_once(lab):
    lab.run(["sh", "-c", "sleep 1000 & echo started"], timeout=5)
    assert processes.wait_until(lambda: lab.find("sleep"), "the sleep")


def test_a_step_that_takes_too_long_is_killed_with_its_children(lab):
    with pytest.raises(TimeoutError, match="did not end in 0.3 s"):
        lab.run(["sh", "-c", "sleep 1000; echo done"], timeout=0.3)
    processes.wait_until(lambda: not lab.find("sleep"), "the sleep to go")


def test_a_started_step_can_be_written_to_read_from_and_waited_for(lab):
    step = lab.start(["sh", "-c", "read word; echo got $word; exit 5"], stdin=labs.PIPE, stdout=labs.PIPE)
    step.stdin.write(b"it\n")
    assert step.stdout.read() == b"got it\n"
    assert step.wait() == step.wait() == 5
    step.stdin.close()
    step.stdout.close()


def test_the_exit_status_names_the_signal(lab):
    step = lab.start(["sleep", "1000"])
    step.kill(signal.SIGTERM)
    assert step.wait() == -signal.SIGTERM


def test_a_missing_command_is_one_sentence(lab):
    with pytest.raises(labs.StepFailed, match="nosuch: command not found"):
        lab.run(["nosuch"])


# ---- hostile input

HOSTILE = [
    *("a b", "it's", 'say "x"', "; rm -rf /", "$(id)", "`id`", "../up", "new\nline", "über", "-x", "%s", "x" * 10_000),
]


@pytest.mark.parametrize("word", HOSTILE, ids=range(len(HOSTILE)))
def test_no_word_of_a_command_reaches_a_shell(lab, word):
    assert lab.run(["printf", "%s", word]).stdout == word


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_strange_container_name_is_refused_with_a_sentence_or_is_a_name_like_any_other(lab, name):
    said = lab.run(["runc", "state", "--", name], check=False)
    assert said.code != 0
    assert "Traceback" not in said.stderr and len(said.stderr.splitlines()) <= 3
    if "/" in name or len(name) > 100:
        before = lab.run(["ls", "-RA"]).stdout
        with pytest.raises(bundles.BundleError, match="can't name a bundle"):
            bundles.make(lab, name, ["true"])
        assert lab.run(["ls", "-RA"]).stdout == before
    else:
        assert bundles.make(lab, name, ["true"]) == name


@pytest.mark.parametrize("argv", [[], "runc list", ["a\0b"], ["x" * 200_000]], ids=["empty", "text", "zero", "long"])
def test_what_is_no_command_is_refused_before_anything_runs(lab, argv):
    with pytest.raises(ValueError):
        lab.run(argv)
    assert lab.run(["echo", "still here"]).stdout == "still here\n"


def test_a_bundle_that_does_not_fit_on_the_disk_leaves_nothing(lab):
    lab.run(["mkdir", "small"])
    lab.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", "small"])
    with pytest.raises(bundles.BundleError, match="No space left on device"):
        bundles.make(lab, "full", ["true"], place="small")
    assert lab.run(["ls", "-A", "small"]).stdout == ""


def test_without_busybox_the_root_file_system_is_made_of_the_machines_own_programs(lab, monkeypatch):
    found = machine.find
    monkeypatch.setattr(machine, "find", lambda name: None if name == "busybox" else found(name))
    bundles.make(lab, "own", ["sh", "-c", "echo $((6 * 7))"])
    assert not lab.path("own/rootfs/bin/busybox").exists()
    assert lab.run(["runc", "run", "--bundle", "own", "own"]).stdout == "42\n"


def test_a_lab_that_can_t_be_made_says_why_and_how_to_mend_it(leak_check):
    ways = [
        machine.Way("the first", ("false",), "Mend one"),
        machine.Way("the second", ("/no/such/program",), "Mend two"),
        machine.Way("the third", ("sh", "-c", "echo no namespaces for you >&2; exit 1"), "Mend three"),
        # As unshare(1) does, when the kernel refuses what its helper was to complete.
        machine.Way("the fourth", ("sh", "-c", "sleep 1000 & echo a helper stays >&2; exit 1"), "Mend four"),
    ]
    began = time.monotonic()
    with pytest.raises(labs.LabError) as refused:
        labs.start_lab(ways)
    said = str(refused.value)
    assert "the first: it said nothing. Mend one" in said
    assert "No such file or directory. Mend two" in said
    assert "no namespaces for you. Mend three" in said
    assert "a helper stays. Mend four" in said
    assert time.monotonic() - began < 10, "each has ended at once"
    assert leak_check.left() == []


# ---- against oracles


def test_the_processes_are_those_that_ps_lists_in_the_lab(lab):
    lab.start(["sh", "-c", "sleep 1000 & sleep 2000 & wait"])
    processes.wait_until(lambda: len(lab.find("sleep")) == 2, "both")
    listed = lab.run(["ps", "-e", "-o", "pid=,ppid=,comm="]).stdout.splitlines()
    by_ps = {tuple(line.split(None, 2)) for line in listed if not line.endswith(" ps")}
    assert {(str(p.pid), str(p.ppid), p.name) for p in lab.processes()} == by_ps


def test_the_namespaces_are_those_that_lsns_lists(lab):
    bundles.make(lab, "demo", ["sleep", "1000"])
    lab.run(["runc", "run", "--detach", "--bundle", "demo", "demo"])
    container = lab.container("demo")
    for kind in ("pid", "mnt", "net", "ipc", "uts"):
        said = lab.run(["lsns", "--noheadings", "--output", "NS", "--type", kind, "--task", str(container.pid)]).stdout
        assert int(said) == container.namespace(kind)


def test_the_container_is_the_process_that_runc_and_psutil_know(lab, monkeypatch):
    bundles.make(lab, "demo", ["sleep", "1000"])
    lab.run(["runc", "run", "--detach", "--bundle", "demo", "demo"])
    container = processes.wait_until(lambda: (c := lab.container("demo")).name == "sleep" and c, "the sleep")
    monkeypatch.setattr(psutil, "PROCFS_PATH", lab.proc)
    seen = psutil.Process(container.pid)
    assert (seen.name(), seen.ppid(), tuple(seen.cmdline())) == (container.name, container.ppid, container.argv)
    assert container.pids == (container.pid, 1)


def test_the_descriptors_are_those_that_lsof_would_show(lab):
    lab.run(["touch", "out.txt"])
    step = lab.start(["sleep", "1000"], stdin=labs.PIPE, stdout="out.txt")
    mine = lab.descriptors(processes.read_one(step.pid, lab.proc))
    assert [(d.number, d.kind, d.access) for d in mine] == [(0, "pipe", "r"), (1, "file", "w"), (2, "device", "w")]
    assert mine[0].inode == os.fstat(step.stdin.fileno()).st_ino
    assert mine[1].inode == lab.path("out.txt").stat().st_ino
    step.stdin.close()


def test_the_other_end_of_a_unix_socket_is_found(lab):
    program = "import socket, time; a, b = socket.socketpair(); print(a.fileno(), b.fileno()); time.sleep(99)"
    step = lab.start(["python3", "-uc", program], stdout=labs.PIPE)
    first, second = map(int, step.stdout.readline().split())
    by_number = {d.number: d for d in lab.descriptors(processes.read_one(step.pid, lab.proc))}
    assert by_number[first].peer == by_number[second].inode
    assert by_number[second].peer == by_number[first].inode
    step.stdout.close()


def test_a_memory_limit_of_runc_is_the_number_in_the_kernels_file(lab):
    if "memory" not in lab.limits:
        pytest.skip(f"{EXCUSE}set cgroup limits")
    limit = 64 << 20
    resources = {"memory": {"limit": limit}}
    bundles.make(lab, "demo", ["sleep", "98765"], change=lambda config: config["linux"].update(resources=resources))
    lab.run(["runc", "run", "--detach", "--bundle", "demo", "demo"])
    pid = next(p for p in processes.read() if p.argv == ("sleep", "98765") and len(p.pids) > 1).pid
    assert int(processes.cgroup_file("memory.limit", pid).read_text()) == limit
    assert f"uncontained-{lab.name}" in cgroups.find_file("memory.limit", pid)


# ---- apart from each other, and from the machine


def test_two_labs_do_not_see_each_other(lab, other_lab):
    _, pid, _ = other_lab
    lab.run(["hostname", "changed"])
    bundles.make(lab, "demo", ["sleep", "1000"])
    lab.run(["runc", "run", "--detach", "--bundle", "demo", "demo"])
    inside = replace(lab, pid=pid).enter_command()[:-1]
    assert run(*inside, "hostname").stdout == "lab\n"
    assert run(*inside, "runc", "list", "--quiet").stdout == ""
    assert "sleep" not in run(*inside, "ps", "-e").stdout
    assert "sleep" in lab.run(["ps", "-e"]).stdout


def test_a_strangers_container_lives_through_it_all(leak_check, tmp_path):
    """Same machine, same container name, another runc root: nothing that a lab does may touch it."""
    if os.getuid() != 0:
        pytest.skip("only root can be the stranger")
    place = tmp_path / "bundle"
    (place / "rootfs").mkdir(parents=True)
    bundles.fill_rootfs(place / "rootfs")
    run("sh", "-c", 'cd "$1" && runc spec', "sh", str(place))
    config = json.loads((place / "config.json").read_text())
    config["process"].update(terminal=False, args=["sleep", "1000"])
    config["linux"]["cgroupsPath"] = "/uncontained-stranger/demo"  # it even looks like ours
    (place / "config.json").write_text(json.dumps(config))
    runc = ["runc", "--root", str(tmp_path / "root")]
    with open(os.devnull) as null:
        subprocess.run([*runc, "run", "--detach", "--bundle", place, "demo"], check=True, timeout=30, stdin=null,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        state = json.loads(run(*runc, "state", "demo").stdout)
        mine = labs.start_lab()
        bundles.make(mine, "demo", ["sleep", "1000"])
        mine.run(["runc", "run", "--detach", "--bundle", "demo", "demo"])
        assert mine.run(["runc", "list", "--quiet"]).stdout == "demo\n"
        mine.run(["runc", "kill", "demo", "KILL"])
        assert mine.close().left == ()
        cleanup.sweep()
        run(str(CHECKOUT / "lab"), "reset", "--all")
        assert json.loads(run(*runc, "state", "demo").stdout) == state
        assert state["status"] == "running"
    finally:
        run(*runc, "delete", "--force", "demo")
        for hierarchy in cgroups.hierarchies():
            shutil.rmtree(Path(hierarchy.mountpoint, "uncontained-stranger"), ignore_errors=True)
            if Path(hierarchy.mountpoint, "uncontained-stranger").exists():
                Path(hierarchy.mountpoint, "uncontained-stranger").rmdir()


# ---- the end


def test_closing_ends_everything_and_says_what_there_was(leak_check):
    mine = labs.start_lab()
    step = mine.start(["sh", "-c", "trap '' TERM HUP; setsid sleep 1000 & wait"])
    processes.wait_until(lambda: mine.find("sleep"), "the sleep")
    mine.run(["ip", "link", "add", "left", "type", "dummy"], check=False)
    closed = mine.close()
    assert {word.split()[1] for word in closed.processes} == {"lab", "sh", "sleep"}
    assert closed.left == ()
    assert leak_check.left() == []
    with pytest.raises(labs.LabError, match="start a new one"):
        mine.run(["true"])
    with pytest.raises(labs.LabError):
        step.wait(1)


def test_kill_9_of_the_notebook_ends_its_lab(leak_check, other_lab):
    process, pid, _ = other_lab
    assert Path(f"/proc/{pid}").exists()
    process.kill()
    assert leak_check.left() == []
    assert not Path(f"/proc/{pid}").exists()


def test_kill_9_of_the_labs_pid_1_leaves_what_the_next_start_sweeps(leak_check, other_lab):
    """PID 1 could not clean up; the ledger lets the next lab do it."""
    process, pid, name = other_lab
    ledger = next(path for path in cleanup.ledgers() if name in path)
    made = [value for kind, value in cleanup.entries(ledger) if kind == "cgroup"]
    os.kill(pid, signal.SIGKILL)
    processes.wait_until(lambda: not Path(f"/proc/{pid}").exists(), "PID 1 to go")
    process.kill()
    process.wait(10)
    assert os.path.exists(ledger) and all(map(os.path.isdir, made))
    assert labs.start_lab().close().left == ()
    assert leak_check.left() == []
    assert not any(map(os.path.exists, [ledger, *made]))


def test_a_frozen_container_does_not_keep_a_lab_from_ending(leak_check):
    mine = labs.start_lab()
    if "freezer" not in mine.limits and cgroups.mode() != "v2":
        mine.close()
        pytest.skip(f"{EXCUSE}freeze cgroups")
    bundles.make(mine, "demo", ["sleep", "1000"])
    mine.run(["runc", "run", "--detach", "--bundle", "demo", "demo"])
    mine.run(["runc", "pause", "demo"])
    assert mine.status("demo") == "paused"
    assert mine.close().left == ()
    assert leak_check.left() == []


def test_the_clean_up_refuses_what_no_lab_made(tmp_path):
    for remove in (cleanup.remove_cgroup, cleanup.remove_directory):
        with pytest.raises(OSError, match="no lab made it"):
            remove(str(tmp_path))
    assert tmp_path.exists()


def test_two_sweeps_at_once_do_not_trip_over_each_other(tmp_path):
    path = tmp_path / "gone.ledger"
    assert cleanup.entries(path) == [] and cleanup.undo(path) == []


def test_a_lab_that_begins_while_the_last_one_ends_finds_a_place_for_its_ledger(tmp_path, monkeypatch):
    place, taken = str(tmp_path / "ledgers"), []
    monkeypatch.setattr(cleanup, "state_directory", lambda: place)
    is_ours = cleanup.is_ours

    def is_ours_but_goes(where):
        if len(taken) < 3:
            taken.append(os.rmdir(where))
        return is_ours(where)

    monkeypatch.setattr(cleanup, "is_ours", is_ours_but_goes)
    assert dict(cleanup.entries(cleanup.open_ledger("x")))["owner"][0] == os.getpid()
    assert len(taken) == 3


def test_the_lab_of_another_pid_namespace_is_left_to_its_own(tmp_path):
    path = tmp_path / "x.ledger"
    cleanup.register(path, "owner", [1, 1, "another boot"])
    assert not cleanup.is_alive(path)
    cleanup.register(path, "namespace", "pid:[1]")
    assert cleanup.is_alive(path)


def test_what_an_engine_makes_at_the_labs_path_in_another_hierarchy_is_foreseen(tmp_path):
    """A process may stand at /a in the memory hierarchy and at the top of the others, as in some virtual machines."""
    memory, pids = (str(tmp_path / kind) for kind in ("memory", "pids"))
    tops = [f"{memory}/a/b/uncontained-x", f"{pids}/uncontained-x"]
    for top in tops:
        os.makedirs(top)
    mounted = [cgroups.Hierarchy(1, (kind,), str(tmp_path / kind), "/") for kind in ("memory", "pids")]
    ledger = str(tmp_path / "x.ledger")
    init.expect_elsewhere(mounted, tops, ledger)
    known = cleanup.entries(ledger)
    assert sorted(known) == [
        ("elsewhere", f"{memory}/uncontained-x"), ("elsewhere", f"{pids}/a/b/uncontained-x"),
        ("parent", f"{pids}/a"), ("parent", f"{pids}/a/b"),
    ]  # fmt: skip
    assert known.index(("parent", f"{pids}/a")) < known.index(("parent", f"{pids}/a/b"))  # undone last-in-first-out


def test_the_last_of_two_labs_removes_what_an_engine_of_the_first_made_above_both(tmp_path, monkeypatch):
    memory, pids = (str(tmp_path / kind) for kind in ("memory", "pids"))
    mounted = [cgroups.Hierarchy(1, (kind,), str(tmp_path / kind), "/") for kind in ("memory", "pids")]
    os.mkdir(pids)
    parents = {}
    for name in ("first", "second"):
        ledger = str(tmp_path / f"{name}.ledger")
        monkeypatch.setattr(cleanup, "ledgers", lambda: [str(path) for path in tmp_path.glob("*.ledger")])
        init.expect_elsewhere(mounted, [f"{memory}/a/uncontained-{name}"], ledger)
        parents[name] = [value for kind, value in cleanup.entries(ledger) if kind == "parent"]
        os.makedirs(f"{pids}/a/uncontained-{name}")  # by an engine
    for name, stays in (("first", True), ("second", False)):
        os.rmdir(f"{pids}/a/uncontained-{name}")
        for place in parents[name]:
            cleanup.remove_parent(place)
        assert os.path.isdir(f"{pids}/a") == stays


def test_a_half_written_line_of_a_ledger_is_no_deed(tmp_path):
    path = tmp_path / "x.ledger"
    cleanup.register(path, "cgroup", "/sys/fs/cgroup/uncontained-never-made")
    with open(path, "a") as file:
        file.write('["directory", "/tm')
    assert cleanup.entries(path) == [("cgroup", "/sys/fs/cgroup/uncontained-never-made")]


# ---- checks


def test_a_check_takes_truth_and_nothing_like_it(capsys):
    check("so it is", True)
    assert capsys.readouterr().out == "✓ so it is\n"
    with pytest.raises(CheckFailed, match="✗ so it is not"):
        check("so it is not", False)
    with pytest.raises(TypeError, match="compare it"):
        check("a list is no proof", [1])


def test_an_expected_failure_that_does_not_come_is_a_failure(capsys):
    with expect_failure("division"):
        raise ValueError("division by nothing")
    assert re.search("meant", capsys.readouterr().out)
    with pytest.raises(CheckFailed, match="did not"), expect_failure("anything"):
        pass
    with pytest.raises(CheckFailed, match="not as foretold"), expect_failure("fire"):
        raise OSError("water")


@pytest.mark.parametrize("kind", ["with subordinate IDs", "without"])
def test_an_ordinary_user_has_a_lab_and_its_root_owns_nothing_outside(kind, learners, leak_check):
    user = learners[kind]
    program = (
        "from helpers.lab import start_lab; from helpers import bundles; lab = start_lab()\n"
        "print(lab.way.name); print(lab.run(['id', '-u'], echo=False).stdout.strip())\n"
        "lab.run(['mkdir', 'demo-dir'], echo=False)\n"
        "print(lab.run(['touch', '/etc/uncontained'], check=False, echo=False).stderr.strip())\n"
        "bundles.make(lab, 'demo', ['sh', '-c', 'echo $$'])\n"
        "print(lab.run(['runc', 'run', '--bundle', 'demo', 'demo'], echo=False).stdout.strip())\n"
        "print(lab.close().left)"
    )
    said = user.run([user.python, "-c", program])
    assert said.returncode == 0, said.stderr
    way, uid, refusal, inner, left = said.stdout.splitlines()
    assert way == {"with subordinate IDs": "user namespace with subordinate IDs", "without": "user namespace"}[kind]
    assert (uid, inner, left) == ("0", "1", "()")
    assert "Permission denied" in refusal
    assert leak_check.left() == []


def test_sudo_lends_the_right_to_make_a_user_namespace_and_no_more(learners, leak_check):
    """The way by sudo, without sudo: root runs the part after `sudo -n` for a user whose own attempt is not tried."""
    user = learners["without"]
    ids = [f"--reuid={user.name}", f"--regid={user.name}", "--init-groups"]
    lend = ["setpriv", *ids, "--inh-caps=+sys_admin", "--ambient-caps=+sys_admin"]
    said = run(*lend, "unshare", "--user", "--map-root-user", "sh", "-c", "id -u; cat /proc/self/uid_map; touch /etc/x")
    uid, mapping = said.stdout.splitlines()[:2]
    assert uid == "0" and mapping.split()[0] == "0" and int(mapping.split()[1]) > 0
    assert "Permission denied" in said.stderr
