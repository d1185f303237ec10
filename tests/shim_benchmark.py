"""How long `podman run --rm` takes on the shim and on Debian's conmon: `python tests/shim_benchmark.py` prints it."""

import shutil
import statistics
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from engines import IMAGE, start_podman  # noqa: E402

PROGRAMS = {"shim": str(CHECKOUT / "notebooks/programs/shim"), "conmon": shutil.which("conmon") or "/usr/bin/conmon"}


def medians(podmans, runs=7):
    """{name: median seconds of `podman run --rm IMAGE true`} for {name: Podman}, their runs in turns."""
    taken = {name: [] for name in podmans}
    for _ in range(runs):
        for name, times in taken.items():
            begin = time.perf_counter()
            podmans[name].must("run", "--rm", IMAGE, "true")
            times.append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


def main():
    podmans = {name: start_podman(program) for name, program in PROGRAMS.items()}
    try:
        medians(podmans, runs=1)  # what is only slow the first time
        found = medians(podmans)
        print(", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in found.items()), end="")
        print(f"; {found['shim'] / found['conmon']:.2f} times as long")
    finally:
        for podman in podmans.values():
            podman.close()


if __name__ == "__main__":
    main()
