"""The calls of a map: inputs that are quick share an exchange (docs/protocol.md, Groups)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from spinal.protocols import Data, Final, Json, Problem, readers

from .call import Call
from .errors import CallError
from .line import Argument, Line
from .maps import Mapped, Pending, Told
from .tasks import Tasks

#: Milliseconds of work that a group is to be at the most, so that nobody waits long for another.
WORK = 5.0
#: Milliseconds that an input is supposed to run before anything is known, and at the least; and
#: the weight of the newest in their mean.
GUESS = 0.5
LEAST = 0.01
WEIGHT = 0.1
#: Most inputs in one group, and most characters of their arguments.
MOST = 100
ROOM = 16 * 1024
#: Pieces of results that may be unread.
PIECES = 4

#: Sends an op with one set of arguments, or with several.
Send = Callable[[Mapping[str, Json], list[dict[str, Json]] | None], Call]


class Groups:
    """Makes the calls of one map to one agent; closed when the map ends.

    As many go together as are done within :data:`WORK`, by how long the last ones ran; an operation
    that takes longer is asked for one by one.

    Args:
        line: where the calls go.
        to: the agent.
        send: makes a call there.
        window: inputs that are under way at once.
    """

    def __init__(self, line: Line, to: str, send: Send, window: int) -> None:
        self._line = line
        self._to = to
        self._send = send
        #: Several groups are under way at once, so that both ends have work.
        self._most = max(1, min(MOST, window // 4))
        #: Milliseconds that an input runs.
        self._pace = GUESS
        self._alone = not line.session.batching
        self._open: _Group | None = None
        self._tasks = Tasks("map")

    async def aclose(self) -> None:
        """Send nothing more, and give up the groups that are under way."""
        self._open = None
        await self._tasks.close()

    def begin(self, index: int, arguments: Mapping[str, Argument], told: Told) -> Pending | None:
        """Begin an input; none if something has to be uploaded first.

        Raises:
            CallError: it cannot travel.
        """
        args = self._line.plain(arguments)
        if args is None:
            return None
        size = self._size()
        if size == 1:
            return self._single(index, arguments, args, told)
        group = self._open
        if group is None:
            group = self._open = _Group()
            # What this turn of the event loop brings is all that it waits for.
            asyncio.get_running_loop().call_soon(self._release, group)
        group.add(index, arguments, args, told)
        if len(group.args) >= size or group.size >= ROOM:
            self._release(group)
        return group

    def _size(self) -> int:
        if self._alone:
            return 1
        peer = self._line.session.peers.get(self._to)
        if peer is None or "group" not in peer.features:
            return 1
        return max(1, min(self._most, int(WORK / self._pace)))

    def _learn(self, ran: float) -> None:
        """Take down how many milliseconds an input ran, of which the last few count."""
        self._pace += (max(ran, LEAST) - self._pace) * WEIGHT

    def _single(
        self,
        index: int,
        arguments: Mapping[str, Argument],
        args: dict[str, Json],
        told: Told,
    ) -> Call:
        def ended(call: Call) -> None:
            final = call.final
            assert final is not None
            if final.ran is not None:
                self._learn(final.ran)
            told(self._mapped(index, arguments, final))

        call = self._send(args, None)
        call.then(ended)
        return call

    def _mapped(self, index: int, arguments: Mapping[str, Argument], final: Final) -> Mapped:
        try:
            if final.problem is not None:
                raise CallError.of(final.problem, final.agent)
            return Mapped.done(index, arguments, self._line.incoming(final.value), final)
        except CallError as exc:
            return Mapped.failed(index, arguments, exc)

    # -- groups

    def _release(self, group: _Group) -> None:
        """Send a group, unless it was sent."""
        if self._open is not group:
            return
        self._open = None
        try:
            call = self._send({}, group.args)
        except CallError:
            # Together they are too large.
            self._one_by_one(group)
            return
        group.calls.append(call)
        self._tasks.spawn(self._see_through(group, call))

    async def _see_through(self, group: _Group, call: Call) -> None:
        async for item in call:
            if isinstance(item, Data):
                self._deliver(group, item.value)
        final = await call.wait()
        if final.problem is None:
            self._deliver(group, final.value)
            problem = Problem("failed", f"{self._to} left out some of the results")
        elif final.problem.reason == "not-understood":
            # Nothing ran, and nothing would: it is none that can be asked for so.
            self._alone = True
            self._one_by_one(group)
            return
        else:
            problem = final.problem
        for index, arguments, told in group.waiting.values():
            told(Mapped.failed(index, arguments, CallError.of(problem, final.agent)))

    def _deliver(self, group: _Group, items: Json) -> None:
        """Tell what became of some inputs; what is no item of ours is left out."""
        if not isinstance(items, list):
            return
        found: list[Json] = items  # pyright: ignore[reportUnknownVariableType] - JSON items
        for item in found:
            try:
                number, ran, value, *rest = item
                index, arguments, told = group.waiting.pop(number)
                self._learn(ran)
                seconds = ran / 1000
                error = (
                    CallError.of(readers.problem(rest[0], "problem"), self._to) if rest else None
                )
            except (TypeError, ValueError, KeyError):
                continue
            if error is None:
                try:
                    made = self._line.incoming(value)
                    told(Mapped(index, arguments, made, agent=self._to, ran=seconds))
                    continue
                except CallError as exc:
                    error = exc
            told(Mapped.failed(index, arguments, error))

    def _one_by_one(self, group: _Group) -> None:
        for number, (index, arguments, told) in group.waiting.items():
            try:
                group.calls.append(self._single(index, arguments, group.args[number], told))
            except CallError as exc:
                told(Mapped.failed(index, arguments, exc))


class _Group:
    """Inputs that are asked for together."""

    def __init__(self) -> None:
        self.args: list[dict[str, Json]] = []
        #: Those that nothing is known of yet, by their place in the group.
        self.waiting: dict[int, tuple[int, Mapping[str, Argument], Told]] = {}
        self.size = 0
        #: One for all, or one for each.
        self.calls: list[Call] = []

    def add(
        self, index: int, arguments: Mapping[str, Argument], args: dict[str, Json], told: Told
    ) -> None:
        """Take another one in."""
        self.waiting[len(self.args)] = (index, arguments, told)
        self.args.append(args)
        for value in args.values():
            self.size += len(value) if isinstance(value, str) else 8

    @property
    def done(self) -> bool:
        """Whether all have ended."""
        return not self.waiting

    def abandon(self) -> None:
        """Give all of them up."""
        for call in self.calls:
            call.abandon()
