"""An open connection as all clients over it use it: what goes out, what comes in, whom to ask."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spinal.protocols import (
    LIMITS,
    Event,
    Hello,
    Json,
    LocalProtocolError,
    Problem,
    Ran,
    RemoteProtocolError,
    is_reference,
    parse_reference,
)
from spinal.protocols import address as addresses

from .blob import Blob, Store, blobs_in, put
from .blobs import Blobs
from .call import Call
from .errors import BusError, CallError
from .reconnect import Backoff
from .session import Session
from .tasks import Tasks

#: A client accepts as an argument whatever JSON takes, and paths and blobs anywhere inside.
Argument = Any

#: Resource of an agent's full address.
AGENT_RESOURCE = "agent"

#: Seconds that a dispatcher may take to answer what it can answer at once.
ANSWER = 8.0
#: Seconds that a dispatcher may be gone before it is asked anew, or the next one is.
ELSEWHERE = 2.0

#: The dispatcher did not take it, so nothing ran, and another one may.
NOT_TAKEN = frozenset({"unreachable", "draining", "stale-epoch"})
#: The dispatcher could not say: the same may be asked again, if asking twice does no harm.
NOT_SAID = NOT_TAKEN | {
    "already-done",
    "busy",
    "cancelled",
    "deadline",
    "expired",
    "lost",
    "no-answer",
}


class Line:
    """What the clients over one open connection share.

    Whoever owns the session passes presences on to :meth:`heard`.
    """

    def __init__(self, session: Session, blobs: Store | None, dispatchers: Sequence[str]) -> None:
        self.session = session
        self.blobs = blobs
        #: The client is being closed: what fails now is not tried again.
        self.closed = False
        self._dispatchers = list(dispatchers)
        #: What sees groups of calls through.
        self.tasks = Tasks("groups")

    # -- dispatchers

    @property
    def dispatchers(self) -> tuple[str, ...]:
        """Those that we know, first the one to ask first."""
        return tuple(self._dispatchers)

    @property
    def dispatcher(self) -> str:
        """The dispatcher to ask.

        Raises:
            CallError: none is known.
        """
        if not self._dispatchers:
            raise CallError.of(
                Problem("no-agent", "no dispatcher is known: give an address with to=")
            )
        return self._dispatchers[0]

    def agent(self, to: str) -> str:
        """Complete a bare name to the address that agents of our domain have.

        Raises:
            CallError: that can be no address.
        """
        if to in self._dispatchers:
            return to
        if "@" in to or "/" in to:
            full = to if "/" in to else f"{to}/{AGENT_RESOURCE}"
            try:
                return addresses.check(full)
            except LocalProtocolError as exc:
                raise CallError.of(exc.problem) from exc
        return f"{to}@{addresses.domain(self.session.address)}/{AGENT_RESOURCE}"

    def passed_over(self, dispatcher: str) -> None:
        """Ask that one last from now on, because it did not answer."""
        if self._dispatchers[0] == dispatcher:
            self._dispatchers.append(self._dispatchers.pop(0))

    def heard(self, address: str, available: bool, events: Sequence[Event]) -> None:
        """Take note of a presence: a dispatcher names all dispatchers of its home.

        Those that were added later are among them.
        """
        for event in events:
            if isinstance(event, Hello) and address in self._dispatchers:
                self._dispatchers += [d for d in event.dispatchers if d not in self._dispatchers]
                self.session.dispatchers |= frozenset(event.dispatchers)

    def begin(self, op: str, args: Mapping[str, Json], timeout: float, window: int = 0) -> Call:
        """Ask the first dispatcher for one of its own operations and give the call."""
        return self.session.call(
            self.dispatcher, op, args, timeout=timeout, window=window, patience=ELSEWHERE
        )

    async def ask(
        self,
        op: str,
        args: Mapping[str, Json],
        *,
        until: float,
        wait: float = 0.0,
        again: frozenset[str] = NOT_SAID,
    ) -> Any:
        """Ask one dispatcher after the other for one of their own operations until one answers.

        They are asked in turn, with growing pauses after each round.

        Args:
            op: exact path.
            args: JSON object.
            until: ``loop.time()`` after which nobody is asked any more.
            wait: seconds for which the dispatcher itself waits.
            again: reasons after which the same is asked again.

        Raises:
            CallError: the answer is a problem, or none came; the last problem then.
        """
        loop = asyncio.get_running_loop()
        backoff = Backoff(first=0.25, most=5.0)
        dispatchers = len(self._dispatchers)
        uncertain: CallError | None = None
        tries = 0
        began = loop.time()
        while True:
            timeout = max(0.05, min(wait + ANSWER, until - loop.time()))
            call = self.begin(op, args, timeout)
            try:
                return await call.result()
            except CallError as exc:
                if self.closed or exc.reason not in again:
                    raise
                error = exc
            if error.problem.meaning.ran is not Ran.NO:
                uncertain = error
            self.passed_over(call.to)
            tries += 1
            pause = error.problem.after or 0.0
            if tries % dispatchers == 0:
                pause = max(pause, backoff.pause())
            if loop.time() + pause >= until:
                # One that may have been heard says more than one that was not.
                last = uncertain or error
                if tries == 1:
                    raise last
                asked = f"asked {tries} times within {loop.time() - began:.1f} s, at last: {last}"
                raise CallError.of(Problem(last.reason, asked), last.agent) from last
            await asyncio.sleep(pause)

    # -- values

    def plain(self, arguments: Mapping[str, Argument]) -> dict[str, Json] | None:
        """Copy arguments if they hold nothing that could be a blob; else give nothing."""
        for value in arguments.values():
            if type(value) not in _SCALARS:
                return None
        return dict(arguments)

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
        if type(value) in _SCALARS:
            return value
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


#: Types of which nothing is uploaded.
_SCALARS = frozenset({str, int, float, bool, type(None)})


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
