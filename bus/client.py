"""The bus as a program sees it: calls by name, streams, maps, and who could do what."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spinal.protocols import (
    LIMITS,
    Data,
    Json,
    LocalProtocolError,
    Problem,
    RemoteProtocolError,
    Want,
    duration,
    is_reference,
    parse_reference,
)
from spinal.protocols import address as addresses
from spinal.protocols.path import check_places

from .blob import Blob, blobs_in, put
from .blobs import Blobs
from .call import Call, Item
from .connection import Connection
from .errors import BlobError, BusError, CallError
from .home import Credentials
from .session import Session

#: Seconds that a call may take if nobody says otherwise.
TIMEOUT = 60.0
#: Calls of a map that are under way at once if nobody says otherwise.
WINDOW = 64
#: Pieces of a stream that may be unread.
STREAM_WINDOW = 32

#: The client accepts as an argument whatever JSON takes, and paths and blobs anywhere inside.
Argument = Any


@dataclass(frozen=True, slots=True)
class Options:
    """How a call is made; :meth:`Client.options` gives a client with others."""

    #: Address of the one agent that is to do it; without one the dispatcher chooses.
    to: str | None = None
    policy: str = "least-loaded"
    place: Mapping[str, str] = field(default_factory=dict[str, str])
    tags: Sequence[str] = ()
    sticky: str = ""
    #: May run again elsewhere after a lost attempt although it is not safe.
    rerun: bool = False
    timeout: float = TIMEOUT
    key: str | None = None
    trace: str | None = None
    #: Told of progress and log lines while a call runs.
    news: Callable[[Item], None] | None = None

    @property
    def want(self) -> Want:
        """What the dispatcher is to heed."""
        return Want(self.policy, self.place, tuple(self.tags), self.sticky, self.rerun)


@dataclass(frozen=True, slots=True)
class Mapped:
    """What became of one input of a map."""

    #: Place of the input among the inputs, from 0.
    index: int
    arguments: Mapping[str, Argument]
    value: Any = None
    error: CallError | None = None
    agent: str | None = None
    #: How long it ran at the agent, in seconds.
    ran: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """An agent that could do it, and what speaks for it."""

    agent: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """An agent that is passed over, and why."""

    agent: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """Who could do an operation: the best first, and who cannot."""

    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]


class Client:
    """A connection to the bus for one program.

    ``async with Client() as bus`` logs in by the environment (``SPINAL_ADDRESS`` and its
    companions) or by the home (``SPINAL_HOME``, else the default one).

    Args:
        home: folder of the home to use.
        credentials: what to log in with instead of looking for a home.
        connection: an address on the bus that is already there, such as a memory connection.
        dispatchers: addresses of the dispatchers, where ``connection`` is given.

    Raises:
        HomeError: on entering: there is no home, or its credentials cannot be used.
        BusError: on entering: the server cannot be reached or refuses us.
    """

    def __init__(
        self,
        home: Path | str | None = None,
        *,
        credentials: Credentials | None = None,
        connection: Connection | None = None,
        dispatchers: Sequence[str] = (),
    ) -> None:
        self._home = Path(home) if home is not None else None
        self._credentials = credentials
        self._connection = connection
        self._dispatchers = tuple(dispatchers)
        self._options = Options()
        self._shared = _Shared()

    # -- life

    async def __aenter__(self) -> Self:
        shared = self._shared
        if shared.link is not None:
            raise BusError("this client is open already")
        connection, blobs = self._connection, None
        dispatchers = self._dispatchers
        if connection is None:
            credentials = self._credentials or Credentials.find(home=self._home)
            connection = connect(credentials)
            dispatchers = credentials.dispatchers
            blobs = Blobs(connection, credentials.domain, credentials.uploads, credentials.ca)
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(Session(connection, dispatchers=dispatchers))
            if blobs is not None:
                stack.push_async_callback(blobs.close)
            shared.stack = stack.pop_all()
        shared.link = _Link(session, blobs, dispatchers)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what is under way and log out; may be called again.

        Clients made by :meth:`options` are closed with it.
        """
        self._shared.link = None
        await self._shared.stack.aclose()

    @property
    def address(self) -> str:
        """Our full address."""
        return self._open.session.address

    @property
    def _open(self) -> _Link:
        link = self._shared.link
        if link is None:
            raise BusError("the client is not open: use `async with Client() as bus`")
        return link

    # -- options

    def options(
        self,
        *,
        to: str | None = None,
        policy: str | None = None,
        place: Mapping[str, str] | str | None = None,
        tags: Sequence[str] | None = None,
        sticky: str | None = None,
        rerun: bool | None = None,
        timeout: float | str | None = None,
        key: str | None = None,
        trace: str | None = None,
        news: Callable[[Item], None] | None = None,
    ) -> Client:
        """Give a client with these options over the same connection.

        They are apart from the arguments, so that an operation may have one named ``to``.

        Args:
            to: full address of an agent, or its bare name in our domain; goes there directly.
            policy: how the dispatcher ranks agents.
            place: keyed places, or one path, that the agent must match.
            tags: tags that the agent must all have.
            sticky: equal text goes to the same agent while it is there.
            rerun: run again elsewhere after a lost attempt although it is not safe.
            timeout: seconds, or a text such as ``"2m"``.
            key: idempotency key.
            trace: W3C ``traceparent``.
            news: told of progress and log lines.

        Raises:
            ValueError: an option cannot be what it is.
        """
        changes: dict[str, Any] = {
            name: value
            for name, value in {
                "to": to,
                "policy": policy,
                "tags": tags,
                "sticky": sticky,
                "rerun": rerun,
                "key": key,
                "trace": trace,
                "news": news,
            }.items()
            if value is not None
        }
        if place is not None:
            changes["place"] = check_places(place)
        if timeout is not None:
            changes["timeout"] = duration.parse(timeout)
        if tags is not None and isinstance(tags, str):
            changes["tags"] = (tags,)
        twin = Client.__new__(Client)
        twin.__dict__.update(self.__dict__)
        twin._options = replace(self._options, **changes)
        return twin

    # -- calls

    async def call(self, op: str, /, **arguments: Argument) -> Any:
        """Ask for an operation and return its value.

        A :class:`~pathlib.Path` or a blob anywhere in the arguments is uploaded; a blob in the
        value is a :class:`Blob`.

        Raises:
            OperationFailed: it was begun and failed, or the agent refused it.
            BadCall: the arguments do not fit.
            NoAgent: nobody offers it.
            Unreached: no answer in time, or the agent was lost.
            NotAllowed: we may not.
        """
        call = await self.start(op, arguments)
        return await self._finish(call)

    async def start(self, op: str, arguments: Mapping[str, Argument], *, window: int = 0) -> Call:
        """Send an op and give the call; :meth:`value` makes Python of its final's value."""
        link, options = self._open, self._options
        args = await link.outgoing(arguments)
        if options.to is not None:
            to, want = self._agent(options.to), None
        elif link.dispatchers:
            to, want = link.dispatchers[0], options.want
        else:
            raise CallError.of(
                Problem("no-agent", "no dispatcher is known: give an address with to=")
            )
        if options.news is not None and window == 0:
            window = 1
        return link.session.call(
            to,
            op,
            args,
            timeout=options.timeout,
            key=options.key,
            trace=options.trace,
            window=window,
            want=want,
        )

    def _agent(self, to: str) -> str:
        """Complete a bare name to the address that agents of our domain have."""
        if to in self._open.dispatchers:
            return to
        if "@" in to or "/" in to:
            full = to if "/" in to else f"{to}/{AGENT_RESOURCE}"
            try:
                return addresses.check(full)
            except LocalProtocolError as exc:
                raise CallError.of(exc.problem) from exc
        return f"{to}@{addresses.domain(self.address)}/{AGENT_RESOURCE}"

    async def _finish(self, call: Call) -> Any:
        if self._options.news is not None:
            async with aclosing(aiter(call)) as items:
                async for item in items:
                    self._options.news(item)
        return self.value(await call.result())

    def value(self, value: Json) -> Any:
        """Make Python of a JSON value: references become blobs."""
        return self._open.incoming(value)

    async def stream(self, op: str, /, **arguments: Argument) -> AsyncGenerator[Any]:
        """Ask for an operation and give the pieces of its stream as they come.

        Progress and log lines go to the ``news`` option.  Leaving the loop early cancels the call.

        Raises:
            CallError: at the end of the loop, if the operation did not end well.
        """
        call = await self.start(op, arguments, window=STREAM_WINDOW)
        async with aclosing(aiter(call)) as items:
            async for item in items:
                if isinstance(item, Data):
                    yield self.value(item.value)
                elif self._options.news is not None:
                    self._options.news(item)
        await call.result()

    async def map(
        self,
        op: str,
        /,
        over: Iterable[Mapping[str, Argument]],
        *,
        window: int = WINDOW,
        ordered: bool = False,
    ) -> AsyncGenerator[Mapped]:
        """Ask for an operation once for each set of arguments.

        Inputs are taken from ``over`` as there is room for them, so it may be endless.  An input
        that fails gives a :class:`Mapped` with its error and does not stop the others.  Leaving
        the loop early cancels what is under way.

        Args:
            op: exact path.
            over: sets of arguments.
            window: calls under way at once.
            ordered: give results in the order of the inputs instead of as they come.
        """
        if window < 1:
            raise ValueError("window must be at least 1")
        inputs = enumerate(over)
        running: set[asyncio.Task[Mapped]] = set()
        queue: deque[asyncio.Task[Mapped]] = deque()
        order: dict[asyncio.Task[Mapped], int] = {}
        exhausted = False
        try:
            while True:
                while not exhausted and len(queue if ordered else running) < window:
                    pair = next(inputs, None)
                    if pair is None:
                        exhausted = True
                        break
                    task = asyncio.get_running_loop().create_task(self._one(op, *pair))
                    running.add(task)
                    if ordered:
                        queue.append(task)
                    else:
                        order[task] = pair[0]
                if not running and not (ordered and queue):
                    return
                if ordered:
                    task = queue.popleft()
                    await asyncio.wait([task])
                    running.discard(task)
                    yield task.result()
                else:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    queue = deque(sorted(done, key=order.__getitem__))
                    while queue:
                        task = queue.popleft()
                        del order[task]
                        yield task.result()
        finally:
            left = [*running, *queue]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _one(self, op: str, index: int, arguments: Mapping[str, Argument]) -> Mapped:
        try:
            call = await self.start(op, arguments)
            value = await self._finish(call)
        except CallError as exc:
            return Mapped(index, arguments, error=exc, agent=exc.agent)
        except BusError as exc:
            return Mapped(index, arguments, error=CallError.of(Problem("blob", str(exc))))
        final = call.final
        assert final is not None
        ran = None if final.ran is None else final.ran / 1000
        return Mapped(index, arguments, value, agent=final.agent, ran=ran)

    async def upload(self, source: Path | bytes, media_type: str | None = None) -> Blob:
        """Upload a file or bytes once, for any number of calls.

        Raises:
            BlobError: it cannot be read, is larger than the server takes, or the transfer failed.
        """
        link = self._open
        try:
            blob = Blob.of(source, media_type)
        except ValueError as exc:
            raise BlobError(str(exc)) from exc
        await link.outgoing({"blob": blob})
        assert blob.ref is not None
        found: Blob = link.incoming(blob.ref.to_json())
        return found

    # -- who is there

    async def resolve(self, op: str) -> Resolution:
        """Ask the dispatcher who could do an operation, without doing it."""
        candidates: list[Candidate] = []
        rejected: list[Rejected] = []
        more = True
        while more:
            page = await self.ask_dispatcher(
                "/spinal/resolve",
                op=op,
                offset=len(candidates) + len(rejected),
                **self._options.want.to_json(),
            )
            candidates += [Candidate(c["agent"], tuple(c["reasons"])) for c in page["candidates"]]
            rejected += [Rejected(r["agent"], r["reason"]) for r in page["rejected"]]
            more = page["more"]
        return Resolution(tuple(candidates), tuple(rejected))

    async def agents(self) -> list[dict[str, Any]]:
        """List the agents that the dispatcher knows."""
        return await self._pages("/spinal/agents")

    async def ops(self) -> list[dict[str, Any]]:
        """List the operations that can be asked for, with their schemas."""
        return await self._pages("/spinal/ops")

    async def tap(self) -> AsyncGenerator[dict[str, Any]]:
        """Watch the calls on the bus; for the owner alone."""
        async for seen in self.options(to=self._dispatcher, timeout=24 * 3600).stream(
            "/spinal/tap"
        ):
            yield seen

    async def ask_dispatcher(self, op: str, /, **arguments: Argument) -> Any:
        """Call one of the dispatcher's own operations."""
        return await self.options(to=self._dispatcher).call(op, **arguments)

    async def _pages(self, op: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = await self.ask_dispatcher(op, offset=len(found))
            found.extend(page["items"])
            if not page["more"]:
                return found

    @property
    def _dispatcher(self) -> str:
        dispatchers = self._open.dispatchers
        if not dispatchers:
            raise CallError.of(Problem("no-agent", "no dispatcher is known"))
        return dispatchers[0]


#: Resource of an agent's full address.
AGENT_RESOURCE = "agent"


class _Shared:
    """What a client and those made by its options have in common: one connection, or none yet."""

    def __init__(self) -> None:
        self.link: _Link | None = None
        self.stack = AsyncExitStack()


class _Link:
    """What all clients over one open connection use."""

    def __init__(self, session: Session, blobs: Blobs | None, dispatchers: Sequence[str]) -> None:
        self.session = session
        self.blobs = blobs
        self.dispatchers = tuple(dispatchers)

    async def outgoing(self, arguments: Mapping[str, Argument]) -> dict[str, Json]:
        """Upload what is a path or a blob, and put references in their places."""
        value: Any = _copied(dict(arguments))
        for steps, blob in blobs_in(value):
            if blob.ref is None:
                if self.blobs is None:
                    raise BusError("this bus has no upload service for blobs")
                assert blob.source is not None
                blob.ref = await self.blobs.upload(blob.source, blob.media_type)
            put(value, steps, blob.ref.to_json())
        found: dict[str, Json] = value
        return found

    def incoming(self, value: Json) -> Any:
        """Make blobs of references."""
        if is_reference(value):
            try:
                ref = parse_reference(value)
            except RemoteProtocolError as exc:
                raise CallError.of(Problem("blob", f"the answer holds a bad blob: {exc}")) from exc
            return Blob(None, ref.media_type, ref=ref, store=self.blobs or _NoStore())
        if isinstance(value, dict):
            members: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
            return {key: self.incoming(inner) for key, inner in members.items()}
        if isinstance(value, list):
            items: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
            return [self.incoming(inner) for inner in items]
        return value


class _NoStore(Blobs):
    def __init__(self) -> None:
        self._uploads = frozenset[str]()


def _copied(value: Any, room: int = LIMITS.depth + 1) -> Any:
    """Copy what may be changed, and make blobs of paths.

    What is nested much deeper than may travel (the codec tells exactly) must not become the depth
    of our stack.
    """
    if room < 0:
        problem = Problem("bad-arguments", f"nested deeper than {LIMITS.depth} levels")
        raise CallError.of(problem)
    if isinstance(value, Path):
        try:
            return Blob.of(value)
        except ValueError as exc:
            raise CallError.of(Problem("bad-arguments", str(exc))) from exc
    if isinstance(value, Mapping):
        members: Mapping[Any, Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
        return {key: _copied(inner, room - 1) for key, inner in members.items()}
    if isinstance(value, (list, tuple)):
        items: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType] - of Any
        return [_copied(inner, room - 1) for inner in items]
    return value


def connect(credentials: Credentials) -> Connection:
    """Make the connection that the credentials are for; nothing is opened yet."""
    from .transports.slixmpp import ClientConnection

    return ClientConnection(
        credentials.address,
        credentials.password,
        credentials.host,
        credentials.port,
        credentials.ca,
        credentials.present_endpoint,
    )
