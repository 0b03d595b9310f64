"""A second opinion: aioxmpp negotiates, reads and ends the stream of a client.

It keeps the whole contract, so a fault that shows with one library and not with the other is that
library's.  ``SPINAL_TRANSPORT=aioxmpp`` chooses it.  It needs the extra ``aioxmpp``, which there is
for Python 3.11 and 3.12, and there are no components in aioxmpp, so a dispatcher that is one stays
with slixmpp.

Of aioxmpp are the XML stream, STARTTLS, SASL and the parser; what had to be mended there is in
``aioxmpp_repairs.py``.  Its ``Client``, which resumes a broken stream (XEP-0198), and its objects for
stanzas are passed by: a stanza goes from its parser to the codec, and leaves as bytes.  A round trip
of an IQ costs 1.5 times the CPU that it costs over slixmpp, and twice with 64 under way (measured at
both ends): aioxmpp parses in Python.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from datetime import timedelta
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import structlog

from spinal.protocols import Codec, Stanza
from spinal.protocols import address as addresses

from ..connection import NOT_UNDERSTOOD
from ..errors import AddressTaken, BusError, CertificateRefused, LoginRefused
from .aioxmpp_repairs import Scram, Stream, aiosasl, aioxmpp
from .streams import HIGH_WATER, LOGIN_TIMEOUT, AccountConnection
from .trust import trusting

errors, nonza, protocol = aioxmpp.errors, aioxmpp.nonza, aioxmpp.protocol

log = structlog.get_logger()

#: Seconds of silence after which the server is asked for a word, and after which it is given up.
IDLE, DEAD = timedelta(seconds=300), timedelta(seconds=360)

_PING = b"<iq type='get' id='ping'><ping xmlns='urn:xmpp:ping'/></iq>"  # XEP-0199

_BIND = "{urn:ietf:params:xml:ns:xmpp-bind}"  # RFC 6120, 7


class ClientConnection(AccountConnection):
    """An account, logged in by aioxmpp; see :class:`AccountConnection`."""

    #: The server's answer to our wish for an address.
    _bound: asyncio.Future[Element]

    # -- one stream

    async def _begin(self, ended: asyncio.Future[Exception | str]) -> str:
        context = trusting(self._ca)

        def closing(reason: Exception | None) -> None:
            if not ended.done():
                taken = reason is not None and _is_conflict(reason)
                ended.set_result(self._taken() if taken else str(reason or "stream closed"))

        stream = self._stream = Stream(
            addresses.domain(self._login), self._came, closing, self._ping, self.writable
        )
        try:
            await self._greeted(stream)
            async with asyncio.timeout(LOGIN_TIMEOUT):
                await self._negotiate(stream, context)
                address = await self._bind(ended)
        except BaseException as exc:
            stream.end()
            if isinstance(exc, BusError) or not isinstance(exc, Exception):
                raise
            raise self._error(exc) from exc
        stream.transport.set_write_buffer_limits(high=HIGH_WATER)
        stream.deadtime_soft_limit, stream.deadtime_hard_limit = IDLE, DEAD
        return address

    async def _greeted(self, stream: Stream) -> None:
        """Connect, and wait for what the server says first."""
        loop = asyncio.get_running_loop()
        connecting, greeting = self._patience()
        try:
            async with asyncio.timeout(greeting):
                async with asyncio.timeout(connecting):
                    await loop.create_connection(lambda: stream, self._host, self._port)
                await asyncio.wait([stream.greeting])
        except OSError as exc:
            raise BusError(
                f"nobody answers at {self._where} ({str(exc) or 'silence'}): "
                f"is `spinal up` running?"
            ) from exc

    async def _negotiate(self, stream: Stream, context: ssl.SSLContext) -> None:
        """STARTTLS, whether it is offered or not, then SCRAM."""
        await stream.greeting
        said = await protocol.send_and_wait_for(
            stream, [nonza.StartTLS()], [nonza.StartTLSProceed, nonza.StartTLSFailure]
        )
        if not isinstance(said, nonza.StartTLSProceed):
            raise BusError(f"{self._where} refuses TLS, without which we do not log in")
        await stream.starttls(context)
        features = await protocol.reset_stream_and_get_features(stream)
        scram = Scram(addresses.local(self._login), self._password)
        await aioxmpp.security_layer.negotiate_sasl(
            stream.transport, stream, [scram], None, None, features
        )

    async def _bind(self, ended: asyncio.Future[Exception | str]) -> str:
        """Take the address that we had before or want, or the one that the server gives."""
        wish = Element(f"{_BIND}bind")
        if resource := addresses.resource(self._address):
            SubElement(wish, f"{_BIND}resource").text = resource
        self._bound = asyncio.get_running_loop().create_future()
        self._put(b"<iq type='set' id='bind'>" + tostring(wish) + b"</iq>")
        either: list[asyncio.Future[Any]] = [self._bound, ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self._bound.done():
            raise BusError(f"{self._where} closed the stream: {ended.result()}")
        answer = self._bound.result()
        problem = Codec.decode(answer).problem
        if problem is not None and problem.condition == "conflict":
            raise self._taken()
        address = answer.findtext(f"{_BIND}bind/{_BIND}jid")
        if not address:
            why = "no address" if problem is None else problem.condition or problem.text
            raise BusError(f"{self._where} gives us no address ({why})")
        return addresses.check(address)

    def _taken(self) -> AddressTaken:
        who = self._address or addresses.bare(self._login)
        return AddressTaken(f"another program logged in as {who}")

    def _error(self, exc: Exception) -> BusError:
        """Say in our words why there is no stream."""
        who = addresses.bare(self._login)
        # A server's words may have several lines.
        why = " ".join(str(exc).split()) or "no reason"
        match exc:
            case _ if _is_conflict(exc):
                return self._taken()
            case ssl.SSLError():
                return CertificateRefused(
                    f"{self._where} shows a certificate that our authority does not "
                    f"vouch for ({_verify_text(exc)}): check SPINAL_CA or the home"
                )
            case errors.SASLUnavailable():
                return LoginRefused(f"{self._where} offers no SCRAM, and we send no password")
            case aiosasl.AuthenticationFailure() if exc.opaque_error != "temporary-auth-failure":
                return LoginRefused(f"{who} was refused: unknown account or wrong password")
            case errors.StreamNegotiationFailure():
                return LoginRefused(f"{who} cannot log in: {why}")
            case TimeoutError():
                return BusError(
                    f"{self._where} did not finish the login within {LOGIN_TIMEOUT:g} s"
                )
            case _:
                return BusError(f"{self._where} closed the stream: {why}")

    @property
    def _where(self) -> str:
        return f"{self._host}:{self._port}"

    def _alive(self) -> bool:
        stream = self._stream
        return stream.state is protocol.State.OPEN and not stream.transport.is_closing()

    def _put(self, data: bytes) -> None:
        self._stream.transport.write(data)

    async def _finish(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._stream.close_and_wait()

    async def _end(self) -> None:
        self._stream.end()

    def _ping(self) -> None:
        if self.connected:
            self._write(_PING)

    # -- what comes

    def _came(self, xml: Element) -> None:
        try:
            if not self.take(xml):
                self._others(xml)
        except Exception:
            # Out of here it would end up in the parser and end the stream.
            log.exception("stanza_handler_failed", address=self.address_or_none)

    def _others(self, xml: Element) -> None:
        """Take what comes before the stream is ready: our address, and what came too early for us."""
        if not xml.tag.endswith("}iq"):
            return
        if xml.get("type") in ("get", "set"):
            # Whoever asks would wait for an answer that nobody gives.
            asker, id = xml.get("from", ""), xml.get("id", "")
            self._write(Codec.encode(Stanza("iq", "error", asker, id=id, problem=NOT_UNDERSTOOD)))
        elif xml.get("id") == "bind" and not self._bound.done():
            self._bound.set_result(xml)


def _is_conflict(exc: Exception) -> bool:
    """Whether another stream has our address (RFC 6120, 4.9.3.3)."""
    match exc:
        case errors.StreamError(condition=errors.StreamErrorCondition.CONFLICT):
            return True
        case _:
            return False


def _verify_text(error: ssl.SSLError) -> str:
    return getattr(error, "verify_message", "") or str(error)
