"""The kernel that virtual machines boot: the distribution's own, unpacked into .lab/kernel. Nothing is installed.

`./lab kernel` gets it: some 30 MB to download, 60 MB kept. vmrun looks for it there:

    .lab/kernel/vmlinux      the kernel, or vmlinuz where it can't be unpacked here: that boots more slowly
    .lab/kernel/modules/     the drivers that a machine needs, named in the order in which they load

Standard library only. See also: apt-get(8), dpkg-deb(1), modinfo(8).
"""

import lzma
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent / ".lab/kernel"
DRIVERS = ("virtio_pci", "virtio_console")
LZ4 = b"\x02\x21\x4c\x18"
SIGNED = b"~Module signature appended~\n"
BY_HAND = "put a kernel as vmlinux or vmlinuz, and its modules, into .lab/kernel"
AS_WE_ARE = ("-o", "APT::Sandbox::User=root")  # apt's own user may not write into our directories


class KernelError(RuntimeError):
    """There is no kernel to be had here. One sentence says why."""


def get(home=HOME):
    """Download the kernel's package and unpack what machines need into `home`. Returns the kernel's name and version.

    Raises KernelError. An old kernel stays until the new one is complete.
    """
    if not all(map(shutil.which, ("apt-get", "apt-cache", "dpkg-deb"))):
        raise KernelError(f"no apt-get here: {BY_HAND}")
    home.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as folder:
        try:
            package = download(folder)
        except KernelError:  # the machine's package lists are missing, or older than what is to be had
            package = download(folder, *fresh_lists(folder))
        run(["dpkg-deb", "-x", *map(str, Path(folder).glob(f"{package}_*.deb")), "tree"], folder)
        tree, new = Path(folder, "tree"), Path(folder, "kernel")
        (new / "modules").mkdir(parents=True)
        packed = next(tree.glob("boot/vmlinuz-*")).read_bytes()
        plain = unpacked(packed)
        (new / ("vmlinux" if plain else "vmlinuz")).write_bytes(plain or packed)
        for number, (name, content) in enumerate(modules(tree)):
            (new / "modules" / f"{number:02}-{name}.ko").write_bytes(content)
        shutil.rmtree(home, ignore_errors=True)
        new.rename(home)
    return package


def download(folder, *options):
    """Download the kernel's package into `folder`; its name. `options` are apt's."""
    package = name_of_package(options)
    run(["apt-get", "-qq", *AS_WE_ARE, *options, "download", package], folder, 600)
    return package


def fresh_lists(folder):
    """The options that make apt read package lists of our own. The machine's only root could renew."""
    for place in ("lists/partial", "cache/archives/partial"):
        Path(folder, place).mkdir(parents=True)
    options = ("-o", f"Dir::State::lists={folder}/lists/", "-o", f"Dir::Cache={folder}/cache")
    run(["apt-get", "-qq", *AS_WE_ARE, *options, "-o", "APT::Update::Error-Mode=any", "update"], timeout=600)
    return options


def name_of_package(options=()):
    """The package with this distribution's kernel for machines in a cloud: the smallest of its kernels."""
    architecture = run(["dpkg", "--print-architecture"]).strip()
    for kernel in (f"linux-image-cloud-{architecture}", f"linux-image-{architecture}", "linux-image-virtual"):
        said = run(["apt-cache", *options, "depends", kernel], check=False)
        found = re.findall(r"^ +Depends: (linux-image-\S+)$", said, re.M)
        if found:
            return found[0]
    raise KernelError(f"apt knows no kernel package: {BY_HAND}")


def run(argv, cwd=None, timeout=60, check=True):
    """What a command prints. Raises KernelError with its first error, or last word, when it fails."""
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise KernelError(f"{argv[0]} was not done in {timeout} s") from None
    if check and done.returncode:
        said = done.stderr.strip().splitlines() or [f"{argv[0]} failed"]
        raise KernelError(next((line for line in said if line.startswith("E: ")), said[-1]))
    return done.stdout


def unpacked(image):
    """The kernel in a bzImage, as an ELF file; None when the image is of another kind, or its packing not known here.

    See also: Documentation/arch/x86/boot.rst of the kernel.
    """
    if image[0x202:0x206] != b"HdrS":
        return None
    start = (image[0x1F1] + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    payload = image[start : start + int.from_bytes(image[0x24C:0x250], "little")]
    if payload[:2] == b"\x1f\x8b":
        kernel = zlib.decompressobj(31).decompress(payload)
    elif payload[:6] == b"\xfd7zXZ\0":
        kernel = lzma.LZMADecompressor().decompress(payload)
    elif payload[:4] == LZ4:
        kernel = unpack_lz4(payload)
    elif payload[:4] == b"\x28\xb5\x2f\xfd" and shutil.which("zstd"):
        argv = ["zstd", "--decompress", "--stdout", "--quiet"]
        kernel = subprocess.run(argv, input=payload, capture_output=True, timeout=60).stdout  # its size may follow
    else:
        return None
    return kernel if kernel[:4] == b"\x7fELF" else None


def unpack_lz4(payload):
    """The content of LZ4's old frame format, in which kernels are packed. See also: lz4(1)."""
    out, place = bytearray(), 4
    while place + 4 < len(payload):
        size = int.from_bytes(payload[place : place + 4], "little")
        if place + 4 + size > len(payload):
            break  # the kernel's size, which stands behind the last block
        out += unpack_block(payload[place + 4 : place + 4 + size])
        place += 4 + size
    return bytes(out)


def unpack_block(block):
    """One block: runs of literal bytes, each followed by a copy of something that has been before."""
    out, place = bytearray(), 0

    def length(nibble):
        nonlocal place
        more = nibble == 15
        while more:
            nibble, more, place = nibble + block[place], block[place] == 255, place + 1
        return nibble

    while True:
        token, place = block[place], place + 1
        literals = length(token >> 4)
        out += block[place : place + literals]
        place += literals
        if place >= len(block):
            return out
        offset, place = int.from_bytes(block[place : place + 2], "little"), place + 2
        count = length(token & 15) + 4
        start = len(out) - offset
        if count <= offset:
            out += out[start : start + count]
        else:
            out += (out[start:] * (count // offset + 1))[:count]


def modules(tree):
    """(name, content) of DRIVERS and of what they need, in loading order, but for what is built in."""
    files = {re.sub(r"\.ko.*", "", path.name).replace("-", "_"): path for path in tree.glob("**/*.ko*")}
    found = {}

    def add(name):
        if name in found or name not in files:
            return
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        elif files[name].suffix == ".zst":
            content = subprocess.run(["zstd", "-dcq"], input=content, capture_output=True, timeout=60).stdout
        needs = re.search(rb"\0depends=([^\0]*)", content)
        for other in needs[1].decode().split(",") if needs else ():
            add(other.replace("-", "_"))
        found[name] = unsigned(content)

    for name in DRIVERS:
        add(name)
    return found.items()


def unsigned(module):
    """A driver without its signature: an emulated processor takes longer to check that than to load the driver.

    See also: include/linux/module_signature.h of the kernel.
    """
    if not module.endswith(SIGNED):
        return module
    size = int.from_bytes(module[-len(SIGNED) - 4 : -len(SIGNED)], "big")
    return module[: -len(SIGNED) - 12 - size]


def main():
    """Get the kernel; the exit status."""
    try:
        print(f"The kernel for virtual machines: {get()}, in {HOME.relative_to(HOME.parent.parent)}")
    except KernelError as error:
        print(f"lab: no kernel for virtual machines: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
