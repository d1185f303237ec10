"""`./lab bench`: what the course costs, beside what the plain tools cost for the same work on the same machine.

Ours and theirs take turns within one run, so that a busy machine slows both. Medians, and the ratio of the medians.
A row whose partner is missing is skipped, with the reason.
"""

import json
import os
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
SIZES = (10, 100, 1000)  # processes in the lab

#: Forks as many sleeping processes as its argument says, and stays their parent.
SPAWN = """
import os, signal, sys
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "600"])
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


def in_turns(ours, theirs, times):
    """(median ms of ours, median ms of theirs), each called `times` times in turn, after one call that warms up."""
    ours(), theirs()
    pairs = [(timed(ours), timed(theirs)) for _ in range(times)]
    return tuple(statistics.median(column) for column in zip(*pairs, strict=True))


def plain(argv):
    """A function that runs a command of this machine to its end. Raises CalledProcessError."""
    def run():
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60)

    return run


def step_cost(lab):
    """`lab.run` of a container against the same runc, joined to the lab by hand with nsenter."""
    work, partner = 'lab.run(["runc", "run", ...])', "nsenter ... runc run ..."
    if not machine.find("runc"):
        return [Row(work, partner=partner, target=1.15, skipped="runc is missing")]
    bundles.make(lab, "bench", ["true"])
    argv = ["runc", "run", "--bundle", "/run/lab/bench", "bench"]
    by_hand = [*lab.enter_command()[:-1], *argv]
    ours, theirs = in_turns(lambda: lab.run(argv, echo=False), plain(by_hand), 21)
    return [Row(work, ours, partner, theirs, 1.15)]


def tree_cost(lab):
    """Reading all processes with their namespaces, against lsns, by the number of processes."""
    rows = []
    work, partner = "tree and namespaces", "lsns"
    lsns = [*lab.enter_command()[:-1], "lsns"]
    python = [os.path.realpath(sys.executable), "-I", "-S", "-c", SPAWN]
    try:
        for size in SIZES:
            missing = str(size - len(lab.processes()) - 1)
            lab.start([*python, missing], echo=False)
            wait_until(lambda size=size: len(lab.processes()) >= size, f"{size} processes", timeout=60)
            target = 0.3 if size == SIZES[-1] else None
            if machine.find("lsns"):
                rows.append(Row(work, *_with(partner, in_turns(lab.processes, plain(lsns), 9)), target, size))
            else:
                rows.append(Row(work, partner=partner, target=target, processes=size, skipped="lsns is missing"))
    finally:
        lab.run(["sh", "-c", "kill -9 -1"], echo=False, check=False)
    return rows


def _with(partner, medians):
    return medians[0], partner, medians[1]


def start_cost():
    """From nothing to the first step done, against the smallest thing that makes the same namespaces."""
    def ours():
        lab = start_lab()
        lab.run(["true"], echo=False)
        costs.append((time.perf_counter() - began[0]) * 1000)
        lab.close()

    rows, work = [], "lab start to first step done"
    bare = ["unshare", "-Urmpf", "true"]
    podman = ["podman", "unshare", "true"]
    can_podman = os.getuid() != 0 and machine.find("podman")
    for partner, target, reason in (
        (podman, 1.5, "" if can_podman else "it is for ordinary users with Podman"), (bare, 10, "")
    ):  # fmt: skip
        if reason:
            rows.append(Row(work, partner=" ".join(partner), target=target, skipped=reason))
            continue
        costs, theirs, began = [], [], [0.0]
        for _ in range(11):
            theirs.append(timed(plain(partner)))
            began[0] = time.perf_counter()
            ours()
        rows.append(Row(work, statistics.median(costs[1:]), " ".join(partner), statistics.median(theirs[1:]), target))
    return rows


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
    rows = start_cost()
    for cost in (step_cost, tree_cost):
        lab = start_lab()
        try:
            rows += cost(lab)
        finally:
            lab.close()
    rows += live_cost() + setup_cost(with_setup)
    if as_json:
        print(json.dumps([{**asdict(row), "ratio": row.ratio, "good": row.good} for row in rows], indent=1))
    else:
        print(show(rows))
    return 0
