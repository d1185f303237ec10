"""vmrun, whose container is a virtual machine: by hand, under Podman and Docker, with damaged input, and killed.

A machine takes a second or two to boot, so tests look at one machine as often as they can.
"""

import contextlib
import copy
import fcntl
import importlib.machinery
import importlib.util
import json
import os
import pty
import random
import re
import shutil
import signal
import string
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import pytest
from conftest import CHECKOUT, EXCUSE, LeakCheck, snapshot

from helpers import bundles, cri, engines, kernel, machine, processes
from helpers.lab import LabError, start_lab
from notebooks.programs import image

VMRUN = str(CHECKOUT / "notebooks/programs/vmrun")
STARTS = int(os.environ.get("STARTS", "10"))
PATIENCE = 60  # seconds for whatever may take long on a busy machine

pytestmark = pytest.mark.skipif(
    not (machine.find(machine.QEMU) and kernel.HOME.is_dir()), reason="QEMU or its kernel is missing: ./lab kernel"
)


def load_program():
    """vmrun as a module."""
    loader = importlib.machinery.SourceFileLoader("vmrun", VMRUN)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("vmrun", loader))
    loader.exec_module(module)
    return module


vmrun = load_program()


def make_rootfs(place):
    place.mkdir(parents=True)
    bundles.fill_rootfs(place)
    (place / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")


CONFIG = {
    "ociVersion": "1.0.2",
    "process": {"args": ["sh"], "cwd": "/", "env": ["PATH=/bin", "TERM=dumb"], "user": {"uid": 0, "gid": 0}},
    "root": {"path": "rootfs"},
    "hostname": "box",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
    ],
    "annotations": {"org.example.colour": "blue"},
    "linux": {},
}


class Place:
    """A directory with a bundle `b` and the runtime's state; what it makes is this process's own children."""

    def __init__(self, home):
        self.home, self.bundle = Path(home), Path(home, "b")
        make_rootfs(self.bundle / "rootfs")

    def configure(self, *args, **changes):
        config = copy.deepcopy(CONFIG) | changes
        if args:
            config["process"] = config["process"] | {"args": list(args)}
        (self.bundle / "config.json").write_text(json.dumps(config))
        return config

    def command(self, *words):
        return [VMRUN, "--root", str(self.home / "state"), *map(str, words)]

    def run(self, *words, check=True, **options):
        defaults = {"capture_output": True, "text": True, "timeout": PATIENCE, "stdin": subprocess.DEVNULL}
        done = subprocess.run(self.command(*words), **{**defaults, **options})
        assert "Traceback" not in (done.stderr or ""), done.stderr
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def create(self, name, stdin=subprocess.DEVNULL, env=None):
        """`create`, with the container's output in a file; its PID. The container becomes an orphan of ours."""
        with open(self.home / f"{name}.out", "ab") as out:
            done = subprocess.run(
                self.command("create", "--bundle", self.bundle, "--pid-file", self.home / f"{name}.pid", name),
                stdin=stdin, stdout=out, stderr=out, timeout=PATIENCE, env=env,
            )  # fmt: skip
        assert done.returncode == 0, self.output(name)
        return int((self.home / f"{name}.pid").read_text())

    def output(self, name):
        return (self.home / f"{name}.out").read_text()

    def state(self, name):
        return json.loads(self.run("state", name).stdout)

    def status(self, name):
        return self.state(name)["status"]

    def wait(self, name, wanted="stopped"):
        processes.wait_until(lambda: self.status(name) == wanted, f"{name} to be {wanted}", PATIENCE)

    def machines(self):
        """The PIDs of processes that have to do with this place: keepers and QEMUs."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                where = os.readlink(f"/proc/{pid}/cwd")
                if where.startswith(f"{self.home}/state/") and int(pid) != os.getpid():
                    found.append(int(pid))
        return found

    def close(self):
        for path in (self.home / "state").glob("*"):
            self.run("delete", "--force", path.name)
        processes.wait_until(lambda: not self.machines(), "the end of all machines", PATIENCE)


@pytest.fixture
def place(leak_check):
    home = tempfile.mkdtemp(prefix="vmrun-", dir="/tmp")
    made = Place(home)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(home)


# ---- by hand


def test_the_program_is_short_and_needs_only_the_standard_library():
    lines = Path(VMRUN).read_text().splitlines()
    assert len(lines) <= 450
    assert max(map(len, lines)) <= 120
    for name in ("vmrun", "vmmachine.py", "vmconfig.py"):
        source = (CHECKOUT / "notebooks/programs" / name).read_text()
        imported = set(re.findall(r"^ *(?:import|from) (\w+)", source, re.M)) - {"vmmachine", "vmconfig"}
        assert imported <= sys.stdlib_module_names
    assert len((CHECKOUT / "notebooks/programs/vmagent").read_text().splitlines()) <= 180


def test_a_container_lives_as_the_specification_says_and_every_other_step_is_refused(place):
    place.configure("sh", "-c", "uname -r; read line; echo got $line; echo end >&2; exit 5")
    given, ours = os.pipe()
    place.create("c", stdin=given)
    os.close(given)
    created = place.state("c")
    assert created["status"] == "created" and created["id"] == "c" and created["bundle"] == str(place.bundle)
    assert created["annotations"] == {"org.example.colour": "blue"} and created["ociVersion"] == "1.0.2"
    assert place.output("c") == "", "created, and has run nothing"
    for words in (("create", "--bundle", place.bundle, "c"), ("delete", "c"), ("exec", "c", "true"), ("resume", "c"),
                  ("pause", "c"), ("state", "other"), ("start", "other"), ("kill", "c", "NONSENSE")):  # fmt: skip
        refused = place.run(*words, check=False)
        assert refused.returncode == 1 and re.fullmatch(r"vmrun: .+\n", refused.stderr), words
    place.run("start", "c")
    assert place.status("c") == "running"
    assert place.run("start", "c", check=False).returncode == 1
    assert place.run("delete", "c", check=False).returncode == 1
    done = place.run("exec", "c", "sh", "-c", "cat; pwd; hostname; echo no >&2; exit 4", input="hello ", stdin=None,
                     check=False)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (4, "hello /\nbox\n", "no\n")
    done = place.run("exec", "c", "sh", "-c", "echo dies; kill -9 $$", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (137, "dies\n", "")
    place.run("pause", "c")
    assert place.status("c") == "paused"
    assert place.run("exec", "c", "true", check=False).returncode == 1
    place.run("resume", "c")
    assert place.status("c") == "running"
    assert len(json.loads(place.run("ps", "c").stdout)) == 2
    os.write(ours, b"line\n")
    place.wait("c")
    os.close(ours)
    assert place.output("c").splitlines()[1:] in (["got line", "end"], ["end", "got line"])
    assert place.output("c").splitlines()[0] != os.uname().release, "a kernel of its own"
    assert "pid" not in place.state("c")
    assert place.run("kill", "c", check=False).returncode == 1
    assert [one["id"] for one in json.loads(place.run("list").stdout)] == ["c"]
    place.run("delete", "c")
    assert place.run("state", "c", check=False).returncode == 1


def test_what_is_no_name_is_refused_and_nothing_outside_is_touched(place):
    (place.home / "state").mkdir()
    (place.home / "kept").mkdir()
    for bad in ("..", ".", "../kept", "../../kept", "a/b", "", "/", str(place.home / "kept")):
        for words in (("delete", "--force"), ("delete",), ("state",), ("kill",), ("exec",), ("start",), ("pause",)):
            refused = place.run(*words, bad, check=False)
            assert refused.returncode == 1 and re.fullmatch(r"vmrun: .+\n", refused.stderr), (words, bad)
    assert {path.name for path in place.home.iterdir()} == {"b", "state", "kept"}
    (place.home / "state/half").mkdir()  # a `create` that was killed at once
    assert json.loads(place.run("list").stdout) == []
    place.run("delete", "--force", "half")
    assert not (place.home / "state/half").exists()


def test_what_this_machine_lacks_is_named_with_its_mend_and_nothing_is_left(place):
    place.configure("true")
    (place.home / "bin").mkdir()
    (place.home / "bin/busybox").symlink_to(machine.find("busybox"))
    lacks = [("no kernel in ", {"VMRUN_KERNEL": str(place.home / "state")}, "lab kernel")]
    if not os.path.samefile("/usr/sbin", "/usr/bin"):  # else no PATH can hide a program from vmrun
        lacks += [
            ("busybox is missing", {"PATH": str(place.home)}, "lab doctor"),
            (f"{machine.QEMU} is missing", {"PATH": str(place.home / "bin")}, "lab doctor"),
        ]
    for lack, env, mend in lacks:
        refused = place.run("create", "--bundle", place.bundle, "c", env=os.environ | env, check=False)
        assert refused.returncode == 1 and re.fullmatch(f"vmrun: .*{lack}.*{mend}.*\n", refused.stderr)
        assert os.listdir(place.home / "state") == []


def test_a_terminal_whose_size_nobody_knows_says_nothing_of_it(place):
    """Docker gives 0 for both when its own output is no terminal."""
    process = place.configure("sleep", "1000")["process"]
    place.create("c")
    place.run("start", "c")
    size = {"height": 0, "width": 0}
    words = process | {"args": ["echo", "here"], "terminal": True, "consoleSize": size}
    (place.home / "process.json").write_text(json.dumps(words))
    ours, its = pty.openpty()
    place.run("exec", "--process", place.home / "process.json", "c", stdin=its, stdout=its, capture_output=False)
    assert os.read(ours, 100) == b"here\r\n"
    os.close(ours), os.close(its)


def test_files_are_shared_with_who_opened_them(place):
    """As in `(head -1; vmrun exec ...; echo after) <in >out`: each goes on where the one before has stopped."""
    place.configure("sleep", "1000")
    place.create("c")
    place.run("start", "c")
    for name, flags in (("plain", os.O_WRONLY), ("appending", os.O_WRONLY | os.O_APPEND)):
        (place.home / "in").write_text("one\ntwo\nthree\n")
        given, taken = os.open(place.home / "in", os.O_RDONLY), os.open(place.home / name, flags | os.O_CREAT)
        os.write(taken, os.read(given, len("one\n")))
        script = "cat; echo trouble >&2"
        place.run("exec", "c", "sh", "-c", script, stdin=given, stdout=taken, stderr=taken, capture_output=False)
        assert fcntl.fcntl(taken, fcntl.F_GETFL) & (os.O_APPEND | os.O_NONBLOCK) == flags & os.O_APPEND
        os.write(taken, b"after\n")
        os.close(given), os.close(taken)
        assert (place.home / name).read_text() == "one\ntwo\nthree\ntrouble\nafter\n", name


def test_what_engines_write_into_a_mounted_file_after_create_is_there(place):
    """Podman 5 writes /etc/hosts, which is empty before. What is no text, or long, stays as `create` found it."""
    contents = {
        "hosts": "127.0.0.1\tit's \\n `here`\r\n$HOME\n", "open-ended": "no end", "emptied": "",
        "binary": "\0", "long": "x" * (1 << 14),
    }  # fmt: skip
    mounts = [
        {"destination": f"/mnt/{name}", "type": "bind", "source": str(place.home / name), "options": ["bind"]}
        for name in (*contents, "gone", "kept")
    ]
    for mount in mounts:
        Path(mount["source"]).write_text("before")
    place.configure("sh", "-c", "cd /mnt; for f in *; do cat $f; echo ';'; done", mounts=[*CONFIG["mounts"], *mounts])
    place.create("c")
    for name, content in contents.items():
        (place.home / name).write_text(content, newline="")
    (place.home / "gone").unlink()
    place.run("start", "c")
    place.wait("c")
    expected = contents | dict.fromkeys(("binary", "gone", "kept", "long"), "before")
    assert (place.home / "c.out").read_bytes().decode() == "".join(f"{expected[name]};\n" for name in sorted(expected))


def test_a_megabyte_for_a_slow_reader_arrives_whole(place):
    """The machine must not be switched off while QEMU still holds what the container wrote last."""
    place.configure("sh", "-c", "seq 200000; echo the end")
    read, write = os.pipe()
    subprocess.run(place.command("create", "--bundle", place.bundle, "big"), stdin=subprocess.DEVNULL, stdout=write,
                   check=True, timeout=PATIENCE)  # fmt: skip
    os.close(write)
    place.run("start", "big")
    with open(read, "rb") as pipe:
        first = os.read(pipe.fileno(), 100)
        time.sleep(1)  # this is what a slow reader is
        said = (first + pipe.read()).decode()
    assert said.splitlines() == [*map(str, range(1, 200001)), "the end"]


def test_kill_minus_9_of_anybody_at_any_point_leaves_what_delete_force_cleans(place):
    place.configure("sleep", "1000")
    place.create("q")
    place.run("start", "q")
    keeper, qemu = json.loads(place.run("ps", "q").stdout)
    os.kill(qemu, signal.SIGKILL)
    place.wait("q")
    place.create("m")  # not started
    keeper, qemu = json.loads(place.run("ps", "m").stdout)
    os.kill(keeper, signal.SIGKILL)
    place.wait("m")
    processes.wait_until(lambda: not place.machines(), "the end of QEMU", PATIENCE)
    for name in ("q", "m"):
        place.run("delete", "--force", name)
    assert list((place.home / "state").iterdir()) == []
    began = time.monotonic()
    place.create("w")
    whole = time.monotonic() - began
    place.run("delete", "--force", "w")
    for number in range(12):  # `create` itself, killed sooner and later
        victim = subprocess.Popen(place.command("create", "--bundle", place.bundle, f"v{number}"),
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
        with contextlib.suppress(subprocess.TimeoutExpired):
            victim.wait(whole * number / 11)
        victim.kill()
        victim.wait(PATIENCE)
        place.run("delete", "--force", f"v{number}")
        assert not (place.home / "state" / f"v{number}").exists()
    processes.wait_until(lambda: not place.machines(), "the end of all machines", PATIENCE)


def without_drivers(home):
    """A copy of the kernel with which no agent is ever heard."""
    shutil.copytree(kernel.HOME, home)
    shutil.rmtree(home / "modules")
    (home / "modules").mkdir()
    return {**os.environ, "VMRUN_KERNEL": str(home)}


@pytest.fixture(scope="module", autouse=True)
def deaf():
    """(`start` of a machine that can't boot, its place, when it began): begun first of all, for it takes 20 seconds to
    find out, and they are for the other tests."""
    home = tempfile.mkdtemp(prefix="vmrun-", dir="/tmp")
    made = Place(home)
    made.configure("true")
    made.create("deaf", env=without_drivers(made.home / "kernel"))
    argv = made.command("--log", made.home / "log", "--log-format", "json", "start", "deaf")
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as starting:
        yield starting, made, time.monotonic()
        starting.kill()
    made.close()
    shutil.rmtree(home)


def test_a_machine_that_panics_is_ended_at_once(place):
    place.configure("true")
    environment = without_drivers(place.home / "kernel")
    image = next((place.home / "kernel").glob("vmlinu*"))
    image.write_bytes(image.read_bytes()[: 1 << 20])
    refused = place.run("create", "--bundle", place.bundle, "half", check=False, env=environment, timeout=200)
    if refused.returncode == 0:
        refused = place.run("start", "half", check=False, timeout=200)
    assert refused.returncode == 1 and re.fullmatch(r"vmrun: .+\n", refused.stderr)


def test_starts_in_a_row_all_boot(place):
    """STARTS=100 for the long run."""
    place.configure("echo", "hello")
    longest = 0
    for number in range(STARTS):
        began = time.monotonic()
        place.create(f"n{number}")
        place.run("start", f"n{number}")
        place.wait(f"n{number}")
        assert place.output(f"n{number}") == "hello\n"
        place.run("delete", f"n{number}")
        longest = max(longest, time.monotonic() - began)
    print(f"{STARTS} starts, the longest {longest:.1f} s")


def test_a_machine_that_does_not_boot_is_ended_after_20_seconds(deaf):
    starting, made, began = deaf
    if not any(kernel.HOME.glob("modules/*")):
        pytest.skip(f"{EXCUSE}leave a driver out: this kernel has them all in it")
    assert starting.wait(max(0, 200 + began - time.monotonic())) == 1
    assert "has said nothing in 20 s" in json.loads((made.home / "log").read_text())["msg"]
    assert made.status("deaf") == "stopped"
    started = made.home / "state/deaf/state.json"  # written when it begins to run
    assert (made.home / "log").stat().st_mtime - started.stat().st_mtime > 19


# ---- a pod in one machine


def of_pod(sandbox, kind="container"):
    """The annotations by which containerd says who belongs to a pod."""
    return {"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": sandbox}


@pytest.fixture
def pod(place):
    """A place in which the machine of a pod runs: its sandbox, `pod`."""
    place.configure("sleep", "1000", annotations=of_pod("pod", "sandbox"), hostname="shared")
    place.create("pod")
    place.run("start", "pod")
    return place


def join(pod, name, *args, start=True, **changes):
    pod.configure(*args, **({"annotations": of_pod("pod"), "hostname": "ignored"} | changes))
    pod.create(name)
    if start:
        pod.run("start", name)


def inside(pod, name, *words):
    return pod.run("exec", name, *words).stdout


def test_members_of_a_pod_share_a_machine_and_not_their_files(pod):
    by_podman = {"io.kubernetes.cri-o.SandboxID": "pod"}  # since its version 5
    for name, said in (("one", of_pod("pod")), ("two", by_podman)):
        join(pod, name, "sh", "-c", f"echo {name} >/mine; hostname; exec sleep 100{len(name)}", annotations=said)
    assert len(list(pod.machines())) == len(json.loads(pod.run("ps", "pod").stdout)) + 2, "and a keeper for each"
    assert json.loads(pod.run("ps", "one").stdout) == [pod.state("one")["pid"]]
    processes.wait_until(lambda: pod.output("two") == pod.output("one") == "shared\n", "both words", PATIENCE)
    boot = "/proc/sys/kernel/random/boot_id"
    boots = {inside(pod, name, "cat", boot) for name in ("pod", "one", "two")}
    assert len(boots) == 1 and boots != {Path(boot).read_text()}
    assert (inside(pod, "one", "cat", "/mine"), inside(pod, "two", "cat", "/mine")) == ("one\n", "two\n")
    assert pod.run("exec", "pod", "cat", "/mine", check=False).returncode == 1
    listening = subprocess.Popen(pod.command("exec", "one", "nc", "-l", "-p", "80", "-e", "echo", "hello"))
    processes.wait_until(lambda: ":0050 " in inside(pod, "two", "cat", "/proc/net/tcp", "/proc/net/tcp6"), "a listener",
                         PATIENCE)  # fmt: skip
    assert inside(pod, "two", "nc", "127.0.0.1", "80") == "hello\n"
    assert listening.wait(PATIENCE) == 0


def test_a_member_has_a_life_of_its_own(pod):
    join(pod, "one", "sh", "-c", "trap 'echo told' USR1; echo up; while :; do sleep 0.1; done", start=False)
    assert pod.status("one") == "created" and pod.output("one") == ""
    for words in (("delete", "one"), ("exec", "one", "true"), ("pause", "one")):
        assert pod.run(*words, check=False).returncode == 1, words
    pod.run("start", "one")
    assert pod.status("one") == "running"
    assert pod.run("start", "one", check=False).returncode == 1
    assert "pause its sandbox" in pod.run("pause", "one", check=False).stderr
    processes.wait_until(lambda: pod.output("one") == "up\n", "its first word", PATIENCE)
    done = pod.run("exec", "one", "sh", "-c", "cat; exit 4", input="in", stdin=None, check=False)
    assert (done.returncode, done.stdout) == (4, "in")
    pod.run("kill", "one", "USR1")
    processes.wait_until(lambda: pod.output("one") == "up\ntold\n", "its second word", PATIENCE)
    os.kill(pod.state("one")["pid"], signal.SIGUSR1)  # as an engine does that knows the PID only
    processes.wait_until(lambda: pod.output("one").endswith("told\ntold\n"), "its third word", PATIENCE)
    pod.run("kill", "one", "KILL")
    pod.wait("one")
    pod.run("delete", "one")
    join(pod, "one", "echo", "again")  # under the same name
    pod.wait("one")
    assert pod.output("one").endswith("told\nagain\n")
    assert pod.status("pod") == "running"


def test_members_see_their_own_processes_and_mounts_only(pod):
    join(pod, "one", "sh", "-c", "mount -t tmpfs none /tmp; exec sleep 1001", start=True)
    join(pod, "two", "sleep", "1002")
    processes.wait_until(lambda: "sleep 1001" in inside(pod, "one", "ps"), "the first member's program", PATIENCE)
    seen = inside(pod, "two", "ps", "-o", "pid,args")
    assert re.search(r"^ *1 sleep 1002$", seen, re.M) and "1001" not in seen and "sleep 1000" not in seen
    assert [" /tmp " in inside(pod, name, "cat", "/proc/mounts") for name in ("one", "two")] == [True, False]
    links = [{inside(pod, name, "readlink", f"/proc/1/ns/{kind}") for name in ("pod", "one", "two")}
             for kind in ("pid", "mnt", "net", "ipc", "uts")]  # fmt: skip
    assert [len(found) for found in links] == [3, 3, 1, 1, 1]


def test_nothing_of_a_member_stays_in_the_machine_however_it_ends(pod):
    """Seen by what a machine has but once, whoever asks: the number of its threads, and its free memory."""

    def load():
        threads = int(inside(pod, "look", "cat", "/proc/loadavg").split()[3].partition("/")[2])
        free = int(re.search(r"MemFree: +(\d+)", inside(pod, "look", "cat", "/proc/meminfo"))[1])
        return threads, free

    (pod.bundle / "rootfs/big").write_bytes(os.urandom(1 << 23))
    join(pod, "look", "sleep", "1000")
    for name in ("ended", "killed"):  # once each before the count: what the kernel makes the first time, it keeps
        join(pod, f"{name}-1", "true")
        pod.wait(f"{name}-1")
    threads, free = load()
    for number in range(3):
        join(pod, f"ended{number}", "sh", "-c", "yes >/dev/null & exec sleep 0.1")
        pod.wait(f"ended{number}")
        join(pod, f"killed{number}", "sh", "-c", "yes >/dev/null & exec sleep 1000")
        assert load()[0] > threads and load()[1] < free - 4096
        os.kill(pod.state(f"killed{number}")["pid"], signal.SIGKILL)  # the keeper
        pod.wait(f"killed{number}")
    processes.wait_until(lambda: load()[0] <= threads, "the end of all that was in them", PATIENCE)
    processes.wait_until(lambda: load()[1] > free - 4096, "their memory", PATIENCE)  # each had 8 MB
    pod.run("delete", "--force", "killed0")
    os.kill(json.loads(pod.run("ps", "pod").stdout)[1], signal.SIGKILL)  # QEMU, and with it the machine
    for name in ("pod", "look"):
        pod.wait(name)


def test_a_name_is_free_at_once_when_a_keeper_was_killed(pod):
    """The machine may still be busy with the end of the old one."""
    for number in range(4):
        join(pod, "one", "sh", "-c", f"echo {number}; exec sleep 1000")
        processes.wait_until(lambda: pod.output("one").count("\n") > number, "its word", PATIENCE)  # noqa: B023
        os.kill(pod.state("one")["pid"], signal.SIGKILL)
        pod.wait("one")
        pod.run("delete", "one")
    assert pod.output("one") == "0\n1\n2\n3\n"


def test_who_execs_and_is_killed_leaves_no_process_and_takes_no_place(pod):
    for number in range(vmrun.vmmachine.SLOTS + 2):
        words = f"sleep 7{number}"
        held = subprocess.Popen(pod.command("exec", "pod", *words.split()), stdin=subprocess.DEVNULL)
        processes.wait_until(lambda: words in inside(pod, "pod", "ps", "-o", "args"), words, PATIENCE)  # noqa: B023
        held.kill()
        held.wait(PATIENCE)
    processes.wait_until(lambda: "sleep 7" not in inside(pod, "pod", "ps", "-o", "args"), "their end", PATIENCE)


def test_many_at_once_have_a_place_each_and_one_too_many_is_told_so(pod):
    words = ["exec", "pod", "sh", "-c", "echo here; exec sleep 1000"]
    held = []
    try:
        for _ in range(vmrun.vmmachine.SLOTS - 1):
            held.append(subprocess.Popen(pod.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE))
        assert all(one.stdout.readline() == b"here\n" for one in held)
        refused = pod.run(*words, check=False)
        assert refused.returncode == 1 and "no place for another process" in refused.stderr
        held.pop().kill()
        processes.wait_until(lambda: pod.run("exec", "pod", "true", check=False).returncode == 0, "a place", PATIENCE)
    finally:
        for one in held:
            one.kill()
            one.wait(PATIENCE)
            one.stdout.close()


def test_a_member_without_a_machine_is_refused(place):
    place.configure("true", annotations=of_pod("nobody"))
    for changes, words in (
        ({"annotations": of_pod("nobody")}, "container 'nobody' does not exist"),
        ({"annotations": of_pod("../x")}, "names no sandbox"),
        ({"annotations": {"io.kubernetes.cri-o.ContainerType": "container"}}, "names no sandbox"),
    ):
        place.configure("true", **changes)
        refused = place.run("create", "--bundle", place.bundle, "m", check=False)
        assert refused.returncode == 1 and words in refused.stderr, refused.stderr
        assert not list(place.home.glob("state/*"))
    place.configure("true")
    place.create("pod")  # made, and standing still
    place.configure("true", annotations=of_pod("pod"))
    refused = place.run("create", "--bundle", place.bundle, "m", check=False)
    assert refused.returncode == 1 and "container pod is created" in refused.stderr
    assert [path.name for path in (place.home / "state").iterdir()] == ["pod"]


# ---- config.json, damaged

WRONG = (None, True, -1, 0, 2**70, 1.5, "", "x", "\0", "\ud800", "/", "../..", [], [[]], {}, {"a": 1}, ["x", 3],
         "a" * 9999)  # fmt: skip


def mutate(value, chance):
    """A copy of the configuration with one thing in it replaced, removed or added."""
    value = copy.deepcopy(value)
    spots = []

    def walk(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            spots.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(value)
    node, key = chance.choice(spots)
    deed = chance.randrange(4)
    if deed == 0:
        del node[key]
    elif deed == 1 and isinstance(node, dict):
        node[chance.choice([key + "x", "path", "type", "*", "args", "env"])] = chance.choice(WRONG)
    else:
        node[key] = chance.choice(WRONG)
    return value


def everything():
    """A configuration that uses all that vmrun honours."""
    config = copy.deepcopy(CONFIG)
    config["process"] |= {
        "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]}, "oomScoreAdj": 5, "noNewPrivileges": True,
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}], "consoleSize": {"height": 3, "width": 4},
    }  # fmt: skip
    bind = {"destination": "/mnt", "type": "bind", "source": "/etc/passwd", "options": ["rbind", "ro"]}
    config["mounts"].append(bind)
    config["hooks"] = {kind: [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 3}]
                       for kind in ("prestart", "startContainer", "poststop")}  # fmt: skip
    config["linux"] = {
        "sysctl": {"kernel.msgmax": "1"}, "resources": {"memory": {"limit": 1 << 28}}, "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"], "namespaces": [{"type": "pid"}, {"type": "mount"}],
        "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438}],
    }  # fmt: skip
    return config


def test_500_damaged_configurations_are_taken_or_refused_and_never_half(tmp_path):
    """What `create` does before it makes anything: it reads, and it writes what the guest will read."""
    chance = random.Random(7)
    make_rootfs(tmp_path / "rootfs")
    taken = 0
    for number in range(500):
        config = mutate(everything(), chance)
        for _ in range(number % 3):
            config = mutate(config, chance) if config else config
        text = json.dumps(config)
        if number % 10 == 0:
            cut, on = chance.randrange(len(text)), chance.randrange(len(text))
            text = text[:cut] + chance.choice(string.printable) + text[on:]
        (tmp_path / "config.json").write_text(text)
        try:
            loaded = vmrun.vmconfig.load(str(tmp_path))
            vmrun.vmconfig.sandbox(loaded)
            lines = vmrun.vmconfig.quoted(vmrun.vmconfig.steps_of_container(loaded, "x"))
        except (vmrun.Refused, OSError) as error:
            assert str(error) and "\n" not in str(error)
        else:
            taken += 1
            assert all("\n" not in line for line in lines), "the shell reads a line a step"
            script = "\n".join(lines).encode()
            checked = subprocess.run(["busybox", "sh", "-n"], input=script, capture_output=True, timeout=10)
            assert checked.stderr == b"", lines
    assert 20 < taken < 400, "some are harmless, most are not"


def test_a_damaged_configuration_makes_no_machine(place):
    config = place.configure("sh")
    damaged = [
        "", "[]", "{", "null", "[" * 100_000, json.dumps(config)[:-9], json.dumps(config | {"process": None}),
        json.dumps(config | {"root": {"path": "no-such"}}), json.dumps(config | {"ociVersion": "7"}),
        json.dumps(config | {"mounts": [{"destination": "/x", "type": "bind", "source": "/no/such"}]}),
    ]  # fmt: skip
    for text in damaged:
        (place.bundle / "config.json").write_text(text)
        log = place.home / "log"
        refused = place.run("--log", log, "--log-format", "json", "create", "--bundle", place.bundle, "x", check=False)
        assert refused.returncode == 1 and re.fullmatch(r"vmrun: .+\n", refused.stderr), text[:80]
        assert json.loads(log.read_text().splitlines()[-1])["level"] == "error"
        assert not list(place.home.glob("state/*")) and not place.machines()


# ---- the engines


@pytest.fixture(scope="module")
def lab():
    """One lab with a root file system as an image, for both engines."""
    before = LeakCheck(frozenset(snapshot()))
    try:
        started = start_lab()
    except LabError as error:
        pytest.skip(f"{EXCUSE}make a lab ({error})")
    make_rootfs(started.path("image"))
    started.path("volume").mkdir()
    started.path("volume/word").write_text("from the volume\n")
    started.run(["tar", "--create", "--file", "image.tar", "--directory", "image", "."], echo=False)
    yield started
    assert started.close().left == ()
    assert before.left() == []


class Engine:
    """Podman or Docker with vmrun as its runtime."""

    def __init__(self, lab, name):
        self.lab, self.name = lab, name
        try:
            self.env = engines.podman(lab) if name == "podman" else engines.docker(lab, {"vmrun": VMRUN})
        except engines.EngineError as error:
            pytest.skip(str(error))
        self("import", "--change", "ENV PATH=/bin", "image.tar", "box")

    def argv(self, *words):
        words = [str(word) for word in words]
        if self.name == "podman":
            return ["podman", "--runtime", VMRUN, *words]
        if words[0] in ("run", "create"):
            words[1:1] = ["--runtime", "vmrun", "--network", "none"]
        return ["docker", *words]

    def __call__(self, *words, check=True, **options):
        done = self.lab.run(self.argv(*words), env=self.env, echo=False, check=False, timeout=PATIENCE, **options)
        assert not check or done.code == 0, f"{words}: {done.code} {done.stderr}"
        return done

    def inspect(self, name, form):
        return self("inspect", "--format", form, name).stdout.strip()


@pytest.fixture(scope="module", params=["podman", "docker"])
def engine(request, lab):
    return Engine(lab, request.param)


@pytest.fixture(scope="module")
def service(engine):
    """A container that has been running since before, and says so."""
    script = "trap 'echo for all' USR1; echo up; echo trouble >&2; while :; do sleep 0.2; done"
    options = ("--name", "service", "--hostname", "hal", "--env", "WORD=two words", "--workdir", "/tmp")
    engine("run", "--detach", *options, "box", "sh", "-c", script)
    yield engine
    engine("rm", "--force", "service", check=False)


def test_run_gives_output_error_and_status_each_its_way(engine):
    done = engine("run", "--rm", "box", "sh", "-c", "uname -r; echo wrong >&2; exit 7", check=False)
    assert done.code == 7
    assert done.stdout.strip() != os.uname().release
    assert done.stderr == "wrong\n"


def test_run_passes_standard_input_to_its_end(engine):
    assert engine("run", "--rm", "--interactive", "box", "wc", "-c", stdin="x" * 100_000).stdout.strip() == "100000"


def test_run_honours_user_directory_environment_hostname_and_volumes(engine):
    volume = "/run/lab/volume:/data:ro"
    script = "id -u; id -g; pwd; echo $WORD; hostname; cat word; grep -c localhost /etc/hosts; (echo x >new) 2>&1; ls"
    done = engine("run", "--rm", "--volume", volume, "--user", "5:6", "--workdir", "/data", "--hostname", "deep",
                  "--env", "WORD=a  b", "box", "sh", "-c", script)  # fmt: skip
    user, group, where, word, host, text, hosts, refused, *files = done.stdout.splitlines()
    assert (user, group, where, word, host, text) == ("5", "6", "/data", "a b", "deep", "from the volume")
    assert int(hosts) >= 1
    assert "can't create" in refused
    assert files == ["word"]


def test_a_pod_of_podmans_is_one_machine(lab):
    engine, others = Engine(lab, "podman"), len(lab.find(machine.QEMU[:15]))
    engine("pod", "create", "--name", "pod", "--share", "ipc,uts", "--infra-image", "box", "--infra-command",
           "/bin/sleep 1000")  # fmt: skip
    engine("run", "--detach", "--pod", "pod", "--name", "one", "box", "sh", "-c", "echo up; exec sleep 1000")
    done = engine("run", "--rm", "--pod", "pod", "box", "sh", "-c", "hostname; ps; exit 3", check=False)
    assert done.code == 3 and done.stdout.startswith("pod\n") and "sleep 1000" not in done.stdout
    assert len(lab.find(machine.QEMU[:15])) == others + 1
    assert engine("logs", "one").stdout == "up\n"
    assert engine("exec", "one", "hostname").stdout == "pod\n"
    engine("stop", "--time", "0", "one")
    assert engine.inspect("one", "{{.State.ExitCode}}") == "137"
    engine("pod", "rm", "--force", "--time", "0", "pod")
    processes.wait_until(lambda: len(lab.find(machine.QEMU[:15])) == others, "the end of the machine", PATIENCE)


def test_a_pod_of_a_kubernetes_node_is_one_machine(lab):
    """The calls of a kubelet, whose only word about it is the name of a runtime."""
    image.add(lab.path("images"), "localhost/box:1", [image.pack(lab.path("image"))], {"Cmd": ["/bin/sleep", "1000"]})
    image.archive(lab.path("images"), "localhost/box:1", lab.path("node.tar"))
    try:
        node = engines.cri(lab, "localhost/box:1", {"machine": VMRUN})
    except engines.EngineError as error:
        pytest.skip(str(error))

    def call(method, **request):
        return cri.call(lab, node, method, request, echo=False)

    ctr = ["ctr", "--address", node, "--namespace", "k8s.io"]
    lab.run([*ctr, "images", "import", "node.tar"], echo=False)
    others = len(lab.find(machine.QEMU[:15]))
    pod = {"metadata": {"name": "duo", "uid": "1", "namespace": "default"}, "hostname": "duo"}
    pod["linux"] = {"cgroup_parent": f"{lab.cgroup}/node"} if lab.cgroup else {}
    sandbox = call("RunPodSandbox", config=pod, runtime_handler="machine")["pod_sandbox_id"]
    members = []
    for name in ("web", "client"):
        config = {"metadata": {"name": name}, "image": {"image": "localhost/box:1"}, "command": ["/bin/sleep", "2000"]}
        members.append(call("CreateContainer", pod_sandbox_id=sandbox, config=config, sandbox_config=pod))
        call("StartContainer", **members[-1])
    boot = "/proc/sys/kernel/random/boot_id"
    said = [call("ExecSync", **one, cmd=["sh", "-c", f"hostname; cat {boot}; ps"], timeout=20) for one in members]
    assert all(one.get("exit_code", 0) == 0 for one in said)
    names = {tuple(one["stdout"].splitlines()[:2]) for one in said}
    assert len(names) == 1 and names != {("duo", Path(boot).read_text().strip())}
    assert all(one["stdout"].count("/bin/sleep") == 1 for one in said)
    assert len(lab.find(machine.QEMU[:15])) == others + 1
    call("RemovePodSandbox", pod_sandbox_id=sandbox)
    processes.wait_until(lambda: len(lab.find(machine.QEMU[:15])) == others, "the end of the machine", PATIENCE)
    assert call("ListContainers").get("containers", []) == []


def test_a_program_that_is_not_there_is_said_and_is_status_127(engine):
    done = engine("run", "--rm", "box", "no-such-program", check=False)
    assert done.code == 127
    assert 'exec: "no-such-program": executable file not found in $PATH' in done.stderr
    assert engine("run", "--rm", "box", "/etc/passwd", check=False).code == 126


def test_logs_have_what_it_said(service):
    processes.wait_until(lambda: service("logs", "service").stderr, "the log", PATIENCE)
    said = service("logs", "service")
    assert (said.stdout, said.stderr) == ("up\n", "trouble\n")


def test_exec_runs_in_the_machine_with_streams_and_status(service):
    done = service("exec", "--interactive", "service", "sh", "-c", "cat; hostname; pwd; echo $WORD; echo e >&2; exit 4",
                   stdin="given\n", check=False)  # fmt: skip
    assert (done.code, done.stdout, done.stderr) == (4, "given\nhal\n/tmp\ntwo words\n", "e\n")
    assert service("exec", "--user", "1000", "service", "id", "-u").stdout == "1000\n"
    assert service("exec", "--env", "A=b", "service", "sh", "-c", "echo $A").stdout == "b\n"
    assert service("exec", "service", "no-such", check=False).code in (126, 127)
    assert "sleep" in service("exec", "service", "ps").stdout


def test_exec_gives_a_terminal(service):
    assert service("exec", "--tty", "service", "tty").stdout.startswith("/dev/hvc")


def test_exec_on_a_terminal_takes_keys_a_size_and_ctrl_c(service, lab):
    with on_terminal(service, lab, "exec", "--interactive", "--tty", "service", "sh") as terminal:
        interrupt(terminal)
        terminal.send("exit 3\n")
        assert terminal.wait() == 3


def test_inspect_knows_its_state(service):
    assert service.inspect("service", "{{.State.Status}}") == "running"
    pid = int(service.inspect("service", "{{.State.Pid}}"))
    assert processes.read_one(pid, service.lab.proc).name == "vmrun"


def test_attach_shows_what_comes(service, lab):
    step = lab.start(service.argv("attach", "--no-stdin", "--sig-proxy=false", "service"), stdout="attached",
                     stderr="attached", env=service.env, echo=False)  # fmt: skip

    def heard():
        service("kill", "--signal", "USR1", "service")
        return "for all" in lab.path("attached").read_text()

    try:
        processes.wait_until(heard, "the words", PATIENCE)
    finally:
        step.kill()


def test_pause_stops_the_machine(service):
    if service.name == "podman":
        refused = service("pause", "service", check=False)
        assert "Cgroups" in refused.stderr  # Podman wants a cgroup for it, and in the lab its containers have none
        return
    service("pause", "service")
    assert service.inspect("service", "{{.State.Status}}") == "paused"
    service("unpause", "service")
    assert service("exec", "service", "echo", "on").stdout == "on\n"
    assert "qemu-system" in service("top", "service").stdout


def test_stop_asks_and_the_status_is_the_programs(engine):
    script = "trap 'echo told to end; exit 9' TERM; echo up; while :; do sleep 0.2; done"
    engine("run", "--detach", "--name", "polite", "box", "sh", "-c", script)
    processes.wait_until(lambda: engine("logs", "polite").stdout, "the trap", PATIENCE)
    engine("stop", "polite")
    assert engine.inspect("polite", "{{.State.ExitCode}}") == "9"
    assert engine("logs", "polite").stdout == "up\ntold to end\n"
    engine("start", "polite")
    assert engine.inspect("polite", "{{.State.Status}}") == "running"
    engine("kill", "polite")
    assert engine("wait", "polite").stdout.strip() == "137"
    engine("rm", "polite")
    assert "polite" not in engine("ps", "--all").stdout


def test_rm_force_leaves_no_machine(engine):
    before = {process.pid for process in engine.lab.find(machine.QEMU[:15])}
    engine("run", "--detach", "--name", "doomed", "box", "sleep", "1000")
    assert len({process.pid for process in engine.lab.find(machine.QEMU[:15])} - before) == 1
    engine("rm", "--force", "doomed")
    left = lambda: {process.pid for process in engine.lab.find(machine.QEMU[:15])} - before  # noqa: E731
    processes.wait_until(lambda: not left(), "the end of the machine", PATIENCE)
    assert "doomed" not in engine("ps", "--all").stdout


def test_run_on_a_terminal_takes_ctrl_c(engine, lab):
    with on_terminal(engine, lab, "run", "--rm", "--interactive", "--tty", "box", "sh") as terminal:
        interrupt(terminal)
        terminal.send("exit 6\n")
        assert terminal.wait() == 6


def interrupt(terminal):
    """See the terminal's size, and that Ctrl-C ends what the shell there has started."""
    terminal.expect("# ")
    terminal.send("tty; stty size; sum=$((40 + 2)); echo $sum; cat\n")
    terminal.expect("/dev/hvc")
    terminal.expect("31 77")
    terminal.expect("42")
    terminal.send("twice\n")
    terminal.expect("twice\r\n")  # the terminal's echo
    terminal.expect("twice\r\n")  # and that of cat, which runs, then
    terminal.send("\x03")
    terminal.expect("# ")
    terminal.send("echo alive $((sum + 1))\n")
    terminal.expect("alive 43")


class Terminal:
    """A command in the lab on a terminal of its own, 31 rows by 77 columns."""

    def __init__(self, step, master):
        self.step, self.master, self.said = step, master, ""
        os.set_blocking(master, False)

    def send(self, keys):
        os.write(self.master, keys.encode())

    def read(self):
        with contextlib.suppress(BlockingIOError, OSError):
            self.said += os.read(self.master, 65536).decode(errors="replace")
        return self.said

    def expect(self, words):
        processes.wait_until(lambda: words in self.read(), f"{words!r}", PATIENCE)
        self.said = self.said.partition(words)[2]

    def wait(self):
        """The exit status; what is still said is read, so that nobody waits for a reader."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self.read()
            try:
                return self.step.wait(0.05)
            except TimeoutError:
                assert time.monotonic() < deadline, self.said


@contextlib.contextmanager
def on_terminal(engine, lab, *words):
    """An engine's command on a terminal, as a person would use it."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 31, 77, 0, 0))
    with open(slave, "r+b", buffering=0) as terminal:
        streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
        step = lab.start(engine.argv(*words), env=engine.env, echo=False, **streams)
    try:
        yield Terminal(step, master)
    finally:
        step.kill(signal.SIGKILL)
        os.close(master)
