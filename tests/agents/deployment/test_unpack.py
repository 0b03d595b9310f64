"""Archives of friends and of enemies."""

from __future__ import annotations

import io
import lzma
import os
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from spinal.agents.deployment.unpack import Bounds, remove, survey, unpack
from spinal.agents.errors import Refused

from .conftest import tar_of, zipped

BOUNDS = Bounds(1_000_000, 100)


def nothing() -> None:
    """Never stops the work."""


class Box:
    """A folder to unpack in, in a folder in which nothing else may appear."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.target = path / "release"

    def unpack(self, data: bytes, name: str, bounds: Bounds = BOUNDS) -> Path:
        archive = self.path / "archive"
        archive.write_bytes(data)
        unpack(archive, name, self.target, bounds, nothing)
        return self.target

    def refuse(self, data: bytes, name: str, says: str, bounds: Bounds = BOUNDS) -> None:
        with pytest.raises(Refused, match=says):
            self.unpack(data, name, bounds)
        assert {one.name for one in self.path.iterdir()} <= {"archive", "release"}
        assert not Path("/tmp/spinal-was-here").exists()


@pytest.fixture
def box(tmp_path: Path) -> Box:
    (tmp_path / "box").mkdir()
    return Box(tmp_path / "box")


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tuple[dict[str, Any], bytes]:
    return {"name": name, "type": kind, "linkname": to}, b""


def file(name: str, data: bytes = b"x", mode: int = 0o644) -> tuple[dict[str, Any], bytes]:
    return {"name": name, "mode": mode}, data


@pytest.mark.parametrize(
    ("end", "name"),
    [("gz", "a.tar.gz"), ("gz", "a.tgz"), ("bz2", "a.tar.bz2"), ("xz", "a.txz"), ("", "a.tar")],
)
def test_a_tar_file_comes_out(box: Box, end: str, name: str) -> None:
    data = tar_of(
        ({"name": "bin", "type": tarfile.DIRTYPE}, b""),
        file("bin/shop", b"#!/bin/sh\n" * 1000, 0o4755),
        file("./lib/one", b"1"),
        link("bin/same", "shop"),
        link("lib/up", "../bin/same"),
        link("copy", "bin/shop", tarfile.LNKTYPE),
        file("x" * 200 + "/" + "y" * 200, b"long"),
        end=end,
    )
    found = box.unpack(data, name)
    assert (found / "bin/shop").read_bytes() == b"#!/bin/sh\n" * 1000
    assert (found / "lib/up").read_bytes() == (found / "copy").read_bytes()
    assert (found / ("x" * 200) / ("y" * 200)).read_bytes() == b"long"
    assert stat.S_IMODE((found / "bin/shop").stat().st_mode) == 0o755
    assert stat.S_IMODE((found / "lib/one").stat().st_mode) == 0o644
    assert (found / "bin/shop").stat().st_uid == os.geteuid()


def test_several_streams_of_xz_with_padding_are_one_file(box: Box) -> None:
    plain = tar_of(file("a", b"A" * 5000), end="")
    data = lzma.compress(plain[:3000]) + bytes(8) + lzma.compress(plain[3000:]) + bytes(4)
    assert (box.unpack(data, "a.tar.xz") / "a").read_bytes() == b"A" * 5000


def test_a_zip_file_comes_out_with_its_modes_and_links(box: Box) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        program = zipfile.ZipInfo("bin/shop")
        program.external_attr = (stat.S_IFREG | 0o6777) << 16
        archive.writestr(program, "#!/bin/sh\n")
        same = zipfile.ZipInfo("same")
        same.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(same, "bin/shop")
        archive.writestr("empty/", "")
    found = box.unpack(out.getvalue(), "a.zip")
    assert stat.S_IMODE((found / "bin/shop").stat().st_mode) == 0o755
    assert (found / "same").read_text() == "#!/bin/sh\n"
    assert (found / "empty").is_dir()


#: What it tries -> what it is told, and its members.
HOSTILE: dict[str, tuple[str, list[tuple[dict[str, Any], bytes]]]] = {
    "absolute": ("outside", [file("/tmp/spinal-was-here")]),
    "upwards": ("outside", [file("../spinal-was-here")]),
    "upwards inside": ("outside", [file("a/../../spinal-was-here")]),
    "link upwards": ("leads outside", [link("out", "../..")]),
    "absolute link": ("leads outside", [link("out", "/tmp")]),
    "write through a link": (
        "twice|leads outside",
        [link("out", ".."), file("out/spinal-was-here")],
    ),
    "link to a link": ("leads outside", [link("d", "."), link("out", "d/d/d/../../../..")]),
    "link over a file": ("twice", [file("a"), link("a", "b")]),
    "loop": ("leads to itself|leads outside", [link("a", "b"), link("b", "a")]),
    "hard link upwards": ("no file before it", [link("out", "../../etc/passwd", tarfile.LNKTYPE)]),
    "absolute hard link": ("no file before it", [link("out", "/etc/passwd", tarfile.LNKTYPE)]),
    "hard link to a link": (
        "no file before it",
        [link("a", "b"), link("c", "a", tarfile.LNKTYPE)],
    ),
    "hard link to nothing": ("no file before it", [link("b", "a", tarfile.LNKTYPE)]),
    "device": (
        "no plain file",
        [({"name": "null", "type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b"")],
    ),
    "block device": (
        "no plain file",
        [({"name": "sda", "type": tarfile.BLKTYPE, "devmajor": 8}, b"")],
    ),
    "pipe": ("no plain file", [({"name": "pipe", "type": tarfile.FIFOTYPE}, b"")]),
    "twice": ("twice", [file("a"), file("a")]),
    "file and folder": ("twice, or as a file and as a folder", [file("a"), file("a/b")]),
    "no name": ("without a name", [file("./")]),
    "too long a name": ("a name that is none here", [file("x" * 300)]),
    "too many": ("more than 100 files", [file(str(number)) for number in range(101)]),
    "too many folders": (
        "more than 100 files",
        [({"name": f"{n}", "type": tarfile.DIRTYPE}, b"") for n in range(101)],
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tar_file_is_refused(box: Box, case: str) -> None:
    says, members = HOSTILE[case]
    box.refuse(tar_of(*members), "a.tar.gz", says)


@pytest.mark.parametrize(
    "name", ["/tmp/spinal-was-here", "../spinal-was-here", "a/../../b", "a\x00b/../../c"]
)
def test_a_hostile_name_in_a_zip_file_stays_inside_or_is_refused(box: Box, name: str) -> None:
    try:
        box.unpack(zipped({name: "x"}), "a.zip")
    except Refused:
        pass  # Else zipfile has cut the name at the NUL, and it is inside.
    assert {one.name for one in box.path.iterdir()} == {"archive", "release"}
    assert not Path("/tmp/spinal-was-here").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_a_hostile_kind_in_a_zip_file_is_refused(box: Box, kind: int) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        member = zipfile.ZipInfo("out")
        member.external_attr = (kind | 0o777) << 16
        archive.writestr(member, "/etc")
    box.refuse(out.getvalue(), "a.zip", "out")


@pytest.mark.parametrize("end", ["gz", "bz2", "xz"])
def test_a_bomb_in_a_tar_file_is_refused(box: Box, end: str) -> None:
    data = tar_of(file("big", bytes(20_000_000)), end=end)
    assert len(data) < 50_000
    box.refuse(data, f"a.tar.{end}", "more than")
    left = sum(one.stat().st_size for one in box.path.rglob("*") if one.is_file())
    assert left < 3_000_000


def test_a_bomb_in_a_zip_file_is_refused(box: Box) -> None:
    box.refuse(zipped({"big": bytes(20_000_000)}), "a.zip", "more than 1000000 bytes")
    assert (box.target / "big").stat().st_size <= 1_000_000


def test_a_header_that_says_it_is_huge_is_refused(box: Box) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 8 * 1024**3
    data = header.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    box.refuse(data, "a.tar", "header of more than", Bounds(10**12, 100))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.tar.gz", b"no gzip at all"),
        ("a.tar.bz2", b"no bzip2 at all"),
        ("a.tar.xz", b"no xz at all"),
        ("a.zip", b"no zip at all"),
        ("a.tar", b"no tar at all" * 100),
        ("a.tar.gz", b""),
        ("a.zip", b""),
    ],
)
def test_what_is_no_archive_is_refused(box: Box, name: str, data: bytes) -> None:
    box.refuse(data, name, "broken|no such archive|cannot be unpacked")


@pytest.mark.parametrize("end", ["gz", "bz2", "xz"])
def test_an_archive_that_ends_early_is_refused(box: Box, end: str) -> None:
    data = tar_of(file("a", os.urandom(100_000)), end=end)
    box.refuse(data[: len(data) // 2], f"a.tar.{end}", "broken")


def test_a_name_that_is_no_text_is_a_name(box: Box) -> None:
    found = box.unpack(tar_of(file("caf\udce9")), "a.tar.gz")
    assert os.listdir(os.fsencode(found)) == [b"caf\xe9"]


def test_a_check_ends_the_work(box: Box) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    archive = box.path / "archive"
    archive.write_bytes(tar_of(file("a")))
    with pytest.raises(Stop):
        unpack(archive, "a.tar.gz", box.target, BOUNDS, stop)


def test_a_wheel_is_looked_at_before_pip_unpacks_it(tmp_path: Path) -> None:
    wheel = tmp_path / "wheel"
    wheel.write_bytes(zipped({"big": bytes(20_000_000)}))
    with pytest.raises(Refused, match="more than 1000000 bytes"):
        survey(wheel, "a.whl", BOUNDS)
    wheel.write_bytes(zipped({str(n): "" for n in range(101)}))
    with pytest.raises(Refused, match="more than 100 files"):
        survey(wheel, "a.whl", BOUNDS)
    wheel.write_bytes(b"no wheel")
    with pytest.raises(Refused, match="no wheel"):
        survey(wheel, "a.whl", BOUNDS)


def test_removing_takes_all_of_a_folder_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    target = tmp_path / "a"
    (target / "deep").mkdir(parents=True)
    (target / "deep/file").write_text("x")
    (target / "out").symlink_to(tmp_path)
    (target / "deep").chmod(0)
    remove(target)
    remove(target)
    assert [one.name for one in tmp_path.iterdir()] == ["precious"]
