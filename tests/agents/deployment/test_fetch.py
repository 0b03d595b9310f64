"""Fetching over real HTTP, from servers that behave and servers that do not."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from spinal.agents.deployment import fetch
from spinal.agents.deployment.errors import DeployFailed
from spinal.agents.deployment.fetch import Fetcher
from spinal.agents.deployment.urls import Allowed
from spinal.agents.errors import Refused
from spinal.bus.server import certificates
from spinal.testing import eventually

from .conftest import Shelf, serving

DATA = bytes(range(256)) * 8192  # 2 MiB
SHA = hashlib.sha256(DATA).hexdigest()


def nothing(size: int, total: int | None) -> None:
    """Hears nothing."""


@pytest.fixture
def fetcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fetcher]:
    monkeypatch.setattr(fetch, "PAUSE", 0.01)

    def make(**options: Any) -> Fetcher:
        usual: dict[str, Any] = {"most": 10_000_000, "room": 100_000_000, "stalled": 10.0}
        allowed = Allowed(options.pop("urls", ["http://127.0.0.1"]))
        return Fetcher(tmp_path / "cache", allowed, **{**usual, **options})

    return make


def left(tmp_path: Path) -> list[str]:
    folder = tmp_path / "cache"
    return sorted(os.listdir(folder)) if folder.exists() else []


async def test_a_file_is_fetched_once_and_told_of_while_it_comes(
    shelf: Shelf, fetcher: Callable[..., Fetcher], tmp_path: Path
) -> None:
    release = shelf.put("a.zip", DATA)
    heard: list[tuple[int, int | None]] = []
    one = fetcher()
    path = await one.fetch(release["url"], SHA, lambda size, total: heard.append((size, total)))
    assert path.read_bytes() == DATA
    assert heard[-1] == (len(DATA), len(DATA))
    assert await one.fetch(release["url"], SHA, nothing) == path
    assert len(shelf.asked) == 1
    assert left(tmp_path) == [SHA]


async def test_a_wrong_hash_is_refused_and_nothing_is_kept(
    shelf: Shelf, fetcher: Callable[..., Fetcher], tmp_path: Path
) -> None:
    release = shelf.put("a.zip", DATA)
    with pytest.raises(Refused, match=f"has the SHA-256 {SHA}, and not {'0' * 64}"):
        await fetcher().fetch(release["url"], "0" * 64, nothing)
    assert left(tmp_path) == []


async def test_a_file_in_the_cache_that_has_changed_is_fetched_again(
    shelf: Shelf, fetcher: Callable[..., Fetcher]
) -> None:
    release = shelf.put("a.zip", DATA)
    path = await fetcher().fetch(release["url"], SHA, nothing)
    path.write_bytes(b"other")
    assert (await fetcher().fetch(release["url"], SHA, nothing)).read_bytes() == DATA


def ends_early(with_tag: bool, times: int = 1) -> Callable[[web.Request], Any]:
    """Answer with half of what was promised, so many times."""
    broken = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal broken
        first = 0
        tag = {"ETag": '"1"'} if with_tag else {}
        wanted = request.headers.get("Range")
        if wanted is not None and request.headers.get("If-Range") == '"1"':
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            where = {"Content-Range": f"bytes {first}-{len(DATA) - 1}/{len(DATA)}"}
            found = web.StreamResponse(status=206, headers={**tag, **where})
        else:
            found = web.StreamResponse(headers=tag)
        found.content_length = len(DATA) - first
        await found.prepare(request)
        broken += 1
        last = len(DATA) if broken > times else first + (len(DATA) - first) // 2
        await found.write(DATA[first:last])
        if last < len(DATA):
            assert request.transport is not None
            request.transport.close()
        return found

    return answer


async def test_a_transfer_that_breaks_is_gone_on_with(
    shelf: Shelf, fetcher: Callable[..., Fetcher]
) -> None:
    shelf.odd["a.zip"] = ends_early(with_tag=True, times=2)
    path = await fetcher().fetch(f"{shelf.url}/a.zip", SHA, nothing)
    assert path.read_bytes() == DATA
    ranges = [wanted for _, wanted in shelf.asked]
    assert ranges[0] == "" and all(one.startswith("bytes=") for one in ranges[1:])


async def test_a_server_that_cannot_go_on_is_asked_for_all_of_it(
    shelf: Shelf, fetcher: Callable[..., Fetcher]
) -> None:
    shelf.odd["a.zip"] = ends_early(with_tag=False)
    path = await fetcher().fetch(f"{shelf.url}/a.zip", SHA, nothing)
    assert path.read_bytes() == DATA
    assert [wanted for _, wanted in shelf.asked] == ["", ""]


async def test_one_that_always_ends_early_is_given_up(
    shelf: Shelf, fetcher: Callable[..., Fetcher], tmp_path: Path
) -> None:
    shelf.odd["a.zip"] = ends_early(with_tag=False, times=1000)
    with pytest.raises(DeployFailed, match=r"cannot fetch .* after [0-9]+ bytes"):
        await fetcher().fetch(f"{shelf.url}/a.zip", SHA, nothing)
    assert len(shelf.asked) == fetch.TRIES
    assert left(tmp_path) == []


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (500, 4), (503, 4), (429, 4)])
async def test_an_error_is_told_and_tried_again_if_it_may_pass(
    shelf: Shelf, fetcher: Callable[..., Fetcher], status: int, tries: int
) -> None:
    shelf.odd["a.zip"] = lambda request: web.Response(status=status)  # pyright: ignore
    with pytest.raises(DeployFailed, match=str(status)):
        await fetcher().fetch(f"{shelf.url}/a.zip", SHA, nothing)
    assert len(shelf.asked) == tries


async def test_what_is_announced_as_too_large_is_not_read(
    shelf: Shelf, fetcher: Callable[..., Fetcher]
) -> None:
    release = shelf.put("a.zip", DATA)
    with pytest.raises(Refused, match="larger than this agent fetches: 1000 bytes"):
        await fetcher(most=1000).fetch(release["url"], SHA, nothing)


async def test_what_turns_out_too_large_is_broken_off(
    shelf: Shelf, fetcher: Callable[..., Fetcher], tmp_path: Path
) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        found = web.StreamResponse()
        await found.prepare(request)
        while True:
            await found.write(bytes(100_000))

    shelf.odd["a.zip"] = endless
    with pytest.raises(Refused, match="larger than"):
        await fetcher(most=1_000_000).fetch(f"{shelf.url}/a.zip", SHA, nothing)
    assert left(tmp_path) == []


async def test_a_server_that_falls_silent_is_given_up(
    shelf: Shelf, fetcher: Callable[..., Fetcher]
) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        found = web.StreamResponse()
        await found.prepare(request)
        await found.write(b"a beginning")
        await asyncio.Event().wait()
        return found

    shelf.odd["a.zip"] = silent
    with pytest.raises(DeployFailed, match="cannot fetch"):
        await fetcher(stalled=0.2).fetch(f"{shelf.url}/a.zip", SHA, nothing)


async def test_a_server_that_drips_is_given_up(
    shelf: Shelf, fetcher: Callable[..., Fetcher]
) -> None:
    async def dripping(request: web.Request) -> web.StreamResponse:
        found = web.StreamResponse()
        await found.prepare(request)
        loop = asyncio.get_running_loop()
        while True:
            await found.write(b".")
            later = asyncio.Event()
            loop.call_later(0.05, later.set)
            await later.wait()

    shelf.odd["a.zip"] = dripping
    with pytest.raises(DeployFailed, match="bytes a second"):
        await fetcher(patience=0.2).fetch(f"{shelf.url}/a.zip", SHA, nothing)


@pytest.mark.parametrize(
    ("target", "may"),
    [
        ("{url}/a.zip", True),
        ("/a.zip", True),
        ("http://169.254.169.254/a.zip", False),
        ("file:///etc/passwd", False),
        ("/turn", False),
    ],
)
async def test_a_redirect_goes_only_where_it_may(
    shelf: Shelf, fetcher: Callable[..., Fetcher], target: str, may: bool
) -> None:
    shelf.put("a.zip", DATA)

    def turn(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": target.format(url=shelf.url)})

    shelf.odd["turn"] = turn
    fetching = fetcher().fetch(f"{shelf.url}/turn", SHA, nothing)
    if may:
        assert (await fetching).read_bytes() == DATA
    else:
        with pytest.raises((Refused, DeployFailed), match=r"does not fetch|redirects"):
            await fetching


async def test_what_is_compressed_on_the_way_is_not_opened(
    shelf: Shelf, fetcher: Callable[..., Fetcher]
) -> None:
    shelf.odd["a.zip"] = lambda request: web.Response(  # pyright: ignore
        body=DATA, headers={"Content-Encoding": "gzip"}
    )
    path = await fetcher().fetch(f"{shelf.url}/a.zip", SHA, nothing)
    assert path.read_bytes() == DATA


async def test_a_cancelled_fetch_leaves_nothing(
    shelf: Shelf, fetcher: Callable[..., Fetcher], tmp_path: Path
) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        found = web.StreamResponse()
        await found.prepare(request)
        await found.write(bytes(300_000))
        await asyncio.Event().wait()
        return found

    shelf.odd["a.zip"] = slow
    began = asyncio.Event()
    task = asyncio.create_task(
        fetcher().fetch(f"{shelf.url}/a.zip", SHA, lambda size, total: began.set())
    )
    await asyncio.wait_for(began.wait(), 10)
    assert len(left(tmp_path)) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: left(tmp_path) == [])


async def test_files_that_were_not_used_for_longest_make_room(
    shelf: Shelf, fetcher: Callable[..., Fetcher], tmp_path: Path
) -> None:
    one = fetcher(room=2500)
    hashes: list[str] = []
    for number in range(4):
        data = bytes([number]) * 1000
        release = shelf.put(f"{number}.zip", data)
        path = await one.fetch(release["url"], release["sha256"], nothing)
        os.utime(path, (number, number))
        hashes.append(release["sha256"])
    assert left(tmp_path) == sorted(hashes[2:])


async def test_a_file_of_this_machine_is_copied_if_allowed(
    fetcher: Callable[..., Fetcher], tmp_path: Path
) -> None:
    (tmp_path / "a.zip").write_bytes(DATA)
    url = f"file://{tmp_path}/a.zip"
    with pytest.raises(Refused, match="does not fetch from"):
        await fetcher().fetch(url, SHA, nothing)
    path = await fetcher(urls=[f"file://{tmp_path}/"]).fetch(url, SHA, nothing)
    assert path.read_bytes() == DATA
    with pytest.raises(Refused, match="larger"):
        await fetcher(urls=[f"file://{tmp_path}/"], most=10).fetch(url, "1" * 64, nothing)


async def test_a_server_that_is_not_there_is_named(fetcher: Callable[..., Fetcher]) -> None:
    with pytest.raises(DeployFailed, match=r"cannot fetch http://127\.0\.0\.1:1/"):
        await fetcher().fetch("http://127.0.0.1:1/a.zip", SHA, nothing)


async def test_over_tls_the_server_must_be_who_it_says_it_is(
    fetcher: Callable[..., Fetcher], tmp_path: Path
) -> None:
    ours = certificates.ensure(tmp_path / "ours", "localhost")
    others = certificates.ensure(tmp_path / "others", "localhost")
    trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trust.load_cert_chain(ours.certificate, ours.key)
    async with serving(trust) as shelf:
        release = shelf.put("a.zip", DATA)
        allowed = ["https://127.0.0.1"]
        for ca in (None, others.ca):
            with pytest.raises(DeployFailed, match=r"(?i)certificate"):
                await fetcher(urls=allowed, ca=ca).fetch(release["url"], SHA, nothing)
        assert shelf.asked == []
        path = await fetcher(urls=allowed, ca=ours.ca).fetch(release["url"], SHA, nothing)
        assert path.read_bytes() == DATA
