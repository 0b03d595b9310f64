"""An agent for each check that is wrong in one thing, and so fails that check and no other.

Most of them are wrong in a way that agents are.  Where that would break what other checks look at
as well, the agent is wrong only with the calls of its check, whose ids begin with its number.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Final

from spinal.protocols import Codec, ProtocolError, Stanza

from .stage import Event, InProcess, Lie, Shelf, write

#: What is wrong beside what is said, where it is not in the words.
Prepare = Callable[[InProcess], None]


class _Of(Lie):
    """Is wrong with the calls of one check."""

    def __init__(self, number: str) -> None:
        self.number = number

    def mine(self, event: Event) -> bool:
        return str(event.get("id", "")).startswith(f"{self.number}-")


class Says(_Of):
    """Changes what is said of the calls of a check; none leaves it out."""

    def __init__(
        self, number: str, change: Callable[[Event], Event | None], type: str = ""
    ) -> None:
        super().__init__(number)
        self._change = change
        self._type = type

    def said(self, event: Event, stanza: Stanza) -> Event | None:
        if self.mine(event) and self._type in ("", event.get("type")):
            return self._change(event)
        return event


class Hears(_Of):
    """Takes the calls of a check for something else."""

    def __init__(self, number: str, change: Callable[[Event], Event | None]) -> None:
        super().__init__(number)
        self._change = change

    def heard(self, event: Event, stanza: Stanza) -> Event | None:
        return self._change(event) if self.mine(event) else event


class SaysAll(Lie):
    """Changes every event that is said."""

    def __init__(self, change: Callable[[Event], Event | None]) -> None:
        self._change = change

    def said(self, event: Event, stanza: Stanza) -> Event | None:
        return self._change(event)


class HearsAll(Lie):
    """Changes every event that is heard."""

    def __init__(self, change: Callable[[Event], Event | None]) -> None:
        self._change = change

    def heard(self, event: Event, stanza: Stanza) -> Event | None:
        return self._change(event)


class SaysStanzas(Lie):
    """Changes the stanzas that go; gives those that go in their place."""

    def __init__(self, change: Callable[[Stanza], list[Stanza]]) -> None:
        self._change = change

    def says(self, stanza: Stanza) -> None:
        for each in self._change(stanza):
            self.say(each)


class HearsText(Lie):
    """Changes the text of the stanzas that come; none leaves the stanza unanswered."""

    def __init__(self, change: Callable[[bytes], bytes | None]) -> None:
        self._change = change

    def hears(self, stanza: Stanza) -> None:
        if stanza.body is None:
            self.take(stanza)
        elif (changed := self._change(stanza.body)) is not None:
            self.take(replace(stanza, body=changed))


class Answers(Lie):
    """Answers some stanzas itself, with an empty result or with an error."""

    def __init__(self, when: Callable[[bytes], bool], answer: str = "result") -> None:
        self._when = when
        self._answer = answer

    def hears(self, stanza: Stanza) -> None:
        if stanza.kind == "iq" and stanza.type == "set" and self._when(stanza.body or b""):
            self.say(Stanza("iq", self._answer, stanza.sender, id=stanza.id))
        else:
            self.take(stanza)


class RunsAgain(_Of):
    """Does not know an id that it has seen, once or each time it comes again."""

    def __init__(self, number: str, sender: str = "") -> None:
        super().__init__(number)
        self._sender = sender
        self._seen: dict[str, int] = {}
        self._ids: dict[str, str] = {}

    def heard(self, event: Event, stanza: Stanza) -> Event | None:
        if event.get("type") != "op" or not self.mine(event):
            return event
        count = self._seen[event["id"]] = self._seen.get(event["id"], 0) + 1
        if count == 1 and not stanza.sender.endswith(self._sender or "-"):
            return event
        other = f"{event['id']}.{count}"
        self._ids[other] = event["id"]
        return event | {"id": other}

    def said(self, event: Event, stanza: Stanza) -> Event | None:
        return (
            event | {"id": self._ids.get(str(event.get("id")), event.get("id"))}
            if ("id" in event)
            else event
        )


class Attempts(_Of):
    """Takes every attempt for the first one."""

    def __init__(self, number: str) -> None:
        super().__init__(number)
        self._last = 1

    def heard(self, event: Event, stanza: Stanza) -> Event | None:
        if self.mine(event):
            self._last = event.get("attempt", 1)
            return event | {"attempt": 1}
        return event

    def said(self, event: Event, stanza: Stanza) -> Event | None:
        return event | {"attempt": self._last} if self.mine(event) else event


class Accounts(_Of):
    """Knows calls by their ids alone, whoever they are from."""

    def __init__(self, number: str) -> None:
        super().__init__(number)
        self._asked: dict[str, str] = {}

    def hears(self, stanza: Stanza) -> None:
        if stanza.sender.startswith("other@") and f'"{self.number}-'.encode() in (
            stanza.body or b""
        ):
            self._asked[stanza.id] = stanza.sender
            stanza = replace(stanza, sender="caller@memory.test/kit")
        self.take(stanza)

    def says(self, stanza: Stanza) -> None:
        self.say(replace(stanza, to=self._asked.pop(stanza.id, stanza.to)))


class OneByOne(_Of):
    """Begins a call when the one before has ended."""

    def __init__(self, number: str) -> None:
        super().__init__(number)
        self._waiting: list[Stanza] = []
        self._running = False

    def hears(self, stanza: Stanza) -> None:
        if f'"{self.number}-'.encode() not in (stanza.body or b""):
            self.take(stanza)
        elif self._running:
            self._waiting.append(stanza)
        else:
            self._running = True
            self.take(stanza)

    def said(self, event: Event, stanza: Stanza) -> Event | None:
        if event["type"] == "final" and self.mine(event):
            self._running = False
            if self._waiting:
                asyncio.get_running_loop().call_soon(self.hears, self._waiting.pop(0))
        return event


class Late(_Of):
    """Answers the stanzas of a check some seconds too late."""

    def __init__(self, number: str, seconds: float) -> None:
        super().__init__(number)
        self._seconds = seconds

    def says(self, stanza: Stanza) -> None:
        if stanza.type == "result" and f'"{self.number}-'.encode() in (stanza.body or b""):
            asyncio.get_running_loop().call_later(self._seconds, self.say, stanza)
        else:
            self.say(stanza)


class Once(Lie):
    """Says something that nobody asked for, when it is first asked for something."""

    def __init__(self, *events: Event) -> None:
        self._events = events
        self._done = False

    def says(self, stanza: Stanza) -> None:
        self.say(stanza)
        if stanza.kind == "iq" and not self._done:
            self._done = True
            self.say(Stanza("message", "headline", stanza.to, body=write(self._events)))


class PutOff(_Of):
    """Takes no more calls of a check after a message."""

    def __init__(self, number: str) -> None:
        super().__init__(number)
        self._disturbed = False

    def hears(self, stanza: Stanza) -> None:
        self._disturbed |= stanza.kind == "message"
        if not (self._disturbed and f'"{self.number}-'.encode() in (stanza.body or b"")):
            self.take(stanza)


class Unaware(Lie):
    """Does not see that a caller has gone."""

    def __init__(self, resource: str) -> None:
        self._resource = resource

    def hears(self, stanza: Stanza) -> None:
        if not (stanza.type == "unavailable" and stanza.sender.endswith(self._resource)):
            self.take(stanza)


class Nods(_Of):
    """Answers a cancel with this state, and does nothing, or does it some seconds later."""

    def __init__(self, number: str, state: str, later: float = inf) -> None:
        super().__init__(number)
        self._state = state
        self._later = later

    def hears(self, stanza: Stanza) -> None:
        body = stanza.body or b""
        if b'"cancel"' not in body or f'"{self.number}-'.encode() not in body:
            self.take(stanza)
            return
        (event,) = json.loads(body)
        said = {"type": "cancelled", "id": event["id"], "state": self._state}
        self.say(Stanza("iq", "result", stanza.sender, id=stanza.id, body=write([said])))
        if self._later < inf:
            asyncio.get_running_loop().call_later(self._later, self.take, stanza)


class TakesTheGoodOnes(_Of):
    """Takes the events of a stanza that can be read, although others cannot."""

    def hears(self, stanza: Stanza) -> None:
        self.take(stanza)
        if f'"{self.number}-'.encode() not in (stanza.body or b""):
            return
        good: list[Event] = []
        events: list[Event] = json.loads(stanza.body or b"[]")
        for event in events:
            try:
                Codec().read(write([event]))
                good.append(event)
            except ProtocolError:
                continue
        if len(good) < len(events):
            self.take(replace(stanza, id=f"{stanza.id}.good", body=write(good)))


def _swap(event: Event) -> Event:
    """Give the answer of the next call."""
    return event | {"value": "call 8"} if event.get("value") == "call 7" else event


def _words(event: Event, reason: str) -> Event:
    problem = event.get("problem")
    if problem and problem["reason"] == reason:
        return event | {"problem": problem | {"text": "something went wrong"}}
    return event


def _reason(event: Event, reason: str, other: str) -> Event:
    problem = event.get("problem")
    if problem and problem["reason"] == reason:
        return event | {"problem": {"reason": other}}
    return event


def _without(event: Event, *names: str) -> Event:
    return {name: value for name, value in event.items() if name not in names}


def _strip(event: Event) -> Event:
    value = event.get("value")
    return event | {"value": value.strip()} if isinstance(value, str) else event


def _no_json(body: bytes) -> bool:
    try:
        return not isinstance(json.loads(body), list)
    except RecursionError:
        return False
    except ValueError:
        return b'"op"' not in body


def _unknown(body: bytes) -> bool:
    return b'"shadow"' in body and b'"type":"shadow"' in body.replace(b" ", b"")


def _once(number: str) -> Callable[[Stanza], list[Stanza]]:
    seen: set[str] = set()

    def once(stanza: Stanza) -> list[Stanza]:
        said = set(re.findall(rf'"({number}-[^"]+)"', (stanza.body or b"").decode()))
        if stanza.type != "set" or not said:
            return [stanza]
        fresh = said - seen
        seen.update(fresh)
        return [stanza] if fresh else []

    return once


def _twice(when: Callable[[Stanza], bool]) -> Callable[[Stanza], list[Stanza]]:
    return lambda stanza: [stanza, stanza] if when(stanza) else [stanza]


def _advertises(stanza: Stanza) -> bool:
    return b'"advertisement"' in (stanza.body or b"")


def _as_message(stanza: Stanza) -> list[Stanza]:
    if stanza.kind == "presence" and _advertises(stanza):
        return [replace(stanza, body=None), replace(stanza, kind="message", type="headline")]
    return [stanza]


def _not_headline(stanza: Stanza) -> list[Stanza]:
    return [replace(stanza, type="normal")] if stanza.kind == "message" else [stanza]


def _apart(number: str) -> Callable[[Stanza], list[Stanza]]:
    """Answer the IQ at once with nothing, and say the final in an IQ of its own."""

    def change(stanza: Stanza) -> list[Stanza]:
        if stanza.type != "result" or f'"{number}-'.encode() not in (stanza.body or b""):
            return [stanza]
        return [replace(stanza, body=None), replace(stanza, type="set", id=f"{stanza.id}.own")]

    return change


def _understood(stanza: Stanza) -> list[Stanza]:
    """Answer what it does not understand as if it did."""
    strange = stanza.problem is not None and stanza.problem.condition == "service-unavailable"
    return [Stanza("iq", "result", stanza.to, id=stanza.id)] if strange else [stanza]


def _other(about: bytes, before: bytes, after: bytes) -> Callable[[Stanza], list[Stanza]]:
    """Change what it says in other namespaces."""
    return lambda stanza: [
        replace(stanza, other=stanza.other.replace(before, after))
        if about in stanza.other
        else stanza
    ]


def _first_info() -> Callable[[Stanza], list[Stanza]]:
    """Forget what it speaks when it is first asked."""
    told: list[Stanza] = []

    def change(stanza: Stanza) -> list[Stanza]:
        if told or b"disco#info" not in stanza.other:
            return [stanza]
        told.append(stanza)
        return [replace(stanza, other=stanza.other.replace(b"urn:spinal:1", b"urn:spinal:0"))]

    return change


def _completed(stanza: Stanza) -> list[Stanza]:
    """Call it completed when a form does not fit."""
    if b"bad-payload" not in stanza.other:
        return [stanza]
    done = b"<command xmlns='http://jabber.org/protocol/commands' status='completed'/>"
    return [Stanza("iq", "result", stanza.to, id=stanza.id, other=done)]


def _same_epoch(control: InProcess) -> None:
    control.epoch = lambda: 1000


def _kept(control: InProcess) -> None:
    control.kept = 30.0


def _leaves(control: InProcess) -> None:
    control.drains = False


def _left(event: Event) -> Event:
    return event | {"left": 60_000} if event.get("left") == 1000 else event


#: What is wrong, by the number of the check that has to fail.
LIES: Final[dict[str, Callable[[], Lie]]] = {
    "1.1": lambda: Says("1.1", lambda event: None),
    "1.2": lambda: SaysStanzas(
        _twice(lambda stanza: stanza.kind == "presence" and stanza.to.endswith("/greets"))
    ),
    "1.3": lambda: PutOff("1.3"),
    "2.1": lambda: SaysStanzas(_apart("2.1")),
    "2.2": lambda: SaysAll(_strip),
    "2.3": lambda: Answers(_unknown, "error"),
    "2.4": lambda: HearsText(lambda body: b"[]" if body.startswith(b" [ {") else body),
    "2.5": lambda: Hears("2.5", lambda event: event | {"args": event["args"] | {"seconds": 0}}),
    "2.6": lambda: SaysAll(lambda event: _words(event, "failed")),
    "2.7": lambda: SaysAll(lambda event: _words(event, "refused")),
    "2.8": lambda: Says("2.8", _swap),
    "2.9": lambda: OneByOne("2.9"),
    "2.10": lambda: SaysAll(
        lambda event: None if event.get("problem", {}).get("reason") == "busy" else event
    ),
    "2.11": lambda: HearsAll(_left),
    "2.12": lambda: Says("2.12", lambda event: None, "final"),
    "3.1": lambda: Says("3.1", lambda event: _reason(event, "unknown-op", "refused")),
    "3.2": lambda: Says("3.2", lambda event: _reason(event, "bad-arguments", "failed")),
    "3.3": lambda: HearsAll(
        lambda event: event | {"left": 1} if str(event.get("left")) == "0" else event
    ),
    "3.4": lambda: HearsAll(
        lambda event: _without(event, "must") if event.get("must") == ["shadow"] else event
    ),
    "3.5": lambda: HearsAll(
        lambda event: _without(event, "epoch") if str(event.get("epoch")) == "1" else event
    ),
    "3.6": lambda: Answers(_no_json),
    "3.7": lambda: TakesTheGoodOnes("3.7"),
    "3.8": lambda: HearsText(
        lambda body: (
            re.sub(rb"(?<=[:\[-])\d{16,}|1e400", b"9007199254740991", body)
            if b'"3.8-' in body
            else body
        )
    ),
    "3.9": lambda: HearsText(lambda body: body.replace(b"\\ud800", b"?")),
    "3.10": lambda: HearsText(
        lambda body: re.sub(rb"\[{40,}\]{40,}", b"[]", body) if b'"3.10-' in body else body
    ),
    "3.11": lambda: HearsText(lambda body: body if len(body) < 33_000 else None),
    "3.12": lambda: SaysStanzas(_understood),
    "4.1": lambda: RunsAgain("4.1"),
    "4.2": lambda: RunsAgain("4.2"),
    "4.3": lambda: Says("4.3", lambda event: event | {"problem": {"reason": "already-done"}}),
    "4.4": lambda: Attempts("4.4"),
    "4.5": lambda: Accounts("4.5"),
    "4.6": lambda: RunsAgain("4.6"),
    "4.7": lambda: RunsAgain("4.7", "/second"),
    "5.1": lambda: HearsText(
        lambda body: None if b'"5.1-' in body and b'"cancel"' in body else body
    ),
    "6.1": lambda: Nods("6.1", "cancelled", later=5.0),
    "6.2": lambda: SaysAll(
        lambda event: event | {"state": "unknown"} if event.get("state") == "late" else event
    ),
    "6.3": lambda: Nods("6.3", "unknown"),
    "6.4": lambda: Unaware("/vanishes"),
    "7.1": lambda: Late("7.1", 2.0),
    "7.2": lambda: SaysStanzas(_once("7.2")),
    "7.3": lambda: Says("7.3", lambda event: _reason(event, "already-done", "refused")),
    "7.4": lambda: SaysStanzas(
        lambda stanza: (
            []
            if stanza.to.endswith("/returns") and b'"final"' in (stanza.body or b"")
            else [stanza]
        )
    ),
    "8.1": lambda: Late("8.1", 2.0),
    "8.2": lambda: Says("8.2", lambda event: None if event.get("value") == "call 50" else event),
    "8.3": lambda: Hears("8.3", lambda event: _without(event, "also")),
    "9.1": lambda: Says("9.1", lambda event: event | {"value": event["value"][:-1]}),
    "10.1": lambda: Says(
        "10.1", lambda event: event | {"value": 0} if event["type"] == "data" else event
    ),
    "10.2": lambda: Hears("10.2", lambda event: event | {"window": 5}),
    "10.3": lambda: Hears("10.3", lambda event: event | {"window": 5}),
    "10.4": lambda: SaysAll(
        lambda event: _without(event, "seq") if event["type"] == "accepted" else event
    ),
    "10.5": lambda: SaysStanzas(_not_headline),
    "11.1": lambda: Says(
        "11.1", lambda event: event | {"value": {"blob": event["value"]["blob"] | {"size": 1}}}
    ),
    "11.2": Lie,
    "11.3": Lie,
    "11.4": Lie,
    "12.1": lambda: SaysStanzas(_as_message),
    "12.2": lambda: SaysAll(
        lambda event: (
            event | {"text": event["text"] + " "} if event.get("type") == "description" else event
        )
    ),
    "12.3": lambda: _AnyHash(),
    "12.4": lambda: SaysAll(
        lambda event: event | {"busy": 0} if event["type"] == "advertisement" else event
    ),
    "12.5": lambda: SaysStanzas(_twice(_advertises)),
    "13.1": lambda: SaysAll(
        lambda event: _without(event, "holds") if event["type"] == "advertisement" else event
    ),
    "16.1": lambda: SaysStanzas(_first_info()),
    "16.2": lambda: SaysStanzas(_other(b"disco#items", b"/conform/echo", b"/conform/ekko")),
    "16.3": lambda: SaysStanzas(_other(b"urn:spinal:1#", b"'client'", b"'server'")),
    "16.4": lambda: SaysStanzas(_other(b"completed", b"ababab", b"bababa")),
    "16.5": lambda: SaysStanzas(_completed),
    "14.1": Lie,
    "14.2": Lie,
    "14.3": Lie,
    "15.1": lambda: Once({"type": "progress", "done": 1}),
    "15.2": lambda: Once({"type": "log", "id": "somebody-elses", "text": "psst"}),
    "15.3": lambda: Says("15.3", lambda event: None),
}

#: What is wrong with more than its words.
CARELESS: Final[dict[str, Callable[[], Shelf]]] = {
    "11.2": lambda: Shelf(checks_hash=False),
    "11.3": lambda: Shelf(checks_size=False),
    "11.4": lambda: Shelf(any_url=True),
}
PREPARED: Final[dict[str, Prepare]] = {"14.1": _kept, "14.2": _same_epoch, "14.3": _leaves}


class _AnyHash(Lie):
    """Gives its description whatever it is asked for."""

    def __init__(self) -> None:
        self._hash = ""

    def heard(self, event: Event, stanza: Stanza) -> Event | None:
        return event | {"hash": self._hash} if event.get("type") == "describe" else event

    def said(self, event: Event, stanza: Stanza) -> Event | None:
        if event["type"] == "advertisement":
            self._hash = event["hash"]
        return event
