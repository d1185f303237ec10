"""What the OCI Runtime Specification asks of a runtime, as checks that any runtime can be held against.

Each check quotes the sentence that it tests, with the file and the section of the specification it stands in
(https://github.com/opencontainers/runtime-spec). The words are those of version 1.0.2, which the runtimes in Debian 12
implement; "(1.3)" behind a section marks the wording of version 1.3. A check gets a `Runtime`; it fails with an
AssertionError, or with `Refused` when a command ended with an error that it should not have.
"""

import array
import contextlib
import copy
import functools
import json
import os
import re
import select
import shutil
import socket
import threading
import time
from dataclasses import dataclass, field

from helpers import bundles, processes

PATIENCE = 90  # seconds for one command, or for one condition; a machine may boot beside many others
CHECKS = []


@dataclass(frozen=True)
class Check:
    """One demand. `needs` names what it depends on beside the runtime: "limits", "users", or nothing."""

    name: str
    file: str
    section: str
    sentence: str
    function: object = field(repr=False)
    needs: str = ""


def asks(place, sentence, needs=""):
    """Register a check of the `sentence` at `place`, which is "file.md, Section"."""

    def register(function):
        file, _, section = place.partition(", ")
        CHECKS.append(Check(function.__name__, file, section, sentence, function, needs))
        return function

    return register


# ---- a runtime, and what it makes


class Refused(AssertionError):
    """A command of the runtime ended with an error. The message is what it said."""


@contextlib.contextmanager
def refused():
    """The block must be refused by the runtime; its message is added to the list that this gives."""
    said = []
    try:
        yield said
    except Refused as error:
        said.append(str(error))
    else:
        raise AssertionError("the runtime did not refuse it")


class Runtime:
    """The command line of a runtime in a lab. Several threads may use it."""

    def __init__(self, lab, name, argv):
        self.lab, self.name, self.argv = lab, name, tuple(argv)
        self.lock, self.count, self.reports = threading.Lock(), 0, {}
        bundles.make(lab, f"{name}-model", ["true"])
        self.model = json.loads(lab.path(f"{name}-model/config.json").read_text())

    def call(self, *words, cwd="/run/lab", out=None):
        """Run one command of the runtime to its end and return its standard output; `out` names a file for both."""
        if out:
            step = self.lab.start([*self.argv, *words], stdout=out, stderr=f"{out}.err", echo=False, cwd=cwd)
            code, said = step.wait(PATIENCE), ""
            error = self.lab.path(f"{out}.err", cwd).read_text()
        else:
            done = self.lab.run([*self.argv, *words], echo=False, check=False, timeout=PATIENCE, cwd=cwd)
            code, said, error = done.code, done.stdout, done.stderr
        if code != 0:
            assert "Traceback" not in error, error
            raise Refused(error.strip() or said.strip() or f"status {code}, and no word")
        return said

    @contextlib.contextmanager
    def bundle(self, args=("true",), change=None):
        """A new bundle as a `Container` that is not created yet; it is deleted and removed afterwards."""
        with self.lock:
            self.count += 1
            name = f"{self.name}-{self.count}"
        config = copy.deepcopy(self.model)
        config["process"]["args"] = list(args)
        bundles.keep_cgroup(config, self.lab, name)
        container = Container(self, name, f"/run/lab/{name}")
        shutil.copytree(self.lab.path(f"{self.name}-model/rootfs"), container.path("rootfs"), symlinks=True)
        if change:
            change(config)
        container.write(config)
        try:
            yield container
        finally:
            self.lab.run([*self.argv, "delete", "--force", name], echo=False, check=False, timeout=PATIENCE)
            self.lab.run(["rm", "-rf", container.place], echo=False, check=False)

    @contextlib.contextmanager
    def running(self, args, change=None):
        """A container that runs `args`, which must print a line before they wait."""
        with self.bundle(args, change) as container:
            container.create()
            container.start()
            container.wait_for_output("\n")
            yield container

    def report(self, name, script, change=None, args=()):
        """What a container prints in sections that begin with @NAME, as a dict; each container runs once."""
        with self.lock:
            lock = self.reports.setdefault(name, threading.Lock())
        with lock:
            if (name, "said") not in self.reports:
                with self.bundle(["sh", "-c", script, "sh", *args], change) as container:
                    container.run()
                    said = container.output()
                self.reports[name, "said"] = said
            parts = re.split(r"^@(\w+)\n", self.reports[name, "said"], flags=re.M)
            sections = dict(zip(parts[1::2], parts[2::2], strict=True))
            assert sections, f"the container told nothing: {self.reports[name, 'said']!r}"
            return sections


@dataclass(frozen=True)
class Container:
    """A bundle at `place` in the lab, and the container of the same name that is made of it."""

    runtime: Runtime = field(repr=False)
    id: str
    place: str

    def path(self, name):
        """A file of the bundle, as this process sees it."""
        return self.runtime.lab.path(name, self.place)

    def write(self, config):
        self.path("config.json").write_text(config if isinstance(config, str) else json.dumps(config))

    def config(self):
        return json.loads(self.path("config.json").read_text())

    def create(self, *options):
        self.runtime.call("create", "--bundle", self.place, *options, self.id, cwd=self.place, out="out")

    def start(self):
        self.runtime.call("start", self.id)

    def kill(self, *words):
        self.runtime.call("kill", self.id, *words)

    def delete(self):
        self.runtime.call("delete", self.id)

    def state(self):
        return json.loads(self.runtime.call("state", self.id))

    def status(self):
        return self.state()["status"]

    def wait(self, status="stopped"):
        processes.wait_until(lambda: self.status() == status, f"{self.id} to be {status}", PATIENCE)

    def run(self):
        """Create, start, and wait for the end."""
        self.create()
        self.start()
        self.wait()

    def output(self):
        return self.path("out").read_text(errors="replace")

    def wait_for_output(self, text):
        processes.wait_until(lambda: text in self.output(), f"{text!r} from {self.id}", PATIENCE)

    def known(self):
        """Whether the runtime knows a container of this name."""
        try:
            self.state()
        except Refused:
            return False
        return True

    def process(self):
        """The process that the state names, or None when there is none any more."""
        return processes.read_one(self.state()["pid"], self.runtime.lab.proc)


WAITS = ["sh", "-c", "echo up; exec sleep 1000"]


def both(*changes):
    """One change made of several."""

    def change(config):
        for one in changes:
            one(config)

    return change


def writable(config):
    config["root"]["readonly"] = False


def setting(*path, to):
    """A change of the config: setting("process", "cwd", to="/tmp")."""

    def change(config):
        at = config
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = to

    return change


def without(*path):
    """A change of the config that removes an entry."""

    def change(config):
        del functools.reduce(lambda at, key: at[key], path[:-1], config)[path[-1]]

    return change


def mounting(*mounts):
    """A change of the config that adds mounts, each (destination, type, source, options...)."""

    def change(config):
        for destination, kind, source, *options in mounts:
            entry = {"destination": destination, "type": kind, "source": source, "options": options}
            config["mounts"].append(entry)

    return change


def refuses(runtime, change, args=("true",)):
    """Create, or at the latest start, must be refused with this config; returns what was said."""
    with runtime.bundle(args, change) as container, refused() as said:
        container.create()
        container.start()
    return said[0]


def refuses_to_create(runtime, change):
    """Create must be refused, and leave no container behind."""
    with runtime.bundle(change=change) as container:
        with refused() as said:
            container.create()
        assert not container.known(), "a container is there all the same"
        return said[0]


# ---- runtime.md, State


def state_of_created(runtime):
    with runtime.bundle(WAITS, setting("annotations", to={"com.example.key": "value"})) as container:
        container.create()
        return container, container.state()


STATE = "runtime.md, State"


@asks(STATE, "`ociVersion` (string, REQUIRED) is version of the Open Container Initiative Runtime Specification with "
             "which the state complies.")  # fmt: skip
def the_state_names_the_version_of_the_specification(runtime):
    _, state = state_of_created(runtime)
    assert re.match(r"1\.\d+\.\d+", state["ociVersion"])


@asks(STATE, "`id` (string, REQUIRED) is the container's ID.")
def the_state_has_the_id(runtime):
    container, state = state_of_created(runtime)
    assert state["id"] == container.id


@asks(STATE, "`created`: the runtime has finished the create operation (after step 2 in the lifecycle), and the "
             "container process has neither exited nor executed the user-specified program")  # fmt: skip
def the_status_after_create_is_created(runtime):
    _, state = state_of_created(runtime)
    assert state["status"] == "created"


@asks(STATE, "`running`: the container process has executed the user-specified program but has not exited")
def the_status_after_start_is_running(runtime):
    with runtime.running(WAITS) as container:
        assert container.status() == "running"


@asks(STATE, "`stopped`: the container process has exited")
def the_status_after_the_end_is_stopped(runtime):
    with runtime.bundle(["true"]) as container:
        container.run()
        assert container.status() == "stopped"


@asks(STATE, "`pid` (int, REQUIRED when `status` is `created` or `running` on Linux, OPTIONAL on other platforms) is "
             "the ID of the container process")  # fmt: skip
def the_state_names_a_living_process(runtime):
    with runtime.bundle(WAITS) as container:
        container.create()
        created = container.process()
        container.start()
        container.wait_for_output("up")
        assert created is not None and container.process() is not None
        assert created.pid == container.state()["pid"] > 1


@asks(STATE, "`bundle` (string, REQUIRED) is the absolute path to the container's bundle directory.")
def the_state_names_the_bundle_by_its_absolute_path(runtime):
    with runtime.bundle(WAITS) as container:
        runtime.call("create", "--bundle", container.id, container.id, out=f"{container.id}/out")  # a relative one
        assert container.state()["bundle"] == container.place


@asks(STATE, "`annotations` (map, OPTIONAL) contains the list of annotations associated with the container.")
def the_state_has_the_annotations(runtime):
    _, state = state_of_created(runtime)
    assert state["annotations"]["com.example.key"] == "value"


# ---- runtime.md, Operations

QUERY = "runtime.md, Query State"


@asks(QUERY, "This operation MUST generate an error if it is not provided the ID of a container.")
def state_without_an_id_is_refused(runtime):
    with refused():
        runtime.call("state")


@asks(QUERY, "Attempting to query a container that does not exist MUST generate an error.")
def state_of_no_container_is_refused(runtime):
    with refused():
        runtime.call("state", "nobody")


CREATE = "runtime.md, Create"


@asks(CREATE, "This operation MUST generate an error if it is not provided a path to the bundle and the container ID "
              "to associate with the container.")  # fmt: skip
def create_without_an_id_is_refused(runtime):
    with runtime.bundle() as container, refused():
        runtime.call("create", "--bundle", container.place, cwd=container.place)


@asks(CREATE, "If the ID provided is not unique across all containers within the scope of the runtime, or is not "
              "valid in any other way, the implementation MUST generate an error and a new container MUST NOT be "
              "created.")  # fmt: skip
def a_second_container_of_one_name_is_refused(runtime):
    with runtime.running(WAITS) as container:
        before = container.state()
        with refused():
            container.create()
        assert container.state() == before and container.process() is not None


@asks(CREATE, "If the ID provided is not unique across all containers within the scope of the runtime, or is not "
              "valid in any other way, the implementation MUST generate an error and a new container MUST NOT be "
              "created.")  # fmt: skip
def an_id_that_is_no_name_is_refused(runtime):
    with runtime.bundle() as container:
        for bad in ("../up", "a/b", "..", ""):
            with refused():
                runtime.call("create", "--bundle", container.place, bad, cwd=container.place)


@asks(CREATE, "`process.args` MUST NOT be applied until triggered by the `start` operation.")
def create_does_not_run_the_program(runtime):
    with runtime.bundle(["echo", "it ran"]) as container:
        container.create()
        assert container.status() == "created" and container.output() == ""
        container.start()
        container.wait_for_output("it ran\n")


@asks(CREATE, "Any changes made to the `config.json` file after this operation will not have an effect on the "
              "container.")  # fmt: skip
def a_change_after_create_has_no_effect(runtime):
    with runtime.bundle(["echo", "early"]) as container:
        container.create()
        container.write({**container.config(), "process": {**container.config()["process"], "args": ["echo", "late"]}})
        container.start()
        container.wait()
        assert container.output() == "early\n"


@asks(CREATE, "This operation MUST create a new container.")
def two_containers_of_one_bundle_are_two(runtime):
    with runtime.running(WAITS) as first, runtime.bundle() as second:
        config = first.config()
        bundles.keep_cgroup(config, runtime.lab, second.id)  # newer runtimes refuse a cgroup in which somebody is
        first.write(config)
        runtime.call("create", "--bundle", first.place, second.id, out=f"{second.id}/out")
        assert second.status() == "created" and first.status() == "running"
        assert first.state()["pid"] != second.state()["pid"]


@asks("runtime.md, Lifecycle", "If the runtime is unable to create the environment specified in the `config.json`, it "
                               "MUST generate an error.")  # fmt: skip
def a_bind_of_what_is_not_there_is_refused(runtime):
    refuses_to_create(runtime, mounting(("/mnt", "none", "/nowhere/at/all", "bind")))


@asks("runtime.md, Errors", "Unless otherwise stated, generating an error MUST leave the state of the environment as "
                            "if the operation were never attempted - modulo any possible trivial ancillary changes "
                            "such as logging.")  # fmt: skip
def after_a_refused_create_the_id_is_free(runtime):
    with runtime.bundle(["echo", "ok"], mounting(("/mnt", "none", "/nowhere/at/all", "bind"))) as container:
        before = {p.pid for p in runtime.lab.processes() if container.id in " ".join(p.argv)}
        with refused():
            container.create()
        here = {p.pid for p in runtime.lab.processes() if container.id in " ".join(p.argv)}
        assert here <= before, "a process of it is left"
        config = container.config()
        config["mounts"].pop()
        container.write(config)
        container.path("out").write_text("")
        container.run()
        assert container.output() == "ok\n"


START = "runtime.md, Start"


@asks(START, "This operation MUST generate an error if it is not provided the container ID.")
def start_without_an_id_is_refused(runtime):
    with refused():
        runtime.call("start")


@asks(START, "Attempting to `start` a container that is not `created` MUST have no effect on the container and MUST "
             "generate an error.")  # fmt: skip
def start_of_a_running_container_is_refused(runtime):
    with runtime.running(WAITS) as container:
        before = container.state()
        with refused():
            container.start()
        assert container.state() == before and container.output() == "up\n"


@asks(START, "Attempting to `start` a container that is not `created` MUST have no effect on the container and MUST "
             "generate an error.")  # fmt: skip
def start_of_a_stopped_container_is_refused(runtime):
    with runtime.bundle(["echo", "once"]) as container:
        container.run()
        with refused():
            container.start()
        assert container.status() == "stopped" and container.output() == "once\n"


@asks(START, "Attempting to `start` a container that is not `created` MUST have no effect on the container and MUST "
             "generate an error.")  # fmt: skip
def start_of_no_container_is_refused(runtime):
    with refused():
        runtime.call("start", "nobody")


@asks(START, "This operation MUST run the user-specified program as specified by `process`.")
def start_runs_the_program(runtime):
    with runtime.bundle(["sh", "-c", "echo I am $$"]) as container:
        container.run()
        assert re.fullmatch(r"I am \d+\n", container.output())


@asks(START, "This operation MUST generate an error if `process` was not set.")
def a_container_without_a_process_is_not_started(runtime):
    refuses(runtime, without("process"))


@asks(START, "This operation MUST run the user-specified program as specified by `process`.")
def a_program_that_is_not_there_is_an_error(runtime):
    refuses(runtime, None, args=["no-such-program"])


KILL = "runtime.md, Kill"


@asks(KILL, "This operation MUST generate an error if it is not provided the container ID.")
def kill_without_an_id_is_refused(runtime):
    with refused():
        runtime.call("kill")


@asks(KILL, "Attempting to send a signal to a container that is neither `created` nor `running` MUST have no effect on "
            "the container and MUST generate an error.")  # fmt: skip
def kill_of_a_stopped_container_is_refused(runtime):
    with runtime.bundle() as container:
        container.run()
        before = container.state()
        with refused():
            container.kill("KILL")
        assert container.state() == before


@asks(KILL, "Attempting to send a signal to a container that is neither `created` nor `running` MUST have no effect on "
            "the container and MUST generate an error.")  # fmt: skip
def kill_of_no_container_is_refused(runtime):
    with refused():
        runtime.call("kill", "nobody", "KILL")


@asks(KILL, "This operation MUST send the specified signal to the container process.")
def kill_sends_the_signal_that_it_was_given(runtime):
    traps = "".join(f"trap 'echo {name}' {name}; " for name in ("TERM", "HUP", "USR1"))
    with runtime.running(["sh", "-c", f"{traps}echo up; while :; do sleep 0.1; done"]) as container:
        for name in ("USR1", "HUP", "TERM"):
            container.kill(name)
            container.wait_for_output(f"{name}\n")
        assert container.output() == "up\nUSR1\nHUP\nTERM\n" and container.status() == "running"


@asks(KILL, "This operation MUST send the specified signal to the container process.")
def kill_takes_a_signal_by_its_number_too(runtime):
    script = "trap 'echo it is 10' USR1; echo up; while :; do sleep 0.1; done"
    with runtime.running(["sh", "-c", script]) as container:
        container.kill("10")
        container.wait_for_output("it is 10\n")


@asks(KILL, "This operation MUST send the specified signal to the container process.")
def kill_ends_a_running_container(runtime):
    with runtime.running(WAITS) as container:
        process = container.process()
        container.kill("KILL")
        container.wait()
        assert processes.read_one(process.pid, runtime.lab.proc) is None


@asks(KILL, "Attempting to send a signal to a container that is neither `created` nor `running` MUST have no effect")
def kill_reaches_a_created_container(runtime):
    with runtime.bundle(WAITS) as container:
        container.create()
        container.kill("KILL")
        container.wait()
        assert container.output() == ""


DELETE = "runtime.md, Delete"


@asks(DELETE, "This operation MUST generate an error if it is not provided the container ID.")
def delete_without_an_id_is_refused(runtime):
    with refused():
        runtime.call("delete")


@asks(DELETE, "Attempting to `delete` a container that is not `stopped` MUST have no effect on the container and MUST "
              "generate an error.")  # fmt: skip
def delete_of_a_running_container_is_refused(runtime):
    with runtime.running(WAITS) as container:
        before = container.state()
        with refused():
            container.delete()
        assert container.state() == before and container.process() is not None


@asks(DELETE, "Attempting to `delete` a container that is not `stopped` MUST have no effect on the container and MUST "
              "generate an error.")  # fmt: skip
def delete_of_a_created_container_is_refused(runtime):
    with runtime.bundle(WAITS) as container:
        container.create()
        with refused():
            container.delete()
        assert container.status() == "created"


@asks(DELETE, "This operation MUST generate an error if it is not provided the container ID.")
def delete_of_no_container_is_refused(runtime):
    with refused():
        runtime.call("delete", "nobody")


@asks(DELETE, "Deleting a container MUST delete the resources that were created during the `create` step.")
def delete_leaves_no_process_and_no_mount(runtime):
    mounts = runtime.lab.path("/proc/1/mountinfo").read_text()
    with runtime.running(WAITS) as container:
        process = container.process()
        container.kill("KILL")
        container.wait()
        container.delete()
        assert not container.known()
        mine = [p for p in runtime.lab.processes() if p.pid == process.pid or container.id in " ".join(p.argv)]
        assert mine == []
        now = runtime.lab.path("/proc/1/mountinfo").read_text().splitlines()
        assert [line for line in now if container.id in line and line not in mounts] == []


@asks(DELETE, "Deleting a container MUST delete the resources that were created during the `create` step.", "limits")
def delete_leaves_no_cgroup(runtime):
    with runtime.running(WAITS) as container:
        place = processes.cgroup_file("pids.limit", container.state()["pid"], runtime.lab.proc).parent
        assert place.is_dir() and container.id in place.parts
        container.kill("KILL")
        container.wait()
        container.delete()
        assert not place.exists()


@asks(DELETE, "Note that resources associated with the container, but not created by this container, MUST NOT be "
              "deleted.")  # fmt: skip
def delete_leaves_the_bundle_and_what_was_bound(runtime):
    with runtime.bundle(change=mounting(("/data", "none", "data", "bind"))) as container:
        container.path("data").mkdir()
        container.path("data/mine").write_text("mine")
        container.run()
        container.delete()
        assert container.path("data/mine").read_text() == "mine"
        assert container.path("config.json").exists() and container.path("rootfs/bin/sh").exists()


@asks(DELETE, "Once a container is deleted its ID MAY be used by a subsequent container.")
def the_id_is_free_after_delete(runtime):
    with runtime.bundle(["echo", "again"]) as container:
        container.run()
        container.delete()
        container.run()
        assert container.output() == "again\nagain\n"


# ---- bundle.md, and the config as a whole


@asks("bundle.md, Container Format", "This REQUIRED file MUST reside in the root of the bundle directory and MUST be "
                                     "named `config.json`.")  # fmt: skip
def a_bundle_without_its_config_is_refused(runtime):
    with runtime.bundle() as container:
        container.path("config.json").unlink()
        with refused():
            container.create()
        assert not container.known()


@asks("glossary.md, JSON", "All configuration JSON MUST be encoded in UTF-8.")
def a_config_that_is_no_json_is_refused(runtime):
    with runtime.bundle() as container:
        for bad in ("", "{", "[]", '"config"', '{"process": {"args": [}}'):
            container.write(bad)
            with refused():
                container.create()
            assert not container.known()


ROOT = "config.md, Root"


@asks(ROOT, "A directory MUST exist at the path declared by the field.")
def a_root_that_is_not_there_is_refused(runtime):
    refuses_to_create(runtime, setting("root", "path", to="no-such-directory"))


@asks(ROOT, "On POSIX platforms, `path` is either an absolute path or a relative path to the bundle.")
def the_root_may_be_absolute_or_relative(runtime):
    with runtime.bundle(["cat", "/etc/mark"]) as container:
        for path in ("rootfs", f"{container.place}/rootfs"):
            container.path("rootfs/etc/mark").write_text(f"{path}\n")
            container.write({**container.config(), "root": {"path": path, "readonly": True}})
            container.path("out").write_text("")
            container.run()
            container.delete()
            assert container.output() == f"{path}\n"


@asks("config.md, Extensibility", "Runtimes MAY log unknown properties but MUST otherwise ignore them. That includes "
                                  "not generating errors if they encounter an unknown property.")  # fmt: skip
def unknown_properties_are_ignored(runtime):
    change = both(setting("nobody", to={"knows": 1}), setting("process", "neither", to=[]), setting("linux", "x", to=1))
    with runtime.bundle(["echo", "fine"], change) as container:
        container.run()
        assert container.output() == "fine\n"


VALID = "config.md, Valid values"
INVALID = "Runtimes MUST generate an error when invalid or unsupported values are encountered."


@asks(VALID, INVALID)
def a_list_or_an_object_of_the_wrong_type_is_refused(runtime):
    for wrong in (
        setting("process", "env", to={"a": "b"}),
        setting("mounts", to="none"),
        setting("root", to="rootfs"),
        setting("linux", "namespaces", to={"type": "pid"}),
    ):
        refuses_to_create(runtime, wrong)


@asks(VALID, INVALID)
def a_word_or_a_number_of_the_wrong_type_is_refused(runtime):
    for wrong in (
        setting("process", "user", "uid", to="root"),
        setting("process", "terminal", to="yes"),
        setting("hostname", to=7),
    ):
        refuses(runtime, wrong)


@asks(VALID, INVALID)
def a_namespace_that_no_kernel_has_is_refused(runtime):
    refuses_to_create(runtime, setting("linux", "namespaces", to=[{"type": "mount"}, {"type": "astral"}]))


@asks("config.md, Process", "This specification extends the IEEE standard in that at least one entry is REQUIRED "
                            "(non-Windows)")  # fmt: skip
def a_process_without_args_is_refused(runtime):
    refuses(runtime, setting("process", "args", to=[]))


@asks("config.md, Process", "`cwd` (string, REQUIRED) is the working directory that will be set for the executable. "
                            "This value MUST be an absolute path.")  # fmt: skip
def a_relative_working_directory_is_refused(runtime):
    refuses(runtime, setting("process", "cwd", to="tmp"))


@asks("config.md, Annotations", "Runtimes MUST handle unknown annotation keys like any other unknown property.")
def unknown_annotations_are_taken(runtime):
    notes = {"com.example.one": "1", "io.example/two": '{"json": "in it"}', "x": ""}
    with runtime.bundle(["echo", "fine"], setting("annotations", to=notes)) as container:
        container.create()
        assert container.state()["annotations"].items() >= notes.items()


# ---- config.md, Process and Mounts, from within: one container tells of many

ARGS = ["a b", "", "-n", "$HOME", "'\"\\", "ü→", "two\nlines"]
ENV = ["PATH=/bin", "PLAIN=1", "SPACED=a b  c", "EMPTY=", "QUOTED='\"$X`", "UMLAUT=ä=ö"]
INSIDE = r"""
echo @cwd; pwd
echo @env; env
echo @args; printf '<%s>' "$@"; echo
echo @mounts; cat /proc/mounts
echo @hostname; hostname
echo @numbers; ls /proc
echo @commands; cat /proc/[0-9]*/cmdline; echo
echo @interfaces; cat /proc/net/dev
echo @fds; for n in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$n ] && echo $n; done
echo @devices; for d in null zero full random urandom tty ptmx; do ls -lL /dev/$d; done
echo @works; head -c 4 /dev/zero | wc -c; head -c 8 /dev/urandom | wc -c; (echo x > /dev/full) 2>&1; cat /dev/null
echo @links; for d in fd stdin stdout stderr; do readlink /dev/$d; done
echo @bound; cat /data/word /one /relative/word; echo written > /data/answer && echo written
echo @readonly; (echo x > /ro/file) 2>&1; cat /ro/word
echo @order; cat /order/below/word; cat /hidden/below/word 2>&1
echo @scratch; echo x > /scratch/file && cat /scratch/file
dd if=/dev/zero of=/scratch/big bs=1024 count=2000 2>/dev/null || echo full
echo @noexec; cp /bin/busybox /scratch/sh 2>/dev/null || cp /bin/sh /scratch/sh; /scratch/sh -c 'echo it ran' 2>&1
echo @root; (echo x > /etc/new && cat /etc/new) 2>&1
echo @masked; cat /proc/version 2>&1 | wc -c; ls /proc/bus | wc -l
echo @guarded; (echo x > /proc/sys/kernel/domainname) 2>&1
echo @shm; ls -ld /dev/shm; ls -d /dev/pts/ptmx
echo @sysctl; cat /proc/sys/net/ipv4/ip_forward
echo @kernel; uname -r
"""


def inside(runtime):
    """The sections that root sees in a container with the settings below."""

    def change(config):
        process = config["process"]
        process.update(env=ENV, cwd="/tmp")
        config["hostname"] = "mrsdalloway"
        config["root"]["readonly"] = False
        config["linux"]["maskedPaths"] = ["/proc/version", "/proc/bus"]
        config["linux"]["readonlyPaths"] = ["/proc/sys/kernel"]
        config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
        data = f"/run/lab/{runtime.name}-data"
        mounting(
            ("/data", "none", f"{data}/dir", "bind", "rw"),
            ("/one", "none", f"{data}/one", "bind"),
            ("/relative", "none", f"../{runtime.name}-data/dir", "rbind"),
            ("/ro", "none", f"{data}/dir", "bind", "ro"),
            ("/order", "tmpfs", "tmpfs"),
            ("/order/below", "none", f"{data}/dir", "bind"),
            ("/hidden/below", "none", f"{data}/dir", "bind"),
            ("/hidden", "tmpfs", "tmpfs"),
            ("/scratch", "tmpfs", "tmpfs", "size=1m", "noexec", "nosuid", "nodev"),
        )(config)

    data = runtime.lab.path(f"{runtime.name}-data")
    with runtime.lock:
        if not data.exists():
            (data / "dir").mkdir(parents=True)
            (data / "dir/word").write_text("from the directory\n")
            (data / "one").write_text("from the file\n")
    return runtime.report("inside", INSIDE, change, ARGS)


def options(sections, destination):
    """The options of the last mount at this place, from /proc/mounts: (type, set of options)."""
    rows = [line.split() for line in sections["mounts"].splitlines()]
    _, _, kind, words, *_ = [row for row in rows if row[1] == destination][-1]
    return kind, set(words.split(","))


@asks("config.md, Process", "`cwd` (string, REQUIRED) is the working directory that will be set for the executable.")
def the_program_starts_in_its_directory(runtime):
    assert inside(runtime)["cwd"] == "/tmp\n"


@asks("config.md, Process", "`env` (array of strings, OPTIONAL) with the same semantics as IEEE Std 1003.1-2008's "
                            "`environ`.")  # fmt: skip
def the_environment_is_what_the_config_says(runtime):
    assert set(ENV) <= set(inside(runtime)["env"].splitlines())


@asks("config.md, Process", "`env` (array of strings, OPTIONAL) with the same semantics as IEEE Std 1003.1-2008's "
                            "`environ`.")  # fmt: skip
def the_environment_of_the_runtime_stays_outside(runtime):
    shells_own = {"PWD", "OLDPWD", "SHLVL", "_", "HOME"}  # HOME: runc and crun look it up in /etc/passwd
    names = {line.partition("=")[0] for line in inside(runtime)["env"].splitlines()}
    assert names - shells_own == {entry.partition("=")[0] for entry in ENV}


@asks("config.md, Process", "`args` (array of strings, OPTIONAL) with similar semantics to IEEE Std 1003.1-2008 "
                            "`execvp`'s *argv*.")  # fmt: skip
def the_arguments_arrive_unchanged(runtime):
    assert inside(runtime)["args"] == "".join(f"<{word}>" for word in ARGS) + "\n"


@asks("config.md, Process", "that entry is used with the same semantics as `execvp`'s *file*.")
def the_program_is_looked_up_in_path(runtime):
    with runtime.bundle(["mine", "word"], setting("process", "env", to=["PATH=/nowhere:/opt/my"])) as container:
        container.path("rootfs/opt/my").mkdir(parents=True)
        container.path("rootfs/opt/my/mine").write_text('#!/bin/sh\necho "mine says $1"\n')
        container.path("rootfs/opt/my/mine").chmod(0o755)
        container.run()
        assert container.output() == "mine says word\n"


@asks("config.md, Hostname", "`hostname` (string, OPTIONAL) specifies the container's hostname as seen by processes "
                             "running inside the container.")  # fmt: skip
def the_hostname_is_set_inside_and_only_there(runtime):
    assert inside(runtime)["hostname"] == "mrsdalloway\n"
    assert runtime.lab.run(["hostname"], echo=False).stdout == "lab\n"


MOUNTS = "config.md, Mounts"


@asks(MOUNTS, "`mounts` (array of objects, OPTIONAL) specifies additional mounts beyond `root`.")
def a_file_system_is_mounted_where_the_config_says(runtime):
    kind, _ = options(inside(runtime), "/scratch")
    assert kind == "tmpfs" and inside(runtime)["scratch"].startswith("x\n")


@asks(MOUNTS, "A mount is a bind mount if it has either `bind` or `rbind` in the options.")
def a_directory_and_a_file_are_bound(runtime):
    assert inside(runtime)["bound"].startswith("from the directory\nfrom the file\n")


@asks(MOUNTS, "A mount is a bind mount if it has either `bind` or `rbind` in the options.")
def what_is_written_to_a_bind_mount_is_in_its_source(runtime):
    assert inside(runtime)["bound"].endswith("written\n")
    assert runtime.lab.path(f"{runtime.name}-data/dir/answer").read_text() == "written\n"


@asks(MOUNTS, "Path values for bind mounts are either absolute or relative to the bundle.")
def the_source_of_a_bind_mount_may_be_relative(runtime):
    assert inside(runtime)["bound"].count("from the directory") == 2


@asks(MOUNTS, "`options` (array of strings, OPTIONAL) Mount options of the filesystem to be used.")
def a_bind_mount_may_be_read_only(runtime):
    assert "Read-only file system" in inside(runtime)["readonly"]
    assert inside(runtime)["readonly"].endswith("from the directory\n")


@asks(MOUNTS, "`options` (array of strings, OPTIONAL) Mount options of the filesystem to be used.")
def the_options_of_a_mount_are_in_force(runtime):
    _, words = options(inside(runtime), "/scratch")
    assert {"noexec", "nosuid", "nodev"} <= words
    assert "it ran" not in inside(runtime)["noexec"]


@asks("config.md, Linux mount options (1.3)", "Runtimes SHOULD treat unknown options as filesystem-specific ones")
def an_option_of_the_file_system_reaches_it(runtime):
    _, words = options(inside(runtime), "/scratch")
    assert "size=1024k" in words and inside(runtime)["scratch"].endswith("full\n")


@asks(MOUNTS, "The runtime MUST mount entries in the listed order.")
def mounts_are_made_in_the_listed_order(runtime):
    order = inside(runtime)["order"].splitlines()
    assert order[0] == "from the directory" and "No such file" in order[1]


@asks(ROOT, "`readonly` (bool, OPTIONAL) If true then the root filesystem MUST be read-only inside the container, "
            "defaults to false.")  # fmt: skip
def the_root_is_writable_unless_the_config_says_otherwise(runtime):
    assert inside(runtime)["root"] == "x\n"


FILES = "config-linux.md, Default Filesystems"


@asks(FILES, "The following filesystems SHOULD be made available in each container's filesystem")
def the_default_file_systems_are_there(runtime):
    wanted = {"/proc": "proc", "/sys": "sysfs", "/dev/pts": "devpts", "/dev/shm": "tmpfs"}
    assert {place: options(inside(runtime), place)[0] for place in wanted} == wanted


@asks("config-linux.md, Default Devices", "In addition to any devices configured with this setting, the runtime MUST "
                                          "also supply")  # fmt: skip
def the_default_devices_are_there(runtime):
    numbers = re.findall(r"^c\S+ .*?(\d+), +(\d+) .*/dev/(\w+)$", inside(runtime)["devices"], re.M)
    found = {name: (int(major), int(minor)) for major, minor, name in numbers}
    wanted = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
    assert {name: found.get(name) for name in wanted} == wanted
    assert found["ptmx"] == (5, 2)


@asks("config-linux.md, Default Devices", "In addition to any devices configured with this setting, the runtime MUST "
                                          "also supply")  # fmt: skip
def the_default_devices_work(runtime):
    first, second, *rest = inside(runtime)["works"].split("\n")
    assert (first.strip(), second.strip()) == ("4", "8") and "No space left" in rest[0]


@asks("runtime-linux.md, Dev symbolic links", "While creating the container (step 2 in the lifecycle), runtimes MUST "
                                              "create the following symlinks if the source file exists after "
                                              "processing `mounts`")  # fmt: skip
def the_links_in_dev_are_there(runtime):
    said = inside(runtime)["links"].splitlines()
    links = [re.sub("^fd/", "/proc/self/fd/", line) for line in said]  # by way of /dev/fd, the first one
    assert links == ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"]


@asks("runtime-linux.md, File descriptors", "By default, only the `stdin`, `stdout` and `stderr` file descriptors are "
                                            "kept open for the application by the runtime.")  # fmt: skip
def the_program_gets_three_descriptors(runtime):
    assert inside(runtime)["fds"].split() == ["0", "1", "2"]


SPACES = "config-linux.md, Namespaces"


@asks(SPACES, "`pid` processes inside the container will only be able to see other processes inside the same container "
              "or inside the same pid namespace.")  # fmt: skip
def the_container_sees_its_own_processes_only(runtime):
    assert "1" in inside(runtime)["numbers"].split()
    commands = inside(runtime)["commands"]  # the test's own process is not among them, nor is the runtime
    assert "echo @cwd" in commands and not re.search(r"python|runc|crun|qemu", commands), commands


@asks(SPACES, "`network` the container will have its own network stack.")
def the_container_has_its_own_network(runtime):
    names = re.findall(r"^\s*(\w+):", inside(runtime)["interfaces"], re.M)
    assert "lo" in names and not set(names) - {"lo", "sit0", "tunl0", "ip6tnl0", "eth0"}


@asks("config-linux.md, Masked Paths", "`maskedPaths` (array of strings, OPTIONAL) will mask over the provided paths "
                                       "inside the container so that they cannot be read.")  # fmt: skip
def masked_paths_show_nothing(runtime):
    assert inside(runtime)["masked"].split() == ["0", "0"]


@asks("config-linux.md, Readonly Paths", "`readonlyPaths` (array of strings, OPTIONAL) will set the provided paths as "
                                         "readonly inside the container.")  # fmt: skip
def read_only_paths_take_nothing(runtime):
    assert "Read-only file system" in inside(runtime)["guarded"]


@asks("config-linux.md, Sysctl", "`sysctl` (object, OPTIONAL) allows kernel parameters to be modified at runtime for "
                                 "the container.")  # fmt: skip
def a_kernel_parameter_is_set_for_the_container_only(runtime):
    assert inside(runtime)["sysctl"] == "1\n"
    outside = runtime.lab.run(["cat", "/proc/sys/net/ipv4/ip_forward"], echo=False)
    assert outside.stdout == "0\n"


# ---- the same for an ordinary user, with limits of the process

MODEST = r"""
echo @id; id -u; id -g; cat /proc/self/status | grep ^Groups
echo @umask; umask
echo @limits; cat /proc/self/limits
echo @status; cat /proc/self/status
echo @root; (echo x > /tmp/new) 2>&1
echo @oom; cat /proc/self/oom_score_adj
"""
CAPABILITIES = ["CAP_KILL", "CAP_NET_RAW"]


def modest(runtime):
    def change(config):
        config["root"]["readonly"] = True
        ordinary = {"uid": 1000, "gid": 1001, "umask": 0o27, "additionalGids": [5, 2000]}
        config["process"].update(
            user=ordinary,
            rlimits=[
                {"type": "RLIMIT_NOFILE", "soft": 300, "hard": 400},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 4096},
            ],
            capabilities={kind: CAPABILITIES for kind in ("bounding", "permitted", "inheritable")},
            noNewPrivileges=True,
            oomScoreAdj=500,
        )
        config["process"]["capabilities"]["effective"] = []

    return runtime.report("modest", MODEST, change)


def status(sections, name):
    return re.search(rf"^{name}:\s*(.*)$", sections["status"], re.M)[1]


USER = "config.md, POSIX-platform User"


@asks(USER, "`uid` (int, REQUIRED) specifies the user ID in the container namespace.", "users")
def the_program_runs_as_its_user_and_group(runtime):
    assert modest(runtime)["id"].split()[:2] == ["1000", "1001"]
    assert status(modest(runtime), "Uid").split() == ["1000"] * 4


@asks(USER, "`additionalGids` (array of ints, OPTIONAL) specifies additional group IDs in the container namespace to "
            "be added to the process.", "users")  # fmt: skip
def the_program_has_the_additional_groups(runtime):
    assert {"5", "2000"} <= set(status(modest(runtime), "Groups").split()) <= {"5", "1001", "2000"}


@asks(USER, "`umask` (int, OPTIONAL) specifies the umask of the user.", "users")
def the_umask_is_set(runtime):
    assert int(modest(runtime)["umask"], 8) == 0o27


RLIMITS = "config.md, POSIX process"


@asks(RLIMITS, "`rlim.rlim_cur` MUST match the configured value.", "users")
def the_soft_limits_match(runtime):
    limits = modest(runtime)["limits"]
    assert re.search(r"^Max open files +300 ", limits, re.M) and re.search(r"^Max core file size +0 ", limits, re.M)


@asks(RLIMITS, "`rlim.rlim_max` MUST match the configured value.", "users")
def the_hard_limits_match(runtime):
    limits = modest(runtime)["limits"]
    assert re.search(r"^Max open files +\d+ +400 ", limits, re.M)
    assert re.search(r"^Max core file size +\d+ +4096 ", limits, re.M)


@asks(RLIMITS, "The runtime MUST generate an error for any values which cannot be mapped to a relevant kernel "
               "interface.")  # fmt: skip
def a_limit_that_no_kernel_has_is_refused(runtime):
    refuses(runtime, setting("process", "rlimits", to=[{"type": "RLIMIT_HOPE", "soft": 1, "hard": 1}]))


@asks(RLIMITS, "If `rlimits` contains duplicated entries with same `type`, the runtime MUST generate an error.")
def a_limit_named_twice_is_refused(runtime):
    twice = [{"type": "RLIMIT_NOFILE", "soft": n, "hard": n} for n in (100, 200)]
    refuses(runtime, setting("process", "rlimits", to=twice))


LINUX = "config.md, Linux Process"


@asks(LINUX, "the `bounding` field is an array of bounding capabilities that are kept for the process.", "users")
def the_bounding_set_is_what_the_config_says(runtime):
    assert int(status(modest(runtime), "CapBnd"), 16) == 1 << 5 | 1 << 13  # CAP_KILL, CAP_NET_RAW


@asks(LINUX, "the `effective` field is an array of effective capabilities that are kept for the process.", "users")
def the_effective_set_is_what_the_config_says(runtime):
    assert int(status(modest(runtime), "CapEff"), 16) == 0


@asks(LINUX, "setting `noNewPrivileges` to true prevents the process from gaining additional privileges.", "users")
def no_new_privileges_is_set(runtime):
    assert status(modest(runtime), "NoNewPrivs") == "1"


@asks(LINUX, "If `oomScoreAdj` is set, the runtime MUST set `oom_score_adj` to the given value.", "users")
def the_oom_score_is_set(runtime):
    assert modest(runtime)["oom"] == "500\n"


@asks(ROOT, "`readonly` (bool, OPTIONAL) If true then the root filesystem MUST be read-only inside the container, "
            "defaults to false.", "users")  # fmt: skip
def a_read_only_root_takes_nothing(runtime):
    assert "Read-only file system" in modest(runtime)["root"]


# ---- terminals


@contextlib.contextmanager
def console(container):
    """Create the container with a console socket; gives the master side of its terminal, as a descriptor."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(container.path("tty")))
        listener.listen(1)
        listener.settimeout(PATIENCE)
        container.create("--console-socket", f"{container.place}/tty")
        connection, _ = listener.accept()
    with connection:
        connection.settimeout(PATIENCE)
        _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4))
    master = array.array("i", ancillary[0][2])[0]
    try:
        yield master
    finally:
        os.close(master)


def read_terminal(master, until):
    """What comes out of a terminal up to the bytes `until`, or up to its end."""
    said, deadline = b"", time.monotonic() + PATIENCE
    while until not in said and select.select([master], [], [], max(0, deadline - time.monotonic()))[0]:
        try:
            said += os.read(master, 4096)
        except OSError:  # EIO: the last one on the other side has gone
            break
    return said.decode(errors="replace")


SIZE = {"height": 33, "width": 99}


@asks("config.md, Process (1.3)", "As an example, if set to true on Linux a pseudoterminal pair is allocated for the "
                                  "process and the pseudoterminal pty is duplicated on the process's standard "
                                  "streams.")  # fmt: skip
def a_terminal_is_on_all_three_streams(runtime):
    script = "for n in 0 1 2; do [ -t $n ] && echo $n is one; done; echo over"
    with runtime.bundle(["sh", "-c", script], setting("process", "terminal", to=True)) as container:
        with console(container) as master:
            container.start()
            said = read_terminal(master, b"over")
        assert all(f"{n} is one\r\n" in said for n in (0, 1, 2)), said


@asks("config.md, Process", "`consoleSize` (object, OPTIONAL) specifies the console size in characters of the "
                            "terminal.")  # fmt: skip
def the_terminal_has_the_size_of_the_config(runtime):
    change = both(setting("process", "terminal", to=True), setting("process", "consoleSize", to=SIZE))
    with runtime.bundle(["sh", "-c", "stty size; echo over"], change) as container:
        with console(container) as master:
            container.start()
            said = read_terminal(master, b"over")
        assert said.startswith("33 99\r\n"), said


@asks("config.md, Process", "Runtimes MUST ignore `consoleSize` if `terminal` is `false` or unset.")
def a_size_without_a_terminal_is_ignored(runtime):
    script = "[ -t 1 ] || echo no terminal"
    with runtime.bundle(["sh", "-c", script], setting("process", "consoleSize", to=SIZE)) as container:
        container.run()
        assert container.output() == "no terminal\n"


# ---- hooks

HOOKS = "config.md, POSIX-platform Hooks"
#: A hook says its name in the log, and keeps its standard input, its arguments and its mount namespace.
HOOK = r"""#!/bin/sh
echo "$1" >> "$0.log"
cat > "$0.$1.state"
readlink /proc/self/ns/mnt > "$0.$1.mnt"
printf '<%s>' "$@" "$WORD" > "$0.$1.args"
exit "${2:-0}"
"""
#: What a hook inside the container does; its file is in the root file system, and it writes to a bind mount.
INNER = '#!/bin/sh\necho "$1" >> /shared/hook.log\ncat > "/shared/hook.$1.state"\nexit "${2:-0}"\n'


@contextlib.contextmanager
def hooked(runtime, hooks, args=("sh", "-c", "cat /shared/hook.log; echo program")):
    """A bundle with hooks: {kind: [(word, exit status), ...]}.

    All write to the log; the program prints what it finds there, because a runtime may show it a copy only.
    """

    def change(config):
        config["mounts"].append({"destination": "/shared", "source": "shared", "type": "none", "options": ["bind"]})

    with runtime.bundle(args, change) as container:
        container.path("shared").mkdir()
        for place, text in (("shared/hook", HOOK), ("rootfs/bin/inner", INNER)):
            container.path(place).write_text(text)
            container.path(place).chmod(0o755)
        outer = f"{container.place}/shared/hook"
        config = container.config()
        config["hooks"] = {
            kind: [
                {"path": "/bin/inner" if kind == "startContainer" else outer,
                 "args": ["hook", word, str(code)], "env": ["PATH=/usr/bin:/bin", "WORD=given"]}
                for word, code in entries
            ]
            for kind, entries in hooks.items()
        }  # fmt: skip
        container.write(config)
        yield container


def log(container):
    path = container.path("shared/hook.log")
    return path.read_text().split() if path.exists() else []


def mount_namespace(container, word):
    return container.path(f"shared/hook.{word}.mnt").read_text().strip()


def labs_own(runtime):
    return os.readlink(f"{runtime.lab.proc}/1/ns/mnt")


@asks("runtime.md, Lifecycle", "The lifecycle describes the timeline of events that happen from when a container is "
                               "created to when it ceases to exist.")  # fmt: skip
def hooks_and_program_come_in_the_order_of_the_lifecycle(runtime):
    kinds = ("prestart", "createRuntime", "createContainer", "startContainer", "poststop")
    with hooked(runtime, {kind: [(kind, 0)] for kind in kinds}) as container:
        container.create()
        assert log(container) == ["prestart", "createRuntime", "createContainer"]
        container.start()
        container.wait()
        assert container.output().split()[-2:] == ["startContainer", "program"]
        assert "poststop" not in log(container)
        container.delete()
        assert log(container)[-1] == "poststop"


@asks(HOOKS, "Hooks MUST be called in the listed order.")
def hooks_of_one_kind_come_in_the_listed_order(runtime):
    with hooked(runtime, {"createRuntime": [("one", 0), ("two", 0), ("three", 0)]}) as container:
        container.create()
        assert log(container) == ["one", "two", "three"]


@asks(HOOKS, "The state of the container MUST be passed to hooks over stdin so that they may do work appropriate to "
             "the current state of the container.")  # fmt: skip
def hooks_get_the_state_on_their_standard_input(runtime):
    kinds = ("createRuntime", "poststart", "poststop")
    with hooked(runtime, {kind: [(kind, 0)] for kind in kinds}) as container:
        container.run()
        container.delete()
        states = [json.loads(container.path(f"shared/hook.{kind}.state").read_text()) for kind in kinds]
        assert all(state["id"] == container.id and state["bundle"] == container.place for state in states)
        assert states[0]["pid"] > 1 and states[2]["status"] == "stopped"


@asks(HOOKS, "`args` (array of strings, OPTIONAL) with the same semantics as IEEE Std 1003.1-2008 `execv`'s *argv*.")
def hooks_get_their_arguments_and_their_environment(runtime):
    with hooked(runtime, {"createRuntime": [("a b", 0)]}) as container:
        container.create()
        assert container.path("shared/hook.a b.args").read_text() == "<a b><0><given>"


@asks(HOOKS, "The `createRuntime` hooks MUST be executed in the runtime namespace.")
def the_create_runtime_hook_runs_outside(runtime):
    with hooked(runtime, {"createRuntime": [("outside", 0)]}) as container:
        container.create()
        assert mount_namespace(container, "outside") == labs_own(runtime)


@asks(HOOKS, "The `createContainer` hooks MUST be executed in the container namespace.")
def the_create_container_hook_runs_in_the_containers_namespaces(runtime):
    with hooked(runtime, {"createContainer": [("within", 0)]}) as container:
        container.create()
        assert mount_namespace(container, "within") != labs_own(runtime)


@asks(HOOKS, "The value of `path` MUST resolve in the container namespace.")
def the_start_container_hook_is_a_file_of_the_container(runtime):
    with hooked(runtime, {"startContainer": [("within", 0)]}) as container:
        container.create()
        assert log(container) == []
        container.start()
        container.wait()
        assert container.output().split() == ["within", "program"]


@asks("config.md, Poststart", "The `poststart` hooks MUST be called after the user-specified process is executed but "
                              "before the `start` operation returns.")  # fmt: skip
def the_poststart_hook_is_done_when_start_returns(runtime):
    with hooked(runtime, {"poststart": [("poststart", 0)]}, args=WAITS) as container:
        container.create()
        assert log(container) == []
        container.start()
        assert log(container) == ["poststart"]
        assert mount_namespace(container, "poststart") == labs_own(runtime)


@asks("config.md, Poststop", "The `poststop` hooks MUST be called after the container is deleted but before the "
                             "`delete` operation returns.")  # fmt: skip
def the_poststop_hook_is_done_when_delete_returns(runtime):
    with hooked(runtime, {"poststop": [("poststop", 0)]}) as container:
        container.run()
        assert log(container) == []
        container.delete()
        assert log(container) == ["poststop"]


@asks("runtime.md, Lifecycle", "If any `createRuntime` hook fails, the runtime MUST generate an error, stop the "
                               "container, and continue the lifecycle at step 12.")  # fmt: skip
def a_failing_hook_at_create_undoes_the_container(runtime):
    for kind in ("prestart", "createRuntime", "createContainer"):
        with hooked(runtime, {kind: [("bad", 3)]}) as container:
            with refused():
                container.create()
            assert log(container) == ["bad"] and not container.known(), kind


@asks("runtime.md, Lifecycle", "If any `startContainer` hook fails, the runtime MUST generate an error, stop the "
                               "container, and continue the lifecycle at step 12.")  # fmt: skip
def a_failing_hook_at_start_keeps_the_program_from_running(runtime):
    with hooked(runtime, {"startContainer": [("bad", 3)]}) as container:
        container.create()
        with contextlib.suppress(Refused):
            container.start()
        processes.wait_until(lambda: not container.known() or container.status() == "stopped", "its end", PATIENCE)
        assert "program" not in container.output()


@asks("runtime.md, Lifecycle", "If any `poststop` hook fails, the runtime MUST log a warning, but the remaining hooks "
                               "and lifecycle continue as if the hook had succeeded.")  # fmt: skip
def a_failing_hook_at_the_end_stops_nothing(runtime):
    with hooked(runtime, {"poststop": [("bad", 3), ("good", 0)]}) as container:
        container.run()
        container.delete()
        assert log(container) == ["bad", "good"] and not container.known()


@asks(HOOKS, "`timeout` (int, OPTIONAL) is the number of seconds before aborting the hook.")
def a_hook_that_takes_too_long_is_ended(runtime):
    with hooked(runtime, {}) as container:
        config = container.config()
        endless = {"path": "/bin/sh", "args": ["sh", "-c", "exec sleep 20"], "timeout": 1}
        config["hooks"] = {"createRuntime": [endless]}
        container.write(config)
        with refused():
            container.create()
        assert not container.known()


@asks(HOOKS, "This specification extends the IEEE standard in that **`path`** MUST be absolute.")
def a_hook_without_an_absolute_path_is_refused(runtime):
    with hooked(runtime, {}) as container:
        container.write({**container.config(), "hooks": {"createRuntime": [{"path": "bin/true"}]}})
        with refused():
            container.create()
        assert not container.known()


# ---- config-linux.md


@asks(SPACES, "If `path` is not specified, the runtime MUST create a new container namespace of type `type`.")
def the_namespaces_that_are_listed_are_new(runtime):
    with runtime.running(WAITS) as container:
        mine, theirs = processes.read_one(1, runtime.lab.proc), container.process()
        for kind in ("pid", "net", "ipc", "uts", "mnt"):
            assert theirs.namespace(kind) != mine.namespace(kind), kind


@asks(SPACES, "If a namespace type is not specified in the `namespaces` array, the container MUST inherit the runtime "
              "namespace of that type.")  # fmt: skip
def a_namespace_that_is_not_listed_is_inherited(runtime):
    def change(config):
        config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "ipc"]

    with runtime.running(WAITS, change) as container:
        mine, theirs = processes.read_one(1, runtime.lab.proc), container.process()
        assert theirs.namespace("ipc") == mine.namespace("ipc")
        assert theirs.namespace("pid") != mine.namespace("pid")


def joining(kind, path):
    def change(config):
        for entry in config["linux"]["namespaces"]:
            if entry["type"] == kind:
                entry["path"] = path

    return change


@asks(SPACES, "The runtime MUST place the container process in the namespace associated with that `path`.")
def a_namespace_with_a_path_is_joined(runtime):
    with runtime.running(WAITS) as first:
        path = f"/proc/{first.state()['pid']}/ns/net"
        with runtime.running(WAITS, joining("network", path)) as second:
            assert second.process().namespace("net") == first.process().namespace("net")
            assert second.process().namespace("pid") != first.process().namespace("pid")


@asks(SPACES, "The runtime MUST generate an error if `path` is not associated with a namespace of type `type`.")
def a_path_to_another_kind_of_namespace_is_refused(runtime):
    with runtime.running(WAITS) as first:
        refuses_to_create(runtime, joining("network", f"/proc/{first.state()['pid']}/ns/uts"))


@asks(SPACES, "If a `namespaces` field contains duplicated namespaces with same `type`, the runtime MUST generate an "
              "error.")  # fmt: skip
def a_namespace_named_twice_is_refused(runtime):
    refuses_to_create(runtime, setting("linux", "namespaces", to=[{"type": t} for t in ("pid", "mount", "pid")]))


@asks("config-linux.md, Cgroups Path", "In the case of an absolute path (starting with `/`), the runtime MUST take the "
                                       "path to be relative to the cgroups mount point.", "limits")  # fmt: skip
def the_container_is_in_the_cgroup_of_the_config(runtime):
    with runtime.running(WAITS) as container:
        assert container.process().cgroup == container.config()["linux"]["cgroupsPath"]


@asks("config-linux.md, Control groups", "You can configure a container's cgroups via the `resources` field of the "
                                         "Linux configuration.", "limits")  # fmt: skip
def a_limit_of_the_config_is_in_the_cgroup(runtime):
    with runtime.running(WAITS, setting("linux", "resources", to={"pids": {"limit": 55}})) as container:
        limit = processes.cgroup_file("pids.limit", container.state()["pid"], runtime.lab.proc)
        assert limit.read_text() == "55\n"


@asks("config-linux.md, Seccomp", "Seccomp configuration allows one to configure actions to take for matched syscalls")
def a_system_call_that_is_filtered_fails(runtime):
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    seccomp = setting("linux", "seccomp", to={"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    script = "mkdir /tmp/new 2>&1; grep ^Seccomp: /proc/self/status"
    with runtime.bundle(["sh", "-c", script], both(seccomp, writable)) as container:
        container.run()
        assert "Operation not permitted" in container.output() and container.output().endswith("Seccomp:\t2\n")
