"""The default transport: slixmpp logs in and keeps the stream, our stanzas pass it by.

slixmpp builds an object for every stanza and scans its list of handlers for each; that costs 160 us
at the answering end and 300-590 at the asking one, and grows with the calls outstanding (measured).
So stanzas of our namespace are taken between its parser and its stanza objects
(``_spawn_event``), and leave as bytes (``send_raw``): 20 us at each end.  Gets and sets of other
namespaces go the same way, once the stream is ready; what is left is slixmpp's.  ``_spawn_event`` is
a private name, hence the pinned version range, and a contract test that fails when the override is
no longer called.

slixmpp keeps state between streams that is easy to get wrong, so each stream is a new slixmpp object;
what comes between them is in ``streams.py``.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Any, cast
from xml.etree.ElementTree import Element, XMLPullParser

import structlog
from slixmpp import ClientXMPP, ComponentXMPP

from spinal.protocols import Stanza
from spinal.protocols import address as addresses

from ..errors import AddressTaken, BusError, CertificateRefused, LoginRefused
from .scram import MECHANISMS
from .streams import HIGH_WATER, LOGIN_TIMEOUT, AccountConnection, StreamConnection
from .trust import trusting

log = structlog.get_logger()

# What slixmpp reports on its own logger is translated into our errors; here it would be said twice.
logging.getLogger("slixmpp").setLevel(logging.CRITICAL)

#: Bytes that are read before whatever else is due has its turn.
READ = 256 * 1024

_CLIENT = "jabber:client"
_COMPONENT = "jabber:component:accept"
_NAMESPACES = "xmlns='%s' xmlns:stream='http://etherx.jabber.org/streams'"


class _Parser(XMLPullParser):  # type: ignore[type-arg]  # generic in the stubs only
    """Gives a tag that was split over two reads when it is complete.

    expat 2.6 and later put off parsing an unfinished token until much more has come; on a socket
    that is a hang (reproduced).  ``flush`` undoes it where it exists.
    """

    def feed(self, data: Any) -> None:
        super().feed(data)
        flush = getattr(self, "flush", None)
        if flush is not None:
            flush()


class _Stream:
    """What the client's and the component's stream have in common; mixed into slixmpp's classes."""

    _owner: _SlixmppConnection
    xml_depth: int
    xml_root: Any
    parser: Any
    transport: Any
    #: Bytes since we last let others have their turn.
    _read = 0

    def init_parser(self) -> None:
        self.xml_depth = 0
        self.xml_root = None
        self.parser = _Parser(("start", "end"))

    def begin(self, transport: asyncio.Transport, answer: bytes) -> None:
        """Go on with a stream whose header is sent and whose first answer is this."""
        stream: Any = self
        stream.init_plugins()
        self._run_out_filters = asyncio.ensure_future(stream.run_filters())
        self.transport = transport
        stream.socket = transport.get_extra_info("socket")
        stream.event("connected")
        self.init_parser()
        transport.set_protocol(stream)
        # So that uvloop, too, hands over what is written at once, and not at the end of the turn:
        # the peer begins with the first half of a burst while we write the second.
        transport.set_write_buffer_limits(high=0)
        stream.data_received(answer)
        if not transport.is_closing():
            transport.resume_reading()

    def _spawn_event(self, xml: Element) -> None:
        try:
            if self._owner.take(xml):
                return
        except Exception:
            # Out of here it would end up in the parser and end the stream.
            log.exception("stanza_handler_failed", address=self._owner.address_or_none)
            return
        super()._spawn_event(xml)  # type: ignore[misc]  # pyright: ignore

    def data_received(self, data: Any) -> None:
        super().data_received(data)  # type: ignore[misc]  # pyright: ignore
        self._read += len(data)
        if self._read >= READ and self.transport is not None:
            # libuv reads up to 32 times before it looks at anything else: 8 MiB of a flood, which
            # take seconds, while no timer runs and whoever waits for our heartbeat takes us for dead.
            self._read = 0
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        self._owner.writable.clear()

    def resume_writing(self) -> None:
        self._owner.writable.set()


class _ClientStream(_Stream, ClientXMPP):
    def __init__(
        self, owner: _SlixmppConnection, address: str, password: str, context: ssl.SSLContext
    ) -> None:
        self._owner = owner
        base: Any = ClientXMPP
        base.__init__(self, address, password, ssl_context=context)
        self.plugin["feature_mechanisms"].use_mechs = set(MECHANISMS)
        self.enable_direct_tls = False
        self.enable_plaintext = False
        self.auto_authorize = None
        self.auto_subscribe = False

    def get_ssl_context(self) -> ssl.SSLContext:
        return self.ssl_context


class _ComponentStream(_Stream, ComponentXMPP):
    def __init__(self, owner: _SlixmppConnection, domain: str, secret: str) -> None:
        self._owner = owner
        base: Any = ComponentXMPP
        base.__init__(self, domain, secret)


class _Knock(asyncio.Protocol):
    """Sends the header of a stream, and waits for the answer at the price of a socket."""

    def __init__(self, header: str) -> None:
        self._header = header
        self.transport: asyncio.Transport | None = None
        #: What the server says first; none if it closes the connection.
        self.answer: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._header.encode())

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.pause_reading()
        if not self.answer.done():
            self.answer.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(None)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class _SlixmppConnection(StreamConnection):
    """The parts that do not depend on who logs in."""

    def _make(self) -> Any:
        raise NotImplementedError

    def _header(self) -> str:
        """The first words of a stream."""
        raise NotImplementedError

    async def _begin(self, ended: asyncio.Future[Exception | str]) -> str:
        loop = asyncio.get_running_loop()
        # Ours and not slixmpp's, so that next to nothing is made before the server has a word for
        # us: thousands who wait for one that is starting leave the processor to it.
        transport, answer = await self._knock()
        try:
            stream = self._make()
        except BaseException:
            transport.abort()
            raise
        ready: asyncio.Future[None] = loop.create_future()
        trouble: list[Exception] = []

        def refuse(error: Exception) -> None:
            trouble.append(error)
            if not ready.done():
                ready.set_exception(error)

        def refuse_certificate(error: object) -> None:
            refuse(
                CertificateRefused(
                    f"{self._host}:{self._port} shows a certificate that our authority does not "
                    f"vouch for ({_verify_text(error)}): check SPINAL_CA or the home"
                )
            )

        def on_refused(_: object) -> None:
            refuse(LoginRefused(f"{self._who()} was refused: unknown account or wrong password"))

        def on_start(_: object) -> None:
            if not ready.done():
                ready.set_result(None)

        def on_stream_error(error: Any) -> None:
            condition = error["condition"]
            if condition == "conflict":
                refuse(AddressTaken(f"another program logged in as {self._address or self._who()}"))
            elif condition == "not-authorized":
                refuse(LoginRefused(f"{self._who()} was refused: wrong secret"))

        def on_end(reason: object) -> None:
            if isinstance(reason, ssl.SSLError):
                refuse_certificate(reason)
            if not ended.done():
                ended.set_result(trouble[0] if trouble else str(reason or "stream closed"))
            if not ready.done():
                ready.set_exception(
                    BusError(
                        f"{self._host}:{self._port} closed the stream: {reason or 'no reason'}"
                    )
                )

        for event, handler in (
            ("session_start", on_start),
            ("stream_error", on_stream_error),
            ("disconnected", on_end),
            ("failed_all_auth", on_refused),
            ("ssl_invalid_chain", refuse_certificate),
        ):
            stream.add_event_handler(event, handler)
        stream.begin(transport, answer)
        self._stream = stream
        try:
            async with asyncio.timeout(LOGIN_TIMEOUT):
                await ready
        except TimeoutError as exc:
            await self._end()
            raise BusError(
                f"{self._host}:{self._port} did not finish the login within {LOGIN_TIMEOUT:g} s"
            ) from exc
        except BaseException:
            await self._end()
            raise
        stream.transport.set_write_buffer_limits(high=HIGH_WATER)
        return self._bound(stream)

    async def _knock(self) -> tuple[asyncio.Transport, bytes]:
        """Connect, begin a stream, and give what the server says first; reading is paused then.

        Raises :class:`BusError`.
        """
        loop = asyncio.get_running_loop()
        knock = _Knock(self._header())
        connecting, greeting = self._patience()
        try:
            async with asyncio.timeout(greeting):
                async with asyncio.timeout(connecting):
                    await loop.create_connection(lambda: knock, self._host, self._port)
                answer = await knock.answer
        except OSError as exc:
            knock.abort()
            raise BusError(
                f"nobody answers at {self._host}:{self._port} ({str(exc) or 'silence'}): "
                f"is `spinal up` running?"
            ) from exc
        except BaseException:
            knock.abort()
            raise
        assert knock.transport is not None
        if answer is None:
            raise BusError(f"{self._host}:{self._port} closed the connection at once")
        return knock.transport, answer

    def _alive(self) -> bool:
        return self._stream.transport is not None

    def _put(self, data: bytes) -> None:
        self._stream.send_raw(data)

    async def _finish(self) -> None:
        await self._stream.disconnect(wait=1.0)

    async def _end(self) -> None:
        stream = self._stream
        stream.cancel_connection_attempt()
        if stream.transport is not None:
            stream.abort()
        filters: asyncio.Future[Any] | None = stream._run_out_filters
        if filters is not None:
            filters.cancel()
            await asyncio.wait([filters])

    def _who(self) -> str:
        raise NotImplementedError

    def _bound(self, stream: Any) -> str:
        raise NotImplementedError


def _verify_text(error: object) -> str:
    return getattr(error, "verify_message", "") or str(error)


class ClientConnection(_SlixmppConnection, AccountConnection):
    """An account, logged in by slixmpp; see :class:`AccountConnection`."""

    def _make(self) -> Any:
        return _ClientStream(self, self._address or self._login, self._password, trusting(self._ca))

    def _header(self) -> str:
        domain = addresses.domain(self._login)
        return f"<stream:stream to='{domain}' xml:lang='en' version='1.0' {_NAMESPACES % _CLIENT}>"

    def _who(self) -> str:
        return addresses.bare(self._login)

    def _bound(self, stream: Any) -> str:
        return str(stream.boundjid.full)


class ComponentConnection(_SlixmppConnection):
    """A component of the server (XEP-0114), on loopback: the domain is the address.

    Components have no stream management; acknowledgement and resend are the session's, as for all.
    """

    def __init__(self, domain: str, secret: str, host: str, port: int) -> None:
        super().__init__(host, port)
        self._domain = self._stamp = self._address = addresses.check(domain)
        self._secret = secret
        #: Who is told when we go, because a server does not do it for components.
        self._directed: set[str] = set()

    def send(self, stanza: Stanza) -> None:
        """Write a stanza; see the contract."""
        if stanza.kind == "presence" and self.connected:
            if not stanza.to:
                return  # A component has no initial presence (XEP-0114).
            (self._directed.discard if stanza.type else self._directed.add)(stanza.to)
        super().send(stanza)

    async def _begin(self, ended: asyncio.Future[Exception | str]) -> str:
        self._directed.clear()
        return await super()._begin(ended)

    def _farewell(self) -> list[Stanza]:
        gone, self._directed = self._directed, set()
        return [Stanza("presence", "unavailable", to) for to in gone]

    def _make(self) -> Any:
        return _ComponentStream(self, self._domain, self._secret)

    def _header(self) -> str:
        return f"<stream:stream to='{self._domain}' {_NAMESPACES % _COMPONENT}>"

    def _who(self) -> str:
        return self._domain

    def _bound(self, stream: Any) -> str:
        return self._domain
