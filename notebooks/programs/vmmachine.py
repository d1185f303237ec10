"""The machine of a container that vmrun makes: what is packed into it, QEMU, and the monitor.

See also: qemu-system-x86_64(1), the QEMU QMP reference manual, cpio(5).
"""

import fcntl
import json
import os
import re
import select
import shutil
import signal
import socket
import stat
import struct
import termios
import time
import tty

HERE = os.path.dirname(os.path.realpath(__file__))
HOME = os.environ.get("VMRUN_KERNEL") or os.path.join(HERE, "../../.lab/kernel")
BOOT = 20  # seconds after which a machine that is not heard is ended; more on a busy one
PORTS = 31  # of the virtio-serial device: 0 is not used, 1 is the agent's
#: What the kernel is told: print little, try nothing twice, give up at once when it can't go on.
KERNEL = (
    "quiet loglevel=1 reboot=t panic=-1 mitigations=off nokaslr random.trust_cpu=on"
    " cryptomgr.notests audit=0"
)
#: What vmagent and the scripts of vmrun call; each is a link to busybox.
APPLETS = (
    *("cat", "cp", "cpio", "env", "hostname", "ifconfig", "insmod", "kill", "mkdir", "mount"),
    *("nsenter", "readlink", "reboot", "rm", "setpriv", "setsid", "sh", "start-stop-daemon"),
    *("stty", "umount", "usleep"),
)
FOLDERS = ("bin", "binds", "containers", "dev", "etc", "prepare", "proc", "run", "skeleton", "sys")
NODES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
NODES |= {f"hvc{number}": (229, number) for number in range(8)}  # terminals
LINKS = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd"}
LINKS |= {
    f"std{name}": f"/proc/self/fd/{number}" for number, name in enumerate(("in", "out", "err"))
}
#: Signals that are passed on to the container's process.
FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class Refused(Exception):
    """What was asked for can't be done; the message says why in one sentence."""


def need(condition, sentence):
    if not condition:
        raise Refused(sentence)


def quote(*words):
    """Words for the guest's shell, on one line."""
    plain = (str(word).replace("'", "'\\''").replace("\n", "'$'\\n''") for word in words)
    return " ".join(f"'{word}'" for word in plain)


def pack(config, name, prepare, member=False):
    """Write the file initrd: all that the machine finds when it wakes. vmagent runs `prepare`.

    With `member` only what the container `name` adds to a machine that runs already.
    """
    with open("initrd", "wb") as file:

        def add(path, mode, data=b"", device=(0, 0), owner=(0, 0), time=0):
            path = os.fsencode(path) + b"\0"
            fields = (
                file.tell(),
                mode,
                *owner,
                1,
                int(time),
                len(data),
                0,
                0,
                *device,
                len(path),
                0,
            )
            head = b"070701" + b"".join(b"%08X" % (field % 2**32) for field in fields) + path
            file.writelines((head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)))

        def tree(source, path):
            found, data = os.lstat(source), b""
            if stat.S_ISREG(found.st_mode):
                with open(source, "rb") as content:
                    data = content.read()
            elif stat.S_ISLNK(found.st_mode):
                data = os.fsencode(os.readlink(source))
            mine = (
                found.st_uid == os.getuid() != 0
            )  # what is an ordinary user's here is root's in the machine
            owner = (0, 0) if mine else (found.st_uid, found.st_gid)
            if not stat.S_ISSOCK(found.st_mode):
                add(
                    path,
                    found.st_mode,
                    data,
                    (os.major(found.st_rdev), os.minor(found.st_rdev)),
                    owner,
                    found.st_mtime,
                )
            for entry in os.listdir(source) if stat.S_ISDIR(found.st_mode) else ():
                tree(os.path.join(source, entry), f"{path}/{entry}")

        if not member:
            for folder in FOLDERS:
                add(folder, 0o40755)
            for link in APPLETS:
                add(f"bin/{link}", 0o120777, b"busybox")
            tree(os.path.realpath(find("busybox")), "bin/busybox")
            tree(f"{HOME}/modules", "modules")
            tree(f"{HERE}/vmagent", "init")
            add("etc/passwd", 0o100644, b"root:x:0:0::/:/bin/sh\n")
            add("dev/console", 0o20600, device=(5, 1))
        tree(config["root"]["path"], f"containers/{name}")
        for number, mount in enumerate(config["mounts"]):
            if mount["bind"]:
                tree(os.path.realpath(mount["source"]), f"binds/{name}.{number}")
        add(f"prepare/{name}", 0o100644, prepare.encode())
        add(f"skeleton/{name}", 0o40755)
        for node, device in NODES.items():
            add(f"skeleton/{name}/{node}", 0o20666, device=device)
        for link, target in LINKS.items():
            add(f"skeleton/{name}/{link}", 0o120777, target.encode())
        for one in config["linux"].get("devices", ()):
            kind = {"b": stat.S_IFBLK, "p": stat.S_IFIFO}.get(one["type"], stat.S_IFCHR)
            device = (one.get("major", 0), one.get("minor", 0))
            add(
                f"skeleton/{name}" + one["path"][4:],
                kind | one.get("fileMode", 0o666) & 0o7777,
                device=device,
            )
        add("TRAILER!!!", 0)


def find(program):
    found = shutil.which(
        program, path=os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"
    )
    need(found, f"{program} is missing")
    return found


def machine(config):
    """The command that makes the machine for a container with this configuration."""
    limit = (
        config["linux"].get("resources", {}).get("memory", {}).get("limit", -1)
    )  # bytes; -1: none
    kernels = [path for path in (f"{HOME}/vmlinux", f"{HOME}/vmlinuz") if os.path.exists(path)]
    need(kernels, f"there is no kernel in {HOME}: `./lab kernel` gets one")
    kind, board, console = os.uname().machine, ["virt"], "ttyAMA0"
    if kind == "x86_64":  # PCI, a serial line, and nothing else that takes time at boot
        parts = ("acpi", "usb", "vmport", "smm", "hpet", "graphics", "sata", "smbus")
        board = ["q35" + "".join(f",{part}=off" for part in parts), "-bios", "qboot.rom"]
        console = "ttyS0"
    with open("/proc/cpuinfo") as file:
        fast = re.search(r"\b(vmx|svm)\b", file.read()) and os.access("/dev/kvm", os.R_OK | os.W_OK)
    memory = 256 if limit < 0 else min(max(limit >> 20, 128), 4096)
    memory += os.path.getsize("initrd") >> 19  # packed and unpacked, for a moment
    return [
        find(f"qemu-system-{kind}"), "-M", *board, "-m", f"{memory}M",
        "-accel", "kvm" if fast else "tcg", "-cpu", "host" if fast else "max",
        "-nodefaults", "-no-user-config", "-display", "none", "-S", "-no-reboot",
        "-kernel", kernels[0], "-initrd", "initrd", "-append", f"{KERNEL} console={console}",
        "-chardev", "file,id=console,path=log,append=on", "-serial", "chardev:console",
        "-device", f"virtio-serial-pci,id=ports,max_ports={PORTS},ioeventfd=off",
    ]  # fmt: skip


# ---- the monitor: one for each machine, from `create` to its end


class Monitor:
    """Holds QEMU, talks with the agent in the guest, obeys what comes over the socket `control`."""

    def __init__(self, argv, state, lock):
        (self.agent, agent), (self.qmp, qmp) = socket.socketpair(), socket.socketpair()
        for name, end in (("agent", agent), ("qmp", qmp)):
            argv += ["-chardev", f"socket,id={name},fd={end.fileno()}"]
        argv += [
            "-mon",
            "chardev=qmp,mode=control",
            "-device",
            "virtserialport,chardev=agent,nr=1,name=agent",
        ]
        self.qemu = os.fork()
        if self.qemu == 0:
            import ctypes

            ctypes.CDLL(None).prctl(
                1, signal.SIGKILL
            )  # PR_SET_PDEATHSIG: no machine without its monitor
            for descriptor in (agent.fileno(), qmp.fileno(), lock):
                os.set_inheritable(descriptor, True)
            for descriptor in (1, 2):
                os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
            os.execv(argv[0], argv)
        agent.close(), qmp.close()
        self.answers = self.qmp.makefile("rb")
        need(self.answers.readline(), "QEMU did not start")
        self.ask("qmp_capabilities")
        self.state = state | {"pid": os.getpid(), "qemu": self.qemu}
        self.processes = {}  # number -> {ports, devices, client, and status once it has ended}
        self.members = {}  # the connection of a member's holder -> the member's name; see vmpod.py
        self.starter, self.deadline = None, None

    def ask(self, command, **arguments):
        """What QEMU answers to a QMP command."""
        self.qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        answer = {}
        while "return" not in answer:  # what comes between are events
            answer = json.loads(
                self.answers.readline() or '{"error": {"desc": "the machine has ended"}}'
            )
            need("error" not in answer, f"{command}: {answer.get('error', {}).get('desc')}")
        return answer["return"]

    def plug(self, descriptors, name, client=None):
        """Plug in ports for a process: for stdin, stdout, stderr, or one that is a terminal."""
        taken = {port for process in self.processes.values() for port in process["ports"]}
        ports = [port for port in range(2, PORTS) if port not in taken][: len(descriptors)]
        need(len(ports) == len(descriptors), "the machine has no port left for another process")
        driver = "virtconsole" if len(ports) == 1 else "virtserialport"
        for port, descriptor in zip(ports, descriptors, strict=True):
            path, file = f"/proc/{os.getpid()}/fd/{descriptor}", {"out": os.devnull, "append": True}
            if port == ports[0]:
                file["in"] = path
            if port != ports[0] or driver == "virtconsole":
                # Without a reader it can't be opened, and QEMU would wait for one.
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
                file["out"] = path
            self.ask("chardev-add", id=f"c{port}", backend={"type": "file", "data": file})
            self.ask("device_add", driver=driver, id=f"p{port}", chardev=f"c{port}", nr=port,
                     name=f"port{port}")  # fmt: skip
        devices = [f"/dev/vport0p{port}" for port in ports]
        if driver == "virtconsole":
            used = {os.path.basename(p["devices"][0]) for p in self.processes.values()}
            free = next(hvc for hvc in map("hvc{}".format, range(PORTS)) if hvc not in used)
            devices = 3 * [f"/containers/{name}/dev/{free}"]  # as the kernel there counts
        number = max(self.processes, default=-1) + 1
        self.processes[number] = {"ports": ports, "devices": devices, "client": client}
        return number

    def settle(self, number, process):
        """A process has ended: once all that it wrote is through, unplug its ports, and say so."""
        path = "/machine/peripheral/ports/virtio-backend"
        for port in process["ports"]:
            if self.ask("x-query-virtio-queue-status", path=path, queue=2 * port + 3)["inuse"]:
                return
        if number == 0:
            self.end(process["status"])
        for port in process["ports"]:
            self.ask("device_del", id=f"p{port}")
        deadline = time.monotonic() + 5
        while process["ports"]:
            try:
                self.ask("chardev-remove", id=f"c{process['ports'][0]}")
                del process["ports"][0]
            except Refused:  # the device has not let go yet
                need(time.monotonic() < deadline, "a port can't be unplugged")
                time.sleep(0.001)
        tell(process["client"], {"exit": process["status"]})
        del self.processes[number]

    def say(self, *words):
        self.agent.sendall(" ".join(map(str, words)).encode() + b"\n")

    def hear(self, word, *rest):
        if word == "exit":
            self.processes[int(rest[0])]["status"] = int(rest[1])
        elif word == "ready":
            self.deadline = tell(self.starter, {})
        else:
            self.end(1, f"the machine can't become this container: {word} {' '.join(rest)}")

    def obey(self, client, request, descriptors):
        """Do what a command asks for; the answer, or None when it comes later."""
        verb, words, status = request["do"], request["words"], self.state["status"]
        wanted = {
            "start": "created",
            "exec": "running",
            "join": "running",
            "pause": "running",
            "resume": "paused",
        }.get(verb, status)
        need(status == wanted, f"cannot {verb} a container that is {status}")
        if verb in ("exec", "join"):
            number = self.plug(descriptors, words[0], client)
            process = self.processes[number]
            if verb == "join":
                self.members[client] = words[0]
            line = words[verb == "exec" :]
            word = {"exec": "run", "join": "join"}[verb]
            self.say(word, number, f"vport0p{process['ports'][-1]}", *process["devices"], *line)
            return {"number": number}
        if verb in ("start", "pause", "resume"):
            self.ask("stop" if verb == "pause" else "cont")
            self.state["status"] = "paused" if verb == "pause" else "running"
            write("state.json", json.dumps(self.state))
            if verb == "start":
                self.starter, self.began = client, time.monotonic()
                self.deadline = self.began + BOOT
                return None
        elif (
            words[0] == 0
            and verb == "signal"
            and (words[1] == signal.SIGKILL or status == "created")
        ):
            tell(client, {})
            self.end(128 + words[1])
        elif words[0] in self.processes:
            device = self.processes[words[0]]["devices"][:1] if verb == "size" else []
            self.say(verb, words[0], *device, *words[1:])
        return {}

    def serve(self, listener):
        """Until the machine ends."""
        qemu, clients, heard = os.pidfd_open(self.qemu), [], b""
        while True:
            ended = [item for item in self.processes.items() if "status" in item[1]]
            limit = (
                0.005
                if ended
                else max(0, self.deadline - time.monotonic())
                if self.deadline
                else None
            )
            ready = select.select([qemu, self.agent, listener, *clients], [], [], limit)[0]
            if self.deadline and time.monotonic() > self.deadline:
                self.deadline = self.began + BOOT + min(waited(self.qemu), 5 * BOOT)
            if qemu in ready or (self.deadline and time.monotonic() > self.deadline):
                self.end(
                    137,
                    "the machine ended"
                    if qemu in ready
                    else f"the machine did not boot in {BOOT} s",
                )
            if self.agent in ready:
                *lines, heard = (heard + self.agent.recv(1 << 16)).split(b"\n")
                for line in lines:
                    self.hear(*line.decode().split())
            if listener in ready:
                clients.append(listener.accept()[0])
            for client in set(clients) & set(ready):
                message, descriptors, _, _ = socket.recv_fds(client, 1 << 20, 3)
                if not message:
                    clients.remove(client)
                    if client in self.members:
                        self.say("leave", self.members.pop(client))
                    continue
                try:
                    tell(client, self.obey(client, json.loads(message), descriptors))
                except (Refused, OSError) as error:
                    tell(client, {"error": str(error)})
                for descriptor in descriptors:
                    os.close(descriptor)
            for item in ended:
                self.settle(*item)

    def end(self, status, trouble="the machine was ended"):
        """End the machine and this monitor, and tell everybody who waits."""
        os.kill(self.qemu, signal.SIGKILL)
        os.waitpid(self.qemu, 0)
        if self.deadline:
            tell(self.starter, {"error": f"{trouble}: {last_words()}"})
        for process in self.processes.values():
            tell(process["client"], {"exit": 137})
        os._exit(status)


def monitor(argv, state, lock, slave, creator):
    """What the process becomes that `create` leaves behind. Never returns."""
    try:
        self = Monitor(argv, state, lock)
        os.unlink("initrd")
        self.plug([0, 1, 2] if slave is None else [slave], state["id"])
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind("control")
        listener.listen()
        detach(slave, lambda *size: self.say("size", 0, self.processes[0]["devices"][0], *size))
        for number in FORWARDED:
            signal.signal(number, lambda number, _: self.say("signal", 0, number))
        tell(creator, {"pid": os.getpid(), "qemu": self.qemu})
        need(creator.recv(10), "`create` was killed")
        self.state["status"] = "created"
        self.serve(listener)
    except BaseException as error:
        tell(creator, {"error": f"{error}: {last_words()}"})
    finally:
        os._exit(1)


def tell(client, answer):
    try:
        if client and answer is not None:
            client.send(json.dumps(answer).encode())
    except OSError:
        pass  # nobody waits for it any more


def last_words():
    """What QEMU or the guest's kernel said last, or why the kernel panicked."""
    with open("log", errors="replace") as file:
        lines = file.read()[-5000:].strip().splitlines() or ["it said nothing"]
    return next((line for line in lines if "panic" in line), lines[-1]).strip()


def waited(pid):
    """The seconds in which this process could run and others had the processors. See proc(5)."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as file:
            total += int(file.read().split()[1])
    return total / 1e9


def open_terminal(path):
    """Make a terminal, send its master to the socket `path`, and return its slave."""
    master, slave = os.openpty()
    tty.setraw(slave)  # the other end, in the machine, is the one that cooks
    folder = os.open(
        os.path.dirname(path), os.O_PATH
    )  # a path may be longer than a socket's address
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
        socket.send_fds(client, [os.ttyname(slave).encode()], [master])
    os.close(folder), os.close(master)
    return slave


def detach(slave, tell_size):
    """Leave the caller's session and files; tell the size of the terminal `slave`, if any."""
    os.setsid()
    for number in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)

    def look(*_):
        size = struct.unpack("4H", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8)))[:2]
        if all(size):
            tell_size(*size)

    if slave is not None:
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGWINCH, look)
        look()


def write(path, text):
    with open(f"{path}.new", "w") as file:
        file.write(text)
    os.rename(f"{path}.new", path)
