"""What this machine has and allows: tools, ways to make a lab, cgroups, engines. Reads only, changes nothing.

Standard library only, so that `./lab doctor` runs before anything is installed.
"""

import os
import platform
import pwd
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from helpers import cgroups


@dataclass(frozen=True)
class Way:
    """One way to start a lab: a command prefix that ends in `unshare`, and what mends it where it is refused."""

    name: str
    prefix: tuple
    mend: str


@dataclass(frozen=True)
class Tool:
    """A program that the lessons use. `packages` maps a package manager to the package that brings it."""

    name: str
    purpose: str
    packages: dict
    needed: bool = False
    version_option: str = "--version"


def _packages(name, **others):
    """The package's name by package manager: `name`, but where `others` says differently."""
    return {**dict.fromkeys(("apt", "dnf", "pacman", "zypper", "apk"), name), **others}


_MACHINE = {"arm64": "aarch64"}.get(platform.machine(), platform.machine())
QEMU = f"qemu-system-{_MACHINE}"
_QEMU_PACKAGE = "qemu-system-x86" if _MACHINE == "x86_64" else "qemu-system-arm"

TOOLS = (
    Tool("unshare", "makes the lab's namespaces", _packages("util-linux"), needed=True),
    Tool("nsenter", "joins them", _packages("util-linux"), needed=True),
    Tool("ip", "network interfaces and addresses", _packages("iproute2", dnf="iproute"), True, "-V"),
    Tool("runc", "the runtime that the course takes apart", _packages("runc"), needed=True),
    Tool("dot", "draws the pictures", _packages("graphviz"), True, "-V"),
    Tool("busybox", "a whole small userland in one file", _packages("busybox", apt="busybox-static"), False, "--help"),
    Tool("newuidmap", "more than one user in the lab",
         _packages("shadow", apt="uidmap", dnf="shadow-utils", apk="shadow-uidmap"), False, ""),
    Tool("crun", "a second OCI runtime", _packages("crun")),
    Tool("podman", "an engine without a daemon", _packages("podman")),
    Tool("conmon", "Podman's shim", _packages("conmon")),
    Tool("catatonit", "Podman's pause", _packages("catatonit")),
    Tool("dockerd", "the Docker engine", _packages("docker", apt="docker.io", dnf="moby-engine")),
    Tool("containerd", "what Docker and Kubernetes stand on", _packages("containerd")),
    Tool("curl", "speaks to containerd in lesson 06", _packages("curl")),
    Tool("skopeo", "copies and inspects images", _packages("skopeo")),
    Tool("linux.uml", "a Linux kernel that is a program", _packages("user-mode-linux")),
    Tool(QEMU, "virtual machines", _packages("qemu", apt=_QEMU_PACKAGE, dnf="qemu-kvm", pacman="qemu-base")),
)  # fmt: skip

#: What `./lab` installs: the lessons 00 to 03 need no more. The rest is for later lessons, and named where it is used.
FIRST = ("unshare", "nsenter", "ip", "runc", "dot", "busybox", "newuidmap")


def tool(name):
    """The `Tool` with this name. Raises LookupError."""
    for one in TOOLS:
        if one.name == name:
            return one
    raise LookupError(f"the course knows no tool called {name}")


def missing(names=FIRST):
    """The tools among `names` that are not here."""
    return [tool(name) for name in names if not find(name)]


def find(name):
    """The path of a program, also where an ordinary user's PATH leaves out the sbin directories; or None."""
    return shutil.which(name, path=os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin")


def ask(argv, timeout=10):
    """What a command prints, or "" when it is missing, fails or is too slow."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=timeout, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def version(tool):
    """The version number of a tool that is here, as text; "" when it has none to tell."""
    if not tool.version_option:
        return ""
    found = re.search(r"\d+\.\d[\w.+~-]*", ask([find(tool.name), tool.version_option]))
    return found[0] if found else ""


def distribution():
    """(name, package manager): such as ("Debian GNU/Linux 12 (bookworm)", "apt"); manager "" when unknown."""
    try:
        fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.M))
    except OSError:
        fields = {}
    managers = {"apt-get": "apt", "dnf": "dnf", "pacman": "pacman", "zypper": "zypper", "apk": "apk"}
    manager = next((short for program, short in managers.items() if find(program)), "")
    return fields.get("PRETTY_NAME", "an unknown distribution"), manager


def install_command(tools):
    """What to type to get these tools here, as text."""
    _, manager = distribution()
    packages = " ".join(sorted({tool.packages.get(manager, tool.packages["apt"]) for tool in tools}))
    verbs = {
        "apt": "apt-get install",
        "dnf": "dnf install",
        "pacman": "pacman -S",
        "zypper": "zypper install",
        "apk": "apk add",
    }
    if manager not in verbs:
        return f"install: {packages}"
    return f"{'' if os.getuid() == 0 else 'sudo '}{verbs[manager]} {packages}"


def has_subordinate_ids(path="/etc/subuid"):
    """True when this user has a range of further user IDs to map. See also: subuid(5)."""
    user = pwd.getpwuid(os.getuid())
    owners = {user.pw_name, str(user.pw_uid)}
    try:
        return any(line.split(":")[0] in owners for line in Path(path).read_text().splitlines())
    except OSError:
        return False


def ways():
    """The ways to start a lab, in the order to try them. Nothing here asks for a password."""
    if os.getuid() == 0:
        mend = (
            "Root is not enough here: a container around us withholds CAP_SYS_ADMIN; "
            "run it on the machine itself or with --privileged"
        )
        return [Way("root", ("unshare",), mend)]
    found = []
    unshare = ("unshare", "--user", "--map-root-user")
    scope = delegated_scope()
    if find("newuidmap") and has_subordinate_ids():
        mend = "Check /etc/subuid and /etc/subgid"
        found += [Way("user namespace with subordinate IDs", (*unshare, "--map-auto"), mend)]
    found += [Way("user namespace", unshare, userns_mend())]
    if find("podman"):
        found += [Way("podman unshare", ("podman", "unshare", "unshare"), "`podman unshare true` tells more")]
    if find("sudo"):
        # sudo lends only the right to make a user namespace; the lab is this user's own all the same.
        lend = ("setpriv", f"--reuid={os.getuid()}", f"--regid={os.getgid()}", "--init-groups",
                "--inh-caps=+sys_admin", "--ambient-caps=+sys_admin")  # fmt: skip
        found += [Way("sudo", ("sudo", "-n", *lend, *unshare), "Run `sudo true` in a terminal first, then try again")]
    if scope:
        found = [Way(f"{way.name}, limits by systemd", (*scope, *way.prefix), way.mend) for way in found] + found
    return found


#: Moves itself out of the scope's own cgroup, which may hold no process once it hands controllers down.
_LEAVE_SCOPE = (
    "d=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup); "
    'mkdir "$d/starter" && echo $$ > "$d/starter/cgroup.procs" && exec "$@"'
)


def delegated_scope():
    """The prefix that starts a command in a cgroup of this user's own, by systemd; () where there is none."""
    if cgroups.mode() != "v2" or not find("systemd-run"):
        return ()
    if not Path(f"/run/user/{os.getuid()}/systemd/private").exists():
        return ()
    return ("env", f"XDG_RUNTIME_DIR=/run/user/{os.getuid()}", "systemd-run", "--user", "--scope", "--quiet",
            "--property=Delegate=yes", "sh", "-c", _LEAVE_SCOPE, "sh")  # fmt: skip


def userns_mend():
    """Why an ordinary user might be refused a user namespace here, and what an administrator would change."""
    def setting(path):
        try:
            return Path("/proc/sys", path).read_text().strip()
        except OSError:
            return ""

    if setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor restricts user namespaces here: "
            "`sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0` lifts it until the next boot"
        )
    if setting("kernel/unprivileged_userns_clone") == "0":
        return "`sudo sysctl kernel.unprivileged_userns_clone=1` allows it until the next boot"
    if setting("user/max_user_namespaces") == "0":
        return "`sudo sysctl user.max_user_namespaces=10000` allows it until the next boot"
    return "A container around us may forbid user namespaces (seccomp): run it on the machine itself"
