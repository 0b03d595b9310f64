"""What aioxmpp 0.13.3, of 2022, needs to run beside the libraries of today, and nothing else.

Its way through TLS (aioopenssl over pyOpenSSL) is the part that has aged most:

- pyOpenSSL 26 has no ``X509.get_extension``, by which aioxmpp reads the names in a certificate, so
  that every TLS stream fails;
- Python 3.12 has no ``ssl.match_hostname``, by which it compares them: likewise;
- it trusts the authorities of the system besides the one that it is given;
- its socket has no ``TCP_NODELAY``, which costs 45 ms a round trip (measured), and nothing bounds
  what waits to be written, or tells.

:class:`Stream` mends all of that at once: it is aioxmpp's stream over asyncio's own transport and
Python's ``ssl``, with the same contexts as every client of ours.  The rest:

- a stream is never freed, because its signals hold it for ever (:meth:`Stream.end`);
- the parser may keep back the end of a stanza (:class:`_Parser`);
- the classes of stanzas refuse payloads that nobody registered (:class:`_Stanza`);
- the password goes out in clear, inside TLS, to a server that offers nothing else (:class:`Scram`);
- ``pytz`` is used and not declared: hence that is in the extra.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Generator, Sequence
from importlib import import_module
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder

#: Both are untyped.  Here they become ``Any``, which does not leave the two modules.
aioxmpp: Any = import_module("aioxmpp")
aiosasl: Any = import_module("aiosasl")

# What goes wrong is translated into our errors; on their own loggers it would be said twice.
for _library in (aioxmpp, aiosasl):
    logging.getLogger(_library.__name__).setLevel(logging.CRITICAL)

_CLIENT = "jabber:client"
_KINDS = ("iq", "message", "presence")

_State: Any = aioxmpp.protocol.State
_XMLStream: Any = aioxmpp.protocol.XMLStream
_Provider: Any = aioxmpp.security_layer.SASLProvider


class Stream(_XMLStream):  # type: ignore[misc]  # untyped
    """aioxmpp's stream over a transport of asyncio's; see the module.

    Args:
        domain: the server's, for which its certificate has to be.
        taken: told of every stanza.
        closing: told once of the end, with the error if it is one.
        silent: told when the server has said nothing for ``deadtime_soft_limit``.
        writable: set while the network takes what is written.
    """

    _transport: Any
    _parser: Any
    _monitor: Any

    def __init__(
        self,
        domain: str,
        taken: Callable[[Element], None],
        closing: Callable[[Exception | None], None],
        silent: Callable[[], None],
        writable: asyncio.Event,
    ) -> None:
        self._domain = domain
        self._closing = closing
        self._silent = silent
        self._writable = writable
        _XMLStream.__init__(self, to=domain)
        #: The first features that the server offers, or why it does not.
        self.greeting: asyncio.Future[Any] = self.features_future()
        for kind in _KINDS:
            self.stanza_parser.add_class(_Stanza(kind), taken)

    # Methods in place of aioxmpp's signals, which never let go of what they are connected to.

    def on_closing(self, reason: Exception | None) -> None:
        """Called by aioxmpp."""
        self._closing(reason)

    def on_deadtime_soft_limit_tripped(self) -> None:
        """Called by aioxmpp."""
        self._silent()

    async def starttls(
        self, ssl_context: ssl.SSLContext, post_handshake_callback: object = None
    ) -> None:
        """Go on inside TLS; what was said before counts for nothing.

        Raises:
            ssl.SSLError: the certificate is not signed by our authority, or not for the domain.
        """
        self._transport = await asyncio.get_running_loop().start_tls(
            self._transport, self, ssl_context, server_hostname=self._domain
        )
        self._reset_state()

    def _reset_state(self) -> None:
        _XMLStream._reset_state(self)
        self._parser = _Parser(self._parser)

    def pause_writing(self) -> None:
        """Called by asyncio."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Called by asyncio."""
        self._writable.set()

    def end(self) -> None:
        """Take it down at whichever point it is; may be called again."""
        for waiting in list(self._error_futures):
            # Nobody does any more, and asyncio would complain of errors that nobody took.
            waiting.cancel()
        if self.state is _State.READY:
            self.abort()
        elif self.transport is not None:
            self.transport.abort()
            # A stream whose handshake fails is not told, and its task would wait for ever.
            self.connection_lost(None)
        # A signal of the old one holds the stream, and the stream would hold it.
        self._monitor = aioxmpp.utils.AlivenessMonitor(asyncio.get_running_loop())


class _Parser:
    """Feeds expat so that a stanza comes with its last byte.

    2.6 and later put off an unfinished token until much more has come; on a socket that is a hang.
    ``flush`` undoes it where it exists.
    """

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._flush: Callable[[], None] = getattr(parser, "flush", lambda: None)

    def feed(self, data: bytes) -> None:
        self._parser.feed(data)
        self._flush()


class _Stanza:
    """Makes plain elements of a kind of stanza; aioxmpp's parser takes it for one of its classes."""

    def __init__(self, kind: str) -> None:
        self.TAG = (_CLIENT, kind)

    def parse_events(self, start: Sequence[Any], context: object) -> Generator[None, Any, Element]:
        builder = TreeBuilder()
        _start(builder, *start)
        depth = 1
        while depth:
            what, *event = yield
            if what == "text":
                builder.data(*event)
            elif what == "start":
                _start(builder, *event)
                depth += 1
            else:
                # It knows which one is open.
                builder.end("")
                depth -= 1
        return builder.close()


def _start(
    builder: TreeBuilder,
    namespace: str | None,
    name: str,
    attributes: dict[tuple[str | None, str], str],
) -> None:
    builder.start(
        _clark(namespace, name), {_clark(*key): value for key, value in attributes.items()}
    )


def _clark(namespace: str | None, name: str) -> str:
    return f"{{{namespace}}}{name}" if namespace else name


class Scram(_Provider):  # type: ignore[misc]  # untyped
    """Logs in by SCRAM or not at all, in one try."""

    def __init__(self, user: str, password: str) -> None:
        _Provider.__init__(self)
        self._credentials = (user, password)

    async def execute(self, client_jid: Any, features: Any, xmlstream: Any, transport: Any) -> bool:
        """Log in; false if the server offers no SCRAM that we know.

        Raises:
            aiosasl.SASLError: the server refuses us, or does not know the password either.
        """
        mechanism, token = self._find_supported(features, [aiosasl.SCRAM])
        if mechanism is None:
            return False
        exchange = aioxmpp.sasl.SASLXMPPInterface(xmlstream)
        return bool(await self._execute(exchange, mechanism(self._give), token))

    async def _give(self) -> tuple[str, str]:
        return self._credentials
