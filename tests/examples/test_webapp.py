import io
import json
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from PIL import Image

from spinal.agents import Blob
from spinal.agents.files import load_module
from spinal.testing import Platform, Process, eventually, platform

EXAMPLES = Path(__file__).parents[2] / "examples"
WORKER = EXAMPLES / "images" / "worker.py"
PHOTOS = sorted(path for path in (EXAMPLES / "images/photos").iterdir() if path.suffix != ".md")

on_the_bus = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def expected() -> Iterator[dict[str, bytes]]:
    """The thumbnail of each photograph, as the worker's function makes it here."""
    before = sys.path[:]
    worker = load_module(WORKER)
    yield {photo.name: worker.thumbnail(Blob.of(photo), 320).data for photo in PHOTOS}
    sys.modules.pop("worker", None)
    sys.path[:] = before


class Browser:
    """Somebody at the page."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.http = http

    async def upload(self, name: str, data: bytes) -> str:
        """Upload a photograph, and give the address of its page."""
        async with self.post(name, data) as answer:
            assert answer.status == 303, await answer.text()
            return answer.headers["Location"]

    @asynccontextmanager
    async def post(self, name: str, data: bytes) -> AsyncGenerator[aiohttp.ClientResponse]:
        form = aiohttp.FormData()
        form.add_field("photo", io.BytesIO(data), filename=name, content_type="image/jpeg")
        async with self.http.post("/", data=form, allow_redirects=False) as answer:
            yield answer

    async def get(self, where: str) -> tuple[int, str]:
        async with self.http.get(where) as answer:
            return answer.status, await answer.text()

    async def settled(self, where: str, timeout: float = 60.0) -> tuple[int, str]:
        """Load a page again as long as it asks for that, and give what it says in the end."""

        async def look() -> tuple[int, str] | None:
            status, text = await self.get(where)
            return None if "http-equiv=refresh" in text else (status, text)

        found: tuple[int, str] = await eventually(look, timeout, where)
        return found

    async def thumbnail(self, where: str) -> bytes:
        """Wait for the page of a job to show its thumbnail, and fetch that."""
        status, text = await self.settled(where)
        assert status == 200, text
        image = re.search(r'<img src="([^"]+)"', text)
        assert image is not None, text
        async with self.http.get(image[1]) as answer:
            assert answer.status == 200 and answer.content_type.startswith("image/")
            return await answer.read()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[Platform]:
    async with platform() as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(running: Platform) -> AsyncIterator[Browser]:
    server = await running.start(
        sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(EXAMPLES / "webapp"),
        "--port", "0",
    )  # fmt: skip

    def address() -> str | None:
        assert server.process.returncode is None, server.errors
        said = re.search(r"running on (http://[\d.:]+)", "\n".join(server.errors))
        return None if said is None else said[1]

    base = await eventually(address, 60)
    async with aiohttp.ClientSession(base) as http:
        yield Browser(http)


@asynccontextmanager
async def workers(running: Platform, *slower: int) -> AsyncGenerator[dict[str, Process]]:
    """Start workers that do everything so many times over, and give them by their addresses."""
    found: dict[str, Process] = {}
    try:
        for times in slower:
            process = await running.start(
                *(sys.executable, "-m", "spinal", "agent", "run", str(WORKER)),
                *("--slots", "1", "--json"),
                environ={**running.environ, "SPINAL_DEMO_SLOWER": str(times)},
            )
            ready = json.loads(await process.line(lambda line: '"ready"' in line))
            found[ready["agent"]] = process
        yield found
    finally:
        for process in found.values():
            process.kill()
            await process.wait()


@on_the_bus
async def test_one_worker_makes_the_thumbnail_of_every_photograph(
    running: Platform, browser: Browser, expected: dict[str, bytes]
) -> None:
    status, text = await browser.get("/")
    assert status == 200 and "type=file name=photo" in text
    # Nobody is there yet, and the page waits.
    pages = {photo.name: await browser.upload(photo.name, photo.read_bytes()) for photo in PHOTOS}
    status, text = await browser.get(pages[PHOTOS[0].name])
    assert status == 200 and "The job is queued" in text and "http-equiv=refresh" in text
    async with workers(running, 1):
        for name, page in pages.items():
            assert await browser.thumbnail(page) == expected[name]


@on_the_bus
async def test_four_workers_of_which_one_dies_at_work_look_the_same(
    running: Platform, browser: Browser, expected: dict[str, bytes]
) -> None:
    # One would take minutes for a photograph: it holds one when it is killed.
    async with workers(running, 1, 1, 1, 10_000) as processes:
        *_, (slow, process) = processes.items()
        pages = [
            (photo.name, await browser.upload(photo.name, photo.read_bytes()))
            for photo in PHOTOS * 3
        ]

        async def held() -> str | None:
            rows = [row async for row in running.client.jobs(label="webapp", state="processing")]
            return next((row["id"] for row in rows if row.get("agent") == slow), None)

        victim = await eventually(held, 30, "the slow worker has a job")
        process.kill()
        for name, page in pages:
            assert await browser.thumbnail(page) == expected[name]
        row = await running.client.job(victim).info()
        assert [attempt["agent"] == slow for attempt in row["attempts"]] == [True, False]


@on_the_bus
@pytest.mark.parametrize("data", [b"Dear sir or madam", b"GIF89a"], ids=["text", "a bare header"])
async def test_what_is_no_image_gets_a_page_that_says_so(
    running: Platform, browser: Browser, data: bytes
) -> None:
    page = await browser.upload("letter.jpg", data)
    async with workers(running, 1):
        status, text = await browser.settled(page)
    assert status == 422 and "photo: not an image Pillow can read" in text
    status, text = await browser.get(f"{page}/thumbnail")
    assert status == 404


@on_the_bus
async def test_a_photograph_that_is_cut_off_gets_a_page_that_says_so(
    running: Platform, browser: Browser
) -> None:
    page = await browser.upload("half.jpg", PHOTOS[-1].read_bytes()[:5000])
    async with workers(running, 1):
        status, text = await browser.settled(page)
    assert status == 422 and "damaged" in text


@on_the_bus
async def test_bad_uploads_are_refused_before_they_become_jobs(
    running: Platform, browser: Browser
) -> None:
    before = [row["id"] async for row in running.client.jobs(label="webapp")]
    async with browser.post("huge.jpg", b"x" * 17_000_000) as answer:
        assert answer.status == 413 and "16,000,000 bytes" in await answer.text()
    async with browser.post("empty.jpg", b"") as answer:
        assert answer.status == 400 and "Choose a photograph" in await answer.text()
    async with browser.http.post("/", data={"photo": "a text"}) as answer:
        assert answer.status == 400
    assert [row["id"] async for row in running.client.jobs(label="webapp")] == before


@on_the_bus
async def test_other_jobs_and_unknown_ones_have_no_page(
    running: Platform, browser: Browser
) -> None:
    other = await running.client.options(label="somebody's").submit("/nobody/does/this")
    for id in (other.id, "0" * 20, "x" * 500, "<b>"):
        for where in (f"/jobs/{id}", f"/jobs/{id}/thumbnail"):
            status, text = await browser.get(where)
            assert status == 404 and "no such photograph" in text and "<b>" not in text
    await other.cancel()


@on_the_bus
async def test_a_cancelled_job_gets_a_page_that_says_so(
    running: Platform, browser: Browser
) -> None:
    page = await browser.upload("photo.jpg", PHOTOS[-1].read_bytes())
    await running.client.job(page.rsplit("/", 1)[1]).cancel()
    status, text = await browser.settled(page)
    assert status == 422 and "cancelled" in text


def seen(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_thumbnails_are_thumbnails(expected: dict[str, bytes]) -> None:
    for name, data in expected.items():
        with seen(data) as image:
            assert max(image.size) == 320, name
