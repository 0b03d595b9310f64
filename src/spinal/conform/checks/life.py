"""How it ends, and how it begins again; only where we may end its process."""

from __future__ import annotations

import asyncio
from typing import Final

from ..check import Chapter
from ..seat import SOON, Exchange, Seat
from ..trial import Control, Trial
from ..verdict import NotOffered, Wrong

CHAPTER: Final = Chapter(14, "Life", needs="control")

#: Seconds after which the death of its process has to be seen: a stream that the server keeps for
#: a resumption hides it for longer.
SEEN: Final = 3.0
#: Seconds for a new life to be there.
BACK: Final = 60.0


def _parts(trial: Trial) -> tuple[Control, Seat]:
    assert trial.control is not None and trial.dispatcher is not None
    return trial.control, trial.dispatcher


@CHAPTER.check("7", "when its process dies, its peers see it at once")
async def death(trial: Trial) -> None:
    control, seat = _parts(trial)
    await trial.echoes()
    await control.kill()

    def gone() -> bool | None:
        found = seat.presence.get(trial.agent)
        return True if found is not None and found[0].type == "unavailable" else None

    try:
        await seat.until(gone, SEEN)
    except TimeoutError:
        raise Wrong(
            f"unavailable presence within {SEEN:g} s of its death: "
            "no stream may be kept for resumption"
        ) from None
    finally:
        await begin(trial)


@CHAPTER.check("6.6", "a new life has a greater epoch, and refuses ops for the old one")
async def epochs(trial: Trial) -> None:
    control, _ = _parts(trial)
    before = trial.epoch
    if before is None:
        raise NotOffered("it has told no epoch")
    await control.kill()
    await begin(trial)
    if trial.epoch is None or trial.epoch <= before:
        raise Wrong(f"an epoch above {before}, not {trial.epoch}")
    await trial.refused(trial.start("echo", {"value": "one"}, epoch=before), "stale-epoch")
    await trial.value(trial.start("echo", {"value": "one"}, epoch=trial.epoch))


@CHAPTER.check("7", "asked to end, it takes nothing new, finishes what runs, and goes")
async def drains(trial: Trial) -> None:
    try:
        await _drained(trial)
    finally:
        await begin(trial)


async def _drained(trial: Trial) -> None:
    control, _ = _parts(trial)
    exchange = trial.start("work", {"name": trial.id(), "seconds": 2})
    await asyncio.sleep(0.5)
    await control.stop()
    await asyncio.sleep(0.5)
    late = trial.start("echo", {"value": "one"})
    if await _refusal(late) not in ("draining", "unreachable"):
        got = late.heard[-1].stanza if late.heard else late.answers.get(late.asked.id)
        raise Wrong("draining for what comes after SIGTERM", got, late.asked)
    if await trial.value(exchange, 2 + SOON) != 1:
        raise Wrong("the value 1 of what ran", exchange.heard[-1].stanza, exchange.asked)
    trial.settle(trial.caller)
    try:
        status = await control.ended(SOON)
    except TimeoutError:
        raise Wrong(f"its end within {SOON:g} s of the end of its work") from None
    if status != 0:
        raise Wrong(f"the exit status 0, not {status}")


async def _refusal(exchange: Exchange) -> str:
    """Give the reason of a refusal, or that of a stanza that came back."""
    try:
        return (await exchange.end()).reason
    except Wrong as exc:
        if exc.got is not None and exc.got.problem is not None:
            return exc.got.problem.reason
        raise


async def begin(trial: Trial) -> None:
    """Start the agent's process and wait until it advertises a life.

    Raises:
        Wrong: it did not in time.
    """
    control, seat = _parts(trial)
    heard = len(seat.news)
    await control.start()

    def there() -> tuple[str, int] | None:
        for sender, news in seat.news[heard:]:
            bare = sender.partition("/")[0]
            if news.type == "advertisement" and bare == trial.agent.partition("/")[0]:
                return sender, int(news.event["epoch"])
        return None

    living = asyncio.ensure_future(control.ended(BACK))
    coming = asyncio.ensure_future(seat.until(there, BACK))
    try:
        await asyncio.wait((living, coming), return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            raise Wrong(f"an advertisement; the agent ended: {control.said() or 'without a word'}")
        trial.agent, trial.epoch = await coming
    except TimeoutError:
        raise Wrong(
            f"an advertisement of a new life within {BACK:g} s; it said: {control.said() or '-'}"
        ) from None
    finally:
        living.cancel()
        coming.cancel()
        await asyncio.gather(living, coming, return_exceptions=True)
    trial.caller.hello(trial.agent, "caller")
