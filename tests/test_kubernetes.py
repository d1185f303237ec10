"""What workshop/ asks of a cluster, tried without one: a lab in a container with those very settings.

The container is made by runc as a kubelet's runtime would make the learner's pod: in a user namespace (hostUsers:
false), with nothing of /proc covered (procMount: Unmasked), with the seccomp profile, the capabilities and the user
that the pod has. Its root file system is this machine's, with a layer of its own above it.
"""

import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import textwrap
from pathlib import Path

import pytest
import yaml
from conftest import CHECKOUT, EXCUSE, copy_checkout

from helpers import machine

HERE = CHECKOUT / "workshop"
FIRST, COUNT = 1_700_000_000, 65536  # the pod's user IDs on the machine
CAPABILITIES = [f"CAP_{name}" for name in (  # what containerd gives, of which a user other than root has none at hand
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE")]  # fmt: skip
PROGRAM = """
import json, os
from helpers import bundles
from helpers.lab import start_lab
lab = start_lab()
bundles.make(lab, "hello", ["sh", "-c", "echo I am process $$"])
said = lab.run(["runc", "run", "--bundle", "hello", "hello"], echo=False).stdout
print(json.dumps({"uid": os.getuid(), "way": lab.way.name, "said": said, "left": lab.close().left,
                  "map": open("/proc/self/uid_map").read().split()}))
"""


def settings():
    """What values.yaml tells KubeSpawner of the container, as a dictionary."""
    values = yaml.safe_load((HERE / "values.yaml").read_text())
    told = re.search(r"container_security_context = (\{.*?\n\})", values["hub"]["extraConfig"]["lab"], re.S)[1]
    return values, eval(told, {"__builtins__": {}})  # a literal with comments in it


def test_the_values_say_what_a_lab_needs_and_the_page_gives_the_reasons():
    values, context = settings()
    assert values["singleuser"]["extraPodConfig"]["hostUsers"] is False
    assert context == {
        "allowPrivilegeEscalation": True, "procMount": "Unmasked", "appArmorProfile": {"type": "Unconfined"},
        "seccompProfile": {"type": "Localhost", "localhostProfile": "profiles/uncontained.json"},
    }  # fmt: skip
    page = (HERE / "README.md").read_text()
    assert "Untried on a cluster" in page
    for word in ("hostUsers: false", "procMount: Unmasked", "seccompProfile", "appArmorProfile"):
        assert word in page


def test_the_recipe_installs_what_lab_installs():
    recipe = (HERE / "Containerfile").read_text()
    for name in machine.FIRST:
        assert re.search(rf"\b{machine.tool(name).packages['apt']}\b", recipe), name
    copied = re.findall(r"^COPY (?:--\S+ )?(.*) \S+$", recipe, re.M)
    assert all((CHECKOUT / source).exists() for line in copied for source in line.split())


def spec(root, checkout):
    """config.json of the pod's container."""
    _, context = settings()
    kinds = ("mount", "pid", "network", "ipc", "uts", "user", "cgroup")
    fresh = [
        ("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"]), ("/sys", "sysfs", "sysfs", ["nosuid", "nodev", "ro"]),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "mode=755"]), ("/tmp", "tmpfs", "tmpfs", ["mode=1777"]),
        ("/dev/pts", "devpts", "devpts", ["newinstance", "ptmxmode=0666", "mode=0620"]),
        ("/run", "tmpfs", "tmpfs", ["mode=755"]), ("/sys/fs/cgroup", "cgroup", "cgroup", ["nosuid", "nodev", "ro"]),
    ]  # fmt: skip
    assert context["procMount"] == "Unmasked"  # so: no maskedPaths, no readonlyPaths
    return {
        "ociVersion": "1.0.2", "hostname": "pod", "root": {"path": str(root)},
        "process": {
            "user": {"uid": 1000, "gid": 1000}, "cwd": "/opt/uncontained",
            "args": ["/usr/bin/python3", "-c", PROGRAM],
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "PYTHONPATH=/opt/uncontained", "HOME=/tmp"],
            "capabilities": {"bounding": CAPABILITIES, "effective": [], "permitted": [], "inheritable": []},
            "noNewPrivileges": not context["allowPrivilegeEscalation"],
        },
        "mounts": [
            *({"destination": to, "type": kind, "source": name, "options": how} for to, kind, name, how in fresh),
            {"destination": "/opt/uncontained", "type": "bind", "source": str(checkout), "options": ["rbind", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in kinds if kind != "cgroup"],
            "uidMappings": [{"containerID": 0, "hostID": FIRST, "size": COUNT}],
            "gidMappings": [{"containerID": 0, "hostID": FIRST, "size": COUNT}],
            "cgroupsPath": "/uncontained-pod-test",
            "seccomp": json.loads((HERE / "seccomp.json").read_text()),
        },
    }  # fmt: skip


def grant(path, capability):
    """What setcap does in the image, for the root of the pod's user namespace alone. See capabilities(7)."""
    bit = 1 << {"cap_setgid": 6, "cap_setuid": 7}[capability]
    value = struct.pack("<IIIIII", 0x03000001, bit, 0, 0, 0, FIRST)  # revision 3, effective; permitted; the root's ID
    os.setxattr(path, "security.capability", value)


@pytest.fixture
def place():
    """A directory that the pod's root, who is nobody here, can walk into."""
    made = Path(tempfile.mkdtemp(prefix="pod-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def tree(place):
    """A root file system: this machine's, with a layer of its own in which the recipe's user is."""
    if os.getuid() != 0:
        pytest.skip("only root can make the container of a pod")
    top = place / "tree"
    top.mkdir()
    mounts = [["mount", "-t", "tmpfs", "-o", "mode=755", "tree", str(top)],
              ["mkdir", "-p", f"{top}/over/etc", f"{top}/over/opt/uncontained", f"{top}/work", f"{top}/root"],
              ["mount", "-t", "overlay", "-o", f"lowerdir=/,upperdir={top}/over,workdir={top}/work", "tree",
               f"{top}/root"]]  # fmt: skip
    for name, line in (("passwd", "learner:x:1000:1000::/tmp:/bin/bash\n"), ("group", "learner:x:1000:\n"),
                       ("subuid", "learner:10000:50000\n"), ("subgid", "learner:10000:50000\n")):  # fmt: skip
        (place / name).write_text("root:x:0:0::/root:/bin/sh\n" * (name in ("passwd", "group")) + line)
    try:
        for argv in mounts:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
            if done.returncode:
                pytest.skip(f"{EXCUSE}lay one file system over another ({done.stderr.strip()})")
        for name, capability in (("newuidmap", "cap_setuid"), ("newgidmap", "cap_setgid")):
            assert f"setcap {capability}=ep /usr/bin/{name}" in (HERE / "Containerfile").read_text()
            inside = top / "root" / Path(shutil.which(name)).relative_to("/")
            inside.chmod(0o755)
            grant(inside, capability)
        yield top / "root", place
    finally:
        for mounted in (top / "root", top):
            subprocess.run(["umount", "--lazy", str(mounted)], capture_output=True, timeout=20)


def run_pod(tree, config):
    root, place = tree
    bundle = place / "bundle"
    bundle.mkdir(exist_ok=True)
    for name in ("passwd", "group", "subuid", "subgid"):
        config["mounts"].append({"destination": f"/etc/{name}", "type": "bind", "source": str(place / name),
                                 "options": ["bind", "ro"]})  # fmt: skip
    (bundle / "config.json").write_text(json.dumps(config))
    argv = ["runc", "--root", str(place / "state"), "run", "--bundle", str(bundle), "pod-test"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


@pytest.fixture
def checkout(place):
    copy_checkout(place / "course")
    return place / "course"


def test_a_lab_runs_a_container_in_a_pod_with_these_settings(leak_check, tree, checkout):
    done = run_pod(tree, spec(tree[0], checkout))
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["said"], told["left"], told["uid"]) == ("I am process 1\n", [], 1000)
    assert told["map"] == ["0", str(FIRST), str(COUNT)]  # root in the pod is nobody on the machine
    assert told["way"] == "user namespace with subordinate IDs"


@pytest.mark.parametrize("without", ["procMount", "seccompProfile"])
def test_without_one_of_the_settings_there_is_no_lab(without, leak_check, tree, checkout):
    """Otherwise the setting would not be needed, and a cluster should not be asked for it."""
    config = spec(tree[0], checkout)
    if without == "procMount":
        config["linux"]["maskedPaths"] = ["/proc/kcore", "/proc/keys", "/proc/timer_list"]
        config["linux"]["readonlyPaths"] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"]
    else:  # as the runtimes' own profiles have it: no namespaces and no mounts without CAP_SYS_ADMIN
        config["linux"]["seccomp"]["syscalls"].append(
            {"names": ["unshare", "setns", "mount", "umount2", "pivot_root"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
        )
    done = run_pod(tree, config)
    assert done.returncode != 0
    assert "refused every way to make namespaces" in done.stderr, textwrap.shorten(done.stderr, 600)


def test_the_profile_keeps_from_everybody_what_no_lesson_needs():
    profile = json.loads((HERE / "seccomp.json").read_text())
    (refused,) = profile["syscalls"]
    assert {"kexec_load", "init_module", "bpf", "open_by_handle_at", "perf_event_open"} <= set(refused["names"])
    assert not {"unshare", "setns", "mount", "pivot_root", "keyctl", "clone3"} & set(refused["names"])
    assert refused["action"] == "SCMP_ACT_ERRNO" and Path(HERE / "seccomp.json").read_text().endswith("}\n")
