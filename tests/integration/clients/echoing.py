"""What an agent of the core profile has to do, whatever it is written in.

An agent named ``c`` has an account of that name and offers ``/c/echo``.  It says ``online ADDRESS``
when it is there, and ``ran ID`` for each op that it runs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any
from xml.etree.ElementTree import Element, SubElement

import pytest
from slixmpp.exceptions import IqError

from spinal.bus import BadCall, Client, NoAgent
from spinal.protocols import NS, TAG
from spinal.testing import Process, eventually, platform

from .conftest import DOMAIN, SOON, Bot, Program, Stanza

#: Quotes, markup, what cannot stand in XML, and what takes two units in UTF-16.
TEXT = "5 < 6 & 'x' \"y\" ]]> \n\t\0 \x7f \ufffe\uffff ✓ 𝄞"

#: Runs an agent with these variables.
Start = Callable[[Mapping[str, str]], AbstractAsyncContextManager[Program]]


def address(name: str) -> str:
    return f"{name}@{DOMAIN}/agent"


async def ask(bot: Bot, name: str, *events: Mapping[str, Any]) -> Any:
    """Send events; gives those of the answer, None if it has no body."""
    return await ask_text(bot, name, json.dumps(events))


async def ask_text(bot: Bot, name: str, text: str) -> Any:
    iq = bot.make_iq_set(ito=address(name))
    SubElement(iq.xml, TAG).text = text
    reply = await iq.send(timeout=SOON)
    body: Element | None = reply.xml.find(TAG)
    return None if body is None else json.loads(body.text or "")


async def echoes(caller: Client, name: str) -> None:
    there = caller.options(to=address(name), timeout=SOON)
    assert await there.call(f"/{name}/echo", text=TEXT) == TEXT
    many = await asyncio.gather(*(there.call(f"/{name}/echo", text=str(n)) for n in range(50)))
    assert many == [str(n) for n in range(50)]


async def refuses(caller: Client, name: str) -> None:
    there = caller.options(to=address(name), timeout=SOON)
    with pytest.raises(NoAgent):
        await there.call("/nothing")
    for arguments in ({}, {"text": 5}, {"text": "x", "loud": True}):
        with pytest.raises(BadCall):
            await there.call(f"/{name}/echo", **arguments)


async def runs_once(bot: Bot, agent: Program, name: str) -> None:
    asked = {
        "type": "op",
        "id": "once-1",
        "op": f"/{name}/echo",
        "left": 60_000,
        "args": {"text": "x"},
    }
    (first,) = await ask(bot, name, asked)
    assert (first["type"], first["id"], first["value"]) == ("final", "once-1", "x")
    assert await ask(bot, name, asked | {"left": 50_000}) == [first]
    (second,) = await ask(bot, name, asked | {"attempt": 2})
    assert (second["attempt"], second["value"]) == (2, "x")
    await ask(bot, name, asked | {"id": "once-2"})
    await agent.line("ran once-2")
    assert agent.lines.count("ran once-1") == 2


async def minds_what_an_op_says(bot: Bot, name: str) -> None:
    asked = {"type": "op", "op": f"/{name}/echo", "left": 60_000, "args": {"text": "x"}}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"left": 0}, "expired"),
        ({"epoch": 1}, "stale-epoch"),
        ({"must": ["shadow"]}, "not-understood"),
    ]
    for number, (member, reason) in enumerate(cases):
        (answer,) = await ask(bot, name, {**asked, "id": f"minds-{number}", **member})
        assert (answer["type"], answer["problem"]["reason"]) == ("error", reason)
    extra: dict[str, Any] = {"id": "minds-x", "attempt": None, "must": [], "shadow": [{}]}
    assert (await ask(bot, name, {"type": "shadow"}, {**asked, **extra}))[0]["value"] == "x"


async def answers_everything(bot: Bot, name: str) -> None:
    assert await ask(bot, name, {"type": "ack", "id": "never-1"}) is None
    assert await ask(bot, name, {"type": "cancel", "id": "never-1"}) is None
    assert await ask(bot, name, {"type": "describe", "hash": "0" * 64}) is None
    for text in ("", "{", "{}", "[1]", '[{"type":"op"}]'):
        with pytest.raises(IqError) as refused:
            await ask_text(bot, name, text)
        error: Stanza = refused.value
        reason = error.iq.xml.find(f"{{jabber:client}}error/{{{NS}}}reason")
        assert (error.condition, reason.text) == ("bad-request", "malformed")
    with pytest.raises(IqError) as refused:
        await bot.make_iq_get(queryxmlns="urn:example:nothing", ito=address(name)).send(
            timeout=SOON
        )
    assert refused.value.condition == "service-unavailable"


async def is_brokered(start: Start, name: str) -> None:
    """The dispatcher finds it, asks what it offers, and gives it work; and notices its end."""
    op = f"/{name}/echo"
    async with platform() as bus:
        added = await bus.spinal("account", "add", name, "--role", "agent", "--json")
        assert await added.wait() == 0, added.errors
        variables: dict[str, str] = json.loads("\n".join(added.lines))["env"]

        async def call() -> Process:
            called = await bus.spinal("call", op, "text=hello there")
            await called.wait()
            return called

        async with start(variables) as agent:
            who = (await agent.line("online ")).removeprefix("online ")

            async def found() -> bool:
                return any(each["op"] == op for each in await bus.client.ops())

            await eventually(found, SOON, f"{op} is listed")
            called = await call()
            assert (called.lines, called.errors) == (["hello there"], [])
            (answer,) = [each async for each in bus.client.map(op, [{"text": TEXT}])]
            assert (answer.value, answer.agent) == (TEXT, who)
            assert await agent.end() == 0

        async def gone() -> bool:
            states = {each["agent"]: each["state"] for each in await bus.client.agents()}
            return bool(states[who] == "gone")

        await eventually(gone, SOON, "the dispatcher knows that it is gone")
