"""A person in Profanity talks with the chat agent: real server, real client, real processes."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from spinal.testing import Platform, Process, eventually, platform

from .chat import profanity
from .conftest import SOON, at, soon, told
from .terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="session")

ERRANDS = Path(__file__).with_name("errands.py")
#: Seconds for what takes several at every speed: an agent has to be gone for three, and is
#: suspect after twelve.
LATE = 60.0


@dataclass
class Place:
    """A platform with a chat agent and another one, and the accounts of two people."""

    platform: Platform
    chat: str
    people: dict[str, dict[str, str]]
    errands: Process

    def password(self, name: str) -> str:
        return Path(self.people[name]["SPINAL_PASSWORD_FILE"]).read_text().strip()

    def address(self, name: str) -> str:
        return self.people[name]["SPINAL_ADDRESS"]

    @property
    def port(self) -> int:
        return int(self.people["ann"]["SPINAL_SERVER"].rpartition(":")[2])

    @property
    def ca(self) -> Path:
        return Path(self.people["ann"]["SPINAL_CA"])


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def place(kind: str) -> AsyncGenerator[Place]:
    async with platform(kind) as running:
        people: dict[str, dict[str, str]] = {}
        for name, role in (("ann", "owner"), ("carol", "caller")):
            added = await running.spinal("account", "add", name, "--role", role, "--json")
            assert await added.wait() == 0, added.errors
            people[name] = json.loads("\n".join(added.lines))["env"]
        errands = await running.agent(ERRANDS)
        await running.agent("chat")
        domain = people["ann"]["SPINAL_ADDRESS"].partition("@")[2]

        async def described() -> bool:
            return len(await running.client.ops()) == 3

        await eventually(described, SOON, "the dispatcher knows what is offered")
        yield Place(running, f"chat@{domain}", people, errands)


@pytest_asyncio.fixture(loop_scope="session")
async def ann(place: Place, tmp_path: Path) -> AsyncGenerator[Terminal]:
    async with profanity(
        place.address("ann"), place.password("ann"), place.port, tmp_path, place.ca
    ) as window:
        await window.shows("logged in successfully", "[online]")
        yield window
        await window.type("/quit")
        assert await window.ended() == 0


async def test_a_person_has_things_done_and_hears_of_a_death(place: Place, ann: Terminal) -> None:
    # It is a contact that is there.
    await ann.type(f"/roster add {place.chat} Spinal")
    await ann.shows("Roster item added")
    await ann.type(f"/sub request {place.chat}")
    await ann.shows("Spinal (agent) is online")

    await ann.type(f"/msg {place.chat} !help")
    await ann.shows("!call /OP [key=value]...  Have an operation done.", "may be left out.")
    await ann.type("!ops")
    await ann.shows("/coffee/make  Make coffee.", "/text/shout  Say it louder.")
    await ann.type("agents errands")
    await ann.shows("errands  available  0/4  /coffee/make, /disk/clean, /text/shout")
    await ann.type("!call /text/shout text=\"5 < 6 & 'so on'\" times=2")
    shown = await ann.shows("5 < 6 & 'SO ON'\n", "done: ")
    (id,) = re.findall(r"done: .* on errands, id (\w{20})", shown)
    await ann.type("!call /text/shout text=x times=many")
    await ann.shows("bad-arguments: times: 'many' is not an integer; see !ops /text/shout")
    await ann.type("!call /disk/clean")
    await ann.shows("/disk/clean deletes, and I cannot ask you to confirm that yet")
    await ann.type(f"!why {id}")
    await ann.shows("/text/shout was submitted by ann@", "attempt 1 went to errands@")

    await ann.type("!call /coffee/make minutes=5")
    shown = await ann.shows("/coffee/make is running, id ")
    (job,) = re.findall(r"/coffee/make is running, id (\w{20})", shown)
    place.errands.kill()
    await ann.shows(
        "Agent errands died (its stream is gone).",
        f"It was running /coffee/make {job}.",
        f"!why {job} says what becomes of it.",
        timeout=LATE,
    )
    place.errands = await place.platform.spinal("agent", "run", str(ERRANDS))
    await ann.shows("Agent errands is back after", timeout=LATE)
    # It was not safe to run twice.
    await ann.shows("lost: ", f"!why {job}", timeout=LATE)


async def test_an_alert_waits_for_an_owner_who_is_away(place: Place) -> None:
    (chat,) = [one for one in await place.platform.client.agents() if one["agent"][:5] == "chat@"]
    extra = await place.platform.agent(ERRANDS, "--name", "mayfly")
    extra.kill()
    address, name = place.address("ann"), "mayfly"

    async def forgotten() -> bool:
        known = await place.platform.client.agents()
        return all(not one["agent"].startswith(name) for one in known)

    # The dispatcher waits for its return a good deal longer than the chat agent does.
    await eventually(forgotten, LATE)
    async with at(address, place.password("ann"), place.port, place.ca, "xep_0203") as bot:
        came = told(bot, "message")
        bot.send_presence()
        while "mayfly died" not in (alert := await soon(came, place.chat))["body"]:
            pass
        assert alert["delay"]["stamp"] and str(alert["from"]) == chat["agent"]


async def test_strangers_and_machines_are_not_answered_and_callers_not_alarmed(
    place: Place,
) -> None:
    added = await place.platform.spinal("account", "add", "robot", "--role", "agent", "--json")
    assert await added.wait() == 0, added.errors
    robot = json.loads("\n".join(added.lines))["env"]
    password = Path(robot["SPINAL_PASSWORD_FILE"]).read_text().strip()
    async with (
        at(robot["SPINAL_ADDRESS"], password, place.port, place.ca) as machine,
        at(place.address("carol"), place.password("carol"), place.port, place.ca) as carol,
    ):
        for bot in (machine, carol):
            bot.send_presence()
        ignored, heard = told(machine, "message"), told(carol, "message")
        machine.send_message(mto=place.chat, mbody="!help", mtype="chat")
        carol.send_message(mto=place.chat, mbody="!ops shout", mtype="chat")
        answer = await soon(heard, place.chat)
        assert answer["body"] == "/text/shout  Say it louder."
        # What came first was taken first.
        carol.send_message(mto=place.chat, mbody="x" * 200_000, mtype="normal")
        assert "too long" in (await soon(heard, place.chat))["body"]
        assert ignored.empty()
