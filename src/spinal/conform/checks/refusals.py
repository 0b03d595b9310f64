"""What an agent does not do, and says so."""

from __future__ import annotations

import json
from typing import Final
from xml.etree.ElementTree import Element

from spinal.bus.errors import CallError
from spinal.protocols import LIMITS, Json, Stanza

from ..check import Chapter
from ..seat import read
from ..trial import Trial
from ..verdict import Wrong

CHAPTER: Final = Chapter(3, "Refusals")

#: Texts of a stanza that are no list of events, and why.
UNREADABLE: Final[tuple[tuple[str, str], ...]] = (
    ("no JSON", ""),
    ("no JSON", "{"),
    ("no JSON", "[{'type':'op'}]"),
    ("JSON with a comment", "[] // nothing"),
    ("no list", '{"type":"ack","id":"x"}'),
    ("an event that is no object", "[1]"),
    ("an event without a type", '[{"id":"x"}]'),
    ("an op without members", '[{"type":"op"}]'),
)

#: Members of an op that break section 5.
BROKEN: Final[tuple[tuple[str, dict[str, Json]], ...]] = (
    ("left is no number", {"left": "5000"}),
    ("left is negative", {"left": -1}),
    ("left is a fraction", {"left": 0.5}),
    ("left is a boolean", {"left": True}),
    ("left is missing", {"left": None}),
    ("id is a number", {"id": 7}),
    ("id is empty", {"id": ""}),
    ("id holds a space", {"id": "a b"}),
    ("id is longer than 128", {"id": "x" * 129}),
    ("attempt is 0", {"attempt": 0}),
    ("op is no path", {"op": "conform/echo"}),
    ("args is a list", {"args": []}),
    ("must is a string", {"must": "group"}),
)


@CHAPTER.check("9.1", "an operation that it does not offer is refused as unknown-op")
async def unknown_op(trial: Trial) -> None:
    for path in ("/conform/nothing", "/conform", "/conform/echo/more"):
        await trial.refused(trial.start("echo", op=path), "unknown-op")


@CHAPTER.check("8.1", "arguments that do not fit are refused as bad-arguments")
async def bad_arguments(trial: Trial) -> None:
    trial.need_page("repeat")
    wrong: tuple[dict[str, Json], ...] = (
        {},
        {"text": 5},
        {"text": None},
        {"text": "x" * 1001},
        {"text": "x", "times": 0},
        {"text": "x", "times": "2"},
        {"text": "x", "times": 1.5},
        {"text": "x", "times": True},
        {"text": "x", "loud": True},
    )
    for args in wrong:
        exchange = trial.start("repeat", args)
        end = await exchange.end()
        if end.type != "error" or end.reason != "bad-arguments":
            raise Wrong("error with the reason bad-arguments", end.stanza, exchange.asked)


@CHAPTER.check("6.4", "an op that has no time left is refused as expired")
async def expired(trial: Trial) -> None:
    await trial.refused(trial.start("echo", {"value": "one"}, left=0), "expired")


@CHAPTER.check("13", "an op that must be understood and is not is refused as not-understood")
async def must(trial: Trial) -> None:
    exchange = trial.start("echo", {"value": "one"}, must=["shadow"], shadow=True)
    await trial.refused(exchange, "not-understood")


@CHAPTER.check("6.6", "an op for another life is refused as stale-epoch")
async def stale(trial: Trial) -> None:
    await trial.refused(trial.start("echo", {"value": "one"}, epoch=1), "stale-epoch")


@CHAPTER.check("9.2", "a stanza that cannot be read is answered with an error stanza")
async def unreadable(trial: Trial) -> None:
    for what, text in UNREADABLE:
        await _malformed(trial, text, what)
    for what, members in BROKEN:
        await _malformed(
            trial, json.dumps([trial.event("echo", {"value": "one"}, **members)]), what
        )
    await trial.echoes()


@CHAPTER.check("2", "of a stanza with one bad event none is taken")
async def none_taken(trial: Trial) -> None:
    name = trial.id()
    good = trial.event("work", {"name": name})
    for bad in (trial.event("work", {"name": name}, left=-1), {"type": "op"}):
        await _malformed(trial, json.dumps([good, bad]), "one bad event of two")
    if (count := await trial.runs(name)) != 0:
        raise Wrong(
            f"that no event of the stanza was taken; it began {count}", trial.caller.log[-1]
        )


@CHAPTER.check("4", "numbers that JSON libraries would round are refused")
async def numbers(trial: Trial) -> None:
    trial.need_page("echo")
    for number in ("9007199254740992", "-9007199254740993", "1" + "0" * 400, "1e999"):
        id = trial.id()
        text = (
            f'[{{"type":"op","id":"{id}","left":30000,"op":"{trial.ops.paths["echo"]}",'
            f'"args":{{"value":{number}}}}}]'
        )
        await _turned_down(trial, text, id, f"the number {number[:20]}")


@CHAPTER.check("4", "strings with lone surrogates are refused")
async def surrogates(trial: Trial) -> None:
    trial.need_page("echo")
    id = trial.id()
    text = (
        f'[{{"type":"op","id":"{id}","left":30000,"op":"{trial.ops.paths["echo"]}",'
        '"args":{"value":"a\\ud800b"}}]'
    )
    await _turned_down(trial, text, id, "a lone surrogate")


@CHAPTER.check("11", "values that are nested too deeply are refused, however deep they are")
async def deep(trial: Trial) -> None:
    trial.need_page("echo")
    for levels in (LIMITS.depth + 8, 10_000):
        id = trial.id()
        text = (
            f'[{{"type":"op","id":"{id}","left":30000,"op":"{trial.ops.paths["echo"]}",'
            f'"args":{{"value":{"[" * levels}{"]" * levels}}}}}]'
        )
        await _turned_down(trial, text, id, f"{levels} levels of lists")
    await trial.echoes()


@CHAPTER.check(
    "11", "what is above the inline limit is turned down as too-large, not met with silence"
)
async def large_arguments(trial: Trial) -> None:
    exchange = trial.start("echo", {"value": "x" * (LIMITS.inline + 2000)})
    answer = await exchange.answer()
    if answer.type == "error":
        if answer.problem is None or answer.problem.reason != "too-large":
            raise Wrong("the reason too-large", answer, exchange.asked)
        return
    # The arguments may be read, but then the result cannot travel.
    end = await exchange.end()
    if end.reason not in ("too-large", "bad-arguments"):
        raise Wrong("the reason too-large", end.stanza, exchange.asked)


@CHAPTER.check("3", "an IQ of another namespace is answered with service-unavailable")
async def foreign(trial: Trial) -> None:
    try:
        answer = await trial.caller.connection.ask(
            "get", trial.agent, Element("{urn:example:nothing}query")
        )
    except CallError as exc:
        if exc.problem.condition in ("service-unavailable", "feature-not-implemented"):
            return
        if exc.problem.reason == "no-answer":
            raise Wrong("service-unavailable in answer to an IQ of urn:example:nothing") from exc
        raise Wrong(
            f"service-unavailable in answer to an IQ of urn:example:nothing, not "
            f"{exc.problem.condition}"
        ) from exc
    shown = "an empty result" if answer is None else f"<{answer.tag}>"
    raise Wrong(f"service-unavailable in answer to an IQ of urn:example:nothing, not {shown}")


async def _malformed(trial: Trial, text: str, what: str) -> None:
    """Send what cannot be read."""
    answer = await trial.caller.ask(text, trial.agent, what="an error stanza")
    problem = answer.problem
    if (
        answer.type != "error"
        or problem is None
        or problem.reason not in ("malformed", "bad-arguments")
        or problem.condition != "bad-request"
    ):
        raise Wrong(
            f"an error stanza with bad-request and the reason malformed ({what})",
            answer,
            _sent(trial, text),
        )


async def _turned_down(trial: Trial, text: str, id: str, what: str) -> None:
    """Send a value that must not be taken: the stanza or the op may be refused."""
    answer = await trial.caller.ask(text, trial.agent, what="a refusal")
    allowed = ("malformed", "bad-arguments", "too-large")
    if answer.type == "error":
        if answer.problem is not None and answer.problem.reason in allowed:
            return
    else:
        if any(
            each.get("id") == id
            and each.get("type") == "error"
            and each["problem"].get("reason") in allowed
            for each in read(answer)
        ):
            return
    raise Wrong(f"that {what} is refused as malformed or bad-arguments", answer, _sent(trial, text))


def _sent(trial: Trial, text: str) -> Stanza:
    return Stanza("iq", "set", trial.agent, trial.caller.address, "", text.encode())
