"""Being there, being found, and what an agent says of itself."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable
from typing import Final

from spinal.protocols import Capabilities, ProtocolError, Stanza

from ..check import Chapter
from ..seat import SOON, Heard, Said, Seat, read
from ..trial import CORE, Trial
from ..verdict import NotOffered, Wrong

CHAPTER: Final = Chapter(1, "Being there")
ADVERTISING: Final = Chapter(12, "Advertising", needs="dispatcher")
HOLDS: Final = Chapter(13, "Holds", feature="holds", needs="dispatcher")
MANNERS: Final = Chapter(15, "Manners")

#: Seconds between two advertisements at the most: the heartbeat, its jitter, and some for a busy
#: machine.
HEARTBEAT: Final = 7.0


@CHAPTER.check("3", "it answers a call")
async def answers(trial: Trial) -> None:
    await trial.echoes()


@CHAPTER.check("7", "it directs presence with hello at a caller, once per stream", offer="presence")
async def hello(trial: Trial) -> None:
    async with trial.sit("caller", "greets") as seat:
        seat.hello(trial.agent, "caller")
        try:
            await seat.until(lambda: seat.news or None, 3.0)
        except TimeoutError:
            raise NotOffered("it directs no presence at callers") from None
        seat.hello(trial.agent, "caller")
        await trial.value(trial.start("echo", {"value": "one"}, seat=seat))
        said = [heard for _, heard in seat.news if heard.type == "hello"]
        if not said:
            raise Wrong("presence with hello", seat.news[0][1].stanza)
        if len(said) > 1:
            raise Wrong("one hello per stream", said[-1].stanza)
        if said[0].event.get("role") != "agent":
            raise Wrong("hello with the role agent", said[0].stanza)


@CHAPTER.check("2", "messages and presence that it cannot read do not disturb it")
async def undisturbed(trial: Trial) -> None:
    for kind, type in (("message", "chat"), ("message", "headline"), ("presence", "")):
        for body in (None, b"{", b'[{"type":"log"}]', b'[{"type":"shadow"}]'):
            strange = b"<body>hello</body><strange xmlns='urn:example:nothing'><a/></strange>"
            trial.caller.connection.send(Stanza(kind, type, trial.agent, body=body, other=strange))
    await trial.echoes()


@ADVERTISING.check("7", "it advertises to the dispatchers that its credentials name")
async def advertises(trial: Trial) -> None:
    last = await _advertised(trial)
    if last.stanza.kind != "presence" or last.stanza.type:
        raise Wrong("the advertisement in available presence", last.stanza)
    if trial.epoch is not None and last.event["epoch"] != trial.epoch:
        raise Wrong(f"the epoch of its hello, {trial.epoch}", last.stanza)


@ADVERTISING.check("8", "its description has the hash that it advertises")
async def description(trial: Trial) -> None:
    seat = _dispatcher(trial)
    last = await _advertised(trial)
    hash = str(last.event["hash"])
    answer = await seat.ask([{"type": "describe", "hash": hash}], trial.agent)
    said = next((each for each in read(answer) if each["type"] == "description"), None)
    if said is None or said.get("hash") != hash:
        raise Wrong(f"a description with the hash {hash}", answer)
    text = str(said["text"])
    if hashlib.sha256(text.encode()).hexdigest() != hash:
        raise Wrong("a text whose SHA-256 is the hash", answer)
    try:
        found = Capabilities.parse(text, hash)
    except ProtocolError as exc:
        raise Wrong(f"a description that can be read ({exc})", answer) from exc
    missing = [
        path
        for role, path in trial.ops.paths.items()
        if role in CORE and path not in found.operations
    ]
    if missing:
        raise Wrong(f"a description that lists {', '.join(missing)}", answer)


@ADVERTISING.check("8", "it has no description for a hash that is not its own")
async def no_description(trial: Trial) -> None:
    seat = _dispatcher(trial)
    answer = await seat.ask([{"type": "describe", "hash": "0" * 64}], trial.agent)
    if answer.type != "result" or answer.body is not None:
        raise Wrong("an empty IQ result", answer)


@ADVERTISING.check("7", "it says that it is busy while it works")
async def busy(trial: Trial) -> None:
    await _advertised(trial)
    await _idle(trial)
    exchange = trial.start("work", {"name": trial.id(), "seconds": 3})
    if await _told(trial, lambda event: bool(event.get("busy")), 3.0) is None:
        raise Wrong("an advertisement with busy above 0 while it works", _news(trial)[-1].stanza)
    await trial.value(exchange, 3 + SOON)
    await _idle(trial)


async def _idle(trial: Trial) -> None:
    """Wait until the last thing that it said of itself is that it is idle."""
    if not _news(trial)[-1].event.get("busy"):
        return
    if await _told(trial, lambda event: not event.get("busy"), HEARTBEAT) is None:
        raise Wrong("an advertisement with busy 0 when it is idle", _news(trial)[-1].stanza)


@ADVERTISING.check("7", "it advertises every 5 s, and at most once a second")
async def heartbeat(trial: Trial) -> None:
    seat = _dispatcher(trial)
    loop = asyncio.get_running_loop()

    def three() -> list[float] | None:
        times = [heard.at for heard in _news(trial)]
        return times if len(times) >= 3 else None

    try:
        times = await seat.until(three, 3 * HEARTBEAT)
    except TimeoutError:
        raise Wrong("an advertisement every 5 s", _news(trial)[-1].stanza) from None
    for earlier, later in zip(times, [*times[1:], loop.time()], strict=True):
        if later - earlier > HEARTBEAT:
            raise Wrong(
                f"an advertisement every 5 s, not after {later - earlier:.1f} s",
                _news(trial)[-1].stanza,
            )
    # Two that left a second apart may arrive somewhat closer.
    quick = sum(later - earlier < 0.8 for earlier, later in itertools.pairwise(times))
    if quick:
        raise Wrong(
            f"at most one advertisement in a second; {quick} came sooner", _news(trial)[-1].stanza
        )


@HOLDS.check(
    "6.6", "its advertisement holds what runs for the dispatcher, until it is acknowledged"
)
async def holds(trial: Trial) -> None:
    seat = _dispatcher(trial)
    exchange = trial.start("work", {"name": trial.id(), "seconds": 2}, seat=seat)
    mine = [exchange.id, 1]
    if await _told(trial, lambda event: mine in (event.get("holds") or []), HEARTBEAT) is None:
        raise Wrong(f"an advertisement that holds {mine}", _news(trial)[-1].stanza, exchange.asked)
    await trial.value(exchange, 2 + SOON)
    await seat.ask([{"type": "ack", "id": exchange.id}], trial.agent)
    if await _told(trial, lambda event: mine not in (event.get("holds") or []), HEARTBEAT) is None:
        raise Wrong(
            f"an advertisement that no longer holds {mine}, which was acknowledged",
            _news(trial)[-1].stanza,
            exchange.asked,
        )


@MANNERS.check("5", "everything that it said could be read")
async def readable(trial: Trial) -> None:
    for seat in trial.seats:
        for stanza, why in seat.unreadable:
            if stanza.sender == trial.agent:
                raise Wrong(f"events as section 5 has them ({why})", stanza)


@MANNERS.check("14", "it speaks of nobody else's calls")
async def strays(trial: Trial) -> None:
    for seat in trial.seats:
        if seat.strays:
            raise Wrong("events of our own calls only", seat.strays[0].stanza)


@MANNERS.check("7", "it still answers after all this")
async def alive(trial: Trial) -> None:
    await trial.echoes()


def _dispatcher(trial: Trial) -> Seat:
    assert trial.dispatcher is not None
    return trial.dispatcher


def _news(trial: Trial) -> list[Heard]:
    seat = _dispatcher(trial)
    return [
        heard
        for sender, heard in seat.news
        if sender == trial.agent and heard.type == "advertisement"
    ]


async def _advertised(trial: Trial) -> Heard:
    seat = _dispatcher(trial)
    try:
        return (await seat.until(lambda: _news(trial) or None, HEARTBEAT))[-1]
    except TimeoutError:
        raise Wrong("an advertisement") from None


async def _told(trial: Trial, holds: Callable[[Said], bool], within: float) -> Heard | None:
    """Wait for an advertisement from now on of which something holds."""
    seat = _dispatcher(trial)
    start = asyncio.get_running_loop().time()

    def found() -> Heard | None:
        return next((h for h in _news(trial) if h.at >= start and holds(h.event)), None)

    try:
        return await seat.until(found, within)
    except TimeoutError:
        return None
