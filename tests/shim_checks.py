"""What Podman may expect of its conmon: the same checks for Debian's conmon and for notebooks/programs/shim.

CHECKS are functions that get a Podman (tests/engines.py) and raise AssertionError. Each has a sentence and the stage of
the shim with which it turns green. CONMON_IS_WRONG has those that Debian's conmon 2.1.6 fails, and what it does.
"""

import hashlib
import os
import re
import select
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from engines import IMAGE, Terminal

from helpers import processes
from helpers.processes import wait_until

CHECKS = []
CONMON_IS_WRONG = {
    "attach and detach a hundred times leaves the shim no descriptor more":
        "it keeps each client's descriptor until the container writes again",
    "a container killed for want of memory has 137, and Podman knows why":
        "it writes the file `oom` into the directory where Podman was started, and Podman looks into the bundle",
    "a client that never reads does not keep the end of the container from being known":
        "it waits for that client before it writes the exit code, for ever",
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    sentence: str
    stage: int
    run: object


def check(stage, sentence):
    def keep(function):
        CHECKS.append(Check(sentence, stage, function))
        return function

    return keep


def script(text):
    return ["sh", "-c", text]


def detached(podman, name, text, *options):
    """Start a container in the background; `podman.must` complains when that fails."""
    return podman.must("run", "--detach", "--name", name, *options, IMAGE, *script(text))


def idle(podman):
    """A container that runs until the end of the tests, for all that needs a running one."""
    if podman.run("container", "exists", "idle").code != 0:
        detached(podman, "idle", "trap exit TERM; while :; do sleep 1000 & wait; done")
    return "idle"


def remove(podman, name):
    podman.must("rm", "--force", "--time", "0", name)


def logs(podman, name, **options):
    done = podman.run("logs", name, **options)
    assert done.code == 0, done.err
    return done


def lines(process, number, timeout=15):
    """The next lines of its output, read as they come."""
    found, deadline = b"", time.monotonic() + timeout
    while found.count(b"\n") < number:
        left = max(0, deadline - time.monotonic())
        assert select.select([process.stdout], [], [], left)[0], f"after {found!r} nothing"
        piece = os.read(process.stdout.fileno(), 1)
        assert piece, f"after {found!r} the end"
        found += piece
    return found.splitlines()


def output(done):
    return done.code, done.out, done.err


def shim_of(podman, name):
    return processes.read_one(podman.inspect(name)["State"]["ConmonPid"])


def noise(size):
    """Bytes that no copy can get wrong unseen, nor a log or a terminal: lines of hexadecimal digits."""
    return hashlib.shake_256(b"uncontained").hexdigest(size // 2).encode()


def inside(podman, name):
    """The processes in the container, by its PID namespace."""
    home = processes.read_namespaces(podman.inspect(name)["State"]["Pid"])[0]
    return [p for p in processes.read() if p.namespaces[:1] == (home,)]


def log_file(podman, name):
    return Path(podman.inspect(name)["HostConfig"]["LogConfig"]["Path"])


# ---- Stage 1: without any client


@check(1, "a container runs in the background, and its output is in the log")
def _(podman):
    detached(podman, "c", "echo hello")
    assert podman.must("wait", "c") == "0"
    assert logs(podman, "c").out == b"hello\n"
    remove(podman, "c")


@check(1, "the log keeps stdout and stderr apart")
def _(podman):
    detached(podman, "c", "echo one; echo two >&2; echo three")
    podman.must("wait", "c")
    assert output(logs(podman, "c")) == (0, b"one\nthree\n", b"two\n")
    remove(podman, "c")


@check(1, "each log line has a time with nanoseconds and zone, a stream and a tag")
def _(podman):
    detached(podman, "c", "echo line; printf rest")
    podman.must("wait", "c")
    first, second = log_file(podman, "c").read_text().splitlines()
    form = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}[+-]\d\d:\d\d stdout "
    assert re.fullmatch(form + "F line", first) and re.fullmatch(form + "P rest", second)
    remove(podman, "c")


@check(1, "a line without its newline stays without it")
def _(podman):
    detached(podman, "c", "printf abc")
    podman.must("wait", "c")
    assert logs(podman, "c").out in (b"abc", b"abc\n")  # some versions of `podman logs` end the last line
    remove(podman, "c")


@check(1, "a line of 100 KB is one line in the log again")
def _(podman):
    detached(podman, "c", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo end")
    podman.must("wait", "c")
    assert logs(podman, "c").out == b"x" * 100000 + b"\nend\n"
    remove(podman, "c")


@check(1, "a carriage return does not end a line, and no byte is changed")
def _(podman):
    detached(podman, "c", "printf 'a\\rb\\n\\n\\377\\0\\033[1m\\n'")
    podman.must("wait", "c")
    assert logs(podman, "c").out == b"a\rb\n\n\xff\0\x1b[1m\n"
    remove(podman, "c")


@check(1, "what is written just before the exit is in the log")
def _(podman):
    detached(podman, "c", "seq 20000; exec true")
    podman.must("wait", "c")
    assert logs(podman, "c").out.split() == [b"%d" % n for n in range(1, 20001)]
    remove(podman, "c")


@check(1, "`logs --follow` shows what comes, and ends when the container ends")
def _(podman):
    detached(podman, "c", "trap 'echo two; exit' TERM; echo one; while :; do sleep 0.1; done")
    following = podman.start("logs", "--follow", "c")
    assert lines(following, 1) == [b"one"]
    podman.must("kill", "--signal", "TERM", "c")
    assert following.communicate(timeout=15)[0] == b"two\n"
    remove(podman, "c")


@check(1, "with the log driver `none` there is no log, and the container runs all the same")
def _(podman):
    detached(podman, "c", "seq 100000; exit 4", "--log-driver=none")
    assert podman.must("wait", "c") == "4"
    remove(podman, "c")


@check(1, "the exit code is the program's")
def _(podman):
    detached(podman, "c", "exit 42")
    assert podman.must("wait", "c") == "42"
    assert podman.inspect("c")["State"]["ExitCode"] == 42
    remove(podman, "c")


@check(1, "a container that is killed has the exit code 137")
def _(podman):
    detached(podman, "c", "sleep 1000")
    podman.must("kill", "c")
    assert podman.must("wait", "c") == "137"
    remove(podman, "c")


@check(1, "a program that handles TERM ends by `podman stop` with a code of its own")
def _(podman):
    detached(podman, "c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done")
    wait_until(lambda: logs(podman, "c").out, "the handler to stand")
    podman.must("stop", "--time", "10", "c")
    assert podman.inspect("c")["State"]["ExitCode"] == 9
    remove(podman, "c")


@check(1, "a missing program is an error at once, 127, in the runtime's words")
def _(podman):
    done = podman.run("run", "--detach", "--name", "c", IMAGE, "no-such-program")
    assert done.code == 127 and b"no-such-program" in done.err and b"not found" in done.err
    remove(podman, "c")


@check(1, "a program that can't be executed is an error at once, 126")
def _(podman):
    done = podman.run("run", "--detach", "--rm", IMAGE, "/etc/passwd")
    assert done.code == 126 and b"permission denied" in done.err


@check(1, "what Podman itself refuses is 125")
def _(podman):
    assert podman.run("run", "--detach", "--no-such-option", IMAGE).code == 125
    assert podman.run("run", "--detach", "--rm", "--runtime", "/etc/passwd", IMAGE, "true").code in (125, 126)


@check(1, "a working directory that can't be entered is an error, and nothing stays")
def _(podman):
    done = podman.run("run", "--detach", "--rm", "--workdir", "/etc/passwd", IMAGE, "true")
    assert done.code in (125, 126, 127) and done.err
    wait_until(lambda: not [p for p in podman.shims() if "c" in p.argv], "the shim to end")


@check(1, "a container that has ended starts again, and the log goes on")
def _(podman):
    detached(podman, "c", "echo again")
    podman.must("wait", "c")
    podman.must("start", "c")
    podman.must("wait", "c")
    assert logs(podman, "c").out == b"again\nagain\n"
    remove(podman, "c")


@check(1, "`podman restart` gives a new PID and a new shim")
def _(podman):
    detached(podman, "c", "sleep 1000")
    before = podman.inspect("c")["State"]
    podman.must("restart", "--time", "0", "c")
    after = podman.inspect("c")["State"]
    assert after["Running"] and {before["Pid"], before["ConmonPid"]}.isdisjoint({after["Pid"], after["ConmonPid"]})
    remove(podman, "c")


@check(1, "the exit command restarts a container that failed, as often as was asked")
def _(podman):
    detached(podman, "c", "echo run; exit 1", "--restart", "on-failure:2")
    wait_until(lambda: logs(podman, "c").out == b"run\n" * 3, "three runs", 20)
    podman.wait_for("c", "exited")
    remove(podman, "c")


@check(1, "the exit command removes a container with --rm, and its shim ends")
def _(podman):
    name = detached(podman, "c", "exit 0", "--rm")
    wait_until(lambda: podman.run("container", "exists", "c").code == 1, "the container to be removed")
    wait_until(lambda: not [p for p in podman.shims() if name in p.argv], "the shim to end")


@check(1, "the container's parent is the shim, and Podman knows its PID")
def _(podman):
    init = processes.read_one(podman.inspect(idle(podman))["State"]["Pid"])
    assert init.ppid == shim_of(podman, "idle").pid


@check(1, "the shim has left the session and the descriptors of the caller")
def _(podman):
    shim = shim_of(podman, idle(podman))
    assert os.getsid(shim.pid) == shim.pid
    assert [d.target for d in processes.descriptors(shim.pid)[:3]] == ["/dev/null"] * 3


@check(1, "the container holds three descriptors, and none of the manager's")
def _(podman):
    init = podman.inspect(idle(podman))["State"]["Pid"]
    held = {d.number: d.kind for d in processes.descriptors(init) if d.number != 10}  # 10: the shell's own
    assert held == {0: "device", 1: "pipe", 2: "pipe"}


@check(1, "without -i the container's standard input is at its end")
def _(podman):
    detached(podman, "c", "cat; echo end")
    podman.must("wait", "c")
    assert logs(podman, "c").out == b"end\n"
    remove(podman, "c")


@check(1, "TERM to the shim reaches the container")
def _(podman):
    detached(podman, "c", "trap 'echo got TERM; exit 3' TERM; echo ready; while :; do sleep 0.1; done")
    wait_until(lambda: logs(podman, "c").out, "the handler to stand")
    os.kill(shim_of(podman, "c").pid, signal.SIGTERM)
    assert podman.must("wait", "c") == "3"
    assert logs(podman, "c").out == b"ready\ngot TERM\n"
    remove(podman, "c")


@check(1, "any user of the container can open /dev/stdout and /dev/stderr")
def _(podman):
    detached(podman, "c", "echo out > /dev/stdout; echo err > /dev/stderr", "--user", "1000")
    assert podman.must("wait", "c") == "0"
    assert output(logs(podman, "c")) == (0, b"out\n", b"err\n")
    remove(podman, "c")


@check(1, "a reader that goes away ends a program by SIGPIPE: the shim's own ignoring of it is not inherited")
def _(podman):
    detached(podman, "c", "yes | head -n 1; grep -i ^SigIgn /proc/self/status")
    podman.must("wait", "c")
    first, second = logs(podman, "c").out.split(b"\n", 1)
    assert first == b"y" and int(second.split()[1], 16) & (1 << 12 | 1 << 24) == 0
    remove(podman, "c")


@check(1, "no descriptor number or crash order of the shim is in the container's environment")
def _(podman):
    detached(podman, "c", "env")
    podman.must("wait", "c")
    assert b"_OCI_" not in logs(podman, "c").out
    remove(podman, "c")


@check(1, "preserved descriptors arrive in the container")
def _(podman):
    argv = ["run", "--detach", "--rm", "--preserve-fds", "1", IMAGE, *script("echo through 3 >&3")]
    assert podman.run_with_descriptor_3(*argv) == b"through 3\n"


@check(1, "a pod's members share the network namespace, and each has a shim of its own")
def _(podman):
    podman.must("pod", "create", "--network", "none", "--name", "p")
    detached(podman, "a", "sleep 1000", "--pod", "p")
    detached(podman, "b", "sleep 1000", "--pod", "p")
    states = [podman.inspect(name)["State"] for name in ("a", "b")]
    one, two = (processes.read_one(state["Pid"]) for state in states)
    assert one.namespace("net") == two.namespace("net") and one.namespace("pid") != two.namespace("pid")
    assert states[0]["ConmonPid"] != states[1]["ConmonPid"]
    podman.must("pod", "rm", "--force", "--time", "0", "p")


@check(1, "a pod that `kube play` makes has the output of both containers in their logs")
def _(podman):
    one = f"{{name: one, image: {IMAGE}, imagePullPolicy: Never, command: [sh, -c, 'echo 1; exec sleep 1000']}}"
    file = podman.home / "pod.yaml"
    containers = f"[{one}, {one.replace('one', 'two').replace('echo 1', 'echo 2')}]"
    file.write_text(f"apiVersion: v1\nkind: Pod\nmetadata: {{name: k}}\nspec:\n  containers: {containers}\n")
    podman.must("kube", "play", "--network", "none", file)
    wait_until(lambda: logs(podman, "k-one").out == b"1\n" and logs(podman, "k-two").out == b"2\n", "both outputs")
    podman.must("pod", "rm", "--force", "--time", "0", "k")
    podman.run("kube", "down", file)


@check(1, "the shim's parent is PID 1 or a subreaper, not Podman")
def _(podman):
    parent = processes.read_one(shim_of(podman, idle(podman)).ppid)
    assert parent.name != "podman"


# ---- Stage 2: clients


@check(2, "`run` shows the output and ends with the exit code")
def _(podman):
    done = podman.run("run", "--rm", IMAGE, *script("echo out; echo err >&2; exit 7"))
    assert output(done) == (7, b"out\n", b"err\n")


@check(2, "`run` ends with 127, 126 and 137 where the container did")
def _(podman):
    assert podman.run("run", "--rm", IMAGE, *script("exit 127")).code == 127
    assert podman.run("run", "--rm", IMAGE, *script("exit 126")).code == 126
    assert podman.run("run", "--rm", IMAGE, *script("kill -9 $$; echo PID 1 can not kill itself; exit 5")).code == 5
    running = podman.start("run", "--rm", "--name", "c", IMAGE, *script("echo go; sleep 1000"))
    assert lines(running, 1) == [b"go"]
    podman.must("kill", "c")
    running.communicate(timeout=15)
    assert running.returncode == 137


@check(2, "input to `run -i` arrives, and its end ends the container's input")
def _(podman):
    assert output(podman.run("run", "--rm", "-i", IMAGE, "cat", input=b"one\ntwo")) == (0, b"one\ntwo", b"")


@check(2, "10 MB of input arrive whole")
def _(podman):
    data = noise(10_000_000)
    done = podman.run("run", "--rm", "-i", IMAGE, "md5sum", input=data)
    assert done.out.split()[0].decode() == hashlib.md5(data).hexdigest()


@check(2, "input waits for a program that reads late")
def _(podman):
    data = noise(2_000_000)
    done = podman.run("run", "--rm", "-i", IMAGE, *script("sleep 1; md5sum"), input=data)
    assert done.out.split()[0].decode() == hashlib.md5(data).hexdigest()


@check(2, "10 MB go in and come out again at the same time")
def _(podman):
    data = noise(10_000_000)
    assert podman.run("run", "--rm", "-i", "--log-driver=none", IMAGE, "cat", input=data).out == data


@check(2, "20 MB of output arrive whole, and are whole in the log")
def _(podman):
    program = 'BEGIN { for (n = 0; n < 100000; n++) printf "%0199d\\n", n }'
    done = podman.run("run", "--name", "c", IMAGE, "awk", program)
    assert done.out == b"".join(b"%0199d\n" % n for n in range(100_000))
    assert logs(podman, "c").out == done.out
    remove(podman, "c")


@check(2, "a slow reader of the output gets every byte")
def _(podman):
    running = podman.start("run", "--rm", IMAGE, *script("seq -w 1000000 | head -c 5600000"))
    out = b""
    while piece := running.stdout.read(1 << 20):
        out += piece
        time.sleep(0.03)  # this is the slow reader
    assert running.wait(15) == 0 and out == b"".join(b"%07d\n" % n for n in range(1, 700_001))


@check(2, "a program that does not read its input ends all the same")
def _(podman):
    running = podman.start("run", "--rm", "-i", IMAGE, *script("exec 0<&-; echo done; sleep 0.3"), stdin=-1)
    wait_until(lambda: _fill(running.stdin), "an end of the pipe or of the container")
    assert running.wait(15) == 0 and running.stdout.read() == b"done\n"


def _fill(stream):
    try:
        os.write(stream.fileno(), b"y\n" * 1000)
    except BrokenPipeError:
        return True


@check(2, "quick containers lose no output")
def _(podman):
    for number in range(12):
        assert podman.must("run", "--rm", IMAGE, "echo", number) == str(number)


@check(2, "`start --attach` loses no first line")
def _(podman):
    podman.must("create", "--name", "c", IMAGE, *script("echo first; exit 6"))
    assert output(podman.run("start", "--attach", "c")) == (6, b"first\n", b"")
    remove(podman, "c")


@check(2, "`start --attach --interactive` passes input")
def _(podman):
    podman.must("create", "-i", "--name", "c", IMAGE, "cat")
    assert podman.run("start", "--attach", "--interactive", "c", input=b"typed\n").out == b"typed\n"
    remove(podman, "c")


@check(2, "attach shows the output from now on, the log all of it")
def _(podman):
    detached(podman, "c", "echo early; read line; echo $line; read line", "-i")
    wait_until(lambda: logs(podman, "c").out, "the first line")
    attached = podman.start("attach", "c", stdin=-1)
    attached.stdin.write(b"late\n")
    attached.stdin.flush()
    assert lines(attached, 1) == [b"late"]
    attached.stdin.close()
    attached.stdin = None
    attached.communicate(timeout=15)
    assert logs(podman, "c").out == b"early\nlate\n"
    remove(podman, "c")


@check(2, "attach ends when the container ends")
def _(podman):
    detached(podman, "c", "read line; exit $line", "-i")
    podman.must("attach", "c", input=b"33\n")  # its own exit code is 0: Podman's choice, not the shim's
    assert podman.inspect("c")["State"]["ExitCode"] == 33
    remove(podman, "c")


@check(2, "two clients get the same output")
def _(podman):
    detached(podman, "c", "read line; seq 1000; read line", "-i")
    clients = [podman.start("attach", "c", stdin=-1) for _ in range(2)]
    _connected(podman, "c", 2)
    clients[0].stdin.write(b"go\n")
    clients[0].stdin.flush()
    for client in clients:
        assert lines(client, 1000) == [b"%d" % n for n in range(1, 1001)]
    podman.must("kill", "c")
    for client in clients:
        client.communicate(timeout=15)
    remove(podman, "c")


def _connected(podman, name, number):
    """Wait until the shim holds so many connections of clients."""
    shim = shim_of(podman, name).pid

    def there():
        lines = map(str.split, Path("/proc/net/unix").read_text().splitlines()[1:])
        accepted = {int(words[6]) for words in lines if words[5] == "03" and words[-1].endswith("/attach")}
        return len([d for d in processes.descriptors(shim) if d.inode in accepted]) >= number

    wait_until(there, f"{number} clients")


@check(2, "a client that is killed disturbs neither the container nor the other client")
def _(podman):
    detached(podman, "c", "while sleep 0.05; do echo tick; done")
    one, two = (podman.start("attach", "--no-stdin", "c") for _ in range(2))
    assert lines(one, 1) == lines(two, 1) == [b"tick"]
    one.kill()
    one.communicate(timeout=15)
    assert lines(two, 5) == [b"tick"] * 5
    remove(podman, "c")
    two.communicate(timeout=15)


@check(2, "without -i, an attached client only listens")
def _(podman):
    detached(podman, "c", "readlink /proc/self/fd/0; while :; do sleep 0.1; echo on; done")
    wait_until(lambda: b"on" in logs(podman, "c").out, "its second word")
    attached = podman.start("attach", "c", stdin=-1)
    attached.stdin.write(b"ignored\n" * 1000)
    attached.stdin.close()
    attached.stdin = None
    assert lines(attached, 3) == [b"on"] * 3
    assert logs(podman, "c").out.startswith(b"/dev/null\non\n")
    remove(podman, "c")
    attached.communicate(timeout=15)


@check(2, "the end of the first client's input is the end of the container's")
def _(podman):
    detached(podman, "c", "cat; echo end", "-i")
    assert podman.run("attach", "c", input=b"said\n").out.split() == [b"said", b"end"]
    remove(podman, "c")


@check(2, "INT to `run` goes through to the program")
def _(podman):
    text = "trap 'echo got INT; exit 4' INT; while :; do echo tick; sleep 0.1; done"
    running = podman.start("run", "--rm", IMAGE, *script(text))
    lines(running, 8)  # Podman passes signals on only some time after the first output
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=15)[0].endswith(b"got INT\n") and running.returncode == 4


@check(2, "the output of a background process that outlives the program's first half is not lost")
def _(podman):
    done = podman.run("run", "--rm", IMAGE, *script("(sleep 0.5; echo late) & echo early; wait"))
    assert done.out == b"early\nlate\n"


@check(2, "the container goes on after the `run` that started it was killed")
def _(podman):
    running = podman.start("run", "--name", "c", IMAGE, *script("while sleep 0.05; do echo tick; done"))
    assert lines(running, 1) == [b"tick"]
    running.kill()
    running.communicate(timeout=15)
    size = len(logs(podman, "c").out)
    wait_until(lambda: len(logs(podman, "c").out) > size, "more in the log")
    assert podman.inspect("c")["State"]["Running"]
    remove(podman, "c")


@check(2, "a client that does not read and goes away lets the container go on")
def _(podman):
    detached(podman, "c", "read line; seq 1 400000; echo end", "-i")
    place = Path(podman.inspect("c")["StaticDir"], "attach")
    with _connect(place) as client:
        client.send(b"go\n")
        time.sleep(0.3)  # here the client is, and does not read
    assert podman.must("wait", "c") == "0"
    assert logs(podman, "c").out.endswith(b"400000\nend\n")
    remove(podman, "c")


def _connect(place):
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(place.parent, os.O_PATH)
    client.connect(f"/proc/self/fd/{directory}/attach")
    os.close(directory)
    return client


@check(2, "attach and detach a hundred times leaves the shim no descriptor more")
def _(podman):
    detached(podman, "c", "sleep 1000")
    place, shim = Path(podman.inspect("c")["StaticDir"], "attach"), shim_of(podman, "c").pid
    before = len(processes.descriptors(shim))
    for _ in range(100):
        _connect(place).close()
    wait_until(lambda: len(processes.descriptors(shim)) <= before, "the clients' descriptors to be closed", 2)
    remove(podman, "c")


# ---- Stage 3: exec


@check(3, "exec shows the output and ends with the exit code")
def _(podman):
    done = podman.run("exec", idle(podman), *script("echo out; echo err >&2; exit 3"))
    assert output(done) == (3, b"out\n", b"err\n")


@check(3, "exec of a missing program is 127, of what can't be executed 126")
def _(podman):
    assert podman.run("exec", idle(podman), "no-such-program").code == 127
    assert podman.run("exec", idle(podman), "/etc/passwd").code == 126


@check(3, "exec of a program that is killed is 137")
def _(podman):
    assert podman.run("exec", idle(podman), *script("kill -9 $$")).code == 137


@check(3, "exec in a container that does not run, or that does not exist, is refused")
def _(podman):
    podman.must("create", "--name", "c", IMAGE, "true")
    assert podman.run("exec", "c", "true").code == 255
    assert podman.run("exec", "no-such-container", "true").code == 125
    remove(podman, "c")


@check(3, "exec -i passes 10 MB in and out")
def _(podman):
    data = noise(10_000_000)
    assert podman.run("exec", "-i", idle(podman), "cat", input=data).out == data


@check(3, "exec without -i has no input")
def _(podman):
    assert podman.run("exec", idle(podman), "cat", input=b"unheard").out == b""


@check(3, "exec -d returns at once, and the program runs")
def _(podman):
    podman.must("exec", "-d", idle(podman), *script("sleep 0.2; echo done > /tmp/done"))
    wait_until(lambda: podman.run("exec", "idle", "cat", "/tmp/done").out == b"done\n", "the program's file")


@check(3, "exec knows --workdir, --user and --env")
def _(podman):
    assert podman.must("exec", "--workdir", "/work", idle(podman), "pwd") == "/work"
    assert podman.must("exec", "--user", "1000", "idle", "id", "-u") == "1000"
    assert podman.must("exec", "--env", "WORD=a b", "idle", *script('echo "$WORD"')) == "a b"


@check(3, "exec keeps a preserved descriptor")
def _(podman):
    argv = ["exec", "--preserve-fds", "1", idle(podman), *script("echo through 3 >&3")]
    assert podman.run_with_descriptor_3(*argv) == b"through 3\n"


@check(3, "exec writes nothing into the container's log")
def _(podman):
    detached(podman, "c", "echo own; sleep 1000")
    assert podman.must("exec", "c", "echo", "foreign") == "foreign"
    assert logs(podman, "c").out == b"own\n"
    remove(podman, "c")


@check(3, "exec ends with its program, whatever that leaves behind with its descriptors")
def _(podman):
    begin = time.monotonic()
    assert podman.must("exec", idle(podman), *script("sleep 20 & echo here")) == "here"
    assert time.monotonic() - begin < 10


@check(3, "exec ends even if what it leaves behind writes without an end")
def _(podman):
    idle(podman)
    done = podman.run("exec", "idle", *script("yes & echo here"), timeout=10)
    assert done.code == 0 and b"here\n" in done.out


@check(3, "quick commands lose no output")
def _(podman):
    idle(podman)
    for number in range(12):
        assert podman.must("exec", "idle", "echo", number) == str(number)


@check(3, "commands that run side by side get their own output, input and codes")
def _(podman):
    idle(podman)
    running = [podman.start("exec", "-i", "idle", *script(f"cat; exit {n}"), stdin=-1) for n in range(6)]
    done = [process.communicate(b"%d" % n, 30)[0] for n, process in enumerate(running)]
    assert done == [b"%d" % n for n in range(6)]
    assert [process.returncode for process in running] == list(range(6))


@check(3, "a command has a shim of its own, which is not the container's")
def _(podman):
    running = podman.start("exec", idle(podman), "sleep", "4321")

    def shim_of_command():
        command = next((p for p in inside(podman, "idle") if p.argv == ("sleep", "4321")), None)
        parent = command and processes.read_one(command.ppid)  # at first the runtime
        return (command, parent) if parent and "--exec-process-spec" in parent.argv else None

    command, shim = wait_until(shim_of_command, "the command under a shim", 20)
    assert shim.pid != shim_of(podman, "idle").pid
    os.kill(command.pid, signal.SIGKILL)
    running.communicate(timeout=15)
    assert running.returncode == 137


@check(3, "a health check runs through exec")
def _(podman):
    detached(podman, "c", "sleep 1000", "--health-cmd", "true", "--health-interval", "disable")
    assert podman.run("healthcheck", "run", "c").code == 0
    remove(podman, "c")


@check(3, "an exec session leaves no process and no file")
def _(podman):
    directory = Path(podman.inspect(idle(podman))["StaticDir"])
    wait_until(lambda: not [p for p in podman.shims() if "--exec-process-spec" in p.argv], "all exec shims to end")
    wait_until(lambda: not [d for d in directory.iterdir() if re.fullmatch("[0-9a-f]{64}", d.name)], "no directories")


# ---- Stage 4: terminals


@check(4, "with -t the program has a terminal, stderr is in the same stream, and lines end with \\r\\n")
def _(podman):
    text = "test -t 0 && test -t 1 && test -t 2 && echo yes; echo err >&2"
    assert output(podman.run("run", "--rm", "-t", IMAGE, *script(text))) == (0, b"yes\r\nerr\r\n", b"")


@check(4, "`run -it` passes keys, and ends with the exit code")
def _(podman):
    terminal = Terminal(podman, ["run", "--rm", "-it", IMAGE, "sh"])
    terminal.expect(b"#")
    terminal.send(b"echo $((6*7))\n")
    terminal.expect(b"42\r\n")
    terminal.send(b"exit 11\n")
    assert terminal.wait() == 11


@check(4, "the container's terminal gets the size of ours, and its changes, with SIGWINCH")
def _(podman):
    text = "trap 'stty size' WINCH; until [ \"$(stty size)\" = '33 77' ]; do sleep 0.1; done; echo sized; read line"
    terminal = Terminal(podman, ["run", "--rm", "-it", IMAGE, *script(text + "; read line")], 33, 77)
    terminal.expect(b"sized")
    terminal.resize(44, 99)
    terminal.expect(b"44 99")
    terminal.send(b"\n\n")
    terminal.wait()


@check(4, "Ctrl-C interrupts the program in the container, Ctrl-D ends its input")
def _(podman):
    text = "trap 'echo; echo INT' INT; echo ok; cat; cat"
    terminal = Terminal(podman, ["run", "--rm", "-it", "--name", "c", IMAGE, *script(text)])
    terminal.expect(b"ok")
    wait_until(lambda: [p for p in inside(podman, "c") if p.argv == ("cat",)], "cat", 20)
    terminal.send(b"\x03")
    terminal.expect(b"INT")
    terminal.send(b"word\n")
    terminal.expect(b"word\r\nword\r\n")
    terminal.send(b"\x04")
    assert terminal.wait() == 0


@check(4, "the detach keys leave the container running, and it can be attached to again")
def _(podman):
    terminal = Terminal(podman, ["run", "-it", "--name", "c", IMAGE, "sh"])
    terminal.expect(b"#")
    terminal.send(b"x=kept; echo $((40 + 2))\n")
    terminal.expect(b"42")  # the prompt alone may have come twice, as the shell draws it anew for a new size
    terminal.expect(b"#")
    terminal.press(b"\x10", b"\x11")
    terminal.wait()
    assert podman.inspect("c")["State"]["Running"]
    again = Terminal(podman, ["attach", "c"])
    _connected(podman, "c", 1)
    again.send(b"echo $x; exit 8\n")
    again.expect(b"kept")
    again.wait()
    assert podman.inspect("c")["State"]["ExitCode"] == 8
    remove(podman, "c")


@check(4, "`start -ai` starts a container with a terminal again")
def _(podman):
    podman.must("create", "-it", "--name", "c", IMAGE, *script("tty; read line; echo got $line"))
    for word in (b"one", b"two"):
        terminal = Terminal(podman, ["start", "-ai", "c"])
        terminal.expect(b"/dev/pts/0")
        terminal.send(word + b"\n")
        terminal.expect(b"got " + word)
        assert terminal.wait() == 0
    remove(podman, "c")


@check(4, "-t in the background: the output is in the log")
def _(podman):
    podman.must("run", "-d", "-t", "--name", "c", IMAGE, *script("echo one; echo two >&2"))
    podman.must("wait", "c")
    assert logs(podman, "c").out == b"one\r\ntwo\r\n"
    remove(podman, "c")


@check(4, "500 KB through a terminal arrive whole")
def _(podman):
    done = podman.run("run", "--rm", "-t", IMAGE, "seq", "1", "80000")
    assert done.out.split() == [b"%d" % n for n in range(1, 80_001)]


@check(4, "exec -t has a terminal, exec -it has ours in size and keys")
def _(podman):
    assert podman.run("exec", "-t", idle(podman), "tty").out.startswith(b"/dev/pts/")
    terminal = Terminal(podman, ["exec", "-it", "idle", "sh"], 21, 65)
    terminal.expect(b"#")
    terminal.send(b"stty size\n")
    terminal.expect(b"21 65")
    terminal.resize(22, 66)
    terminal.send(b"until stty size | grep 22; do sleep 0.1; done\n")
    terminal.expect(b"22 66")
    terminal.send(b"exit 12\n")
    assert terminal.wait() == 12


@check(4, "exec -t loses no output of a quick command, and keeps its exit code")
def _(podman):
    idle(podman)
    for number in range(8):
        done = podman.run("exec", "-t", "idle", *script(f"seq 3000; exit {number}"))
        assert done.code == number and done.out.split() == [b"%d" % n for n in range(1, 3001)]


@check(4, "exec -t of a missing program is 127")
def _(podman):
    assert podman.run("exec", "-t", idle(podman), "no-such-program").code == 127


@check(4, "`run -t` of a missing program is 127, and says why")
def _(podman):
    done = podman.run("run", "--rm", "-t", IMAGE, "no-such-program")
    assert done.code == 127 and b"no-such-program" in done.err


@check(4, "a program may close its terminal, and open it again later")
def _(podman):
    text = "exec <&- >/dev/null 2>&1; sleep 0.5; echo back > /dev/console; sleep 0.2"
    assert podman.run("run", "--rm", "-t", IMAGE, *script(text)).out == b"back\r\n"


@check(4, "two terminals on one container see the same")
def _(podman):
    podman.must("run", "-d", "-it", "--name", "c", IMAGE, "sh")
    one, two = Terminal(podman, ["attach", "c"]), Terminal(podman, ["attach", "c"])
    _connected(podman, "c", 2)
    one.send(b"echo $((40+2))\n")
    one.expect(b"42\r\n")
    two.expect(b"42\r\n")
    two.send(b"exit 2\n")
    one.wait()
    two.wait()
    remove(podman, "c")


# ---- Stage 5: limits


@check(5, "a container that runs into its time-out is killed, and Podman says 255")
def _(podman):
    done = podman.run("run", "--rm", "--timeout", "1", IMAGE, *script("echo begun; sleep 1000"))
    assert done.code == 255 and done.out == b"begun\n"


@check(5, "a container that ends before its time-out is not touched by it")
def _(podman):
    assert podman.run("run", "--rm", "--timeout", "5", IMAGE, *script("sleep 0.2; exit 3")).code == 3


@check(5, "a container killed for want of memory has 137, and Podman knows why")
def _(podman):
    detached(podman, "c", "exec tail /dev/zero", "--memory", "16m")
    assert podman.must("wait", "c") == "137"
    assert podman.inspect("c")["State"]["OOMKilled"] is True
    remove(podman, "c")


@check(5, "a container that was just killed was not killed for want of memory")
def _(podman):
    detached(podman, "c", "sleep 1000", "--memory", "16m")
    podman.must("kill", "c")
    podman.must("wait", "c")
    assert podman.inspect("c")["State"]["OOMKilled"] is False
    remove(podman, "c")


@check(5, "the log stays within --log-opt max-size, and keeps the newest lines")
def _(podman):
    detached(podman, "c", "seq 40000", "--log-opt", "max-size=500kb")
    podman.must("wait", "c")
    file = log_file(podman, "c")
    kept = logs(podman, "c").out.split()[1:]  # the first line may have begun in the file before
    assert file.stat().st_size <= 512_000 and list(file.parent.glob("ctr.log*")) == [file]
    assert kept and kept == [b"%d" % n for n in range(40001 - len(kept), 40001)]
    remove(podman, "c")


@check(5, "a client that never reads does not keep the end of the container from being known")
def _(podman):
    detached(podman, "c", "read line; seq 1 60000; exit 5", "-i")
    place = Path(podman.inspect("c")["StaticDir"], "attach")
    with _connect(place) as client:
        client.send(b"go\n")
        assert podman.must("wait", "c", timeout=4) == "5"
        assert logs(podman, "c").out.endswith(b"60000\n")
    remove(podman, "c")


@check(5, "the memory of the shim does not grow with the output that a slow client leaves waiting")
def _(podman):
    detached(podman, "c", "read line; exec cat /dev/zero", "-i", "--log-driver=none")
    place, shim = Path(podman.inspect("c")["StaticDir"], "attach"), shim_of(podman, "c").pid
    with _connect(place) as client:
        client.send(b"go\n")
        time.sleep(1)  # here the client is, and does not read
        resident = re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{shim}/status").read_text())[1]
        assert int(resident) < 40_000
    remove(podman, "c")
