"""What `./lab workshop` does on the machine itself: start the room, print the cards, wait, clean up. Needs root."""

import json
import os
import queue
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path

from helpers import cleanup
from helpers.workshop import plan, proxy

CHECKOUT = Path(__file__).resolve().parent.parent.parent
STATE = CHECKOUT / ".lab" / "workshop"
PREFIX = "workshop-"  # of the ledger's name
AT_ONCE = 3  # seats that start side by side
NAMESPACES = ("--mount", "--net", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child")


class Impossible(RuntimeError):
    """The workshop can't be held. The message says why, in one or two sentences."""


@dataclass(frozen=True)
class Wanted:
    """The options of the command line. `memory` and `disk` in MB, 0 for a share of what is there."""

    seats: int = 10
    ip: str = "127.0.0.1"
    port: int = 8000
    memory: int = 0
    disk: int = 256
    processes: int = 1500
    certificate: tuple = ()
    new_cards: bool = False


def running():
    """The ledgers of workshops that live."""
    return [ledger for ledger in cleanup.ledgers()
            if Path(ledger).stem.startswith(PREFIX) and cleanup.is_alive(ledger)]  # fmt: skip


def codes(members, renew=False):
    """{name: code}, the same in each workshop of this checkout until `--new-cards`.

    So cards can be printed the day before, and outlast a restart of the machine.
    """
    STATE.mkdir(parents=True, exist_ok=True)
    STATE.chmod(0o700)
    file = STATE / "codes.json"
    known = {} if renew or not file.exists() else json.loads(file.read_text())
    known = {**{seat.name: plan.code(seat) for seat in members}, **known}
    private(file, json.dumps(known, indent=1))
    return {seat.name: known[seat.name] for seat in members}


def private(path, text):
    """Write a file that only its owner may read."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def total_memory():
    """MB of memory in this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


def addresses(wanted):
    """(the address to type in a browser, the one to reach the hub from here)."""
    scheme = "https" if wanted.certificate else "http"
    mine = wanted.ip
    if mine in ("0.0.0.0", "::"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            try:
                any_socket.connect(("192.0.2.1", 9))  # a documentation address; nothing is sent
                mine = any_socket.getsockname()[0]
            except OSError:
                mine = "127.0.0.1"
    shown = f"[{mine}]" if ":" in mine else mine
    return f"{scheme}://{shown}:{wanted.port}", f"{scheme}://{shown}:{wanted.port}"


def check_possible(wanted):
    if os.getuid() != 0:
        raise Impossible("a workshop makes users and networks of its own: only root can. Type: sudo ./lab workshop")
    if running():
        raise Impossible("a workshop is running already: ./lab workshop --stop ends it")
    base = Path(os.path.realpath(sys.executable))
    for place in (base, *base.parents):
        if not place.stat().st_mode & 0o001:
            raise Impossible(f"the seats' users may not run {base}: {place} is closed to them. Use the Python in /usr")


def start(wanted, say=print):
    """Start a workshop; returns a `Workshop` with every seat ready. Raises Impossible."""
    check_possible(wanted)
    cleanup.sweep()
    members = plan.seats(wanted.seats)
    memory = wanted.memory or plan.share(total_memory(), len(members))
    try:
        listener = proxy.listen(wanted.ip, wanted.port)
    except OSError as error:
        raise Impossible(f"{wanted.ip} port {wanted.port}: {error.strerror}. --port takes another one") from None
    wanted = Wanted(**{**wanted.__dict__, "port": listener.getsockname()[1]})
    shown, reached = addresses(wanted)
    name = PREFIX + uuid.uuid4().hex[:8]
    ledger = cleanup.open_ledger(name)
    known = codes(members, wanted.new_cards)
    log, file = STATE / "log", STATE / "room.json"
    private(log, "")
    config = {
        "name": name, "ledger": ledger, "seats": wanted.seats, "codes": known, "disk": wanted.disk, "memory": memory,
        "processes": wanted.processes, "log": str(log), "listener": listener.fileno(), "address": shown,
        "token": secrets.token_hex(32), "certificate": list(wanted.certificate), "tops": [],
        "bounds": f"{memory} MB of memory, {wanted.processes} processes, {wanted.disk} MB of files",
    }  # fmt: skip
    private(file, json.dumps(config))
    lifeline, theirs = socket.socketpair()
    with listener, theirs:
        argv = ["unshare", *NAMESPACES, sys.executable, "-m", "helpers.workshop.room", str(file)]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        with open(log, "ab") as errors:
            starter = subprocess.Popen(argv, stdin=theirs, stdout=errors, stderr=errors, start_new_session=True,
                                       env=environment, pass_fds=[listener.fileno()], cwd=CHECKOUT)  # fmt: skip
    held = Workshop(wanted, shown, reached, config["token"], known, ledger, lifeline, starter, file, memory)
    try:
        held.wait_for_room()
        held.wait_for_hub()
        cards = STATE / "cards.html"
        private(cards, plan.cards(members, known, shown))
    except BaseException:
        held.end()
        raise
    return held


class Workshop:
    """A workshop that runs. `end()` ends it; so does the end of this process."""

    def __init__(self, wanted, address, reached, token, codes, ledger, lifeline, starter, file, memory):
        self.wanted, self.address, self.codes, self.ledger, self.memory = wanted, address, codes, ledger, memory
        self.limits, self.ready = [], {}
        self._reached, self._token, self._lifeline, self._starter, self._file = reached, token, lifeline, starter, file

    def wait_for_room(self, timeout=300):
        """Until the room is furnished, and the hub is being started."""
        self._lifeline.settimeout(timeout)
        said = self._lifeline.recv(65536)
        message = json.loads(said) if said else {"failed": f"the room ended: {self.log()}"}
        if "failed" in message:
            raise Impossible(message["failed"])
        self.limits = message["limits"]
        children = Path(f"/proc/{self._starter.pid}/task/{self._starter.pid}/children").read_text().split()
        cleanup.register(self.ledger, "init", cleanup.identity(int(children[0])))

    def wait_for_hub(self, timeout=300):
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self.ask("GET", "/hub/api/")
            except (OSError, urllib.error.URLError) as error:
                if self._starter.poll() is not None or time.monotonic() > deadline:
                    raise Impossible(f"the hub did not start: {self.log() or error}") from None
                time.sleep(0.1)

    def log(self):
        """The last line of the log."""
        return ((STATE / "log").read_text(errors="replace").strip().splitlines() or [""])[-1]

    def ask(self, method, path, timeout=30):
        """One request to the hub as the keeper: (status, JSON or None)."""
        request = urllib.request.Request(self._reached + path, method=method, data=b"" if method == "POST" else None)
        request.add_header("Authorization", f"token {self._token}")
        context = None
        if self.wanted.certificate:  # this machine's own server, by an address that no certificate names
            context = ssl._create_unverified_context()
        with urllib.request.urlopen(request, timeout=timeout, context=context) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None

    def seat_everyone(self, told=lambda name, seconds: None, timeout=600):
        """Start every seat's server, a few at a time: {name: seconds until it answered}."""
        waiting, began = queue.Queue(), time.monotonic()
        for seat in plan.seats(self.wanted.seats):
            waiting.put(seat.name)
        troubles = []

        def work():
            while not troubles:
                try:
                    name = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    self.seat(name, timeout)
                except (OSError, Impossible) as error:
                    troubles.append(f"{name}: {error}")
                    return
                self.ready[name] = time.monotonic() - began
                told(name, self.ready[name])

        threads = [threading.Thread(target=work, daemon=True) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if troubles:
            raise Impossible(f"not every seat started: {troubles[0]}")
        return self.ready

    def seat(self, name, timeout=300):
        """Start one seat and wait until it is ready."""
        deadline = time.monotonic() + timeout
        status, _ = self.ask("POST", f"/hub/api/users/{name}/server", timeout=timeout)
        while status == 202:
            try:
                _, user = self.ask("GET", f"/hub/api/users/{name}")
            except OSError as error:  # a small machine on which many start has no time for questions: ask again
                if isinstance(error, urllib.error.HTTPError):
                    raise
                user = None
            server = user["servers"].get("", {}) if user else {"ready": False}
            if server.get("ready"):
                return
            if not server or time.monotonic() > deadline:
                raise Impossible(f"its server did not start: {self.log()}")
            time.sleep(0.2)

    def wait(self):
        """Until the room ends by itself, or Ctrl-C."""
        self._lifeline.settimeout(None)
        while self._lifeline.recv(4096):
            pass

    def end(self):
        """End everything. Returns what could not be removed, as text."""
        self._lifeline.close()
        try:
            self._starter.wait(20)
        except subprocess.TimeoutExpired:
            self._starter.kill()
            self._starter.wait(10)
        self._file.unlink(missing_ok=True)
        return cleanup.undo(self.ledger)


def hold(wanted):
    """The command: start, print what the instructor needs, wait for Ctrl-C, end. Returns an exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    if wanted.ip not in ("127.0.0.1", "::1", "localhost"):
        print(warning(wanted), flush=True)
    print(f"Making {wanted.seats} seats ...", flush=True)
    try:
        held = start(wanted)
    except Impossible as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    status = 0
    try:
        print(summary(held), flush=True)
        held.seat_everyone(lambda name, seconds: print(f"  {name} is ready after {seconds:.0f} s", flush=True))
        print("All seats are ready. Ctrl-C ends the workshop, with everything in it.", flush=True)
        held.wait()
        print(f"lab: the workshop ended by itself: {held.log()}", file=sys.stderr)
        status = 1
    except Impossible as error:
        print(f"lab: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        pass
    finally:
        problems = held.end()
    for problem in problems:
        print(f"lab: could not remove {problem}", file=sys.stderr)
    print("The workshop has ended, and nothing of it is left.")
    return 1 if problems else status


def summary(held):
    """What the instructor reads first."""
    lines = [f"The room is open at {held.address}", "", "Cards (a code is a key to its seat):"]
    lines += [f"  {name:12}  {code}" for name, code in held.codes.items()]
    lines += ["", f"To print them: {STATE / 'cards.html'}",
              f"Who is on which exercise: {held.address}/hub/seats, with the instructor's code", ""]  # fmt: skip
    wanted = held.wanted
    if {"memory", "pids"} <= set(held.limits):
        lines.append(f"Each seat may use {held.memory} MB of memory, {wanted.processes} processes and {wanted.disk} MB "
                     "of files.")  # fmt: skip
    else:
        lines.append(f"Each seat may use {wanted.disk} MB of files. This machine grants no limits of memory and "
                     "processes: one seat can slow down all.")  # fmt: skip
    return "\n".join(lines)


def warning(wanted):
    """What it means to listen on more than this machine."""
    where = "every network of this machine" if wanted.ip in ("0.0.0.0", "::") else f"the network of {wanted.ip}"
    kept = "Connections are encrypted." if wanted.certificate else (
        "Connections are not encrypted: who can listen in on the network can read the codes and what people do. "
        "Use a network of your own, or --certificate FILE KEY.")  # fmt: skip
    return (f"The workshop listens on {where}. Everybody there can reach the sign-in page; a code lets in, and whoever "
            f"is in runs programs on this machine, as a user without rights of its own.\n{kept}\n")  # fmt: skip


def stop():
    """End the workshop that runs, from another terminal. Returns an exit status."""
    living = running()
    for ledger in living:
        owner = dict(cleanup.entries(ledger)).get("owner")
        if owner and cleanup.identity(owner[0]) == owner:
            os.kill(owner[0], signal.SIGTERM)  # its keeper ends it, and says so in its own terminal
    deadline = time.monotonic() + 30
    while running() and time.monotonic() < deadline:
        time.sleep(0.05)
    from helpers.command import end

    problems = [ledger for ledger in running() if not end(ledger)]
    _, left = cleanup.sweep()
    for problem in [*problems, *left]:
        print(f"lab: could not remove {problem}", file=sys.stderr)
    print("The workshop has ended." if living else "No workshop is running.")
    return 1 if problems or left else 0
