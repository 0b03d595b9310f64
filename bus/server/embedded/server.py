"""The server as an object: listeners, tables, and the services in this process."""

from __future__ import annotations

import asyncio
import errno
import ssl
from pathlib import Path
from typing import Final

import structlog

from .. import ports
from ..certificates import Certificates, ensure
from ..contract import ServerConfig
from ..errors import PortTaken, ServerError
from . import sasl
from .accounts import Accounts
from .addresses import parse
from .client import ClientStream, Site
from .component import ComponentStream, Dock, within
from .limits import Limits
from .presence import Presences
from .roster import Rosters
from .router import Receive, Router
from .services import Services
from .stream import Stream, Turn
from .upload import Uploads
from .xmlstream import StreamError

log = structlog.get_logger(__name__)

_BACKLOG: Final = 2048
#: How often accounts that were removed and clients that went silent are looked for, in seconds.
_ROUND: Final = 1.0


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
        self.accounts = Accounts(config.folder / "accounts")
        self.certificates: Certificates | None = None
        self._rosters = Rosters(config.folder / "rosters")
        self._turn = Turn()
        self._router: Router | None = None
        self._site: Site | None = None
        self._dock: Dock | None = None
        self._uploads: Uploads | None = None
        self._listeners: list[asyncio.Server] = []
        self._rounds: asyncio.Task[None] | None = None
        self._stamp = 0

    async def start(self) -> None:
        """Listen.  Raises :class:`PortTaken` or another :class:`ServerError`."""
        config, limits = self.config, self.limits
        ports.check(config)
        config.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        hosts = [host for host in (config.public_host, config.upload_host) if host]
        files = self.certificates = ensure(config.folder / "tls", config.domain, hosts)
        router = self._router = Router(config.domain, config.components, self.accounts)
        presences = router.presences = Presences(router, self._rosters, limits)
        router.services = Services(router, presences, self._rosters)
        router.domains[config.domain] = router.services.receive
        site = self._site = Site(
            config.domain,
            config.max_stanza,
            limits,
            self._turn,
            router,
            sasl.Door(self.accounts, config.domain),
            _context(files),
        )
        dock = self._dock = Dock(
            config.components, config.max_stanza, limits, self._turn, router
        )
        try:
            await self._listen(lambda: ClientStream(site), config.listen, config.ports.c2s)
            await self._listen(lambda: ComponentStream(dock), "127.0.0.1", config.ports.component)
            self._uploads = Uploads(config, limits, self.accounts, _context(files))
            await self._uploads.start()
            self._uploads.attachment = self.attach(config.upload_domain, self._uploads.receive)
        except BaseException:
            await self.stop()
            raise
        self._stamp = self.accounts.stamp()
        self._rounds = asyncio.create_task(self._go_round(), name="embedded-server-rounds")
        log.info("server_started", domain=config.domain, port=config.ports.c2s)
