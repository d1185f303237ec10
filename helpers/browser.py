"""A JupyterLab and a Chromium that looks at it: for the tests of the widgets, and for `./lab bench`.

    with jupyter(place, ["print(1)"]) as address, chromium() as browser:
        page = open_notebook(browser, address)
        run(page, 0)

The server listens on loopback, with a token, and keeps everything in the directory `place`. See also: playwright.dev.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from helpers.processes import wait_until

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextlib.contextmanager
def chromium():
    """A headless Chromium, the distribution's own. Raises LookupError when it, or what drives it, is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise LookupError("playwright is missing, which drives a browser: `./lab test` installs it") from None
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise LookupError("Chromium is missing")
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def jupyter(place, cells):
    """The address of a notebook of these code cells in a JupyterLab of its own, for `open_notebook`."""
    import nbformat

    place = Path(place)
    work, settings = place / "work", place / "config" / "labconfig" / "default_setting_overrides.json"
    work.mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, work / "page.ipynb")
    settings.parent.mkdir(parents=True)
    news = {"fetchNews": "false", "checkForUpdates": False}
    settings.write_text(json.dumps({"@jupyterlab/apputils-extension:notification": news}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    places = {f"JUPYTER_{kind}_DIR": str(place / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment = {**os.environ, **places, "IPYTHONDIR": str(place / "ipython"), "JUPYTER_TOKEN": token}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
        "--ServerApp.port_retries=0", f"--ServerApp.root_dir={work}", "--expose-app-in-browser",
        f"--LabApp.workspaces_dir={place / 'workspaces'}",
    ]  # fmt: skip
    with open(place / "log", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=work)
    address = f"http://127.0.0.1:{port}"

    def answers():
        if server.poll() is not None:
            raise RuntimeError((place / "log").read_text())
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5).status == 200

    try:
        wait_until(answers, "JupyterLab", 60)
        yield f"{address}/lab/workspaces/t/tree/page.ipynb?reset&token={token}"
    finally:
        server.send_signal(signal.SIGTERM)  # it shuts its kernels down
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(5)


def open_notebook(browser, address, **options):
    """A page with the notebook, whose kernel is ready."""
    page = browser.new_page(viewport={"width": 1100, "height": 900}, **options)
    page.set_default_timeout(30_000)
    page.goto(address)
    ready = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
    page.wait_for_function(ready, timeout=90_000)  # on a busy machine all of JupyterLab takes its time
    return page


def run(page, number):
    """Run one code cell, by its position, to its end."""
    page.evaluate(
        """async (number) => {
             const notebook = window.jupyterapp.shell.currentWidget.content;
             notebook.activeCellIndex = number;
             await window.jupyterapp.commands.execute("notebook:run-cell");
           }""",
        number,
    )


def outputs(page):
    """The text of all text outputs, and nothing else."""
    return "\n".join(page.locator(".jp-OutputArea-output pre").all_inner_texts())
