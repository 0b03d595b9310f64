import asyncio
import io
import struct
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from spinal.agents import Blob, Refused
from spinal.agents.files import load_module
from spinal.bus.errors import BadCall, OperationFailed
from spinal.testing import Platform, platform

EXAMPLE = Path(__file__).parents[2] / "examples" / "images"
PHOTOS = sorted(path for path in (EXAMPLE / "photos").iterdir() if path.suffix != ".md")
NAMES = [path.name for path in PHOTOS]


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The agent's file, loaded as its worker processes load it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield load_module(EXAMPLE / "worker.py")
    sys.modules.pop("worker", None)


def seen(blob: Blob) -> Image.Image:
    return Image.open(io.BytesIO(blob.data))


def encoded(image: Image.Image, kind: str, **options: Any) -> Blob:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return Blob.of(out.getvalue())


# The functions by themselves.


def test_there_are_six_photographs_with_their_terms() -> None:
    terms = (EXAMPLE / "photos" / "README.md").read_text()
    assert len(PHOTOS) == 6
    assert all(name in terms for name in NAMES)


@pytest.mark.parametrize("photo", PHOTOS, ids=NAMES)
def test_a_photograph_is_scaled_to_the_width_and_keeps_its_form(
    worker: ModuleType, photo: Path
) -> None:
    result = worker.resize(Blob.of(photo), 320)
    with Image.open(photo) as before, seen(result) as after:
        assert after.size == (320, round(320 * before.height / before.width))
        assert after.format == before.format
        assert result.media_type == Image.MIME[after.format or ""]


@pytest.mark.parametrize("photo", PHOTOS, ids=NAMES)
def test_a_thumbnail_fits_into_its_square(worker: ModuleType, photo: Path) -> None:
    with seen(worker.thumbnail(Blob.of(photo), 100)) as small:
        assert max(small.size) == 100


def test_a_thumbnail_is_never_larger_than_the_photograph(worker: ModuleType) -> None:
    with seen(worker.thumbnail(encoded(Image.new("RGB", (30, 20)), "PNG"), 100)) as small:
        assert small.size == (30, 20)


@pytest.mark.parametrize("photo", PHOTOS, ids=NAMES)
def test_a_histogram_counts_every_pixel_of_every_colour(worker: ModuleType, photo: Path) -> None:
    found = worker.histogram(Blob.of(photo), 10)
    with Image.open(photo) as image:
        pixels = image.width * image.height
        assert (found["width"], found["height"]) == image.size
    for colour in ("red", "green", "blue"):
        assert len(found[colour]) == 10
        assert sum(found[colour]) == pixels


def test_a_histogram_of_one_colour_is_in_one_bin(worker: ModuleType) -> None:
    found = worker.histogram(encoded(Image.new("RGB", (4, 5), (255, 128, 0)), "PNG"), 4)
    assert found["red"] == [0, 0, 0, 20]
    assert found["green"] == [0, 0, 20, 0]
    assert found["blue"] == [20, 0, 0, 0]


def test_a_photograph_is_turned_upright(worker: ModuleType) -> None:
    lying = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn it by a quarter (Exif 2.32, 4.6.4).
    with seen(worker.resize(encoded(lying, "JPEG", exif=exif), 20)) as upright:
        assert upright.size == (20, 40)
        assert upright.getexif().get(0x0112) is None


def test_transparency_is_kept(worker: ModuleType) -> None:
    clear = Image.new("P", (20, 20), 0)
    with seen(worker.resize(encoded(clear, "GIF", transparency=0), 40)) as result:
        assert (result.format, result.mode) == ("PNG", "RGBA")
        assert result.getpixel((20, 20)) == (*result.getpixel((0, 0))[:3], 0)  # type: ignore[index]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16"])
def test_every_mode_gives_an_image(worker: ModuleType, mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    with seen(worker.resize(encoded(Image.new(mode, (20, 10)), kind), 40)) as result:
        assert result.size == (40, 20)


def test_a_slower_worker_gives_the_same_bytes(
    worker: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for photo in PHOTOS[:1] + PHOTOS[-1:]:
        once = worker.resize(Blob.of(photo), 100)
        monkeypatch.setattr(worker, "TIMES", 3)
        assert worker.resize(Blob.of(photo), 100).data == once.data
        monkeypatch.undo()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"Dear sir or madam,\n",
        b"GIF89a",
        # Pillow would start Ghostscript for it.
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n0 0 moveto\n%%EOF\n",
    ],
    ids=["nothing", "text", "a bare header", "a program"],
)
def test_what_is_no_photograph_is_refused_in_one_line(worker: ModuleType, data: bytes) -> None:
    for operation in (worker.resize, worker.thumbnail, worker.histogram):
        with pytest.raises(Refused, match="not an image Pillow can read") as caught:
            operation(Blob.of(data))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("photo", PHOTOS, ids=NAMES)
def test_a_photograph_that_is_cut_off_is_refused(worker: ModuleType, photo: Path) -> None:
    data = photo.read_bytes()
    with pytest.raises(Refused, match="damaged"):
        worker.resize(Blob.of(data[: len(data) // 2]))


@pytest.mark.parametrize("side", [8_000, 60_000])
def test_a_bomb_is_refused_before_it_is_decoded(worker: ModuleType, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(Refused, match="more than 50,000,000 pixels"):
        worker.resize(Blob.of(bomb))


def test_a_result_that_would_be_too_large_is_refused(worker: ModuleType) -> None:
    strip = encoded(Image.new("L", (16, 16_000)), "PNG")
    with pytest.raises(Refused, match="8192 x 8192000 is more than"):
        worker.resize(strip, 8192)


# The agent on the bus.

on_the_bus = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[Platform]:
    async with platform() as found:
        await found.agent(EXAMPLE / "worker.py")
        yield found


@on_the_bus
async def test_all_photographs_come_back_scaled(running: Platform) -> None:
    inputs = [{"photo": photo, "width": 200 + number} for number, photo in enumerate(PHOTOS)]
    found = {mapped.index: mapped async for mapped in running.client.map("/image/resize", inputs)}
    assert len(found) == len(PHOTOS)
    for number, mapped in found.items():
        assert mapped.error is None
        with Image.open(io.BytesIO(await mapped.value.read())) as image:
            assert image.width == 200 + number


@on_the_bus
async def test_the_default_width_is_the_functions(running: Platform) -> None:
    blob = await running.client.call("/image/resize", photo=PHOTOS[0])
    with Image.open(io.BytesIO(await blob.read())) as image:
        assert image.width == 640


@on_the_bus
async def test_thumbnail_and_histogram_answer(running: Platform) -> None:
    small, counts = await asyncio.gather(
        running.client.call("/image/thumbnail", photo=PHOTOS[1], size=64),
        running.client.call("/image/histogram", photo=PHOTOS[1], bins=2),
    )
    with Image.open(io.BytesIO(await small.read())) as image:
        assert max(image.size) == 64
    assert sum(counts["red"]) == counts["width"] * counts["height"]


@on_the_bus
async def test_a_text_file_is_refused_in_one_clear_line(running: Platform) -> None:
    with pytest.raises(OperationFailed, match="not an image Pillow can read") as caught:
        await running.client.call("/image/resize", photo=EXAMPLE / "README.md")
    assert caught.value.reason == "refused"
    assert "\n" not in str(caught.value)


@on_the_bus
@pytest.mark.parametrize("width", [15, 8193, "wide", 3.5])
async def test_a_width_out_of_bounds_is_refused_by_name(running: Platform, width: Any) -> None:
    with pytest.raises(BadCall, match="width") as caught:
        await running.client.call("/image/resize", photo=PHOTOS[0], width=width)
    assert caught.value.problem.argument == "width"


@on_the_bus
async def test_the_readmes_map_writes_one_file_for_each_photograph(
    running: Platform, tmp_path: Path
) -> None:
    glob = EXAMPLE / "photos" / "*.jpg"
    command = await running.spinal(
        "map", "/image/thumbnail", "--over", f"photo={glob}", "--set", "size=120",
        "--out", str(tmp_path / "thumbnails"),
    )  # fmt: skip
    assert await command.wait() == 0, command.errors
    found = {file.stem: file for file in (tmp_path / "thumbnails").iterdir()}
    assert sorted(found) == [photo.stem for photo in PHOTOS if photo.suffix == ".jpg"]
    for file in found.values():
        with Image.open(file) as image:
            assert max(image.size) == 120
