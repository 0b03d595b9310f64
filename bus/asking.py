"""A plain call, from its options to its value: of several dispatchers, the one that takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from spinal.protocols import Data, Final, Json

from .call import Call
from .calls import PATIENCE
from .errors import BusError, CallError
from .groups import PIECES, Groups
from .line import ELSEWHERE, NOT_TAKEN, Argument, Line
from .maps import Mapped, Pending, Told, in_window
from .options import Options

#: Pieces of a stream that may be unread.
STREAM_WINDOW = 32
#: Operations whose calls are kept account of, for each set of options.
MAX_OPERATIONS = 256


class Asking:
    """Makes calls with the same options over one line.

    A call goes to another dispatcher only if the first did not take it, because whoever has it,
    or may have it, may also have done it.

    Raises:
        ValueError: an option is for jobs.
    """

    def __init__(self, line: Line, options: Options) -> None:
        stray = ["durable"] if options.durable else options.only_of_jobs()
        if stray:
            raise ValueError(
                f"{stray[0]}: is an option of jobs: use submit, or call or map with durable=True; a "
                "job has no stream (its value is kept, and job.watch() tells its news)"
            )
        self.line = line
        self._options = options
        #: Seconds that a call may take with all its targets.
        self.patience = options.patience
        self._want = options.want if options.to is None else None
        self._groups: dict[str, Groups] = {}

    async def start(self, op: str, arguments: Mapping[str, Argument], window: int) -> Call:
        """Send an op to the address of the options, or the dispatcher that answered last."""
        return (await self._trial(op, arguments, window)).send()

    async def done(self, op: str, arguments: Mapping[str, Argument]) -> tuple[Any, Final]:
        """Make a call, and give its value and its final."""
        news = self._options.news
        groups = None if news is not None else self._groups_for(op)
        args = None if groups is None else self.line.plain(arguments)
        if groups is not None and args is not None:
            end: asyncio.Future[Final] = asyncio.get_running_loop().create_future()
            pending = groups.begin(args, partial(_settle, end))
            try:
                final = await end
            finally:
                if not pending.done:
                    pending.abandon()
            if final.problem is not None:
                raise CallError.of(final.problem, final.agent)
            return self.line.incoming(final.value), final
        trial = await self._trial(op, arguments, 0 if news is None else 1)
        while True:
            call = trial.send()
            try:
                if news is not None:
                    async with aclosing(aiter(call)) as items:
                        async for item in items:
                            news(item)
                value = self.line.incoming(await call.result())
            except CallError as exc:
                trial.failed(exc)
            else:
                assert call.final is not None
                return value, call.final

    async def stream(self, op: str, arguments: Mapping[str, Argument]) -> AsyncGenerator[Any]:
        """Make a call, and give the pieces of its stream."""
        trial = await self._trial(op, arguments, STREAM_WINDOW)
        while True:
            call = trial.send()
            try:
                async with aclosing(aiter(call)) as items:
                    async for item in items:
                        if isinstance(item, Data):
                            yield self.line.incoming(item.value)
                        elif self._options.news is not None:
                            self._options.news(item)
                await call.result()
            except CallError as exc:
                trial.failed(exc)
            else:
                return

    async def map(
        self, op: str, over: Iterable[Mapping[str, Argument]], window: int, ordered: bool
    ) -> AsyncGenerator[Mapped]:
        """Make a call for each input, and give what becomes of them."""
        groups = None if self._options.news is not None else self._groups_for(op)

        def begin(index: int, arguments: Mapping[str, Argument], told: Told) -> Pending | None:
            args = self.line.plain(arguments)
            if groups is None or args is None:
                return None

            def ended(final: Final) -> None:
                told(self._mapped(index, arguments, final))

            return groups.begin(args, ended)

        found = in_window(partial(self._one, op), over, window, ordered, begin)
        async with aclosing(found):
            async for mapped in found:
                yield mapped

    def _mapped(self, index: int, arguments: Mapping[str, Argument], final: Final) -> Mapped:
        try:
            if final.problem is not None:
                raise CallError.of(final.problem, final.agent)
            return Mapped.done(index, arguments, self.line.incoming(final.value), final)
        except CallError as exc:
            return Mapped.failed(index, arguments, exc)

    async def _one(self, op: str, index: int, arguments: Mapping[str, Argument]) -> Mapped:
        try:
            value, final = await self.done(op, arguments)
        except (CallError, BusError) as exc:
            return Mapped.failed(index, arguments, exc)
        return Mapped.done(index, arguments, value, final)

    async def _trial(self, op: str, arguments: Mapping[str, Argument], window: int) -> _Trial:
        args = self.line.plain(arguments)
        if args is None:
            args = await self.line.outgoing(arguments)
        return _Trial(self, op, args, self._targets(), window)

    def _groups_for(self, op: str) -> Groups | None:
        """Give what makes calls of an operation at one agent; none for what a dispatcher is asked."""
        options = self._options
        if options.to is None or options.key is not None:
            return None
        groups = self._groups.get(op)
        if groups is None:
            to = self.line.agent(options.to)

            def send(args: Mapping[str, Json], each: list[Mapping[str, Json]] | None) -> Call:
                read = 0 if each is None else PIECES
                return self.send(to, op, args, read, self.patience, PATIENCE, each)

            if len(self._groups) >= MAX_OPERATIONS:
                self._groups.clear()
            groups = self._groups[op] = Groups(self.line.session, to, send, self.line.tasks)
        return groups

    def _targets(self) -> list[str]:
        """Give whom to ask, the first one first."""
        if self._options.to is not None:
            return [self.line.agent(self._options.to)]
        return [self.line.dispatcher, *self.line.dispatchers[1:]]

    def send(
        self,
        to: str,
        op: str,
        args: Mapping[str, Json],
        window: int,
        timeout: float,
        patience: float,
        each: Sequence[Mapping[str, Json]] | None = None,
    ) -> Call:
        """Send an op to one address, with the options."""
        options = self._options
        return self.line.session.call(
            to,
            op,
            args,
            timeout=timeout,
            key=options.key,
            trace=options.trace,
            window=window,
            want=self._want,
            patience=patience,
            each=each,
        )


def _settle(end: asyncio.Future[Final], final: Final) -> None:
    if not end.done():
        end.set_result(final)


class _Trial:
    """One call at one dispatcher after the other, as long as those before did not take it."""

    __slots__ = ("_args", "_asking", "_end", "_op", "_patience", "_targets", "_window")

    def __init__(
        self, asking: Asking, op: str, args: Mapping[str, Json], targets: list[str], window: int
    ) -> None:
        self._asking = asking
        self._op = op
        self._args = args
        self._targets = targets
        self._window = window
        self._patience = PATIENCE if len(targets) == 1 else ELSEWHERE
        #: When the first one gives up, which holds for all.
        self._end: float | None = None

    def send(self) -> Call:
        """Ask the next one."""
        asking, end = self._asking, self._end
        left = asking.patience if end is None else max(0.0, end - asking.line.session.now)
        call = asking.send(
            self._targets[0], self._op, self._args, self._window, left, self._patience
        )
        self._end = call.deadline if end is None else end
        return call

    def failed(self, error: CallError) -> None:
        """Turn to the next one, if that one did not take it; else raise the error."""
        asked, *others = self._targets
        if not others or error.reason not in NOT_TAKEN:
            raise error
        self._asking.line.passed_over(asked)
        self._targets = others
