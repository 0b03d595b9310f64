"""What ordinary tools see of a platform: none of those that look here knows anything of Spinal."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest
import pytest_asyncio
from slixmpp.exceptions import IqError

from spinal.protocols import NS
from spinal.testing import Platform, eventually, platform

from .chat import profanity
from .conftest import SOON, Bot, at, program, told
from .terminal import Terminal
from .test_node import SOURCE, fetched

pytestmark = pytest.mark.asyncio(loop_scope="session")

FORMS = Path(__file__).parents[2] / "agents" / "files" / "forms.py"
COMMANDS = "http://jabber.org/protocol/commands"
LISTED = ("brief", "every", "plain", "refuse", "wait", "who")

EVERY = {
    "colour": ["blue & green"],
    "text": ["5 < 6 & 'x' ✓ 𝄞"],
    "whole": ["-7"],
    "real": ["0.5"],
    "flag": ["1"],
    "some": ["a", "c"],
    "lines": ["one", "three"],
    "size": ["4"],
    "maybe": [""],
    "word": [""],
}
DONE = {
    "colour": "blue & green",
    "text": "5 < 6 & 'x' ✓ 𝄞",
    "whole": -7,
    "real": 0.5,
    "flag": True,
    "some": ["a", "c"],
    "lines": ["one", "three"],
    "size": 4,
    "maybe": None,
    "word": "it's <it>",
    "photo": False,
}


@dataclass
class Place:
    """A platform with an agent, as an account is told of it."""

    platform: Platform
    variables: dict[str, str]
    agent: str

    @property
    def address(self) -> str:
        return self.variables["SPINAL_ADDRESS"]

    @property
    def password(self) -> str:
        return Path(self.variables["SPINAL_PASSWORD_FILE"]).read_text().strip()

    @property
    def port(self) -> int:
        return int(self.variables["SPINAL_SERVER"].rpartition(":")[2])

    @property
    def ca(self) -> Path:
        return Path(self.variables["SPINAL_CA"])

    @property
    def dispatcher(self) -> str:
        return self.variables["SPINAL_DISPATCHER"].split()[0]

    @property
    def both(self) -> tuple[str, str]:
        return self.agent, self.dispatcher


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def place(kind: str) -> AsyncGenerator[Place]:
    async with platform(kind) as running:
        await running.agent(FORMS)
        added = await running.spinal("account", "add", "ann", "--role", "caller", "--json")
        assert await added.wait() == 0, added.errors
        variables: dict[str, str] = json.loads("\n".join(added.lines))["env"]
        (agent,) = await running.client.agents()

        async def described() -> bool:
            return bool(await running.client.ops())

        await eventually(described, SOON, "the dispatcher knows what the agent offers")
        yield Place(running, variables, agent["agent"])


# -- Profanity


@pytest_asyncio.fixture(loop_scope="session")
async def ann(place: Place, tmp_path: Path) -> AsyncGenerator[Terminal]:
    async with profanity(place.address, place.password, place.port, tmp_path, place.ca) as window:
        await window.shows("logged in successfully", "[online]")

        async def ready() -> bool:
            # It refuses commands until it has found somebody at the server who takes them.
            await window.type(f"/cmd list {place.agent}")
            return "/forms/who" in await window.screen()

        await eventually(ready, SOON, "it has looked around")
        yield window
        await window.type("/quit")
        assert await window.ended() == 0


async def test_a_person_looks_around(place: Place, ann: Terminal) -> None:
    await ann.type(f"/disco items {place.dispatcher}")
    await ann.shows(f"{place.agent}, (forms)")
    await ann.type(f"/disco info {place.agent}")
    await ann.shows("forms bot client", COMMANDS, NS)
    await ann.type(f"/disco info {place.dispatcher}")
    await ann.shows("command-list automation")
    for address in place.both:
        await ann.type("/clear")
        await ann.type(f"/cmd list {address}")
        shown = await ann.shows(*(f"/forms/{name}" for name in LISTED))
        assert "/forms/scale" not in shown


async def test_a_person_runs_operations(place: Place, ann: Terminal) -> None:
    for address in place.both:
        await ann.type("/clear")
        await ann.type(f"/cmd exec /forms/refuse {address}")
        await ann.shows("Error executing command /forms/refuse: the shop is closed")
        await ann.type(f"/cmd exec /forms/who {address}")
        await ann.shows(f'value: "{place.address}/')
        await ann.type("/form cancel")
        await ann.shows("/forms/who completed", f"! {place.address}/")


async def test_a_person_fills_a_form_in(place: Place, ann: Terminal) -> None:
    for address in place.both:
        await ann.type("/clear")
        await ann.type(f"/cmd exec /forms/every {address}")
        await ann.shows("Give back what it was asked.", "[field5] flag (required): FALSE")
        for line in (
            '/field1 "blue & green"',
            "/field2 \"5 < 6 & 'x' ✓ 𝄞\"",
            "/field3 -7",
            "/field4 0.5",
            "/field5 on",
            "/field6 add a",
            "/field6 add c",
            "/field7 add one",
            "/field7 add three",
            "/field8 4",
        ):
            await ann.type(line)
        await ann.shows("[val2] three")
        await ann.type("/form submit")
        shown = await ann.shows('"photo":false')
        text = "".join(line.rstrip() for line in shown.splitlines())
        assert '"colour":"blue & green"' in text and '"text":"5 < 6 & \'x\' ✓' in text
        await ann.type("/form cancel")
        await ann.shows("/forms/every completed")


# -- @xmpp/client


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tool")
    (folder / "node_modules").symlink_to(fetched())
    for name in ("package.json", "tool.js"):
        shutil.copy(SOURCE / name, folder)
    return folder / "tool.js"


async def test_a_program_in_javascript_looks_around_and_fills_a_form_in(
    place: Place, script: Path
) -> None:
    kinds = dict.fromkeys(EVERY, "text-single") | {
        "colour": "list-single",
        "size": "list-single",
        "flag": "boolean",
        "some": "list-multi",
        "lines": "text-multi",
    }
    env = {"NODE_EXTRA_CA_CERTS": str(place.ca), **place.variables}
    for address, identity in zip(
        place.both, ("client/bot forms", "automation/command-list"), strict=True
    ):
        argv = ("node", script, address, "/forms/every", json.dumps(EVERY))
        async with program(*argv, env=env) as tool:
            assert (await tool.line("identity ")).startswith(f"identity {identity}")
            assert {NS, COMMANDS} <= set((await tool.line("features ")).split())
            listed = " ".join(f"/forms/{name}" for name in LISTED)
            assert await tool.line("commands ") == f"commands {listed}"
            fields = " ".join(f"{name}={kind}" for name, kind in kinds.items())
            assert await tool.line("form ") == f"form {fields}"
            done = await tool.line("completed ")
            assert json.loads(done.removeprefix("completed ")) == DONE
            assert await tool.ended() == 0


# -- slixmpp


PLUGINS = ("xep_0030", "xep_0050", "xep_0115", "xep_0199")


@pytest_asyncio.fixture(loop_scope="session")
async def bot(place: Place) -> AsyncGenerator[Bot]:
    async with at(place.address, place.password, place.port, place.ca, *PLUGINS) as there:
        there.send_presence()
        yield there


async def test_a_stock_slixmpp_client_pings_and_looks_around(place: Place, bot: Bot) -> None:
    for address in place.both:
        assert await bot.plugin["xep_0199"].ping(address, timeout=SOON) < SOON
        reply = await bot.plugin["xep_0030"].get_info(jid=address, timeout=SOON)
        assert {NS, COMMANDS} <= set(reply["disco_info"]["features"])
        reply = await bot.plugin["xep_0050"].get_commands(address, timeout=SOON)
        listed = {node for _, node, _ in reply["disco_items"]["items"]}
        assert listed == {f"/forms/{name}" for name in LISTED}
        with pytest.raises(IqError) as refused:
            await bot.plugin["xep_0030"].get_info(jid=address, node="/nothing", timeout=SOON)
        assert refused.value.condition == "item-not-found"


async def test_a_form_that_does_not_fit_is_a_bad_payload(place: Place, bot: Bot) -> None:
    for address in place.both:
        form = bot.plugin["xep_0004"].make_form(ftype="submit")
        for name, values in ({**EVERY, "whole": ["x"]}).items():
            form.add_field(var=name, ftype="text-multi", value=values)
        with pytest.raises(IqError) as refused:
            await bot.plugin["xep_0050"].send_command(
                address, "/forms/every", action="complete", payload=form, timeout=SOON
            )
        error: Any = refused.value
        assert (error.condition, error.etype) == ("bad-request", "modify")
        assert error.text == "argument 'whole' must be an integer, in decimal digits"
        assert error.iq.xml.find(f"{{jabber:client}}error/{{{COMMANDS}}}bad-payload") is not None


async def test_the_capabilities_in_presence_are_those_that_are_told(place: Place, bot: Bot) -> None:
    """slixmpp asks for what the hash is of, and believes it only if it computes the same."""
    async with asyncio.timeout(SOON):
        for address in place.both:
            heard = told(bot, "entity_caps")
            # Both answer a hello with one of theirs, which is the first that goes to this address.
            presence = bot.make_presence(pto=address)
            presence.xml.append(_hello())
            presence.send()
            while str((seen := await heard.get())["from"]) != address:
                pass
            ver = seen["caps"]["ver"]
            assert (seen["caps"]["node"], seen["caps"]["hash"]) == (NS, "sha-1")

            async def checked(address: str = address) -> bool:
                return bool(await bot.plugin["xep_0115"].get_verstring(address) is not None)

            await eventually(checked, SOON, "slixmpp has computed the same hash")
            assert await bot.plugin["xep_0115"].get_verstring(address) == ver
            info = await bot.plugin["xep_0115"].get_caps(verstring=ver)
            assert NS in info["features"]


def _hello() -> Any:
    hello = Element(f"{{{NS}}}x")
    hello.text = '[{"type":"hello"}]'
    return hello
