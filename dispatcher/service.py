"""The dispatcher as an agent on the bus: wires presence, clock and requests to the parts.

It decides nothing: who is there is the registry's, who may is the role table's, who does it is the
resolver's, and what becomes of a call the broker's.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

import structlog

from spinal.bus.connection import Connection
from spinal.bus.errors import CallError
from spinal.bus.requests import Relayed, Request
from spinal.bus.session import Session
from spinal.bus.tasks import Tasks
from spinal.bus.visible import Visible
from spinal.protocols import (
    Advertisement,
    Capabilities,
    Describe,
    Description,
    Event,
    Json,
    Operation,
    Problem,
    RemoteProtocolError,
    Seen,
    SpinalError,
    Stanza,
)

from .agent import SUSPECT_AFTER
from .broker import Broker
from .catalogue import OWN, Catalogue
from .errors import RegistryFull
from .jobs.clock import Clock
from .jobs.keeper import Keeper
from .jobs.operations import JOB_OPERATIONS, JobOperations
from .joining.joining import Joining
from .joining.operations import TICKET_OPERATIONS, TicketOperations
from .many import ask_all, ask_any
from .own import Own
from .placing.operations import SERVICE_OPERATIONS, ServiceOperations
from .placing.placer import Placer
from .pools.fleet import Fleet
from .pools.operations import POOL_OPERATIONS, PoolOperations
from .pools.renting import Renting
from .registry import Arrival, News, Registry
from .remembered import Remembered
from .resolver import Demand
from .retry import Loss
from .roles import Right, Roles, RoleTable
from .store.contract import LifeOver, Peers, Store, StoreError
from .tap import Taps
from .watch import Watches

log = structlog.get_logger()

#: Seconds after our start in which a call that nobody can do waits for remembered agents.
SETTLE = 6.0

#: Seconds between two looks at leases, deadlines and the file of known agents; and after which it
#: was us who were stopped, and not the agents who were silent.
TICK = 1.0
STOPPED = 4.0

#: Once the file of known agents was written, it is not for so many times as long as that took.
KEEPING_SHARE = 200

#: Agents that are greeted at once, and the pause after them in seconds.
GREETED = 50
GREETING_PAUSE = 0.05

#: Descriptions that are asked for at once, how often one is asked for, and the pause in seconds
#: after which a hash that nobody would describe is asked for again.
DESCRIBING = 16
DESCRIBE_TRIES = 3
DESCRIBE_PAUSE = 30.0

#: Seconds that an agent may take to describe itself.
DESCRIBE_TIMEOUT = 10.0

#: Seconds in which a stanza that we send to ourselves has to come back.
ECHO = 2.0

#: Seconds between two looks whether the last calls have ended.
FINISHED = 0.05

#: Strangers of whom it is remembered that their refusal was logged.
MAX_STRANGERS = 1000


_ARRIVALS = {
    Arrival.JOINED: "agent_joined",
    Arrival.RETURNED: "agent_returned",
    Arrival.RESTARTED: "agent_restarted",
}


class Dispatcher:
    """Resolves and brokers on one connection.  Use as an async context manager.

    Args:
        connection: who we are on the bus; opened on entering and closed on leaving.
        roles: role of every account, by bare address; strangers have none and may do nothing.
        known: file that keeps the addresses of agents over our restarts.
        accounts: gives the roles of the home's accounts by bare address, for other dispatchers.
        dispatchers: addresses of dispatchers that agents are told of besides those on our store.
        random: where the policy ``random`` draws from.
        epoch: number of this life; by default the time.
        store: where jobs are kept; ours to open and close.  Without one there are no jobs.
        clock: what time it is for them.
        on_dispatchers: told the addresses of all dispatchers on our store when they change.
        joining: how machines join; theirs to open once we are.
        renting: what the home says about machines that it rents; without it there are no pools.

    Raises:
        BusError: on entering, when the connection cannot be opened.
        NotAStore: on entering, when the store is none, or of a newer version.
        StoreError: on entering, when the store cannot be used now.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        roles: Roles,
        accounts: Callable[[], Mapping[str, str]] = dict,
        known: Path | None = None,
        dispatchers: Collection[str] = (),
        random: Random | None = None,
        epoch: int | None = None,
        store: Store | None = None,
        clock: Clock | None = None,
        on_dispatchers: Callable[[Collection[str]], None] = lambda addresses: None,
        joining: Joining | None = None,
        renting: Renting | None = None,
    ) -> None:
        self._connection = connection
        self._on_dispatchers = on_dispatchers
        self._roles = RoleTable(roles, lambda done: asyncio.get_running_loop().call_soon(done))
        self._remembered = Remembered(known)
        self._named = self._others = frozenset(dispatchers)
        self.registry = Registry()
        self.session = Session(
            connection,
            self._handle,
            role="dispatcher",
            dispatchers=dispatchers,
            # So that a call which we were given in a former life is not begun again in this one.
            epoch=time.time_ns() // 1_000_000 if epoch is None else epoch,
            trust=lambda address: self._roles.role(address) is not None,
        )
        self.session.on_open = self._opened
        self.session.on_close = self._closed
        self.session.on_presence = self._presence
        self.session.on_event = self._event
        self.broker = Broker(self.session, self.registry, expecting=self._expecting, random=random)
        self._draining = False
        self._taps = Taps(
            self.session.whisper,
            lambda: [a.address for a in self.registry if "mirror" in a.advertisement.features],
            self._watched,
        )
        self._watches = Watches(self.registry)
        self._catalogue = Catalogue(
            self.registry, self.broker, self._taps, self._watches, self._roles, accounts
        )
        self.visible = Visible(
            self.session,
            "automation",
            "command-list",
            paths=lambda: list(self.registry.operations()),
            operation=self._operation,
            agents=lambda: sorted(a.address for a in self.registry if a.gone_at is None),
        )
        self.keeper: Keeper | None = None
        self.placer: Placer | None = None
        self.fleet: Fleet | None = None
        #: Of several dispatchers on one store, the one with the first address rents for all.
        self._leads = False
        #: Our own operations, each with who answers it.
        self._own: dict[str, tuple[Own[Any], Any]] = {
            path: (own, self._catalogue) for path, own in OWN.items()
        }
        if store is not None:
            self.keeper = Keeper(
                store,
                self.broker,
                self.registry,
                self.session,
                clock=clock,
                random=random,
                accounts=accounts,
                on_peers=self._met,
            )
            jobs = JobOperations(self.keeper, self.registry, self._roles, self.broker.context)
            self.placer = Placer(self.keeper, self.registry, self.broker)
            services = ServiceOperations(self.placer, self.keeper, jobs, self._roles)
            self._own |= {path: (own, jobs) for path, own in JOB_OPERATIONS.items()}
            self._own |= {path: (own, services) for path, own in SERVICE_OPERATIONS.items()}
            self.session.on_final = self.keeper.strays.late
            if renting is not None:
                self.fleet = Fleet(
                    self.keeper,
                    self.registry,
                    self.broker,
                    renting,
                    address=connection.address,
                    hold=self.hold,
                    release=self.release,
                    leads=lambda: self._leads,
                )
                self.keeper.on_end = self.fleet.job_ended
                pools = PoolOperations(self.fleet)
                self._own |= {path: (own, pools) for path, own in POOL_OPERATIONS.items()}
        if joining is not None:
            tickets = TicketOperations(joining)
            self._own |= {path: (own, tickets) for path, own in TICKET_OPERATIONS.items()}
        self._tasks = Tasks("dispatcher")
        self._stack = AsyncExitStack()
        #: Remembered agents that have not reported yet; empty once we have settled.
        self._missing: set[str] = set()
        self._describing: set[str] = set()
        self._describers = asyncio.Semaphore(DESCRIBING)
        #: Hash that nobody would describe -> when to ask again.
        self._undescribed: dict[str, float] = {}
        self._suspects: set[str] = set()
        #: Our server passes nothing on, so that silence says nothing about agents.
        self._deaf = False
        self._listening = False
        self._strangers: set[str] = set()
        #: What the file of known agents was last written for, and when it may be written again.
        self._kept = (0, 0)
        self._keep_at = 0.0

    # -- life

    async def __aenter__(self) -> Self:
        self._missing = set(self._remembered.load())
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._tasks.close)
            stack.callback(self._taps.close)
            if self.keeper is not None:
                await self.keeper.open(self._connection.address)
                stack.push_async_callback(self.keeper.close)
            if self.fleet is not None:
                await self.fleet.open()
            await stack.enter_async_context(self.session)
            stack.callback(self._leave)
            if self.keeper is not None:
                await self.keeper.start()
                if self.placer is not None:
                    self.keeper.spawn("placing", self.placer.run)
                if self.fleet is not None:
                    self.keeper.spawn("tending", self.fleet.run)
                stack.push_async_callback(self.keeper.close)
            self._stack = stack.pop_all()
        self._tasks.spawn(self._housekeeping(), "housekeeping")
        self._tasks.spawn(self._settle(), "settling")
        log.info("dispatcher_started", address=self.session.address, known=len(self._missing))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop brokering, cancel what runs, and leave the bus; may be called again."""
        await self._stack.aclose()

    def _leave(self) -> None:
        self.broker.close()
        self._keep_at = 0.0
        self._remember()

    @property
    def address(self) -> str:
        """Our full address."""
        return self.session.address

    async def failed(self) -> Exception:
        """Return the error once we cannot go on; until then, wait.

        Our connection has given up for good, or another dispatcher took our jobs.
        """
        waiting = [asyncio.ensure_future(self._connection.failed())]
        if self.keeper is not None:
            waiting.append(asyncio.ensure_future(self.keeper.failed()))
        try:
            ended, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return ended.pop().result()
        finally:
            for item in waiting:
                item.cancel()

    async def finish(self, grace: float) -> None:
        """Take nothing new, and give the calls that are at agents so many seconds to end.

        Jobs need no grace: agents go on with them, and whoever comes next asks for the results.
        """
        self._draining = True
        if self.keeper is not None:
            self.keeper.drain()
        end = self._now() + grace
        while self.broker.calls_in_flight and self._now() < end:
            await asyncio.sleep(FINISHED)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # -- stream

    def _opened(self) -> None:
        self._deaf = False
        self.session.dispatchers = self._others | {self.session.address}
        self.registry.resumed(self._now())
        self._greet_all()

    def _met(self, peers: Peers) -> None:
        """Learn who dispatches on our store: agents and clients know all of us, so we tell them."""
        self._roles.shared = peers.roles
        self._leads = self._connection.address == min(peers.addresses, default="")
        others = peers.addresses | self._named
        if self._others == others:
            return
        log.info("dispatchers_changed", dispatchers=sorted(peers.addresses))
        self._others = others
        self.session.dispatchers = others | {self.session.address}
        self._greet_all()
        try:
            self._on_dispatchers(peers.addresses)
        except SpinalError as exc:
            log.warning("dispatchers_not_kept", error=str(exc))

    def _greet_all(self) -> None:
        known = {agent.address for agent in self.registry} | self._missing
        here = {peer.address for peer in self.session.peers.values() if peer.present}
        self._tasks.spawn(self._greet(sorted(known | here)), "greeting")

    def _closed(self, reason: str) -> None:
        self.registry.stopped(self._now())

    async def _greet(self, addresses: Iterable[str]) -> None:
        """Say hello, so that agents report now and not with their next heartbeat; paced."""
        for chunk in _chunks(addresses, GREETED):
            for address in chunk:
                self.session.send_presence(address, self.session.hello())
            await self.session.drain()
            await asyncio.sleep(GREETING_PAUSE)

    # -- agents

    def _presence(self, address: str, available: bool, events: Sequence[Event]) -> None:
        if not available:
            agent = self.registry.unavailable(address, self._now())
            if agent is not None:
                log.info("agent_left", agent=address, epoch=agent.epoch, in_flight=agent.in_flight)
                self._watches.gone(agent, "its stream is gone")
                self.broker.changed(agent)
                if self.keeper is not None:
                    self.keeper.heard(address, silent=True)
            return
        for event in events:
            if isinstance(event, Advertisement):
                self._advertised(address, event)

    def _event(self, sender: str, event: Event) -> None:
        if isinstance(event, Advertisement):
            self._advertised(sender, event)
        elif isinstance(event, Seen) and sender in self.registry:
            self._taps.seen(event)

    def _advertised(self, address: str, said: Advertisement) -> None:
        if not self._roles.may(address, Right.ADVERTISE):
            role = self._roles.role(address) or "none"
            self._refuse(
                address,
                Problem("not-allowed", f"an account with role {role} may not offer operations"),
            )
            return
        registry, keeper = self.registry, self.keeper
        before = registry.get(address)
        was = None if before is None else before.advertisement
        silent = before is not None and (before.gone_at is not None or address in self._suspects)
        try:
            news = registry.advertised(address, said, self._now())
        except RegistryFull as exc:
            self._refuse(address, exc.problem)
            return
        agent = news.agent
        if silent or news.arrival is not Arrival.RENEWED:
            self._watches.here(agent)
        if silent:
            self._suspects.discard(address)
            if keeper is not None:
                keeper.heard(address, silent=False)
        if news.arrival is not Arrival.RENEWED:
            self._arrived(news)
        if before is not None and was is not None and not _alike(was, said):
            self.broker.changed(agent)
            self.broker.withdrawn(before.operations)
        if not registry.knows(said.hash):
            self._describe(said.hash)
        self.broker.reported(agent)
        if said.holds and keeper is not None:
            keeper.strays.held(address, said.held)
        if address in self._missing:
            self._missing.discard(address)
            if not self._missing:
                self.broker.look_again()

    def _arrived(self, news: News) -> None:
        agent = news.agent
        for key in news.lost:
            self.broker.lose(key, Loss.RESTARTED)
        log.info(
            _ARRIVALS[news.arrival],
            agent=agent.address,
            epoch=agent.epoch,
            slots=agent.slots,
            lost=len(news.lost),
        )
        self._taps.ask(agent.address)

    def _refuse(self, address: str, problem: Problem) -> None:
        """Answer an advertisement with an error, so that whoever sent it can say why."""
        if address not in self._strangers and len(self._strangers) < MAX_STRANGERS:
            self._strangers.add(address)
            log.warning("advertisement_refused", agent=address, problem=problem.text)
        if self.session.connected:
            self._connection.send(Stanza("presence", "error", address, problem=problem))

    def hold(self, account: str, why: str) -> None:
        """Hold back the agents of an account (:meth:`.Registry.hold`), now and when they come."""
        for agent in self.registry.hold(account, why):
            self.broker.changed(agent)

    def release(self, account: str) -> None:
        """Give the agents of an account work again."""
        for agent in self.registry.release(account):
            self.broker.pump(agent)

    # -- descriptions

    def _describe(self, hash: str) -> None:
        """Ask for a description, once for all who have it."""
        if hash in self._describing or self._undescribed.get(hash, 0.0) > self._now():
            return
        self._describing.add(hash)
        self._tasks.spawn(self._ask_description(hash), "describing")

    async def _ask_description(self, hash: str) -> None:
        try:
            async with self._describers:
                found = await self._description(hash)
        finally:
            self._describing.discard(hash)
        if found is None:
            self._undescribed[hash] = self._now() + DESCRIBE_PAUSE
        else:
            self._undescribed.pop(hash, None)
            for agent in self.registry.described(found):
                self.broker.pump(agent)
        self.broker.look_again()

    async def _description(self, hash: str) -> Capabilities | None:
        """Ask those who advertise it, another one each time as long as there is one."""
        for number in range(DESCRIBE_TRIES):
            users = self.registry.undescribed().get(hash)
            if not users:
                return None
            address = users[number % len(users)]
            try:
                answer = await self.session.ask(address, Describe(hash), timeout=DESCRIBE_TIMEOUT)
                for event in answer:
                    if isinstance(event, Description):
                        return Capabilities.parse(event.text, hash)
                problem = "no description in the answer"
            except (CallError, RemoteProtocolError) as exc:
                problem = str(exc)
            log.warning("description_missing", agent=address, hash=hash[:12], problem=problem)
        return None

    def _expecting(self) -> bool:
        """Whether somebody may still turn out to offer an operation that is unknown now."""
        return bool(self._missing or self._describing)

    # -- clock

    async def _settle(self) -> None:
        await asyncio.sleep(SETTLE)
        if self._missing:
            log.info("known_agents_missing", count=len(self._missing))
            self._missing.clear()
            self.broker.look_again()

    async def _housekeeping(self) -> None:
        looked = self._now()
        while True:
            await asyncio.sleep(TICK)
            before, looked = looked, self._now()
            if looked - before > STOPPED:
                log.warning("dispatcher_was_stopped", seconds=round(looked - before, 1))
                if self.registry.runs:
                    self.registry.resumed(looked)
            self._look()

    def _look(self) -> None:
        now = self._now()
        for agent in self.registry.sweep(now):
            log.info("agent_removed", agent=agent.address, epoch=agent.epoch)
            self._suspects.discard(agent.address)
            for key in agent.attempts():
                self.broker.lose(key, Loss.SILENT)
            self.broker.changed(agent)
            self.broker.withdrawn(agent.operations)
        for agent in self.registry.suspects(now):
            if agent.address not in self._suspects:
                self._suspects.add(agent.address)
                if self.keeper is not None:
                    self.keeper.heard(agent.address, silent=True)
                log.info("agent_suspected", agent=agent.address, in_flight=agent.in_flight)
                self._watches.gone(agent, f"silent for {SUSPECT_AFTER:g} s")
                self.broker.changed(agent)
        if (self._suspects or self._deaf) and not self._listening and self.session.connected:
            self._listening = True
            self._tasks.spawn(self._listen(), "listening")
        for hash in self.registry.undescribed():
            self._describe(hash)
        self._undescribed = {h: at for h, at in self._undescribed.items() if at > now}
        self.broker.look_for_forgotten()
        self.broker.expire()
        self._remember()

    async def _listen(self) -> None:
        """Tell agents that are silent from a server that passes nothing on: leases stand still then.

        A stream that is up does not say that anything moves on it.  What we send to ourselves goes
        the whole way to the server and back.
        """
        try:
            await self.session.ask(self.session.address, self.session.hello(), timeout=ECHO)
            deaf = False
        except CallError:
            deaf = True
        finally:
            self._listening = False
        if deaf and not self._deaf and self.session.connected:
            log.warning("server_passes_nothing_on", suspects=len(self._suspects))
            self._deaf = True
            self.registry.stopped(self._now())
        elif self._deaf and not deaf:
            log.info("server_passes_on_again")
            self._deaf = False
            self.registry.resumed(self._now())

    def _remember(self) -> None:
        """Keep the addresses of the agents, where they may have changed; paced by what it costs."""
        state, began = (self.registry.changes, len(self._missing)), self._now()
        if state == self._kept or began < self._keep_at:
            return
        self._remembered.save({agent.address for agent in self.registry} | self._missing)
        self._kept = state
        self._keep_at = began + KEEPING_SHARE * (self._now() - began)

    # -- requests

    def _operation(self, path: str) -> Operation | None:
        """Find an operation, by the description that has been known longest."""
        return next(iter(self.registry.offers(path)), None)

    async def _handle(self, request: Request) -> Json:
        op = request.op
        own, answers = self._own.get(op.op, (None, None))
        right = Right.CALL if own is None else own.right
        asking = request.sender
        if op.caller is not None and self._roles.may(asking, Right.RELAY):
            # From here on it is theirs: rights, jobs, their turn, and what agents are told.
            asking = request.caller = op.caller
        if not self._roles.may(asking, right):
            role = self._roles.role(asking) or "none"
            raise CallError.of(
                Problem("not-allowed", f"an account with role {role} may not call {op.op} here")
            )
        if own is not None:
            try:
                return await own.run(answers, request, own.read(op.args))
            except StoreError as exc:
                over = self.keeper is None or self.keeper.draining
                reason = "draining" if over else "full"
                raise CallError.of(Problem(reason, str(exc), after=1.0)) from exc
            except LifeOver as exc:
                if self.keeper is not None:
                    self.keeper.fail(exc)
                raise CallError.of(Problem("draining", "this dispatcher begins anew")) from exc
        if self._draining:
            raise CallError.of(Problem("draining", "this dispatcher is shutting down"))
        demand = Demand.of(op.op, op.want)
        if demand.policy == "all":
            return await ask_all(self.broker, self.registry, request, demand)
        if demand.policy == "any-first":
            return await ask_any(self.broker, self.registry, request, demand)
        errand = self.broker.errand(request, demand)
        errand.request = request
        final = await self.broker.run(errand)
        return Relayed(final)

    def _watched(self, watched: bool) -> None:
        self.broker.watch = self._taps.seen if watched else None


def _alike(one: Advertisement, other: Advertisement) -> bool:
    """Whether two reports of an agent differ in nothing that decides where calls may wait."""
    return (
        one.epoch == other.epoch
        and one.hash == other.hash
        and one.state == other.state
        and one.place == other.place
        and one.tags == other.tags
    )


def _chunks(items: Iterable[str], size: int) -> Iterable[list[str]]:
    rest = iter(items)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk
