"""Profanity: a person at a terminal, on the same bus as the machines."""

import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio

from spinal.bus.server import Server
from spinal.testing import eventually

from .chat import profanity
from .conftest import DOMAIN, PASSWORD, SOON, Bot, soon, told
from .terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANN = f"ann@{DOMAIN}"
BOT = f"bot@{DOMAIN}"


@pytest_asyncio.fixture(loop_scope="session")
async def ann(server: Server, tmp_path: Path) -> AsyncGenerator[Terminal]:
    async with profanity(ANN, PASSWORD, server.config.ports.c2s, tmp_path, server.ca) as window:
        await window.shows("logged in successfully", "[TLS]", "[online]")
        yield window
        # Else its stream is kept for it, and the next test has two of ann.
        await window.type("/quit")
        assert await window.ended() == 0


async def test_an_authority_that_is_not_the_home_s_is_not_trusted(
    server: Server, tmp_path: Path
) -> None:
    port = server.config.ports.c2s
    async with profanity(ANN, PASSWORD, port, tmp_path, Path(os.devnull)) as window:
        shown = await window.shows("TLS certificate verification failed", "/tls deny")
        assert "logged in" not in shown
        await window.type("/tls deny")
        await window.shows("Login failed.", "[offline]")


async def test_a_person_and_a_bot_write_to_each_other(ann: Terminal, bot: Bot) -> None:
    came = told(bot, "message")
    await ann.type(f"/msg {BOT} restart 5 < 6 & 7?")
    message = await soon(came, ANN, "chat")
    assert message["body"] == "restart 5 < 6 & 7?"
    bot.send_message(mto=message["from"], mbody="restarted <all> of them", mtype="chat")
    await ann.shows("restart 5 < 6 & 7?", "restarted <all> of them")


async def test_a_contact_is_added_and_seen_coming_and_going(ann: Terminal, bot: Bot) -> None:
    heard = told(bot, "got_online", "got_offline")
    await ann.type(f"/roster add {BOT} Robot")
    await ann.shows("Roster item added")
    await ann.type(f"/sub request {BOT}")
    # slixmpp says yes, and asks back.
    await ann.shows(f"Received authorization request from {BOT}")
    await ann.type(f"/sub allow {BOT}")
    await soon(heard, ANN, "available")
    await ann.shows("Robot (bot) is online")

    async def both() -> bool:
        # What it prints is how things are at that moment.
        await ann.type("/roster")
        return f"{BOT} (Robot) - both" in await ann.screen()

    await eventually(both, SOON, "both see each other")
    bot.send_presence(pshow="dnd", pstatus="reindexing")
    await ann.shows("Robot (bot) is dnd", "reindexing")
    await ann.type("/disconnect")
    await soon(heard, ANN, "unavailable")


async def test_it_leaves_in_good_order(ann: Terminal, bot: Bot) -> None:
    await ann.type("/disconnect")
    await ann.shows("logged out successfully", "[offline]")
    await ann.type("/quit")
    assert await ann.ended() == 0
