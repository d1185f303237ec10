"""JupyterHub as the workshop needs it. Runs in the room: `python -m helpers.workshop.hub CONFIG`."""

import asyncio
import contextlib
import hmac
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

from jupyterhub.app import JupyterHub
from jupyterhub.auth import Authenticator
from jupyterhub.handlers import BaseHandler
from jupyterhub.proxy import Proxy
from jupyterhub.spawner import LocalProcessSpawner
from tornado import web
from traitlets.config import Config

from helpers.workshop import board, page, places, plan, proxy

SEAT = Path(__file__).with_name("seat.py")
LESSONS = sorted((places.CHECKOUT / "notebooks").glob("*.ipynb"))
FORM = """
<main class="container"><form action="{{ authenticator_login_url }}" method="post">
<h1>Uncontained</h1>
{% if login_error %}<p role="alert">No seat has this code. Is it as on the card?</p>{% endif %}
<input type="hidden" name="_xsrf" value="{{ xsrf }}"><input type="hidden" name="username" value="">
<p><label for="code">The code on your card</label></p>
<p><input id="code" name="code" autocomplete="off" autocapitalize="off" spellcheck="false" autofocus required
 class="form-control" style="max-width: 20em; font-family: monospace"></p>
<p><button class="btn" style="background: #005a9c; color: #fff">Sit down</button></p>
</form></main>
"""


class Room:
    """What the parts below share: the configuration, the seats by name, their cgroups, and the board."""

    def __init__(self, config):
        self.config, self.codes = config, config["codes"]
        self.seats = {seat.name: seat for seat in plan.seats(config["seats"])}
        self.board = board.Board([board.read_lesson(path) for path in LESSONS], self.seats)
        self.cgroups = {}

    def enter(self, seat):
        """The cgroup directories of a seat, made when they are not there."""
        if seat.name not in self.cgroups:
            memory, processes = self.config["memory"], self.config["processes"]
            self.cgroups[seat.name] = places.make_limits(self.config["tops"], seat, memory, processes)
        return self.cgroups[seat.name]

    def listen(self, seat):
        """Bind the seat's door: what its notebooks' checks say goes to the board."""
        path = places.door(seat) / "progress"
        path.unlink(missing_ok=True)
        heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        heard.bind(str(path))
        os.chown(path, seat.uid, seat.uid)
        asyncio.get_running_loop().add_reader(heard, self.hear, seat, heard)

    def hear(self, seat, heard):
        for _ in range(50):  # then others have a turn: a seat may talk without end
            try:
                self.board.hear(seat.name, heard.recv(4096))
            except BlockingIOError:
                return


room = None  # set by main()


class Cards(Authenticator):
    """A seat is taken with the code on its card."""

    def get_custom_html(self, base_url):
        return FORM

    async def authenticate(self, handler, data):
        typed = plan.normal(data.get("code", "")).encode()
        fitting = [name for name, code in room.codes.items() if hmac.compare_digest(code.encode(), typed)]
        return fitting[0] if fitting else None


class Seats(LocalProcessSpawner):
    """Starts a seat's server in its network, its namespaces and its cgroups, as its user."""

    async def start(self):
        seat = room.seats[self.user.name]
        self.ip, self.port = seat.address, plan.SEAT_PORT
        python = str(places.PYTHON / Path(sys.executable).relative_to(sys.prefix))
        course = f"{seat.home}/uncontained"
        command = [
            "nsenter", f"--net={places.NETWORKS}/{seat.name}",
            "unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc",
            "/usr/bin/env", "-C", "/", sys.executable, "-I", "-S", str(SEAT), seat.name,
            python, "-m", "jupyterhub.singleuser", f"--ServerApp.root_dir={course}",
            f"--LabApp.workspaces_dir={course}/.lab/workspaces", "--Application.log_level=ERROR",
        ]  # fmt: skip
        environment = {**self.get_env(), **self.settings(seat, course)}
        directories = room.enter(seat)

        def enter():
            for place in directories:
                name = "tasks" if os.path.exists(f"{place}/tasks") else "cgroup.procs"
                with open(f"{place}/{name}", "w") as file:
                    file.write("0")

        with open(room.config["log"], "ab", buffering=0) as log:
            self.proc = subprocess.Popen(command, env=environment, preexec_fn=enter, start_new_session=True,
                                         stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip
        self.pid = self.proc.pid
        await self.until_it_listens(seat)
        return seat.address, plan.SEAT_PORT

    async def until_it_listens(self, seat):
        """Until the seat's server takes connections. Raises RuntimeError when it ends instead."""
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(seat.address, plan.SEAT_PORT)
                writer.close()
                return
            if await self.poll() is not None:
                raise RuntimeError(f"the server of {seat.name} ended before it was ready: see the workshop's log")
            await asyncio.sleep(0.1)

    def settings(self, seat, course):
        """The environment of a seat's server, and so of its kernels and terminals."""
        return {
            "HOME": seat.home, "USER": seat.name, "LOGNAME": seat.name, "SHELL": "/bin/bash", "LANG": "C.UTF-8",
            "PATH": f"{places.PYTHON}/bin:/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": course,
            "JUPYTER_CONFIG_PATH": f"{course}/.lab/config", "UNCONTAINED_PROGRESS": f"{places.ROOM}/door/progress",
        }  # fmt: skip

    def user_env(self, env):
        return env

    async def stop(self, now=False):
        """Kill PID 1 of the seat by way of its parent: the kernel ends the rest. Files are saved when they change."""
        if await self.poll() is None:
            await self._signal(signal.SIGKILL)
            await self.wait_for_death(self.kill_timeout)


class Door(Proxy):
    """JupyterHub's view of the carrier in proxy.py, which runs in this process."""

    def __init__(self, **traits):
        super().__init__(**traits)
        self.routes = {}

    async def start(self):
        certificate = room.config["certificate"]
        context = None
        if certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*certificate)
        self.carrier = proxy.Carrier(self.routes, "https" if certificate else "http")
        await self.carrier.start(socket.socket(fileno=room.config["listener"]), context)
        for seat in room.seats.values():
            room.listen(seat)

    def stop(self):
        self.carrier.stop()

    async def add_route(self, routespec, target, data):
        self.routes[routespec] = {"routespec": routespec, "target": target, "data": data}

    async def delete_route(self, routespec):
        self.routes.pop(routespec, None)

    async def get_all_routes(self):
        return dict(self.routes)


class Instructor(BaseHandler):
    """The instructor's page, its rows, and its two buttons."""

    def rows(self):
        found = {}
        for name, seat in room.seats.items():
            user = self.users.get(name)
            spawner = user.spawner if user else None
            state = "off" if spawner is None or not (spawner.active or spawner.pending) else "ready"
            state = "starting" if spawner is not None and spawner.pending else state
            memory = places.usage(room.config["tops"], seat) if state == "ready" else None
            found[name] = {**room.board.row(name), "state": state, "memory": memory}
        return found

    def allow(self):
        if not self.current_user.admin:
            raise web.HTTPError(403, "This page is the instructor's.")

    @web.authenticated
    async def get(self, rows=None):
        self.allow()
        self.set_header("Cache-Control", "no-store")
        if rows:
            self.finish({name: page.cells(row) for name, row in self.rows().items()})
        else:
            where = f"{self.hub.base_url}seats"
            self.finish(page.page(self.rows(), where, self.xsrf_token.decode(), room.config["bounds"]))

    @web.authenticated
    async def post(self, rows=None):
        self.allow()
        seat = room.seats.get(self.get_body_argument("seat"))
        deed = self.get_body_argument("deed")
        if seat is None or deed not in ("restart", "reset"):
            raise web.HTTPError(400, "There is no such seat, or no such deed.")
        user = self.users[seat.name]
        if user.spawner.pending:
            raise web.HTTPError(409, f"{seat.name} is just starting or stopping: try again in a moment.")
        if user.spawner.active:
            await self.stop_single_user(user)
            while user.spawner.active:  # it goes on in the background when it takes long
                await asyncio.sleep(0.1)
        if deed == "reset":
            room.board.forget(seat.name)
            await asyncio.to_thread(places.furnish, seat, room.config["disk"])
            room.listen(seat)
        self.log.info("%s: %s", deed, seat.name)
        started = asyncio.ensure_future(self.spawn_single_user(user))
        started.add_done_callback(lambda task: task.cancelled() or task.exception())  # the log has it
        self.redirect(f"{self.hub.base_url}seats")


def landing(handler):
    """Where somebody who has just signed in goes: the instructor to the page, a learner to their seat."""
    user = handler.current_user
    return handler.hub.base_url + ("seats" if user and user.admin else "spawn")


def settings(config):
    """JupyterHub's configuration."""
    c = Config()
    hub, spawner = c.JupyterHub, c.Spawner
    hub.hub_bind_url = f"http://{plan.HUB}:{plan.HUB_PORT}"
    hub.bind_url = config["address"]
    hub.db_url = "sqlite:///:memory:"
    hub.cookie_secret_file = str(places.ROOM / "cookie")
    hub.proxy_class, hub.spawner_class, hub.authenticator_class = Door, Seats, Cards
    hub.extra_handlers = [(r"/seats(?:/(rows))?", Instructor)]
    hub.default_url = landing
    hub.concurrent_spawn_limit = 0  # the keeper starts them a few at a time
    hub.active_server_limit = 0
    hub.services = [{"name": "keeper", "api_token": config["token"]}]
    hub.load_roles = [{"name": "keeper", "services": ["keeper"], "scopes": ["admin:servers", "read:users"]}]
    hub.log_level = "WARN"
    c.Authenticator.allowed_users = set(room.seats)
    c.Authenticator.admin_users = {plan.INSTRUCTOR}
    spawner.default_url = "/lab/workspaces/uncontained"
    spawner.start_timeout = spawner.http_timeout = 300  # many start at once, on a small machine
    spawner.env_keep = []
    hub.tornado_settings = {"slow_spawn_timeout": 0}  # answer at once: who waits is shown how far it is
    return c


def main(path):
    global room
    room = Room(json.loads(Path(path).read_text()))
    os.chdir(places.ROOM)
    os.umask(0o077)
    JupyterHub.instance(config=settings(room.config))
    JupyterHub.launch_instance(argv=[])


if __name__ == "__main__":
    # One module, not two: `room` must be the same for JupyterHub, which gets the classes from here.
    main(*sys.argv[1:])
