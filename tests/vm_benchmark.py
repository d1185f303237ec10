"""What vmrun costs: the time to the container's first output, against QEMU by hand with the same kernel and files.

    python tests/vm_benchmark.py [ROUNDS]

The targets: 1.15 against `qemu -kernel -initrd` as one would type it, 1.3 against the quickest boot that is known,
which has no PCI and so no way to talk to more than a serial line. They take turns, so that a busy machine slows all.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from test_vmrun import CONFIG, VMRUN, make_rootfs, vmrun  # noqa: E402

from helpers import machine  # noqa: E402

QUICK = ["-M", "microvm,acpi=off"]
PLAIN = ["-M", "q35"]


def first_output(argv, cwd):
    """The seconds until a command has said hello on its standard output; it is ended then."""
    began = time.monotonic()
    with subprocess.Popen(argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as running:
        watch = threading.Timer(120, running.kill)
        watch.start()
        said = b""
        while b"hello" not in said:
            said += (more := running.stdout.read1()) or b"hello"
            assert more, "it ended, and has not said hello"
        taken = time.monotonic() - began
        watch.cancel()
        running.kill()
    return taken


def by_hand(board, options):
    kernel = next(Path(vmrun.vmmachine.HOME).glob("vmlinu[xz]"))
    return [machine.find(machine.QEMU), *board, "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults",
            "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", str(kernel),
            "-initrd", "packed", "-append", f"console=ttyS0 {options}"]  # fmt: skip


def by_vmrun(place, number):
    """`create` and `start`, as an engine calls them, until the output comes."""
    read, write = os.pipe()
    began = time.monotonic()
    state = ["--root", f"{place}/state"]
    # Popen.wait with a time limit looks every 50 ms, and these count: the watch is a thread
    creating = subprocess.Popen([VMRUN, *state, "create", "--bundle", place, f"c{number}"], stdin=subprocess.DEVNULL,
                                stdout=write)  # fmt: skip
    watch = threading.Timer(120, creating.kill)
    watch.start()
    assert creating.wait() == 0
    watch.cancel()
    starting = subprocess.Popen([VMRUN, *state, "start", f"c{number}"])
    os.close(write)
    assert os.read(read, 100) == b"hello\n"
    taken = time.monotonic() - began
    starting.wait(120)
    subprocess.run([VMRUN, *state, "delete", "--force", f"c{number}"], check=True, timeout=120)
    os.close(read)
    return taken


def main(rounds=9):
    with tempfile.TemporaryDirectory() as place:
        make_rootfs(Path(place, "rootfs"))
        config = CONFIG | {"process": CONFIG["process"] | {"args": ["echo", "hello"]}}
        Path(place, "config.json").write_text(json.dumps(config))
        loaded = vmrun.vmconfig.load(place)
        os.chdir(place)
        vmrun.vmmachine.pack(loaded, "x")  # the files that vmrun packs, and another first program
        hello = "rdinit=/containers/x/bin/echo -- hello"
        tuned = f"{vmrun.vmmachine.KERNEL} {hello}"
        works = {
            "vmrun": lambda number: by_vmrun(place, number),
            "QEMU by hand": lambda _: first_output(by_hand(PLAIN, f"quiet panic=-1 {hello}"), place),
            "the quickest boot": lambda _: first_output(by_hand(QUICK, tuned), place),
        }
        times = {name: [] for name in works}
        for number in range(rounds):
            for name, work in works.items():
                times[name].append(work(number))
        ours = statistics.median(times["vmrun"])
        for name, taken in times.items():
            median = statistics.median(taken)
            print(f"{name:20} {median:6.2f} s  {ours / median:5.2f}  ({min(taken):.2f} to {max(taken):.2f})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
