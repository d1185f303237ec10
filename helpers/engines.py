"""Real engines inside the lab: the reader's own programs, with stores of their own that go when the lab goes.

Each function makes an engine ready and returns the environment for its commands:

    lab.run(["podman", "load", "--input", "hello.tar"], env=engines.podman(lab))

The reader's own images and containers are neither seen nor touched, and no cgroup is made, because a cgroup
would outlive the lab. See also: containers.conf(5), containers-storage.conf(5), dockerd(8).
"""

import os
import shutil
from pathlib import Path

from helpers import bundles, machine, processes
from helpers.lab import PIPE

HOME = "/run/lab/engines"
PROGRAMS = Path(__file__).resolve().parent.parent / "notebooks/programs"
CONTAINERS = """
[containers]
cgroups = "disabled"
netns = "none"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime_supports_nocgroup = ["crun", "vmrun"]
runtime_supports_nocgroups = ["crun", "vmrun"] # the manual calls it this, the program that
[network]
network_config_dir = "/run/lab/engines/networks"
"""
STORAGE = """
[storage]
driver = "vfs"
graphroot = "/run/lab/engines/images"
runroot = "/run/lab/engines/run"
"""
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'  # nothing is fetched: all images are made in the lab


class EngineError(RuntimeError):
    """The engine can't run here. One sentence says why."""


def offer(engine, lab):
    """What `engine(lab)` returns, or None where it can't run here; then the reason is printed."""
    try:
        return engine(lab)
    except EngineError as error:
        print(f"{error}. The cells that need it go on without.")
        return None


def shim(lab):
    """Put the shim of lesson 04, and the client of lesson 05 that attaches to it, into the lab's home."""
    lab.path("exits").mkdir(exist_ok=True)
    for program in ("shim", "attach.py"):
        shutil.copy(PROGRAMS / program, lab.path(program))


def create(lab, name, *options):
    """Create the container of the bundle `name` under the shim, and wait until it is created. `runc start` starts it.

    Its log is the file NAME/log, and its exit code will be in exits/NAME.
    """
    files = ["--exit-dir", "exits", "--log-path", f"k8s-file:{name}/log"]
    lab.run(["./shim", "--cid", name, "--bundle", name, "--runtime", "runc", *files, *options])
    processes.wait_until(lambda: lab.status(name) == "created", f"{name} to be created", 20)


def attach(lab, name):
    """Start a client that is attached to this container of the shim's; its `Step`, once the shim has taken its call."""
    step = lab.start(["./attach.py", f"{name}/attach"], stdin=PIPE, stdout=PIPE, stderr=PIPE)

    def connected():
        return any(d.peer for d in lab.descriptors(lab.process(step.pid)))

    processes.wait_until(connected, "the client to be connected", 20)
    return step


def podman(lab):
    """Make Podman ready, and return the environment for `podman` (and `skopeo`) commands.

    Raises EngineError when it is missing.
    """
    if not machine.find("podman"):
        raise EngineError("Podman is missing")
    if not machine.find("crun"):
        raise EngineError("Podman here has no crun, and with runc it makes cgroups that would outlive the lab")
    _settle(lab)
    lab.path(f"{HOME}/containers.conf").write_text(CONTAINERS)
    lab.path(f"{HOME}/storage.conf").write_text(STORAGE)
    settings = {"CONTAINERS_CONF": f"{HOME}/containers.conf", "CONTAINERS_STORAGE_CONF": f"{HOME}/storage.conf"}
    if os.getuid() != 0:  # what `podman unshare` says to its children: this is a user namespace, there is no other root
        settings |= {"_CONTAINERS_USERNS_CONFIGURED": "done", "_CONTAINERS_ROOTLESS_UID": str(os.getuid())}
    return {"HOME": HOME, "XDG_RUNTIME_DIR": HOME, **settings}


def docker(lab, runtimes=None):
    """Start a Docker daemon in the lab, unless it runs, and return the environment for `docker` commands.

    It runs in rootless mode, for root too: so it makes no cgroups and no network. `runtimes` are further ones for
    `docker run --runtime`, as {name: path}. Raises EngineError with the reason.
    """
    if not all(map(machine.find, ("docker", "dockerd", "containerd"))):
        raise EngineError("Docker is missing, or only its command is here")
    if not _has_more_users(lab):
        raise EngineError("dockerd gives its socket to a group, and this lab has one user and one group")
    _settle(lab)
    client = {"HOME": HOME, "DOCKER_HOST": f"unix://{HOME}/docker.sock"}
    if _answers(lab, client):
        return client
    proxy = lab.path(f"{HOME}/bin/rootlesskit-docker-proxy")  # looked for at the start, and used for published ports
    proxy.parent.mkdir(exist_ok=True)
    proxy.write_text("#!/bin/sh\n")
    proxy.chmod(0o755)
    search = f"{HOME}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    lab.path(f"{HOME}/xdg").mkdir(exist_ok=True)  # `docker exec` puts the process's description there
    rootless = {"_DOCKERD_ROOTLESS": "1", "ROOTLESSKIT_STATE_DIR": HOME, "XDG_RUNTIME_DIR": f"{HOME}/xdg"}
    log = f"{HOME}/dockerd.log"
    daemon = lab.start(
        [
            "dockerd", "--rootless", "--userland-proxy=false", "--iptables=false", "--ip6tables=false",
            "--ip-forward=false", "--ip-masq=false", "--bridge=none", "--storage-driver=vfs",
            f"--data-root={HOME}/docker", f"--exec-root={HOME}/exec", f"--pidfile={HOME}/docker.pid",
            f"--host=unix://{HOME}/docker.sock",
            *(f"--add-runtime={name}={path}" for name, path in (runtimes or {}).items()),
        ],
        stdout=log, stderr=log, echo=False, env={**client, **rootless, "PATH": search},
    )  # fmt: skip

    def settled():
        return _answers(lab, client) or processes.read_one(daemon.pid, lab.proc) is None

    try:
        processes.wait_until(settled, "dockerd to answer", 20)
    except TimeoutError:
        daemon.kill()
        raise EngineError("dockerd did not answer in 20 s") from None
    if not _answers(lab, client):
        said = lab.path(log).read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        raise EngineError(f"dockerd ended at once: {said[-1]}")
    return client


def make_image(lab, engine, env, name="box"):
    """An image `name` for `docker` or `podman`, of the userland of helpers/bundles.py, with nothing to fetch."""
    if not lab.path(f"{HOME}/{name}.tar").exists():
        lab.path(f"{HOME}/{name}").mkdir()
        bundles.fill_rootfs(lab.path(f"{HOME}/{name}"))
        packed = ["--file", f"{HOME}/{name}.tar", "--directory", f"{HOME}/{name}"]
        lab.run(["tar", "--create", "--numeric-owner", *packed, "."], echo=False)
    lab.run([engine, "import", "--change", "ENV PATH=/bin", f"{HOME}/{name}.tar", name], echo=False, env=env)
    return name


def _answers(lab, client):
    return lab.run(["docker", "version"], echo=False, check=False, env=client).code == 0


def _has_more_users(lab):
    with open(f"/proc/{lab.pid}/gid_map") as lines:
        return sum(int(line.split()[2]) for line in lines) > 1


def _settle(lab):
    """A home for engines, and a /dev/shm of the lab's own: Podman keeps its locks there, for all stores together."""
    home = lab.path(HOME)
    if home.exists():
        return
    (home / ".config/containers").mkdir(parents=True)
    (home / ".config/containers/policy.json").write_text(POLICY)
    lab.run(["mount", "-t", "tmpfs", "shm", "/dev/shm"], echo=False)
