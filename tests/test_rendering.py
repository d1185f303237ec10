"""Rendering gives the same file for the same lesson, and refuses what a reader must not see."""

import json
import shutil

import nbformat
import pytest
from conftest import CHECKOUT

from helpers import rendering

WIDGET = {rendering.WIDGET: {"model_id": "abc"}, "text/plain": "the twin", "image/png": "AA=="}


def notebook(*sources):
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(source, id=f"c{number}") for number, source in enumerate(sources)]
    return made


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    """A function that writes a lesson to a directory of its own and returns its path."""
    monkeypatch.setattr(rendering, "CHECKOUT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    shutil.copytree(CHECKOUT / "helpers", tmp_path / "helpers")

    def write(*sources):
        path = tmp_path / "notebooks/99-trial.ipynb"
        nbformat.write(notebook(*sources), path)
        return path

    return write


def test_a_rendered_lesson_has_its_outputs_and_renders_to_the_same_bytes_again(lesson):
    path = lesson("x = 6", "print(x)\nprint(7)", "x * 7")
    said = rendering.render(path)
    assert said.startswith("notebooks/99-trial.ipynb: 3 cells, ")
    first = path.read_bytes()
    rendered = nbformat.read(path, as_version=4)
    assert [cell.execution_count for cell in rendered.cells] == [1, 2, 3]
    assert rendered.cells[1].outputs == [{"output_type": "stream", "name": "stdout", "text": "6\n7\n"}]
    assert rendered.cells[2].outputs[0].data == {"text/plain": "42"}
    assert json.loads(first)["metadata"] == {
        "kernelspec": rendering.KERNELSPEC, "language_info": {"name": "python"}
    }  # fmt: skip
    assert [cell.metadata for cell in rendered.cells] == [{}] * 3
    rendering.render(path)
    assert path.read_bytes() == first


def test_the_helpers_can_be_imported_and_the_lesson_runs_beside_its_file(lesson):
    path = lesson("import os; from helpers import machine; os.path.basename(os.getcwd())")
    assert rendering.execute(path).cells[0].outputs[0].data == {"text/plain": "'notebooks'"}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0", "code cell 2 (`1 / 0`): ZeroDivisionError: division by zero"),
        ("import os; os._exit(3)", "its kernel died"),
        ("import sys; print('oh', file=sys.stderr)", "wrote to stderr: oh"),
        ("print('/ho' + 'me/ann/x')", "shows a path of this machine: /ho" + "me/ann"),
        ("print('x' * 300_000)", "300 are allowed"),
    ],
)
def test_a_lesson_with_a_flaw_keeps_its_file_and_the_reason_is_one_line(lesson, source, reason):
    path = lesson("x = 1", source)
    before = path.read_bytes()
    with pytest.raises(rendering.RenderError) as raised:
        rendering.render(path)
    assert reason in str(raised.value)
    assert str(raised.value).startswith("99-trial.ipynb, ") and "\n" not in str(raised.value)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_cell_has_a_time_limit(lesson):
    path = lesson("import time; time.sleep(30)")
    with pytest.raises(rendering.RenderError, match="took longer than 1 s"):
        rendering.execute(path, timeout=1)


def test_a_widget_leaves_its_picture_and_its_text():
    made = notebook("live", "bare")
    made.cells[0].outputs = [nbformat.v4.new_output("display_data", WIDGET)]
    bare = {rendering.WIDGET: {}, "text/plain": "IntSlider(value=0)"}
    made.cells[1].outputs = [nbformat.v4.new_output("display_data", bare)]
    made.metadata["widgets"] = {"state": {}}
    cleaned = rendering.clean(made)
    assert cleaned.cells[0].outputs[0].data == {"text/plain": "the twin", "image/png": "AA=="}
    assert cleaned.cells[1].outputs == []
    assert "widgets" not in cleaned.metadata


def test_cleaning_joins_pieces_of_a_stream_and_keeps_the_tags():
    made = notebook("x")
    made.cells[0].metadata = {"tags": ["fact:S1"], "execution": {"iopub.status.busy": "now"}, "collapsed": False}
    pieces = [("stdout", "a"), ("stdout", "b"), ("stderr", "c"), ("stdout", "d")]
    made.cells[0].outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in pieces]
    cell = rendering.clean(made).cells[0]
    told = [(output.name, output.text) for output in cell.outputs]
    assert told == [("stdout", "ab"), ("stderr", "c"), ("stdout", "d")]
    assert cell.metadata == {"tags": ["fact:S1"]}


def test_names_find_lessons_and_solutions():
    found = [path.relative_to(CHECKOUT).as_posix() for path in rendering.notebooks(["01"])]
    assert found == ["notebooks/01-runc.ipynb", "notebooks/solutions/01-runc.ipynb"]
    assert len(rendering.notebooks()) >= 4
    with pytest.raises(LookupError, match="no notebook is called 'nothing'"):
        rendering.notebooks(["nothing"])
