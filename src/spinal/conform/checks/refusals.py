"""What an agent does not do, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final
from xml.etree.ElementTree import Element

from spinal.bus.errors import CallError
from spinal.protocols import LIMITS, Json, Stanza

from ..check import Chapter
from ..seat import escaped, read
from ..trial import Trial
from ..vectors import cases, text_of
from ..verdict import Wrong

CHAPTER: Final = Chapter(3, "Refusals")


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
        await trial.refused(trial.start("repeat", args), "bad-arguments")


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
    for case in cases("malformed.json"):
        if case.get("core"):
            await _malformed(trial, escaped(text_of(case["text"])), case["name"])
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
    await _values(trial, lambda text: "\\u" not in text)


@CHAPTER.check("4", "strings with lone surrogates are refused")
async def surrogates(trial: Trial) -> None:
    await _values(trial, lambda text: "\\u" in text)


async def _values(trial: Trial, chosen: Callable[[str], bool]) -> None:
    """Send values that must be refused, in place of what is to be echoed."""
    trial.need_page("echo")
    for case in cases("values.json"):
        text = text_of(case["text"])
        if case.get("refused") and case["section"] == "4" and chosen(text):
            id = trial.id()
            await _turned_down(trial, _echo(trial, id, text), id, case["name"])


def _echo(trial: Trial, id: str, value: str) -> str:
    """Write an op with a value as it stands."""
    op = trial.ops.paths["echo"]
    return f'[{{"type":"op","id":"{id}","left":30000,"op":"{op}","args":{{"value":{value}}}}}]'


@CHAPTER.check("11", "values that are nested too deeply are refused, however deep they are")
async def deep(trial: Trial) -> None:
    trial.need_page("echo")
    for levels in (LIMITS.depth + 8, 10_000):
        id = trial.id()
        text = _echo(trial, id, "[" * levels + "]" * levels)
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
    elif any(
        each.get("id") == id
        and each.get("type") == "error"
        and each["problem"].get("reason") in allowed
        for each in read(answer)
    ):
        return
    raise Wrong(f"that {what} is refused as malformed or bad-arguments", answer, _sent(trial, text))


def _sent(trial: Trial, text: str) -> Stanza:
    return Stanza("iq", "set", trial.agent, trial.caller.address, "", text.encode())
