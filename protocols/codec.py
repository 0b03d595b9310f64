"""Events <-> JSON text <-> stanzas; the only file that knows tag names.

A stanza of ours has one child, ``<x xmlns='urn:spinal:1'>``, whose text is a JSON list of events.
Bytes go out from templates, because building and serialising elements costs more than everything
else (measured); what comes in has been parsed by an XMPP library and is read from its element.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from . import values
from .errors import BOUNCES, LocalProtocolError, Problem, RemoteProtocolError
from .events import EVENTS, Event
from .namespaces import ELEMENT, NS, TAG
from .values import LIMITS, Dumps, Limits, Loads, check

#: RFC 6120, 8.3.
STANZA_ERRORS = "urn:ietf:params:xml:ns:xmpp-stanzas"


@dataclass(frozen=True, slots=True)
class Stanza:
    """A stanza as the bus sees it: addresses, kind, and our JSON text if it has any."""

    #: ``iq``, ``message`` or ``presence``.
    kind: str
    #: Its ``type`` attribute; empty where there is none (an available presence).
    type: str
    #: Receiver; empty for a broadcast presence.
    to: str = ""
    #: Sender, as stamped by the server; ignored when sending, except by components.
    sender: str = ""
    id: str = ""
    #: The JSON text inside our element.
    body: bytes | None = None
    #: For ``type='error'``: what went wrong, in our words.
    problem: Problem | None = None


class Codec:
    """Reads and writes bodies and stanzas with one pair of JSON functions and one set of limits."""

    def __init__(
        self,
        dumps: Dumps = values.dumps,
        loads: Loads = values.loads,
        limits: Limits = LIMITS,
    ) -> None:
        self._dumps = dumps
        self._loads = loads
        self.limits = limits

    # -- events <-> body

    def write_event(self, event: Event) -> bytes:
        """Write one event as JSON text.

        Raises:
            LocalProtocolError: a value in it is not I-JSON or above the limits.
        """
        raw = event.to_json()
        check(raw, self.limits)
        return values.write(raw, self._dumps)

    def write(self, events: Iterable[Event]) -> bytes:
        """Write the body of a stanza.

        Raises:
            LocalProtocolError: a value is not I-JSON, or the whole is larger than a stanza may be.
        """
        return self.join([self.write_event(event) for event in events])

    def join(self, written: Sequence[bytes]) -> bytes:
        """Make one body of events that were written before."""
        body = b"[" + b",".join(written) + b"]"
        if len(body) > self.limits.receive:
            raise LocalProtocolError(
                f"{len(body)} bytes do not fit into a stanza: send a blob", "too-large"
            )
        return body

    def read(self, body: bytes) -> list[Event]:
        """Read the events of a body; events of unknown type are left out.

        Raises:
            RemoteProtocolError: it is not a list of events, or one of them is wrong.  Then none is
                given, because an event that was half understood is worse than none.
        """
        raw = values.read(body, self.limits, self._loads)
        if not isinstance(raw, list):
            raise RemoteProtocolError("a body must be a list of events")
        found: list[Event] = []
        items: list[object] = raw  # pyright: ignore[reportUnknownVariableType]
        if len(items) > self.limits.events:
            raise RemoteProtocolError(f"more than {self.limits.events} events", "too-large")
        for item in items:
            check(item, self.limits, RemoteProtocolError)
            if not isinstance(item, dict):
                raise RemoteProtocolError("an event must be an object")
            cls = EVENTS.get(item.get("type"))  # type: ignore[arg-type]  # pyright: ignore
            if cls is not None:
                found.append(cls.parse(item))  # pyright: ignore[reportUnknownArgumentType]
        return found

    # -- stanza <-> XML

    @staticmethod
    def encode(stanza: Stanza, sender: str = "") -> bytes:
        """Write a stanza as XML.  ``sender`` is for components, which stamp their own address."""
        start = f"<{stanza.kind}"
        for name, value in (
            ("type", stanza.type),
            ("to", stanza.to),
            ("from", sender),
            ("id", stanza.id),
        ):
            if value:
                start += f" {name}='{_attribute(value)}'"
        if stanza.body is None and stanza.problem is None:
            return (start + "/>").encode()
        inner = b""
        if stanza.body is not None:
            inner = _OPEN + stanza.body + _CLOSE
        if stanza.problem is not None:
            inner += _error(stanza.problem)
        return start.encode() + b">" + inner + f"</{stanza.kind}>".encode()

    @staticmethod
    def decode(element: Element) -> Stanza:
        """Read a stanza from its element, of whichever stream namespace."""
        kind = element.tag.rpartition("}")[2]
        get = element.attrib.get
        body: bytes | None = None
        problem: Problem | None = None
        for child in element:
            if child.tag == TAG and body is None:
                body = (child.text or "").encode()
            elif child.tag.rpartition("}")[2] == "error":
                problem = _problem(child)
        stanza_type = get("type", "")
        if stanza_type == "error" and problem is None:
            problem = Problem("unreachable")
        return Stanza(
            kind, stanza_type, get("to", ""), get("from", ""), get("id", ""), body, problem
        )


_OPEN = f"<{ELEMENT} xmlns='{NS}'>".encode()
_CLOSE = f"</{ELEMENT}>".encode()


def _attribute(value: str) -> str:
    if value.isalnum():
        return value
    return (
        value.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace("'", "&#39;")
        .replace("\n", "&#10;")
        .replace("\t", "&#9;")
    )


def _text(value: str) -> str:
    cleaned = "".join(c if c >= " " and c not in "\ufffe\uffff" else " " for c in value)
    return (
        cleaned.encode("utf-8", "replace")
        .decode()
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )


def _error(problem: Problem) -> bytes:
    """RFC 6120, 8.3.2: type, condition, text, and our reason as the application condition."""
    return (
        f"<error type='{_attribute(problem.type)}'>"
        f"<{problem.condition} xmlns='{STANZA_ERRORS}'/>"
        f"<text xmlns='{STANZA_ERRORS}'>{_text(problem.text)}</text>"
        f"<reason xmlns='{NS}'>{_text(problem.reason)}</reason></error>"
    ).encode()


def _problem(error: Element) -> Problem:
    reason = condition = text = ""
    for child in error:
        namespace, _, name = child.tag[1:].partition("}")
        if namespace == NS and name == "reason":
            reason = (child.text or "")[:64]
        elif name == "text":
            text = (child.text or "")[:4096]
        elif not condition:
            condition = name
    if not reason:
        # A server made it: the stanza was not delivered, whatever the condition says.
        reason = BOUNCES.get(condition, "unreachable")
    return Problem(reason, text, type=error.get("type", ""), condition=condition)
