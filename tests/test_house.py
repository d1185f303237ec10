"""The house keeps its own rules: one list of dependencies, links that resolve, no shell strings."""

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from helpers import machine

CHECKOUT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*CHECKOUT.glob("helpers/**/*.py"), *CHECKOUT.glob("notebooks/programs/*.py")])


def files_of_the_repository():
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={CHECKOUT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, check=True, capture_output=True, text=True, timeout=30,
    ).stdout  # fmt: skip
    found = [CHECKOUT / name for name in listed.split("\0") if name]
    assert found
    return [path for path in found if path.exists()]


def test_conda_users_get_what_pyproject_names():
    wanted = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((CHECKOUT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    assert f"python{wanted['requires-python']}" in environment["dependencies"]
    conda_names = {"graphviz": "python-graphviz"}  # conda's graphviz is the program, and it has `dot`
    for requirement in wanted["dependencies"]:
        name = re.match(r"[\w-]+", requirement)[0]
        there = requirement.replace(name, conda_names.get(name, name), 1)
        assert there in environment["dependencies"]
    extra = {"python", "graphviz", "runc", "pip"}
    named = {re.match(r"[\w-]+", line)[0] for line in environment["dependencies"]}
    mine = {conda_names.get(name, name) for name in (re.match(r"[\w-]+", r)[0] for r in wanted["dependencies"])}
    assert named == mine | extra


def test_lab_installs_the_packages_that_machine_names():
    pairs = re.search(r"^tools='(.*)'$", (CHECKOUT / "lab").read_text(), re.M)[1].split()
    assert [tuple(pair.split(":")) for pair in pairs] == [
        (name, machine.tool(name).packages["apt"]) for name in machine.FIRST
    ]
    assert {tool.name for tool in machine.TOOLS if tool.needed} <= set(machine.FIRST)


@pytest.mark.parametrize("name", sorted(path.name for path in CHECKOUT.glob("*.md")))
def test_links_and_images_of_a_page_resolve(name):
    text = (CHECKOUT / name).read_text()
    images = re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", text)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    for target in targets:
        if not re.match(r"https?://|#", target):
            assert (CHECKOUT / target.partition("#")[0]).exists(), target
    assert all(alternative.strip() for alternative, _ in images), "an image without words for who can't see it"


def test_the_readme_shows_the_two_commands_on_its_first_screen():
    first_screen = (CHECKOUT / "README.md").read_text().splitlines()[:30]
    assert "./lab" in [line.split("#")[0].strip() for line in first_screen]
    assert "./lab test" in [line.split("#")[0].strip() for line in first_screen]


def test_the_readme_links_exactly_the_lessons_that_are_written():
    rows = re.findall(r"^\| (\[?\d\d-.*?) \|(.*)$", (CHECKOUT / "README.md").read_text(), re.M)
    assert [re.search(r"\d\d", name)[0] for name, _ in rows] == [f"{number:02}" for number in range(9)]
    for lesson, rest in rows:
        name = re.search(r"\d\d-[\w-]+", lesson)[0]
        written = (CHECKOUT / f"notebooks/{name}.ipynb").exists()
        assert lesson == (f"[{name}](notebooks/{name}.ipynb)" if written else name)
        assert ("being written" in rest) != written


@pytest.mark.parametrize("script", ["lab", ".ci/run"])
def test_shellcheck_finds_nothing(script):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is missing")
    done = subprocess.run(["shellcheck", script], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_module_says_what_it_is_and_uses_no_shell(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert not any(keyword.arg == "shell" for keyword in node.keywords), f"line {node.lineno}"
            called = ast.unparse(node.func)
            assert called not in ("os.system", "os.popen", "subprocess.getoutput"), f"line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_command_has_a_time_limit(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("subprocess.run", "subprocess.check_output"):
            assert any(keyword.arg == "timeout" for keyword in node.keywords), f"line {node.lineno}"


def test_no_file_names_a_home_directory_of_someone():
    home = re.compile(rb"/(?:home|Users)/(?!u\b|you\b|uncontained|seat-)\w+|/work/(?:main|shared)\b")
    for path in files_of_the_repository():
        found = home.search(path.read_bytes()) if path.is_file() and path != Path(__file__) else None
        assert not found, f"{path.relative_to(CHECKOUT)}: {found[0]}"
