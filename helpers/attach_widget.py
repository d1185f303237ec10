"""A widget for lesson 05: one container, three buttons. Press attach, exec or logs, and see what comes.

    attach_widget.show(lab, container, {"attach": [...], "exec": [...], "logs": [...]})

`container` is the container's first process, and each button starts its command in the lab, in place of the one
before. The tree and the wiring are read from /proc. Where no kernel and no JavaScript is at hand, the same output
shows what the first button did, as a drawing and as text. See also: proc_pid_fd(5), anywidget.dev.
"""

import os
import shlex
import signal
from pathlib import Path

import anywidget
import traitlets

from helpers import processes
from helpers.lab import PIPE, LabError
from helpers.pictures.base import Picture
from helpers.pictures.roles import outermost, pids, role, title
from helpers.pictures.tree import before_after, children
from helpers.pictures.wiring import plan, what, wiring

KINDS = ("attach", "exec", "logs")
PARTS = ("manager", "shim", "runtime")


def path(lines, start, end):
    """The PIDs that bytes pass on the shortest way from one process to another, along lines; [] if there is none."""
    near = {}
    for a, b, _ in lines:
        near.setdefault(a[0].pid, set()).add(b[0].pid)
        near.setdefault(b[0].pid, set()).add(a[0].pid)
    ways = [[start]]
    seen = {start}
    for way in ways:
        if way[-1] == end:
            return way
        for pid in sorted(near.get(way[-1], set()) - seen):
            seen.add(pid)
            ways.append([*way, pid])
    return []


def sentence(pressed, before, after, container):
    """What has come, in words. `before` and `after` are processes."""
    known = {(p.pid, p.started) for p in before}
    came = [p for p in after if (p.pid, p.started) not in known]
    home = container.namespace("pid")
    inside, outside = [], []
    for p in came:
        (inside if p.namespace("pid") == home else outside).append(f"{title(p)} {pids(p)}")
    members = sum(p.namespace("pid") == home for p in after)
    count = f"{members} process" + ("es" if members != 1 else "")
    if not pressed:
        return f"Nobody is connected. The container has {count}."
    new = f"new in the container: {', '.join(inside)}" if inside else "nothing new in the container"
    return f"{pressed}: {new}; new outside: {', '.join(outside) or 'nothing'}. The container has {count}."


def scene(columns, descriptors, family, before):
    """Rows for the page: {"tree": [...], "columns": [[box, ...], ...], "lines": [[from, to, both, dashed], ...]}."""
    members = [p for column in columns for p in column]
    base = outermost([p for p in members if p.pid])
    known = {(p.pid, p.started) for p in before}
    rows, lines = plan(members, descriptors)
    keys = {row: f"{row[0].pid}-{row[0].number}" for own in rows.values() for row in own}

    def about(p):
        new = bool(p.pid) and (p.pid, p.started) not in known
        return {"title": title(p), "numbers": pids(p), "role": role(p, base), "new": new}

    def ports(p):
        return [[keys[row], " ".join(str(d.number) for d in row), what(row[0])] for row in rows[p.pid]]

    return {
        "tree": [{**about(p), "level": len(branch) - 1} for p, branch in children(family)],
        "columns": [[{**about(p), "ports": ports(p)} for p in column] for column in columns],
        "lines": [[keys[a], keys[b], both, a[0].kind == "file"] for a, b, both in lines],
    }


class Attach(anywidget.AnyWidget):
    """The widget behind `show`. The page sets `pressed`; `scene`, `said` and `trouble` follow."""

    _esm = Path(__file__).with_suffix(".js").read_text()
    pressed = traitlets.Unicode("").tag(sync=True)
    words = traitlets.Dict().tag(sync=True)  # button -> its command line
    scene = traitlets.Dict().tag(sync=True)
    said = traitlets.Unicode("").tag(sync=True)
    trouble = traitlets.Unicode("").tag(sync=True)

    def __init__(self, lab, container, commands, env=None, pressed=""):
        self._lab, self._container, self._commands, self._env = lab, container, commands, env
        self._step, self._before = None, []
        super().__init__(words={kind: shlex.join(commands[kind]) for kind in KINDS}, pressed=pressed)
        self._press()
        self.observe(lambda _: self._press(), "pressed")

    def _press(self):
        try:
            self._lab.run(["true"], echo=False)  # a lab that has ended says so best
            self._leave()
            self._before = self._family()
            if self.pressed:
                argv = self._commands[self.pressed]
                self._step = self._lab.start(argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, echo=False, env=self._env)
                columns = processes.wait_until(self._connected, f"{self.pressed} to be connected", 20)
            else:
                columns = [[self._lab.notebook()], self._shims(), [self._container]]
            self._show(columns)
            self.trouble = ""
        except (LabError, LookupError, OSError) as error:  # TimeoutError is one of the last
            self.trouble = str(error).partition("\n")[0] or type(error).__name__

    def _show(self, columns):
        members = [p for column in columns for p in column]
        family, descriptors = self._family(), self._lab.descriptors(*members)
        self.scene = scene(columns, descriptors, family, self._before)
        self.said = sentence(self.pressed, self._before, family, self._container)
        tree = before_after(self._before, family, self.said)
        wires = wiring(columns, descriptors, self.said)
        self.twin = Picture(self.said, wires.dot, f"{tree.text}\n\n{wires.text}", colours=wires.colours)

    def _leave(self):
        """End the client that was started last, and what exec made: it would outlive its client."""
        if self._step is None:
            return
        step, self._step = self._step, None
        known = {p.pid for p in self._before}
        for p in self._inside():
            if p.pid not in known:
                self._lab.kill(p.pid, signal.SIGKILL)
        step.kill(signal.SIGKILL)
        for end in (step.stdin, step.stdout, step.stderr):
            end.close()
        step.wait(20)
        processes.wait_until(lambda: all(p.pid in known for p in self._inside()), "exec's process to go", 20)

    def _inside(self):
        home = self._container.namespace("pid")
        return [p for p in self._lab.processes() if p.namespace("pid") == home]

    def _family(self):
        """The processes that the tree shows: the container's, its relays, the client, and who is above them."""
        everything = self._lab.processes()
        home = self._container.namespace("pid")
        client = self._step.pid if self._step else None
        chosen = [p for p in everything if p.namespace("pid") == home or p.pid == client]
        above = {q.pid for p in chosen for q in processes.ancestors(p, everything)}
        return [p for p in everything if p in chosen or p.pid in above]

    def _shims(self):
        return [p for p in self._lab.processes() if p.pid == self._container.ppid]

    def _connected(self):
        """The columns of the picture once bytes can pass from the client to where they shall go, else None."""
        everything = self._lab.processes()
        client = next((p for p in everything if p.pid == self._step.pid), None)
        if client is None:
            raise LabError(f"`{self.words[self.pressed]}` has ended: {self._said()}")
        base = outermost(everything)
        known = {p.pid for p in self._before}
        new = [p for p in self._inside() if p.pid not in known and role(p, base) == "container"]
        targets = new if self.pressed == "exec" else [self._container]
        relays = [p for p in everything if role(p, base) in PARTS or p.pid == self._container.ppid]
        nodes = {p.pid: p for p in (client, *relays, self._container, *new)}
        _, lines = plan(list(nodes.values()), self._lab.descriptors(*nodes.values()))
        way = path(lines, client.pid, targets[0].pid) if targets else []
        if not way:
            return None
        holders = {p.pid for p in self._shims()}
        between = [nodes[pid] for pid in way[1:-1] if pid not in holders]
        managers = [p for p in between if role(p, base) == "manager"]
        shims = [*self._shims(), *(p for p in between if p not in managers)]
        columns = [[self._lab.notebook()], [client], managers, shims, [self._container, *new]]
        return [column for column in columns if column]

    def _said(self):
        os.set_blocking(self._step.stderr.fileno(), False)
        return (self._step.stderr.read() or b"it said nothing").decode(errors="replace").strip()

    def _repr_mimebundle_(self, **_):
        data, metadata = self.twin.bundle()
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {**data, "application/vnd.jupyter.widget-view+json": view}, metadata


def show(lab, container, commands, *, env=None, pressed=""):
    """The widget. `commands` is {"attach": argv, "exec": argv, "logs": argv}; `pressed` one of these, or "".

    Raises LookupError for a button that there is not, and for a command that is missing.
    """
    missing = [kind for kind in KINDS if not commands.get(kind)]
    if missing or pressed not in ("", *KINDS):
        raise LookupError(f"there are the buttons attach, exec and logs; no {missing or pressed!r}")
    return Attach(lab, container, commands, env, pressed)
