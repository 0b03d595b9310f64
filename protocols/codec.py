"""Events <-> JSON text <-> stanzas; the only file that knows tag names.

A stanza of ours has one child, ``<x xmlns='urn:spinal:1'>``, whose text is a JSON list of events.
Bytes go out from templates, because building and serialising elements costs more than everything
else (measured); what comes in has been parsed by an XMPP library and is read from its element.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from xml.etree.ElementTree import Element

from . import values
from .elements import attribute, text
from .errors import (
    BOUNCES,
    CONDITIONS,
    TYPES,
    LocalProtocolError,
    Problem,
    RemoteProtocolError,
)
from .events import EVENTS, Event
from .namespaces import ELEMENT, NS, TAG
from .readers import mapping
from .values import LIMITS, Dumps, Json, Limits, Loads, check

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
    #: XML of other namespaces that goes out with it: children of the stanza, in an error the
    #: application condition (RFC 6120, 8.3.2).  What comes in is not read into it.
    other: bytes = b""


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
        for name in event.free:
            if name in raw:
                check(raw[name], self.limits, at=name, depth=1)
        return values.write(raw, self._dumps)

    def write(self, events: Iterable[Event]) -> bytes:
        """Write the body of a stanza.

        Raises:
            LocalProtocolError: a value is not I-JSON, or the whole is larger than a stanza may be.
        """
        return self.join([self.write_event(event) for event in events])

    def join(self, written: Sequence[bytes]) -> bytes:
        """Make one body of events that were written before."""
        if len(written) > self.limits.events:
            raise LocalProtocolError(
                f"{len(written)} events do not fit into a stanza: send several", "too-large"
            )
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
        items: list[Json] = raw  # pyright: ignore[reportUnknownVariableType] - JSON items
        if len(items) > self.limits.events:
            raise RemoteProtocolError(f"more than {self.limits.events} events", "too-large")
        for item in items:
            members = mapping(item, "event")
            name: object = members.get("type")
            if type(name) is not str:
                raise RemoteProtocolError("an event must have a type", "malformed", "type")
            cls = EVENTS.get(name)
            if cls is not None:
                for free in cls.free:
                    if free in members:
                        check(members[free], self.limits, RemoteProtocolError, free, depth=1)
                found.append(cls.parse(members))
        return found

    # -- stanza <-> XML

    @staticmethod
    def encode(stanza: Stanza, sender: str = "") -> bytes:
        """Write a stanza as XML.  ``sender`` is for components, which stamp their own address."""
        start = f"<{stanza.kind}"
        if stanza.type:
            start += f" type='{attribute(stanza.type)}'"
        if stanza.to:
            start += f" to='{_address(stanza.to)}'"
        if sender:
            start += f" from='{_address(sender)}'"
        if stanza.id:
            start += f" id='{attribute(stanza.id)}'"
        inner = Codec.inner(stanza)
        if not inner:
            return (start + "/>").encode()
        return start.encode() + b">" + inner + f"</{stanza.kind}>".encode()

    @staticmethod
    def inner(stanza: Stanza) -> bytes:
        """Write what stands between a stanza's tags."""
        inner = b"" if stanza.body is None else _OPEN + stanza.body + _CLOSE
        if stanza.problem is not None:
            return inner + _error(stanza.problem, stanza.other)
        return inner + stanza.other if stanza.other else inner

    @staticmethod
    def body_of(inner: bytes) -> bytes | None:
        """Read the body from what stands between a stanza's tags, where no parser is needed.

        None where it is: the text was escaped, or there is more than our element.
        """
        if inner.startswith(_OPEN) and inner.endswith(_CLOSE) and b"&" not in inner:
            body = inner[len(_OPEN) : -len(_CLOSE)]
            return None if b"<" in body else body
        return None

    @staticmethod
    def decode(element: Element) -> Stanza:
        """Read a stanza from its element, of whichever stream namespace."""
        kind = element.tag.rpartition("}")[2]
        get = element.attrib.get
        stanza_type = get("type", "")
        body: bytes | None = None
        problem: Problem | None = None
        for child in element:
            if child.tag == TAG and body is None:
                body = (child.text or "").encode()
            elif stanza_type == "error" and child.tag.rpartition("}")[2] == "error":
                problem = _problem(child)
        if stanza_type == "error" and problem is None:
            problem = Problem("unreachable")
        return Stanza(
            kind, stanza_type, get("to", ""), get("from", ""), get("id", ""), body, problem
        )


_OPEN = f"<{ELEMENT} xmlns='{NS}'>".encode()
_CLOSE = f"</{ELEMENT}>".encode()


#: Addresses are few, and come again.
_address = lru_cache(maxsize=4096)(attribute)


def _error(problem: Problem, other: bytes) -> bytes:
    """RFC 6120, 8.3.2: type, condition, text, and our reason as the application condition."""
    # Both may be words that a peer chose, and a condition becomes the name of an element.
    meaning = problem.meaning
    kind = problem.type if problem.type in TYPES else meaning.type
    condition = problem.condition if problem.condition in CONDITIONS else meaning.condition
    return (
        (
            f"<error type='{kind}'>"
            f"<{condition} xmlns='{STANZA_ERRORS}'/>"
            f"<text xmlns='{STANZA_ERRORS}'>{text(problem.text)}</text>"
            f"<reason xmlns='{NS}'>{text(problem.reason)}</reason>"
        ).encode()
        + other
        + b"</error>"
    )


_OURS, _RFC = f"{{{NS}", f"{{{STANZA_ERRORS}"


def _problem(error: Element) -> Problem:
    reason = condition = text = ""
    for child in error:
        namespace, _, name = child.tag.rpartition("}")
        if namespace == _OURS and name == "reason":
            reason = (child.text or "")[:64]
        elif namespace == _RFC and name == "text":
            text = child.text or ""
        elif namespace == _RFC and name in CONDITIONS:
            condition = name
    if not reason:
        # A server made it: the stanza was not delivered, whatever the condition says.
        reason = BOUNCES.get(condition, "unreachable")
    kind = error.get("type", "")
    return Problem(reason, text, type=kind if kind in TYPES else "", condition=condition)
