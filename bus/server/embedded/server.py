"""The server as an object: listeners, tables, and the services in this process."""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from .. import ports, probe
from ..certificates import Certificates, ensure
from ..contract import ServerConfig
from ..errors import PortTaken, ServerError
from . import sasl
from .accounts import Accounts
from .addresses import parse
from .client import ClientStream, Site
from .component import ComponentStream, Dock, within
from .limits import Limits
from .lobby import Lobby
from .offline import Offline
from .presence import Presences
from .roster import Rosters
from .router import Receive, Router
from .services import Services
from .stream import Stream, Turn
from .upload import Uploads
from .xmlstream import StreamError

log = structlog.get_logger(__name__)

_BACKLOG: Final = 4096
#: How often accounts that were removed and clients that went silent are looked for, in seconds.
_ROUND: Final = 1.0


def place(config: ServerConfig) -> Path:
    """Give the folder that the server writes to; certificates lie beside it, for all servers."""
    return config.folder / "embedded"


def accounts_of(config: ServerConfig) -> Accounts:
    """Give the accounts of a server, whether it runs or not."""
    return Accounts(place(config) / "accounts")


class Attachment:
    """A service in this process, at a domain of its own."""

    def __init__(self, router: Router, domain: str, receive: Receive) -> None:
        self.domain = domain
        self._router = router
        self._receive = receive
        self._open = True
        router.domains[domain] = self._guarded

    def _guarded(self, kind: str, attributes: dict[str, str], inner: bytes) -> None:
        try:
            self._receive(kind, attributes, inner)
        except Exception:
            # Neither the sender nor other services are to suffer for it.
            log.exception("service_failed", domain=self.domain, kind=kind)
            if kind == "iq":
                self._router.bounce(kind, attributes, "internal-server-error")

    def deliver(self, kind: str, attributes: dict[str, str], inner: bytes) -> None:
        """Send a stanza; ``kind`` is ``iq``, ``message`` or ``presence``.

        ``attributes`` are unescaped and become the router's; ``from`` must be within the domain
        and ``to`` be there, else :class:`ValueError`.  ``inner`` must be well-formed, of the
        default namespace ``jabber:client``, and is not checked.  Never blocks.  If nobody is
        there the error comes to ``receive``, but never before this returns.
        """
        if not self._open:
            raise ServerError(f"{self.domain} is detached: attach it again")
        if not within(attributes.get("from", ""), self.domain) or "to" not in attributes:
            raise ValueError(f"a stanza of {self.domain} needs a from within it, and a to")
        self._router.route(kind, attributes, inner)

    def close(self) -> None:
        """Take the service away; stanzas to it bounce from then on.  May be called again."""
        if self._open:
            self._open = False
            del self._router.domains[self.domain]


class EmbeddedServer:
    """An XMPP server in this process and event loop."""

    def __init__(self, config: ServerConfig, limits: Limits | None = None) -> None:
        self.config = config
        self.limits = limits or Limits()
        self.accounts = accounts_of(config)
        self.certificates: Certificates | None = None
        self._rosters = Rosters(place(config) / "rosters")
        self._turn = Turn()
        self._router: Router | None = None
        self._open: set[Stream] = set()
        self._uploads: Uploads | None = None
        self._listeners: list[asyncio.Server] = []
        self._rounds: asyncio.Task[None] | None = None
        self._stamp = 0
        self._stopped = asyncio.Event()

    async def start(self) -> None:
        """Listen.  Raises :class:`PortTaken` or another :class:`ServerError`."""
        config, limits = self.config, self.limits
        ports.check(config)
        self._stopped.clear()
        place(config).mkdir(parents=True, exist_ok=True, mode=0o700)
        names = [config.upload_host, ports.reachable(config.listen), config.upload_domain]
        names += config.components
        files = self.certificates = ensure(config.folder, config.domain, names)
        router = self._router = Router(config.domain, config.components, self.accounts)
        presences = router.presences = Presences(router, self._rosters, limits)
        router.offline = Offline(place(config) / "offline", config.domain, limits)
        router.services = Services(router, presences, self._rosters)
        router.domains[config.domain] = router.services.receive
        site = Site(
            config.domain,
            config.max_stanza,
            limits,
            self._turn,
            router,
            sasl.Door(self.accounts, config.domain),
            _context(files),
            Lobby(limits),
        )
        dock = Dock(config.components, config.max_stanza, limits, self._turn, router)
        try:
            await self._listen(lambda: ClientStream(site), config.listen, config.ports.c2s)
            await self._listen(lambda: ComponentStream(dock), "127.0.0.1", config.ports.component)
            self._uploads = Uploads(
                config, place(config) / "blobs", limits, self.accounts, _context(files)
            )
            await self._uploads.start()
            self._uploads.attachment = self.attach(config.upload_domain, self._uploads.receive)
        except BaseException:
            await self.stop()
            raise
        self._stamp = self.accounts.stamp()
        self._rounds = asyncio.create_task(self._go_round(), name="embedded-server-rounds")
        log.info("server_started", domain=config.domain, port=config.ports.c2s)

    async def stop(self, *, hung: bool = False) -> None:
        """End all streams and free the ports.  Calling it again does nothing.

        Whoever can call this does not hang, so ``hung`` changes nothing.
        """
        rounds, self._rounds = self._rounds, None
        if rounds is not None:
            rounds.cancel()
            await asyncio.gather(rounds, return_exceptions=True)
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()
        streams = list(self._open)
        for stream in streams:
            stream.end(StreamError("system-shutdown"))
        uploads, self._uploads = self._uploads, None
        if uploads is not None:
            await uploads.stop()
        if streams:
            # Each ends within limits.linger; they were given the reason already.
            await asyncio.wait([stream.closed for stream in streams], timeout=self.limits.linger)
            for stream in streams:
                stream.abort()
        for listener in listeners:
            await listener.wait_closed()
        self._stopped.set()
        if listeners:
            log.info("server_stopped", domain=self.config.domain)

    @property
    def ca(self) -> Path:
        """The certificate authority (PEM) that clients of this server trust."""
        return self.config.folder / "ca.pem"

    @property
    def pid(self) -> int:
        """Our own process."""
        return os.getpid()

    async def add_account(self, name: str, password: str) -> None:
        """Make the account, or give it this password.  It can log in when this returns."""
        await asyncio.to_thread(self.accounts.add, name, password)

    async def remove_account(self, name: str) -> None:
        """Remove the account and end its streams.  Unknown names are no error."""
        await asyncio.to_thread(self.accounts.remove, name)
        self.check_accounts()

    async def probe(self, timeout: float = 3.0) -> None:
        """Raise :class:`ServerError` unless a new stream is answered with features in time."""
        host = ports.reachable(self.config.listen)
        await probe.probe(host, self.config.ports.c2s, self.config.domain, timeout)

    async def wait(self) -> int:
        """Return 0 once it has been stopped."""
        await self._stopped.wait()
        return 0

    def attach(self, domain: str, receive: Receive) -> Attachment:
        """Give the stanzas to a domain to a function in this process.

        ``receive`` gets kind, unescaped attributes with ``from`` stamped, and the bytes of the
        children; it must be quick.  Raises :class:`ServerError` if the domain is taken, or the
        server is not started.
        """
        if self._router is None:
            raise ServerError("the server is not started: start it before services are attached")
        if domain in self._router.domains:
            raise ServerError(f"{domain} is attached already: close that one, or choose another")
        return Attachment(self._router, domain, receive)

    async def _listen(self, make: Callable[[], Stream], host: str, port: int) -> None:
        loop = asyncio.get_running_loop()

        def accept() -> Stream:
            stream = make()
            self._open.add(stream)
            stream.closed.add_done_callback(lambda _: self._open.discard(stream))
            return stream

        try:
            listener = await loop.create_server(accept, host, port, backlog=_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(port, "XMPP") from error
            raise ServerError(f"cannot listen on {host} port {port}: {error}") from error
        self._listeners.append(listener)

    async def _go_round(self) -> None:
        """Each round: end the streams of removed accounts, look after silent ones."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_ROUND)
            self.check_accounts()
            now = loop.time()
            for client in list(self.router.clients.values()):
                client.check(now)

    def check_accounts(self) -> None:
        """End the streams of accounts that are gone; does nothing if no file has changed."""
        stamp = self.accounts.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._rosters.forget_all_but(self.accounts.exists)
        router = self.router
        router.offline.forget_all_but(self.accounts.exists)
        for bare in list(router.resources):
            name = parse(bare).local
            if not self.accounts.exists(name):
                for client in list(router.resources.get(bare, {}).values()):
                    client.end(StreamError("not-authorized", "the account was removed"))

    @property
    def uploads(self) -> Uploads:
        """The upload service; only while it is started."""
        assert self._uploads is not None
        return self._uploads

    @property
    def router(self) -> Router:
        """The tables; only while it is started."""
        assert self._router is not None
        return self._router


def _context(files: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0  # Nobody resumes; making them costs a login 10 %.
    context.load_cert_chain(files.certificate, files.key)
    return context
