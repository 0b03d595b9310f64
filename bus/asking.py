"""A plain call, from its options to its value: of several dispatchers, the one that takes it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from spinal.protocols import Data, Final, Json

from .call import Call
from .calls import PATIENCE
from .errors import CallError
from .line import ELSEWHERE, NOT_TAKEN, Argument, Line
from .options import Options

#: Pieces of a stream that may be unread.
STREAM_WINDOW = 32


class Asking:
    """Makes calls with the same options over one line.

    A call goes to another dispatcher only if the first did not take it, because whoever has it,
    or may have it, may also have done it.
    """

    def __init__(self, line: Line, options: Options) -> None:
        self._line = line
        self._options = options

    async def start(self, op: str, arguments: Mapping[str, Argument], window: int) -> Call:
        """Send an op to the address of the options, or the dispatcher that answered last."""
        args, targets = await self._prepared(op, arguments)
        return self._send(targets[0], op, args, window, self._options.patience, PATIENCE)

    async def done(self, op: str, arguments: Mapping[str, Argument]) -> tuple[Any, Final]:
        """Make a call, and give its value and its final."""
        value: Any = None
        final: Final | None = None
        async with aclosing(self._attempts(op, arguments, 0)) as attempts:
            async for attempt in attempts:
                with attempt as call:
                    if self._options.news is not None:
                        async with aclosing(aiter(call)) as items:
                            async for item in items:
                                self._options.news(item)
                    value = self._line.incoming(await call.result())
                    final = call.final
        assert final is not None
        return value, final

    async def stream(self, op: str, arguments: Mapping[str, Argument]) -> AsyncGenerator[Any]:
        """Make a call, and give the pieces of its stream."""
        async with aclosing(self._attempts(op, arguments, STREAM_WINDOW)) as attempts:
            async for attempt in attempts:
                with attempt as call:
                    async with aclosing(aiter(call)) as items:
                        async for item in items:
                            if isinstance(item, Data):
                                yield self._line.incoming(item.value)
                            elif self._options.news is not None:
                                self._options.news(item)
                    await call.result()

    async def _prepared(
        self, op: str, arguments: Mapping[str, Argument]
    ) -> tuple[dict[str, Json], deque[str]]:
        """Give what to send, and whom to ask, the first one first."""
        line, options = self._line, self._options
        stray = ["durable"] if options.durable else options.only_of_jobs()
        if stray:
            raise ValueError(
                f"{stray[0]}: is an option of jobs: use submit, or call or map with durable=True; a "
                "job has no stream (its value is kept, and job.watch() tells its news)"
            )
        args = await line.outgoing(arguments)
        if options.to is not None:
            return args, deque([line.agent(options.to)])
        return args, deque([line.dispatcher, *line.dispatchers[1:]])

    async def _attempts(
        self, op: str, arguments: Mapping[str, Argument], window: int
    ) -> AsyncGenerator[_Attempt]:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._options.patience
        args, targets = await self._prepared(op, arguments)
        patience = PATIENCE if len(targets) == 1 else ELSEWHERE
        while targets:
            to = targets.popleft()
            call = self._send(to, op, args, window, max(0.0, end - loop.time()), patience)
            attempt = _Attempt(call, bool(targets))
            yield attempt
            if not attempt.failed:
                return
            self._line.passed_over(to)

    def _send(
        self,
        to: str,
        op: str,
        args: Mapping[str, Json],
        window: int,
        timeout: float,
        patience: float,
    ) -> Call:
        options = self._options
        if options.news is not None and window == 0:
            window = 1
        return self._line.session.call(
            to,
            op,
            args,
            timeout=timeout,
            key=options.key,
            trace=options.trace,
            window=window,
            want=options.want if options.to is None else None,
            patience=patience,
        )


class _Attempt:
    """One attempt at a call; as a context it forgives that nobody took it, if others may."""

    def __init__(self, call: Call, others: bool) -> None:
        self._call = call
        self._others = others
        self.failed = False

    def __enter__(self) -> Call:
        return self._call

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.failed = self._others and isinstance(error, CallError) and error.reason in NOT_TAKEN
        return self.failed
