"""Executes notebooks and cleans what they leave: for `./lab render`, whose result GitHub shows, and for the tests.

    notebook = clean(execute("notebooks/01-runc.ipynb"))

See also: nbclient, nbformat.
"""

import os
import re
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from traitlets.config import Config

CHECKOUT = Path(__file__).resolve().parent.parent
LARGEST = 300_000  # bytes of a notebook file
WIDGET = "application/vnd.jupyter.widget-view+json"
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
HOMES = re.compile(r"/home/\w[\w.-]*|/Users/\w+")


class RenderError(RuntimeError):
    """A notebook can't be shown as it is. The message names the cell and the reason, in one line."""


def notebooks(names=()):
    """The paths of lessons and solutions whose file name begins with one of `names`; all of them without names.

    Raises LookupError for a name that fits none.
    """
    everything = [*sorted(CHECKOUT.glob("notebooks/*.ipynb")), *sorted(CHECKOUT.glob("notebooks/solutions/*.ipynb"))]
    found = []
    for name in names:
        wanted = Path(name).name.removesuffix(".ipynb")
        fitting = [path for path in everything if path.stem.startswith(wanted) and wanted]
        if "/" in name:
            fitting = [path for path in fitting if path == Path(name).resolve()]
        if not fitting:
            raise LookupError(f"no notebook is called {name!r}")
        found += [path for path in fitting if path not in found]
    return found if names else everything


def client(path, sockets, *, timeout=120, **options):
    """(client, start options) for a notebook file: `with client.setup_kernel(**start)`, then `client.execute_cell`.

    `sockets` is a directory for the kernel's sockets: a TCP port that is free can be another's a moment later.
    `timeout` is for one cell, in seconds; other options are those of nbclient's NotebookClient.
    """
    path = Path(path).resolve()
    notebook = nbformat.read(path, as_version=4)
    options.setdefault("kernel_name", "python3")
    options["config"] = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
    resources = {"metadata": {"path": str(path.parent)}}
    running = NotebookClient(
        notebook, timeout=timeout, resources=resources, store_widget_state=False, record_timing=False, **options
    )
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    return running, {"env": environment}


def execute(path, *, timeout=120, **options):
    """Run a notebook in a fresh kernel from top to bottom and return it with its outputs; the file stays as it is.

    Raises RenderError when a cell fails, takes longer than `timeout` seconds, or loses its kernel.
    """
    name = Path(path).name
    try:
        with tempfile.TemporaryDirectory() as sockets:
            running, start = client(path, sockets, timeout=timeout, **options)
            return running.execute(**start)
    except CellExecutionError as error:
        raise RenderError(f"{name}, {place(running)}: {error.ename}: {first_line(error.evalue)}") from None
    except CellTimeoutError:
        raise RenderError(f"{name}, {place(running)}: took longer than {timeout} s") from None
    except DeadKernelError:
        raise RenderError(f"{name}, {place(running)}: its kernel died") from None


def place(running):
    """Which cell was the last to run, in words."""
    codes = [cell for cell in running.nb.cells if cell.cell_type == "code"]
    number = running.code_cells_executed
    cell = codes[max(0, min(number, len(codes)) - 1)]
    return f"code cell {max(number, 1)} (`{first_line(cell.source)}`)"


def first_line(text):
    """The first line of a text, with an ellipsis when more follows."""
    first, _, more = text.strip().partition("\n")
    return first + (" ..." if more else "")


def clean(notebook):
    """The notebook as it is committed: counts 1..n, no widgets, no times, nothing of this machine's set-up."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": {"name": "python"}})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    taken, number = set(), 0
    for position, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if "id" not in cell or cell.id in taken:
            cell.id = f"cell-{position + 1:03}"
        taken.add(cell.id)
        if cell.cell_type == "code":
            number += 1
            cell.execution_count = number
            cell.outputs = [keep for keep in map(without_widget, merged(cell.outputs)) if keep is not None]
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = number
    return notebook


def merged(outputs):
    """The outputs with neighbouring pieces of one stream joined: how often it was flushed is chance."""
    found = []
    for output in outputs:
        if found and output.output_type == "stream" == found[-1].output_type and output.name == found[-1].name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def without_widget(output):
    """The output with its static twins alone; None when it has nothing else to show."""
    if "data" not in output:
        return output
    if WIDGET in output.data:
        del output.data[WIDGET]
        output.metadata.pop(WIDGET, None)
        if set(output.data) == {"text/plain"} and re.match(r"\w+\(", output.data["text/plain"]):
            return None  # the bare repr of a widget tells a reader nothing
    return output if output.data else None


def flaws(notebook):
    """What a committed notebook must not show, as sentences that name the cell; [] when all is well."""
    found, number = [], 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        number += 1
        where = f"code cell {number} (`{first_line(cell.source)}`)"
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                found.append(f"{where} wrote to stderr: {first_line(output.text)}")
            text = str(output)
            home = HOMES.search(text)
            if home or str(CHECKOUT) in text:
                found.append(f"{where} shows a path of this machine: {home[0] if home else CHECKOUT}")
    return found


def render(path):
    """Execute a notebook and write it back with its outputs; returns a line that says so.

    Raises RenderError, and leaves the file as it was, when a cell fails or shows what must not be committed.
    """
    path, began = Path(path).resolve(), time.monotonic()
    notebook = clean(execute(path))
    for flaw in flaws(notebook):
        raise RenderError(f"{path.name}, {flaw}")
    text = nbformat.writes(notebook) + "\n"
    size = len(text.encode())  # which depends on the libraries, too, that drew the pictures
    if size > LARGEST:
        raise RenderError(f"{path.name}, it would have {size // 1000} KB, and {LARGEST // 1000} are allowed")
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text)
    draft.chmod(path.stat().st_mode & 0o777)
    os.replace(draft, path)
    took = time.monotonic() - began
    return f"{path.relative_to(CHECKOUT)}: {len(notebook.cells)} cells, {took:.1f} s, {len(text) // 1000} KB"
