"""A learner at a seat, as the browser of one would act: signs in with a code, opens a notebook, runs its cells."""

import json
import re
import time
import uuid
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests
import websocket

PATIENCE = 300  # s for one answer: many seats share a small machine


@dataclass
class Learner:
    """Signed in at a seat of a workshop. `base` is the address of the seat's server."""

    address: str
    name: str
    session: requests.Session

    @property
    def base(self):
        return f"{self.address}/user/{self.name}"

    def cookies(self, url):
        """The Cookie header that a browser would send to `url`."""
        return self.session.prepare_request(requests.Request("GET", url)).headers.get("Cookie", "")

    def ask(self, method, path, **options):
        """A request to the seat's server, with the token against forged requests that a page would send."""
        found = re.findall(r"_xsrf=([^;]+)", self.cookies(f"{self.base}/api"))
        headers = {"X-XSRFToken": found[0] if found else "", "Referer": f"{self.base}/lab"}
        return self.session.request(method, f"{self.base}/{path}", headers=headers, timeout=PATIENCE, **options)

    def open(self, notebook):
        """A new kernel for a notebook of the seat: (its address for a websocket, its id)."""
        wanted = {"path": notebook, "name": notebook, "type": "notebook", "kernel": {"name": "python3"}}
        answer = self.ask("POST", "api/sessions", json=wanted)
        assert answer.status_code == 201, answer.text
        kernel = answer.json()["kernel"]["id"]
        return Kernel(self, kernel)


class Kernel:
    """A kernel of a seat, over the websocket that JupyterLab uses."""

    def __init__(self, learner, identity):
        self.learner, self.identity, self.session = learner, identity, uuid.uuid4().hex
        url = f"{learner.base}/api/kernels/{identity}/channels?session_id={self.session}"
        self.socket = websocket.create_connection(
            url.replace("http", "ws", 1), cookie=learner.cookies(url), origin=learner.address, timeout=PATIENCE
        )

    def run(self, code):
        """Run one cell: (its text, the name of its error or "")."""
        header = {"msg_id": uuid.uuid4().hex, "session": self.session, "username": "", "msg_type": "execute_request",
                  "version": "5.3", "date": "2026-01-01T00:00:00Z"}  # fmt: skip
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": True}
        self.socket.send(json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content,
                                     "channel": "shell"}))  # fmt: skip
        said, trouble, waits, deadline = [], "", {"reply", "idle"}, time.monotonic() + PATIENCE
        while waits:
            assert time.monotonic() < deadline, f"no answer in {PATIENCE} s"
            message = json.loads(self.socket.recv())
            if message["content"].get("execution_state") in ("restarting", "dead"):
                return "".join(said), "KernelDied: its process has gone"
            if message["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            kind, content = message["header"]["msg_type"], message["content"]
            if kind == "stream" and content["name"] == "stdout":
                said.append(content["text"])
            elif kind in ("execute_result", "display_data"):
                said.append(content["data"].get("text/plain", ""))
            elif kind == "error":
                trouble = f"{content['ename']}: {content['evalue']}"
            elif kind == "execute_reply":
                waits.discard("reply")
            elif kind == "status" and content["execution_state"] == "idle":
                waits.discard("idle")
        return "".join(said), trouble

    def value(self, expression):
        """The value of an expression, through JSON."""
        said, trouble = self.run(f"import json\nprint('VALUE' + json.dumps({expression}))")
        assert not trouble, trouble
        return json.loads(re.search(r"VALUE(.*)", said)[1])  # IPython may complain on the same stream

    def shut(self):
        self.socket.close()
        self.learner.ask("DELETE", f"api/kernels/{self.identity}")


def sign_in(address, name, code):
    """Sign in with a code and sit down. Raises AssertionError when the code is not taken."""
    session = requests.Session()
    form = session.get(address, timeout=PATIENCE)
    token = re.search(r'name="_xsrf" value="([^"]*)"', form.text)[1]
    data = {"_xsrf": token, "username": "", "code": code}
    answer = session.post(f"{address}/hub/login", data=data, timeout=PATIENCE, headers={"Referer": form.url})
    assert answer.status_code == 200, f"{answer.status_code} {answer.url}"
    learner = Learner(address, name, session)
    deadline = time.monotonic() + PATIENCE
    while urlsplit(session.get(f"{learner.base}/lab", timeout=PATIENCE).url).path != f"/user/{name}/lab":
        assert time.monotonic() < deadline, "the seat's server does not come up"
        time.sleep(0.2)
    return learner
