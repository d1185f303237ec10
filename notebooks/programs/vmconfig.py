"""What config.json asks for: read and checked, and then as steps for vmagent's shell.

See also: config.md and config-linux.md of the OCI Runtime Specification.
"""

import contextlib
import fcntl
import json
import os
import re
import stat

#: The kinds of namespaces, each with its bit in clone(2).
SPACES = {"mount": 17, "cgroup": 25, "uts": 26, "ipc": 27, "user": 28, "pid": 29, "network": 30}
SPACES["time"] = 7
#: Mount options that are about namespaces, and about what an engine has done before.
FOREIGN = re.compile(r"r?(private|shared|slave|unbindable|bind)|tmpcopyup|nocopy|[zZU]")
#: The annotations that say what is a member of a pod, and of which: containerd's, and CRI-O's.
#: Podman has the latter, too; since its version 5 members have the second alone, a sandbox none.
PODS = {
    "io.kubernetes.cri.container-type": "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.ContainerType": "io.kubernetes.cri-o.SandboxID",
}

SMALL = 1 << 14  # bytes of files that are brought once more, in all: they go through a pipe

# What the file must look like. A form is a pattern, a range, bool, [form] or {"name": form};
# "name!" must be there.
TEXT, PATH, ID = r"[^\0\ud800-\udfff]*", r"/[^\0\ud800-\udfff]*", range(2**32 - 1)
LIMITS = (
    "RLIMIT_(CPU|FSIZE|DATA|STACK|CORE|RSS|NPROC|NOFILE|MEMLOCK|AS|LOCKS|SIGPENDING|MSGQUEUE|NICE"
    "|RTPRIO)"
)
PROCESS = {
    "args!": [TEXT], "cwd!": PATH, "env": [f"[^=\0]+={TEXT}"],
    "user": {"uid": ID, "gid": ID, "umask": range(0o1000), "additionalGids": [ID]},
    "terminal": bool, "consoleSize": {"height": range(2**16), "width": range(2**16)},
    "rlimits": [{"type!": LIMITS, "soft!": range(2**64), "hard!": range(2**64)}],
    "noNewPrivileges": bool, "oomScoreAdj": range(-1000, 1001),
}  # fmt: skip
HOOK = {"path!": PATH, "args": [TEXT], "env": [TEXT], "timeout": range(1, 2**31)}
HOOKS = (
    *("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"),
)
DEVICE = {
    "path!": f"/dev{PATH}", "type!": "[cbup]", "major": range(4096), "minor": range(2**20),
    "fileMode": range(2**32),
}  # fmt: skip
CONFIG = {
    "ociVersion!": r"1\.\d+\.\d+.*", "process!": PROCESS,
    "root!": {"path!": TEXT, "readonly": bool}, "hostname": r"[\w.-]{0,64}",
    "mounts": [{"destination!": TEXT, "type": TEXT, "source": TEXT, "options": [TEXT]}],
    "hooks": {kind: [HOOK] for kind in HOOKS}, "annotations": {"*": TEXT},
    "linux": {
        "namespaces": [{"type!": "|".join(SPACES), "path": PATH}], "devices": [DEVICE],
        "sysctl": {"*": TEXT}, "resources": {"memory": {"limit": range(-1, 2**63)}},
        "maskedPaths": [PATH], "readonlyPaths": [PATH],
    },
}  # fmt: skip


class Refused(Exception):
    """What was asked for can't be done; the message says why in one sentence."""


def need(condition, sentence):
    if not condition:
        raise Refused(sentence)


# ---- read and checked


def conform(value, form, where):
    """`value` without what its form doesn't name, and with an empty list or object for each that
    is missing. Raises Refused when it has another form.
    """
    kind = {str: str, range: int, type: bool}.get(type(form), type(form))
    given = str(value)[:50]
    need(type(value) is kind, f"{where} must be of the type {kind.__name__}, and is {given!r}")
    if kind is list:
        return [conform(item, form[0], f"{where}[{number}]") for number, item in enumerate(value)]
    if kind is dict:
        forms, found = {key: form["*"] for key in value} if "*" in form else form, {}
        for name, inner in forms.items():
            key, empty = name.removesuffix("!"), type(inner) in (list, dict) and name[-1] != "!"
            item = value.get(key)
            need(item is not None or key == name, f"{where} lacks {key}")
            if item is not None or empty:
                item = type(inner)() if item is None else item
                found[key] = conform(item, inner, f"{where}.{key}")
        return found
    fits = kind is bool or (value in form if kind is int else re.fullmatch(form, value, re.S))
    need(fits, f"{where} can't be {given!r}")
    return value


def read(path, form, name):
    """What the JSON file `path` holds, as `conform` returns it."""
    try:
        with open(path, encoding="utf-8") as file:
            found = conform(json.load(file), form, name)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{name} is not JSON: {error}") from None
    process = found.get("process", found)
    need(process["args"] and process["args"][0], f"{name}: process.args must name a program")
    kinds = {limit["type"] for limit in process["rlimits"] if limit["soft"] <= limit["hard"]}
    twice = f"{name}: process.rlimits has a type twice, or soft above hard"
    need(len(kinds) == len(process["rlimits"]), twice)
    return found


def load(bundle):
    """The bundle's configuration, checked so far that a machine can be made of it."""
    config = read(os.path.join(bundle, "config.json"), CONFIG, "config.json")
    root = config["root"]["path"] = os.path.join(bundle, config["root"]["path"])
    need(os.path.isdir(root), f"root.path is no directory: {root}")
    for mount in config["mounts"]:
        mount["destination"] = place = inside(root, mount["destination"])
        bind = mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount["options"]))
        source = os.path.join(bundle if bind else "", mount.get("source") or "none")
        mount |= {"bind": bind, "source": source}
        need(not bind or os.path.exists(source), f"there is nothing to mount: {source}")
        need(bind or mount.get("type"), f"the mount {place} has no type")
    for name in config["linux"]["sysctl"]:
        known = re.fullmatch(r"\w[\w.-]*", name, re.A) and ".." not in name
        need(known, f"linux.sysctl: there is no {name!r}")
    spaces = config["linux"]["namespaces"]
    need(len({one["type"] for one in spaces}) == len(spaces), "a namespace is listed twice")
    for one in spaces:
        if "path" in one:
            with open(one["path"]) as file:
                kind = fcntl.ioctl(file, 0xB703)  # NS_GET_NSTYPE
            need(kind == 1 << SPACES[one["type"]], f"{one['path']} is no {one['type']} namespace")
    find_program(config, root)
    return config


def inside(root, path, links=0):
    """`path` with its symbolic links resolved as the container sees them: as if `root` were /."""
    found = "/"
    for part in path.split("/"):
        found = os.path.normpath(os.path.join(found, part))
        if links < 40 and os.path.islink(root + found):
            links += 1
            target = os.path.join(os.path.dirname(found), os.readlink(root + found))
            found = inside(root, target, links)
    return found


def find_program(config, root):
    """Raise Refused when args[0] is no program there, in the words that engines look for."""
    name, cwd = config["process"]["args"][0], config["process"]["cwd"]
    search = [entry[5:] for entry in config["process"]["env"] if entry.startswith("PATH=")]
    folders = [cwd] if "/" in name else [*search, "/bin:/usr/bin"][0].split(":")
    trouble = "no such file or directory" if "/" in name else "executable file not found in $PATH"
    mounted = [mount["destination"].rstrip("/") + "/" for mount in config["mounts"]]
    for folder in folders:
        path = inside(root, os.path.join("/", folder, name))
        if f"{path}/".startswith(tuple(mounted)):
            return  # in a file system that is there only in the machine
        if os.path.exists(root + path):
            trouble = "permission denied"
            if os.path.isfile(root + path) and os.stat(root + path).st_mode & 0o111:
                return
    raise Refused(f"exec: {json.dumps(name)}: {trouble}")


def sandbox(config):
    """The ID of the container whose machine this one is to share; None if it has one of its own."""
    notes = config["annotations"]
    for kind, which in PODS.items():
        if notes.get(kind, "container" if which in notes else None) == "container":
            name = notes.get(which, "")
            fits = re.fullmatch(r"[\w+.-]+", name) and name.strip(".")
            need(fits, f"the annotation {which} names no sandbox")
            return name
    return None


# ---- as steps: a list of words each, of which the first is a function of vmagent, or a program


def quoted(steps):
    """Each step as a line that the shell reads."""
    for words in steps:
        words = [str(word).replace("'", "'\\''").replace("\n", "'$'\\n''") for word in words]
        yield " ".join(f"'{word}'" for word in words)


def steps_of_process(process, name, root):
    """The steps by which a process in the container `name` becomes its program."""
    user, home, cwd = process["user"], f"/containers/{name}", inside(root, process["cwd"])
    uid, gid, groups = user.get("uid", 0), user.get("gid", 0), user["additionalGids"]
    size = process["consoleSize"] if process.get("terminal") else {}
    steps = [["umask", f"{user.get('umask', 0o22):o}"]]
    for limit in process["rlimits"]:
        values = ["unlimited" if limit[k] > 2**62 else limit[k] for k in ("hard", "soft")]
        steps.append(["limited", limit["type"].removeprefix("RLIMIT_"), *values])
    if "oomScoreAdj" in process:
        steps.append(["written", process["oomScoreAdj"], "/proc/self/oom_score_adj"])
    if size.get("height") and size.get("width"):  # engines that don't know say 0
        steps.append(["sized", size["height"], size["width"]])
    become = ["become", cwd, f"HOME=/{'' if uid else 'root'}", *process["env"]]
    become += ["/bin/setpriv", "--nnp"] if process.get("noNewPrivileges") else []
    if groups:  # busybox sets groups only by the names of root's, and to become root
        steps.append(["written", "\n".join(f"g{one}:x:{one}:root" for one in groups), "/etc/group"])
        become += ["/bin/start-stop-daemon", "-Sp/none", "-a/bin/nsenter", f"-c0:{gid}", "--"]
    else:
        become += ["/bin/nsenter", f"-G{gid}"]
    return [*steps, [*become, f"-r{home}", f"-w{home}{cwd}", f"-S{uid}", "--", *process["args"]]]


def steps_of_container(config, name):
    """The steps by which a process in new namespaces makes the container, and is its first one."""
    root, linux, home = config["root"], config["linux"], f"/containers/{name}"
    steps = []
    if config.get("hostname") and not sandbox(config):
        steps.append(["written", config["hostname"], "/proc/sys/kernel/hostname"])
    if root.get("readonly"):
        steps.append(["mount", "--bind", home, home])
    for number, mount in enumerate(config["mounts"]):
        options = [option for option in mount["options"] if not FOREIGN.fullmatch(option)]
        what = [{"cgroup": "cgroup2"}.get(mount.get("type"), mount.get("type")), mount["source"]]
        if mount["bind"]:
            options, what = ["bind", *options], ["none", f"/binds/{name}.{number}"]
        steps.append(["mounted", *what, mount["destination"], ",".join(options) or "rw"])
    steps.append(["devices"])
    for one in linux["devices"]:
        numbers = [] if one["type"] == "p" else [one.get("major", 0), one.get("minor", 0)]
        mode = f"{one.get('fileMode', 0o666) & 0o7777:o}"
        steps.append(["device", one["path"], mode, one["type"], *numbers])
    if root.get("readonly"):
        steps.append(["mount", "-o", "remount,bind,ro", home])
    for key, value in linux["sysctl"].items():
        steps.append(["written", value, f"/proc/sys/{key.replace('.', '/')}"])
    for step, paths in (("masked", linux["maskedPaths"]), ("guarded", linux["readonlyPaths"])):
        if paths:
            steps.append([step, *(inside(root["path"], path) for path in paths)])
    state = json.dumps({"ociVersion": config["ociVersion"], "id": name, "status": "created"})
    for hook in config["hooks"]["startContainer"]:
        enter = ["/bin/nsenter", f"-r{home}", f"-w{home}", "--", hook["path"], *hook["args"][1:]]
        steps.append(["hooked", state, *hook["env"], *enter])
    return [*steps, *steps_of_process(config["process"], name, root["path"])]


def renewed(config, name, since):
    """The steps that bring small text files once more, if they are to be mounted and have changed
    `since` (nanoseconds). Podman 5 writes a container's /etc/hosts between `create` and `start`.
    """
    left = SMALL
    for number, mount in enumerate(config["mounts"]):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found = os.stat(mount["source"])
            small = stat.S_ISREG(found.st_mode) and found.st_size <= left
            if mount["bind"] and small and found.st_mtime_ns >= since:
                with open(mount["source"], encoding="utf-8", newline="") as file:
                    text = file.read()
                if "\0" not in text:
                    left -= found.st_size
                    yield ["renewed", text, f"/binds/{name}.{number}"]
