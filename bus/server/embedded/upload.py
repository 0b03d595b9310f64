"""Blobs by HTTPS (XEP-0363): slots on the bus, bytes beside it.

A blob lives at an address that nobody can guess, as one file with one small file of facts beside
it, and is deleted once it is old enough.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import secrets
import shutil
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final
from urllib.parse import quote

import structlog
from aiohttp import ClientConnectionError, web

from ..contract import ServerConfig
from ..errors import PortTaken, ServerError
from ..files import write
from . import stanzas
from .accounts import Accounts
from .addresses import BadAddress, parse
from .limits import Limits
from .services import INFO, Refused, info, no_node, payload

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from .server import Attachment

log = structlog.get_logger(__name__)

UPLOAD: Final = "urn:xmpp:http:upload:0"

#: Secrets and names of blobs: 192 bits, so nobody finds one by trying.
_TOKEN_BYTES: Final = 24
_TOKEN: Final = re.compile(r"[\w-]{32}", re.ASCII)
#: A media type that may go into a header as it is.
_TYPE: Final = re.compile(r"[\w.+-]+/[\w.+-]+(?:; ?[\w-]+=[\w.+-]+)?", re.ASCII)
_DEFAULT_TYPE: Final = "application/octet-stream"
_NAME: Final = 255
_PIECE: Final = 1024 * 1024
#: How often old blobs are looked for, in seconds.
_ROUND: Final = 60.0
#: What always stays free on the disk, in bytes.
_SPARE: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Slot:
    """Leave to upload one blob once."""

    token: str
    owner: str
    name: str
    size: int
    type: str
    #: On the monotonic clock.
    expires: float


class Uploads:
    """The upload service: its stanzas, its HTTPS server, and the blobs below its folder."""

    attachment: Attachment

    def __init__(
        self,
        config: ServerConfig,
        folder: Path,
        limits: Limits,
        accounts: Accounts,
        tls: ssl.SSLContext,
    ) -> None:
        self._config = config
        self._limits = limits
        self._accounts = accounts
        self._tls = tls
        self._folder = folder
        #: By the secret in the address to upload to.
        self._slots: dict[str, Slot] = {}
        self._turns = asyncio.Semaphore(limits.uploads)
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._rounds: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen for HTTPS.  Raises :class:`PortTaken` or another :class:`ServerError`."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for part in self._folder.glob("*.part"):
            part.unlink()
        app = web.Application()
        app.router.add_put("/put/{secret}/{name}", self._put)
        app.router.add_get("/{token}/{name}", self._get)
        runner = self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=15.0
        )
        await runner.setup()
        host, port = self._config.listen, self._config.ports.upload
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._accept, host, port, ssl=self._tls, ssl_handshake_timeout=10.0
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(port, "uploads") from error
            raise ServerError(f"cannot listen on {host} port {port}: {error}") from error
        self._rounds = asyncio.create_task(self._go_round(), name="blob-rounds")

    async def stop(self) -> None:
        """Free the port; uploads under way are cut."""
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.gather(self._rounds, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._listener is not None:
            await self._listener.wait_closed()

    def _accept(self) -> asyncio.Protocol:
        assert self._runner is not None and self._runner.server is not None
        if len(self._runner.server.connections) >= self._limits.https:
            return _Refusal()
        return self._runner.server()

    # On the bus

    def receive(self, kind: str, attributes: dict[str, str], inner: bytes) -> None:
        """Work on a stanza to the service."""
        type = attributes.get("type", "")
        if kind != "iq" or type not in ("get", "set"):
            return
        try:
            children = payload(attributes, inner)
            if len(children) != 1:
                raise Refused("bad-request", "a request has one child")
            result = self._answer(type, attributes["from"], children[0])
        except Refused as refused:
            back, extra = stanzas.answer(attributes, "error"), refused.extra
            content = stanzas.error(refused.condition, refused.text, extra=extra)
        else:
            back, content = stanzas.answer(attributes, "result"), result
        self.attachment.deliver("iq", back, content)

    def _answer(self, type: str, asker: str, request: Element) -> bytes:
        if type == "get" and request.tag == f"{{{INFO}}}query":
            no_node(request)
            form = (
                "<x xmlns='jabber:x:data' type='result'><field var='FORM_TYPE' type='hidden'>"
                f"<value>{UPLOAD}</value></field><field var='max-file-size'>"
                f"<value>{self._config.max_blob}</value></field></x>"
            )
            return info("store", "file", "Blobs", (INFO, UPLOAD), form)
        if type == "get" and request.tag == f"{{{UPLOAD}}}request":
            return self._slot(asker, request)
        raise Refused("service-unavailable")

    def _slot(self, asker: str, request: Element) -> bytes:
        owner = self._owner(asker)
        name = request.get("filename", "")
        try:
            size = int(request.get("size", ""))
        except ValueError:
            size = -1
        if not 0 < len(name) <= _NAME or not name.isprintable() or size < 0:
            raise Refused("bad-request", "a slot needs a file name and a size")
        if size > self._config.max_blob:
            raise Refused(
                "not-acceptable",
                f"at most {self._config.max_blob} bytes",
                f"<file-too-large xmlns='{UPLOAD}'>"
                f"<max-file-size>{self._config.max_blob}</max-file-size></file-too-large>",
            )
        now = time.monotonic()
        self._drop_slots(now)
        mine = [each for each in self._slots.values() if each.owner == owner]
        promised = sum(each.size for each in self._slots.values())
        if len(mine) >= self._limits.slots:
            raise Refused("resource-constraint", "use the slots that you have first")
        if shutil.disk_usage(self._folder).free < promised + size + _SPARE:
            raise Refused("resource-constraint", "the disk is full")
        type = _media_type(request.get("content-type", ""))
        token, secret = (secrets.token_urlsafe(_TOKEN_BYTES) for _ in range(2))
        self._slots[secret] = Slot(token, owner, name, size, type, now + self._limits.slot_time)
        host = self._config.upload_host
        base = f"https://{f'[{host}]' if ':' in host else host}:{self._config.ports.upload}"
        file = quote(name, safe="")
        return (
            f"<slot xmlns='{UPLOAD}'><put url='{base}/put/{secret}/{file}'/>"
            f"<get url='{base}/{token}/{file}'/></slot>"
        ).encode()

    def _owner(self, asker: str) -> str:
        try:
            address = parse(asker)
        except BadAddress:
            address = None
        if address is not None and (
            address.domain in self._config.components
            or (address.domain == self._config.domain and self._accounts.exists(address.local))
        ):
            return address.bare
        raise Refused("not-allowed", "only accounts and components of this server may upload")

    def _drop_slots(self, now: float) -> None:
        # In order of expiry, as all live equally long.
        for secret, slot in list(self._slots.items()):
            if slot.expires > now:
                break
            del self._slots[secret]

    # Beside the bus

    async def _put(self, request: web.Request) -> web.StreamResponse:
        self._drop_slots(time.monotonic())
        slot = self._slots.get(request.match_info["secret"])
        if slot is None:
            raise web.HTTPForbidden(text="no such slot, or it has expired\n")
        if request.content_length != slot.size:
            raise web.HTTPBadRequest(text=f"the slot is for exactly {slot.size} bytes\n")
        del self._slots[request.match_info["secret"]]
        part = self._folder / f"{slot.token}.part"
        try:
            async with asyncio.timeout(self._limits.upload_silence):
                await self._turns.acquire()
        except TimeoutError as error:
            raise web.HTTPServiceUnavailable from error
        try:
            with await asyncio.to_thread(open, part, "xb", opener=_private) as file:
                await self._save(request, file)
            if part.stat().st_size != slot.size:
                raise web.HTTPBadRequest(text="the upload was cut\n")
            type = slot.type or _media_type(request.headers.get("Content-Type", ""))
            facts = {"name": slot.name, "type": type or _DEFAULT_TYPE, "owner": slot.owner}
            write(self._folder / f"{slot.token}.json", json.dumps(facts).encode(), 0o600)
            part.rename(self._folder / slot.token)
        except (ClientConnectionError, ConnectionError, TimeoutError) as error:
            log.info("upload_cut", owner=slot.owner, error=repr(error))
            raise web.HTTPRequestTimeout from error
        finally:
            self._turns.release()
            part.unlink(missing_ok=True)
        log.info("blob_stored", owner=slot.owner, size=slot.size)
        return web.Response(status=201)

    async def _save(self, request: web.Request, file: IO[bytes]) -> None:
        """Write the body, one piece in memory at a time and never on the event loop."""
        piece = bytearray()
        while True:
            async with asyncio.timeout(self._limits.upload_silence):
                data = await request.content.readany()
            piece += data
            if len(piece) >= _PIECE or not data:
                await asyncio.to_thread(file.write, piece)
                piece = bytearray()
            if not data:
                return

    async def _get(self, request: web.Request) -> web.StreamResponse:
        token = request.match_info["token"]
        path = self._folder / token
        if not _TOKEN.fullmatch(token):
            raise web.HTTPNotFound
        try:
            if time.time() - path.stat().st_mtime > self._config.blob_age:
                raise web.HTTPNotFound
            facts = json.loads(path.with_suffix(".json").read_bytes())
        except FileNotFoundError as error:
            raise web.HTTPNotFound from error
        # A browser must not take what somebody uploaded for a page of this server.
        headers = {
            "Content-Type": facts["type"],
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(facts['name'], safe='')}",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "private, immutable",
        }
        return web.FileResponse(path, headers=headers)

    # Getting old

    async def _go_round(self) -> None:
        while True:
            await asyncio.to_thread(self.drop_old)
            await asyncio.sleep(_ROUND)

    def drop_old(self) -> None:
        """Delete the blobs that are older than they may become."""
        horizon = time.time() - self._config.blob_age
        for path in self._folder.iterdir():
            try:
                if path.suffix != ".part" and path.stat().st_mtime < horizon:
                    path.unlink()
            except FileNotFoundError:
                continue


class _Refusal(asyncio.Protocol):
    """Closes a connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _media_type(text: str) -> str:
    """Give the type if it may go into a header, else ""."""
    return text if _TYPE.fullmatch(text) else ""


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
