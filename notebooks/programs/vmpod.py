"""A container that comes into the machine of another: the members of a pod, whose sandbox it is.

Engines say in annotations which containers belong together; Kata Containers reads the same ones.
A member has no machine: it is packed as one is, and the agent in the sandbox's machine unpacks it
there. What stays behind on the host is a holder. Its PID is the member's, it passes on what the
runtime is asked, and it ends with the status of the member's process. When it goes, however it
goes, the sandbox's monitor hears it, and the member leaves the machine.
"""

import json
import os
import re
import select
import signal
import socket

from vmmachine import FORWARDED, Refused, detach, last_words, need, tell, write

#: What says that a container is a member, and what says of which sandbox.
KEYS = {
    "io.kubernetes.cri.container-type": "io.kubernetes.cri.sandbox-id",  # containerd's words
    "io.kubernetes.cri-o.ContainerType": "io.kubernetes.cri-o.SandboxID",  # CRI-O's and Podman's
}


def sandbox(annotations):
    """The ID of the container whose machine this one is to share, or None."""
    for kind, which in KEYS.items():
        if annotations.get(kind) == "container":
            name = annotations.get(which, "")
            need(
                re.fullmatch(r"[\w+.-]+", name) and name.strip("."),
                f"the annotation {which} names no sandbox",
            )
            return name
    return None


def ask(pod, verb, *words, descriptors=()):
    """What the sandbox's monitor answers."""
    socket.send_fds(pod, [json.dumps({"do": verb, "words": words}).encode()], descriptors)
    answer = json.loads(pod.recv(1 << 16) or '{"error": "the machine of the pod has ended"}')
    need("error" not in answer, answer.get("error"))
    return answer


def hold(line, state, slave, creator):
    """What the process becomes that `create` leaves behind. Never returns.

    `line` is the guest's shell line that starts the member's process.
    """
    try:
        name, stdio = state["id"], [0, 1, 2] if slave is None else [slave]
        pod = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pod.connect(f"../{state['machine']}/control")
        except OSError as error:
            need(
                False, f"the sandbox {state['machine']} has no machine of vmrun's: {error.strerror}"
            )
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        packed = os.open("initrd", os.O_RDONLY)
        ask(pod, "join", name, descriptors=[packed, os.open(os.devnull, os.O_WRONLY), log])
        taken = json.loads(pod.recv(1 << 16) or '{"exit": 137}')["exit"] == 0
        need(taken, f"the machine of {state['machine']} can't take it in: {last_words()}")
        os.unlink("initrd")
        stdio = [os.dup(descriptor) for descriptor in stdio]
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind("control")
        listener.listen()
        holder = Holder(pod, line, state, stdio)
        detach(slave, lambda *size: holder.pass_on("size", *size))
        for number in FORWARDED:
            signal.signal(number, lambda number, _: holder.pass_on("signal", number))
        tell(creator, {"pid": os.getpid()})
        need(creator.recv(10), "`create` was killed")
        holder.serve(listener)
    except BaseException as error:
        tell(creator, {"error": str(error)})
    finally:
        os._exit(1)


class Holder:
    """Stands for one member, from `create` to its end."""

    def __init__(self, pod, line, state, stdio):
        self.pod, self.line, self.state, self.stdio = pod, line, state | {"pid": os.getpid()}, stdio
        self.number = None  # of its process, as the sandbox's monitor counts

    def pass_on(self, verb, *words):
        """Without waiting for the answer, which says nothing."""
        if self.number is not None:
            self.pod.send(json.dumps({"do": verb, "words": [self.number, *words]}).encode())

    def obey(self, verb, words):
        """Do what a command asks for."""
        need(
            verb in ("start", "signal"),
            f"cannot {verb} one container of a machine: its sandbox is the machine",
        )
        if verb == "start":
            need(self.number is None, "cannot start a container that is running")
            name = self.state["id"]
            self.number = ask(self.pod, "exec", name, self.line, descriptors=self.stdio)["number"]
            for descriptor in self.stdio[3:]:
                os.close(descriptor)
            write("state.json", json.dumps(self.state | {"status": "running"}))
        elif self.number is None:
            os._exit(128 + words[1])
        else:
            self.pass_on("signal", words[1])
        return {}

    def serve(self, listener):
        """Until the member's process or the machine ends."""
        clients = []
        while True:
            ready = select.select([self.pod, listener, *clients], [], [])[0]
            if self.pod in ready:
                heard = json.loads(self.pod.recv(1 << 16) or '{"exit": 137}')
                if "exit" in heard:
                    os._exit(heard["exit"])
            if listener in ready:
                clients.append(listener.accept()[0])
            for client in set(clients) & set(ready):
                message = client.recv(1 << 16)
                if not message:
                    clients.remove(client)
                    continue
                request = json.loads(message)
                try:
                    tell(client, self.obey(request["do"], request["words"]))
                except (Refused, OSError) as error:
                    tell(client, {"error": str(error)})
