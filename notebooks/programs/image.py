"""An OCI image, by hand: pack it, check it, unpack it, and turn its config into one for runc.

    python3 image.py check LAYOUT [NAME]          is everything in it what its digest says?
    python3 image.py unpack LAYOUT TARGET [NAME]  its layers, one over the other, in a new directory
    python3 image.py config LAYOUT BUNDLE [NAME]  merge its config into BUNDLE/config.json
    python3 image.py archive LAYOUT FILE NAME     one tar file, for skopeo, Podman and Docker
    python3 image.py load FILE LAYOUT             the way back, from what an engine has saved

LAYOUT is a directory: oci-layout, index.json, and blobs/sha256/ with one file for each blob, named
by its digest. Standard library only. Extended attributes are left out, and so is zstd.
See also: tar(5), and the OCI Image Specification: image-layout.md, manifest.md, config.md,
layer.md, conversion.md.
"""

import contextlib
import copy
import errno
import gzip
import hashlib
import io
import json
import os
import platform
import re
import shutil
import stat
import sys
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

OCI, DOCKER = "application/vnd.oci.image.", "application/vnd.docker."
INDEX, MANIFEST, CONFIG = f"{OCI}index.v1+json", f"{OCI}manifest.v1+json", f"{OCI}config.v1+json"
PLAIN, GZIPPED = f"{OCI}layer.v1.tar", f"{OCI}layer.v1.tar+gzip"
INDEXES = {INDEX, f"{DOCKER}distribution.manifest.list.v2+json"}
MANIFESTS = {MANIFEST, f"{DOCKER}distribution.manifest.v2+json"}
CONFIGS = {CONFIG, f"{DOCKER}container.image.v1+json"}
LAYERS = {PLAIN: open, GZIPPED: gzip.open, f"{DOCKER}image.rootfs.diff.tar": open,
          f"{DOCKER}image.rootfs.diff.tar.gzip": gzip.open}  # fmt: skip
KINDS = {
    *tarfile.REGULAR_TYPES,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
}
REF_NAME = "org.opencontainers.image.ref.name"
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
LARGEST_JSON = 4 << 20  # bytes; registries draw the same line
LARGEST_IMAGE = 8 << 30  # bytes, unpacked
DEEPEST = 4  # an index in an index in an index ...
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ImageError(ValueError):
    """The image is not one. One sentence says what is wrong; nothing of it is left on the disk."""


# ---- writing


def add(place, name, layers, config):
    """Add an image to the layout `place`, and make the layout if there is none.

    `layers` are tar archives as bytes, the lowest first, such as `pack` makes. `config` is the part
    of the image config that has this name: {"Cmd": [...], "Env": [...], ...}. Returns the digest of
    the manifest.
    """
    place = Path(place)
    blobs = [store(place, io.BytesIO(layer), PLAIN) for layer in layers]
    described = {
        "architecture": architecture(),
        "os": "linux",
        "config": config,
        # The digests of the archives before compression. These have none: the blobs' own.
        "rootfs": {"type": "layers", "diff_ids": [blob["digest"] for blob in blobs]},
    }
    settings = store(place, io.BytesIO(as_bytes(described)), CONFIG)
    return enter(
        place,
        name,
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": settings, "layers": blobs},
    )


def enter(place, name, manifest):
    """Store a manifest and give it a name in the index, in place of one that had this name."""
    entry = store(place, io.BytesIO(as_bytes(manifest)), MANIFEST)
    entry["annotations"] = {REF_NAME: name}
    index = place / "index.json"
    others = json.loads(index.read_bytes())["manifests"] if index.exists() else []
    others = [other for other in others if other.get("annotations", {}).get(REF_NAME) != name]
    index.write_bytes(
        as_bytes({"schemaVersion": 2, "mediaType": INDEX, "manifests": [*others, entry]})
    )
    (place / "oci-layout").write_bytes(as_bytes({"imageLayoutVersion": "1.0.0"}))
    return entry["digest"]


def store(place, stream, media_type):
    """Put the bytes of a stream into the layout, named by their SHA-256. Returns the descriptor."""
    directory = Path(place, "blobs/sha256")
    directory.mkdir(parents=True, exist_ok=True)
    draft, digest, size = directory / ".draft", hashlib.sha256(), 0
    with open(draft, "wb") as file:
        while piece := stream.read(1 << 20):
            digest.update(piece)
            size += file.write(piece)
    os.replace(draft, directory / digest.hexdigest())
    return {"mediaType": media_type, "digest": f"sha256:{digest.hexdigest()}", "size": size}


def as_bytes(data):
    """JSON in one spelling, so that the same data have the same digest."""
    return json.dumps(data, separators=(",", ":"), sort_keys=True).encode()


def architecture():
    """This machine's architecture in Go's words, as images use them."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}.get(machine, machine)


def pack(directory):
    """The tree below `directory` as a layer: a tar archive, in bytes.

    It is the same for the same names, modes and contents: times are 0 and everything belongs to
    root. The directory may be the upper directory of an overlay: what overlayfs notes as a deletion
    (a device 0,0, or an attribute "opaque") becomes the whiteout file by which a layer notes it.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(Path(directory).rglob("*")):
            name, info = path.relative_to(directory), path.lstat()
            if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
                tar.addfile(entry(name.with_name(WHITEOUT + name.name)))
            elif stat.S_ISDIR(info.st_mode):
                tar.addfile(entry(name, info, tarfile.DIRTYPE))
                if is_opaque(path):
                    tar.addfile(entry(name / OPAQUE))
            elif stat.S_ISLNK(info.st_mode):
                tar.addfile(entry(name, info, tarfile.SYMTYPE, link=os.readlink(path)))
            elif stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    tar.addfile(entry(name, info, size=info.st_size), file)
            else:
                raise ImageError(f"{name} is neither a file nor a directory nor a symlink")
    return out.getvalue()


def entry(name, info=None, kind=tarfile.REGTYPE, *, size=0, link=""):
    """A tar header that tells nothing of the machine on which it was made."""
    made = tarfile.TarInfo(str(name))
    made.type, made.size, made.linkname = kind, size, link
    made.mode = stat.S_IMODE(info.st_mode) if info else 0o644
    return made


def is_opaque(path):
    """True for an overlay's directory that hides all that is below it in lower directories."""
    for attribute in ("trusted.overlay.opaque", "user.overlay.opaque"):
        with contextlib.suppress(OSError):
            if os.getxattr(path, attribute, follow_symlinks=False) == b"y":
                return True
    return False


# ---- reading: nothing is believed


@dataclass(frozen=True)
class Layer:
    """A layer whose bytes are those that its digest promised. `path` is the blob."""

    path: Path
    media_type: str
    digest: str


@dataclass(frozen=True)
class Image:
    """A checked image. `digest` names the manifest, `id` the config, and `config` is all of it."""

    digest: str
    id: str
    config: dict
    layers: tuple


def read(place, name=None, limit=LARGEST_IMAGE):
    """The image of this name in the layout (without a name: the only one), with every blob checked.

    Raises ImageError for the first thing that is not as it should be.
    """
    place = Path(place)
    version = parse(contents(place / "oci-layout"), "oci-layout").get("imageLayoutVersion")
    if version != "1.0.0":
        raise ImageError(f"oci-layout has version {version!r}, not '1.0.0'")
    index = parse(contents(place / "index.json"), "index.json")
    entry = find_manifest(place, choose(listed(index, "manifests", "index.json"), name))
    manifest = parse(contents(blob(place, entry, LARGEST_JSON)), "the manifest")
    if manifest.get("schemaVersion") != 2:
        raise ImageError("the manifest has no schemaVersion 2")
    about = member(manifest, "config", dict, "the manifest")
    if about.get("mediaType") not in CONFIGS:
        raise ImageError(
            f"the media type of the config is {about.get('mediaType')!r}: that is no image config"
        )
    config = parse(contents(blob(place, about, LARGEST_JSON)), "the config")
    rootfs = member(config, "rootfs", dict, "the config")
    descriptors, diff_ids = listed(manifest, "layers", "the manifest"), rootfs.get("diff_ids")
    if not isinstance(diff_ids, list) or len(diff_ids) != len(descriptors):
        raise ImageError("the config does not name one diff_id for each layer")
    layers = []
    for number, (descriptor, diff_id) in enumerate(zip(descriptors, diff_ids, strict=True), 1):
        if descriptor.get("mediaType") not in LAYERS:
            raise ImageError(
                f"the media type of layer {number} is {descriptor.get('mediaType')!r}: no layer"
            )
        layer = Layer(blob(place, descriptor), descriptor["mediaType"], descriptor["digest"])
        found, size = uncompressed(layer, limit)
        if found != diff_id:
            raise ImageError(f"layer {number} unzips to {found}, and the config promised {diff_id}")
        limit -= size
        layers.append(layer)
    return Image(entry["digest"], about["digest"], config, tuple(layers))


def choose(entries, name):
    """The one descriptor of an index with this name."""
    fitting = [
        one
        for one in entries
        if name is None or (one.get("annotations") or {}).get(REF_NAME) == name
    ]
    if len(fitting) != 1:
        called = "" if name is None else f" called {name!r}"
        raise ImageError(f"index.json has {len(fitting)} images{called}, and one is wanted")
    return fitting[0]


def find_manifest(place, descriptor, depth=0):
    """Follow a descriptor through indexes, down to the manifest for this machine."""
    kind = descriptor.get("mediaType")
    if kind in MANIFESTS:
        return descriptor
    if kind not in INDEXES:
        raise ImageError(f"the media type {kind!r} is neither a manifest nor an index")
    if depth == DEEPEST:
        raise ImageError(f"there are more than {DEEPEST} indexes inside each other")
    inner = listed(
        parse(contents(blob(place, descriptor, LARGEST_JSON)), "an index"), "manifests", "an index"
    )
    wanted = {"os": "linux", "architecture": architecture()}
    for one in inner:
        platform_of = one.get("platform", wanted)
        if isinstance(platform_of, dict) and wanted.items() <= platform_of.items():
            return find_manifest(place, one, depth + 1)
    raise ImageError(f"the index has nothing for linux on {architecture()}")


def blob(place, descriptor, largest=LARGEST_IMAGE):
    """The path of a blob whose size and SHA-256 are what the descriptor says."""
    digest, size = descriptor.get("digest"), descriptor.get("size")
    if not isinstance(digest, str) or not re.fullmatch("sha256:[0-9a-f]{64}", digest):
        raise ImageError(f"{str(digest)[:80]!r} is not a digest")
    if type(size) is not int or not 0 <= size <= largest:
        raise ImageError(
            f"{digest} declares a size of {str(size)[:30]} bytes, and 0 to {largest} are allowed"
        )
    path = place / "blobs/sha256" / digest.removeprefix("sha256:")
    if not path.is_file() or path.is_symlink():
        raise ImageError(f"{digest} is missing")
    if path.stat().st_size != size:
        raise ImageError(f"{digest} has {path.stat().st_size} bytes, and {size} were promised")
    with open(path, "rb") as file:
        found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    if found != digest:
        raise ImageError(f"digest mismatch: {digest} has the digest {found}")
    return path


def uncompressed(layer, limit):
    """(digest, size) of a layer's tar archive without compression."""
    digest, size = hashlib.sha256(), 0
    try:
        with LAYERS[layer.media_type](layer.path, "rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
                size += len(piece)
                if size > limit:
                    raise ImageError(f"{layer.digest} unzips to more than is allowed")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ImageError(f"{layer.digest} is not a whole gzip file: {error}") from None
    return f"sha256:{digest.hexdigest()}", size


def contents(path):
    """The bytes of a small file."""
    if not path.is_file() or path.is_symlink():
        raise ImageError(f"{path.name} is missing")
    if path.stat().st_size > LARGEST_JSON:
        raise ImageError(
            f"{path.name} has {path.stat().st_size} bytes, and {LARGEST_JSON} are allowed"
        )
    return path.read_bytes()


def parse(data, what):
    """The JSON object in these bytes.

    One with two members of one name is refused: it would depend on the reader what it says.
    """

    def unique(pairs):
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ImageError(f"{what} has two members of one name: {max(names, key=names.count)!r}")
        return dict(pairs)

    try:
        found = json.loads(data, object_pairs_hook=unique)
    except ImageError:
        raise
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what} is not JSON: {str(error)[:100]}") from None
    if not isinstance(found, dict):
        raise ImageError(f"{what} is not a JSON object")
    return found


def member(owner, name, kind, what):
    """The member of a JSON object, of this type."""
    if not isinstance(owner.get(name), kind):
        raise ImageError(f"{what} has no {name!r}, or not of the right type")
    return owner[name]


def listed(owner, name, what):
    """The member of a JSON object that is a list of objects."""
    found = member(owner, name, list, what)
    if not all(isinstance(one, dict) for one in found):
        raise ImageError(f"{name!r} of {what} holds something that is not a JSON object")
    return found


# ---- unpacking: nothing is written outside


@dataclass(frozen=True)
class Unpacked:
    """What `unpack` did. `given_up` counts the files whose owner this user may not set."""

    entries: int
    whiteouts: int
    given_up: int


def unpack(image, target):
    """Lay the layers over each other in a new directory.

    Raises ImageError, and leaves nothing of it, when one of them is bad.
    """
    try:
        os.mkdir(target, 0o755)
    except OSError as error:
        raise ImageError(f"can't make {target}: {error.strerror}") from None
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    entries = whiteouts = given_up = 0
    late = {}  # directories: something may still come into one that is read-only
    try:
        for layer in image.layers:
            members = check_layer(layer)
            hidden = [parts for parts, _ in members if parts and parts[-1].startswith(WHITEOUT)]
            for parts in hidden:  # first, because a whiteout hides lower layers only, not its own
                hide(root, parts)
            given_up += write(root, layer, late)
            entries, whiteouts = entries + len(members) - len(hidden), whiteouts + len(hidden)
        for parts, header in sorted(late.items(), key=lambda pair: -len(pair[0])):
            with contextlib.suppress(ImageError, FileNotFoundError), inside(root, parts) as here:
                os.fchmod(here, header.mode & 0o7777)
                os.utime(here, times(header))
    except BaseException as error:
        os.close(root)
        shutil.rmtree(target)
        if isinstance(error, OSError):
            raise ImageError(f"can't unpack: {error.strerror}") from None
        raise
    os.close(root)
    return Unpacked(entries, whiteouts, given_up)


def check_layer(layer):
    """[(parts, tar header)] of a layer whose names stay inside and whose kinds are allowed."""
    found, seen = [], {}
    with opened(layer) as (tar, stream):
        for header in tar:
            parts = split(header.name)
            if not 0 <= header.size <= LARGEST_IMAGE:
                raise ImageError(f"{header.name!r} declares a size of {header.size} bytes")
            if header.ischr() or header.isblk():
                raise ImageError(f"{header.name!r} is a device node")
            if header.type not in KINDS:
                raise ImageError(f"{header.name!r} is of a kind that no layer may have")
            if header.islnk():
                split(header.linkname)
            if not parts and not header.isdir():
                raise ImageError("the root itself is not a directory")
            if any(part.startswith(WHITEOUT) for part in parts):
                check_whiteout(header, parts)
            if parts in seen and not (header.isdir() and seen[parts]):
                raise ImageError(f"{header.name!r} is there twice in one layer")
            seen[parts] = header.isdir()
            found.append((parts, header))
        stream.seek(tar.offset)  # tarfile takes anything that is no header for the end
        rest = stream.read()
        if len(rest) < 1024 or rest.strip(b"\0"):
            raise ImageError(f"{layer.digest} is cut off, or has something behind its end")
    return found


def check_whiteout(header, parts):
    """A whiteout is an empty file, with a name behind the prefix that is one name."""
    hidden = parts[-1].removeprefix(WHITEOUT)
    nested = any(part.startswith(WHITEOUT) for part in parts[:-1])
    reserved = hidden.startswith(WHITEOUT) and parts[-1] != OPAQUE
    if nested or reserved or hidden in ("", ".", "..") or not header.isreg() or header.size:
        raise ImageError(f"{header.name!r} is not a whiteout that anybody should follow")


def split(name):
    """A name in a layer as a tuple of parts, if it stays inside."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise ImageError(f"{name!r} leads out of the root file system")
    return parts


@contextlib.contextmanager
def opened(layer):
    """(the tar archive of a layer, the stream below it)."""
    try:
        with (
            LAYERS[layer.media_type](layer.path, "rb") as stream,
            tarfile.open(fileobj=stream, mode="r:") as tar,
        ):
            yield tar, stream
    except (tarfile.TarError, EOFError) as error:
        raise ImageError(f"{layer.digest} is not a whole tar archive: {error}") from None


@contextlib.contextmanager
def inside(root, parts, make=False):
    """A descriptor of the directory `parts` below the descriptor `root`; no symlink is followed.

    That is the defence. A text can't say where a path leads. The kernel can, one step at a time.
    """
    here = os.dup(root)
    try:
        for part in parts:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=here)
            deeper = os.open(
                part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here
            )
            os.close(here)
            here = deeper
        yield here
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise ImageError(
                f"the path {'/'.join(parts)!r} goes through what is not a directory"
            ) from None
        raise
    finally:
        os.close(here)


def hide(root, parts):
    """Do what a whiteout says to what lower layers have put there. Nothing there: nothing to do."""
    with contextlib.suppress(FileNotFoundError), inside(root, parts[:-1]) as directory:
        names = os.listdir(directory) if parts[-1] == OPAQUE else [parts[-1].removeprefix(WHITEOUT)]
        for name in names:
            remove(directory, name)


def remove(directory, name):
    """Remove one name from a directory, whatever it is."""
    if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
        shutil.rmtree(name, dir_fd=directory)
    else:
        os.unlink(name, dir_fd=directory)


def write(root, layer, late):
    """Write all but the whiteouts of a checked layer. Returns how many didn't get their owner."""
    given_up = 0
    with opened(layer) as (tar, _):
        for header in tar:
            parts = split(header.name)
            if not parts:
                late[parts] = header
            elif not parts[-1].startswith(WHITEOUT):
                with inside(root, parts[:-1], make=True) as directory:
                    write_one(root, directory, parts[-1], header, tar)
                    given_up += not settle(directory, parts[-1], header)
                if header.isdir():
                    late[parts] = header
    return given_up


def write_one(root, directory, name, header, tar):
    """Make one file, directory, link or fifo, in place of what a lower layer had there."""
    with contextlib.suppress(FileNotFoundError):
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if header.isdir() and stat.S_ISDIR(there.st_mode):
            return
        if not header.islnk() or split(header.linkname) != split(header.name):
            remove(directory, name)
    if header.isdir():
        os.mkdir(name, 0o755, dir_fd=directory)
    elif header.issym():
        # It may say anything: nobody here follows it.
        os.symlink(header.linkname, name, dir_fd=directory)
    elif header.isfifo():
        os.mkfifo(name, 0o600, dir_fd=directory)
    elif header.islnk():
        write_hard_link(root, directory, name, split(header.linkname))
    else:
        new = os.open(
            name,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
            dir_fd=directory,
        )
        with open(new, "wb") as file, tar.extractfile(header) as content:
            shutil.copyfileobj(content, file)


def write_hard_link(root, directory, name, existing):
    """A hard link to a regular file that is in the root file system already."""
    try:
        with inside(root, existing[:-1]) as other:
            if not existing or not stat.S_ISREG(
                os.stat(existing[-1], dir_fd=other, follow_symlinks=False).st_mode
            ):
                raise ImageError(
                    f"{name!r} is a hard link to {'/'.join(existing)!r}, which is not a file"
                )
            os.link(
                existing[-1], name, src_dir_fd=other, dst_dir_fd=directory, follow_symlinks=False
            )
    except FileNotFoundError:
        raise ImageError(
            f"{name!r} is a hard link to {'/'.join(existing)!r}, which is not there"
        ) from None


def settle(directory, name, header):
    """Owner, mode and time, as the layer has them. False when this user may not set the owner."""
    if header.islnk():
        return True  # it shares them with the file that it links to
    kept = True
    try:
        os.chown(name, header.uid, header.gid, dir_fd=directory, follow_symlinks=False)
    except (OSError, OverflowError):
        kept = False
    if header.isreg() or header.isfifo():
        allowed = 0o7777 if kept else 0o777  # no set-uid for the wrong user
        os.chmod(name, header.mode & allowed, dir_fd=directory)
    os.utime(name, times(header), dir_fd=directory, follow_symlinks=False)
    return kept


def times(header):
    """(access, modification) in seconds, within what a file system can note."""
    moment = min(max(int(header.mtime), 0), (1 << 33) - 1)
    return moment, moment


# ---- from the image's config to the runtime's


def runtime_config(image_config, spec, rootfs):
    """A copy of the runtime config `spec` with the image's command, environment, place and user."""
    wanted = image_config.get("config") or {}
    config = copy.deepcopy(spec)
    process = config["process"]
    env = list(wanted.get("Env") or [])
    command = [*(wanted.get("Entrypoint") or []), *(wanted.get("Cmd") or [])]
    process["args"] = command or process["args"]
    process["env"] = env if any(one.startswith("PATH=") for one in env) else [PATH, *env]
    process["cwd"] = wanted.get("WorkingDir") or "/"
    process["user"] = user_of(wanted.get("User") or "0", rootfs)
    return config


def user_of(text, rootfs):
    """{"uid", "gid"} of `user` or `user:group`. Names are looked up in the image."""
    user, _, group = text.partition(":")
    users, groups = table(rootfs, "passwd"), table(rootfs, "group")
    row = next((row for row in users if user in (row[0], row[2])), None)
    if row is None and not user.isdecimal():
        raise ImageError(f"the image has no user {user!r} in its /etc/passwd")
    uid, gid = (int(row[2]), int(row[3])) if row else (int(user), 0)
    if group:
        found = next((row for row in groups if group in (row[0], row[2])), None)
        if found is None and not group.isdecimal():
            raise ImageError(f"the image has no group {group!r} in its /etc/group")
        gid = int(found[2]) if found else int(group)
    return {"uid": uid, "gid": gid}


def table(rootfs, name):
    """The rows of etc/passwd or etc/group. A symlink is not followed: it may lead to the host's."""
    root = os.open(rootfs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with inside(root, ("etc",)) as etc:
            file = os.open(
                name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=etc
            )
            with open(file, errors="replace") as lines:
                rows = [line.rstrip("\n").split(":") for line in lines]
    except (OSError, ImageError):
        return []
    finally:
        os.close(root)
    return [
        row
        for row in rows
        if len(row) >= 4 and row[2].isdecimal() and (name == "group" or row[3].isdecimal())
    ]


# ---- one file, for the engines


def archive(place, name, file):
    """Write one image as a tar archive that `skopeo`, `podman load` and `docker load` read.

    It is the layout, and beside it a manifest.json: what Docker wanted before there was an OCI.
    """
    place = Path(place)
    image = read(place, name)
    index = parse(contents(place / "index.json"), "index.json")
    index["manifests"] = [choose(index["manifests"], name)]
    digests = [image.digest, image.id, *(layer.digest for layer in image.layers)]
    blobs = [f"blobs/sha256/{digest.removeprefix('sha256:')}" for digest in digests]
    listing = [{"Config": blobs[1], "RepoTags": [name], "Layers": blobs[2:]}]
    texts = {"oci-layout": contents(place / "oci-layout"), "index.json": as_bytes(index),
             "manifest.json": as_bytes(listing)}  # fmt: skip
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        for title, text in texts.items():
            tar.addfile(entry(title, size=len(text)), io.BytesIO(text))
        for title in dict.fromkeys(blobs):
            with open(place / title, "rb") as content:
                tar.addfile(entry(title, size=os.path.getsize(place / title)), content)


def load(file, place):
    """Make the layout `place` from an archive: an OCI layout, or Docker's own older form."""
    place = Path(place)
    try:
        place.mkdir()
    except OSError as error:
        raise ImageError(f"can't make {place}: {error.strerror}") from None
    try:
        with tarfile.open(file) as tar:
            members = {"/".join(split(header.name)): header for header in tar}
            if "index.json" in members:
                take_layout(tar, members, place)
            elif "manifest.json" in members:
                take_docker(tar, members, place)
            else:
                raise ImageError("the archive has neither an index.json nor a manifest.json")
    except BaseException as error:
        shutil.rmtree(place)
        if isinstance(error, (tarfile.TarError, EOFError, zlib.error, OSError)):
            raise ImageError(f"the archive can't be read: {error}") from None
        raise


def take_layout(tar, members, place):
    """Copy the files of an OCI layout, and no other."""
    (place / "blobs/sha256").mkdir(parents=True)
    for name, header in members.items():
        if header.isreg() and re.fullmatch("oci-layout|index.json|blobs/sha256/[0-9a-f]{64}", name):
            with tar.extractfile(header) as content, open(place / name, "wb") as copied:
                shutil.copyfileobj(content, copied)


def take_docker(tar, members, place):
    """Make a layout from manifest.json, which has names for digests: the diff_ids must hold it."""

    def stream(name):
        found = (
            tar.extractfile(members[name]) if isinstance(name, str) and name in members else None
        )
        if found is None:
            raise ImageError(f"manifest.json names {name!r}, and the archive has no such file")
        return found

    with stream("manifest.json") as file:
        images = listed(
            parse(b'{"images":' + file.read(LARGEST_JSON) + b"}", "manifest.json"),
            "images",
            "manifest.json",
        )
    if len(images) != 1:
        raise ImageError(f"the archive has {len(images)} images, and one is wanted")
    with stream(images[0].get("Config")) as file:
        config = store(place, file, CONFIG)
    layers = []
    for name in member(images[0], "Layers", list, "manifest.json"):
        with stream(name) as file:
            kind = GZIPPED if file.read(2) == b"\x1f\x8b" else PLAIN
            file.seek(0)
            layers.append(store(place, file, kind))
    tags = images[0].get("RepoTags") or ["image"]
    enter(
        place,
        str(tags[0]),
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers},
    )


# ---- the command


def main(argv):
    """Run one of the commands of the docstring. Returns the exit status."""
    try:
        verb, *rest = argv
        if verb == "check" and len(rest) in (1, 2):
            image = read(*rest)
            for layer in image.layers:
                check_layer(layer)
            print(f"{image.digest}: whole, with {len(image.layers)} layers")
        elif verb == "unpack" and len(rest) in (2, 3):
            done = unpack(read(rest[0], *rest[2:]), rest[1])
            lost = f"; {done.given_up} could not get their owner" if done.given_up else ""
            print(f"{done.entries} entries and {done.whiteouts} whiteouts{lost}")
        elif verb == "config" and len(rest) in (2, 3):
            file, image = Path(rest[1], "config.json"), read(rest[0], *rest[2:])
            spec = json.loads(file.read_text())
            config = runtime_config(image.config, spec, Path(rest[1], spec["root"]["path"]))
            file.write_text(json.dumps(config, indent=2))
        elif verb == "archive" and len(rest) == 3:
            archive(rest[0], rest[2], rest[1])
        elif verb == "load" and len(rest) == 2:
            load(*rest)
        else:
            raise ValueError
    except ImageError as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    except ValueError:
        print(__doc__.split("\n\n")[1], file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
