"""PID 1 of the room. Runs as `python -m helpers.workshop.room CONFIG` in the room's new namespaces.

Standard input is the lifeline: a socket whose other end the keeper holds. At end-of-file the room ends, and the
kernel with it all that is in it. What happens is reported on the lifeline, one JSON object a line.
"""

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

from helpers import cgroups, init
from helpers.workshop import places, plan


def main(path):
    config = json.loads(Path(path).read_text())
    os.umask(0o022)  # whatever root's is: the seats read what is made here
    lifeline = socket.socket(fileno=0)
    os.set_inheritable(0, False)
    try:
        config["tops"], config["limits"] = furnish(config)
    except OSError as error:
        lifeline.send(json.dumps({"failed": str(error)}).encode() + b"\n")
        return 1
    lifeline.send(json.dumps({"limits": config["limits"]}).encode() + b"\n")
    Path(path).write_text(json.dumps(config))
    with open(config["log"], "ab", buffering=0) as log:
        hub = subprocess.Popen(
            [sys.executable, "-m", "helpers.workshop.hub", path], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            pass_fds=[config["listener"]],
        )  # fmt: skip
    os.close(config["listener"])
    return wait(lifeline, hub)


def furnish(config):
    """Make everything that the hub and the seats need. Returns (the room's cgroups, the controllers that limit)."""
    mounted = cgroups.hierarchies()
    homes, limits = init.enter_cgroups(mounted, f"uncontained-{config['name']}", config["ledger"])
    places.call("mount", "-t", "tmpfs", "-o", "mode=755", "room", "/run")
    (places.ROOM / "new").mkdir(parents=True)  # where each seat makes its own /run
    members = plan.seats(config["seats"])
    places.make_users(members)
    places.PYTHON.mkdir()
    places.call("mount", "--bind", sys.prefix, places.PYTHON)
    places.call("mount", "-o", "remount,bind,ro", places.PYTHON)
    places.make_template()
    places.make_networks(members)
    for seat in members:
        places.furnish(seat, config["disk"])
    return [home[1] for home in homes], limits


def wait(lifeline, hub):
    """Reap, until the hub or the keeper has gone. Returns the exit status."""
    handle = os.pidfd_open(hub.pid)
    while True:
        ready, _, _ = select.select([lifeline, handle], [], [], 1)
        if handle in ready:
            return hub.wait(5)
        if lifeline in ready and not lifeline.recv(4096):
            return 0
        while True:  # what a seat left behind in the room: the nsenter and unshare of one that was killed
            done = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if done is None or done.si_pid == hub.pid:
                break
            os.waitpid(done.si_pid, 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
