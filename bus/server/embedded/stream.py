"""One TCP connection: TLS, slicing, writing, back-pressure and taking leave.

What the elements mean is up to the two kinds of streams, in ``client.py`` and ``component.py``.

TLS is done here over memory buffers instead of asyncio's own layer: that saves its copies and a
256 kB buffer a connection, and lets one record carry what several senders wrote.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
from collections import deque
from typing import Final, cast

import structlog

from .limits import Limits
from .stanzas import escape
from .xmlstream import END, STREAMS, Element, Header, Slicer, StreamError

log = structlog.get_logger(__name__)

STREAM_ERRORS: Final = "urn:ietf:params:xml:ns:xmpp-streams"

#: Who sends as much as this at a time lets the others have their turn before more is read.
_SHARE: Final = 64 * 1024

#: What is handed to the transport at a time; it stops us at 64 kB more.
_CHUNK: Final = 256 * 1024


class Turn:
    """Whose bytes are being worked on: that stream waits if a receiver cannot keep up."""

    __slots__ = ("stream",)

    def __init__(self) -> None:
        self.stream: Stream | None = None


class Stream(asyncio.Protocol):
    """Base of both kinds of streams.

    ``send`` costs next to nothing and never waits; everything sent within one turn of the event
    loop leaves in one write.  A receiver with more than ``limits.backlog`` bytes waiting stops its
    senders from being read, and is cut when that lasts.
    """

    #: Namespace of the stanzas.
    content: str
    domain: str

    def __init__(self, limits: Limits, turn: Turn) -> None:
        self._limits = limits
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.slicer = self._fresh_slicer()
        self._opened = False
        self.id = ""
        self.lang = ""
        self.peer = ""
        #: When bytes last came, on the loop's clock.
        self.heard = self._loop.time()
        # Writing
        self._out: deque[bytes] = deque()
        self.waiting = 0
        self._flushing = False
        self._blocked = False
        #: Whether nothing more is queued, because the stream is ending.
        self._deaf = False
        # Back-pressure: those who wait for us, those we wait for.
        self._held: set[Stream] = set()
        self._holders: set[object] = set()
        self._slow: asyncio.TimerHandle | None = None
        # TLS
        self._tls: ssl.SSLObject | None = None
        self._handshaking = False
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        # The end
        self.ended = False
        self._leave: asyncio.TimerHandle | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()

    # What the two kinds of streams add

    def size_limits(self) -> tuple[int, int]:
        """Give the largest size in bytes and the depth of the elements that are taken now."""
        return self._limits.login_bytes, self._limits.login_depth

    def before_header(self, header: Header) -> None:
        """Take what our own header depends on."""

    def on_header(self, header: Header) -> None:
        """Check the stream's header and say what comes next; may raise StreamError."""
        raise NotImplementedError

    def on_element(self, element: Element) -> None:
        """Work on one element; may raise StreamError."""
        raise NotImplementedError

    def on_gone(self) -> None:
        """Take the stream out of all tables; called once, before anything is closed."""
        raise NotImplementedError

    # Reading

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the new connection."""
        # uvloop's transports are not derived from asyncio's.
        self._transport = transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        self.peer = f"{name[0]}:{name[1]}" if name else ""
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the socket."""
        self.heard = self._loop.time()
        if self.ended:
            return
        if self._tls is None:
            self._parse(data)
        else:
            self._incoming.write(data)
            self._decrypt(self._tls)
        if len(data) >= _SHARE and not self.ended:
            # uvloop would go on reading while there is something to read.
            self.hold(self._loop)
            self._loop.call_soon(self.unhold, self._loop)

    def _decrypt(self, tls: ssl.SSLObject) -> None:
        try:
            if self._handshaking:
                tls.do_handshake()
                self._handshaking = False
            # Bytes that came while we are held stay in the buffer; reading from the socket has
            # stopped, so there are few.
            while (self._incoming.pending or tls.pending()) and not self._holders:
                data = tls.read(65536)
                if not data:
                    self.end()
                    return
                self._parse(data)
                if self.ended:
                    return
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.end()
        except ssl.SSLError as error:
            log.info("tls_failed", peer=self.peer, error=error.reason)
            self._flush_tls()
            self.abort()
            return
        self._flush_tls()

    def _flush_tls(self) -> None:
        if self._outgoing.pending and self._transport is not None:
            self._transport.write(self._outgoing.read())

    def _parse(self, data: bytes) -> None:
        slicer = self.slicer
        turn = self._turn
        turn.stream = self
        try:
            for item in slicer.feed(data):
                if isinstance(item, Element):
                    self.on_element(item)
                elif isinstance(item, Header):
                    self._open(item)
                elif item is END:
                    self.end()
                elif isinstance(item, StreamError):
                    raise item
                if self.ended or self.slicer is not slicer:
                    # What came behind an element that begins a new stream was not meant for it:
                    # before TLS somebody else may have put it there (CVE-2011-0411).
                    return
        except StreamError as error:
            self.end(error)
        finally:
            turn.stream = None

    def _fresh_slicer(self) -> Slicer:
        size, depth = self.size_limits()
        return Slicer(self.content, size, depth, self._limits)

    def restart(self) -> None:
        """Expect a new stream header, as after TLS and after a login."""
        self.slicer = self._fresh_slicer()
        self._opened = False

    def start_tls(self, context: ssl.SSLContext, goahead: bytes) -> None:
        """Write the go-ahead in clear and take TLS from then on."""
        self.send(goahead)
        self._flush(force=True)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._handshaking = True
        self.restart()

    @property
    def encrypted(self) -> bool:
        """Whether the stream runs inside TLS."""
        return self._tls is not None

    def _open(self, header: Header) -> None:
        # RFC 5646, 4.4.1: none that is in use is longer; it goes into every stanza.
        self.lang = header.attributes.get("xml:lang", "")[:35]
        self.before_header(header)
        self._send_header()
        if header.content not in (self.content, STREAMS, ""):
            raise StreamError("invalid-namespace", f"this is for {self.content}")
        self.on_header(header)

    def _send_header(self) -> None:
        self._opened = True
        self.id = secrets.token_hex(12)
        version = " version='1.0' xml:lang='en'" if self.content == "jabber:client" else ""
        self.send(
            (
                f"<?xml version='1.0'?><stream:stream xmlns='{self.content}'"
                f" xmlns:stream='{STREAMS}' from='{escape(self.domain)}' id='{self.id}'{version}>"
            ).encode()
        )

    # Writing

    def send(self, data: bytes) -> None:
        """Queue bytes; they leave within this turn of the event loop."""
        if self._deaf:
            return
        self._out.append(data)
        self.waiting += len(data)
        if not self._flushing and not self._blocked:
            self._flushing = True
            self._loop.call_soon(self._flush)
        if self.waiting > self._limits.backlog:
            self._overfull()

    def _flush(self, force: bool = False) -> None:
        self._flushing = False
        transport = self._transport
        if transport is None or self._handshaking:
            return
        out = self._out
        while out and (force or not self._blocked):
            if self.waiting <= _CHUNK:
                data = b"".join(out)
                out.clear()
                self.waiting = 0
            else:
                data = out.popleft()
                while out and len(data) < _CHUNK // 8:
                    data += out.popleft()
                self.waiting -= len(data)
            if self._tls is None:
                transport.write(data)
            else:
                self._tls.write(data)
                transport.write(self._outgoing.read())
        if self._slow is not None and self.waiting <= self._limits.backlog // 2:
            self._release()

    def pause_writing(self) -> None:
        """Stop handing bytes to the transport: the socket is full."""
        self._blocked = True

    def resume_writing(self) -> None:
        """Go on."""
        self._blocked = False
        self._flush()

    # Back-pressure

    def _overfull(self) -> None:
        if self.waiting > self._limits.backlog_hard:
            # Not here and now: the end of a stream is news, which may be too much for the next.
            self._deaf = True
            self._loop.call_soon(self._too_slow)
            return
        if self._slow is None:
            self._slow = self._loop.call_later(self._limits.slow_time, self._judge)
        sender = self._turn.stream
        if sender is not None and sender not in self._held and not sender.ended:
            self._held.add(sender)
            sender.hold(self)

    def _judge(self) -> None:
        if self.waiting > self._limits.backlog:
            self._too_slow()
        else:
            self._release()

    def _too_slow(self) -> None:
        log.warning("slow_reader_cut", peer=self.peer, waiting=self.waiting)
        self._out.clear()
        self.waiting = 0
        self.end(StreamError("policy-violation", "reads too slowly"))

    def _release(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None
        held, self._held = self._held, set()
        for sender in held:
            sender.unhold(self)

    def hold(self, holder: object) -> None:
        """Stop reading until all who hold us let go."""
        if not self._holders and self._transport is not None:
            self._transport.pause_reading()
        self._holders.add(holder)

    def unhold(self, holder: object) -> None:
        """Let go; does nothing if the holder does not hold us."""
        if holder not in self._holders:
            return
        self._holders.discard(holder)
        if not self._holders and self._transport is not None:
            if not self._transport.is_closing():
                self._transport.resume_reading()
            self._loop.call_soon(self._catch_up)

    def _catch_up(self) -> None:
        if self._tls is not None and not self._holders and not self.ended:
            self._decrypt(self._tls)

    # The end

    def end(self, error: StreamError | None = None) -> None:
        """End the stream, with an error if there is one.  May be called again."""
        if self.ended:
            return
        if error is not None:
            log.info("stream_refused", peer=self.peer, condition=error.condition, why=error.text)
        self._gone()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if error is not None:
            self._deaf = False
            if not self._opened:
                # RFC 6120, 4.9.1.2: a header is sent even if the stream is refused at once.
                self._send_header()
            self._out.append(_error(error))
        if self._opened:
            self._out.append(b"</stream:stream>")
        self._deaf = True
        self.waiting = sum(map(len, self._out))
        self._flush(force=True)
        if self._tls is not None:
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                pass  # It has written our close_notify; the peer's is not waited for.
            self._flush_tls()
        # Not close(): with bytes unread in the kernel that would send RST, which can overtake the
        # error.  So only our half is closed and the rest is read and dropped, for a while.
        transport.resume_reading()
        transport.write_eof()
        self._leave = self._loop.call_later(self._limits.linger, transport.abort)

    def abort(self) -> None:
        """Cut the connection at once."""
        self._gone()
        if self._transport is not None:
            self._transport.abort()

    def eof_received(self) -> bool:
        """The peer has nothing more to say; answer with our end."""
        self.end()
        return False  # asyncio closes the transport once it is flushed

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._gone()
        if self._leave is not None:
            self._leave.cancel()
        self._transport = None
        self._out.clear()
        if not self.closed.done():
            self.closed.set_result(None)

    def _gone(self) -> None:
        if not self.ended:
            self.ended = self._deaf = True
            self.on_gone()
            self._release()
            self._holders.clear()


def _error(error: StreamError) -> bytes:
    text = f"<text xmlns='{STREAM_ERRORS}'>{escape(error.text)}</text>" if error.text else ""
    return (
        f"<stream:error><{error.condition} xmlns='{STREAM_ERRORS}'/>{text}</stream:error>"
    ).encode()
