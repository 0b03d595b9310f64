"""The bus as a program sees it: calls by name, streams, maps, and who could do what."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spinal.protocols import (
    Json,
    Problem,
)

from . import jobmap
from .asking import Asking
from .blob import Blob
from .blobs import Blobs
from .call import Call, Item
from .connection import Connection
from .errors import BlobError, BusError, CallError
from .home import Credentials
from .jobmap import DEADLINE, JobMap
from .jobs import PAGE, SLICE, Job, mint_key, outcome, submit, uncertain
from .line import Argument, Line
from .maps import WINDOW, Mapped
from .options import After, Options, Planned, Retry
from .resolution import Candidate, Rejected, Resolution
from .session import Session
from .transports import client_connection

__all__ = [
    "WINDOW",
    "Argument",
    "Candidate",
    "Client",
    "Mapped",
    "Options",
    "Rejected",
    "Resolution",
    "connect",
]


class Client:
    """A connection to the bus for one program.

    ``async with Client() as bus`` logs in by the environment (``SPINAL_ADDRESS`` and its
    companions) or by the home (``SPINAL_HOME``, else the default one).

    Args:
        home: folder of the home to use.
        credentials: what to log in with instead of looking for a home.
        connection: an address on the bus that is already there, such as a memory connection.
        dispatchers: addresses of the dispatchers, where ``connection`` is given.
        batching: calls that are made at the same time may share a stanza.  Without it each has one
            of its own, for whoever measures, or looks at the wire.

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
        batching: bool = True,
    ) -> None:
        self._batching = batching
        self._home = Path(home) if home is not None else None
        self._credentials = credentials
        self._connection = connection
        self._dispatchers = tuple(dispatchers)
        self._options = Options()
        self._shared = _Shared()
        self._asked: Asking | None = None

    @classmethod
    def over(cls, line: Line) -> Client:
        """Give a client over a line that somebody else opens and closes, such as an agent's."""
        made = cls()
        made._shared.line = line
        return made

    # -- life

    async def __aenter__(self) -> Self:
        shared = self._shared
        if shared.line is not None:
            raise BusError("this client is open already")
        connection, blobs = self._connection, None
        dispatchers = self._dispatchers
        if connection is None:
            credentials = self._credentials or Credentials.find(home=self._home)
            connection = connect(credentials)
            dispatchers = credentials.dispatchers
            blobs = Blobs(connection, credentials.domain, credentials.uploads, credentials.ca)
        async with AsyncExitStack() as stack:
            session = Session(connection, dispatchers=dispatchers, batching=self._batching)
            line = Line(session, blobs, dispatchers)
            session.on_presence = line.heard
            stack.push_async_callback(line.tasks.close)
            await stack.enter_async_context(session)
            if blobs is not None:
                stack.push_async_callback(blobs.close)
            shared.stack = stack.pop_all()
        shared.line = line
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
        line, self._shared.line = self._shared.line, None
        if line is not None:
            line.closed = True
        await self._shared.stack.aclose()

    @property
    def address(self) -> str:
        """Our full address."""
        return self.line.session.address

    @property
    def line(self) -> Line:
        """The open connection, for what is made of this client, such as :class:`Job`.

        Raises:
            BusError: the client is not open.
        """
        line = self._shared.line
        if line is None:
            raise BusError("the client is not open: use `async with Client() as bus`")
        return line

    def _line(self) -> Line:
        return self.line

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
        durable: bool | None = None,
        label: str | None = None,
        labels: Sequence[str] | None = None,
        priority: int | None = None,
        delay: float | str | None = None,
        at: datetime | str | None = None,
        after: After | None = None,
        when: str | None = None,
        deadline: float | str | None = None,
        max_run: float | str | None = None,
        retry: Retry | Mapping[str, Any] | int | None = None,
        on_done: str | None = None,
        on_error: str | None = None,
    ) -> Client:
        """Give a client with these options over the same connection.

        They are apart from the arguments, so that an operation may have one named ``to``.
        Durations are seconds, or texts such as ``"2m"``.

        Args:
            to: full address of an agent, or its bare name in our domain; goes there directly.
            policy: how the dispatcher ranks agents.
            place: keyed places, or one path, that the agent must match.
            tags: tags that the agent must all have.
            sticky: equal text goes to the same agent while it is there.
            rerun: run again elsewhere after a lost attempt although it is not safe.
            timeout: how long to wait: a call for its end (by default a minute), a submission until
                it is accepted (likewise), a durable call for its end (by default until it ends).
            key: idempotency key: the same one gives the same job, also after a restart.
            trace: W3C ``traceparent``.
            news: told of progress and log lines.
            durable: :meth:`call` and :meth:`map` make jobs.
            label: a word to find the job by; ``labels`` for several.
            labels: words to find the job by.
            priority: from -9 to 9; higher ones go first.
            delay: time to wait before it may run.
            at: time at which it may run: an aware datetime, or a text of RFC 3339.
            after: jobs, or ids, that come before it.
            when: what is asked of those: all ``done`` (default), ``any`` done, or all ``ended``.
            deadline: time after which it is given up, counted from when it could run; an hour if
                nobody says otherwise.
            max_run: longest time that one attempt may run.
            retry: tries after the first, or all of a :class:`~spinal.bus.Retry`.
            on_done: operation that is told with a job of its own when this one is done.
            on_error: operation that is told with a job of its own when this one ends otherwise.

        Raises:
            ValueError: an option cannot be what it is; the text begins with its name.
        """
        given = dict(locals())
        del given["self"]
        return self.with_options(self._options.changed(**given))

    def with_options(self, options: Options) -> Client:
        """Give a client with exactly these options over the same connection."""
        twin = Client.__new__(Client)
        twin.__dict__.update(self.__dict__)
        twin._options = options
        twin._asked = None
        return twin

    # -- calls

    async def call(self, op: str, /, **arguments: Argument) -> Any:
        """Ask for an operation and return its value.

        A :class:`~pathlib.Path` or a blob anywhere in the arguments is uploaded; a blob in the
        value is a :class:`Blob`.  With the option ``durable`` it is a job; cancelling the call then
        leaves the job, which can be found by its key or label.

        Raises:
            OperationFailed: it was begun and failed, or the agent refused it.
            BadCall: the arguments do not fit.
            NoAgent: nobody offers it.
            Unreached: no answer in time, or the agent was lost.
            NotEnded: the option ``timeout`` is over, and the job goes on.
            NotAllowed: we may not.
            ValueError: an option is for jobs, and this is none.
        """
        if self._options.durable:
            return await self._durable(op, arguments)
        return (await self._asking().done(op, arguments))[0]

    async def start(self, op: str, arguments: Mapping[str, Argument], *, window: int = 0) -> Call:
        """Send an op and give the call; :meth:`value` makes Python of its final's value.

        Of several dispatchers it goes to the one that answered last.
        """
        return await self._asking().start(op, arguments, window)

    def _asking(self) -> Asking:
        """Give what makes our calls: the same as long as we are open."""
        line, asking = self.line, self._asked
        if asking is None or asking.line is not line:
            asking = self._asked = Asking(line, self._options)
        return asking

    def value(self, value: Json) -> Any:
        """Make Python of a JSON value: references become blobs."""
        return self.line.incoming(value)

    async def stream(self, op: str, /, **arguments: Argument) -> AsyncGenerator[Any]:
        """Ask for an operation and give the pieces of its stream as they come.

        Progress and log lines go to the ``news`` option.  Leaving the loop early cancels the call.

        Raises:
            CallError: at the end of the loop, if the operation did not end well.
            ValueError: an option is for jobs, which have no streams.
        """
        async with aclosing(self._asking().stream(op, arguments)) as pieces:
            async for piece in pieces:
                yield piece

    async def map(
        self,
        op: str,
        /,
        over: Iterable[Mapping[str, Argument]],
        *,
        window: int | None = None,
        ordered: bool = False,
    ) -> AsyncGenerator[Mapped]:
        """Ask for an operation once for each set of arguments.

        Inputs are taken from ``over`` as there is room for them, so it may be endless.  An input
        that fails gives a :class:`Mapped` with its error and does not stop the others.  Leaving
        the loop early cancels what is under way.  With the option ``durable`` they are jobs; see
        :meth:`start_map`.

        Args:
            op: exact path.
            over: sets of arguments.
            window: calls under way at once: 64, and of jobs 512, if nobody says otherwise.
            ordered: give results in the order of the inputs instead of as they come.
        """
        if self._options.durable:
            mapped = aiter(await self.start_map(op, over, window=window, ordered=ordered))
        else:
            window = WINDOW if window is None else window
            mapped = self._asking().map(op, over, window, ordered)
        async with aclosing(mapped):
            async for item in mapped:
                yield item

    # -- jobs

    async def submit(self, op: str, /, **arguments: Argument) -> Job:
        """Hand an operation over as a job, and give it once it is accepted and on disk.

        A submission carries a key, the one of the options or one of its own, and is repeated under
        it, also at another dispatcher, when no answer comes: it cannot become two jobs.

        Raises:
            BadCall: the dispatcher refuses the operation's path or an option.
            Unreached: no dispatcher answered within the option ``timeout`` (a minute), or its store
                is full; if the job may be there all the same, the text has the key that tells.
            NotAllowed: we may not.
        """
        return await self._submit(op, arguments)

    async def _submit(
        self, op: str, arguments: Mapping[str, Argument], wait: float = 0.0, **more: Json
    ) -> Job:
        submission = await self._submission(op, arguments)
        until = asyncio.get_running_loop().time() + max(self._options.patience, wait + 1.0)
        return await submit(self._line, {**submission, **more}, until, wait)

    async def _submission(self, op: str, arguments: Mapping[str, Argument]) -> dict[str, Json]:
        said = self._options.submission()
        if "to" in said:
            said["to"] = self.line.agent(said["to"])
        said.setdefault("key", mint_key())
        return {"op": op, "args": await self.line.outgoing(arguments), **said}

    async def _durable(self, op: str, arguments: Mapping[str, Argument]) -> Any:
        loop, options = asyncio.get_running_loop(), self._options
        end = None if options.timeout is None else loop.time() + options.timeout
        wait = 0.0 if options.news is not None else min(SLICE, options.patience)
        job = await self._submit(op, arguments, wait)
        left = None if end is None else max(0.0, end - loop.time())
        return outcome(await job.followed(left, options.news), options.timeout)

    def planned(self, op: str, /, **arguments: Argument) -> Planned:
        """Say what job to make, with the options of this client, for :meth:`submit_all`."""
        return Planned(op, arguments, self._options)

    async def submit_all(self, plan: Mapping[str, Planned]) -> dict[str, Job]:
        """Submit several jobs, all or none, and give them by their names.

        Their option ``after`` may hold names of this plan besides ids::

            await bus.submit_all({
                "fetch": bus.planned("/web/fetch", url=url),
                "scale": bus.options(after="fetch").planned("/image/resize", width=640),
            })

        Raises:
            BadCall: one is refused, or they wait for each other in a circle, which the text tells.
            Unreached: as for :meth:`submit`.
        """
        jobs: list[dict[str, Json]] = []
        for name, one in plan.items():
            client = self.with_options(one.options)
            jobs.append({"name": name, **await client._submission(one.op, one.arguments)})
        until = asyncio.get_running_loop().time() + self._options.patience
        try:
            answer = await self.line.ask("/spinal/jobs/submit-all", {"jobs": jobs}, until=until)
        except CallError as exc:
            raise uncertain(exc, str(jobs[0]["key"])) from exc
        return {made["name"]: Job(self._line, made["id"]) for made in answer["jobs"]}

    async def start_map(
        self,
        op: str,
        /,
        over: Iterable[Mapping[str, Argument]],
        *,
        window: int | None = None,
        ordered: bool = False,
    ) -> JobMap:
        """Begin a durable map: a job whose children are the inputs; iterate over it for them.

        With the option ``key`` it can be gone on with: who starts it again under the same key, with
        the same inputs, finds the same jobs, and what has ended is not run again.  Labels,
        ``deadline`` (a day) and what is to be told at its end are those of the map as a whole; the
        other options are those of each input.

        Args:
            op: exact path.
            over: sets of arguments; taken as there is room for them.
            window: inputs under way at once; 512 if nobody says otherwise.
            ordered: give results in the order of the inputs instead of as they come.

        Raises:
            CallError: as for :meth:`submit`; also if the map of that key was cancelled.
            ValueError: the window is below 1.
        """
        window = jobmap.WINDOW if window is None else window
        if window < 1:
            raise ValueError("window must be at least 1")
        said = await self._submission(op, {})
        del said["args"]
        whole = {name: said.pop(name) for name in _OF_A_MAP if name in said}
        until = asyncio.get_running_loop().time() + self._options.patience
        parent = {"op": op, "kind": "map", "key": said["key"], "deadline": DEADLINE, **whole}
        job = await submit(self._line, parent, until)
        if job.row.get("state") == "killed":
            text = f"the map with key {said['key']!r} was cancelled: start it with another key"
            raise CallError.of(Problem("cancelled", text))
        said["parent"] = job.id
        return JobMap(self._line, job, self._options, said, over, window, ordered)

    def job(self, id: str) -> Job:
        """Give the job with that id; nobody is asked before something is done with it.

        Raises:
            ValueError: that is no id.
        """
        return Job(self._line, id)

    async def jobs(
        self,
        *,
        label: str | None = None,
        state: str | Sequence[str] | None = None,
        op: str | None = None,
        key: str | None = None,
        parent: Job | str | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[dict[str, Any]]:
        """Give the rows of our jobs (the owner: of all), newest first.

        Rows leave out arguments, value and attempts; ``bus.job(row["id"])`` has them.

        Args:
            label: a label, or the beginning of one and ``*``.
            state: a state, or several.
            op: an operation, or ``/image/**`` for all below.
            key: an idempotency key.
            parent: the job that they are children of.
            limit: most rows.
        """
        which: dict[str, Json] = {
            "label": label,
            "state": state if state is None or isinstance(state, str) else list(state),
            "op": op,
            "key": key,
            "parent": parent.id if isinstance(parent, Job) else parent,
        }
        asked = {name: value for name, value in which.items() if value is not None}
        left = limit
        while left is None or left > 0:
            asked["limit"] = PAGE if left is None else min(PAGE, left)
            until = asyncio.get_running_loop().time() + self._options.patience
            page = await self.line.ask("/spinal/jobs/list", asked, until=until)
            for row in page["items"]:
                yield row
            if not page["more"] or not page["items"]:
                return
            asked["before"] = page["items"][-1]["id"]
            left = None if left is None else left - len(page["items"])

    async def upload(self, source: Path | bytes, media_type: str | None = None) -> Blob:
        """Upload a file or bytes once, for any number of calls.

        Raises:
            BlobError: it cannot be read, is larger than the server takes, or the transfer failed.
        """
        line = self.line
        try:
            blob = Blob.of(source, media_type)
        except ValueError as exc:
            raise BlobError(str(exc)) from exc
        await line.outgoing({"blob": blob})
        assert blob.ref is not None
        found: Blob = line.incoming(blob.ref.to_json())
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
        dispatcher = self.line.dispatcher
        plain = self.with_options(Options(to=dispatcher, timeout=24 * 3600))
        async for seen in plain.stream("/spinal/tap"):
            yield seen

    async def ask_dispatcher(self, op: str, /, **arguments: Argument) -> Any:
        """Call one of the dispatcher's own operations."""
        options = self._options
        plain = Options(timeout=options.timeout, key=options.key, trace=options.trace)
        return await self.with_options(plain).call(op, **arguments)

    async def _pages(self, op: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = await self.ask_dispatcher(op, offset=len(found))
            found.extend(page["items"])
            if not page["more"]:
                return found


#: Options of a durable map that are those of its parent, and not of each child.
_OF_A_MAP = ("labels", "deadline", "on_done", "on_error")


class _Shared:
    """What a client and those made by its options have in common: one connection, or none yet."""

    def __init__(self) -> None:
        self.line: Line | None = None
        self.stack = AsyncExitStack()


def connect(credentials: Credentials, transport: str = "") -> Connection:
    """Make the connection that the credentials are for; nothing is opened yet.

    Args:
        credentials: who logs in, and where.
        transport: the library that does it, ``slixmpp`` or ``aioxmpp``; by default what
            ``SPINAL_TRANSPORT`` in the environment says, else slixmpp.

    Raises:
        HomeError: there is no such transport, or it is not installed.
    """
    make = client_connection(transport or os.environ.get("SPINAL_TRANSPORT") or "slixmpp")
    return make(
        credentials.address,
        credentials.password,
        credentials.host,
        credentials.port,
        credentials.ca,
        credentials.present_endpoints,
        credentials.further,
    )
