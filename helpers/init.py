"""The lab's PID 1, in the lab's new namespaces. lab.py starts it: `python3 -I -S -c START CHECKOUT NAME LEDGER`.

Its standard input is a socket whose other end the notebook holds. Each message on it asks for one
step: PID 1 forks, the child becomes the command. When the notebook closes its end, or is killed, PID 1
reads end-of-file, ends every process of the lab, removes its cgroups, and exits; the kernel removes
the namespaces with all that is in them. It also reaps: orphans in the lab are its children.
It must start in milliseconds, so it imports little: `signal` and `socket` would load enum, re and more, 10 ms
together, and add only names to the modules in C below them. A request is in the format of `marshal`, which
is built in: it comes from the notebook that started this process. An answer is JSON, because the lab
is not trusted with more.
See also: pid_namespaces(7), unix(7) (SCM_RIGHTS, SCM_CREDENTIALS).
"""

import _signal as signal
import _socket as socket
import errno
import fcntl
import marshal
import os
import select
import struct
import sys
import time

from helpers import cgroups, cleanup
from helpers.cgroups import read, write

HOME = "/run/lab"  # on a tmpfs of the lab's own: it goes with the mount namespace
STARTER = "starter"  # the child cgroup that the systemd-run prefix of lab.py moves into


def main(name, ledger):
    control = socket.socket(fileno=0)
    os.set_inheritable(0, False)
    mounted = cgroups.hierarchies()
    mounts = start_mounts(mounted)
    homes, limits = enter_cgroups(mounted, f"uncontained-{name}", ledger)
    prepare(mounts)
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    control.send(as_json("limits", limits))
    running = {}  # pid -> descriptor on which its exit status is reported
    while True:
        ready, _, _ = select.select([control, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            reap(running)
        if control in ready:
            request, descriptors = receive(control)
            if request is None:
                break
            if "kill" in request:
                kill(request)
            else:
                step(request, descriptors, running)
    end(homes, ledger)


def receive(control):
    """One request and the descriptors that came with it; (None, []) when the notebook has gone."""
    try:
        data, ancillary, _, _ = control.recvmsg(1 << 20, socket.CMSG_SPACE(4 * 8), socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None, []
    descriptors = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors += struct.unpack(f"{len(payload) // 4}i", payload)
    return (marshal.loads(data) if data else None), descriptors


def step(request, descriptors, running):
    """Fork one command. `descriptors` are its stdin, stdout, stderr, and the pipe for its status."""
    *stdio, status = descriptors
    begun, begins = os.pipe2(os.O_CLOEXEC)  # exec closes it: the notebook hears of the step when it is the command
    pid = os.fork()
    if pid == 0:  # in the child: become the command, in a session of its own
        try:
            os.setsid()
            for number, descriptor in enumerate(stdio):
                os.dup2(descriptor, number)
            if request.get("tty"):
                fcntl.ioctl(0, 0x540E, 0)  # TIOCSCTTY: Ctrl-C of this terminal reaches this session
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec would keep that
            os.chdir(request["cwd"])
            os.execvpe(request["argv"][0], request["argv"], request["env"])
        except OSError as error:
            missing = error.errno in (errno.ENOENT, errno.EACCES) and "/" not in request["argv"][0]
            why = "command not found" if missing else error.strerror
            os.write(2, f"{request['argv'][0]}: {why}\n".encode())
        finally:
            os._exit(127)
    for descriptor in (*stdio, begins):
        os.close(descriptor)
    os.read(begun, 1)
    os.close(begun)
    report(status, "pid", pid)
    running[pid] = status


def as_json(key, value):
    """The JSON text of {key: value}, in bytes. `value` is a number, or a list of plain words."""
    return f'{{"{key}": {value}}}'.replace("'", '"').encode()


def report(descriptor, key, value):
    try:
        os.write(descriptor, as_json(key, value))
    except OSError:
        pass  # nobody waits for this one any more


def reap(running):
    """Collect every dead child: steps, whose status is reported, and orphans, whose status nobody asked for."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in running:
            descriptor = running.pop(pid)
            report(descriptor, "exit", os.waitstatus_to_exitcode(status))
            os.close(descriptor)


def kill(request):
    try:
        os.kill(request["kill"], request["signal"])
    except ProcessLookupError:
        pass


def enter_cgroups(mounted, name, ledger):
    """Make the lab's cgroup wherever that is allowed, and move into it.

    Returns ([(directory to go back to, directory of the lab, version)], controllers that can set limits).
    On v2 the lab's processes stand in a leaf: a cgroup that hands controllers down may hold none.
    """
    homes, limits, hybrid = [], set(), cgroups.mode(mounted) == "hybrid"
    paths = cgroups.memberships()
    for hierarchy in mounted:
        base = cgroups.directory(hierarchy, paths)
        if base is None or not os.access(base, os.W_OK):
            continue
        if hierarchy.version == 2 and hybrid:
            continue
        back = base
        if os.path.basename(base) == STARTER:
            base = os.path.dirname(base)
        elif hierarchy.version == 2:
            base = hierarchy.mountpoint  # the root cgroup alone may hold processes and hand controllers down
        top = leaf = os.path.join(base, name)
        try:
            cleanup.register(ledger, "cgroup", top)
            os.mkdir(top)
            if hierarchy.version == 2:
                hand_down(base, hierarchy.controllers, ledger)
                hand_down(top, hierarchy.controllers)
                leaf = os.path.join(top, "steps")  # runc puts a container beside its own cgroup: inside `top`
                os.mkdir(leaf)
            elif "cpuset" in hierarchy.controllers:
                copy_cpuset(base, top)
            cgroups.enter(leaf, hierarchy.version)
        except OSError:
            try:
                cleanup.remove_cgroup(top, patience=0)
            except OSError:
                pass  # the ledger has it
            continue
        homes.append((back, top, hierarchy.version))
        granted = hierarchy.controllers
        if hierarchy.version == 2:
            granted = handed_down(top)
        limits.update(c for c in granted if not c.startswith("name="))
    expect_elsewhere(mounted, [top for _, top, _ in homes], ledger)
    return homes, sorted(limits)


def expect_elsewhere(mounted, tops, ledger):
    """Write down where engines may make cgroups for the lab beside its own.

    On v1 a process may stand at another path in each hierarchy, but a runtime takes one path, and makes it in all.
    """
    mountpoints = [hierarchy.mountpoint for hierarchy in mounted if hierarchy.version == 1]

    def is_made(place):
        """True when a runtime will make it, or has made it for another lab: the last lab that uses it removes it."""
        others = map(cleanup.entries, cleanup.ledgers())
        return not os.path.isdir(place) or any(("parent", place) in known for known in others)

    paths = {os.path.relpath(top, m) for m in mountpoints for top in tops if top.startswith(f"{m}/")}
    for mountpoint in mountpoints:
        for path in paths:
            place, above = os.path.join(mountpoint, path), []
            if place in tops:
                continue
            while (path := os.path.dirname(path)) and is_made(above_it := os.path.join(mountpoint, path)):
                above.insert(0, above_it)
            for parent in above:
                cleanup.register(ledger, "parent", parent)
            cleanup.register(ledger, "elsewhere", place)


def hand_down(place, controllers, ledger=None):
    """Enable each controller for the children of `place`; one that can't be handed down is left out."""
    for controller in set(controllers) - set(handed_down(place)):
        if ledger:  # `place` is not ours: it gets its setting back
            cleanup.register(ledger, "controller", [place, controller])
        try:
            write(f"+{controller}", place, "cgroup.subtree_control")
        except OSError:
            pass


def handed_down(place):
    return read(place, "cgroup.subtree_control").split()


def copy_cpuset(base, top):
    for name in ("cpuset.cpus", "cpuset.mems"):  # empty in a new v1 cpuset, and an empty one takes nobody in
        write(read(base, name), top, name)


def start_mounts(mounted):
    """Start to give the lab its own /run (runc keeps its state there): [(place, PID of its mount command)]."""
    covered = ["/run"]
    if cgroups.mode(mounted) == "hybrid":
        # runc 1.1 would put a container's cgroup of this hierarchy at its very top, in everybody's way; crun
        # refuses a hybrid host. All controllers that count are in the v1 hierarchies.
        covered += [h.mountpoint for h in mounted if h.version == 2]
    options = ["-t", "tmpfs", "-o", "mode=755", "lab"]
    return [(place, os.posix_spawnp("mount", ["mount", *options, place], os.environ)) for place in covered]


def prepare(mounts):
    """Wait for the mounts, then make the lab's home, its name and its loopback."""
    for place, pid in mounts:
        if os.waitpid(pid, 0)[1] != 0:
            sys.exit(f"mount: could not give the lab a {place} of its own")
    os.makedirs(HOME)
    os.chdir(HOME)
    socket.sethostname("lab")
    any_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up, running
    any_socket.close()
    write("lab", "/proc/self/comm")


def end(homes, ledger):
    """End everyone else in this PID namespace, leave and remove the cgroups, forget the ledger."""
    for _, top, _ in homes:
        cleanup.thaw(top)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(-1, signal.SIGKILL)  # all but ourselves
        except ProcessLookupError:
            pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            break
        time.sleep(0.001)
    for back, _, version in homes:
        try:
            cgroups.enter(back, version)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EACCES, errno.EPERM):
                raise
    cleanup.undo(ledger)

