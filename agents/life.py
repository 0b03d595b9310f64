"""One life of an agent on the bus: from its log-in to its last acknowledged result.

Theory of operation.  The session hands each op to :meth:`Life._handle`, in a task of its own that
is cancelled when the caller cancels, vanishes, or its time is up.  The op passes a row of gates
(known, not draining, arguments fit, a slot is free), each of which refuses before anything has
happened, and then runs: on the event loop, or in a worker process.

Beside that one task advertises: at once on change but no more than once a second, and every 5
seconds with jitter.  Each dispatcher gets its own advertisement, so that none depends on another.

The epoch is the time of the start in milliseconds: it must grow from life to life and be known
without a file, because a machine that was set up anew has none; two lives within a millisecond
cannot be, since each logs in under the same address.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import mimetypes
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Collection, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import structlog

from spinal import protocols
from spinal.bus.blob import Blob, Store
from spinal.bus.client import Client
from spinal.bus.connection import Connection
from spinal.bus.errors import BlobError, CallError
from spinal.bus.line import Line
from spinal.bus.requests import Request
from spinal.bus.session import Session
from spinal.bus.tasks import Tasks
from spinal.bus.visible import Visible
from spinal.protocols import (
    FEATURES,
    Advertisement,
    BlobRef,
    Event,
    Hello,
    Json,
    Mirror,
    Problem,
    Seen,
)

from . import results
from .agent import Agent
from .errors import AgentError, EndWith, RoleRefused, problem_of
from .group import Group
from .job import Channel, Facts, Job
from .load import Slots, cpu_count
from .news import News
from .operation import Kind, Operation
from .pools import Pool
from .process import Guard

log = structlog.get_logger()

#: Seconds between two advertisements that say the same, and the part of it that is chance.
HEARTBEAT: Final = 5.0
JITTER: Final = 0.1
#: Shortest time in seconds between two advertisements.
PAUSE: Final = 1.0

#: Seconds that a draining agent gives what runs, and then the callers to take the results.
DRAIN: Final = 30.0
TAKE_WITHIN: Final = 5.0

#: Most attempts that an advertisement lists, and most bytes of them.
MAX_HOLDS: Final = 1000
HOLDS_BYTES: Final = 32 * 1024


class Life:
    """An agent that is on the bus; an async context manager.

    Leaving the block stops it at once: what runs is cancelled.  Call :meth:`drain` before to let
    it end.

    Args:
        agent: what it offers.
        connection: who it is; opened and closed with the life.
        dispatchers: whom it advertises to, and believes on whose behalf they ask.
        store: where blobs come from and go to.
        epoch: number of this life; by default the time.
        heartbeat: seconds between two advertisements that say the same.
        pause: shortest time between two advertisements in seconds.
    """

    def __init__(
        self,
        agent: Agent,
        connection: Connection,
        *,
        dispatchers: Collection[str] = (),
        store: Store | None = None,
        epoch: int | None = None,
        heartbeat: float = HEARTBEAT,
        pause: float = PAUSE,
    ) -> None:
        self.agent = agent
        self.epoch = time.time_ns() // 1_000_000 if epoch is None else epoch
        self._draining = False
        #: Why it takes no new work although it could run; empty while it does.
        self._ailment = ""
        self.slots = Slots(agent.slots or cpu_count(), self._changed)
        self.session = Session(
            connection,
            self._handle,
            role="agent",
            dispatchers=dispatchers,
            epoch=self.epoch,
            features=FEATURES,
        )
        self.visible = Visible(
            self.session,
            "client",
            "bot",
            name=agent.name,
            paths=lambda: sorted(agent.operations),
            operation=self._public,
            hash=lambda: agent.capabilities.hash,
        )
        self._line = Line(self.session, store, sorted(dispatchers))
        #: The bus as the agent itself uses it, in its own name: to call, and to submit jobs.
        self.bus = Client.over(self._line)
        self._connection = connection
        #: The dispatchers that our credentials name, and those that one of them named last.
        self._named = frozenset(dispatchers)
        self._listed = self._named
        #: Those that did not take us when they were last told of us.
        self._refused: set[str] = set()
        self._store = store
        self._heartbeat = heartbeat
        self._pause = pause
        #: Ends the programs that are started for it, if we are killed.
        self.guard = Guard()
        self._pool = Pool(agent.file, agent.declared, self.slots.size)
        self._tasks = Tasks(f"agent {agent.name}")
        #: The agent's lifespan, while it is entered.
        self._stack = contextlib.AsyncExitStack()
        self._change = asyncio.Event()
        #: Whether the dispatchers were told that it drains.
        self._announced = asyncio.Event()
        self._mirrors: dict[str, float] = {}
        self._failed: asyncio.Future[Exception] | None = None
        #: Where files of calls are, once there were any plain ones.
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __repr__(self) -> str:
        return f"<Life of {self.agent.name} {self.state} {self.slots.busy}/{self.slots.size}>"

    @property
    def address(self) -> str:
        """Full address."""
        return self.session.address

    @property
    def state(self) -> str:
        """What it advertises: ``available``, ``unhealthy`` or ``draining``."""
        if self._draining:
            return "draining"
        return "unhealthy" if self._ailment else "available"

    @property
    def ailment(self) -> str:
        """Why it takes no new work; empty while it is well."""
        return self._ailment

    def ail(self, why: str) -> None:
        """Take no new work until further notice, and advertise it; an empty reason ends that.

        What runs goes on.  New ops are refused with ``busy`` and the reason.
        """
        if why != self._ailment:
            log.info("agent_unhealthy" if why else "agent_healthy", agent=self.agent.name, why=why)
            self._ailment = why
            self._changed()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        self._log = log.bind(agent=self.agent.name)
        session = self.session
        session.describe = self._describe
        session.on_open = self._changed
        session.on_presence = self._presence
        session.on_presence_error = self._presence_error
        session.on_event = self._event
        self._changed()
        if self.agent.lifespan is not None:
            await self._stack.enter_async_context(self.agent.lifespan(self))
        try:
            await session.__aenter__()
        except BaseException as exc:
            await self._stack.__aexit__(type(exc), exc, exc.__traceback__)
            raise
        self._tasks.spawn(self._advertise(), "advertise")
        self._tasks.spawn(self._watch(), "watch the connection")
        log.info(
            "agent_started",
            agent=self.agent.name,
            address=self.address,
            epoch=self.epoch,
            operations=len(self.agent.operations),
            slots=self.slots.size,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._line.closed = True
        try:
            await self._tasks.close()
            await self._line.tasks.close()
        finally:
            try:
                await self.session.close()
            finally:
                try:
                    await self._pool.close()
                finally:
                    try:
                        await self._stack.__aexit__(kind, error, trace)
                    finally:
                        await self.guard.close()
                        if self._folder is not None:
                            self._folder.cleanup()
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()
        log.info("agent_stopped", agent=self.agent.name)

    async def failed(self) -> Exception:
        """Return the error once the agent cannot go on: wait until then.

        It is :class:`RoleRefused` when a dispatcher does not take it, else what the connection
        gave up with.
        """
        assert self._failed is not None, "the life has not begun"
        return await asyncio.shield(self._failed)

    async def drain(self, grace: float = DRAIN, take_within: float = TAKE_WITHIN) -> bool:
        """Take nothing new, finish what runs, and wait until the callers have the results.

        Cancelling the wait leaves the agent draining.

        Args:
            grace: seconds for what runs; what is left then is cancelled when the life ends.
            take_within: seconds for the results to be acknowledged.

        Returns whether everything ended and was taken.
        """
        self._draining = True
        self._changed()
        log.info("agent_draining", agent=self.agent.name, running=self.slots.busy)
        try:
            async with asyncio.timeout(grace):
                await self.slots.idle()
                # Its work is done, and its last words are on their way.
                await self.session.finished()
        except TimeoutError:
            log.warning("drain_gave_up", agent=self.agent.name, running=self.slots.busy)
            return False
        taken = await self.session.acknowledged(take_within)
        if not taken:
            log.warning("results_not_taken", agent=self.agent.name, kept=self.session.kept)
        # Who is gone without having said so is taken for dead.
        await self._announced.wait()
        return taken

    async def _watch(self) -> None:
        self._fail(await self._connection.failed())

    def _fail(self, error: Exception) -> None:
        if self._failed is not None and not self._failed.done():
            log.error("agent_failed", agent=self.agent.name, error=str(error))
            self._failed.set_result(error)

    # -- advertising

    def _changed(self) -> None:
        self._change.set()

    async def _advertise(self) -> None:
        """Advertise on change, with a pause in between, and as a heartbeat."""
        while True:
            self._change.clear()
            self._drop_dispatchers()
            for dispatcher in sorted(self.session.dispatchers):
                self._advertise_to(dispatcher)
            if self._draining:
                self._announced.set()
            await asyncio.sleep(self._pause)
            beat = self._heartbeat * random.uniform(1 - JITTER, 1 + JITTER) - self._pause
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(beat):
                    await self._change.wait()

    def _advertise_to(self, dispatcher: str) -> None:
        session = self.session
        peer = session.peers.get(dispatcher)
        known = peer is not None and peer.introduced
        events: list[Event] = [] if known else [session.hello()]
        session.send_presence(dispatcher, *events, self.advertisement(dispatcher))

    def advertisement(self, dispatcher: str) -> Advertisement:
        """Give what is said to a dispatcher now."""
        held = self.session.holds(dispatcher)
        listed = _within(held)
        return Advertisement(
            hash=self.agent.capabilities.hash,
            epoch=self.epoch,
            state=self.state,
            slots=self.slots.size,
            busy=self.slots.busy,
            load=self._load(),
            cost=self.agent.cost,
            place=self.agent.place,
            tags=self.agent.tags,
            holds=listed,
            more=len(listed) < len(held),
            features=sorted(FEATURES),
            stanza=self.session.hello().stanza,
        )

    def _load(self) -> float:
        if self.session.full:
            return max(1.0, self.slots.load)
        if self.agent.load is None:
            return round(self.slots.load, 3)
        try:
            return max(0.0, float(self.agent.load()))
        except Exception as exc:
            # The agent's own metric is user code; without it the slots still say how busy it is.
            log.warning("load_not_measured", agent=self.agent.name, exc_info=exc)
            return round(self.slots.load, 3)

    def _describe(self, hash: str) -> str | None:
        capabilities = self.agent.capabilities
        return capabilities.text if hash == capabilities.hash else None

    def _presence(self, address: str, available: bool, events: Sequence[Event]) -> None:
        self._line.heard(address, available, events)
        if address not in self.session.dispatchers:
            return
        for event in events:
            if isinstance(event, Hello) and event.role == "dispatcher" and event.dispatchers:
                self._refused.discard(address)
                self._listed = frozenset((address, *event.dispatchers))
                self.session.dispatchers |= self._listed
                self._changed()

    def _drop_dispatchers(self) -> None:
        """Advertise no more to those that have gone and are not dispatchers any longer."""
        session = self.session
        for address in session.dispatchers - self._named - self._listed:
            peer = session.peers.get(address)
            if peer is None or not peer.present:
                session.dispatchers -= {address}
                self._mirrors.pop(address, None)
                log.info("dispatcher_dropped", agent=self.agent.name, dispatcher=address)

    def _presence_error(self, address: str, problem: Problem) -> None:
        if address not in self.session.dispatchers:
            return
        if problem.reason == "not-allowed":
            self._refused.add(address)
            if not self._refused >= self.session.dispatchers:
                # One that is new learns of our account from the others; the next heartbeat tells.
                log.warning("dispatcher_refused", dispatcher=address, problem=problem.text)
                return
            self._fail(
                RoleRefused(
                    f"{address} does not take {self.address} as an agent: {problem.text}; "
                    "give its account the role agent"
                )
            )
        else:
            # It is not there yet; the heartbeats will find it.
            log.info("dispatcher_unreachable", dispatcher=address, problem=problem.text)

    def _event(self, sender: str, event: Event) -> None:
        if isinstance(event, Mirror) and sender in self.session.dispatchers:
            self._mirrors[sender] = asyncio.get_running_loop().time() + event.seconds

    def _mirror(
        self,
        request: Request,
        what: str,
        state: str = "",
        ran: int | None = None,
        place: int | None = None,
    ) -> None:
        """Show an event of a direct call to the dispatchers that have a tap open."""
        now = asyncio.get_running_loop().time()
        for dispatcher, until in list(self._mirrors.items()):
            if until <= now:
                del self._mirrors[dispatcher]
            elif request.sender not in self.session.dispatchers:
                op = request.op
                id = op.id if place is None else f"{op.id}/{place}"
                seen = Seen(what, id, request.caller, self.address, op.op, state, ran)
                self.session.whisper(dispatcher, seen)

    # -- operations

    def _public(self, path: str) -> protocols.Operation | None:
        found = self.agent.operations.get(path)
        return None if found is None else found.public

    async def _handle(self, request: Request) -> Json:
        """Run one op; everything that it raises is a :class:`CallError` or a cancellation."""
        state = "cancelled"
        if self._mirrors and request.op.each is None:
            self._mirror(request, "op")
        try:
            value = await self._serve(request)
            state = "done"
            return value
        except asyncio.CancelledError:
            if request.stopping is not None:
                state = request.stopping.reason
            raise
        except CallError as exc:
            state = exc.reason
            raise
        finally:
            # What went well a tap can show; a line for each would cost as much as the call.
            if self._mirrors or state != "done":
                self._tell_end(request, state)

    def _one_ended(self, request: Request, place: int, state: str, ran: int) -> None:
        """Tell of one of a group what is told of any other."""
        if state != "done":
            self._log.info(
                "operation_ended",
                op=request.op.op,
                id=f"{request.op.id}/{place}",
                caller=request.caller,
                state=state,
                ran=ran,
            )
        if self._mirrors:
            self._mirror(request, "op", place=place)
            self._mirror(request, "final", state, ran, place)

    def _tell_end(self, request: Request, state: str) -> None:
        began = request.began
        ran = 0 if began is None else int((self.session.now - began) * 1000)
        if state != "done":
            self._log.info(
                "operation_ended",
                op=request.op.op,
                id=request.op.id,
                attempt=request.op.attempt,
                caller=request.caller,
                state=state,
                ran=ran,
                cpu=None if request.cpu is None else round(request.cpu, 3),
                memory=request.memory,
            )
        if self._mirrors and request.op.each is None:
            self._mirror(request, "final", state, ran)

    async def _serve(self, request: Request) -> Json:
        operation = self._gate(request)
        if request.op.each is not None:
            group = Group(request, operation, self.slots, self._run_one, self._one_ended)
            return await group.run(request.op.each)
        blobs: list[Blob] = []
        arguments = operation.signature.convert(request.op.args, lambda ref: self._blob(ref, blobs))
        async with self.slots.take(operation):
            # How long it ran is without the wait, else short calls that wait here look long.
            request.began = self.session.now
            if request.deadline <= request.began:
                raise CallError.of(Problem("expired"))
            if operation.kind.in_process:
                return await self._run_in_process(request, operation, blobs)
            return await self._run(request, operation, arguments)

    def _gate(self, request: Request) -> Operation:
        path = request.op.op
        operation = self.agent.operations.get(path)
        if operation is None:
            near = difflib.get_close_matches(path, self.agent.operations, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            text = f"{self.agent.name} does not offer {path}{hint}"
            raise CallError.of(Problem("unknown-op", text))
        if self._draining:
            raise CallError.of(Problem("draining"))
        if self._ailment:
            raise CallError.of(Problem("busy", f"it is unhealthy: {self._ailment}"))
        return operation

    def _blob(self, ref: BlobRef, made: list[Blob]) -> Blob:
        if self._store is None:
            raise CallError.of(Problem("blob", "this agent has no place to fetch blobs from"))
        made.append(Blob(None, ref.media_type, ref=ref, store=self._store))
        return made[-1]

    async def _run(self, request: Request, operation: Operation, arguments: dict[str, Any]) -> Json:
        """Run a coroutine function, here."""
        request.limit(operation.timeout, operation.late)
        name = operation.signature.job
        if operation.simple:
            result = await self._invoke(request, operation.function(**arguments))
            return await results.pack(result, self._store)
        with News(request) as news:
            job = Job(_facts(request), news, self._store, self.guard)
            if name is not None:
                arguments[name] = job
            work = operation.function(**arguments)
            if operation.kind is Kind.STREAM:
                work = _streamed(work, job)
            try:
                result = await self._invoke(request, work)
            except asyncio.CancelledError:
                job.stop()
                raise
            return await results.pack(result, self._store)

    async def _run_one(
        self, request: Request, operation: Operation, given: Mapping[str, Json]
    ) -> Json:
        """Run a simple operation with one of several sets of arguments."""
        arguments = operation.signature.convert(given, lambda ref: self._blob(ref, []))
        result = await self._invoke(request, operation.function(**arguments))
        return await results.pack(result, self._store)

    async def _invoke(self, request: Request, work: Awaitable[Any]) -> Any:
        """Run user code; what it raises becomes a problem, except our own cancellation."""
        try:
            return await work
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise CallError.of(Problem("failed", "the operation cancelled itself")) from exc
        except Exception as exc:
            problem = problem_of(exc)
            # What it says in its own words needs no traceback.
            if problem.reason == "failed" and not isinstance(exc, (EndWith, AgentError)):
                op = request.op
                self._log.warning("function_raised", op=op.op, id=op.id, exc_info=exc)
            raise CallError.of(problem) from exc

    @contextlib.contextmanager
    def _call_folder(self) -> Generator[Path]:
        """Name a folder for the files of one call; whoever has a file makes it."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(
                prefix="spinal-agent-", ignore_cleanup_errors=True
            )
        folder = Path(self._folder.name, secrets.token_hex(8))
        try:
            yield folder
        finally:
            if folder.exists():
                shutil.rmtree(folder, ignore_errors=True)

    async def _run_in_process(
        self, request: Request, operation: Operation, given: Collection[Blob]
    ) -> Json:
        """Run a plain function in a worker; its blobs are fetched before and uploaded after."""
        with self._call_folder() as folder:
            files = await _fetch(given, folder)
            with News(request) as news:
                channel: Channel = news
                outcome = await self._pool.run(
                    _facts(request),
                    request.op.args,
                    channel,
                    folder=folder,
                    files=files,
                    timeout=operation.timeout,
                )
            blobs = [
                (tuple(file.steps), Blob(Path(file.path), file.media_type))
                for file in outcome.files
            ]
            value = await results.upload(outcome.value, blobs, self._store)
        if blobs:
            results.check(value)
        return value


def _within(held: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Give as many of the attempts as an advertisement lists."""
    # The quotes, brackets and commas, and a number of at most seven digits.
    room = HOLDS_BYTES
    for count, (id, _) in enumerate(held[:MAX_HOLDS]):
        room -= len(id) + 13
        if room < 0:
            return held[:count]
    return held[:MAX_HOLDS]


async def _streamed(values: AsyncGenerator[Any], job: Job) -> None:
    """Send what a generator function yields."""
    async with contextlib.aclosing(values):
        async for value in values:
            await job.data(value)


def _facts(request: Request) -> Facts:
    op = request.op
    return Facts(op.id, op.op, request.caller, op.attempt)


async def _fetch(blobs: Collection[Blob], folder: Path) -> dict[str, Path]:
    """Fetch blobs, each once: sha-256 -> file."""
    files: dict[str, Path] = {}
    for blob in blobs:
        if blob.sha256 not in files:
            folder.mkdir(exist_ok=True)
            # Programs tell by a file's name what it is.
            suffix = mimetypes.guess_extension(blob.media_type) or ""
            try:
                files[blob.sha256] = await blob.save(folder / f"{blob.sha256}{suffix}")
            except BlobError as exc:
                raise CallError.of(problem_of(exc)) from exc
    return files
