"""The kernel of virtual machines: how it is fetched, from a repository made here, and what is left out of it."""

import hashlib
import os
import shutil
import struct
import subprocess

import pytest
from conftest import EXCUSE

from helpers import kernel

PACKAGE = "linux-image-{0}-made-here"


class Repository:
    """Debian packages in a directory, and an apt that knows only these."""

    def __init__(self, home):
        self.home, self.folder = home, home / "repository"
        self.folder.mkdir()
        self.entries = []
        for place in ("lists/partial", "cache/archives/partial", "parts"):
            (home / place).mkdir(parents=True)
        (home / "sources.list").write_text(f"deb [trusted=yes] file:{self.folder} ./\n")
        settings = {
            "Dir::Etc::sourcelist": "sources.list", "Dir::Etc::sourceparts": "parts",
            "Dir::State::lists": "lists/", "Dir::Cache": "cache",
        }  # fmt: skip
        lines = [f'{key} "{home}/{value}";' for key, value in settings.items()]
        (home / "apt.conf").write_text("\n".join([*lines, 'APT::Sandbox::User "root";', ""]))
        self.architecture = run("dpkg", "--print-architecture").strip()

    def add(self, name, files, depends=None):
        tree = self.home / "tree"
        for path, content in {**files, "DEBIAN/control": self.control(name, depends)}.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        run("dpkg-deb", "--build", tree, self.folder / f"{name}.deb")
        shutil.rmtree(tree)
        packed = (self.folder / f"{name}.deb").read_bytes()
        place = f"Filename: ./{name}.deb\nSize: {len(packed)}\nSHA256: {hashlib.sha256(packed).hexdigest()}\n"
        self.entries.append(self.control(name, depends).decode() + place)
        (self.folder / "Packages").write_text("\n".join(self.entries))

    def control(self, name, depends):
        lines = {
            "Package": name, "Version": "1", "Architecture": self.architecture, "Description": "made here",
            "Maintainer": "nobody <nobody@localhost>", **({"Depends": depends} if depends else {}),
        }  # fmt: skip
        return "".join(f"{key}: {value}\n" for key, value in lines.items()).encode()

    def add_kernel(self, number):
        """One that the distribution's newest is, from now on."""
        self.entries = []
        for file in self.folder.iterdir():
            file.unlink()
        drivers = {
            "virtio_console.ko": b"console\0depends=virtio-ring\0",
            "virtio-ring.ko": b"ring\0depends=\0",
            "virtio_pci.ko": b"pci\0depends=virtio-ring\0",
            "floppy.ko": b"floppy",
        }
        files = {f"lib/modules/kernel/{name}": content for name, content in drivers.items()}
        self.add(PACKAGE.format(number), {**files, "boot/vmlinuz-made-here": b"the kernel"})
        self.add(f"linux-image-cloud-{self.architecture}", {}, PACKAGE.format(number))


def run(*argv):
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def repository(tmp_path, monkeypatch):
    if not all(map(shutil.which, ("apt-get", "apt-cache", "dpkg-deb"))):
        pytest.skip(f"{EXCUSE}fetch packages: it is no Debian")
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    return Repository(tmp_path)


def test_on_a_machine_without_package_lists_it_is_fetched_with_what_it_needs(repository):
    repository.add_kernel(1)
    home = repository.home / "lab/kernel"
    assert kernel.get(home) == PACKAGE.format(1)
    assert (home / "vmlinuz").read_bytes() == b"the kernel"
    names = sorted(os.listdir(home / "modules"))
    assert names == ["00-virtio_ring.ko", "01-virtio_pci.ko", "02-virtio_console.ko"], "each after what it needs"
    assert os.listdir(home.parent) == ["kernel"]
    assert sorted(os.listdir(repository.home / "lists")) == ["partial"], "the machine's own stay as they are"


def test_where_the_machines_lists_are_old_the_kernel_of_today_is_fetched(repository):
    repository.add_kernel(1)
    run("apt-get", "-qq", "update")
    assert kernel.name_of_package() == PACKAGE.format(1)
    repository.add_kernel(2)
    assert kernel.get(repository.home / "lab/kernel") == PACKAGE.format(2)


def test_what_is_not_to_be_had_is_said_in_one_sentence_and_the_old_kernel_stays(repository):
    home = repository.home / "lab/kernel"
    for trouble in ("knows no kernel package: put a kernel as vmlinux", "repository"):
        home.mkdir(parents=True, exist_ok=True)
        (home / "vmlinuz").write_bytes(b"old")
        if trouble == "repository":
            shutil.rmtree(repository.folder)
        else:
            repository.add("cowsay", {})
        with pytest.raises(kernel.KernelError, match=trouble) as raised:
            kernel.get(home)
        assert "\n" not in str(raised.value)
        assert os.listdir(home) == ["vmlinuz"] and os.listdir(home.parent) == ["kernel"]


def test_a_drivers_signature_is_left_out_and_nothing_else():
    driver, signature = b"\x7fELF" + bytes(range(256)), b"s" * 300
    signed = driver + signature + bytes(8) + struct.pack(">I", len(signature)) + kernel.SIGNED
    assert kernel.unsigned(signed) == kernel.unsigned(driver) == driver
    packed = next(iter(sorted(kernel.HOME.glob("modules/*.ko"))), None)
    assert packed is None or kernel.SIGNED not in packed.read_bytes()
