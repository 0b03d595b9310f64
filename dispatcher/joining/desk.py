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
import socket
import ssl
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

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
        self._listeners: list[socket.socket] = []
        #: Connections of each address.
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
            self._listeners = await _listen(self._listen, self._port)
        except OSError as error:
            await self.close()
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(self._port, "joining") from error
            raise ServerError(
                f"cannot listen on {self._listen} port {self._port}: {error}"
            ) from error
        for one in self._listeners:
            self._tasks.spawn(self._accept(one), "accepting")

    async def close(self) -> None:
        """Free the port; what is under way is cut.  May be called again."""
        runner, self._runner = self._runner, None
        await self._tasks.close()
        for one in self._listeners:
            one.close()
        self._listeners.clear()
        if runner is not None:
            await runner.cleanup()

    async def _accept(self, listener: socket.socket) -> None:
        """Take connections, each if there is a place for it.

        Not a server of the event loop: a place is taken before TLS, and from uvloop (0.23) a protocol
        of its own cannot keep what a guest says first, which TLS would wait for in vain.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                guest, (who, *_) = await loop.sock_accept(listener)
            except OSError as error:
                # It has gone already, or too many files are open.
                log.warning("connection_not_taken", error=str(error))
                await asyncio.sleep(LOOK)
                continue
            if self._of.total() >= MAX_CONNECTIONS or self._of[who] >= MAX_OF_ONE:
                guest.close()
                continue
            self._of[who] += 1
            self._tasks.spawn(self._serve(guest, who), "connection")

    async def _serve(self, guest: socket.socket, who: str) -> None:
        """Have a connection served, and end it after a while whatever comes over it.

        Else whoever says nothing, or a byte a minute, would hold a place for ever.
        """
        assert self._runner is not None and self._runner.server is not None
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(LIFE):
                transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                    self._runner.server,
                    guest,
                    ssl=self._context,
                    ssl_handshake_timeout=HANDSHAKE,
                )
                while not transport.is_closing():
                    await asyncio.sleep(LOOK)
        except (OSError, TimeoutError):
            pass  # It has gone, or its time is over.
        finally:
            if transport is not None:
                transport.abort()
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


async def _listen(host: str, port: int) -> list[socket.socket]:
    """Listen at every address that a host has.  Raises :class:`OSError`."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    made: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            one = socket.create_server(address, family=family, backlog=MAX_CONNECTIONS)
            made.append(one)
            one.setblocking(False)
    except OSError:
        for one in made:
            one.close()
        raise
    return made


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
