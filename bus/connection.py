"""The contract between the bus session and whatever moves its stanzas.

A connection is one address on the bus.  It logs in, keeps one stream, gets a new one when that
breaks, and moves stanzas; it knows nothing of calls.  Several transports keep this contract
(``transports/``), one suite of tests runs over all of them (``tests/contracts/``), and nothing
above knows which of them it has.
"""

from __future__ import annotations

from typing import Protocol
from xml.etree.ElementTree import Element

from spinal.protocols import Message, Problem, Stanza, elements

#: What the ids of our IQs begin with, so that a transport knows an answer to us at sight.  No
#: library's own ids do: they are hexadecimal.
ID_PREFIX = "x."

#: The answers to a get or set that nobody understands, and to one without the child that it must
#: have (RFC 6120, 8.2.3).
NOT_UNDERSTOOD = Problem("unreachable", "nobody here understands that")
EMPTY = Problem("malformed", "an IQ get or set must hold an element")


class Listener(Protocol):
    """Who is told what a connection receives.  Called on the event loop; must not block."""

    def opened(self) -> None:
        """A new stream is ready: every presence sent before is forgotten by the server."""
        ...

    def closed(self, reason: str) -> None:
        """The stream is gone; stanzas that were not answered may or may not have arrived."""
        ...

    def received(self, stanza: Stanza) -> None:
        """A stanza came.

        Told are: IQs and messages that carry our element, IQ results and errors whose id begins
        with :data:`ID_PREFIX` (an empty result has no body), and every presence, with our element
        or without.
        """
        ...

    def asked(self, kind: str, sender: str, id: str, payload: Element) -> bool:
        """A get or set IQ of somebody else's namespace came.

        Whoever understands it answers it with :meth:`Connection.reply`, now or later.  False: it
        is not understood, and the transport answers ``service-unavailable`` (RFC 6120, 8.2.3).

        Args:
            kind: ``get`` or ``set``.
            sender: as stamped by the server, which may leave its own address out.
            id: of the IQ; any text.
            payload: the child of the IQ.
        """
        ...

    def said(self, message: Message) -> None:
        """Something was said to us in words: a message of type ``chat`` or ``normal`` with a body.

        Not told are errors, which nobody may answer, headlines, what is said in rooms, and copies of
        what was said elsewhere (XEP-0280).  A message that carries our element as well is told
        to :meth:`received` alone.
        """
        ...


class Connection(Protocol):
    """One address on the bus, kept connected while it is open."""

    @property
    def address(self) -> str:
        """Full address (a component's: its domain); constant once :meth:`open` has returned."""
        ...

    @property
    def connected(self) -> bool:
        """Whether a stream is ready now."""
        ...

    async def open(self, listener: Listener) -> None:
        """Log in and return once ``listener.opened`` was called for the first time.

        Afterwards the stream is replaced with full-jitter back-off whenever it breaks, until
        :meth:`close`.

        Raises:
            LoginRefused: wrong account or password.
            CertificateRefused: the server's certificate is not signed by our authority.
            BusError: nobody listens there, or it did not answer in time.

        Later, when a stream could not be replaced for one of the first two reasons or because
        another program took our address, :meth:`failed` ends with that error.
        """
        ...

    async def failed(self) -> Exception:
        """Return the error once the connection has given up for good; until then, wait."""
        ...

    def send(self, stanza: Stanza) -> None:
        """Write a stanza; it leaves in the order of the calls.

        Raises:
            NotConnected: there is no stream now; nothing was written.
        """
        ...

    async def drain(self) -> None:
        """Wait while more is buffered for the network than a slow reader may cost us."""
        ...

    async def ask(
        self, kind: str, to: str, payload: Element, timeout: float = 10.0
    ) -> Element | None:
        """Send an IQ (``get`` or ``set``) of somebody else's namespace and give the answer's child.

        Raises:
            Unreached: no answer in time, or the stream broke meanwhile.
            CallError: of the kind that the error answer means.
        """
        ...

    def reply(
        self,
        to: str,
        id: str,
        payload: Element | None = None,
        problem: Problem | None = None,
        more: Element | None = None,
    ) -> None:
        """Answer an IQ that :meth:`Listener.asked` was told of; nothing while disconnected.

        Args:
            to: who asked.
            id: of its IQ.
            payload: the child of the result; an empty result without.
            problem: makes the answer an error.
            more: what the error says in words of another namespace (RFC 6120, 8.3.2).
        """
        if self.connected:
            kind, said = ("result", payload) if problem is None else ("error", more)
            other = b"" if said is None else elements.write(said)
            self.send(Stanza("iq", kind, to, id=id, problem=problem, other=other))

    async def close(self) -> None:
        """Send unavailable presence, end the stream and wait for it; may be called again."""
        ...


def answer_other(connection: Connection, listener: Listener, iq: Element) -> None:
    """Have a get or set of somebody else's namespace answered, whoever understands it."""
    sender, id = iq.get("from", ""), iq.get("id", "")
    if not len(iq):
        connection.reply(sender, id, problem=EMPTY)
    elif not listener.asked(iq.get("type", ""), sender, id, iq[0]):
        connection.reply(sender, id, problem=NOT_UNDERSTOOD)
