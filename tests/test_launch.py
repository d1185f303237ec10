"""What is launched is measured against the tools that made it, and nothing of it is left."""

from helpers import bundles, launch

SCRIPT = ["sh", "-c", "echo here; exec sleep 1000"]


def test_a_plain_program_has_no_fence_and_ends(lab):
    seen = launch.measure(lab, SCRIPT)
    assert (seen.line, seen.namespaces, seen.names, seen.seccomp) == ("here", (), ("sleep",), False)
    assert 0 < seen.milliseconds < 20_000 and 0 < seen.megabytes < 100
    assert lab.find("sleep") == []


def test_namespaces_are_those_that_unshare_was_asked_for(lab):
    seen = launch.measure(lab, ["unshare", "--uts", "--net", *SCRIPT])
    assert seen.namespaces == ("net", "uts")


def test_capabilities_are_counted(lab):
    seen = launch.measure(lab, ["setpriv", "--bounding-set=-all,+kill,+chown", *SCRIPT])
    assert seen.capabilities == 2


def test_all_processes_count(lab):
    seen = launch.measure(lab, ["unshare", "--pid", "--fork", *SCRIPT])
    assert seen.names == ("unshare", "sleep") and "pid" in seen.namespaces


def test_an_earlier_command_comes_first(lab):
    seen = launch.measure(lab, ["sh", "-c", "sleep 1000 & echo first"], ["true"])
    assert seen.line == "first" and seen.names == ("sleep",)


def test_what_does_not_start_says_why(lab):
    said = launch.measure(lab, ["unshare", "--no-such-option"])
    assert "unshare" in said
    assert launch.measure(lab, ["false"], SCRIPT) == "it said nothing"
    compared = launch.compare({"good": launch.measure(lab, SCRIPT), "bad": said})
    assert compared.splitlines()[1].split()[:2] == ["good", "none"]
    assert compared.splitlines()[-1] == f"bad can't, here: {said}"


def test_runc_is_measured_as_runc_says(lab):
    bundles.make(lab, "measured", SCRIPT)
    seen = launch.measure(lab, ["runc", "run", "--bundle", "measured", "measured"])
    assert seen.capabilities == 3 and seen.names == ("runc", "sleep")
    assert set(seen.namespaces) >= {"pid", "mnt", "net", "ipc", "uts"}
