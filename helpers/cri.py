"""What a kubelet says to a node: calls of the Container Runtime Interface, by `curl`.

    cri.call(lab, socket, "RunPodSandbox", {"config": {"metadata": {"name": "pod", "uid": "1"}}})

The interface is gRPC: an HTTP/2 POST whose body is a protocol buffer, behind five bytes that say its length.
`FIELDS` names the part of the interface that the lessons use; a request is a dict, and so is the answer.
See also: https://github.com/kubernetes/cri-api (runtime/v1/api.proto), curl(1).
"""

import struct

OPTIONS = """\
silent
show-error
http2-prior-knowledge
header = "content-type: application/grpc"
header = "te: trailers"
dump-header = "cri.headers"
output = "cri.answer"
unix-socket = "SOCKET"
"""
POD, CONTAINER, NODE = 0, 1, 2  # NamespaceMode: whose namespace a container gets

# A message is {field name: (number, kind)}. A kind is str, int, a message, [kind] for a list, or PAIRS for a map.
PAIRS = {"key": (1, str), "value": (2, str)}
_NAMESPACES = {"network": (1, int), "pid": (2, int), "ipc": (3, int)}
_SECURITY = {"namespace_options": (1, _NAMESPACES)}
_POD_NAME = {"name": (1, str), "uid": (2, str), "namespace": (3, str), "attempt": (4, int)}
_LINUX_POD = {"cgroup_parent": (1, str), "security_context": (2, _SECURITY)}
_POD = {"metadata": (1, _POD_NAME), "hostname": (2, str), "linux": (8, _LINUX_POD)}
_NAME = {"name": (1, str), "attempt": (2, int)}
_IMAGE = {"image": (1, str)}
_LIMITS = {"cpu_period": (1, int), "cpu_quota": (2, int), "memory_limit_in_bytes": (4, int)}
_LINUX = {"resources": (1, _LIMITS), "security_context": (2, {"namespace_options": (3, _NAMESPACES)})}
_CONTAINER = {"metadata": (1, _NAME), "image": (2, _IMAGE), "command": (3, [str]), "linux": (15, _LINUX)}
_LISTED = {"id": (1, str), "pod_sandbox_id": (2, str), "metadata": (3, _NAME), "state": (6, int)}
_POD_STATUS = {"id": (1, str), "metadata": (2, _POD_NAME), "state": (3, int), "network": (5, {"ip": (1, str)})}
#: method: (what is asked, what is answered)
FIELDS = {
    "Version": ({"version": (1, str)}, {"version": (1, str), "runtime_name": (2, str), "runtime_version": (3, str)}),
    "RunPodSandbox": ({"config": (1, _POD), "runtime_handler": (2, str)}, {"pod_sandbox_id": (1, str)}),
    "PodSandboxStatus": ({"pod_sandbox_id": (1, str)}, {"status": (1, _POD_STATUS)}),
    "ListPodSandbox": ({}, {"items": (1, [{"id": (1, str), "metadata": (2, _POD_NAME), "state": (3, int)}])}),
    "RemovePodSandbox": ({"pod_sandbox_id": (1, str)}, {}),
    "CreateContainer": (
        {"pod_sandbox_id": (1, str), "config": (2, _CONTAINER), "sandbox_config": (3, _POD)},
        {"container_id": (1, str)},
    ),
    "StartContainer": ({"container_id": (1, str)}, {}),
    "ListContainers": ({}, {"containers": (1, [_LISTED])}),
    "ContainerStatus": (
        {"container_id": (1, str), "verbose": (2, int)},
        {"status": (1, {"id": (1, str), "state": (3, int)}), "info": (2, [PAIRS])},
    ),
    "ExecSync": (
        {"container_id": (1, str), "cmd": (2, [str]), "timeout": (3, int)},
        {"stdout": (1, str), "stderr": (2, str), "exit_code": (3, int)},
    ),
}


class CallFailed(ValueError):
    """The node refused. The message is its own."""


def call(lab, socket, method, request=None, echo=True):
    """Ask the node for one thing, and return its answer as a dict. Raises CallFailed; LookupError: no such method."""
    asked, answered = FIELDS[method]
    body = encode(request or {}, asked)
    lab.path("cri.options").write_text(OPTIONS.replace("SOCKET", socket))
    lab.path("cri.request").write_bytes(b"\0" + struct.pack(">I", len(body)) + body)
    url = f"http://node/runtime.v1.RuntimeService/{method}"
    lab.run(["curl", "--config", "cri.options", "--data-binary", "@cri.request", url], echo=echo, timeout=60)
    said = dict(
        line.split(": ", 1) for line in lab.path("cri.headers").read_text().splitlines() if ": " in line
    )  # the trailers, which carry the outcome, are in this file too
    if said.get("grpc-status") != "0":
        raise CallFailed(said.get("grpc-message") or f"no outcome in {said}")
    return decode(lab.path("cri.answer").read_bytes()[5:], answered)


def encode(values, fields):
    """A dict as a protocol buffer. Raises LookupError for a name that the message hasn't got."""
    return b"".join(_field(*fields[name], value) for name, value in values.items())


def _field(number, kind, value):
    if isinstance(kind, list):
        return b"".join(_field(number, kind[0], one) for one in value)
    if kind is int:
        return _varint(number << 3) + _varint(value)
    data = value.encode() if kind is str else encode(value, kind)
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number):
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    number &= (1 << 64) - 1
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes(found + bytes([number]))


def decode(data, fields):
    """A protocol buffer as a dict. What `fields` doesn't name is left out. Raises CallFailed for a broken one."""
    names = {number: (name, kind) for name, (number, kind) in fields.items()}
    found, position = {}, 0
    while position < len(data):
        key, position = _read_varint(data, position)
        value, position = _read_value(data, position, key & 7)
        name, kind = names.get(key >> 3, (None, None))
        if name is None:
            continue
        if isinstance(kind, list):
            found.setdefault(name, []).append(_as(kind[0], value))
        else:
            found[name] = _as(kind, value)
    return found


def _as(kind, value):
    if kind is int:
        return value
    return value.decode(errors="replace") if kind is str else decode(value, kind)


def _read_varint(data, position):
    number = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise CallFailed("the answer ends in the middle of a number")
        byte = data[position]
        number |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return number, position


def _read_value(data, position, wire):
    if wire == 0:
        return _read_varint(data, position)
    if wire in (1, 5):  # numbers of fixed size: none of ours
        size = 8 if wire == 1 else 4
    elif wire == 2:
        size, position = _read_varint(data, position)
    else:
        raise CallFailed(f"the answer has a field of wire type {wire}")
    if position + size > len(data):
        raise CallFailed("the answer ends in the middle of a field")
    return data[position : position + size], position + size
