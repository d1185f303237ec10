"""Opens JupyterLab on the first lesson, beside a terminal. What it keeps lies in `.lab/` of this checkout.

The server listens on 127.0.0.1 only, with a token. See also: jupyter-lab --help.
"""

import json
import os
import secrets
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
STATE = CHECKOUT / ".lab"
WORKSPACE = "uncontained"

#: No question about news, and no request to a website when the learner has just begun. All cells of a lesson are
#: drawn at once: drawing only those in view makes a page of pictures jump.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}


def first_lesson():
    """The path of the lesson to open, from the top of the checkout; None when there is none."""
    lessons = sorted(path for path in (CHECKOUT / "notebooks").glob("*.ipynb"))
    return lessons[0].relative_to(CHECKOUT).as_posix() if lessons else None


def layout(notebook):
    """A JupyterLab workspace: the notebook on the left, a terminal on the right, as JSON-like data."""
    tabs = [f"notebook:{notebook}", "terminal:1"]
    areas = [{"type": "tab-area", "currentIndex": 0, "widgets": [tab]} for tab in tabs]
    dock = {"type": "split-area", "orientation": "horizontal", "sizes": [0.66, 0.34], "children": areas}
    return {
        "data": {
            "layout-restorer:data": {
                "main": {"dock": dock, "current": tabs[0]},
                "left": {"collapsed": True, "widgets": ["filebrowser"]},
                "right": {"collapsed": True, "widgets": []},
            },
            tabs[0]: {"data": {"path": notebook, "factory": "Notebook"}},
            tabs[1]: {"data": {"name": "1"}},
            "file-browser-filebrowser:cwd": {"path": "notebooks"},
        },
        "metadata": {"id": WORKSPACE},
    }


def prepare(state=None):
    """Write the settings, and the layout where there is none yet: later the reader's own arrangement stays."""
    from jupyterlab_server.workspaces_handler import WorkspacesManager

    state = state or STATE
    settings = state / "config" / "labconfig" / "default_setting_overrides.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(SETTINGS, indent=1) + "\n")
    places = state / "workspaces"
    places.mkdir(exist_ok=True)
    lesson = first_lesson()
    if lesson and not any(places.iterdir()):
        WorkspacesManager(str(places)).save(WORKSPACE, json.dumps(layout(lesson)))


def has_display():
    """True where a browser could show itself to the person at this terminal."""
    return "SSH_CONNECTION" not in os.environ and any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY"))


def main():
    """Serve until Ctrl-C. Prints one line with the address."""
    prepare()
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(
        [str(STATE / "config"), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    )
    from jupyterlab.labapp import LabApp

    token = secrets.token_hex(24)
    options = [  # read in this process: no list of processes shows the token
        f"--ServerApp.root_dir={CHECKOUT}", "--ServerApp.ip=127.0.0.1", "--ServerApp.answer_yes=True",
        f"--LabApp.workspaces_dir={STATE / 'workspaces'}", f"--LabApp.default_url=/lab/workspaces/{WORKSPACE}",
        f"--IdentityProvider.token={token}", "--Application.log_level=ERROR",
    ]  # fmt: skip
    if os.getuid() == 0:
        options.append("--allow-root")
    if not has_display():
        options.append("--no-browser")
    server = LabApp.initialize_server(argv=options)
    address = f"http://127.0.0.1:{server.port}/lab/workspaces/{WORKSPACE}?token={token}"
    print(f"JupyterLab is here, until you press Ctrl-C: {address}", flush=True)
    server.start()
