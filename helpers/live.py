"""The pictures that move: the lab's process tree as it is now, and a film with a slider. Each has a static twin.

    live.tree(lab, caption="The lab, now")
    live.film(record(lab, ["runc", "run", "--bundle", "bundle", "demo"]), caption="What runc does in its 50 ms")

Python sends rows and live.js draws them. A thread looks at the lab four times a second, and only while somebody
looks at the widget: it ends when the lab ends, when the widget is paused or no longer shown, and with the kernel.
Where no kernel and no JavaScript is at hand, the same output shows the static picture.
See also: anywidget.dev, "AFM" (the interface of live.js); proc_pid_stat(5).
"""

import json
import os
import re
import threading
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import anywidget
import traitlets

from helpers import film as films
from helpers import pictures, processes
from helpers.pictures import roles
from helpers.pictures.film import film as film_picture
from helpers.pictures.film import part
from helpers.pictures.tree import children

PERIOD = 0.25  # s between two looks
SHOWN = 2.0  # s for which a change stays marked
FORGOTTEN = 60  # s without a sign of life from any view: a closed browser says no good-bye
REFRESH = 40  # processes that are read anew in each look, although nothing seems to have changed
MOST = 80  # processes in the static twin


class Moving(anywidget.AnyWidget):
    """The widget behind `tree` and `film`. `twin` is the `Picture` that stands in for it where nothing moves."""

    _esm = Path(__file__).with_name("live.js").read_text()
    kind = traitlets.Unicode("tree").tag(sync=True)
    caption = traitlets.Unicode("").tag(sync=True)
    #: `row`s: the tree as it is, or all rows of the film.
    rows = traitlets.List().tag(sync=True, to_json=lambda rows, _: packed(rows))
    frames = traitlets.List().tag(sync=True)  # of a film: [ms, words, [positions in rows]]
    playing = traitlets.Bool(True).tag(sync=True)
    ended = traitlets.Bool(False).tag(sync=True)

    def __init__(self, twin, follow=None, **traits):
        super().__init__(**traits)
        self.twin = twin
        self._follow, self._lock, self._thread, self._views = follow, threading.Lock(), None, {}
        self.on_msg(lambda _, content, __: self._heard(content))
        self.observe(lambda _: self._wake(), "playing")

    def _heard(self, content):
        """A view says that it is shown, again and again, or that it has been closed."""
        with self._lock:
            if content.get("shown"):
                self._views[content["view"]] = time.monotonic()
            else:
                self._views.pop(content.get("view"), None)
        self._wake()

    def _wanted(self):
        """Somebody looks, it is not paused, and the lab is there."""
        with self._lock:
            seen = max(self._views.values(), default=0)
        return bool(self._views) and time.monotonic() - seen < FORGOTTEN and self.playing and not self.ended

    def _wake(self):
        with self._lock:
            running = self._thread is not None and self._thread.is_alive()
        if self._follow and not running and self._wanted():
            self._thread = threading.Thread(target=self._follow, args=(self, self._wanted), name="live", daemon=True)
            self._thread.start()

    def close(self):
        self._views.clear()
        super().close()

    def _repr_mimebundle_(self, **_):
        data, metadata = self.twin.bundle()
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {**data, "application/vnd.jupyter.widget-view+json": view}, metadata


def tree(lab, caption="The processes of the lab, now"):
    """The process tree of the lab as it changes. New: thick outline. Gone: dashed. Re-parented: orange edge.

    Hover or move with the arrow keys for the details of a process.
    """
    now = lab.processes()
    started = next(p.started for p in now if p.pid == 1)
    shown = [p for p, _ in children(now)][:MOST]
    more = f" (the first {len(shown)} of {len(now)} processes)" if len(shown) < len(now) else ""
    twin = pictures.tree(shown, caption + more)

    def follow(widget, wanted):
        _follow(widget, wanted, lab.pid, started)

    return Moving(twin, follow, caption=caption, rows=rows(now, {}, {}))


@dataclass(frozen=True)
class Words:
    """A twin in words alone, for a page that shows the picture already."""

    text: str

    def bundle(self):
        return {"text/plain": self.text}, {}


def film(film, caption, picture=True):
    """A film (helpers.film.record) with a slider over its frames, and with a button that plays it.

    Its static twin is the film's picture or, with picture=False, what happens in each frame, in words.
    """
    table, frames = {}, []
    for frame in films.film_frames(film):
        positions = []
        for shown in film_rows(frame):
            positions.append(table.setdefault(json.dumps(shown), len(table)))
        frames.append([frame.ms, frame.words, positions])
    said = "\n".join([caption, *(f"{ms:6.1f} ms  {words}" for ms, words, _ in frames)])
    twin = film_picture(film, caption) if picture else Words(said)
    return Moving(twin, kind="film", caption=caption, rows=list(map(json.loads, table)), frames=frames, playing=False)


# Rows: what live.js draws, in the order of the printed tree.


def row(key, parent, level, role, title, numbers, command, badge, change, details):
    """One process for live.js. `details` is a list of [label, text]; `change` is "" or the word to mark it with."""
    return dict(
        key=key, parent=parent, level=level, role=role, title=title, numbers=numbers, command=command, badge=badge,
        change=change, details=details,
    )  # fmt: skip


def packed(rows):
    """Rows as they travel to live.js, which unpacks them: what is the same in all of them is there once.

    One text: the widgets' libraries look into every list, on both sides, and that takes longer than to read it.
    """
    names = list(rows[0]) if rows else []
    labels = [label for label, _ in rows[0]["details"]] if rows else []
    values = [[*list(one.values())[:-1], [text for _, text in one["details"]]] for one in rows]
    return json.dumps({"names": names, "labels": labels, "rows": values}, ensure_ascii=False)


def rows(now, changes, machine_pids):
    """Processes as rows. `changes` and `machine_pids` are by (pid, started)."""
    base = roles.outermost(now)
    found, above = [], {}
    for process, branch in children(now):
        level = len(branch)
        above[level] = process
        parent = above.get(level - 1)
        key = (process.pid, process.started)
        above_it = f"{parent.pid}-{parent.started}" if parent else ""
        first = parent is None or process.namespaces != parent.namespaces
        found.append(
            _row(process, base, above_it, level, first, changes.get(key, ""), machine_pids.get(key, "not known"))
        )
    return found


@lru_cache(maxsize=4000)  # four times a second, and most processes stay as they are
def _row(process, base, parent, level, first, change, machine_pid):
    """The row of one process. `first`: its parent is in other namespaces. It is shared: nobody may change it."""
    kinds, plays = roles.new_namespaces(process, base), roles.role(process, base)
    details = [
        ["PID in the lab", str(process.pid)],
        ["PID inside, as it sees itself", str(process.inner_pid)],
        ["PID on this machine", str(machine_pid)],
        ["Command", " ".join(process.argv) or f"({process.name})"],
        ["Part", plays],
        ["Namespaces other than the lab's", " ".join(kinds) or "none"],
        ["Cgroup", process.cgroup],
    ]
    return row(
        f"{process.pid}-{process.started}", parent, level, plays, roles.title(process),
        _numbers(process.pid, process.inner_pid), roles.command(process, 60).removeprefix(f"{process.name} "),
        "new namespaces: " + " ".join(kinds) if kinds and first else "", change, details,
    )  # fmt: skip


def _numbers(pid, inner_pid):
    return f"{'?' if pid is None else pid}" + (f" → inside {inner_pid}" if inner_pid != pid else "")


def film_rows(frame):
    """The processes of one frame of a film as rows."""
    words = {"gone": "gone", "new": "new", "moved": "re-parented", "changed": "changed"}
    levels, found = {None: 0}, []
    for one in frame.rows:
        levels[one.process] = level = levels.get(one.parent, 0) + 1
        title, _, arguments = one.name.partition(" ")
        known = [["PID in the lab", one.pid], ["PID inside, as it sees itself", one.inner_pid]]
        details = [[label, "not known" if pid is None else str(pid)] for label, pid in known]
        details += [["PID on this machine", "not known" if one.host_pid is None else str(one.host_pid)]]
        details += [["Command", one.name], ["In namespaces of its own", "yes" if one.inside else "no"]]
        found.append(
            row(
                str(one.process), "" if one.parent is None else str(one.parent), level,
                part(one.name, one.inside), title, _numbers(one.pid, one.inner_pid), arguments[:60], "",
                words.get(one.change, ""), details,
            )  # fmt: skip
        )
    return found


# The thread.


def _follow(widget, wanted, init, started):
    """Look at the lab until nobody wants it any more, and set the widget's rows whenever they change."""
    sent, seen = None, looks(f"/proc/{init}/root/proc")
    while wanted():
        began = time.monotonic()
        if not _is_there(init, started):
            widget.ended = True
            return
        new = next(seen)
        if new is None:
            continue  # it ends just now
        if new != sent:
            widget.rows = sent = new
        spent = time.monotonic() - began
        time.sleep(max(PERIOD - spent, spent * 3, 0.01))  # the look itself takes a quarter of the time at most


def looks(proc):
    """A generator: each `next` looks at the processes and gives them as rows, with marks at what has changed since
    the looks before; or None when there was nothing to look at."""
    known, machine_pids, read, marks = {}, {}, {}, {}
    while True:
        try:
            now = look(proc, known)
        except OSError:
            yield None
            continue
        marks = mark(marks, known, now, time.monotonic())
        known = now
        find_machine_pids(machine_pids, read, now)
        there = {pid for pid, _ in now}
        gone = [process for process, word, _ in marks.values() if word == "gone"]
        there |= {process.pid for process in gone}
        gone = [p if p.ppid in there else replace(p, ppid=1) for p in gone]
        changes = {key: word for key, (_, word, _) in marks.items()}
        yield rows(sorted([*now.values(), *gone], key=lambda p: (p.pid, p.started)), changes, machine_pids)


def _is_there(init, started):
    """The lab's PID 1 lives, and it is the one of then."""
    process = _stat(f"/proc/{init}/stat")
    return process is not None and process[3] == started


def look(proc, known):
    """{(pid, started): Process}. Processes in `known` that seem unchanged are read anew only now and then."""
    found, stale = {}, []
    with processes.directory(proc) as place:
        for pid in sorted(int(name) for name in os.listdir(proc) if name.isdigit()):
            stat = _stat(f"{pid}/stat", place)
            if stat is None:
                continue
            name, state, ppid, started = stat
            old = known.get((pid, started))
            if old is not None and (old.name, old.ppid, old.state == "Z") == (name, ppid, state == "Z"):
                found[pid, started] = old
                stale.append((pid, started))
            elif process := processes.read_one(pid, proc):
                found[process.pid, process.started] = process
    turn = int(time.monotonic() / PERIOD) * REFRESH
    for position in range(min(REFRESH, len(stale))):
        key = stale[(turn + position) % len(stale)]
        process = processes.read_one(key[0], proc)
        if process is not None and process.started == key[1]:
            found[key] = replace(process, state=found[key].state)
        else:
            del found[key]
    return dict(sorted(found.items()))


def _stat(path, place=None):
    """(name, state, PPID, start) or None. `place` is as in processes.slurp."""
    try:
        head, _, tail = processes.slurp(path, place).rpartition(")")
    except OSError:
        return None
    fields = tail.split(None, 20)
    return (head.partition("(")[2], fields[0], int(fields[1]), int(fields[19])) if len(fields) > 19 else None


def mark(marks, before, now, moment):
    """What to mark at this moment: {(pid, started): (Process, word, since)}. In the first look nothing is new."""
    kept = {key: (p, word, since) for key, (p, word, since) in marks.items() if moment - since < SHOWN}
    if before:
        for key in now.keys() - before.keys():
            kept[key] = now[key], "new", moment
        for key in before.keys() - now.keys():
            kept[key] = before[key], "gone", moment
        for key in now.keys() & before.keys():
            if now[key].ppid != before[key].ppid:
                kept[key] = now[key], "re-parented", moment
    return kept


def find_machine_pids(found, read, now):
    """Complete `found`, {(pid, started): PID on this machine}, for the processes in `now`.

    `read` is {PID on this machine: (its PIDs inwards, started)} from the calls before: only the others are read.
    """
    if now.keys() <= found.keys():
        return
    here = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    for pid in read.keys() - here:
        del read[pid]
    for pid in here - read.keys():
        stat = _stat(f"/proc/{pid}/stat")
        try:
            numbers = re.search(r"^NSpid:(.*)$", Path(f"/proc/{pid}/status").read_text(errors="replace"), re.M)
        except OSError:
            continue
        read[pid] = tuple(map(int, numbers[1].split())) if numbers else (), stat[3] if stat else 0
    for pid, (inwards, started) in read.items():
        for depth in range(1, len(inwards)):
            key = inwards[depth], started
            if key in now and now[key].pids == inwards[depth:]:
                found[key] = pid
    if not now.keys() <= found.keys():
        read.clear()  # a PID may have been used again: read them all the next time
