"""An address that is kept connected, one stream after the other: what is the same for every library.

No library's own reconnection is used, nor its resumption of streams (XEP-0198), under which a dead
agent would look alive for minutes: each stream is a new object of the library, and the pauses
between them are ours (``reconnect.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import structlog

from spinal.protocols import TAG, Codec, Message, Stanza
from spinal.protocols import address as addresses

from ..connection import ID_PREFIX, Connection, Listener, answer_other
from ..errors import AddressTaken, BusError, CertificateRefused, LoginRefused, NotConnected
from ..questions import Questions
from ..reconnect import Backoff

log = structlog.get_logger()

#: Seconds for a stream from the first words of the server to the bound address.
LOGIN_TIMEOUT = 20.0

#: Seconds that a server which had us before may be busy with others before it answers.
QUEUE_TIMEOUT = 60.0

#: Seconds that a connection to one node of several may take before the next one is tried.
NEXT_NODE = 5.0

#: What a reconnect does not mend, and for how many seconds it is doubted all the same: a server may
#: take our last stream, which broke, for one that lives; and one that was killed may have forgotten
#: the accounts that it had made last, until whoever started it anew has told it of them.
_FINAL: Mapping[type[BusError], float] = {
    AddressTaken: 60.0,
    LoginRefused: 15.0,
    CertificateRefused: 0.0,
}

#: Bytes of the stanzas of one turn of the event loop that are gathered before they leave: some dozens
#: of lone calls, so that the peer begins while we write the rest.
GATHERED = 4096

#: Bytes that may wait for the network before :meth:`Connection.drain` waits.
HIGH_WATER = 1024 * 1024


class StreamConnection(Connection):
    """The parts of a connection that do not depend on the library that logs in.

    Args:
        host, port: where the server listens.
        look_up: asked before each reconnect for host and port of the present nodes, because a home
            may have been started with others.
        further: host and port of the server's further nodes, if it is a cluster.  They are tried in
            turn when the one that we were at, or were to be at first, cannot be had.
    """

    #: Address stamped on what we send; servers do it for clients, components do it themselves.
    _stamp = ""

    def __init__(
        self,
        host: str,
        port: int,
        look_up: Callable[[], Sequence[tuple[str, int]] | None] = lambda: None,
        further: Sequence[tuple[str, int]] = (),
    ) -> None:
        #: Host and port of the node that has our stream, had it last, or is tried.
        self._host = host
        self._port = port
        #: Those of all nodes of the server, in turn.
        self._nodes: Sequence[tuple[str, int]] = ((host, port), *further)
        self._look_up = look_up
        self._address = ""
        self._listener: Listener | None = None
        #: The library's object, of whichever type that is.
        self._stream: Any = None
        self._ready = False
        self._task: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[Exception] | None = None
        self._questions = Questions(self)
        self._began = 0.0
        self._backoff = Backoff()
        self.writable = asyncio.Event()
        self.writable.set()
        #: What was written since the first stanza of this turn of the event loop, which has left.
        self._gathered: list[bytes] = []
        self._size = 0
        self._gathers = False

    # -- what a library does

    async def _begin(self, ended: asyncio.Future[Exception | str]) -> str:
        """Make ``self._stream``, log in, and give our address.

        ``ended`` is set when that stream ends: to an error to give up on, or to the reason.  Who
        raises has taken the stream down.  Raises what :meth:`Connection.open` does.
        """
        raise NotImplementedError

    def _alive(self) -> bool:
        """Whether bytes can be written to ``self._stream``."""
        raise NotImplementedError

    def _put(self, data: bytes) -> None:
        """Write bytes to ``self._stream``, which is alive."""
        raise NotImplementedError

    async def _finish(self) -> None:
        """End ``self._stream``, which is alive, in good order; a second is enough."""
        raise NotImplementedError

    async def _end(self) -> None:
        """Take ``self._stream`` down for good, with all that it started."""
        raise NotImplementedError

    # -- the contract

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
        # A library forgets its transport a moment before it tells us that the stream is lost.
        return self._ready and self._alive()

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
            except tuple(_FINAL):
                raise
            except BusError as exc:
                trouble = exc
        assert trouble is not None
        raise trouble

    def _patience(self) -> tuple[float | None, float]:
        """Seconds for a connection, if there is a bound, and for the first words of the server."""
        if len(self._nodes) > 1:
            return NEXT_NODE, LOGIN_TIMEOUT
        # Once we were in, a server that says nothing has others to let in before us.
        return None, LOGIN_TIMEOUT if self._task is None else QUEUE_TIMEOUT

    async def _log_in(self) -> asyncio.Future[Exception | str]:
        """Make one stream, and give what ends when it ends."""
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Exception | str] = loop.create_future()
        self._address = await self._begin(ended)
        self._began = loop.time()
        self.writable.set()
        self._ready = True
        self._listener.opened()
        return ended

    async def _keep(self, ended: asyncio.Future[Exception | str]) -> None:
        """Replace the stream whenever it breaks, until closed or refused."""
        assert self._listener is not None and self._failed is not None
        loop = asyncio.get_running_loop()
        while True:
            why = await ended
            self._ready = False
            self.writable.set()
            self._backoff.ended(loop.time() - self._began)
            await self._end()
            self._questions.end(f"the stream broke: {why}")
            self._listener.closed(str(why))
            if isinstance(why, Exception):
                self._failed.set_result(why)
                return
            doubted: dict[type[BusError], float] = {}
            while True:
                await asyncio.sleep(self._backoff.pause())
                self._nodes = self._look_up() or self._nodes
                try:
                    ended = await self._log_in_somewhere()
                    break
                except BusError as exc:
                    since = doubted.setdefault(type(exc), loop.time())
                    if loop.time() - since >= _FINAL.get(type(exc), inf):
                        self._failed.set_result(exc)
                        return
                    log.debug("reconnect_failed", address=self._address, problem=str(exc))

    async def close(self) -> None:
        """End the stream; see the contract."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        self._release()
        was_ready, self._ready = self._ready, False
        if self._stream is not None:
            if was_ready and self._alive():
                for stanza in self._farewell():
                    self._put(Codec.encode(stanza, self._stamp))
                await self._finish()
            await self._end()
            self._stream = None
        self._questions.end("the stream was closed")
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()

    def _farewell(self) -> list[Stanza]:
        """What is said last."""
        return [Stanza("presence", "unavailable")]

    def send(self, stanza: Stanza) -> None:
        """Write a stanza; see the contract."""
        if not self.connected:
            raise NotConnected("there is no stream to the server now")
        self._write(Codec.encode(stanza, self._stamp))

    def _write(self, data: bytes) -> None:
        """Write at once what is the first in this turn, and all that follows it together.

        Each write is a record of TLS and a call of the system, which cost more than the stanza.
        """
        if not self._gathers:
            self._gathers = True
            asyncio.get_running_loop().call_soon(self._turned)
            self._put(data)
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
        if gathered and self._stream is not None and self._alive():
            self._put(b"".join(gathered))

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
        """Take a parsed stanza if it is ours; false leaves it to the library."""
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
                message = Message.read(xml)
                if message is not None:
                    self._listener.said(message)
                return message is not None
        elif kind != "presence":
            return False
        self._listener.received(Codec.decode(xml))
        return True


class AccountConnection(StreamConnection):
    """An account of the server: SCRAM inside verified TLS.

    Args:
        address: ``user@domain`` or ``user@domain/resource``; without a resource the server
            chooses one, which is then kept over reconnects.
        password: the account's.
        host, port: where the server listens for clients.
        ca: certificate authority (PEM) to trust; the system's if none.
        look_up, further: see :class:`StreamConnection`.
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
        super().__init__(host, port, look_up, further)
        self._login = addresses.check(address)
        if addresses.resource(self._login):
            self._address = self._login
        self._password = password
        self._ca = ca
