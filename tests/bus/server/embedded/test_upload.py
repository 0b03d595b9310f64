"""Blobs by HTTPS."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import pytest
from tests.bus.server.embedded.conftest import Raw, Start, World

from spinal.bus.server.embedded import Limits


@pytest.fixture
async def http(world: World) -> AsyncGenerator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=world.tls)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


def request(name: str = "photo.png", size: int = 5, type: str = "image/png") -> str:
    return (
        "<iq type='get' id='slot' to='upload.bus.test'><request xmlns='urn:xmpp:http:upload:0'"
        f" filename='{name}' size='{size}' content-type='{type}'/></iq>"
    )


async def slot(
    raw: Raw, name: str = "photo.png", size: int = 5, type: str = "image/png"
) -> list[str]:
    """Give the addresses to upload to and to download from."""
    return re.findall("url='([^']*)'", await raw.ask(request(name, size, type), "</iq>"))


def blobs(world: World) -> list[Path]:
    return sorted((world.server.config.folder / "embedded" / "blobs").iterdir())


async def test_a_blob_goes_up_and_comes_down(world: World, http: aiohttp.ClientSession) -> None:
    a = await world.login("a")
    data = os.urandom(3_000_000)
    put, get = await slot(a, 'naïve "x".png', len(data))
    async with http.put(put, data=io.BytesIO(data)) as answer:
        assert answer.status == 201
    async with http.get(get) as answer:
        assert answer.status == 200
        assert await answer.read() == data
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        disposition = answer.headers["Content-Disposition"]
        assert disposition == "attachment; filename*=UTF-8''na%C3%AFve%20%22x%22.png"
    async with http.head(get) as answer:
        assert answer.headers["Content-Length"] == str(len(data))
    async with http.get(get, headers={"Range": "bytes=10-19"}) as answer:
        assert answer.status == 206
        assert await answer.read() == data[10:20]
    assert all(path.stat().st_mode & 0o077 == 0 for path in blobs(world))


async def test_slixmpp_uploads(world: World, http: aiohttp.ClientSession) -> None:
    world.account("a")
    a = await world.client("a@bus.test/x", "xep_0363")
    found = await a.plugin["xep_0363"].find_upload_service(timeout=5)
    assert found["from"].full == "upload.bus.test"
    got = await a.plugin["xep_0363"].request_slot("upload.bus.test", "x.bin", 3)
    async with http.put(got["http_upload_slot"]["put"]["url"], data=b"abc") as answer:
        assert answer.status == 201
    async with http.get(got["http_upload_slot"]["get"]["url"]) as answer:
        assert await answer.read() == b"abc"
        assert answer.headers["Content-Type"] == "application/octet-stream"


async def test_the_largest_size_is_announced_and_held(start: Start) -> None:
    world = await start(max_blob=100)
    a = await world.login("a")
    info = "<iq type='get' id='1' to='upload.bus.test'><query xmlns='{}'/></iq>"
    text = await a.ask(info.format("http://jabber.org/protocol/disco#info"), "</iq>")
    assert "<identity category='store' type='file'" in text
    assert "<field var='max-file-size'><value>100</value></field>" in text
    text = await a.ask(request(size=101), "</iq>")
    assert "<not-acceptable" in text
    assert "<file-too-large xmlns='urn:xmpp:http:upload:0'><max-file-size>100<" in text
    assert len(await slot(a, size=100)) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        request(name=""),
        request(size=-1),
        request(name="a&#10;b"),
        request(size=1).replace("'1'", "'x'"),
    ],
)
async def test_a_wrong_request_is_refused(world: World, wrong: str) -> None:
    a = await world.login("a")
    await a.ask(wrong, "<bad-request")


async def test_what_it_does_not_know_it_says_so(world: World) -> None:
    a = await world.login("a")
    await a.ask(
        "<iq type='get' id='1' to='upload.bus.test'><q xmlns='urn:q'/></iq>", "<service-unavailable"
    )
    await a.ask("<iq type='get' id='1' to='upload.bus.test'/>", "<bad-request.*?</iq>")
    await a.say("<message to='upload.bus.test'/><presence to='upload.bus.test'/>")
    assert await a.nothing_but() == ""


async def test_only_accounts_get_slots(world: World) -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()
    service = world.server.attach("x.bus.test", lambda _k, _a, inner: got.put_nowait(inner))
    service.deliver(
        "iq",
        {"from": "me@x.bus.test", "to": "upload.bus.test", "type": "get", "id": "1"},
        b"<request xmlns='urn:xmpp:http:upload:0' filename='x' size='1'/>",
    )
    assert b"<not-allowed" in await got.get()


@pytest.mark.parametrize("size", [4, 6])
async def test_a_slot_is_for_exactly_its_size(
    world: World, http: aiohttp.ClientSession, size: int
) -> None:
    a = await world.login("a")
    put, get = await slot(a, size=5)
    async with http.put(put, data=b"x" * size) as answer:
        assert answer.status == 400
    async with http.get(get) as answer:
        assert answer.status == 404


async def test_a_slot_is_good_once_and_for_a_while(start: Start) -> None:
    world = await start(limits=Limits(slot_time=0.1))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=world.tls)) as http:
        a = await world.login("a")
        put, _ = await slot(a)
        async with http.put(put, data=b"x" * 5) as answer:
            assert answer.status == 201
        async with http.put(put, data=b"y" * 5) as answer:
            assert answer.status == 403
        put, _ = await slot(a)
        deadline = time.monotonic() + 0.1
        while time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        async with http.put(put, data=b"x" * 5) as answer:
            assert answer.status == 403


async def test_unused_slots_are_bounded(start: Start) -> None:
    world = await start(limits=Limits(slots=2))
    a, b = await world.login("a"), await world.login("b")
    await slot(a)
    await slot(a)
    await a.ask(request(), "<resource-constraint")
    assert len(await slot(b)) == 2


async def test_an_upload_that_is_cut_leaves_nothing(
    world: World, http: aiohttp.ClientSession
) -> None:
    a = await world.login("a")
    put, _ = await slot(a, size=1_000_000)

    async def body() -> AsyncGenerator[bytes]:
        yield b"x" * 100_000
        raise ConnectionResetError

    # Whether the client raises or gives the server's answer depends on its version.
    with contextlib.suppress(ConnectionResetError, aiohttp.ClientError):
        async with http.put(put, data=body(), headers={"Content-Length": "1000000"}) as response:
            assert response.status >= 400
    async with asyncio.timeout(5):
        while blobs(world):
            await asyncio.sleep(0.01)


async def test_an_upload_that_stands_still_is_given_up(start: Start) -> None:
    world = await start(limits=Limits(upload_silence=0.1))
    a = await world.login("a")
    put, _ = await slot(a, size=10)
    path = put.partition("://")[2].partition("/")[2]
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", world.server.config.ports.upload, ssl=world.tls, server_hostname="127.0.0.1"
    )
    raw = Raw(reader, writer)
    await raw.say(f"PUT /{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
    await raw.until("408 ")
    await raw.close()
    assert blobs(world) == []


async def test_old_blobs_are_deleted(start: Start) -> None:
    world = await start(blob_age=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=world.tls)) as http:
        a = await world.login("a")
        put, get = await slot(a)
        async with http.put(put, data=b"x" * 5) as answer:
            assert answer.status == 201
        for path in blobs(world):
            os.utime(path, (time.time() - 61, time.time() - 61))
        async with http.get(get) as answer:
            assert answer.status == 404
        world.server.uploads.drop_old()
        assert blobs(world) == []


@pytest.mark.parametrize(
    "path", ["/", "/x", "/../accounts/a.json", "/%2e%2e/x", "/" + "A" * 32 + "/x", "/put/x/y"]
)
async def test_nothing_else_can_be_had(
    world: World, http: aiohttp.ClientSession, path: str
) -> None:
    base = f"https://127.0.0.1:{world.server.config.ports.upload}"
    async with http.get(base + path) as answer:
        assert answer.status in (404, 405)


async def test_its_certificate_is_checked(world: World) -> None:
    async with aiohttp.ClientSession() as stranger:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await stranger.get(f"https://127.0.0.1:{world.server.config.ports.upload}/")
