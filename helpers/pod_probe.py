"""Run in a member of a pod, by pod_widget.py: `offer` puts out five things to share, `find` looks who sees them.

Speaks JSON. `offer TOKEN` prints what it offers, and holds it until its standard input ends; `find` reads that from
its standard input, and prints which of it is to be found. Standard library only.
"""

import ctypes
import json
import os
import select
import socket
import sys

NAME = "named-by-a"
LIBC = ctypes.CDLL(None, use_errno=True)
CREATE, REMOVE = 0o1600, 0  # IPC_CREAT and the mode; IPC_RMID. See also: shmget(2)


def inodes():
    """What proves it: the number of each namespace, and of the file system at /dev/shm."""
    links = {kind: os.readlink(f"/proc/self/ns/{kind}").strip(f"{kind}:[]") for kind in ("net", "uts", "ipc", "pid")}
    return {**links, "shm": str(os.stat("/dev/shm").st_dev)}


def offer(token):
    file, key = f"/dev/shm/{token}", int(token[:7], 16)
    before = socket.gethostname()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        segment = LIBC.shmget(key, 4096, CREATE)
        try:
            socket.sethostname(NAME)
            with open(file, "w") as page:
                page.write(token)
            offered = {"token": token, "port": server.getsockname()[1], "key": key, "inodes": inodes()}
            print(json.dumps(offered), flush=True)
            while True:
                ready, _, _ = select.select([server, sys.stdin], [], [])
                if sys.stdin in ready:
                    break
                with server.accept()[0] as connection:
                    connection.sendall(token.encode())
        finally:
            LIBC.shmctl(segment, REMOVE, None)
            socket.sethostname(before)
            if os.path.exists(file):
                os.unlink(file)


def find(offered):
    found = {
        "net": reaches(offered["port"], offered["token"]),
        "uts": socket.gethostname() == NAME,
        "ipc": LIBC.shmget(offered["key"], 0, 0) >= 0,
        "pid": any(offered["token"] in line for line in command_lines()),
        "shm": os.path.exists(f"/dev/shm/{offered['token']}"),
    }
    print(json.dumps({"found": found, "inodes": inodes()}))


def reaches(port, token):
    """Whether whoever listens on this port of localhost says the token."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            return connection.recv(100).decode() == token
    except OSError:
        return False


def command_lines():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                yield file.read()
        except OSError:
            continue


if __name__ == "__main__":
    offer(sys.argv[2]) if sys.argv[1] == "offer" else find(json.load(sys.stdin))
