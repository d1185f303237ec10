"""The machine of vmrun's containers: what is packed into it, QEMU, and the processes in it.

All this is called in the directory of a container; that of its machine is beside it. See also:
qemu-system-x86_64(1), the QEMU QMP Reference Manual, cpio(5), flock(2).
"""

import contextlib
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

import vmconfig
from vmconfig import Refused, need

HERE = os.path.dirname(os.path.realpath(__file__))
CHECKOUT = os.path.dirname(os.path.dirname(HERE))
HOME = os.environ.get("VMRUN_KERNEL") or f"{CHECKOUT}/.lab/kernel"
BOOT = 20  # seconds after which a machine that is not heard is ended; more on a busy one
SLOTS = 12  # for processes that somebody holds: five ports each; 0 is not used, 1 is the agent's
#: What the kernel is told: print little, try nothing twice, give up at once when it can't go on.
KERNEL = (
    "quiet loglevel=1 reboot=t panic=-1 mitigations=off nokaslr random.trust_cpu=on"
    " cryptomgr.notests audit=0"
)
FIRST = "rdinit=/bin/setsid -- -c /bin/sh /init"  # vmagent, with the console as its terminal
FOLDERS = (
    *("bin", "binds", "containers", "dev", "etc", "prepare", "proc", "run", "skeleton", "sys"),
)
#: What vmagent calls; each is a link to busybox.
APPLETS = (
    *("cat", "cp", "cpio", "env", "ifconfig", "insmod", "kill", "mkdir", "mknod", "mount"),
    *("nsenter", "rm", "setpriv", "setsid", "sh", "start-stop-daemon", "stty", "unshare"),
    *("usleep",),
)
FSTAB = b"proc /proc proc\nsys /sys sysfs\ndev /dev devtmpfs\n"
LINKS = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd"}  # in the /dev of a container
LINKS |= {f"std{name}": f"/proc/self/fd/{n}" for n, name in enumerate(("in", "out", "err"))}
#: Signals that are passed on to the process in the machine.
FORWARDED = tuple(map(signal.Signals, (1, 2, 3, 10, 12, 15)))  # HUP INT QUIT USR1 USR2 TERM


# ---- its files


def pack(config, name, member=False):
    """Write the file `packed`, a cpio archive: the container and, unless it is a member of a pod,
    all else that a machine needs to boot.
    """
    with open("packed", "wb") as file:
        if not member:
            for folder in FOLDERS:
                add(file, folder, 0o40755)
            for place, links in (("bin", dict.fromkeys(APPLETS, "busybox")), ("skeleton", LINKS)):
                for link, target in links.items():
                    add(file, f"{place}/{link}", 0o120777, target.encode())
            add(file, "etc/passwd", 0o100644, b"root:x:0:0::/:/bin/sh\n")
            add(file, "etc/fstab", 0o100644, FSTAB)
            add_tree(file, os.path.realpath(find("busybox")), "bin/busybox")
            if os.path.isdir(f"{HOME}/modules"):  # or the kernel has all that it needs built in
                add_tree(file, f"{HOME}/modules", "modules")
            add_tree(file, f"{HERE}/vmagent", "init")
        add_tree(file, config["root"]["path"], f"containers/{name}")
        for number, mount in enumerate(config["mounts"]):
            if mount["bind"]:
                add_tree(file, os.path.realpath(mount["source"]), f"binds/{name}.{number}")
        steps = vmconfig.quoted(vmconfig.steps_of_container(config, name))
        add(file, f"prepare/{name}", 0o100644, "\n".join(steps).encode())
        add(file, "TRAILER!!!", 0)


def add_tree(file, source, path):
    """Add a file, or a directory with all in it. What is this user's here is root's there."""
    found, data = os.lstat(source), b""
    if stat.S_ISREG(found.st_mode):
        with open(source, "rb") as content:
            data = content.read()
    elif stat.S_ISLNK(found.st_mode):
        data = os.fsencode(os.readlink(source))
    owner = (0, 0) if found.st_uid == os.getuid() else (found.st_uid, found.st_gid)
    if not stat.S_ISSOCK(found.st_mode):
        add(file, path, found.st_mode, data, owner, found.st_mtime, found.st_rdev)
    for entry in os.listdir(source) if stat.S_ISDIR(found.st_mode) else ():
        add_tree(file, os.path.join(source, entry), f"{path}/{entry}")


def add(file, path, mode, data=b"", owner=(0, 0), when=0, device=0):
    """Add one entry, in the format that cpio(5) calls newc, without its checksum."""
    path, numbers = os.fsencode(path) + b"\0", (os.major(device), os.minor(device))
    fields = (file.tell(), mode, *owner, 1, int(when), len(data), 0, 0, *numbers, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % (field % 2**32) for field in fields) + path
    file.writelines((head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)))


def find(program):
    path = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"
    found = shutil.which(program, path=path)
    need(found, f"{program} is missing: `./lab doctor` names its package")
    return found


# ---- QEMU


def command(config):
    """The command that makes the machine for a container with this configuration."""
    limit = config["linux"]["resources"]["memory"].get("limit", -1)  # bytes; -1: none
    memory = 256 if limit < 0 else min(max(limit >> 20, 128), 4096)
    memory += os.path.getsize("packed") >> 19  # packed and unpacked, for a moment
    kernels = [path for path in (f"{HOME}/vmlinux", f"{HOME}/vmlinuz") if os.path.exists(path)]
    need(kernels, f"there is no kernel in {HOME}: `./lab kernel` gets one")
    kind, board, console = os.uname().machine, ["virt"], "ttyAMA0"
    if kind == "x86_64":  # PCI, a serial line, and nothing else that takes time at boot
        parts = ("acpi", "usb", "vmport", "smm", "hpet", "graphics", "sata", "smbus")
        board = ["q35" + "".join(f",{part}=off" for part in parts), "-bios", "qboot.rom"]
        console = "ttyS0"
    with open("/proc/cpuinfo") as file:
        fast = re.search(r"\b(vmx|svm)\b", file.read()) and os.access("/dev/kvm", os.R_OK | os.W_OK)
    return [
        find(f"qemu-system-{kind}"), "-M", *board, "-m", f"{memory}M",
        "-accel", "kvm" if fast else "tcg", "-cpu", "host" if fast else "max",
        "-nodefaults", "-no-user-config", "-display", "none", "-S", "-no-reboot",
        "-kernel", kernels[0], "-initrd", "packed",
        "-append", f"{KERNEL} console={console} {FIRST}",
        "-chardev", "file,id=console,path=log,append=on", "-serial", "chardev:console",
        "-device", f"virtio-serial-pci,id=ports,max_ports={2 + 5 * SLOTS},ioeventfd=off",
        "-chardev", "pipe,id=agent,path=agent",
        "-device", "virtserialport,chardev=agent,nr=1,name=agent",
    ]  # fmt: skip


def boot(argv, held):
    """Start QEMU, with a machine that stands still; its PID.

    It ends when this process does, and has the lock `held` until then. Its QMP socket is `qmp`.
    """
    os.mkfifo("agent")
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.bind("qmp")
        qmp.listen()
        pid = os.fork()
        if pid == 0:
            try:
                become(argv, held, qmp.fileno())
            finally:
                os._exit(127)
    return pid


def become(argv, held, qmp):
    """Make this process QEMU."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    for descriptor in (held, qmp):
        os.set_inheritable(descriptor, True)
    for descriptor in (1, 2):
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    listening = f"socket,id=qmp,fd={qmp},server=on,wait=off"
    os.execv(argv[0], [*argv, "-chardev", listening, "-mon", "qmp,mode=control"])


@contextlib.contextmanager
def qemu(machine):
    """A function that has QEMU do a QMP command.

    QEMU hears one client at a time. The others wait here for their turn.
    """
    with socket.socket(socket.AF_UNIX) as line, contextlib.closing(line.makefile()) as answers:
        for limit in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):  # settimeout refuses to wait in line
            line.setsockopt(socket.SOL_SOCKET, limit, struct.pack("ll", BOOT, 0))
        line.connect(f"../{machine}/qmp")

        def ask(command, *descriptors, **arguments):
            asked = json.dumps({"execute": command, "arguments": arguments}).encode()
            socket.send_fds(line, [asked], descriptors)
            for answer in map(json.loads, answers):  # what comes between are events
                need("error" not in answer, f"{command}: {answer.get('error', {}).get('desc')}")
                if "return" in answer:
                    return answer["return"]
            raise Refused("the machine has ended")

        need(answers.readline(), "QEMU did not start")  # its greeting
        ask("qmp_capabilities")
        yield ask


def last_words(machine):
    """What QEMU or the guest's kernel said last, or why the kernel panicked."""
    try:
        with open(f"../{machine}/log", errors="replace") as file:
            lines = file.read()[-5000:].strip().splitlines()
    except FileNotFoundError:
        lines = []
    return next(
        (line for line in lines if "panic" in line), [*lines, "it said nothing"][-1]
    ).strip()


# ---- what runs in it


def lock(path, how=fcntl.LOCK_EX):
    """A descriptor that holds a lock on the file; None when another process holds one.

    The kernel takes a lock away when the last process has ended that has its descriptor.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


class Process:
    """A process in the machine, as one out here holds it: ports for its streams, and one to talk.

    Who holds a process has a slot: a lock on a file of the machine's, and the ports that belong
    to it. What QEMU tells the guest of its ports goes through a queue of 32 places, and is lost
    when that is full. So who plugs ports in, or out, keeps QEMU's line until the guest has seen it.
    """

    def __init__(self, machine, stdio, packed=None):
        """`stdio` are standard input, output and error, or one terminal; all are descriptors.

        `packed` brings a container into a machine that runs.
        """
        self.machine, self.packed, self.begun, self.heard = machine, packed, False, b""
        self.stdio = list(map(os.dup, stdio))  # the holder may give up its own before they are used
        self.terminal = stdio[0] if len(stdio) == 1 else None
        (self.down, self.orders), (self.reports, self.up) = os.pipe(), os.pipe()
        slots = (n for n in range(SLOTS) if lock(f"../{machine}/slot{n}") is not None)
        self.slot, self.devices = next(slots, None), None
        need(self.slot is not None, "the machine has no place for another process")

    def plug_in(self, ask):
        """Plug in the ports. That for the talk comes last: where it has come, all have."""
        self.clear(ask)
        if self.terminal is None:
            streams = zip(("in", "out", "err"), self.stdio, strict=True)
            self.devices = [self.plug(ask, place, *one) for place, one in enumerate(streams)]
        else:
            used = {one["label"].partition(".")[2] for one in ask("query-chardev")}
            free = next(n for n in range(SLOTS) if f"hvc{n}" not in used)  # as the guest counts
            self.plug(ask, 0, f"hvc{free}", self.stdio[0])
            self.devices = [f"hvc{free}"] * 3
        packed = "-" if self.packed is None else self.plug(ask, 3, "in-packed", self.packed)
        self.devices.insert(0, packed)
        self.plug(ask, 4, "talk", self.down, self.up)
        for descriptor in (*self.stdio, self.down, self.up):
            os.close(descriptor)

    def port(self, place):
        return 2 + 5 * self.slot + place

    def plug(self, ask, place, name, source, sink=None):
        """Plug in one port for a descriptor, or for two; its device in the machine."""
        sink = source if sink is None else sink
        if os.fstat(source).st_rdev == os.makedev(1, 3):
            return "/dev/null"
        label, data = f"slot{self.slot}.{name}", {"out": os.devnull, "append": True}
        if name not in ("out", "err"):
            data["in"] = self.path(ask, source, os.O_RDONLY)
        if not name.startswith("in"):
            data["out"] = self.path(ask, sink, os.O_WRONLY)
        flags = fcntl.fcntl(sink, fcntl.F_GETFL)
        ask("chardev-add", id=label, backend={"type": "file", "data": data})
        fcntl.fcntl(sink, fcntl.F_SETFL, flags)  # QEMU has changed them for all that share it
        driver = "virtconsole" if name.startswith("hvc") else "virtserialport"
        sign = f"{os.getpid()}.{label}"  # tells it from one that had this number before
        ask("device_add", driver=driver, id=label, chardev=label, nr=self.port(place), name=sign)
        return f"/dev/vport0p{self.port(place)}"

    def path(self, ask, descriptor, way):
        """By what path QEMU opens a descriptor of ours.

        A file is passed to it, for others may go on where the process stops. All else is opened
        anew: what they share with QEMU would not block any more.
        """
        same = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == way
        if same and stat.S_ISREG(os.fstat(descriptor).st_mode):
            return f"/dev/fdset/{ask('add-fd', descriptor)['fdset-id']}"
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        if way == os.O_WRONLY:  # without a reader it can't be opened, and QEMU would wait for one
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
        return path

    def labels(self, ask):
        labels = [one["label"] for one in ask("query-chardev")]
        return [label for label in labels if label.startswith(f"slot{self.slot}.")]

    def clear(self, ask):
        """Remove what the last owner of this slot has left, which may have been killed."""
        labels, deadline = self.labels(ask), time.monotonic() + 5
        for label in labels:
            with contextlib.suppress(Refused):  # there is no such device, any more or yet
                ask("device_del", id=label)
        while labels:
            try:
                ask("chardev-remove", id=labels[-1])
                labels.pop()
            except Refused:  # QEMU takes up to 50 ms to let go of a device
                need(time.monotonic() < deadline, "a port can't be unplugged")
                time.sleep(0.001)

    def begin(self, name, script):
        """Have the machine's shell run `script` in the container `name`, up to its `become`.

        A machine in which the ports have been from its beginning boots first.
        """
        with qemu(self.machine) as ask:
            new = self.devices is not None
            if new:
                ask("cont")
            else:
                need(ask("query-status")["running"], "the machine stands still")
                self.plug_in(ask)
            agent = os.open(f"../{self.machine}/agent", os.O_WRONLY | os.O_NONBLOCK)
            os.write(agent, f"{self.port(4)} {os.getpid()}.slot{self.slot}.talk\n".encode())
            os.close(agent)
            self.tell(name, *self.devices, script)
            need(new or self.hear(soon())[0] == "here", "the machine has ended")
        self.begun = True
        self.tell_size()

    def tell(self, *words):
        try:
            os.write(self.orders, " ".join(map(str, words)).encode() + b"\n")
        except BrokenPipeError:
            pass  # the machine has ended: `hear` says so

    def tell_size(self):
        if self.begun and self.terminal is not None:
            size = fcntl.ioctl(self.terminal, termios.TIOCGWINSZ, bytes(8))
            rows, columns, *_ = struct.unpack("4H", size)
            if rows and columns:
                self.tell("size", rows, columns)

    def pass_on(self):
        """From now on, pass on the signals that come to the holder, and its terminal's size."""

        def on_signal(number, _):
            self.tell("signal", number) if self.begun else os._exit(128 + number)

        for number in FORWARDED:
            signal.signal(number, on_signal)
        signal.signal(signal.SIGWINCH, lambda *_: self.tell_size())

    def hear(self, limit=None):
        """What is said next of this process, as (word, rest); "" when the machine has ended.

        `limit()` is the moment up to which to wait. Raises Refused when it has come.
        """
        while b"\n" not in self.heard:
            left = max(0, limit() - time.monotonic()) if limit else None
            if select.select([self.reports], [], [], left)[0]:
                said = os.read(self.reports, 4096)
                if not said:
                    return "", ""
                self.heard += said
            elif time.monotonic() >= limit():
                words = last_words(self.machine)
                raise Refused(f"the machine has said nothing in {BOOT} s: {words}")
        line, _, self.heard = self.heard.partition(b"\n")
        word, _, rest = line.decode().partition(" ")
        return word, rest

    def follow(self, ready, limit=None):
        """Until the process ends: its exit status. `ready()` is called when it is its program.

        Raises Refused when it can't be, or when the machine ends or reaches the limit before.
        """
        begun = False
        while True:
            word, rest = self.hear(None if begun else limit)
            if word == "ready":
                begun = True
                ready()
            elif word == "exit" or (begun and not word):
                return int(rest or 137)
            elif word in ("failed", ""):
                what = f"can't become this container: {rest}" if word else "ended"
                raise Refused(f"the machine {what}: {last_words(self.machine)}")

    def drain(self):
        """Wait until all that the process wrote has come out of the machine."""
        query = {"path": "/machine/peripheral/ports/virtio-backend"}
        queues = [2 * self.port(place) + 3 for place in range(3)]
        while True:
            with qemu(self.machine) as ask:
                found = [ask("x-query-virtio-queue-status", queue=n, **query) for n in queues]
                if ask("query-status")["running"] and not any(one["inuse"] for one in found):
                    return
            time.sleep(0.005)

    def close(self):
        """Have QEMU give up our descriptors, and leave the slot to others."""
        self.drain()
        with qemu(self.machine) as ask:
            talk = f"slot{self.slot}.talk"
            for label in set(self.labels(ask)) - {talk}:
                ask("chardev-change", id=label, backend={"type": "null", "data": {}})
                ask("device_del", id=label)
            self.tell("leave")
            self.hear(soon())
            ask("device_del", id=talk)


def soon():
    """A limit for `Process.hear`."""
    moment = time.monotonic() + BOOT
    return lambda: moment


def booted(pid):
    """The limit for a QEMU that boots: later when it could run, and others had the processors."""
    began = time.monotonic()

    def limit():
        waited = 0  # nanoseconds; see proc(5)
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat") as file:
                waited += int(file.read().split()[1])
        return began + BOOT + min(waited / 1e9, 5 * BOOT)

    return limit
