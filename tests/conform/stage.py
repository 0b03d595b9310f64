"""The kit and an agent on a memory bus, and an agent that lies."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from xml.etree.ElementTree import Element, fromstring

from spinal.agents.life import Life
from spinal.agents.runner import load_file
from spinal.bus.errors import BlobError
from spinal.conform import Outcome, Report, Seat, Trial, Verdict, reference, run
from spinal.conform.seat import escaped
from spinal.protocols import BlobRef, Codec, Stanza
from spinal.testing import MemoryBus, MemoryConnection

Event = dict[str, Any]

AGENT: Final = "liar@memory.test/agent"


class Lie:
    """What an agent does wrong; this one does everything right.

    The hooks get single events where they can, and else the stanza.  ``say`` and ``take`` pass on
    what has been changed, later if need be.
    """

    say: Callable[[Stanza], None]
    take: Callable[[Stanza], None]

    def hears(self, stanza: Stanza) -> None:
        """A stanza comes."""
        self.take(_each(stanza, lambda event: self.heard(event, stanza)))

    def says(self, stanza: Stanza) -> None:
        """A stanza goes."""
        changed = _each(stanza, lambda event: self.said(event, stanza))
        # One that says nothing any more is not sent, except where the body was empty before.
        if changed.body is not None or stanza.body is None:
            self.say(changed)

    def heard(self, event: Event, stanza: Stanza) -> Event | None:
        return event

    def said(self, event: Event, stanza: Stanza) -> Event | None:
        return event


def _each(stanza: Stanza, change: Callable[[Event], Event | None]) -> Stanza:
    try:
        events: list[Event] = json.loads(stanza.body or b"")
    except (ValueError, RecursionError):
        return stanza
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):  # pyright: ignore[reportUnnecessaryIsInstance]
        return stanza
    changed = [after for event in events if (after := change(event)) is not None]
    if changed == events:
        return stanza
    return replace(stanza, body=write(changed) if changed else None)


def write(events: Sequence[Event]) -> bytes:
    text = json.dumps(events)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").encode()


class Liar(MemoryConnection):
    """The connection of an agent whose every word goes through a lie."""

    def __init__(self, bus: MemoryBus, address: str, lie: Lie) -> None:
        super().__init__(bus, address)
        self._lie = lie
        lie.say = super().send
        lie.take = self._believe

    def send(self, stanza: Stanza) -> None:
        self._lie.says(stanza)

    def deliver(self, element: Element) -> None:
        stanza = Codec.decode(element)
        if stanza.kind == "iq" and stanza.body is None:
            super().deliver(element)
        else:
            self._lie.hears(stanza)

    def _believe(self, stanza: Stanza) -> None:
        if stanza.body is not None:
            # It was read out of XML, and goes into it again.
            stanza = replace(stanza, body=escaped(stanza.body.decode()).encode())
        super().deliver(fromstring(Codec.encode(stanza, stanza.sender)))


class Shelf:
    """A store of blobs in memory that looks at what it is told, or does not."""

    def __init__(
        self, *, checks_hash: bool = True, checks_size: bool = True, any_url: bool = False
    ):
        self._kept: dict[str, bytes] = {}
        self._checks_hash = checks_hash
        self._checks_size = checks_size
        self._any_url = any_url

    def sharing(self, other: Shelf) -> Shelf:
        """Have the bytes of another one."""
        self._kept = other._kept
        return self

    async def upload(self, source: bytes | Path, media_type: str) -> BlobRef:
        data = source if isinstance(source, bytes) else source.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        url = f"https://shelf.test/{sha256}"
        self._kept[url] = data
        return BlobRef(url, sha256, len(data), media_type)

    async def fetch(self, ref: BlobRef) -> bytes:
        data = self._kept.get(ref.url)
        if data is None:
            if self._any_url:
                return b"x"
            raise BlobError("not from there")
        if self._checks_size and len(data) != ref.size:
            raise BlobError("another size")
        if self._checks_hash and hashlib.sha256(data).hexdigest() != ref.sha256:
            raise BlobError("another hash")
        return data

    async def fetch_to(self, ref: BlobRef, path: Path) -> None:
        path.write_bytes(await self.fetch(ref))


class InProcess:
    """Begins and ends the lives of the agent on the bus."""

    def __init__(self, bus: MemoryBus, lie: Lie, dispatchers: Sequence[str], store: Shelf) -> None:
        self._bus = bus
        self._lie = lie
        self._dispatchers = dispatchers
        self._store = store
        self._epochs = itertools.count(1000)
        self._life: asyncio.Task[int] | None = None
        self._asked_to_end = asyncio.Event()
        #: Seconds for which the server keeps the stream of a dead agent.
        self.kept = 0.0
        #: The number of a life; by default one more than the last.
        self.epoch: Callable[[], int] = lambda: next(self._epochs)
        self.drains = True

    async def start(self) -> None:
        await self.kill()
        self._asked_to_end = asyncio.Event()
        ready = asyncio.Event()
        self._life = asyncio.create_task(self._live(ready))
        await ready.wait()

    async def _live(self, ready: asyncio.Event) -> int:
        agent = load_file(Path(reference.__file__))
        connection = Liar(self._bus, AGENT, self._lie)
        life = Life(
            agent,
            connection,
            dispatchers=self._dispatchers,
            store=self._store,
            epoch=self.epoch(),
        )
        async with life:
            ready.set()
            await self._asked_to_end.wait()
            if self.drains:
                await life.drain()
        return 0

    async def kill(self) -> None:
        if self._life is None:
            return
        if self.kept:
            self._bus.hang(AGENT)
            asyncio.get_running_loop().call_later(self.kept, self._bus.kill, AGENT)
            self._life = None
            return
        self._bus.kill(AGENT)
        self._life.cancel()
        await asyncio.wait([self._life])
        self._life = None

    async def stop(self) -> None:
        self._asked_to_end.set()

    async def ended(self, within: float) -> int:
        assert self._life is not None
        async with asyncio.timeout(within):
            return await asyncio.shield(self._life)

    def said(self) -> str:
        return ""


@asynccontextmanager
async def stage(
    lie: Lie | None = None, store: Shelf | None = None
) -> AsyncGenerator[tuple[Trial, InProcess]]:
    """A run against the reference agent, which may lie."""
    bus = MemoryBus()

    @asynccontextmanager
    async def sit(who: str, resource: str) -> AsyncGenerator[Seat]:
        async with Seat(bus.connection(f"{who}@memory.test/{resource}")) as seat:
            yield seat

    shelf = Shelf()
    async with (
        sit("caller", "kit") as caller,
        sit("other", "kit") as other,
        sit("dispatcher", "kit") as dispatcher,
    ):
        told = [dispatcher.address]
        control = InProcess(bus, lie or Lie(), told, (store or Shelf()).sharing(shelf))
        trial = Trial(AGENT, caller, sit, other, dispatcher, control=control, store=shelf)
        try:
            yield trial, control
        finally:
            control.kept = 0.0
            await control.kill()


async def judged(lie: Lie | None = None) -> Report:
    """Run all checks."""
    async with stage(lie) as (trial, _):
        return await run(trial)


def failed(report: Report) -> list[str]:
    """The checks that failed, and those that did not run."""
    return [
        outcome.number
        for outcome in report.outcomes
        if outcome.verdict in (Verdict.FAILED, Verdict.NOT_RUN)
    ]


def of(report: Report, number: str) -> Outcome:
    return next(outcome for outcome in report.outcomes if outcome.number == number)
