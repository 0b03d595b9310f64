from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
import pytest_asyncio

from spinal.bus import blobs as module
from spinal.bus.blobs import Blobs
from spinal.bus.connection import Connection
from spinal.bus.errors import BlobError
from spinal.bus.server import ServerConfig, free_ports
from spinal.bus.server.certificates import ensure
from spinal.bus.server.embedded.server import EmbeddedServer
from spinal.bus.transports.slixmpp import ClientConnection
from spinal.protocols import BlobRef, Message, Stanza

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOMAIN = "blobs.test"
DATA = os.urandom(3 * 256 * 1024 + 17)


class Ear:
    def opened(self) -> None: ...
    def closed(self, reason: str) -> None: ...
    def received(self, stanza: Stanza) -> None: ...
    def asked(self, kind: str, sender: str, id: str, payload: Element) -> bool:
        return False

    def said(self, message: Message) -> None: ...


@dataclass
class Site:
    server: EmbeddedServer
    connection: Connection
    blobs: Blobs
    host: str

    def other(self, *uploads: str, ca: Path | None = None) -> Blobs:
        return Blobs(self.connection, DOMAIN, uploads or (self.host,), ca or self.server.ca)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Site]:
    ports = free_ports()
    config = ServerConfig(
        tmp_path_factory.mktemp("blobs"), DOMAIN, ports, max_blob=10 * 1024 * 1024
    )
    server = EmbeddedServer(config)
    await server.start()
    await server.add_account("ann", "a password")
    connection = ClientConnection(f"ann@{DOMAIN}", "a password", "127.0.0.1", ports.c2s, server.ca)
    await connection.open(Ear())
    host = f"127.0.0.1:{ports.upload}"
    here = Site(server, connection, Blobs(connection, DOMAIN, [host], server.ca), host)
    yield here
    await here.blobs.close()
    await here.blobs.close()
    await connection.close()
    await server.stop()


async def test_bytes_and_files_come_back_as_they_were(site: Site, tmp_path: Path) -> None:
    ref = await site.blobs.upload(DATA, "image/png")
    assert (ref.size, ref.media_type) == (len(DATA), "image/png")
    assert await site.blobs.fetch(ref) == DATA
    source = tmp_path / "a photo & more.png"
    source.write_bytes(DATA)
    ref = await site.blobs.upload(source)
    copy = tmp_path / "copy"
    await asyncio.gather(*(site.blobs.fetch_to(ref, copy) for _ in range(4)))
    assert copy.read_bytes() == DATA
    assert sorted(p.name for p in tmp_path.iterdir()) == [source.name, "copy"]


async def test_nothing_at_all_is_a_blob_too(site: Site) -> None:
    assert await site.blobs.fetch(await site.blobs.upload(b"")) == b""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"size": len(DATA) - 1}, "larger"),
        ({"size": len(DATA) + 1}, "instead of"),
    ],
)
async def test_what_is_not_what_was_announced_is_refused_and_leaves_no_file(
    site: Site, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    good = await site.blobs.upload(DATA)
    ref = BlobRef(
        good.url,
        str(changes.get("sha256", good.sha256)),
        int(str(changes.get("size", good.size))),
        good.media_type,
    )
    with pytest.raises(BlobError, match=words):
        await site.blobs.fetch(ref)
    with pytest.raises(BlobError, match=words):
        await site.blobs.fetch_to(ref, tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.test/blob",
        "https://127.0.0.1:1/blob",
        "https://127.0.0.1/blob",
        "https://[::1]/blob",
    ],
)
async def test_only_hosts_of_ours_are_asked(site: Site, url: str) -> None:
    ref = replace(await site.blobs.upload(b"x"), url=url)
    with pytest.raises(BlobError, match="not fetched from"):
        await site.blobs.fetch(ref)


async def test_a_host_may_be_named_with_or_without_its_port(site: Site) -> None:
    ref = await site.blobs.upload(b"x")
    anywhere = site.other("127.0.0.1")
    assert await anywhere.fetch(ref) == b"x"
    await anywhere.close()
    nowhere = site.other("elsewhere.test")
    with pytest.raises(BlobError, match="only from elsewhere"):
        await nowhere.fetch(ref)
    with pytest.raises(BlobError):
        await nowhere.upload(b"x")
    await nowhere.close()


async def test_what_has_expired_is_said_to_be_gone(site: Site, tmp_path: Path) -> None:
    ref = await site.blobs.upload(b"x")
    for file in (site.server.config.folder / "embedded" / "blobs").rglob("*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(BlobError, match="not there: 404"):
        await site.blobs.fetch(ref)
    with pytest.raises(BlobError, match="send it again"):
        await site.blobs.fetch_to(ref, tmp_path / "file")
    assert not list(tmp_path.iterdir())


async def test_a_host_with_a_certificate_of_somebody_else_is_refused(
    site: Site, tmp_path: Path
) -> None:
    ref = await site.blobs.upload(b"x")
    for ca in (ensure(tmp_path / "other", DOMAIN, []).ca, tmp_path / "missing"):
        strict = site.other(ca=ca)
        with pytest.raises(BlobError) as refused:
            await strict.fetch(ref)
        assert "\n" not in str(refused.value)
        with pytest.raises(BlobError):
            await strict.upload(b"x")
        await strict.close()


async def test_what_is_too_large_is_refused_before_it_is_sent(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(11 * 1024 * 1024)
    with pytest.raises(BlobError, match="no place"):
        await site.blobs.upload(large)
    ref = await site.blobs.upload(DATA)
    monkeypatch.setattr(module, "MAX_MEMORY", 1000)
    with pytest.raises(BlobError, match="save"):
        await site.blobs.fetch(ref)


async def test_files_that_cannot_be_read_or_written_are_named(site: Site, tmp_path: Path) -> None:
    with pytest.raises(BlobError, match="missing"):
        await site.blobs.upload(tmp_path / "missing")
    ref = await site.blobs.upload(b"x")
    with pytest.raises(BlobError, match="cannot write"):
        await site.blobs.fetch_to(ref, tmp_path / "no folder" / "file")


async def test_a_host_that_goes_in_the_middle_leaves_no_file(site: Site, tmp_path: Path) -> None:
    files = site.server.certificates
    assert files is not None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.combined)

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)
        await writer.drain()
        writer.transport.abort()

    server = await asyncio.start_server(half, "127.0.0.1", 0, ssl=context)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    blobs = site.other(host)
    ref = BlobRef(f"https://{host}/blob", "0" * 64, 1000, "text/plain")
    with pytest.raises(BlobError, match="could not be fetched"):
        await blobs.fetch_to(ref, tmp_path / "file")
    assert not list(tmp_path.iterdir())
    await blobs.close()
    server.close()
    await server.wait_closed()


async def test_giving_up_a_fetch_leaves_no_file(site: Site, tmp_path: Path) -> None:
    ref = await site.blobs.upload(os.urandom(9 * 1024 * 1024))
    fetching = asyncio.ensure_future(site.blobs.fetch_to(ref, tmp_path / "file"))
    while not list(tmp_path.iterdir()):
        await asyncio.sleep(0)
    fetching.cancel()
    await asyncio.wait([fetching])
    assert not list(tmp_path.iterdir())


async def test_a_file_that_changes_while_it_is_uploaded_is_no_blob(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "growing"
    source.write_bytes(DATA)
    slot = site.blobs._slot  # pyright: ignore[reportPrivateUsage] - between size and bytes

    for change in (DATA + b"more", DATA[:-1]):

        async def meanwhile(
            name: str, size: int, media_type: str, change: bytes = change
        ) -> tuple[str, str, dict[str, str]]:
            found = await slot(name, size, media_type)
            source.write_bytes(change)
            return found

        source.write_bytes(DATA)
        monkeypatch.setattr(site.blobs, "_slot", meanwhile)
        with pytest.raises(BlobError, match="changed while it was uploaded"):
            await site.blobs.upload(source)


async def test_more_uploads_than_there_are_places_wait_for_each_other(site: Site) -> None:
    most = site.server.limits.slots
    refs = await asyncio.gather(*(site.blobs.upload(b"%d" % n) for n in range(most + 50)))
    assert len({ref.url for ref in refs}) == most + 50
