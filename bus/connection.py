"""The contract between the bus session and whatever moves its stanzas.

A connection is one address on the bus.  It logs in, keeps one stream, gets a new one when that
breaks, and moves stanzas; it knows nothing of calls.  Several transports keep this contract
(``transports/``), one suite of tests runs over all of them (``tests/contracts/``), and nothing
above knows which of them it has.
"""

from __future__ import annotations

from typing import Protocol
from xml.etree.ElementTree import Element

from spinal.protocols import Stanza

#: What the ids of our IQs begin with, so that a transport knows an answer to us at sight.  No
#: library's own ids do: they are hexadecimal.
ID_PREFIX = "x."


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

    async def close(self) -> None:
        """Send unavailable presence, end the stream and wait for it; may be called again."""
        ...
