"""People ask for operations in private messages, and owners hear of agents that died.

Theory of operation.  A message comes with the address that the server stamped.  The account's role
decides whether it is a person of this home; programs and strangers get no answer, so that nothing
here can talk with another program for ever.  What is asked is asked of the dispatcher in the name of
the person, whose rights decide.  A call is a job of theirs: it goes on when they, or we, leave.

Beside that one task keeps a watch at the dispatcher open, and one tells the owners what comes of it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from spinal.bus import arguments
from spinal.bus.errors import CallError, NotConnected
from spinal.bus.jobs import FINAL, check_id, mint_key
from spinal.bus.tasks import Tasks
from spinal.protocols import Data, Json, Message, Problem, SpinalError, path
from spinal.protocols import address as addresses

from .. import document
from ..agent import Agent
from ..life import Life
from . import grammar, render
from .alerts import AFTER, Alerts
from .desk import Desk
from .pace import Pace, Verdict

log = structlog.get_logger()

#: Seconds after which a call that has not ended is said to run.
SOON: Final = 1.0
#: Seconds for which the dispatcher is asked to wait for the end of a call, and for which it is
#: looked for when no dispatcher answers.
SLICE: Final = 20.0
AWAY: Final = 3600.0
#: Requests that run at once, of one person and of all.
MAX_EACH: Final = 8
MAX_ALL: Final = 500
#: Messages whose ids are remembered, and for how many seconds, so that one that comes twice is acted
#: upon once.  Not for longer, because there are clients that begin to count anew.
MAX_SEEN: Final = 5000
SEEN_FOR: Final = 120.0
MAX_ID: Final = 128
#: Seconds for which the role of an account is believed, and that it has none, because it may be about
#: to be added; and most accounts of which it is known.
ROLE_FOR: Final = 30.0
NO_ROLE_FOR: Final = 5.0
MAX_ROLES: Final = 10_000
#: Roles of those who are answered.
PEOPLE: Final = frozenset({"caller", "owner"})
#: Effects for which a person has to be asked again, which is not possible here yet.
UNCONFIRMED: Final = frozenset({"deletes", "spends"})
#: Pages of a list that are looked through for a word, and owners that are told of a death.
MAX_PAGES: Final = 50
MAX_OWNERS: Final = 20
#: Pieces of the watch that may be unread, and seconds before it is begun anew.
WINDOW: Final = 16
PAUSE: Final = 1.0
#: Seconds between two attempts of an account that has not the role for it.
NOT_ALLOWED_PAUSE: Final = 30.0

SCHEMA: Final[Mapping[str, Json]] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {
            "description": "Name of its account, which people add to their contacts.",
            "type": "string",
            "pattern": "^[a-z0-9][a-z0-9._-]{0,63}$",
            "errorMessage": "write lower-case letters, digits, '.', '_' and '-'",
            "examples": ["chat"],
        },
        "alerts": {
            "description": "Whether owners are told of agents that died.",
            "type": "boolean",
            "examples": [True],
        },
        "alert_after": {
            **document.DURATION,
            "description": "How long an agent has to be gone before that.",
        },
        "per_minute": {
            "description": "Messages that one person may send in a minute.",
            "type": "integer",
            "minimum": 1,
            "maximum": 1000,
            "examples": [30],
        },
    },
}


@dataclass(frozen=True, slots=True)
class Config:
    """What its file says."""

    name: str = "chat"
    alerts: bool = True
    #: Seconds.
    alert_after: float = AFTER
    per_minute: int = 30

    @staticmethod
    def load(file: Path | None) -> Config:
        """Read the file, if there is one.

        Raises:
            AgentError: it cannot be read, or has mistakes.
        """
        found: dict[str, Any] = {}
        if file is not None:
            found = dict(document.load(file, SCHEMA).value or {})
        if "alert_after" in found:
            found["alert_after"] = document.seconds(found["alert_after"])
        return Config(**found)


def make(config: Path | None = None) -> Agent:
    """Make the agent.

    Raises:
        AgentError: the file has mistakes.
    """
    found = Config.load(config)

    @asynccontextmanager
    async def lifespan(life: Life) -> AsyncGenerator[None]:
        chat = Chat(life, found)
        try:
            yield
        finally:
            await chat.close()

    return Agent(found.name, slots=1, lifespan=lifespan, role="gateway")


#: Says something to whoever asked.
Say = Callable[[str], None]


class Chat:
    """Answers messages during one life of the agent.

    Args:
        life: of the agent; not on the bus yet.
        config: how it is to be.
    """

    def __init__(self, life: Life, config: Config) -> None:
        self._session = session = life.session
        self._desk = Desk(session)
        self._pace = Pace(config.per_minute)
        self._tasks = Tasks("chat")
        self._running: dict[str, int] = {}
        #: Sender and id of a message -> when it came.
        self._seen: OrderedDict[tuple[str, str], float] = OrderedDict()
        #: Bare address -> role, and until when that is believed.
        self._roles: OrderedDict[str, tuple[str | None, float]] = OrderedDict()
        self._alerts = Alerts(config.alert_after)
        self._news = asyncio.Event()
        self._commands: Mapping[str, Callable[[_Asked], Awaitable[None]]] = {
            "ops": self._ops,
            "agents": self._agents,
            "call": self._call,
            "why": self._why,
            "help": self._help,
        }
        session.on_message = self._heard
        session.on_subscribe = self._asked_to_see_us
        if config.alerts:
            self._tasks.spawn(self._watch(), "watch")
            self._tasks.spawn(self._alert(), "alert")

    async def close(self) -> None:
        """Stop what runs; calls go on as jobs."""
        await self._tasks.close()

    # -- what comes

    def _heard(self, message: Message) -> None:
        """Take a message, unless it came before or is too much."""
        person, now = addresses.bare(message.sender), self._session.now
        if message.id:
            key = (message.sender, message.id[:MAX_ID])
            if now - self._seen.get(key, -SEEN_FOR) < SEEN_FOR:
                return
            self._seen[key] = now
            if len(self._seen) > MAX_SEEN:
                self._seen.popitem(last=False)
        verdict = self._pace.take(person, now)
        if verdict is Verdict.DROP:
            return
        if len(self._tasks) >= MAX_ALL:
            log.warning("chat_full", person=person)
            return
        self._tasks.spawn(self._answer(message, person, verdict), f"answer {person}")

    async def _answer(self, message: Message, person: str, verdict: Verdict) -> None:
        role = await self._role(person)
        if role not in PEOPLE:
            log.info("message_ignored", sender=message.sender, role=role)
            return

        def say(text: str) -> None:
            said = Message(text, message.sender, id=secrets.token_hex(8), thread=message.thread)
            if not self._session.write(said):
                log.warning("answer_lost", person=person)

        running = self._running.get(person, 0)
        if verdict is Verdict.WARN:
            say("that is too fast for me: wait a moment, what you say meanwhile is not read")
        elif message.delayed:
            # Whoever said it may have changed their mind, and may not be there to see what it does.
            said = render.one_line(message.text, 80)
            say(f"I was away when you said {said!r}: say it again if you still want it")
        elif message.encrypted:
            say("I read no encrypted messages: switch encryption off for this chat")
        elif running >= MAX_EACH:
            say(f"{running} of your calls are running: wait until one of them ends")
        else:
            self._running[person] = running + 1
            try:
                await self._do(_Asked(message.sender, message.text, say))
            finally:
                self._running[person] -= 1
                if not self._running[person]:
                    del self._running[person]

    async def _do(self, asked: _Asked) -> None:
        op = ""
        try:
            request = grammar.parse(asked.text)
            if request is None:
                return
            asked.words = request.words
            op = next(iter(request.words), "") if request.command == "call" else ""
            await self._commands[request.command](asked)
        except CallError as exc:
            asked.say(render.problem(exc.problem, op))
        except arguments.ArgumentError as exc:
            asked.say(render.problem(exc.problem, op))
        except NotConnected:
            log.warning("answer_lost", person=addresses.bare(asked.sender))
        except SpinalError as exc:
            asked.say(render.one_line(str(exc)))
        except Exception:
            log.exception("chat_failed", person=addresses.bare(asked.sender))
            asked.say("something went wrong here; whoever runs this agent finds it in its log")

    async def _role(self, person: str, patience: float = 10.0) -> str | None:
        """Give the role of an account; none if it has none here, or nobody can say."""
        now = self._session.now
        known, until = self._roles.get(person, (None, -1.0))
        if until > now:
            return known
        try:
            found = await self._desk.ask("/spinal/accounts", {"account": person}, patience=patience)
        except (CallError, NotConnected) as exc:
            log.warning("role_unknown", account=person, problem=str(exc))
            return known
        role = next((str(row["role"]) for row in found["items"]), None)
        self._roles.pop(person, None)
        self._roles[person] = (role, now + (ROLE_FOR if role else NO_ROLE_FOR))
        if len(self._roles) > MAX_ROLES:
            self._roles.popitem(last=False)
        return role

    def _asked_to_see_us(self, person: str) -> None:
        """Let people of this home see in their clients whether we are there."""
        if self._pace.take(person, self._session.now) is not Verdict.TAKE:
            return
        if len(self._tasks) < MAX_ALL:
            self._tasks.spawn(self._allow(person), f"allow {person}")

    async def _allow(self, person: str) -> None:
        # Asked while nobody was here it comes with our log-in, perhaps before the dispatcher.
        if await self._role(person, patience=60.0) in PEOPLE:
            self._session.allow(person)
        else:
            log.info("subscription_ignored", account=person)

    # -- what is asked

    async def _help(self, asked: _Asked) -> None:
        asked.say(render.help(*asked.words))

    async def _ops(self, asked: _Asked) -> None:
        (word,) = asked.words or ("",)
        if word.startswith("/"):
            try:
                row = await self._desk.ask("/spinal/op", {"op": word}, asked.sender)
            except CallError as exc:
                if exc.reason not in ("no-agent", "bad-arguments"):
                    raise
            else:
                asked.say(render.op(row))
                return
        rows, total = await self._find("/spinal/ops", asked, word, lambda row: [row["op"]])
        asked.say(render.ops(rows, total, word))

    async def _agents(self, asked: _Asked) -> None:
        (word,) = asked.words or ("",)

        def said(row: Mapping[str, Any]) -> list[str]:
            return [row["agent"], row["state"], *row["ops"], *row["tags"], *row["place"].values()]

        rows, total = await self._find("/spinal/agents", asked, word, said)
        asked.say(render.agents(rows, total, word))

    async def _find(
        self, op: str, asked: _Asked, word: str, said: Callable[[Mapping[str, Any]], list[str]]
    ) -> tuple[list[Mapping[str, Any]], int]:
        """Give the rows of a list with a word in them, as many as are shown, and how many there are."""
        wanted = word.lower()
        rows: list[Mapping[str, Any]] = []
        total = offset = 0
        for _ in range(MAX_PAGES):
            page = await self._desk.ask(op, {"offset": offset}, asked.sender)
            offset += len(page["items"])
            if not word:
                return page["items"], page["total"]
            found = [
                row for row in page["items"] if any(wanted in one.lower() for one in said(row))
            ]
            total += len(found)
            rows = (rows + found)[: render.LINES]
            if not page["more"]:
                break
        return rows, total

    async def _call(self, asked: _Asked) -> None:
        op, *words = asked.words
        path.parts(op)
        if op.startswith("/spinal/"):
            raise grammar.NotUnderstood("I call what agents offer: !ops lists it")
        given = arguments.parse(words)
        described = await self._desk.ask("/spinal/op", {"op": op}, asked.sender)
        if described["effects"] in UNCONFIRMED:
            raise grammar.NotUnderstood(
                f"{op} {described['effects']}, and I cannot ask you to confirm that yet: "
                f"use `spinal call {op}`"
            )
        values = arguments.convert(given, described["args"], _no_files)
        job: Mapping[str, Json] = {
            "op": op,
            "args": values,
            # So that it may be asked for twice.
            "key": mint_key(),
            "labels": ["chat"],
            "wait": SOON,
        }
        row = await self._desk.ask("/spinal/jobs/submit", job, asked.sender, wait=SOON)
        if row["state"] not in FINAL:
            asked.say(render.started(op, row["id"]))
            row = await self._end(asked, row["id"])
        asked.say(render.ended(row))

    async def _end(self, asked: _Asked, id: str) -> Mapping[str, Any]:
        """Wait for the end of a job."""
        while True:
            row: Mapping[str, Any] = await self._desk.ask(
                "/spinal/jobs/wait",
                {"id": id, "seconds": SLICE},
                asked.sender,
                wait=SLICE,
                patience=AWAY,
            )
            if row["state"] in FINAL:
                return row

    async def _why(self, asked: _Asked) -> None:
        (id,) = asked.words
        try:
            check_id(id)
        except ValueError:
            problem = Problem("unknown-job", f"{render.one_line(id, 60)!r} is no id")
            raise CallError.of(problem) from None
        found = await self._desk.ask("/spinal/jobs/why", {"id": id}, asked.sender)
        asked.say(render.why(found["lines"]))

    # -- what owners are told

    async def _watch(self) -> None:
        """Keep a watch open, at whichever dispatcher there is."""
        missed: set[str] = set()
        while True:
            pause = PAUSE
            try:
                call = self._desk.begin("/spinal/agents/watch", WINDOW)
                async for item in call:
                    if isinstance(item, Data):
                        self._learn(item.value)
                        # While nobody watched they may have come back; now we would be told.
                        await self._look_for(missed)
                        missed = set()
                await call.result()
            except CallError as exc:
                log.info("watch_ended", problem=str(exc))
                if exc.reason == "not-allowed":
                    log.error(
                        "role_missing", hint="the account of this agent needs the role gateway"
                    )
                    pause = NOT_ALLOWED_PAUSE
                elif self._session.dispatchers:
                    self._desk.passed_over()
            except NotConnected:
                pass  # It is tried again.
            missed = set(self._alerts.down)
            await asyncio.sleep(pause)

    async def _look_for(self, agents: set[str]) -> None:
        """Find out which of these agents are there."""
        offset = 0
        for _ in range(MAX_PAGES if agents else 0):
            page = await self._desk.ask("/spinal/agents", {"offset": offset})
            offset += len(page["items"])
            here = {
                row["agent"] for row in page["items"] if row["state"] not in ("gone", "suspect")
            }
            for agent in here & agents:
                self._alerts.here(agent, self._session.now)
            if not page["more"]:
                break
        if agents:
            self._news.set()

    def _learn(self, rows: Any) -> None:
        now = self._session.now
        for row in rows:
            match row:
                case {"what": "gone", "agent": str(agent), "why": str(why)}:
                    running, in_flight = row.get("running", ()), row.get("in_flight", 0)
                    self._alerts.gone(agent, why, now, running, in_flight)
                case {"what": "here", "agent": str(agent)}:
                    self._alerts.here(agent, now)
                case {"what": "dropped", "count": int(count)}:
                    self._alerts.missed(count)
                case _:
                    pass  # News of a later version.
        self._news.set()

    async def _alert(self) -> None:
        """Tell every owner what is to be told, when it is."""
        while True:
            self._news.clear()
            due = self._alerts.next()
            if due > self._session.now:
                try:
                    async with asyncio.timeout_at(due if due < float("inf") else None):
                        await self._news.wait()
                except TimeoutError:
                    pass  # It is due now.
                continue
            try:
                owners = await self._owners()
            except (CallError, NotConnected) as exc:
                log.warning("owners_unknown", problem=str(exc))
                await asyncio.sleep(PAUSE)
                continue
            self._tell(owners)
            if self._alerts.next() <= self._session.now:
                # We have no stream: it is told on the next one.
                await asyncio.sleep(PAUSE)

    def _tell(self, owners: list[str]) -> None:
        now = self._session.now
        batch = self._alerts.batch(now)
        if batch is None or not self._session.connected:
            return
        text = render.alert(batch)
        for owner in owners:
            self._session.write(Message(text, owner, id=secrets.token_hex(8)))
        log.info("owners_told", owners=len(owners), gone=len(batch.gone), back=len(batch.back))
        self._alerts.told(batch, now)

    async def _owners(self) -> list[str]:
        page = await self._desk.ask("/spinal/accounts", {"role": "owner", "limit": MAX_OWNERS})
        return [str(row["account"]) for row in page["items"]]


@dataclass(slots=True)
class _Asked:
    """One message that is being answered."""

    #: Full address, as the server stamped it.
    sender: str
    text: str
    say: Say
    #: Behind the command.
    words: tuple[str, ...] = ()


def _no_files(given: arguments.Given) -> Path:
    """Refuse an argument that names a file: there are none here."""
    raise arguments.ArgumentError(
        f"{given.name}: I take no files in a chat yet: use `spinal call`", given.name
    )
