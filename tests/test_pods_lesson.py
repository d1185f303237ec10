"""Lesson 06: its grid of switches on made-up records, in a real lab and in JupyterLab; its engines; its calls."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_live import SETUP

from helpers import bundles, cgroups, cri, engines, pictures, pod_widget, processes
from helpers.browser import run
from helpers.lab import start_lab
from helpers.processes import Process, wait_until
from notebooks.programs import image

CELLS = [
    SETUP + """
from helpers import pod_widget
from helpers.lab import start_lab
lab = start_lab()""",
    "pod_widget.show(lab)",
    "lab.close()",
]  # fmt: skip
ROWS = [
    {"kind": "net", "title": "net", "test": "reach A on localhost", "choices": ["own", "own"],
     "inodes": ["11", "12"], "works": False},
    {"kind": "ipc", "title": "ipc", "test": "find A's System V memory", "choices": ["pod", "pod"],
     "inodes": ["13", "13"], "works": True},
]  # fmt: skip

# ---- the grid, on made-up records


def test_a_member_joins_what_is_the_pods_and_makes_what_is_its_own():
    choices = dict.fromkeys(pod_widget.KINDS, "host")
    assert pod_widget.command(choices, 7) == ["unshare", "--mount"]
    assert pod_widget.command({**choices, "pid": "own"}, 7) == ["unshare", "--mount", "--pid", "--fork"]
    joined = pod_widget.command({**choices, "net": "pod", "uts": "own"}, 7)
    assert joined == ["nsenter", "--target", "7", "--net", "unshare", "--mount", "--uts"]


@pytest.mark.parametrize("switches", [{"network": ["pod", "pod"]}, {"net": ["pod"]}, {"net": ["pod", "theirs"]}])
def test_a_switch_that_there_is_not_is_named(switches):
    with pytest.raises(LookupError, match="net"):
        pod_widget.checked(switches)


def test_a_switch_that_is_not_named_stands_as_in_a_usual_pod():
    found = pod_widget.checked({"net": ["own", "host"]})
    assert found["net"] == ["own", "host"]
    assert found["uts"] == ["pod", "pod"] and found["pid"] == ["own", "own"]


def test_the_picture_says_what_works_and_shows_the_numbers_that_prove_it():
    picture = pod_widget.picture(ROWS)
    assert str(picture).rstrip() == """\
B can find A's System V memory.
namespace  A       B       can B ...                  answer
net        own 11  own 12  reach A on localhost?      no
ipc        pod 13  pod 13  find A's System V memory?  yes"""
    assert picture.png().startswith(b"\x89PNG")
    assert pod_widget.verdict(ROWS[:1]) == "B can do none of it."


def test_a_namespace_map_can_keep_the_order_of_its_rows():
    def one(pid, net):
        return Process(pid, 1, f"p{pid}", pids=(pid,), namespaces=(("net", net),))

    base, rows = one(1, 1), [one(5, 9), one(3, 8), one(4, 8)]
    lines = pictures.namespace_map(rows, "four", ["net"], base=base, given=True).text.splitlines()
    assert [line.split() for line in lines[1:]] == [["p5", "5", "A"], ["p3", "3", "B"], ["p4", "4", "B"]]
    assert pictures.namespace_map(rows, "four", ["net"], base=base).text.splitlines()[1].startswith("p3")


# ---- the grid, in a real lab


@pytest.mark.parametrize("kind", pod_widget.KINDS)
def test_b_finds_what_a_offers_where_their_numbers_are_equal_and_only_there(lab, kind):
    pod = pod_widget.hold(lab)
    for a, b in itertools.product(pod_widget.CHOICES, repeat=2):
        rows = {row["kind"]: row for row in pod_widget.look(lab, pod, pod_widget.checked({kind: [a, b]}))}
        row = rows[kind]
        equal = row["inodes"][0] == row["inodes"][1]
        assert equal == (a == b != "own"), (a, b)
        # Whoever is in the host's PID namespace sees those in the ones that are nested in it.
        assert row["works"] == (equal or (kind == "pid" and b == "host")), (a, b)
        others = {name for name, row in rows.items() if row["works"]} - {kind}
        assert others == {"net", "uts", "ipc", "shm"} - {kind}, "a switch has changed something else"
    assert lab.run(["hostname"], echo=False).stdout == "lab\n"


def test_the_numbers_are_those_that_the_kernel_says(lab):
    pause, _ = pod = pod_widget.hold(lab)
    switches = {**{kind: ["host", "pod"] for kind in pod_widget.KINDS}, "shm": ["own", "own"]}
    for row in pod_widget.look(lab, pod, switches)[:4]:
        said = lab.run(["readlink", f"/proc/1/ns/{row['kind']}", f"/proc/{pause}/ns/{row['kind']}"], echo=False).stdout
        assert [f"{row['kind']}:[{number}]" for number in row["inodes"]] == said.split()


def test_a_run_leaves_no_memory_no_file_and_no_process(lab):
    pod = pod_widget.hold(lab)
    before = {p.pid for p in lab.processes()}
    pod_widget.look(lab, pod, {kind: ["host", "host"] for kind in pod_widget.KINDS})
    wait_until(lambda: {p.pid for p in lab.processes()} == before, "A and B to end")
    assert len(lab.path("/proc/sysvipc/shm").read_text().splitlines()) == 1  # the title
    assert os.listdir(lab.path("/dev/shm")) == []
    assert not [name for name in os.listdir("/dev/shm") if len(name) == 32]


def test_the_grid_says_what_went_wrong_and_keeps_its_rows(lab):
    grid = pod_widget.show(lab)
    before = grid.rows
    grid.switches = {"net": ["pod", "theirs"]}
    assert "host" in grid.trouble
    lab.close()
    grid.switches = pod_widget.checked({})
    grid.runs += 1
    assert "start_lab()" in grid.trouble
    assert grid.rows == before and grid.done == grid.runs


# ---- what the lesson asks /proc


def test_the_ports_of_a_network_are_those_that_ss_lists(lab):
    code = "import socket, sys; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); sys.stdin.read()"
    server = lab.start([sys.executable, "-c", code], stdin=-1, echo=False)
    ports = wait_until(lambda: processes.listening(server.pid, lab.proc), "a port")
    said = lab.run(["ss", "--listening", "--tcp", "--numeric", "--no-header"], echo=False).stdout
    assert {int(line.split()[3].rpartition(":")[2]) for line in said.splitlines()} == ports
    other = lab.start(["unshare", "--net", "sleep", "60"], echo=False)
    wait_until(lambda: processes.read_one(other.pid, lab.proc).name == "sleep", "a network of its own")
    assert processes.listening(other.pid, lab.proc) == set()
    server.stdin.close()


def test_the_first_process_of_a_container_that_runs_is_never_runc_itself(lab):
    for number in range(10):
        name = bundles.make(lab, f"c{number}", ["sleep", "60"], root="c0" if number else None)
        lab.run(["runc", "run", "--detach", "--bundle", name, name], echo=False)
        assert lab.container(name).name == "sleep"
    bundles.make(lab, "waits", ["sleep", "60"], root="c0")
    lab.run(["runc", "create", "--bundle", "waits", "waits"], echo=False)
    assert lab.container("waits").name.startswith("runc"), "a created one has to be shown as it is"


# ---- what a kubelet says


def test_a_message_has_the_bytes_of_the_standard():
    """The examples are those of the encoding's own documentation, and a map."""
    assert cri.encode({"a": 150}, {"a": (1, int)}) == bytes.fromhex("089601")
    assert cri.encode({"b": "testing"}, {"b": (2, str)}) == bytes.fromhex("120774657374696e67")
    assert cri.encode({"c": {"a": 150}}, {"c": (3, {"a": (1, int)})}) == bytes.fromhex("1a03089601")
    assert cri.encode({"a": -2}, {"a": (1, int)}) == bytes.fromhex("08feffffffffffffffff01")
    assert cri.encode({"d": ["x", "y"]}, {"d": (4, [str])}) == bytes.fromhex("220178220179")
    pairs = cri.encode({"e": [{"key": "k", "value": "v"}]}, {"e": (5, [cri.PAIRS])})
    assert pairs == bytes.fromhex("2a060a016b120176")


def test_a_message_survives_the_way_there_and_back_and_unknown_fields_are_left_out():
    fields = {"n": (1, int), "s": (2, str), "m": (3, {"x": (9, [str])}), "l": (16, [{"n": (1, int)}])}
    message = {"n": 300, "s": "grüße", "m": {"x": ["a", "", "b"]}, "l": [{"n": 1}, {"n": 1 << 40}]}
    data = cri.encode(message, fields)
    assert cri.decode(data, fields) == message
    strange = bytes.fromhex("1d00000000" "2100000000000000003a00")  # fixed32, fixed64, an empty string
    assert cri.decode(strange + data, fields) == message


@pytest.mark.parametrize("broken", ["08", "0880", "1205616263", "0b", "08" + "ff" * 12, "12ffffffff0f61"])
def test_a_broken_message_is_refused_with_a_sentence(broken):
    with pytest.raises(cri.CallFailed, match="the answer"):
        cri.decode(bytes.fromhex(broken), {"n": (1, int), "s": (2, str)})


# ---- the engines

RUN = {"Cmd": ["sleep", "60"], "Env": ["PATH=/bin"]}
KEEPERS = ["/etc/docker", "/etc/cni", "/etc/containers", "/var/lib/containers", "/var/lib/docker", "/var/lib/cni",
           "/var/lib/containerd", "/opt/containerd", "/run"]  # fmt: skip


def kept():
    """Every file in the places in which engines keep things on the machine, with its time of change."""
    files = (path for place in KEEPERS for path in Path(place).rglob("*"))
    return {(str(path), path.lstat().st_mtime_ns) for path in files if path.exists()}


def cgroup_names():
    return {place for h in cgroups.hierarchies() for place, _, _ in os.walk(h.mountpoint)}


def saved_image(lab):
    """An image for all engines, as the lesson makes it: a userland that sleeps."""
    lab.run(["mkdir", "root"], echo=False)
    bundles.fill_rootfs(lab.path("root"))
    image.add(lab.path("images"), "localhost/pod:1", [image.pack(lab.path("root"))], RUN)
    image.archive(lab.path("images"), "localhost/pod:1", lab.path("pod.tar"))


def make_pods(lab):
    """A container by Docker, a pod by Podman and one by a node, each with cgroups where the lab has them; processes."""
    saved_image(lab)
    podman, docker = engines.podman(lab, limits=True, pods=True), engines.docker(lab, limits=True)
    node = engines.cri(lab, pause="localhost/pod:1")
    lab.run(["podman", "load", "--input", "pod.tar"], env=podman, echo=False)
    lab.run(["docker", "load", "--input", "pod.tar"], env=docker, echo=False)
    lab.run(["ctr", "--address", node, "--namespace", "k8s.io", "images", "import", "pod.tar"], echo=False)
    lab.run(["podman", "pod", "create", "--name", "duo"], env=podman, echo=False)
    lab.run(["podman", "run", "--detach", "--pod", "duo", "--name", "one", "localhost/pod:1"], env=podman, echo=False)
    run_it = ["docker", "run", "--detach", "--network", "none", "--memory", "64m", "--name", "one", "localhost/pod:1"]
    lab.run(run_it, env=docker, echo=False)
    pod = {"metadata": {"name": "duo", "uid": "1", "namespace": "default"}}
    if lab.cgroup:
        pod["linux"] = {"cgroup_parent": f"{lab.cgroup}/node"}
    sandbox = cri.call(lab, node, "RunPodSandbox", {"config": pod}, echo=False)["pod_sandbox_id"]
    made = [*engines.inside(lab, "podman", ["one"], podman), *engines.inside(lab, "docker", ["one"], docker)]
    tasks = lab.run(["ctr", "--address", node, "--namespace", "k8s.io", "tasks", "list"], echo=False).stdout
    return [*made, processes.read_one(int(tasks.split(sandbox)[1].split()[0]), lab.proc)]


@pytest.fixture
def all_engines(leak_check):
    """Skips where one is missing; and after the test the machine's files and cgroups are those from before."""
    if not all(map(shutil.which, ("podman", "crun", "docker", "dockerd", "containerd", "curl"))):
        pytest.skip("an engine is missing")
    files, groups = kept(), cgroup_names()
    yield
    assert leak_check.left() == []
    assert kept() == files
    wait_until(lambda: cgroup_names() <= groups, "the cgroups to go")


def test_the_engines_leave_nothing_on_the_machine_and_their_cgroups_are_below_the_labs_own(all_engines):
    lab = start_lab()
    try:
        made = make_pods(lab)
        assert len({p.cgroup for p in made}) == (3 if lab.cgroup else 1)
        if lab.cgroup:
            assert all(p.cgroup.startswith(f"{lab.cgroup}/") for p in made)
            assert processes.cgroup_number("memory.limit", made[1].pid, lab.proc) == 64 << 20
            assert processes.cgroup_number("memory.limit", made[0].pid, lab.proc) is None
    finally:
        closed = lab.close()
    assert closed.left == ()


MAKE_AND_WAIT = """
import sys
import test_pods_lesson
from helpers.lab import start_lab
print(len(test_pods_lesson.make_pods(start_lab())), flush=True)
sys.stdin.read()
"""


def test_nothing_of_the_engines_is_left_when_the_kernel_is_killed_while_the_pods_stand(all_engines):
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}:{here}"}
    held = subprocess.Popen([sys.executable, "-c", MAKE_AND_WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True, env=environment)  # fmt: skip
    with held:
        assert held.stdout.readline() == "3\n"
        held.kill()


def test_a_node_refuses_in_its_own_words(lab):
    try:
        node = engines.cri(lab, pause="localhost/pod:1")
    except engines.EngineError as error:
        pytest.skip(str(error))
    assert cri.call(lab, node, "Version", echo=False)["runtime_name"] == "containerd"
    with pytest.raises(cri.CallFailed, match="not found"):
        cri.call(lab, node, "StartContainer", {"container_id": "nobody"}, echo=False)
    with pytest.raises(LookupError):
        cri.call(lab, node, "StartContainer", {"name": "nobody"}, echo=False)


def test_what_a_node_lacks_is_named(monkeypatch, lab):
    monkeypatch.setattr(engines, "PLUGINS", ("/nowhere",))
    assert engines.lacking_for_cri()[-1] == "containernetworking-plugins"
    with pytest.raises(engines.EngineError, match="containernetworking-plugins missing"):
        engines.cri(lab, pause="localhost/pod:1")


def test_a_podman_that_can_make_no_pause_says_so_before_a_pod_is_wanted(monkeypatch, lab):
    monkeypatch.setattr(engines.machine, "find", lambda name: None if name == "catatonit" else f"/usr/bin/{name}")
    monkeypatch.setattr(engines, "PAUSES", ())
    with pytest.raises(engines.EngineError, match="no catatonit"):
        engines.podman(lab, pods=True)
    assert "HOME" in engines.podman(lab), "for containers it needs none"


# ---- in JupyterLab


def test_the_grid_is_worked_by_the_keyboard_alone(leak_check, notebook):
    page = notebook(CELLS)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    run(page, 0)
    run(page, 1)
    button = page.locator(".pod button")
    button.wait_for()

    def answers():
        return dict(zip(pod_widget.KINDS, page.locator(".pod td.result").all_inner_texts(), strict=True))

    assert page.locator(".pod input[type=radio]").count() == 30
    assert answers() == {"net": "yes", "uts": "yes", "ipc": "yes", "pid": "no", "shm": "yes"}
    assert page.locator(".pod td.same").count() == 8

    page.locator(".pod td[data-side=net-0] input[value=pod]").focus()
    page.keyboard.press("ArrowLeft")  # own
    wait_until(lambda: answers()["net"] == "?", "the old answer to be withdrawn", 30)
    assert page.locator(".pod td[data-side=net-0] input[value=own]").is_checked()
    assert "changed since the last run" in page.locator(".pod [aria-live]").inner_text()
    wait_until(lambda: "--net" in page.locator(".pod code").first.inner_text().partition("unshare")[2], "words", 30)
    page.keyboard.press("Tab")  # B's switch of net
    page.keyboard.press("Tab")  # A's of uts
    page.keyboard.press("ArrowRight")  # host
    button.focus()
    page.keyboard.press("Enter")
    wait_until(lambda: answers()["net"] == "no", "the run", 30)
    assert answers() == {"net": "no", "uts": "no", "ipc": "yes", "pid": "no", "shm": "yes"}
    assert page.locator(".pod td.same").count() == 4
    wait_until(button.is_enabled, "the button", 30)
    shot = os.environ.get("SHOTS")
    if shot:
        page.locator(".pod").screenshot(path=f"{shot}/pod-grid.png")

    page.keyboard.press("Enter")  # the same answers again: the button comes back all the same
    wait_until(button.is_enabled, "the button", 30)
    run(page, 2)
    button.focus()
    page.keyboard.press("Enter")
    page.get_by_text("start_lab()").first.wait_for()
    assert complaints == []
