"""The desk: HTTPS at which a machine that was just made shows its ticket.

It is the one door of a home that opens to somebody without an account, so what comes through it is
little, small and paced.  A machine trusts it by the authority that came with its ticket.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import json
import ssl
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, cast

import structlog
from aiohttp import web

from spinal.bus.errors import HomeError
from spinal.bus.server import PortTaken, ServerError
from spinal.bus.server.certificates import Certificates
from spinal.bus.tasks import Tasks
from spinal.protocols import Json, SpinalError

from ..store.contract import LifeOver, StoreError
from .ticket import JoiningError, Refused
from .wheel import Wheel

log = structlog.get_logger()

#: Most bytes of a request, connections at once, and those of one address.
MAX_BODY: Final = 4096
MAX_CONNECTIONS: Final = 256
MAX_OF_ONE: Final = 64
#: Seconds that an answer may take, and a connection, whatever comes over it.
TIME: Final = 60.0
LIFE: Final = 90.0
#: Seconds that TLS may take, and between two looks whether a connection has gone.
HANDSHAKE: Final = 10.0
LOOK: Final = 0.5
#: Refusals in a row that an address may have, and seconds until it may have one more.
REFUSALS: Final = 20
PACE: Final = 3.0
#: Addresses of whom that is remembered.
MAX_STRANGERS: Final = 10_000


class Host(Protocol):
    """Who decides what the desk hands out."""

    async def admit(self, text: str, nonce: str) -> dict[str, Json]:
        """Make the account of a ticket, and say what its machine needs to know.

        Raises :class:`Refused`.
        """
        ...

    async def file(self, name: str, password: str, sha256: str) -> bytes:
        """Give an agent's file to a machine that has joined.  Raises :class:`Refused`."""
        ...

    async def wheel(self) -> Wheel:
        """Give our wheel.  Raises :class:`JoiningError`."""
        ...

    def old_wheel(self, sha256: str) -> Path | None:
        """Give the wheel with a hash, if it is kept."""
        ...


@dataclass(slots=True)
class Refusals:
    """How often each address was refused lately; pure."""

    most: int = REFUSALS
    pace: float = PACE
    #: Address -> when what it did wrong will be forgotten; the oldest first.
    _until: OrderedDict[str, float] = field(default_factory=OrderedDict[str, float])

    def wait(self, address: str, now: float) -> float:
        """Give the seconds for which nothing is answered to an address; 0 if it may ask."""
        room = self.most * self.pace
        return max(0.0, self._until.get(address, 0.0) - now - room + self.pace)

    def count(self, address: str, now: float) -> None:
        """Count a refusal."""
        self._until[address] = max(now, self._until.get(address, 0.0)) + self.pace
        self._until.move_to_end(address)
        while len(self._until) > MAX_STRANGERS:
            self._until.popitem(last=False)


class Desk:
    """Listens; see the module."""

    def __init__(self, host: Host, listen: str, port: int, files: Certificates) -> None:
        self._host = host
        self._listen = listen
        self._port = port
        self._files = files
        self._refusals = Refusals()
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        #: Connections, and how many of each address.
        self._places: set[asyncio.Transport] = set()
        self._of: Counter[str] = Counter()
        self._context = _context(files)
        self._tasks = Tasks("desk")

    async def open(self) -> None:
        """Listen.  Raises :class:`PortTaken` or another :class:`ServerError`."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._watch])
        app.router.add_post("/join", self._join)
        app.router.add_get("/agents/{sha256}", self._file)
        app.router.add_get("/wheels/{sha256}", self._old_wheel)
        app.router.add_get("/spinal.whl", self._wheel)
        app.router.add_get("/spinal.whl.sha256", self._wheel_hash)
        runner = self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=5.0
        )
        await runner.setup()
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._accept,
                self._listen,
                self._port,
            )
        except OSError as error:
            await self.close()
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(self._port, "joining") from error
            raise ServerError(
                f"cannot listen on {self._listen} port {self._port}: {error}"
            ) from error

    async def close(self) -> None:
        """Free the port; what is under way is cut.  May be called again."""
        listener, self._listener = self._listener, None
        runner, self._runner = self._runner, None
        if listener is not None:
            listener.close()
        await self._tasks.close()
        if runner is not None:
            await runner.cleanup()
        if listener is not None:
            await listener.wait_closed()

    def _accept(self) -> asyncio.Protocol:
        return _Guest(self._receive)

    def _receive(self, transport: asyncio.Transport) -> None:
        """Take a connection, if there is a place for it."""
        who = _peer(transport)
        if len(self._places) >= MAX_CONNECTIONS or self._of[who] >= MAX_OF_ONE:
            transport.abort()
            return
        self._places.add(transport)
        self._of[who] += 1
        self._tasks.spawn(self._serve(transport, who), "connection")

    async def _serve(self, transport: asyncio.Transport, who: str) -> None:
        """Have a connection served, and end it after a while whatever comes over it.

        Else whoever says nothing, or a byte a minute, would hold a place for ever.
        """
        assert self._runner is not None and self._runner.server is not None
        try:
            async with asyncio.timeout(LIFE):
                handler = self._runner.server()
                tls = await asyncio.get_running_loop().start_tls(
                    transport,
                    handler,
                    self._context,
                    server_side=True,
                    ssl_handshake_timeout=HANDSHAKE,
                )
                if tls is None:
                    return
                handler.connection_made(tls)
                while not tls.is_closing():
                    await asyncio.sleep(LOOK)
        except (OSError, TimeoutError):
            pass  # It has gone, or its time is over.
        finally:
            transport.abort()
            self._places.discard(transport)
            self._of[who] -= 1
            if not self._of[who]:
                del self._of[who]

    @web.middleware
    async def _watch(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Pace those who are refused, say it once each time, and bound how long an answer takes."""
        who, now = request.remote or "", time.monotonic()
        wait = self._refusals.wait(who, now)
        if wait > 0:
            return _error(429, "refused too often: wait", {"Retry-After": str(int(wait) + 1)})
        try:
            async with asyncio.timeout(TIME):
                return await handler(request)
        except Refused as error:
            self._refusals.count(who, now)
            log.warning("join_refused", address=who, what=request.path[:32], reason=str(error))
            return _error(403, str(error))
        except web.HTTPException as error:
            self._refusals.count(who, now)
            log.warning("join_refused", address=who, what=request.path[:32], reason=error.reason)
            return _error(error.status, error.reason)
        except (StoreError, LifeOver, ServerError, HomeError, TimeoutError) as error:
            log.error("join_failed", address=who, error=str(error) or "time-out")
            return _error(503, "not now: ask again", {"Retry-After": "2"})
        except (JoiningError, SpinalError) as error:
            log.error("join_failed", address=who, error=str(error))
            return _error(500, str(error))

    async def _join(self, request: web.Request) -> web.StreamResponse:
        try:
            said: Any = json.loads(await request.read())
            ticket, nonce = said["ticket"], said["nonce"]
            if not (isinstance(ticket, str) and isinstance(nonce, str)):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise web.HTTPBadRequest(reason="send a JSON object with ticket and nonce") from error
        return web.json_response(await self._host.admit(ticket, nonce))

    async def _file(self, request: web.Request) -> web.StreamResponse:
        name, password = _credentials(request.headers.get("Authorization", ""))
        content = await self._host.file(name, password, request.match_info["sha256"])
        return web.Response(body=content, content_type="application/octet-stream")

    async def _wheel(self, request: web.Request) -> web.StreamResponse:
        wheel = await self._host.wheel()
        named = {"Content-Disposition": f'attachment; filename="{wheel.name}"'}
        return web.FileResponse(wheel.path, headers=named)

    async def _wheel_hash(self, request: web.Request) -> web.StreamResponse:
        wheel = await self._host.wheel()
        return web.Response(text=f"{wheel.sha256}  {wheel.name}\n")

    async def _old_wheel(self, request: web.Request) -> web.StreamResponse:
        path = self._host.old_wheel(request.match_info["sha256"])
        if path is None:
            raise web.HTTPNotFound(reason="that wheel is not kept any more: make a new ticket")
        return web.FileResponse(path)


class _Guest(asyncio.Protocol):
    """A connection of which nothing is known yet."""

    def __init__(self, receive: Callable[[asyncio.Transport], None]) -> None:
        self._receive = receive

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is no subclass of it, and has all that one has.
        stream = cast("asyncio.Transport", transport)
        # What it says is for TLS.
        stream.pause_reading()
        self._receive(stream)


def _peer(transport: asyncio.BaseTransport) -> str:
    found = transport.get_extra_info("peername")
    return found[0] if found else ""


def _context(files: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(files.certificate, files.key)
    return context


def _credentials(header: str) -> tuple[str, str]:
    """Read an ``Authorization: Basic`` header (RFC 7617)."""
    scheme, _, text = header.partition(" ")
    try:
        name, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise Refused("log in with the machine's name and password") from error
    if scheme.lower() != "basic" or not colon:
        raise Refused("log in with the machine's name and password")
    return name, password


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": text}, status=status, headers=headers)
