"""`./lab bench`: what the course costs, beside what the plain tools cost for the same work on the same machine.

Ours and theirs take turns within one run, so that a busy machine slows both. Medians, and the ratio of the medians.
Each work is measured beside 10, 100 and 1,000 processes, to show how it grows. A row whose partner is missing is
skipped, with the reason.
"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from helpers import bundles, machine
from helpers.lab import start_lab
from helpers.processes import wait_until

CHECKOUT = Path(__file__).resolve().parent.parent
SIZES = (10, 100, 1000)  # processes in the lab, or beside it
TIMES = 11  # how often each work is measured

#: Forks as many sleeping processes as its argument says, says so, and stays their parent.
SPAWN = """
import os, signal, sys
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "600"])
print("ready", flush=True)
signal.pause()
"""


@dataclass(frozen=True)
class Row:
    """One comparison, in ms. `target` is the largest ratio that is good, or, without `theirs`, the most ms."""

    work: str
    ours: float | None = None
    partner: str = ""
    theirs: float | None = None
    target: float | None = None
    processes: int | None = None
    skipped: str = ""

    @property
    def ratio(self):
        return self.ours / self.theirs if self.ours and self.theirs else None

    @property
    def good(self):
        """True when the target is met; None when there is none, or nothing was measured."""
        measured = self.ratio if self.theirs else self.ours
        return None if measured is None or self.target is None else measured <= self.target


def timed(work):
    """The ms that one call takes."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def in_turns(ours, theirs):
    """(median ms of ours, median ms of theirs), called TIMES times in turn, after one call that warms up."""
    ours(), theirs()
    pairs = [(timed(ours), timed(theirs)) for _ in range(TIMES)]
    return tuple(statistics.median(column) for column in zip(*pairs, strict=True))


def plain(argv):
    """A function that runs a command of this machine to its end. Raises CalledProcessError."""
    def run():
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60)

    return run


def lab_costs():
    """The works that happen in a lab, while it fills with processes."""
    rows, lab = [], start_lab()
    try:
        bundles.make(lab, "bench", ["true"])
        for size in SIZES:
            lab.start(spawning(size - len(lab.processes()) - 1), echo=False)
            wait_until(lambda size=size: len(lab.processes()) >= size, f"{size} processes", timeout=60)
            rows += [step_cost(lab, size), tree_cost(lab, size)]
        return sorted(rows, key=lambda row: row.work)
    finally:
        lab.close()


def spawning(count):
    """The command line that makes `count` processes, and is one more itself."""
    return [os.path.realpath(sys.executable), "-I", "-S", "-c", SPAWN, str(count)]


def step_cost(lab, size):
    """`lab.run` of a container against the same runc, joined to the lab by hand with nsenter."""
    row = Row('lab.run(["runc", "run", ...])', partner="nsenter ... runc run ...", target=1.15, processes=size)
    if not machine.find("runc"):
        return replace(row, skipped="runc is missing")
    argv = ["runc", "run", "--bundle", "/run/lab/bench", "bench"]
    by_hand = [*lab.enter_command()[:-1], *argv]
    ours, theirs = in_turns(lambda: lab.run(argv, echo=False), plain(by_hand))
    return replace(row, ours=ours, theirs=theirs)


def tree_cost(lab, size):
    """Reading all processes with their namespaces, against lsns."""
    row = Row("tree and namespaces", partner="lsns", target=0.3 if size == SIZES[-1] else None, processes=size)
    if not machine.find("lsns"):
        return replace(row, skipped="lsns is missing")
    ours, theirs = in_turns(lab.processes, plain([*lab.enter_command()[:-1], "lsns"]))
    return replace(row, ours=ours, theirs=theirs)


def start_cost():
    """From nothing to the first step done, against the smallest thing that makes the same namespaces."""
    rows, work = [], "lab start to first step done"
    podman = Row(work, partner="podman unshare true", target=1.5)
    if os.getuid() == 0 or not machine.find("podman"):
        rows.append(replace(podman, skipped="it is for ordinary users with Podman"))
    for size in SIZES:
        with crowd(size):
            bare = Row(work, partner="unshare -Urmpf true", target=10, processes=size)
            for row in [bare] if rows and rows[0].skipped else [replace(podman, processes=size), bare]:
                pairs = [(timed(plain(row.partner.split())), first_step()) for _ in range(TIMES)]
                theirs, ours = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
                rows.append(replace(row, ours=ours, theirs=theirs))
    return sorted(rows, key=lambda row: (row.partner, row.processes or 0))


def first_step():
    """The ms until a new lab has done a step. Its end is not counted."""
    began = time.perf_counter()
    lab = start_lab()
    lab.run(["true"], echo=False)
    took = (time.perf_counter() - began) * 1000
    lab.close()
    return took


@contextlib.contextmanager
def crowd(size):
    """So many sleeping processes of this user, outside any lab."""
    with subprocess.Popen(spawning(size - 1), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          start_new_session=True) as parent:  # fmt: skip
        try:
            parent.stdout.readline()
            yield
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def live_cost():
    """The live tree: from a change to its picture in a browser, by the number of processes."""
    from helpers import painting

    rows = []
    for size in SIZES:
        row = Row("live tree, change to painted", target=60 if size == SIZES[-1] else None, processes=size)
        try:
            rows.append(replace(row, ours=painting.benchmark(size)))
        except LookupError as reason:
            return [replace(row, target=60, processes=SIZES[-1], skipped=str(reason))]
    return rows


def setup_cost(wanted):
    """`./lab setup` in a fresh checkout against pip by hand; the system packages are there for both."""
    work, partner = "./lab setup on a fresh checkout", "python3 -m venv, pip install"
    if not wanted:
        return [Row(work, partner=partner, target=1.2, skipped="it downloads: ./lab bench --setup")]
    import tomllib

    packages = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    with tempfile.TemporaryDirectory() as place:
        fresh, by_hand = Path(place, "checkout"), f"{place}/venv"
        fresh.mkdir()
        names = ["lab", "pyproject.toml", "LICENSE", "helpers"]
        subprocess.run(["cp", "-r", *(CHECKOUT / name for name in names), fresh], check=True, timeout=60)
        base = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable
        quick = {**os.environ, "CONDA_PREFIX": ""}

        def theirs():
            subprocess.run([base, "-m", "venv", by_hand], check=True, timeout=120)
            install = [f"{by_hand}/bin/pip", "install", "-qq", "--disable-pip-version-check", *packages]
            subprocess.run(install, check=True, timeout=900)

        def ours():
            subprocess.run([fresh / "lab", "setup"], check=True, timeout=900, env=quick, stderr=subprocess.DEVNULL)

        return [Row(work, timed(ours), partner, timed(theirs), 1.2)]


def show(rows):
    """The rows as a table in text."""
    from helpers.preflight import table

    lines = [["work", "processes", "ours", "theirs", "ratio", "target", "", "against"]]
    for row in rows:
        number = "" if row.processes is None else f"{row.processes:,}"
        unit = "" if row.theirs or row.partner else " ms"
        target = "" if row.target is None else f"{row.target:g}{unit}"
        if row.skipped:
            reason = ": ".join(filter(None, [row.partner, row.skipped]))
            lines.append([row.work, number, "skipped", "", "", target, "", reason])
            continue
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        theirs = "" if row.theirs is None else f"{row.theirs:.1f} ms"
        verdict = {True: "good", False: "over", None: ""}[row.good]
        lines.append([row.work, number, f"{row.ours:.1f} ms", theirs, ratio, target, verdict, row.partner])
    return table(lines)


def main(*, as_json=False, with_setup=False):
    """Measure and print. Returns 0: a number is no failure."""
    rows = start_cost() + lab_costs() + live_cost() + setup_cost(with_setup)
    if as_json:
        print(json.dumps([{**asdict(row), "ratio": row.ratio, "good": row.good} for row in rows], indent=1))
    else:
        print(show(rows))
    return 0
