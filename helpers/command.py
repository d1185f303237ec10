"""The subcommands behind `./lab`. What a subcommand needs is imported when it runs: doctor, reset and enter need
nothing but Python's standard library.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers import cleanup, machine

CHECKOUT = Path(__file__).resolve().parent.parent


class Misused(ValueError):
    """The command line makes no sense; the message says why in one sentence."""


def main(argv):
    """Run one subcommand and return its exit status: 0 done, 1 not possible, 2 misused."""
    name, *rest = argv
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 shows question marks, no traceback
    try:
        return COMMANDS[name](rest)
    except Misused as error:
        print(f"lab: {error}: ./lab --help says what there is", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head(1), has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def options(argv, *known, words=0):
    """(the flags given, the other words). Raises Misused for anything else."""
    flags = {word for word in argv if word in known}
    others = [word for word in argv if word not in known]
    for word in others[words:] + [word for word in others if word.startswith("-")]:
        raise Misused(f"there is no argument {word!r} here")
    return flags, others


def start(argv):
    """Open JupyterLab."""
    options(argv)
    from helpers import server

    server.main()
    return 0


def doctor(argv):
    """What this machine can and can't show."""
    options(argv)
    from helpers import preflight

    return preflight.doctor()


def progress(argv):
    """How far this learner has come."""
    flags, _ = options(argv, "--forget")
    from helpers import progress

    return progress.main(reset="--forget" in flags)


def index(argv):
    """Make the pages that lead across the lessons."""
    options(argv)
    from helpers import index

    print(f"written: {', '.join(index.write()) or 'nothing, all pages are as the lessons are'}")
    return 0


def render(argv):
    """Execute lessons and write their outputs into the notebook files."""
    _, names = options(argv, words=100)
    from helpers import rendering

    try:
        paths = rendering.notebooks(names)
    except LookupError as error:
        raise Misused(error.args[0]) from None
    failed = 0
    for path in paths:
        try:
            print(rendering.render(path), flush=True)
        except rendering.RenderError as error:
            print(f"lab: {error}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


def slides(argv):
    """Make slides from lessons: one HTML file each."""
    _, names = options(argv, words=100)
    from helpers import rendering, slides

    try:
        paths = [path for path in rendering.notebooks(names) if path.parent.name == "notebooks"]
    except LookupError as error:
        raise Misused(error.args[0]) from None
    for path in paths:
        print(slides.write(path))
    return 0


def bench(argv):
    """Measure this machine."""
    flags, _ = options(argv, "--json", "--setup")
    from helpers import benchmarks

    return benchmarks.main(as_json="--json" in flags, with_setup="--setup" in flags)


def workshop(argv):
    """Hold a workshop on this machine, or end the one that runs."""
    from helpers.workshop import keeper

    if argv == ["--stop"]:
        return keeper.stop()
    return keeper.hold(keeper.Wanted(**wanted(argv)))


def wanted(argv):
    """The options of a workshop, as keyword arguments for keeper.Wanted."""
    numbers = {"--seats": 200, "--port": 65535, "--memory": 1 << 20, "--disk": 1 << 20, "--processes": 1 << 20}
    found, words = {}, list(argv)
    while words:
        word = words.pop(0)
        takes = {"--new-cards": 0, "--ip": 1, "--certificate": 2, **dict.fromkeys(numbers, 1)}.get(word)
        if takes is None:
            raise Misused(f"there is no argument {word!r} here")
        values, words = words[:takes], words[takes:]
        if len(values) < takes:
            raise Misused(f"{word} needs {'a value' if takes == 1 else 'two files: the certificate and its key'}")
        name = word.removeprefix("--").replace("-", "_")
        if word in numbers:
            least = 0 if word == "--port" else 1  # port 0: one that is free
            if not values[0].isdecimal() or not least <= int(values[0]) <= numbers[word]:
                raise Misused(f"{word} takes a number from {least} to {numbers[word]}")
            found[name] = int(values[0])
        else:
            found[name] = values[0] if takes == 1 else tuple(values) or True
    return found


def test(argv):
    """Run ruff and then pytest, with `argv` for pytest, whose closing line is the last."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ruff and jupyter
    checked = subprocess.run([sys.executable, "-m", "ruff", "check", "--quiet", "."], cwd=CHECKOUT, timeout=120)
    if checked.returncode:
        print("lab: ruff found the above", file=sys.stderr, flush=True)
    status = subprocess.call([sys.executable, "-m", "pytest", *argv], cwd=CHECKOUT)
    return status or checked.returncode


def kernel(argv):
    """Get the kernel that virtual machines boot."""
    options(argv)
    from helpers import kernel

    return kernel.main()


def reset(argv):
    """Undo what dead labs left, and nothing else; with --all, end the living labs of this user first."""
    flags, _ = options(argv, "--all")
    living = [ledger for ledger in cleanup.ledgers() if cleanup.is_alive(ledger)]
    ended = [ledger for ledger in living if end(ledger)] if "--all" in flags else []
    dead, problems = cleanup.sweep()
    left = [ledger for ledger in cleanup.ledgers() if cleanup.is_alive(ledger)]
    removed = len(set(dead) | set(ended))
    said = f"Removed what {count(removed, 'lab')} had left." if removed else "No lab has left anything."
    if left:
        said += f" {count(len(left), 'lab')} in use: left alone (./lab reset --all ends it)."
    print(said)
    for problem in problems:
        print(f"lab: could not remove {problem}", file=sys.stderr)
    return 1 if problems else 0


def count(number, noun):
    """`1 lab`, `2 labs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def end(ledger, timeout=10):
    """End a living lab by killing its PID 1: the kernel takes the rest. True when it has gone."""
    who = dict(cleanup.entries(ledger)).get("init")
    if not who:
        return False  # it is just starting
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(who[0])  # holds on to this one process, so that no other can get the signal
        try:
            if cleanup.identity(who[0]) == who:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
    deadline = time.monotonic() + timeout
    while os.path.exists(ledger) and cleanup.is_alive(ledger):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def enter(argv):
    """Become a shell in a living lab: the newest, or the one named."""
    _, words = options(argv, words=1)
    ledger = find_lab(*words)
    if ledger is None:
        which = f"No lab called {words[0]!r} is" if words else "No lab is"
        print(f"lab: {which} running: start one with the first cells of a lesson", file=sys.stderr)
        return 1
    from helpers.lab import Lab, environment

    known = dict(cleanup.entries(ledger))
    outside = join_cgroups(value for kind, value in cleanup.entries(ledger) if kind == "cgroup")
    if outside:
        print("This shell stays outside the lab's cgroups: its limits don't hold for it.", file=sys.stderr)
    shell = "bash" if machine.find("bash") else "sh"
    command = [*Lab(Path(ledger).stem, None, known["init"][0], (), ledger, None, None).enter_command()[:-1], shell]
    print("# " + shlex.join(command), flush=True)
    command += ["--norc", "--noprofile"] if shell == "bash" else []
    terminal = os.environ.get("TERM", "xterm")
    os.execvpe(command[0], command, environment({"PS1": "lab# ", "TERM": terminal}))


def find_lab(name=""):
    """The ledger of the newest living lab whose name begins with `name`; None when there is none."""
    found = []
    for ledger in cleanup.ledgers():
        who = dict(cleanup.entries(ledger)).get("init")
        is_lab = not Path(ledger).stem.startswith("workshop-")
        if is_lab and who and cleanup.is_alive(ledger) and Path(ledger).stem.startswith(name):
            found.append((who[1], ledger))
    return max(found)[1] if found else None


def join_cgroups(tops):
    """Move this process into the lab's cgroups, so that what it starts there is counted and removed with the lab.

    Returns the directories that refused.
    """
    refused = []
    for top in tops:
        place = next((p for p in (f"{top}/steps", top) if os.path.isdir(p)), None)
        try:
            if place:
                Path(place, "cgroup.procs").write_text("0")
        except OSError:
            refused.append(place)
    return refused


COMMANDS = {
    "open": start,
    "doctor": doctor,
    "progress": progress,
    "index": index,
    "render": render,
    "slides": slides,
    "bench": bench,
    "workshop": workshop,
    "test": test,
    "reset": reset,
    "enter": enter,
    "kernel": kernel,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
