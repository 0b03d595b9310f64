"""People talk with the chat agent on a bus in memory; time is virtual and nothing sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from spinal.agents import Agent, Refused
from spinal.agents.chat import make
from spinal.agents.chat.agent import MAX_EACH
from spinal.agents.errors import AgentError
from spinal.agents.life import Life
from spinal.bus.session import Session
from spinal.dispatcher import Dispatcher
from spinal.dispatcher.store import store_for
from spinal.protocols import Message, Stanza
from spinal.testing import MemoryBus, eventually, virtual_time

HUB = "hub@memory.test/d"
CHAT = "chat@memory.test/agent"
ROLES = {
    "ann@memory.test": "caller",
    "boss@memory.test": "owner",
    "chief@memory.test": "owner",
    "hub@memory.test": "dispatcher",
    "chat@memory.test": "gateway",
    **{f"tools{n}@memory.test": "agent" for n in range(600)},
}


def tools() -> Agent:
    """An agent with an operation of each sort."""
    agent = Agent("tools", slots=20, tags=["gnu"])

    @agent.op("/text/shout", effects="reads")
    async def shout(text: str, times: int = 1) -> str:
        """Say it louder.

        Args:
            text: What to say.
            times: How often.
        """
        return "\n".join([text.upper()] * times)

    @agent.op("/slow", effects="reads")
    async def slow(seconds: float) -> str:
        """Take a while."""
        await asyncio.sleep(seconds)
        return "slept well"

    @agent.op("/refuse", effects="reads")
    async def refuse() -> str:
        """Never do it."""
        raise Refused("not on a Sunday")

    @agent.op("/disk/clean", effects="deletes")
    async def clean() -> str:
        """Delete files."""
        raise AssertionError("nobody confirmed that")

    return agent


class Person:
    """Somebody with a chat client, and what it shows."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.heard: list[Message] = []
        session.on_message = self.heard.append
        self._number = 0

    def say(self, text: str, to: str = CHAT, id: str = "") -> None:
        self._number += 1
        self.session.write(Message(text, to, id=id or f"m{self._number}"))

    @property
    def lines(self) -> list[str]:
        return [message.text for message in self.heard]

    async def ask(self, text: str, timeout: float = 60.0) -> str:
        """Say something, and give what is answered next."""
        before = len(self.heard)
        self.say(text)
        await eventually(lambda: len(self.heard) > before, timeout, f"an answer to {text!r}")
        return self.heard[before].text


class House:
    def __init__(self, bus: MemoryBus, stack: AsyncExitStack) -> None:
        self.bus = bus
        self.stack = stack

    async def person(self, address: str) -> Person:
        person = Person(Session(self.bus.connection(address)))
        await self.stack.enter_async_context(person.session)
        return person

    async def agent(self, number: int = 0) -> Life:
        life = Life(
            tools(), self.bus.connection(f"tools{number}@memory.test/agent"), dispatchers=[HUB]
        )
        await self.stack.enter_async_context(life)
        return life


@asynccontextmanager
async def house(store: Path, config: Path | None = None) -> AsyncGenerator[House]:
    bus = MemoryBus()
    async with AsyncExitStack() as stack:
        dispatcher = Dispatcher(
            bus.connection(HUB),
            roles=ROLES,
            accounts=lambda: ROLES,
            store=store_for(f"sqlite:///{store / 'jobs.db'}"),
        )
        await stack.enter_async_context(dispatcher)
        home = House(bus, stack)
        await home.agent()
        chat = Life(make(config), bus.connection(CHAT), dispatchers=[HUB])
        await stack.enter_async_context(chat)
        await eventually(
            lambda: dispatcher.registry.count("/slow") and len(dispatcher.registry) == 2
        )
        yield home


async def quiet(seconds: float = 30.0) -> None:
    """Let virtual time pass, in which something could come."""
    await asyncio.sleep(seconds)


def test_a_person_asks_what_there_is_and_has_it_done(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            ann = await home.person("ann@memory.test/phone")

            assert "!call /OP [key=value]..." in await ann.ask("!help")
            assert await ann.ask("ops") == (
                "/disk/clean  Delete files.\n/refuse  Never do it.\n/slow  Take a while.\n"
                "/text/shout  Say it louder."
            )
            assert await ann.ask("!ops /text/shout") == (
                "!call /text/shout text=STRING [times=INTEGER]\nSay it louder.\n"
                "text: What to say.\ntimes: How often.\nreads, at most 60 s, offered by 1 agent"
            )
            assert await ann.ask("!ops /text") == "/text/shout  Say it louder."
            assert await ann.ask("!ops nothing") == "No operation has 'nothing' in it."
            assert "tools0  available  0/20  /disk/clean, /refuse" in await ann.ask("!agents gnu")
            done = await ann.ask('!call /text/shout text="well done" times=2')
            head, *rest = done.split("\n")
            assert head.startswith("done: ") and "on tools0, id " in head
            assert rest == ["WELL DONE", "WELL DONE"]
            why = await ann.ask(f"why {head[-20:]}")
            assert "done" in why and "tools0" in why
            assert all(m.sender == CHAT and m.type == "chat" for m in ann.heard)

    story()


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (
            "!call /text/shout",
            "bad-arguments: text is missing: it takes text=STRING [times=INTEGER]",
        ),
        ("!call /text/shout text=a times=x", "bad-arguments: times: 'x' is not an integer"),
        ("!call /text/shout text=a louder", "'louder' is no argument: write key=value, key:=json"),
        ("!call /text/shout text@=/etc/passwd", "text: I take no files in a chat yet"),
        ("!call /text/shot text=a", "no-agent: "),
        ("!call nothing", "nothing"),
        ("!call /spinal/jobs/cancel id=x", "I call what agents offer"),
        ("!call /disk/clean", "/disk/clean deletes, and I cannot ask you to confirm that yet"),
        ("!call /refuse", "refused: not on a Sunday; !why "),
        ("!why 0000000000000000000x", "unknown-job: "),
        ("!why <nonsense>", "unknown-job: there is no job <nonsense>; give the id of a call of"),
        (f"!why {'x' * 4000}", "is no id; give the id of a call of your own"),
        ("!agent", "there is no command 'agent': did you mean !agents? !help lists them"),
        ("good morning", "there is no command 'good': !help lists them"),
        ("!call /text/shout text='open", "the quote ' is not closed"),
        ("x" * 100_000, "that is too long: a message may have 8192 characters"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tmp_path: Path, said: str, answer: str) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            ann = await home.person("ann@memory.test/phone")
            told = await ann.ask(said)
            assert answer in told and "\n" not in told and len(told) < 600

    story()


def test_what_takes_long_is_told_at_once_and_at_its_end(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            ann = await home.person("ann@memory.test/phone")

            running = await ann.ask("!call /slow seconds=45")
            assert running.startswith("/slow is running, id ")
            id = running.split("id ")[1][:20]
            # Meanwhile it listens.
            assert "has been running at tools0" in await ann.ask(f"!why {id}")
            await eventually(lambda: len(ann.heard) == 3, 120)
            assert ann.lines[-1].endswith(f"id {id}\nslept well")

    story()


def test_a_call_belongs_to_who_asked_for_it(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            ann = await home.person("ann@memory.test/phone")
            boss = await home.person("boss@memory.test/desk")

            done = await boss.ask("!call /text/shout text=mine")
            id = done.split("\n")[0][-20:]

            assert (await ann.ask(f"!why {id}")).startswith("unknown-job")
            assert not (await boss.ask(f"!why {id}")).startswith("unknown-job")

    story()


def test_programs_and_strangers_get_no_answer(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            others = [
                await home.person(address)
                for address in (
                    "tools1@memory.test/agent",
                    "mallory@memory.test/x",
                    "ann@elsewhere.test/x",
                    "chat@memory.test/other",
                )
            ]
            for other in others:
                other.say("!help")
            await quiet()
            assert not any(other.heard for other in others)

    story()


def test_two_of_our_own_do_not_talk_with_each_other(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            bot = await home.person("ann@memory.test/bot")
            # Somebody's program under a person's account that answers whatever it is told.

            def echo(message: Message) -> None:
                bot.heard.append(message)
                bot.say(message.text)

            bot.session.on_message = echo
            bot.say("hello")
            await quiet(600.0)
            # A minute's worth at once, then one for each that may be sent, and a warning each.
            assert 10 < len(bot.heard) < 30 + 2 * 30 * 10

    story()


def test_who_is_too_fast_is_told_once_and_then_not_read(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        config = tmp_path / "chat.yaml"
        config.write_text("per_minute: 5\n")
        async with house(tmp_path, config) as home:
            ann = await home.person("ann@memory.test/phone")
            for _ in range(50):
                ann.say("!help")
            await quiet(5.0)
            assert len(ann.heard) == 6
            assert (
                ann.lines.count(
                    "that is too fast for me: wait a moment, what you say meanwhile is not read"
                )
                == 1
            )
            await quiet(60.0)
            assert "!call" in await ann.ask("!help")

    story()


def test_a_message_that_comes_twice_is_acted_upon_once(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            ann = await home.person("ann@memory.test/phone")
            for _ in range(3):
                ann.say("!call /text/shout text=once", id="same")
            await quiet()
            assert len(ann.heard) == 1

    story()


def test_what_was_said_while_nobody_was_here_is_not_done(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            ann = await home.person("ann@memory.test/phone")
            inner = (
                b"<body>!call /text/shout text=old</body>"
                b"<delay xmlns='urn:xmpp:delay' stamp='2026-01-01T00:00:00Z'/>"
            )
            ann.session.connection.send(Stanza("message", "chat", CHAT, other=inner))
            await eventually(lambda: ann.heard)
            await quiet()
            assert ann.lines == [
                "I was away when you said '!call /text/shout text=old': "
                + "say it again if you still want it"
            ]

    story()


def test_errors_are_never_answered(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            ann = await home.person("ann@memory.test/phone")
            inner = b"<body>!help</body><error type='cancel'/>"
            ann.session.connection.send(Stanza("message", "error", CHAT, other=inner))
            await quiet()
            assert not ann.heard

    story()


def test_one_person_cannot_have_more_than_some_calls_run(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            ann = await home.person("ann@memory.test/phone")
            for _ in range(MAX_EACH):
                await ann.ask("!call /slow seconds=50")
            assert (await ann.ask("!help")).startswith(f"{MAX_EACH} of your calls are running")
            boss = await home.person("boss@memory.test/desk")
            assert "!ops" in await boss.ask("!help")

    story()


def test_people_of_this_home_may_see_whether_it_is_there(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            told: list[tuple[str, str]] = []
            people = [
                await home.person(address)
                for address in ("ann@memory.test/phone", "mallory@memory.test/x")
            ]
            for person in people:
                plain = person.session.received

                def note(stanza: Stanza, plain=plain, person=person) -> None:  # type: ignore[no-untyped-def]
                    if stanza.type == "subscribed":
                        told.append((person.session.address, stanza.sender))
                    plain(stanza)

                person.session.received = note  # type: ignore[method-assign]
                person.session.connection.send(Stanza("presence", "subscribe", "chat@memory.test"))
            await quiet()
            assert told == [("ann@memory.test/phone", CHAT)]

    story()


# -- alerts


def test_every_owner_hears_once_of_an_agent_that_died_and_of_its_return(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            ann, boss, chief = [
                await home.person(f"{name}@memory.test/x") for name in ("ann", "boss", "chief")
            ]
            running = await ann.ask("!call /slow seconds=50")
            id = running.split("id ")[1][:20]

            home.bus.kill("tools0@memory.test/agent")

            await eventually(lambda: boss.heard and chief.heard, 60)
            assert boss.lines == [
                "\n".join(
                    [
                        "Agent tools0 died (its stream is gone).",
                        f"It was running /slow {id}.",
                        f"!why {id} says what becomes of it.",
                        "!agents shows who is there.",
                    ]
                )
            ]
            assert (await boss.ask(f"!why {id}")).count("\n") > 0
            await home.agent()
            await eventually(lambda: len(chief.heard) == 2, 60)
            assert chief.lines[-1].startswith("Agent tools0 is back after ")
            await quiet(60.0)
            assert len(chief.heard) == 2
            assert not any("died" in line for line in ann.lines)

    story()


def test_five_hundred_that_die_at_once_are_one_message(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            boss = await home.person("boss@memory.test/desk")
            for number in range(1, 501):
                await home.agent(number)
            await quiet(10.0)

            for number in range(1, 501):
                home.bus.kill(f"tools{number}@memory.test/agent")

            await eventually(lambda: boss.heard, 60)
            await quiet(60.0)
            assert len(boss.heard) == 1
            assert boss.lines[0].startswith("500 agents died: tools1, ")
            assert " and 492 more." in boss.lines[0]

    story()


def test_an_agent_that_leaves_in_good_order_or_for_a_moment_is_no_news(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            boss = await home.person("boss@memory.test/desk")
            leaving = await home.agent(1)
            await home.agent(2)
            await quiet(10.0)

            home.bus.cut("tools2@memory.test/agent")
            await leaving.drain(1.0)
            await leaving.session.close()

            await quiet(60.0)
            assert not boss.heard

    story()


def test_alerts_can_be_switched_off(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        config = tmp_path / "chat.yaml"
        config.write_text("alerts: false\n")
        async with house(tmp_path, config) as home:
            boss = await home.person("boss@memory.test/desk")
            home.bus.kill("tools0@memory.test/agent")
            await quiet(60.0)
            assert not boss.heard

    story()


def test_what_came_back_while_nobody_watched_is_told(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            boss = await home.person("boss@memory.test/desk")
            home.bus.kill("tools0@memory.test/agent")
            await eventually(lambda: boss.heard, 60)
            # The dispatcher ends the watch, as when it is over.
            home.bus.cut(CHAT)
            await home.agent()
            await eventually(lambda: len(boss.heard) == 2, 120)
            assert "is back after" in boss.lines[-1]

    story()


def test_an_alert_waits_for_the_stream_to_be_there(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            boss = await home.person("boss@memory.test/desk")
            home.bus.kill("tools0@memory.test/agent")
            await quiet(1.0)
            home.bus.up = False
            home.bus.cut(CHAT)
            await quiet(10.0)
            assert not boss.heard
            home.bus.up = True
            await eventually(lambda: boss.heard, 60)
            assert boss.lines[0].startswith("Agent tools0 died")

    story()


# -- its file


def test_its_file_names_it_and_a_mistake_in_it_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "chat.yaml"
    file.write_text("name: ops\nalert_after: 10s\n")
    assert make(file).name == "ops" and make(file).role == "gateway" and make().name == "chat"
    file.write_text("name: ops\nalert_afer: 10s\n")
    with pytest.raises(AgentError, match=r"chat.yaml:2: alert_afer: .*did you mean 'alert_after'"):
        make(file)
