"""The film: every fork, exec and exit in the lab while one command runs. runc lives for 50 ms; this is how to see it.

    film = record(lab, ["runc", "run", "--detach", "--bundle", "bundle", "web"])

The kernel tells of them by its proc connector, each with its own time stamp. Where it refuses (an old kernel
and no root, or a container around us), the film is made by looking at the lab's /proc as fast as is sensible, and
misses what lives shorter than a look. `Film.source` says which. The sources are in proc_events.py.
See also: fork(2), execve(2), exit_group(2), prctl(2) (PR_SET_NAME, PR_SET_CHILD_SUBREAPER).
"""

import collections
import contextlib
import os
import signal
import threading
import time
from dataclasses import dataclass, replace

from helpers import proc_events
from helpers.proc_events import command

CONNECTOR = "the kernel's proc connector"
QUIET = 0.02  # s without an event after the command's end: the film is over
LONGEST_WAIT = 0.5  # s after the command returned, for a lab that is never quiet
UNREAD = "?"  # the name of a program that ended before its name could be read


@dataclass(frozen=True)
class Event:
    """One thing that happened to one process, `ms` after the command was asked for.

    `kind` is here (it was there before), fork (it began), exec, name (it renamed itself), parent (another process
    adopted it) or exit. `process` numbers the processes of a film; 0 is the lab's PID 1. `parent` is the number of the
    parent. `name` is what it is called from then on. The PIDs are None where they could not be learned in
    time: `pid` the lab's, `inner_pid` the one by which the process knows itself, `host_pid` this machine's.
    `inside` says that it has a PID or mount namespace other than the lab's. `code` is an exit's status; a negative one
    names the signal, as in subprocess.
    """

    ms: float
    kind: str
    process: int
    parent: int | None
    name: str
    pid: int | None = None
    inner_pid: int | None = None
    host_pid: int | None = None
    inside: bool = False
    code: int | None = None


@dataclass(frozen=True)
class Film:
    """What happened in the lab during one command. `returned` and `length` are in ms; `output` is what it said."""

    argv: tuple
    source: str
    events: tuple
    output: object
    returned: float
    length: float


@dataclass(frozen=True)
class Row:
    """One process in one frame. `change` is "", new, gone, moved (it has another parent) or changed (its program)."""

    process: int
    parent: int | None
    name: str
    pid: int | None
    inner_pid: int | None
    host_pid: int | None
    inside: bool
    change: str = ""


@dataclass(frozen=True)
class Frame:
    """The processes right after one event, parents first, and the event in words."""

    ms: float
    words: str
    rows: tuple



def record(lab, argv, **run_options):
    """Run one command in the lab, as `lab.run` does and with its options, and return the `Film` of it.

    The film lasts until the command's own process has ended and nothing more happens (half a second at most after
    it returned). Raises what `lab.run` raises; give check=False to film a command that fails.
    """
    try:
        source, (told, look, members) = CONNECTOR, proc_events.by_connector(lab)
    except OSError:
        source, (told, look, members) = "", proc_events.by_looking(lab)
    notes, returned = Notes(look, members, argv), threading.Event()
    thread = threading.Thread(target=_take, args=(told, notes, returned), name="film", daemon=True)
    began = time.monotonic_ns()
    thread.start()
    try:
        output = lab.run(argv, **run_options)
    finally:
        ended = time.monotonic_ns()
        returned.set()
        thread.join(LONGEST_WAIT + 5)
    length = time.monotonic_ns()
    source = source or f"looking at /proc every {(length - began) / 1e6 / max(notes.idle, 1):.1g} ms"
    if notes.lost:
        source += " (the machine was too busy: some events were lost)"
    return Film(output.argv, source, notes.finished(began), output, _ms(ended - began), _ms(length - began))


def _ms(ns):
    return round(max(ns, 0) / 1e6, 3)


def _take(told, notes, returned):
    """Write down all that is told, until the command has returned and ended, and nothing more comes."""
    deadline = quiet = None
    with contextlib.suppress(OSError):  # root may: a look in time shows what will have gone a moment later
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
    for one in told:
        now = time.monotonic()
        if one is None:
            notes.idle += 1
        elif notes.take(one):
            quiet = None
        if returned.is_set():
            deadline, quiet = deadline or now + LONGEST_WAIT, quiet or now
            if now > deadline or (notes.command_ended and now > quiet + QUIET):
                break
    told.close()


class Notes:
    """The events as they are written down, and who is who. What is told of other labs and of others is left out."""

    def __init__(self, look, members, argv):
        self.look, self.argv = look, argv
        self.alive, self.orphans = {}, {}  # who -> number
        self.events, self.seen, self.names, self.parents = [], {}, {}, {}
        self.command, self.command_ended, self.lost, self.idle = None, False, False, 0
        for who, parent in members:
            self._begin(None, "here", who, parent)

    def take(self, told):
        """Write one event down. Returns False when it is not about this lab."""
        if told.kind == "lost":
            self.lost = True
            return False
        self._find_parents(told.ns)
        if told.kind == "thread":  # the last thread has gone: only now the children are adopted
            return False
        if told.kind == "fork":
            if told.parent not in self.alive or told.who in self.alive:
                return False
            number = self._begin(told.ns, "fork", told.who, told.parent)
            if self.command is None and self.parents[number] == 0:
                self.command = number  # the lab's PID 1 forks when it is asked to, and not else
            return True
        if told.who not in self.alive:
            return False
        number = self.alive[told.who]
        if told.kind == "exit":
            self._end(told, number)
        elif told.kind == "parent":
            self._adopt(told.ns, number, told.parent)
        elif told.kind == "name":
            self._look(told.who, number)
            if told.name == self.names[number].split(" ")[0][:15]:
                return False  # it calls itself what it is
            self.names[number] = told.name
            self._note(told.ns, "name", number)
        else:
            seen = self._look(told.who, number)
            known = told.name or (command(self.argv) if number == self.command else UNREAD)
            self.names[number] = (seen and (command(seen.argv) or seen.name)) or known
            self._note(told.ns, "exec", number)
        return True

    def _begin(self, ns, kind, who, parent):
        number = self.alive[who] = len(self.names)
        self.parents[number] = self.alive.get(parent)
        seen = self._look(who, number)
        name = self.names.get(self.parents[number])  # a fork's child runs its parent's program
        if kind == "here" and seen:
            name = (command(seen.argv) if number else "") or seen.name  # PID 1 goes by the name `lab`
        self.names[number] = name or UNREAD
        self._note(ns, kind, number)
        return number

    def _end(self, told, number):
        del self.alive[told.who]
        self._note(told.ns, "exit", number, told.code)
        self.command_ended |= number == self.command
        self.orphans.update((who, child) for who, child in self.alive.items() if self.parents[child] == number)
        self._find_parents(told.ns)

    def _find_parents(self, ns):
        for who, child in list(self.orphans.items()):
            seen = self._look(who, child) if self.alive.get(who) == child else None
            if seen:
                self._adopt(ns, child, seen.parent)
            if not seen or self.parents[child] in self.alive.values():
                del self.orphans[who]

    def _adopt(self, ns, number, parent):
        if parent in self.alive and self.alive[parent] != self.parents[number]:
            self.parents[number] = self.alive[parent]
            self._note(ns, "parent", number)

    def _look(self, who, number):
        seen = self.look(who)
        if seen:
            self.seen[number] = seen
        return seen

    def _note(self, ns, kind, number, code=None):
        known = self.seen.get(number) or self.seen.get(self.parents[number])  # a child begins where its parent is
        inside = known is not None and known.inside
        self.events.append((ns, kind, number, self.parents[number], self.names[number], inside, code))

    def finished(self, began):
        """The `Event`s, with all PIDs that were learned in the end; without processes to which nothing happened."""
        wanted, more = {0}, {n for event in self.events if event[1] != "here" for n in event[2:4]}
        while more := more - wanted - {None}:
            wanted |= more
            more = {self.parents[number] for number in more}
        numbers = {number: position for position, number in enumerate(sorted(wanted))}
        found = []
        for ns, kind, number, parent, name, inside, code in self.events:
            if number in numbers:
                seen = self.seen.get(number)
                pids = (seen.pid, seen.inner_pid, seen.host_pid) if seen else (None, None, None)
                ms = 0.0 if ns is None else _ms(ns - began)
                found.append(Event(ms, kind, numbers[number], numbers.get(parent), name, *pids, inside, code))
        return tuple(found)


CHANGES = {"here": "", "fork": "new", "exit": "gone", "parent": "moved", "exec": "changed", "name": "changed"}


def film_frames(film):
    """The film as `Frame`s, one for each event, for a slider. The first shows what was there before."""
    rows, frames = {}, []
    for event in film.events:
        rows = {number: row for number, row in rows.items() if row.change != "gone"}
        rows = {number: replace(row, change="") for number, row in rows.items()}
        pids = event.pid, event.inner_pid, event.host_pid
        change = CHANGES[event.kind]
        rows[event.process] = Row(event.process, event.parent, event.name, *pids, event.inside, change)
        if event.kind == "here" and frames:
            frames.pop()
        frames.append(Frame(event.ms, _words(event, rows), tuple(_parents_first(rows))))
    return frames


def _parents_first(rows):
    children = collections.defaultdict(list)
    for row in rows.values():
        children[row.parent if row.parent in rows else None].append(row)
    found = list(children[None])
    for position in range(len(rows)):  # depth first
        if position < len(found):
            found[position + 1 : position + 1] = children.pop(found[position].process, [])
    return found


def _words(event, rows):
    who = _who(event)
    parent = _who(rows[event.parent]) if event.parent in rows else "a process outside"
    program = "a program too short-lived to be read" if event.name == UNREAD else f"`{event.name}`"
    return {
        "here": "Before the command.",
        "fork": f"{parent} forks: {who} begins.",
        "exec": f"{who} becomes {program}.",
        "name": f"{who} now calls itself {program}.",
        "parent": f"The parent of {who} has gone: {parent} adopts it.",
        "exit": f"{who}, {program}, {ending(event.code)}.",
    }[event.kind]


def _who(process):
    if process.pid is None:
        return "A process (its PID was not read in time)"
    inside = f" ({process.inner_pid} inside)" if process.inner_pid != process.pid else ""
    return f"PID {process.pid}{inside}"


def ending(code):
    """How a process ended, in words. `code` as in `Event`; None when nobody told."""
    if code is None:
        return "ends"
    if code < 0:
        return f"is killed by {signal_name(-code)}"
    return f"ends with status {code}"


def signal_name(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
