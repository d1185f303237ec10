"""runc, crun and vmrun, each held against what the specification says: runtime_checks.py, the same code for all."""

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import CHECKOUT, EXCUSE, LeakCheck, snapshot

pytest.register_assert_rewrite("runtime_checks")
import runtime_checks  # noqa: E402

from helpers import machine, preflight  # noqa: E402
from helpers.lab import start_lab  # noqa: E402

VMRUN = CHECKOUT / "notebooks/programs/vmrun"
RUNTIMES = {"runc": ["runc"], "crun": ["crun"], "vmrun": [str(VMRUN)]}
CGROUPS = "the program's processes are none of this kernel's; only memory has a limit, and it is the machine's size"
FENCE = "the machine is the fence: nothing in it shares a kernel, so there is no namespace to make, inherit or join"
#: (runtime, check) -> why it does not pass. Those of runc and crun are deviations of the versions in Debian 12 and 13.
EXCUSED = {
    ("runc", "delete_of_a_created_container_is_refused"):
        "runc kills what is only created and deletes it, on purpose: opencontainers/runc issue 1774",
    ("crun", "delete_of_a_created_container_is_refused"):
        "crun does as runc does, on purpose: containers/crun pull request 838",
    ("runc", "the_poststart_hook_is_done_when_start_returns"):
        "runc up to 1.4 runs it at the end of create: opencontainers/runc issue 4347",
    ("runc", "a_failing_hook_at_the_end_stops_nothing"):
        "runc 1.1 leaves out the poststop hooks that follow a failing one",
    ("crun", "a_word_or_a_number_of_the_wrong_type_is_refused"):
        "crun's parser takes a scalar of the wrong type for one that is absent",
    ("crun", "a_container_without_a_process_is_not_started"):
        "crun 1.21 starts it, and nothing runs (1.8 refuses)",
    ("crun", "a_relative_working_directory_is_refused"):
        "crun takes a relative directory as relative to the root",
    ("vmrun", "the_namespaces_that_are_listed_are_new"): FENCE,
    ("vmrun", "a_namespace_that_is_not_listed_is_inherited"): FENCE,
    ("vmrun", "a_namespace_with_a_path_is_joined"): FENCE,
    ("vmrun", "the_create_container_hook_runs_in_the_containers_namespaces"): FENCE,
    ("vmrun", "the_container_is_in_the_cgroup_of_the_config"): CGROUPS,
    ("vmrun", "a_limit_of_the_config_is_in_the_cgroup"): CGROUPS,
    ("vmrun", "delete_leaves_no_cgroup"): CGROUPS,
    ("vmrun", "what_is_written_to_a_bind_mount_is_in_its_source"):
        "a bind mount is a copy in the machine's memory: a live one needs virtiofs and a second program",
    ("vmrun", "the_bounding_set_is_what_the_config_says"):
        "root in the machine is root there and nowhere else: capabilities fence it off from nothing",
    ("vmrun", "a_system_call_that_is_filtered_fails"):
        "a system call of the program reaches the machine's kernel only: nothing of the host is behind it to protect",
}  # fmt: skip


@pytest.fixture(scope="module")
def judged():
    """A function from the name of a runtime to {check: its error, None, or why it can't be tried here}.

    All checks of a runtime run once, two at a time, in one lab; nothing of it may be left afterwards.
    """
    leaks = LeakCheck(frozenset(snapshot()))
    lab, verdicts = start_lab(), {}

    def judge(name):
        if name not in verdicts:
            runtime = runtime_checks.Runtime(lab, name, RUNTIMES[name])
            with ThreadPoolExecutor(2) as workers:
                outcomes = workers.map(lambda check: outcome(runtime, check), runtime_checks.CHECKS)
                verdicts[name] = {check.name: said for check, said in zip(runtime_checks.CHECKS, outcomes, strict=True)}
        return verdicts[name]

    yield judge
    assert lab.close().left == ()
    assert leaks.left() == []


def outcome(runtime, check):
    if check.needs == "limits" and "pids" not in runtime.lab.limits:
        return "limit memory and processes"
    if check.needs == "users" and os.getuid() != 0 and not machine.has_subordinate_ids():
        return "have more than one user in a lab"
    try:
        check.function(runtime)
    except Exception as error:  # noqa: BLE001 # whatever it is, it is this check's
        return error
    return None


@pytest.mark.parametrize("check", [check.name for check in runtime_checks.CHECKS])
@pytest.mark.parametrize("name", RUNTIMES)
def test_the_runtime_does_what_the_specification_asks(name, check, judged):
    if not machine.find(RUNTIMES[name][0]):
        pytest.skip(f"{name} is missing")
    if name == "vmrun" and not preflight.emulator().here:
        pytest.skip(preflight.emulator().detail)
    said = judged(name)[check]
    if isinstance(said, str):
        pytest.skip(EXCUSE + said)
    if (name, check) in EXCUSED and name == "vmrun":
        assert said is not None, "it needs no excuse any more"
    if said is not None and (name, check) in EXCUSED:
        pytest.xfail(EXCUSED[name, check])
    if said is not None:
        raise said


def test_there_are_enough_checks_and_each_names_its_sentence():
    names = [check.name for check in runtime_checks.CHECKS]
    assert len(names) >= 60 and len(set(names)) == len(names)
    for check in runtime_checks.CHECKS:
        assert re.fullmatch(r"(runtime|runtime-linux|config|config-linux|bundle|glossary)\.md", check.file), check
        assert check.section and len(check.sentence) > 30, check
    assert {name for _, name in EXCUSED} <= set(names)
    assert all(sum(name == one for name, _ in EXCUSED) <= 10 for one in RUNTIMES), "a short list"


#: A runtime that lies: runc behind a shell script with one fault; the checks that must find it out.
LIARS = {
    'case $1 in delete) shift; exec runc delete --force "$@";; esac': ["delete_of_a_running_container_is_refused"],
    'case $1 in start) runc "$@"; exit 0;; esac':
        ["start_of_a_running_container_is_refused", "start_of_no_container_is_refused",
         "start_without_an_id_is_refused"],
    'case $1 in kill) exit 0;; esac': ["kill_sends_the_signal_that_it_was_given", "kill_of_no_container_is_refused"],
    'case $1 in create) shift; exec runc run --detach "$@";; esac':
        ["create_does_not_run_the_program", "the_status_after_create_is_created"],
    'case $1 in create) sed -i s/mrsdalloway/other/ "$3/config.json";; esac':
        ["the_hostname_is_set_inside_and_only_there"],
    'case $1 in create) sed -i "s/\\"hooks\\"/\\"hoooks\\"/" "$3/config.json";; esac':
        ["hooks_of_one_kind_come_in_the_listed_order", "hooks_get_the_state_on_their_standard_input",
         "a_failing_hook_at_create_undoes_the_container"],
    'case $1 in create) sed -i s/RLIMIT_NOFILE/RLIMIT_STACK/ "$3/config.json";; esac': ["the_soft_limits_match"],
}  # fmt: skip


@pytest.mark.parametrize("fault", LIARS)
def test_a_runtime_that_breaks_a_rule_is_found_out(fault, lab, monkeypatch):
    monkeypatch.setattr(runtime_checks, "PATIENCE", 3)
    place = lab.path("liar")
    place.write_text(f'#!/bin/sh\n{fault}\nexec runc "$@"\n')
    place.chmod(0o755)
    runtime = runtime_checks.Runtime(lab, "liar", ["/run/lab/liar"])
    checks = {check.name: check.function for check in runtime_checks.CHECKS}
    for name in LIARS[fault]:
        with pytest.raises((AssertionError, OSError)):
            checks[name](runtime)
