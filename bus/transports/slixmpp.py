"""The default transport: slixmpp logs in and keeps the stream, our stanzas pass it by.

slixmpp builds an object for every stanza and scans its list of handlers for each; that costs 160 us
at the answering end and 300-590 at the asking one, and grows with the calls outstanding (measured).
So stanzas of our namespace are taken between its parser and its stanza objects
(``_spawn_event``), and leave as bytes (``send_raw``): 20 us at each end.  Gets and sets of other
namespaces go the same way, once the stream is ready; what is left is slixmpp's.  ``_spawn_event`` is a private name, hence the pinned version range, and a
contract test that fails when the override is no longer called.

slixmpp does not reconnect, and keeps state between streams that is easy to get wrong, so each
stream is a new slixmpp object and the pauses between them are ours (``reconnect.py``).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from xml.etree.ElementTree import Element, XMLPullParser

import structlog
from slixmpp import ClientXMPP, ComponentXMPP

from spinal.protocols import TAG, Codec, Stanza
from spinal.protocols import address as addresses

from ..connection import ID_PREFIX, Connection, Listener, answer_other
from ..errors import (
    AddressTaken,
    BusError,
    CertificateRefused,
    LoginRefused,
    NotConnected,
)
from ..questions import Questions
from ..reconnect import Backoff
from .scram import MECHANISMS

log = structlog.get_logger()

# What slixmpp reports on its own logger is translated into our errors; here it would be said twice.
logging.getLogger("slixmpp").setLevel(logging.CRITICAL)

#: Seconds for a stream from the first packet to the bound address.
LOGIN_TIMEOUT = 20.0

#: Seconds that a server which had us before may be busy with others before it answers.
QUEUE_TIMEOUT = 60.0

#: Seconds that a connection to one node of several may take before the next one is tried.
NEXT_NODE = 5.0

#: Seconds for which a server may take our last stream, which broke, for one that lives.
LINGERING = 60.0

#: What a reconnect does not mend.
_FINAL = (LoginRefused, CertificateRefused, AddressTaken)

#: Bytes of the stanzas of one turn of the event loop that are gathered before they leave: some dozens
#: of lone calls, so that the peer begins while we write the rest.
GATHERED = 4096

#: Bytes that may wait for the network before :meth:`drain` waits.
HIGH_WATER = 1024 * 1024


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


class _SlixmppConnection(Connection):
    """The parts that do not depend on how the stream logs in."""

    #: Address stamped on what we send; servers do it for clients, components do it themselves.
    _stamp = ""

    def __init__(self, host: str, port: int, further: Sequence[tuple[str, int]] = ()) -> None:
        #: Host and port of the node that has our stream, had it last, or is tried.
        self._host = host
        self._port = port
        #: Those of all nodes of the server, in turn.
        self._nodes: Sequence[tuple[str, int]] = ((host, port), *further)
        self._address = ""
        self._listener: Listener | None = None
        self._stream: Any = None
        self._ready = False
        self._task: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[Exception] | None = None
        self._questions = Questions(self)
        #: For a component: who is told when we go, because a server does not do it for components.
        self._directed: set[str] = set()
        self._backoff = Backoff()
        #: Asked before each reconnect for the present nodes, if they may have changed.
        self._look_up: Callable[[], Sequence[tuple[str, int]] | None] = lambda: None
        self.writable = asyncio.Event()
        self.writable.set()
        #: What was written since the first stanza of this turn of the event loop, which has left.
        self._gathered: list[bytes] = []
        self._size = 0
        self._gathers = False

    def _make(self) -> Any:
        raise NotImplementedError

    def _header(self) -> str:
        """The first words of a stream."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        """Full address, or a component's domain."""
        if not self._address:
            raise NotConnected("not logged in yet")
        return self._address

    @property
    def address_or_none(self) -> str | None:
        """The address, if we have one yet."""
        return self._address or None

    @property
    def connected(self) -> bool:
        """Whether a stream is ready now."""
        # The library forgets its transport a moment before it tells us that the stream is lost.
        return self._ready and self._stream.transport is not None

    async def open(self, listener: Listener) -> None:
        """Log in; see the contract."""
        self._listener = listener
        self._failed = asyncio.get_running_loop().create_future()
        ended = await self._log_in_somewhere()
        self._task = asyncio.get_running_loop().create_task(
            self._keep(ended), name=f"stream {self._address}"
        )

    async def failed(self) -> Exception:
        """See the contract."""
        assert self._failed is not None
        return await asyncio.shield(self._failed)

    async def _log_in_somewhere(self) -> asyncio.Future[Exception | str]:
        """Make one stream at the node that had us last, or at the first of the others that takes us.

        Raises what :meth:`Connection.open` does, about the node that was tried last.
        """
        nodes, last = self._nodes, (self._host, self._port)
        start = nodes.index(last) if last in nodes else 0
        trouble: BusError | None = None
        for self._host, self._port in (*nodes[start:], *nodes[:start]):
            try:
                return await self._log_in()
            except _FINAL:
                raise
            except BusError as exc:
                trouble = exc
        assert trouble is not None
        raise trouble

    async def _log_in(self) -> asyncio.Future[Exception | str]:
        """Make one stream.  Gives what ends when the stream ends: an error to give up on, or why.

        Raises what :meth:`Connection.open` does.
        """
        assert self._listener is not None
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
        ended: asyncio.Future[Exception | str] = loop.create_future()
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
            await self._end(stream)
            raise BusError(
                f"{self._host}:{self._port} did not finish the login within {LOGIN_TIMEOUT:g} s"
            ) from exc
        except BaseException:
            await self._end(stream)
            raise
        self._address = self._bound(stream)
        self._began = loop.time()
        stream.transport.set_write_buffer_limits(high=HIGH_WATER)
        self.writable.set()
        self._ready = True
        self._listener.opened()
        return ended

    async def _knock(self) -> tuple[asyncio.Transport, bytes]:
        """Connect, begin a stream, and give what the server says first; reading is paused then.

        Raises :class:`BusError`.
        """
        loop = asyncio.get_running_loop()
        knock = _Knock(self._header())
        alone = len(self._nodes) == 1
        # Once we were in, a server that says nothing has others to let in before us.
        patience = QUEUE_TIMEOUT if alone and self._task is not None else LOGIN_TIMEOUT
        try:
            async with asyncio.timeout(patience):
                async with asyncio.timeout(None if alone else NEXT_NODE):
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

    async def _keep(self, ended: asyncio.Future[Exception | str]) -> None:
        """Replace the stream whenever it breaks, until closed or refused."""
        assert self._listener is not None and self._failed is not None
        loop = asyncio.get_running_loop()
        while True:
            why = await ended
            self._ready = False
            self.writable.set()
            lost = loop.time()
            self._backoff.ended(lost - self._began)
            await self._end(self._stream)
            self._questions.end(f"the stream broke: {why}")
            self._directed.clear()
            self._listener.closed(str(why))
            if isinstance(why, Exception):
                self._failed.set_result(why)
                return
            while True:
                await asyncio.sleep(self._backoff.pause())
                self._nodes = self._look_up() or self._nodes
                try:
                    ended = await self._log_in_somewhere()
                    break
                except BusError as exc:
                    # Our own last stream may look like another program until the server sees its
                    # end.
                    ours = isinstance(exc, AddressTaken) and loop.time() - lost < LINGERING
                    if isinstance(exc, _FINAL) and not ours:
                        self._failed.set_result(exc)
                        return
                    log.debug("reconnect_failed", address=self._address, problem=str(exc))

    @staticmethod
    async def _end(stream: Any) -> None:
        """Take a slixmpp object down for good, with the tasks it started."""
        stream.cancel_connection_attempt()
        if stream.transport is not None:
            stream.abort()
        filters: asyncio.Future[Any] | None = stream._run_out_filters
        if filters is not None:
            filters.cancel()
            await asyncio.wait([filters])

    async def close(self) -> None:
        """End the stream; see the contract."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        self._release()
        stream, self._stream = self._stream, None
        was_ready, self._ready = self._ready, False
        if stream is not None:
            if was_ready and stream.transport is not None:
                gone = [Stanza("presence", "unavailable", to) for to in self._directed]
                for stanza in gone if self._stamp else [Stanza("presence", "unavailable")]:
                    stream.send_raw(Codec.encode(stanza, self._stamp))
                self._directed.clear()
                await stream.disconnect(wait=1.0)
            await self._end(stream)
        self._questions.end("the stream was closed")
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()

    def send(self, stanza: Stanza) -> None:
        """Write a stanza; see the contract."""
        if not self.connected:
            raise NotConnected("there is no stream to the server now")
        if self._stamp and stanza.kind == "presence" and not stanza.to:
            return  # A component has no initial presence (XEP-0114).
        if self._stamp and stanza.kind == "presence":
            (self._directed.discard if stanza.type else self._directed.add)(stanza.to)
        self._write(Codec.encode(stanza, self._stamp))

    def _write(self, data: bytes) -> None:
        """Write at once what is the first in this turn, and all that follows it together.

        Each write is a record of TLS and a call of the system, which cost more than the stanza.
        """
        if not self._gathers:
            self._gathers = True
            asyncio.get_running_loop().call_soon(self._turned)
            self._stream.send_raw(data)
            return
        self._gathered.append(data)
        self._size += len(data)
        if self._size >= GATHERED:
            self._release()

    def _turned(self) -> None:
        self._gathers = False
        self._release()

    def _release(self) -> None:
        """Write what was gathered; it is lost with the stream, as what the network has."""
        gathered, self._gathered, self._size = self._gathered, [], 0
        if gathered and self._stream is not None and self._stream.transport is not None:
            self._stream.send_raw(b"".join(gathered))

    async def drain(self) -> None:
        """Wait for a slow network; see the contract."""
        await self.writable.wait()

    async def ask(
        self, kind: str, to: str, payload: Element, timeout: float = 10.0
    ) -> Element | None:
        """Ask a service of somebody else's; see the contract."""
        return await self._questions.ask(kind, to, payload, timeout)

    # -- for the stream

    def take(self, xml: Element) -> bool:
        """Take a parsed stanza if it is ours; false leaves it to slixmpp."""
        kind = xml.tag.rpartition("}")[2]
        if not self._ready or self._listener is None:
            return False
        if kind == "iq":
            if xml.get("type") in ("result", "error"):
                if not xml.get("id", "").startswith(ID_PREFIX):
                    return False
                if not self._questions.answered(xml):
                    self._listener.received(Codec.decode(xml))
                return True
            if len(xml) == 0 or xml[0].tag != TAG:
                if xml.get("type") not in ("get", "set"):
                    return False
                answer_other(self, self._listener, xml)
                return True
        elif kind == "message":
            if xml.find(TAG) is None:
                return False
        elif kind != "presence":
            return False
        self._listener.received(Codec.decode(xml))
        return True

    def _who(self) -> str:
        raise NotImplementedError

    def _bound(self, stream: Any) -> str:
        raise NotImplementedError


def _verify_text(error: object) -> str:
    return getattr(error, "verify_message", "") or str(error)


@lru_cache(maxsize=16)
def _context(ca: Path | None, stamp: int) -> ssl.SSLContext:
    """Trust an authority; ``stamp`` is another whenever its file is.

    Streams that trust the same one share it: making it is a tenth of a login, and 50 kB.
    """
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class ClientConnection(_SlixmppConnection):
    """An account of the server: SCRAM inside verified TLS.

    Args:
        address: ``user@domain`` or ``user@domain/resource``; without a resource the server
            chooses one, which is then kept over reconnects.
        password: the account's.
        host, port: where the server listens for clients.
        ca: certificate authority (PEM) to trust; the system's if none.
        look_up: asked before each reconnect for host and port of the present nodes, because a home
            may have been started with others.
        further: host and port of the server's further nodes, if it is a cluster.  They are tried in
            turn when the one that we were at, or were to be at first, cannot be had.
    """

    def __init__(
        self,
        address: str,
        password: str,
        host: str,
        port: int,
        ca: Path | None = None,
        look_up: Callable[[], Sequence[tuple[str, int]] | None] = lambda: None,
        further: Sequence[tuple[str, int]] = (),
    ) -> None:
        super().__init__(host, port, further)
        self._login = addresses.check(address)
        if addresses.resource(self._login):
            self._address = self._login
        self._password = password
        self._look_up = look_up
        self._ca = ca

    def _context(self) -> ssl.SSLContext:
        ca = self._ca
        try:
            return _context(ca, 0 if ca is None else ca.stat().st_mtime_ns)
        except (OSError, ssl.SSLError) as exc:
            raise CertificateRefused(f"cannot read the certificate authority {ca}: {exc}") from exc

    def _make(self) -> Any:
        return _ClientStream(self, self._address or self._login, self._password, self._context())

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

    def _make(self) -> Any:
        return _ComponentStream(self, self._domain, self._secret)

    def _header(self) -> str:
        return f"<stream:stream to='{self._domain}' {_NAMESPACES % _COMPONENT}>"

    def _who(self) -> str:
        return self._domain

    def _bound(self, stream: Any) -> str:
        return self._domain
