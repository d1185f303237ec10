"""Process 1 of the guest of `run`: labs on a machine with cgroup v2, and lesson 02 in them.

As process 1 it starts itself again as a child for each part, reaps, and ends the machine. A part is
`root`, `learner` (a cgroup was handed to this user, as systemd does) or `bare` (none was).
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(CHECKOUT))

LESSON = CHECKOUT / "notebooks" / "02-namespaces.ipynb"
UID = 1000
HANDED = Path("/sys/fs/cgroup/handed")
STARTER = HANDED / "starter"  # lab.py and init.py know it by this name
CONTROLLERS = ("cpu", "memory", "pids")


def main():
    make_learner()
    hand_over()
    passed = all([part(name) for name in ("root", "learner", "bare")])
    print("cgroup_v2: all passed" if passed else "cgroup_v2: FAILED", flush=True)
    os.execvp("busybox", ["busybox", "reboot", "-f"])


def make_learner():
    """An ordinary user with subordinate IDs, in files that lie over the machine's read-only ones."""
    lines = {
        "passwd": f"learner:x:{UID}:{UID}::/run/learner:/bin/sh\n",
        "group": f"learner:x:{UID}:\n",
        "subuid": "learner:1000000:65536\n",
        "subgid": "learner:1000000:65536\n",
    }
    for name, line in lines.items():
        file = Path("/etc", name)
        if not file.exists():
            continue
        kept = [old for old in file.read_text().splitlines(True) if not old.startswith("learner:")]
        kept = [old for old in kept if name.startswith("sub") or f":{UID}:" not in old]
        new = Path("/run", name)
        new.write_text("".join(kept) + line)
        subprocess.run(["mount", "--bind", new, file], check=True, timeout=30)
    os.mkdir("/run/learner")
    os.chown("/run/learner", UID, UID)


def hand_over():
    """Delegate a cgroup to the learner: the directory, and the files by which one moves in and hands down."""
    STARTER.mkdir(parents=True)
    for controller in CONTROLLERS:
        Path("/sys/fs/cgroup/cgroup.subtree_control").write_text(f"+{controller}")
    for place in (HANDED, STARTER):
        for path in (place, place / "cgroup.procs", place / "cgroup.subtree_control", place / "cgroup.threads"):
            os.chown(path, UID, UID)


def part(name):
    """Run one part as a process of its own, as its user, in its cgroup. True when it passed."""
    began = time.monotonic()
    print(f"== {name}", flush=True)
    pid = os.fork()
    if pid == 0:
        if name == "learner":
            (STARTER / "cgroup.procs").write_text("0")
        command = [sys.executable, __file__, name]
        if name != "root":
            os.environ.update(HOME="/run/learner", USER="learner")
            command = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--init-groups", "--inh-caps=-all", *command]
        os.execvp(command[0], command)
    while True:  # process 1 reaps whatever ends
        ended, status = os.wait()
        if ended == pid:
            break
    left = [str(p) for p in Path("/sys/fs/cgroup").rglob("uncontained-*")]
    print(f"== {name}: status {status}, {time.monotonic() - began:.0f} s, left behind: {left}", flush=True)
    return status == 0 and not left


def run_part(name):
    from helpers import cgroups, processes
    from helpers.lab import start_lab

    processes.wait_until.__defaults__ = (120,)  # s: this machine is emulated, and some sixteen times slower
    assert cgroups.mode() == "v2", cgroups.mode()
    lab = start_lab()
    print(f"{lab.way.name}; limits: {' '.join(lab.limits) or 'none'}", flush=True)
    assert ({"memory", "pids"} <= set(lab.limits)) == (name != "bare"), lab.limits
    assert lab.run(["id", "-u"]).stdout == "0\n"
    assert lab.close().left == ()
    if name != "bare":
        run_lesson()


def run_lesson():
    """Every code cell of the lesson, in order, as plain Python: a Jupyter kernel would only take longer."""
    names = {"__name__": "__main__"}
    for cell in json.loads(LESSON.read_text())["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            exec(compile(source, source.partition("\n")[0], "exec"), names)


if __name__ == "__main__":
    if os.getpid() == 1:
        main()
    else:
        run_part(sys.argv[1])
