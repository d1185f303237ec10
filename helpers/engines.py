"""Real engines inside the lab: the reader's own programs, with stores of their own that go when the lab goes.

Each function makes an engine ready and returns the environment for its commands:

    lab.run(["podman", "load", "--input", "hello.tar"], env=engines.podman(lab))

The reader's own images and containers are neither seen nor touched. A cgroup would outlive the lab, so none is made,
unless it is asked for (`limits=True`) and the lab has a cgroup of its own: below that one. `cri` starts what a
Kubernetes node has. See also: containers.conf(5), containers-storage.conf(5), dockerd(8), containerd(8).
"""

import json
import os
import shutil
from pathlib import Path

from helpers import bundles, cgroups, machine, processes
from helpers.lab import PIPE

HOME = "/run/lab/engines"
SEARCH = f"{HOME}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = Path(__file__).resolve().parent.parent / "notebooks/programs"
CONTAINERS = """
[containers]
cgroups = "CGROUPS"
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
CONTAINERD = """
version = 2
root = "/run/lab/engines/cri/root"
state = "/run/lab/engines/cri/state"
disabled_plugins = [
    "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "/run/lab/engines/cri/containerd.sock"
[ttrpc]
address = "/run/lab/engines/cri/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "PAUSE"
restrict_oom_score_adj = true
disable_apparmor = true
disable_cgroup = CGROUPLESS
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "PLUGINS"
conf_dir = "/run/lab/engines/cri/net.d"
"""
HANDLER = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.NAME]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.NAME.options]
BinaryName = "PATH"
"""
NETWORK = {
    "cniVersion": "0.4.0", "name": "pods", "plugins": [{
        "type": "bridge", "bridge": "cni0", "isGateway": True,
        "ipam": {"type": "host-local", "subnet": "10.85.0.0/24", "dataDir": f"{HOME}/cri/addresses"},
    }],
}  # fmt: skip
WRITTEN = ("/etc", "/opt", "/var/lib")  # places on the machine in which engines keep keys, caches and addresses
PAUSES = ("/usr/libexec/podman", "/usr/lib/podman", "/usr/local/libexec/podman", "/usr/local/lib/podman")  # beside PATH
PLUGINS = ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'  # nothing is fetched: all images are made in the lab


class EngineError(RuntimeError):
    """The engine can't run here. One sentence says why."""


def offer(engine, lab, **how):
    """What `engine(lab, **how)` returns, or None where it can't run here; then the reason is printed."""
    try:
        return engine(lab, **how)
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

    def created():  # the runtime says so a moment before it leaves the container to the shim
        parent = lab.process(lab.container(name).ppid) if lab.status(name) == "created" else None
        return parent is not None and parent.name == "shim"

    processes.wait_until(created, f"{name} to be created", 20)


def attach(lab, name):
    """Start a client that is attached to this container of the shim's; its `Step`, once the shim has taken its call."""
    step = lab.start(["./attach.py", f"{name}/attach"], stdin=PIPE, stdout=PIPE, stderr=PIPE)

    def connected():
        return any(d.peer for d in lab.descriptors(lab.process(step.pid)))

    processes.wait_until(connected, "the client to be connected", 20)
    return step


def podman(lab, limits=False, pods=False):
    """Make Podman ready, and return the environment for `podman` (and `skopeo`) commands.

    `limits`: its containers get cgroups, below the lab's own, where the lab has one. `pods`: it can make pods with a
    pause of its own. Raises EngineError when it, or what it needs for that, is missing.
    """
    if not machine.find("podman"):
        raise EngineError("Podman is missing")
    if pods and not (machine.find("catatonit") or shutil.which("catatonit", path=":".join(PAUSES))):
        raise EngineError("Podman here has no catatonit, the program that is its pause")
    if not machine.find("crun"):
        raise EngineError("Podman here has no crun, and with runc it makes cgroups that would outlive the lab")
    _settle(lab)
    inside = _inside_cgroup(lab, "podman") if limits else {}
    # Its `kube play` doesn't bear "disabled"; and who has no right to make cgroups makes none.
    switch = "enabled" if inside or (limits and os.getuid() != 0) else "disabled"
    lab.path(f"{HOME}/containers.conf").write_text(CONTAINERS.replace("CGROUPS", switch))
    lab.path(f"{HOME}/storage.conf").write_text(STORAGE)
    settings = {"CONTAINERS_CONF": f"{HOME}/containers.conf", "CONTAINERS_STORAGE_CONF": f"{HOME}/storage.conf"}
    # What `podman unshare` says to its children: this is a user namespace, there is no other root. As root on cgroup v2
    # too: else Podman makes each pod a cgroup in which no device may be used.
    if os.getuid() != 0 or (limits and cgroups.mode() == "v2"):
        settings |= {"_CONTAINERS_USERNS_CONFIGURED": "done", "_CONTAINERS_ROOTLESS_UID": str(os.getuid())}
    settings["PODMAN_IGNORE_CGROUPSV1_WARNING"] = "1"  # which Podman 5 writes into the output of each command
    return {"HOME": HOME, "XDG_RUNTIME_DIR": HOME, **settings, **inside}


def makes_cgroups(env):
    """Whether the Podman of this environment makes cgroups, and so can keep limits."""
    return "PATH" in env


def docker(lab, runtimes=None, limits=False):
    """Start a Docker daemon in the lab, unless it runs, and return the environment for `docker` commands.

    It runs in rootless mode, for root too: so it makes no cgroups and no network. `runtimes` are further ones for
    `docker run --runtime`, as {name: path}. `limits`: where the lab has a cgroup of its own, the daemon runs as root's
    would, and makes its cgroups below that one. Raises EngineError with the reason.
    """
    if not all(map(machine.find, ("docker", "dockerd", "containerd"))):
        raise EngineError("Docker is missing, or only its command is here")
    if not _has_more_users(lab):
        raise EngineError("dockerd gives its socket to a group, and this lab has one user and one group")
    _settle(lab)
    client = {"HOME": HOME, "DOCKER_HOST": f"unix://{HOME}/docker.sock"}
    if _answers(lab, client):
        return client
    # The lab's own network, and nobody else's: else every `docker run` warns that it doesn't forward.
    lab.run(["tee", "/proc/sys/net/ipv4/ip_forward"], stdin="1", echo=False, check=False)
    proxy = lab.path(f"{HOME}/bin/rootlesskit-docker-proxy")  # looked for at the start, and used for published ports
    proxy.parent.mkdir(exist_ok=True)
    proxy.write_text("#!/bin/sh\n")
    proxy.chmod(0o755)
    lab.path(f"{HOME}/xdg").mkdir(exist_ok=True)  # `docker exec` puts the process's description there
    rootless = {"_DOCKERD_ROOTLESS": "1", "ROOTLESSKIT_STATE_DIR": HOME, "XDG_RUNTIME_DIR": f"{HOME}/xdg"}
    mode = ["--rootless"]
    if limits and lab.cgroup and os.getuid() == 0:
        rootless = {"XDG_RUNTIME_DIR": f"{HOME}/xdg"}
        mode = ["--exec-opt=native.cgroupdriver=cgroupfs", f"--cgroup-parent={lab.cgroup}"]
    log = f"{HOME}/dockerd.log"
    daemon = lab.start(
        [
            "dockerd", *mode, "--userland-proxy=false", "--iptables=false", "--ip6tables=false",
            "--ip-forward=false", "--ip-masq=false", "--bridge=none", "--storage-driver=vfs",
            f"--data-root={HOME}/docker", f"--exec-root={HOME}/exec", f"--pidfile={HOME}/docker.pid",
            f"--host=unix://{HOME}/docker.sock",
            *(f"--add-runtime={name}={path}" for name, path in (runtimes or {}).items()),
        ],
        stdout=log, stderr=log, echo=False, env={**client, **rootless, "PATH": SEARCH},
    )  # fmt: skip

    _wait_for(lab, daemon, lambda: _answers(lab, client), log)
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


def inside(lab, tool, names, env):
    """The first processes of the containers with these names, as `podman inspect` or `docker inspect` tell them."""
    said = lab.run([tool, "inspect", "--format", "{{.State.Pid}}", *names], env=env, echo=False).stdout
    return [processes.read_one(int(pid), lab.proc) for pid in said.split()]


def _plugins():
    """The directory of the network plugins, or None."""
    return next((place for place in PLUGINS if os.path.exists(f"{place}/bridge")), None)


def lacking_for_cri():
    """What `cri` needs and this machine hasn't got, by name."""
    lacking = [name for name in ("containerd", "ctr", "curl") if not machine.find(name)]
    return lacking + ([] if _plugins() else ["containernetworking-plugins"])


def cri(lab, pause, runtimes=None):
    """Start a containerd in the lab as a Kubernetes node has it, and return the path of its socket.

    `pause` is the image that holds its pods: load it before the first pod. Pods get a network of the lab's own.
    `runtimes` are what a pod may be run by beside runc, as {what its RuntimeClass calls it: path}. Raises EngineError
    with the reason.
    """
    lacking = lacking_for_cri()
    if lacking:
        raise EngineError(f"A Kubernetes node can't be made here: {', '.join(lacking)} missing")
    if not _has_more_users(lab):
        raise EngineError("containerd gives terminals to a group, and this lab has one user and one group")
    _settle(lab)
    if os.getuid() != 0:
        lab.run(["mount", "-t", "tmpfs", "var", "/var/lib"], echo=False)  # the plugins keep addresses there
    home, socket = lab.path(f"{HOME}/cri"), f"{HOME}/cri/containerd.sock"
    (home / "net.d").mkdir(parents=True, exist_ok=True)
    (home / "net.d/pods.conflist").write_text(json.dumps(NETWORK))
    cgroupless = "false" if lab.limits else "true"
    config = CONTAINERD.replace("PAUSE", pause).replace("PLUGINS", _plugins()).replace("CGROUPLESS", cgroupless)
    handlers = {"runc": machine.find("runc"), **(runtimes or {})}
    config += "".join(HANDLER.replace("NAME", name).replace("PATH", path) for name, path in handlers.items())
    (home / "config.toml").write_text(config)
    log = f"{HOME}/cri/containerd.log"
    daemon = lab.start(["containerd", "--config", f"{HOME}/cri/config.toml"], stdout=log, stderr=log, echo=False)

    def answers():
        asked = ["ctr", "--address", socket, "--timeout", "2s", "version"]
        return lab.run(asked, echo=False, check=False).code == 0

    _wait_for(lab, daemon, answers, log)
    return socket


def _inside_cgroup(lab, program):
    """An environment in which `program` sees a cgroup of the lab as the top of all; {} where that can't be.

    Podman puts its pods at the top, where they would outlive the lab. A process that stays holds two namespaces for
    it: of cgroups, and of mounts, in which the hierarchies begin there. On v2 a cgroup that hands controllers down may
    hold no process: there the top is a new one, and all processes stand in a cgroup below it.
    """
    mounted = cgroups.hierarchies(f"/proc/{lab.pid}")
    if not lab.limits or os.getuid() != 0:
        return {}
    if cgroups.mode(mounted) == "v2":
        place = f"{mounted[0].mountpoint}{lab.cgroup}/{program}"
        lab.run(["mkdir", "-p", f"{place}/steps"], echo=False)
        join, below = f"echo $$ > {place}/cgroup.procs", f"echo $$ > {place}/steps/cgroup.procs"
        mounts = [mounted[0].mountpoint, "cgroup2", "rw"]
    else:
        join = below = ":"
        mounts = [word for h in mounted if h.version == 1 for word in (h.mountpoint, "cgroup", _mount_options(h))]
    remount = 'while [ $# -gt 0 ]; do umount "$1"; mount -t "$2" -o "$3" cgroup "$1"; shift 3; done'
    inner = f"set -e; {below}; {remount}; exec sleep infinity"
    outer = f'set -e; {join}; exec unshare --cgroup --mount sh -c "$@"'
    holder = lab.start(["sh", "-c", outer, "sh", inner, "sh", *mounts], echo=False)
    processes.wait_until(
        lambda: next((p for p in lab.find("sleep") if p.pid == holder.pid), None), "a holder of Podman's view", 20
    )
    wrapper = lab.path(f"{HOME}/bin/{program}")
    wrapper.parent.mkdir(exist_ok=True)
    enter = f"nsenter --target {holder.pid} --cgroup --mount"
    wrapper.write_text(f'#!/bin/sh\n{below}\nexec {enter} --wd="$PWD" {machine.find(program)} "$@"\n')
    wrapper.chmod(0o755)
    return {"PATH": SEARCH}


def _mount_options(hierarchy):
    """The options that mount a hierarchy of v1: its controllers, or its name."""
    return ("none," if hierarchy.controllers[0].startswith("name=") else "") + ",".join(hierarchy.controllers)


def _wait_for(lab, daemon, answers, log):
    """Wait until a daemon (a `Step`) answers. Raises EngineError, with the last line of its log when it has ended."""
    name = daemon.argv[0]

    def settled():
        return "answers" if answers() else processes.read_one(daemon.pid, lab.proc) is None

    try:
        outcome = processes.wait_until(settled, f"{name} to answer", 20)
    except TimeoutError:
        daemon.kill()
        raise EngineError(f"{name} did not answer in 20 s") from None
    if outcome != "answers":
        said = lab.path(log).read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        raise EngineError(f"{name} ended at once: {said[-1]}")


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
    if os.getuid() == 0:  # who is root on the machine could leave files there; what an engine writes stays in the lab
        for place in filter(os.path.isdir, WRITTEN):
            layers = [f"{HOME}/{kind}{place.replace('/', '-')}" for kind in ("upper", "work")]
            for layer in layers:
                lab.path(layer).mkdir()
            options = f"lowerdir={place},upperdir={layers[0]},workdir={layers[1]}"
            # A kernel that can't: the engine works all the same, and its key or cache stays, as at any other time.
            lab.run(["mount", "-t", "overlay", "overlay", "-o", options, place], echo=False, check=False)
