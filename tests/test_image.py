"""The image program of lesson 03: real engines take what it packs; what is malformed it refuses, and writes nothing."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from helpers import bundles, engines, machine
from helpers.lab import LabError, start_lab
from notebooks.programs import image

PROGRAM = Path(image.__file__)

# ---- made by hand here, so that nothing is tested against itself


def tar(*entries, end=True):
    """A tar archive of (name, what) pairs: bytes are a file, {...} is a header with these fields, None a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, what in entries:
            header = tarfile.TarInfo(name)
            header.type = tarfile.DIRTYPE if what is None else tarfile.REGTYPE
            header.mode = 0o755 if what is None else 0o644
            for field, value in what.items() if isinstance(what, dict) else ():
                setattr(header, field, value)
            content = what if isinstance(what, bytes) else b""
            if isinstance(what, bytes):
                header.size = len(content)
            archive.addfile(header, io.BytesIO(content) if content else None)
    return out.getvalue() if end else out.getvalue()[:512]


def symlink(target):
    return {"type": tarfile.SYMTYPE, "linkname": target}


def hard_link(target):
    return {"type": tarfile.LNKTYPE, "linkname": target}


def put(place, data, kind):
    """A blob of the layout, and its descriptor."""
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    digest = hashlib.sha256(data).hexdigest()
    (place / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (place / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}


def layout(tmp_path, *layers, kind="layer.v1.tar", diff_ids=None, manifest=None, index=None, config=None):
    """A layout of one image of these layers; the keywords replace what would be right. Returns (place, descriptors)."""
    place = tmp_path / "layout"
    blobs = [put(place, layer, kind) for layer in layers]
    rootfs = {"type": "layers", "diff_ids": [b["digest"] for b in blobs] if diff_ids is None else diff_ids}
    settings = {"os": "linux", "architecture": "amd64", "config": {}, "rootfs": rootfs} if config is None else config
    described = put(place, settings, "config.v1+json")
    whole = {"schemaVersion": 2, "config": described, "layers": blobs, **(manifest or {})}
    top = put(place, whole, "manifest.v1+json")
    listing = {"schemaVersion": 2, "manifests": [top]} if index is None else index
    (place / "index.json").write_bytes(listing if isinstance(listing, bytes) else json.dumps(listing).encode())
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return place, {"layers": blobs, "config": described, "manifest": top}


def everything(top):
    """All names below a directory with kind, mode and content, to see whether anything was touched."""
    found = {}
    for path in sorted(Path(top).rglob("*")):
        info = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(info.st_mode) else None
        link = os.readlink(path) if path.is_symlink() else None
        found[str(path.relative_to(top))] = (stat.filemode(info.st_mode), content, link)
    return found


def refused(tmp_path, place, *words, name=None, limit=image.LARGEST_IMAGE):
    """The image gives one clear error, with these words, and nothing is written or removed anywhere."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(image.ImageError) as caught:
        image.unpack(image.read(place, name, limit), tmp_path / "target")
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert "\n" not in said and len(said) < 300
    assert everything(tmp_path) == before


FILE = ("etc/motd", b"hello\n")

# ---- malformed: the digests


def test_a_blob_with_one_byte_changed_is_refused(tmp_path):
    place, about = layout(tmp_path, tar(FILE))
    blob = place / "blobs/sha256" / about["layers"][0]["digest"][7:]
    data = bytearray(blob.read_bytes())
    data[600] ^= 1
    blob.write_bytes(data)
    refused(tmp_path, place, "digest mismatch")


def test_a_blob_that_is_shorter_than_promised_is_refused(tmp_path):
    place, about = layout(tmp_path, tar(FILE))
    blob = place / "blobs/sha256" / about["layers"][0]["digest"][7:]
    blob.write_bytes(blob.read_bytes()[:1000])
    refused(tmp_path, place, "1000 bytes", "promised")


def test_a_missing_layer_is_refused(tmp_path):
    place, about = layout(tmp_path, tar(FILE))
    (place / "blobs/sha256" / about["layers"][0]["digest"][7:]).unlink()
    refused(tmp_path, place, "is missing")


def test_a_missing_config_is_refused(tmp_path):
    place, about = layout(tmp_path, tar(FILE))
    (place / "blobs/sha256" / about["config"]["digest"][7:]).unlink()
    refused(tmp_path, place, "is missing")


def test_a_blob_that_is_a_symlink_is_refused(tmp_path):
    place, about = layout(tmp_path, tar(FILE))
    blob = place / "blobs/sha256" / about["layers"][0]["digest"][7:]
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    refused(tmp_path, place, "is missing")


@pytest.mark.parametrize("digest", ["sha256:../../../precious/file", "md5:d41d8cd98f00b204", "", 7, None])
def test_a_digest_that_is_none_is_refused(tmp_path, digest):
    place, about = layout(tmp_path, tar(FILE), index={"manifests": []})
    index = {"manifests": [{**about["manifest"], "digest": digest}]}
    (place / "index.json").write_text(json.dumps(index))
    refused(tmp_path, place, "is not a digest")


def test_a_layer_that_unzips_to_something_else_than_the_config_promised_is_refused(tmp_path):
    place, _ = layout(tmp_path, tar(FILE), diff_ids=["sha256:" + "0" * 64])
    refused(tmp_path, place, "the config promised")


def test_fewer_diff_ids_than_layers_are_refused(tmp_path):
    place, _ = layout(tmp_path, tar(FILE), diff_ids=[])
    refused(tmp_path, place, "diff_id")


# ---- malformed: sizes


@pytest.mark.parametrize("size", [1 << 62, -1, 1.5, True, "9"])
def test_a_layer_that_declares_an_impossible_size_is_refused(tmp_path, size):
    data = tar(FILE)
    blob = put(tmp_path / "layout", data, "layer.v1.tar")
    place, _ = layout(tmp_path, data, manifest={"layers": [{**blob, "size": size}]})
    refused(tmp_path, place, "declares a size")


def test_a_layer_that_unzips_to_more_than_is_allowed_is_refused(tmp_path):
    plain = tar(("zeros", bytes(3_000_000)))
    promised = f"sha256:{hashlib.sha256(plain).hexdigest()}"
    place, about = layout(tmp_path, gzip.compress(plain), kind="layer.v1.tar+gzip", diff_ids=[promised])
    assert about["layers"][0]["size"] < 10_000
    refused(tmp_path, place, "more than is allowed", limit=1_000_000)


def test_a_file_that_declares_more_than_the_layer_has_is_refused(tmp_path):
    header = tarfile.TarInfo("huge")
    header.size = 1 << 50
    place, _ = layout(tmp_path, header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    refused(tmp_path, place, "declares a size")


def test_a_file_that_declares_a_negative_size_is_refused(tmp_path):
    header = tarfile.TarInfo("less")
    header.size = -512
    place, _ = layout(tmp_path, header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    refused(tmp_path, place)  # newer versions of tarfile refuse it themselves


def test_an_index_of_many_megabytes_is_refused(tmp_path):
    place, _ = layout(tmp_path, tar(FILE), index=b'{"manifests": []' + b" " * (5 << 20) + b"}")
    refused(tmp_path, place, "index.json has", "are allowed")


# ---- malformed: the tree of descriptors


def test_json_that_is_no_object_is_refused(tmp_path):
    place, _ = layout(tmp_path, tar(FILE), index=b"[1, 2]")
    refused(tmp_path, place, "index.json is not a JSON object")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_text_that_is_no_json_is_refused(tmp_path, text):
    place, _ = layout(tmp_path, tar(FILE), index=text)
    refused(tmp_path, place, "index.json is not JSON")


def test_json_with_two_members_of_one_name_is_refused(tmp_path):
    place, about = layout(tmp_path, tar(FILE))
    text = json.dumps([about["manifest"]])
    (place / "index.json").write_text(f'{{"manifests": {text}, "manifests": {text}}}')
    refused(tmp_path, place, "two members of one name", "manifests")


@pytest.mark.parametrize("manifests", [None, 5, {"a": 1}, ["x"], [[]]])
def test_a_list_of_manifests_that_is_none_is_refused(tmp_path, manifests):
    place, _ = layout(tmp_path, tar(FILE), index={"manifests": manifests})
    refused(tmp_path, place, "'manifests'")


def test_a_layer_of_an_unknown_media_type_is_refused(tmp_path):
    place, _ = layout(tmp_path, tar(FILE), kind="layer.v1.tar+zstd")
    refused(tmp_path, place, "layer.v1.tar+zstd", "no layer")


def test_a_config_with_the_media_type_of_something_else_is_refused(tmp_path):
    place, about = layout(tmp_path, tar(FILE))
    place, _ = layout(tmp_path, tar(FILE), manifest={"config": {**about["config"], "mediaType": "text/html"}})
    refused(tmp_path, place, "text/html", "no image config")


def test_an_index_entry_that_is_neither_manifest_nor_index_is_refused(tmp_path):
    place, about = layout(tmp_path, tar(FILE))
    (place / "index.json").write_text(json.dumps({"manifests": [about["layers"][0]]}))
    refused(tmp_path, place, "neither a manifest nor an index")


def test_an_index_that_contains_itself_needs_a_digest_that_lies_and_is_refused_for_that(tmp_path):
    place, _ = layout(tmp_path, tar(FILE))
    name = "a" * 64
    entry = {"mediaType": image.INDEX, "digest": f"sha256:{name}", "size": 0}
    text = json.dumps({"manifests": [entry]})
    entry["size"] = len(text.replace('"size": 0', '"size": 000'))
    text = json.dumps({"manifests": [entry]})
    (place / "blobs/sha256" / name).write_text(text)
    (place / "index.json").write_text(text)
    assert len(text) == entry["size"]
    refused(tmp_path, place, "digest mismatch")


def test_indexes_too_deep_inside_each_other_are_refused(tmp_path):
    place, about = layout(tmp_path, tar(FILE))
    inner = about["manifest"]
    for _ in range(6):
        inner = put(place, {"manifests": [inner]}, "index.v1+json")
    (place / "index.json").write_text(json.dumps({"manifests": [inner]}))
    refused(tmp_path, place, "inside each other")


def test_two_images_of_one_name_are_refused(tmp_path):
    place, about = layout(tmp_path, tar(FILE))
    entry = {**about["manifest"], "annotations": {image.REF_NAME: "hello"}}
    (place / "index.json").write_text(json.dumps({"manifests": [entry, entry]}))
    refused(tmp_path, place, "2 images called 'hello'", name="hello")


def test_a_layout_without_its_version_is_refused(tmp_path):
    place, _ = layout(tmp_path, tar(FILE))
    (place / "oci-layout").write_text("{}")
    refused(tmp_path, place, "oci-layout has version None")


# ---- malformed: the archives


def test_a_gzip_file_that_is_cut_off_is_refused(tmp_path):
    plain = tar(("noise", os.urandom(5000)))
    promised = f"sha256:{hashlib.sha256(plain).hexdigest()}"
    place, _ = layout(tmp_path, gzip.compress(plain)[:-100], kind="layer.v1.tar+gzip", diff_ids=[promised])
    refused(tmp_path, place, "not a whole gzip file")


def test_a_layer_that_is_no_gzip_file_though_it_says_so_is_refused(tmp_path):
    place, _ = layout(tmp_path, tar(FILE), kind="layer.v1.tar+gzip")
    refused(tmp_path, place, "not a whole gzip file")


@pytest.mark.parametrize("length", [512, 1024, 1030, 1536])
def test_an_archive_that_was_cut_off_before_it_got_its_digest_is_refused(tmp_path, length):
    place, _ = layout(tmp_path, tar(("a", b"x" * 600), ("b", b"y"))[:length])
    refused(tmp_path, place, "cut off" if length == 1536 else "")


def test_an_archive_with_something_behind_its_end_is_refused(tmp_path):
    place, _ = layout(tmp_path, tar(FILE) + tar(("hidden", b"?")))
    refused(tmp_path, place, "behind its end")


def test_a_layer_that_is_no_archive_at_all_is_refused(tmp_path):
    place, _ = layout(tmp_path, b"no archive " * 100)
    refused(tmp_path, place, "not a whole tar archive")


# ---- malformed: names that lead out


@pytest.mark.parametrize("name", ["../precious/file", "a/../../precious/file", ".."])
def test_a_name_with_two_dots_is_refused(tmp_path, name):
    place, _ = layout(tmp_path, tar((name, b"theirs")))
    refused(tmp_path, place, "leads out")


def test_an_absolute_name_is_refused(tmp_path):
    place, _ = layout(tmp_path, tar((f"{tmp_path}/precious/file", b"theirs")))
    refused(tmp_path, place, "leads out")


@pytest.mark.parametrize("relative", [False, True])
def test_a_file_behind_a_symlink_that_leads_out_is_refused(tmp_path, relative):
    target = "../precious" if relative else f"{tmp_path}/precious"
    place, _ = layout(tmp_path, tar(("door", symlink(target)), ("door/file", b"theirs")))
    refused(tmp_path, place, "goes through what is not a directory")


def test_a_symlink_from_a_lower_layer_is_not_followed_either(tmp_path):
    place, _ = layout(tmp_path, tar(("door", symlink(f"{tmp_path}/precious"))), tar(("door/file", b"theirs")))
    refused(tmp_path, place, "goes through what is not a directory")


@pytest.mark.parametrize("target", ["../precious/file", "/precious/file"])
def test_a_hard_link_that_leads_out_is_refused(tmp_path, target):
    place, _ = layout(tmp_path, tar(("mine", hard_link(target))))
    refused(tmp_path, place, "leads out")


def test_a_hard_link_through_a_symlink_that_leads_out_is_refused(tmp_path):
    place, _ = layout(tmp_path, tar(("door", symlink(f"{tmp_path}/precious")), ("mine", hard_link("door/file"))))
    refused(tmp_path, place, "goes through what is not a directory")


def test_a_hard_link_to_a_symlink_and_a_write_behind_it_are_refused(tmp_path):
    door = ("door", symlink(f"{tmp_path}/precious/file"))
    place, _ = layout(tmp_path, tar(door, ("second", hard_link("door"))))
    refused(tmp_path, place, "not a file")


def test_a_hard_link_to_nothing_is_refused(tmp_path):
    place, _ = layout(tmp_path, tar(("mine", hard_link("nothing"))))
    refused(tmp_path, place, "not there")


def test_a_file_that_is_also_a_directory_is_refused(tmp_path):
    place, _ = layout(tmp_path, tar(("a", b"file"), ("a/b", b"in it")))
    refused(tmp_path, place, "not a directory")


def test_a_file_that_is_there_twice_is_refused(tmp_path):
    place, _ = layout(tmp_path, tar(FILE, FILE))
    refused(tmp_path, place, "twice")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_a_device_node_is_refused(tmp_path, kind):
    place, _ = layout(tmp_path, tar(("dev/disk", {"type": kind, "devmajor": 8})))
    refused(tmp_path, place, "device node")


def test_an_entry_of_an_unknown_kind_is_refused(tmp_path):
    place, _ = layout(tmp_path, tar(("odd", {"type": b"Z"})))
    refused(tmp_path, place, "of a kind")


# ---- malformed: whiteouts


@pytest.mark.parametrize("name", [".wh...", ".wh..", ".wh.", "a/.wh...", ".wh..wh.plnk", ".wh.a/b", ".wh..wh..opq/x"])
def test_a_whiteout_that_would_hide_more_than_a_name_is_refused(tmp_path, name):
    place, _ = layout(tmp_path, tar(("a", None), ("a/b", b"lower")), tar((name, b"")))
    refused(tmp_path, place, "not a whiteout")


def test_a_whiteout_with_something_in_it_is_refused(tmp_path):
    place, _ = layout(tmp_path, tar(FILE), tar(("etc/.wh.motd", b"content")))
    refused(tmp_path, place, "not a whiteout")


def test_a_whiteout_behind_a_symlink_that_leads_out_removes_nothing(tmp_path):
    place, _ = layout(tmp_path, tar(("door", symlink(f"{tmp_path}/precious"))), tar(("door/.wh.file", b"")))
    refused(tmp_path, place, "goes through what is not a directory")


def test_an_opaque_whiteout_behind_a_symlink_removes_nothing(tmp_path):
    place, _ = layout(tmp_path, tar(("door", symlink(f"{tmp_path}/precious"))), tar(("door/.wh..wh..opq", b"")))
    refused(tmp_path, place, "goes through what is not a directory")


# ---- malformed: archives of engines


@pytest.mark.parametrize(
    "entries, words",
    [
        ([("file", b"x")], "neither"),
        ([("manifest.json", b"{}")], "right type"),
        ([("manifest.json", b"[]")], "0 images"),
        ([("manifest.json", b'[{"Config": "../../etc/passwd", "Layers": []}]')], "no such file"),
        ([("manifest.json", b'[{"Config": 5, "Layers": []}]')], "no such file"),
        ([("c", b"{}"), ("manifest.json", b'[{"Config": "c", "Layers": ["c", "gone"]}]')], "no such file"),
        ([("../precious", b"x")], "leads out"),
    ],
)
def test_an_archive_that_no_engine_would_save_is_refused(tmp_path, entries, words):
    (tmp_path / "a.tar").write_bytes(tar(*entries))
    before = everything(tmp_path)
    with pytest.raises(image.ImageError, match=words):
        image.load(tmp_path / "a.tar", tmp_path / "layout")
    assert everything(tmp_path) == before


def test_the_command_says_one_sentence_and_ends_with_1(tmp_path):
    place, _ = layout(tmp_path, tar(("../x", b"")))
    argv = [sys.executable, PROGRAM, "unpack", place, tmp_path / "target"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "image: '../x' leads out of the root file system\n"
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["check"], ["unpack", "only-one"]])
def test_the_command_shows_how_it_is_used(argv):
    done = subprocess.run([sys.executable, PROGRAM, *argv], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "image.py unpack LAYOUT TARGET" in done.stderr and "Traceback" not in done.stderr


# ---- well formed


def unpacked(tmp_path, *layers):
    place, _ = layout(tmp_path, *layers)
    done = image.unpack(image.read(place), tmp_path / "target")
    return {name: what[1] or what[2] for name, what in everything(tmp_path / "target").items()}, done


def test_a_whiteout_hides_a_file_of_a_lower_layer_and_leaves_no_trace(tmp_path):
    found, done = unpacked(tmp_path, tar(FILE, ("etc/rest", b"1")), tar(("etc/.wh.motd", b"")))
    assert set(found) == {"etc", "etc/rest"}
    assert done.whiteouts == 1


def test_a_whiteout_does_not_hide_what_its_own_layer_brings(tmp_path):
    found, _ = unpacked(tmp_path, tar(FILE), tar(FILE[:1] + (b"new",), ("etc/.wh.motd", b"")))
    assert found["etc/motd"] == b"new"


def test_an_opaque_directory_hides_all_that_was_in_it_and_keeps_what_is_new(tmp_path):
    lower = tar(("d", None), ("d/old", b"1"), ("d/deep", None), ("d/deep/old", b"2"), ("e", b"3"))
    found, _ = unpacked(tmp_path, lower, tar(("d/new", b"4"), ("d/.wh..wh..opq", b"")))
    assert set(found) == {"d", "d/new", "e"}


def test_a_whiteout_of_nothing_does_nothing(tmp_path):
    found, _ = unpacked(tmp_path, tar(FILE), tar(("gone/.wh.away", b"")))
    assert set(found) == {"etc", "etc/motd"}


def test_a_file_takes_the_place_of_a_directory_and_a_directory_that_of_a_symlink(tmp_path):
    lower = tar(("d/x", b"1"), ("link", symlink("/nowhere")))
    found, _ = unpacked(tmp_path, lower, tar(("d", b"file"), ("link", None), ("link/y", b"2")))
    assert (found["d"], found["link/y"]) == (b"file", b"2")


def test_a_symlink_is_kept_as_it_is_and_a_hard_link_is_one_file(tmp_path):
    found, _ = unpacked(tmp_path, tar(FILE, ("abs", symlink("/etc/motd")), ("hard", hard_link("etc/motd"))))
    assert found["abs"] == "/etc/motd"
    assert (tmp_path / "target/hard").stat().st_ino == (tmp_path / "target/etc/motd").stat().st_ino


def test_modes_and_times_are_those_of_the_layer(tmp_path):
    sealed = ("sealed", {"type": tarfile.DIRTYPE, "mode": 0o500, "mtime": 1000})
    unpacked(tmp_path, tar(sealed, ("sealed/tool", {"mode": 0o751, "mtime": 2000})))
    directory, tool = tmp_path / "target/sealed", tmp_path / "target/sealed/tool"
    assert (stat.S_IMODE(directory.stat().st_mode), directory.stat().st_mtime) == (0o500, 1000)
    assert (stat.S_IMODE(tool.stat().st_mode), tool.stat().st_mtime) == (0o751, 2000)


def test_nothing_is_unpacked_over_a_directory_that_is_there(tmp_path):
    place, _ = layout(tmp_path, tar(FILE))
    (tmp_path / "target").mkdir()
    with pytest.raises(image.ImageError, match="File exists"):
        image.unpack(image.read(place), tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []


def test_an_index_in_an_index_leads_to_the_manifest_for_this_machine(tmp_path):
    place, about = layout(tmp_path, tar(FILE))
    here, other = {"os": "linux", "architecture": image.architecture()}, {"os": "linux", "architecture": "z80"}
    entries = [{**about["config"], "platform": other}, {**about["manifest"], "platform": here}]
    inner = put(place, {"manifests": entries}, "index.v1+json")
    (place / "index.json").write_text(json.dumps({"manifests": [inner]}))
    assert image.read(place).digest == about["manifest"]["digest"]


def test_the_same_files_give_the_same_image_whenever_and_wherever_they_are_packed(tmp_path):
    digests = []
    for number, place in enumerate((tmp_path / "one", tmp_path / "two")):
        for name in ("b", "a") if number else ("a", "b"):
            (place / "d").mkdir(parents=True, exist_ok=True)
            (place / "d" / name).write_text(name)
            os.utime(place / "d" / name, (number, number))
        digests.append(image.add(tmp_path / f"layout{number}", "x", [image.pack(place)], {"Cmd": ["/d/a"]}))
    assert digests[0] == digests[1]


def test_two_images_on_one_base_store_its_blob_once(tmp_path):
    base = tar(("big", os.urandom(100_000)))
    for name in ("one", "two"):
        image.add(tmp_path / "layout", name, [base, tar((name, b"x"))], {"Cmd": [name]})
    sizes = [path.stat().st_size for path in (tmp_path / "layout/blobs/sha256").iterdir()]
    assert len(sizes) == 1 + 2 + 2 + 2  # the base, two tops, two configs, two manifests
    assert sum(size >= 100_000 for size in sizes) == 1
    shared = {image.read(tmp_path / "layout", name).layers[0].digest for name in ("one", "two")}
    assert len(shared) == 1


# ---- the image's config and the runtime's

SPEC = {"process": {"args": ["sh"], "env": ["TERM=x"], "cwd": "/", "user": {"uid": 0, "gid": 0}}, "hostname": "runc"}


@pytest.fixture
def rootfs(tmp_path):
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    (tmp_path / "rootfs/etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nann:x:7:8::/:/bin/sh\nbroken\n")
    (tmp_path / "rootfs/etc/group").write_text("root:x:0:\nstaff:x:50:ann\n")
    return tmp_path / "rootfs"


def test_command_environment_directory_and_user_come_from_the_image(rootfs):
    env = ["A=b", "PATH=/bin"]
    wanted = {"Entrypoint": ["/bin/run"], "Cmd": ["it"], "Env": env, "WorkingDir": "/srv", "User": "ann"}
    made = image.runtime_config({"config": wanted}, SPEC, rootfs)
    assert made["process"] == {
        "args": ["/bin/run", "it"], "env": ["A=b", "PATH=/bin"], "cwd": "/srv", "user": {"uid": 7, "gid": 8},
    }  # fmt: skip
    assert made["hostname"] == "runc"
    assert SPEC["process"]["args"] == ["sh"], "the spec that was given is not changed"


@pytest.mark.parametrize(
    "text, uid, gid",
    [("", 0, 0), ("ann", 7, 8), ("7", 7, 8), ("ann:staff", 7, 50), ("1234", 1234, 0), ("1234:99", 1234, 99)],
)
def test_a_user_is_a_name_or_a_number_with_or_without_a_group(rootfs, text, uid, gid):
    made = image.runtime_config({"config": {"User": text}}, SPEC, rootfs)
    assert made["process"]["user"] == {"uid": uid, "gid": gid}


@pytest.mark.parametrize("text", ["nobody-here", "ann:nogroup", "-1"])
def test_a_user_or_group_that_the_image_does_not_know_is_refused(rootfs, text):
    with pytest.raises(image.ImageError, match="has no"):
        image.runtime_config({"config": {"User": text}}, SPEC, rootfs)


def test_names_of_users_are_not_looked_up_through_a_symlink_that_leads_out(rootfs, tmp_path):
    (tmp_path / "passwd").write_text("evil:x:0:0::/:/bin/sh\n")
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to(tmp_path / "passwd")
    with pytest.raises(image.ImageError, match="no user 'evil'"):
        image.runtime_config({"config": {"User": "evil"}}, SPEC, rootfs)


def test_an_image_without_settings_leaves_the_command_and_gets_a_path(rootfs):
    made = image.runtime_config({"config": None}, SPEC, rootfs)
    assert made["process"]["args"] == ["sh"]
    assert [one.split("=")[0] for one in made["process"]["env"]] == ["PATH"]


# ---- the engines

WANTED = {
    "Entrypoint": ["/bin/sh", "-c"],
    "Cmd": ["id -u; id -g; pwd; echo $GREETING; cat /etc/motd; test -e /etc/hidden || echo gone"],
    "Env": ["PATH=/bin", "GREETING=good day"],
    "WorkingDir": "/srv",
    "User": "0:7",
}
SAYS = "0\n7\n/srv\ngood day\nhello\ngone\n"


@pytest.fixture(scope="module")
def lab():
    """One lab with one hand-made image, `hello:1`, as layout and archive, for all that follows."""
    try:
        started = start_lab()
    except LabError as error:
        pytest.skip(f"this machine can't: make a lab ({error})")
    with contextlib.ExitStack() as stack:
        stack.callback(started.close)
        started.path("base").mkdir()
        assert bundles.fill_rootfs(started.path("base")) == "busybox"
        started.path("base/srv").mkdir()
        started.path("base/etc/hidden").write_text("by the next layer")
        top = tar(("etc/motd", b"hello\n"), ("etc/.wh.hidden", b""))
        image.add(started.path("layout"), "hello:1", [image.pack(started.path("base")), top], WANTED)
        shutil.copy(PROGRAM, started.path("image.py"))
        program(started, "archive", "layout", "hello.tar", "hello:1")
        yield started


def program(lab, *argv):
    return lab.run([machine.find("python3"), "image.py", *argv], echo=False)


def ready(lab, engine):
    try:
        return getattr(engines, engine)(lab)
    except engines.EngineError as error:
        pytest.skip(str(error))


def run_with_runc(lab, name, place):
    """Unpack the image in the layout `place` with the program, merge its config, and run it; what it said."""
    bundles.make(lab, name, ["false"])
    lab.run(["rm", "-r", f"{name}/rootfs"], echo=False)
    program(lab, "unpack", place, f"{name}/rootfs")
    program(lab, "config", place, name)
    return lab.run(["runc", "run", "--bundle", name, name], echo=False).stdout


def tree_of(archive):
    """{name: (kind, mode, size, link)} of a tar archive."""
    with tarfile.open(archive) as opened:
        found = {header.name.removeprefix("./").rstrip("/"): header for header in opened}
    return {
        name: (header.type, header.mode & 0o7777, header.size, header.linkname)
        for name, header in found.items() if name not in ("", ".")
    }  # fmt: skip


def test_runc_runs_the_image_that_was_packed_and_unpacked_by_hand(lab):
    assert run_with_runc(lab, "mine", "layout") == SAYS


def test_skopeo_finds_in_it_what_we_put_in(lab):
    if not machine.find("skopeo"):
        pytest.skip("skopeo is missing")
    ours = image.read(lab.path("layout"), "hello:1")
    seen = lab.run(["skopeo", "inspect", "oci:layout:hello:1"], echo=False).json()
    assert seen["Digest"] == ours.digest
    assert seen["Layers"] == [layer.digest for layer in ours.layers]
    config = lab.run(["skopeo", "inspect", "--config", "oci:layout:hello:1"], echo=False).json()
    assert config["config"] == WANTED


def test_skopeo_copies_it_without_changing_a_digest_when_it_is_told_so(lab):
    if not machine.find("skopeo"):
        pytest.skip("skopeo is missing")
    copy = ["skopeo", "--insecure-policy", "copy"]
    lab.run([*copy, "--preserve-digests", "oci:layout:hello:1", "oci:same:hello:1"], echo=False)
    assert image.read(lab.path("same")).digest == image.read(lab.path("layout")).digest


def test_skopeo_compresses_else_so_the_manifest_changes_and_the_image_id_does_not(lab):
    if not machine.find("skopeo"):
        pytest.skip("skopeo is missing")
    lab.run(["skopeo", "--insecure-policy", "copy", "oci:layout:hello:1", "oci:zipped:hello:1"], echo=False)
    ours, theirs = image.read(lab.path("layout")), image.read(lab.path("zipped"))
    assert {layer.media_type for layer in theirs.layers} == {image.GZIPPED}
    assert theirs.digest != ours.digest
    assert theirs.id == ours.id


def test_skopeo_refuses_the_changed_byte_too(lab):
    if not machine.find("skopeo"):
        pytest.skip("skopeo is missing")
    lab.run(["cp", "-r", "layout", "spoilt"], echo=False)
    blob = lab.path("spoilt/blobs/sha256") / image.read(lab.path("layout")).layers[1].digest[7:]
    data = bytearray(blob.read_bytes())
    data[600] ^= 1
    blob.write_bytes(data)
    copy = ["skopeo", "--insecure-policy", "copy", "oci:spoilt:hello:1", "oci:never:hello:1"]
    assert "igest" in lab.run(copy, echo=False, check=False).stderr
    with pytest.raises(image.ImageError, match="digest mismatch"):
        image.read(lab.path("spoilt"))


def test_podman_loads_and_runs_it_under_the_same_digests(lab):
    env = ready(lab, "podman")
    ours = image.read(lab.path("layout"))
    lab.run(["podman", "load", "--quiet", "--input", "hello.tar"], env=env, echo=False)
    seen = lab.run(["podman", "image", "inspect", "localhost/hello:1"], env=env, echo=False).json()[0]
    assert (f"sha256:{seen['Id']}", seen["Digest"]) == (ours.id, ours.digest)
    assert lab.run(["podman", "run", "--rm", "localhost/hello:1"], env=env, echo=False).stdout == SAYS


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_what_podman_saves_is_unpacked_and_run_by_the_program(lab, form):
    env = ready(lab, "podman")
    lab.run(["podman", "load", "--quiet", "--input", "hello.tar"], env=env, echo=False)
    save = ["podman", "save", "--quiet", "--format", form, "--output", f"{form}.tar", "localhost/hello:1"]
    lab.run(save, env=env, echo=False)
    program(lab, "load", f"{form}.tar", form)
    if form == "oci-archive":
        assert image.read(lab.path(form)).id == image.read(lab.path("layout")).id
    assert run_with_runc(lab, f"from-{form}", form) == SAYS


def test_docker_loads_and_runs_it_under_the_same_id(lab):
    env = ready(lab, "docker")
    ours = image.read(lab.path("layout"))
    lab.run(["docker", "load", "--input", "hello.tar"], env=env, echo=False)
    seen = lab.run(["docker", "image", "inspect", "hello:1"], env=env, echo=False).json()[0]
    assert seen["RootFS"]["Layers"] == [layer.digest for layer in ours.layers]
    assert seen["Id"] in (ours.id, ours.digest)  # the containerd image store calls an image by its manifest
    run = ["docker", "run", "--rm", "--network", "none", "hello:1"]
    assert lab.run(run, env=env, echo=False).stdout == SAYS


def test_what_docker_saves_is_unpacked_and_run_by_the_program(lab):
    env = ready(lab, "docker")
    lab.run(["docker", "load", "--input", "hello.tar"], env=env, echo=False)
    lab.run(["docker", "save", "--output", "docker.tar", "hello:1"], env=env, echo=False)
    program(lab, "load", "docker.tar", "from-docker")
    ours, theirs = image.read(lab.path("layout")), image.read(lab.path("from-docker"))
    assert theirs.id == ours.id
    assert run_with_runc(lab, "docker-runc", "from-docker") == SAYS


def test_the_unpacked_tree_is_the_one_that_docker_exports(lab):
    env = ready(lab, "docker")
    lab.run(["docker", "load", "--input", "hello.tar"], env=env, echo=False)
    name = lab.run(["docker", "create", "--network", "none", "hello:1"], env=env, echo=False).stdout.strip()
    lab.run(["docker", "export", "--output", "export.tar", name], env=env, echo=False)
    program(lab, "unpack", "layout", "plain")
    lab.run(["tar", "--create", "--file", "plain.tar", "--directory", "plain", "."], echo=False)
    theirs, ours = tree_of(lab.path("export.tar")), tree_of(lab.path("plain.tar"))
    added = {".dockerenv", "dev/console", "dev/pts", "dev/shm"}
    added |= {f"etc/{name}" for name in ("hosts", "hostname", "mtab", "resolv.conf")}
    assert set(ours) <= set(theirs)
    assert set(theirs) - set(ours) <= added
    assert {name: theirs[name] for name in ours} == ours


# ---- overlayfs as the oracle for layers


def test_a_packed_upper_directory_is_the_difference_that_the_overlay_shows(lab):
    lab.run(["mkdir", "o", "o/upper", "o/work", "o/merged"], echo=False)
    program(lab, "unpack", "layout", "o/lower")
    options = "lowerdir=o/lower,upperdir=o/upper,workdir=o/work" + (",userxattr" if os.getuid() else "")
    lab.run(["mount", "-t", "overlay", "overlay", "-o", options, "o/merged"], echo=False)
    change = "cd o/merged; rm etc/motd; echo new > etc/new; rm -r srv; mkdir srv; echo x > srv/x; ln -s /x bin/link"
    lab.run(["sh", "-c", change], echo=False)
    layers = [layer.path.read_bytes() for layer in image.read(lab.path("layout")).layers]
    image.add(lab.path("changed"), "changed", [*layers, image.pack(lab.path("o/upper"))], {})
    program(lab, "unpack", "changed", "o/again")
    assert lab.run(["diff", "--recursive", "--no-dereference", "o/merged", "o/again"], echo=False).stdout == ""
    names = [name for name in tree_of(image.read(lab.path("changed")).layers[2].path) if ".wh." in name]
    assert names == ["etc/.wh.motd", "srv/.wh..wh..opq"]
