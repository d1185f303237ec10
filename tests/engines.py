"""A Podman of the tests' own: its store, its locks, its image, its conmon. Nothing of it is left after close()."""

import errno
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass
from pathlib import Path

from helpers import cgroups, processes

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CONTAINERS = """
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
log_driver = "k8s-file"
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
conmon_path = ["{conmon}"]
conmon_env_vars = {variables}
events_logger = "file"
lock_type = "file"
runtime = "runc"
tmp_dir = "{home}/tmp"
"""
STORAGE = """
[storage]
driver = "{driver}"
graphroot = "{home}/store"
runroot = "{home}/run"
"""
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'  # nothing is fetched: the image is made here
IMAGE = "localhost/box"
DESCRIPTOR_3 = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execvp(sys.argv[2], sys.argv[2:])"


@dataclass(frozen=True)
class Done:
    """A command that has ended: its exit code and what it wrote, as bytes."""

    code: int
    out: bytes
    err: bytes


@dataclass(frozen=True)
class Podman:
    """A Podman whose containers run under `conmon`. `home` is short, and in the command line of all it starts."""

    conmon: str
    home: Path
    environment: dict

    def start(self, *argv, env=None, **options):
        """`podman ARGV ...` as a Popen; end it, or wait for it."""
        ours = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
        command = ["podman", *map(str, argv)]
        return subprocess.Popen(command, cwd=self.home, env={**self.environment, **(env or {})}, **{**ours, **options})

    def run(self, *argv, input=None, timeout=30, **options):
        """`podman ARGV ...` as Done, whatever its exit code. TimeoutError when it hangs."""
        if input is not None:
            options["stdin"] = subprocess.PIPE
        process = self.start(*argv, **options)
        try:
            out, err = process.communicate(input, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise TimeoutError(f"podman {' '.join(map(str, argv))} was not done in {timeout} s") from None
        return Done(process.returncode, out, err)

    def run_with_descriptor_3(self, *argv):
        """`podman ARGV ...` with one more descriptor, 3, the end of a pipe; what was written to it."""
        reading, writing = os.pipe()
        words = [sys.executable, "-c", DESCRIPTOR_3, str(writing), "podman", *argv]
        subprocess.run(words, env=self.environment, pass_fds=[writing], check=True, timeout=30, stdout=-3, stderr=-3)
        os.close(writing)
        with open(reading, "rb") as pipe:
            return os.read(pipe.fileno(), 100)

    def conmon_environment(self, **variables):
        """The environment for a `podman` whose conmon gets these variables: Podman passes none of its own on."""
        name = re.sub(r"\W+", "-", "-".join(["containers", *variables.values()]))
        file = self.home / f"{name}.conf"
        words = json.dumps([f"{name}={value}" for name, value in {"PATH": PATH, **variables}.items()])
        file.write_text(CONTAINERS.format(conmon=self.conmon, home=self.home, variables=words))
        return {"CONTAINERS_CONF": str(file)}

    def must(self, *argv, **options):
        """The standard output of `podman ARGV ...` as stripped text. AssertionError when it fails."""
        done = self.run(*argv, **options)
        assert done.code == 0, f"podman {' '.join(map(str, argv))}: {done.code}, {done.err.decode(errors='replace')}"
        return done.out.decode(errors="replace").strip()

    def inspect(self, name):
        return json.loads(self.must("inspect", name))[0]

    def wait_for(self, name, wanted):
        """Wait until `podman inspect` calls the container's status `wanted`."""
        processes.wait_until(lambda: self.inspect(name)["State"]["Status"] == wanted, f"{name} to be {wanted}", 15)

    def shims(self):
        """The processes that hold containers of this store."""
        return [p for p in self.processes() if f"{self.home}/tmp/exits" in p.argv or "--exec-process-spec" in p.argv]

    def processes(self):
        """All processes that have this store in their command line, and what they hold as children."""
        everything = processes.read()
        mine = {p.pid for p in everything if any(f"{self.home}/" in word for word in p.argv)} - {os.getpid()}
        return [p for p in everything if p.pid in mine or p.ppid in mine]

    def left(self):
        """What is left of containers: processes, mounts, files, what the runtime remembers. The ideal is []."""
        found = [f"process {p.pid} {p.name} {p.state}" for p in self.processes()]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found += [f"mount {line.split()[4]}" for line in mounts if f"{self.home}/store/overlay/" in line.split()[4]]
        found += [f"exit file {path.name}" for path in (self.home / "tmp/exits").glob("*")]
        found += [f"container {path}" for path in (self.home / "store").glob("*-containers/*/userdata")]
        return found + [f"runtime state {name}" for name in self.runtime_states()]

    def runtime_states(self):
        """The containers of this store that runc still knows."""
        files = Path("/run/runc").glob("*/state.json")
        return [file.parent.name for file in files if f"{self.home}/" in file.read_text()]

    def close(self):
        """Remove all containers and the store. Returns what was left of the containers before that could be done."""
        self.run("pod", "rm", "--all", "--force", "--time", "0")
        self.run("rm", "--all", "--force", "--time", "0")
        try:
            processes.wait_until(lambda: not self.left(), "the end of it all", 10)
        except TimeoutError:
            left = self.left()
        else:
            left = []
        for name in self.runtime_states():
            subprocess.run(["runc", "delete", "--force", name], check=False, timeout=10)
        for process in self.processes():
            os.kill(process.pid, signal.SIGKILL)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if (place := line.split()[4]).startswith(f"{self.home}/"):
                subprocess.run(["umount", "--lazy", place], check=False, timeout=10)
        for hierarchy in cgroups.hierarchies():
            for place, _, _ in os.walk(f"{hierarchy.mountpoint}/libpod_parent", topdown=False):
                try:
                    os.rmdir(place)
                except OSError:
                    pass  # there is somebody in it
        shutil.rmtree(self.home)
        return left


def start_podman(conmon):
    """Make a Podman ready that uses the program `conmon`, with the image IMAGE: busybox, and a user 1000."""
    home = Path(tempfile.mkdtemp(prefix="pm", dir="/tmp"))
    environment = {"PATH": PATH, "HOME": str(home), "TMPDIR": str(home), "LANG": "C.UTF-8"}
    environment["CONTAINERS_STORAGE_CONF"] = f"{home}/storage.conf"
    environment["PODMAN_IGNORE_CGROUPSV1_WARNING"] = "1"  # which Podman 5 writes into the output of each command
    podman = Podman(conmon, home, environment)
    (home / ".config/containers").mkdir(parents=True)
    (home / ".config/containers/policy.json").write_text(POLICY)
    environment |= podman.conmon_environment()
    (home / "storage.conf").write_text(STORAGE.format(driver="overlay", home=home))
    fill_rootfs(home / "rootfs")
    subprocess.run(["tar", "-C", home / "rootfs", "-cf", home / "box.tar", "."], check=True, timeout=30)
    for driver in ("overlay", "vfs"):  # no overlay on an overlay
        (home / "storage.conf").write_text(STORAGE.format(driver=driver, home=home))
        imported = podman.run("import", "-c", "ENV PATH=/bin", "-c", 'CMD ["sh"]', home / "box.tar", IMAGE)
        if imported.code == 0 and podman.run("run", "--detach", "--rm", IMAGE, "true").code == 0:
            return podman
    said = podman.run("run", "--detach", "--rm", IMAGE, "true").err.decode()
    podman.close()
    raise RuntimeError(f"Podman can't run a container here: {said}")


def fill_rootfs(root):
    for name in ("bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "work"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    busybox = shutil.which("busybox")
    shutil.copy2(busybox, root / "bin/busybox")
    for applet in subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split():
        if not (root / "bin" / applet).exists():
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")


class Terminal:
    """A command on a terminal of its own, as a person would use it."""

    def __init__(self, podman, argv, rows=24, columns=80):
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(podman.home)
                os.execvpe("podman", ["podman", *argv], {**podman.environment, "TERM": "dumb"})
            finally:
                os._exit(127)
        self.text = b""
        self.resize(rows, columns)

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def send(self, text):
        os.write(self.master, text)

    def press(self, *keys):
        """Keys one by one. Between two of them is a pause, for Podman looks for its detach keys in what it reads at
        once, and a key on its way can't be asked for; what comes in the pause is taken."""
        for key in keys:
            self.send(key)
            deadline = time.monotonic() + 0.3
            while (left := deadline - time.monotonic()) > 0 and self.read(left):
                pass

    def read(self, seconds):
        """Take what comes within so many seconds; False at the end."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            self.text += (data := os.read(self.master, 65536))
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        return bool(data)

    def expect(self, text, timeout=15):
        """Wait until `text` has come, and forget all up to it."""
        deadline = time.monotonic() + timeout
        while text not in self.text:
            assert time.monotonic() < deadline, f"{text!r} did not come, but {self.text!r}"
            if not self.read(0.1):
                assert text in self.text, f"the end came instead of {text!r}: {self.text!r}"
        self.text = self.text.partition(text)[2]

    def wait(self, timeout=15):
        """Wait for the end; the exit code."""
        deadline = time.monotonic() + timeout
        while self.read(0.1):
            assert time.monotonic() < deadline, f"it does not end: {self.text!r}"
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.master)
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.01)
