"""Agents and callers of ours over aioxmpp: what they do over slixmpp, and with those who are there."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from importlib.util import find_spec
from pathlib import Path

import pytest
import pytest_asyncio
from slixmpp.exceptions import IqError

from spinal.bus.server import Server

from . import echoing
from .conftest import (
    DOMAIN,
    PASSWORD,
    SOON,
    Bot,
    Program,
    caller,
    environment,
    program,
    soon,
    told,
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(
        find_spec("aioxmpp") is None,
        reason="MISSING: aioxmpp, which there is for Python 3.11 and 3.12",
    ),
]

NAME = "kit"
SOURCE = Path(__file__).with_name("kit.py")


def run(variables: Mapping[str, str]) -> AbstractAsyncContextManager[Program]:
    ours = {"PYTHONPATH": os.pathsep.join(sys.path), "SPINAL_TRANSPORT": "aioxmpp"}
    return program(sys.executable, SOURCE, env={**ours, **variables})


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def account(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    await server.add_account(NAME, PASSWORD)
    return environment(server, NAME, tmp_path_factory.mktemp("account"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def agent(account: Mapping[str, str]) -> AsyncGenerator[Program]:
    async with run(account) as running:
        await running.line("online ")
        assert "over aioxmpp" in running.lines
        yield running
        assert await running.end() == 0, running.lines


@pytest.mark.parametrize("library", ["slixmpp", "aioxmpp"])
async def test_a_caller_over_either_library_calls_it(
    server: Server, agent: Program, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPINAL_TRANSPORT", library)
    async with caller(server, "ann") as ann:
        await echoing.echoes(ann, NAME)
        await echoing.refuses(ann, NAME)


async def test_it_streams_until_nobody_listens(server: Server, agent: Program) -> None:
    async with caller(server, "ann") as ann:
        there = ann.options(to=echoing.address(NAME), timeout=SOON)
        async with aclosing(there.stream("/kit/count")) as numbers:
            for expected in range(1000):
                assert await anext(numbers) == expected
    await agent.line("counted")


async def test_it_minds_deadline_epoch_and_must(agent: Program, bot: Bot) -> None:
    await echoing.minds_what_an_op_says(bot, NAME)


async def test_ordinary_tools_see_it(agent: Program, bot: Bot) -> None:
    bot.register_plugin("xep_0050")
    reply = await bot.plugin["xep_0030"].get_info(jid=echoing.address(NAME), timeout=SOON)
    assert "http://jabber.org/protocol/commands" in reply["disco_info"]["features"]
    assert await bot.plugin["xep_0199"].ping(echoing.address(NAME), timeout=SOON) < SOON


async def test_what_it_does_not_know_is_refused(agent: Program, bot: Bot) -> None:
    query = bot.make_iq_get(queryxmlns="urn:example:nothing", ito=echoing.address(NAME))
    with pytest.raises(IqError) as refused:
        await query.send(timeout=SOON)
    assert refused.value.condition == "service-unavailable"


async def test_who_waits_for_it_is_told_at_once_that_it_was_killed(
    server: Server, bot: Bot, tmp_path: Path
) -> None:
    await server.add_account("mortal", PASSWORD)
    address = echoing.address("mortal")
    heard = told(bot, "presence_available", "presence_unavailable")
    async with run(environment(server, "mortal", tmp_path)) as mortal:
        await mortal.line("online ")
        asked = {"type": "op", "id": "stay-1", "op": "/kit/stay", "left": 60_000}
        (accepted,) = await echoing.ask(bot, "mortal", asked)
        assert accepted["type"] == "accepted"
        await soon(heard, f"mortal@{DOMAIN}", "available")
        mortal.process.kill()
        async with asyncio.timeout(1.0):
            gone = await soon(heard, f"mortal@{DOMAIN}", "unavailable")
    assert gone["from"] == address


async def test_it_does_not_log_in_where_it_cannot_trust(
    server: Server, account: Mapping[str, str]
) -> None:
    async with run({**account, "SPINAL_CA": "/dev/null"}) as mistrustful:
        assert await mistrustful.ended() != 0
        assert not any(line.startswith("online") for line in mistrustful.lines)


async def test_the_dispatcher_gives_it_work() -> None:
    await echoing.is_brokered(run, NAME)
