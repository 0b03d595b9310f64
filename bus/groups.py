"""Calls of one operation at one agent: those that are quick share an exchange.

What a call costs at both ends is mostly the keeping of its books.  So calls that are made while
others are under way, and that are done within milliseconds, are asked for together (docs/protocol.md,
Groups); each has its own result, its own error, and can be cancelled alone.  A lone call goes at once
and by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from spinal.protocols import Data, Final, Json, Problem, RemoteProtocolError, readers

from .call import Call
from .errors import BusError, CallError
from .link import share
from .maps import Pending
from .session import Session
from .tasks import Tasks

#: Milliseconds of work that a group is to be at the most, so that nobody waits long for another.
WORK = 5.0
#: Milliseconds that a call alone ran at the least, since what is told of it is rounded down; and
#: one in a group.
ALONE = 0.5
LEAST = 0.01
#: Weight of the newest in the mean of these.
WEIGHT = 0.1
#: Calls in one group at the most.
MOST = 100
#: Most characters of their arguments.
ROOM = 16 * 1024
#: Pieces of results that may be unread.
PIECES = 4

#: Told how a call ended.
Told = Callable[[Final], None]
#: Sends an op with one set of arguments, or with several.
Send = Callable[[Mapping[str, Json], list[Mapping[str, Json]] | None], Call]


class Groups:
    """Makes these calls.

    Args:
        session: where they go.
        to: the agent.
        send: makes a call there.
        tasks: owns those that see groups through.
    """

    def __init__(self, session: Session, to: str, send: Send, tasks: Tasks) -> None:
        self._session = session
        self._to = to
        self._send = send
        self._tasks = tasks
        #: Milliseconds that a call runs; unknown at first.
        self._pace: float | None = None
        #: Not in groups: we do not batch, or the agent would not have them.
        self._alone = not session.batching
        self._under_way = 0
        self._open: list[Member] = []
        self._size = 0

    def begin(self, args: Mapping[str, Json], told: Told) -> Pending:
        """Make a call.

        Raises:
            CallError: it cannot travel.
        """
        if not self._under_way or (most := self._most()) < 2:
            return self._single(args, told)
        self._under_way += 1
        member = Member(args, told, self)
        if not self._open:
            # What this turn of the event loop brings is all that it waits for.
            asyncio.get_running_loop().call_soon(self._release)
        self._open.append(member)
        for value in args.values():
            self._size += len(value) if isinstance(value, str) else 8
        if len(self._open) >= most or self._size >= ROOM:
            self._release()
        return member

    def _most(self) -> int:
        """How many go together now."""
        if self._alone or self._pace is None:
            return 1
        peer = self._session.peers.get(self._to)
        if peer is None or not peer.group:
            return 1
        most = min(MOST, share(self._under_way))
        # What all of them take is not to be more than the work of a group.
        return most if most * self._pace <= WORK else int(WORK / self._pace)

    def learn(self, ran: float) -> None:
        """Take down how many milliseconds a call ran, of which the last few count."""
        pace = self._pace
        self._pace = ran if pace is None else pace + (ran - pace) * WEIGHT

    def ended(self) -> None:
        """Count one that is no longer under way."""
        self._under_way -= 1

    # -- alone

    def _single(self, args: Mapping[str, Json], told: Told) -> Call:
        def ended(call: Call) -> None:
            final = call.final
            assert final is not None
            self.ended()
            if final.ran is not None:
                self.learn(max(final.ran, ALONE))
            told(final)

        call = self._send(args, None)
        self._under_way += 1
        call.then(ended)
        return call

    # -- together

    def _release(self) -> None:
        """Send those that wait."""
        members = [member for member in self._open if not member.done]
        self._open, self._size = [], 0
        if len(members) < 2:
            self._one_by_one(members)
            return
        try:
            call = self._send({}, [member.args for member in members])
        except (CallError, BusError):
            # Together they are too large, or none can be sent any more.
            self._one_by_one(members)
            return
        group = _Group(self, self._session, self._to, call, members)
        self._tasks.spawn(group.see_through())

    def refused(self, members: list[Member]) -> None:
        """Ask for each alone: nothing ran, and the agent will not have them together."""
        self._alone = True
        self._one_by_one(members)

    def _one_by_one(self, members: list[Member]) -> None:
        for member in members:
            try:
                member.call = self._single(member.args, member.end)
            except CallError as exc:
                member.end(Final("-", problem=exc.problem))
            except BusError as exc:
                member.end(Final("-", problem=Problem("cancelled", str(exc))))


class Member:
    """A call that is made together with others."""

    __slots__ = ("_groups", "_told", "args", "call", "done", "group", "number")

    def __init__(self, args: Mapping[str, Json], told: Told, groups: Groups) -> None:
        self.args = args
        #: Its group and its place there, once it was sent; or its own call.
        self.group: _Group | None = None
        self.number = 0
        self.call: Call | None = None
        self.done = False
        self._told = told
        self._groups = groups

    def end(self, final: Final) -> None:
        """Settle it, unless it was given up."""
        if not self.done:
            self.done = True
            self._groups.ended()
            self._told(final)

    def abandon(self) -> None:
        """Give it up without waiting: the agent is told."""
        if self.done:
            return
        self.done = True
        self._groups.ended()
        if self.call is not None:
            self.call.abandon()
        elif self.group is not None:
            self.group.give_up(self.number)


class _Group:
    """One exchange, and the calls in it."""

    def __init__(
        self, groups: Groups, session: Session, to: str, call: Call, members: list[Member]
    ) -> None:
        self._groups = groups
        self._session = session
        self._to = to
        self._call = call
        self._members = dict(enumerate(members))
        self._given_up: list[int] = []
        for number, member in self._members.items():
            member.group, member.number = self, number

    async def see_through(self) -> None:
        """Tell each how it ended."""
        problem = Problem("cancelled", "the client was closed")
        try:
            async for item in self._call:
                if isinstance(item, Data):
                    self._deliver(item.value)
            final = await self._call.wait()
            if final.problem is None:
                self._deliver(final.value)
                problem = Problem("failed", f"{self._to} left out the result")
            elif final.problem.reason == "not-understood":
                members, self._members = list(self._members.values()), {}
                self._groups.refused([member for member in members if not member.done])
            else:
                problem = final.problem
        finally:
            for member in self._members.values():
                member.end(Final("-", problem=problem, agent=self._to))

    def _deliver(self, items: Json) -> None:
        """Take a list of results; what is none is left out."""
        if not isinstance(items, list):
            return
        found: list[Json] = items  # pyright: ignore[reportUnknownVariableType] - JSON items
        for item in found:
            try:
                number, ran, value, *rest = item
                member = self._members[number]
                problem = readers.problem(rest[0], "problem") if rest else None
                self._groups.learn(max(LEAST, ran))
            except (TypeError, ValueError, KeyError, RemoteProtocolError):
                continue
            del self._members[number]
            member.end(Final("-", value=value, problem=problem, agent=self._to, ran=ran))

    def give_up(self, number: int) -> None:
        """Stop one; those that are given up in one turn of the event loop are told of together."""
        self._members.pop(number, None)
        if not self._given_up:
            asyncio.get_running_loop().call_soon(self._tell_given_up)
        self._given_up.append(number)

    def _tell_given_up(self) -> None:
        given_up, self._given_up = self._given_up, []
        if not self._members:
            self._call.abandon()
        elif not self._call.done:
            self._session.stop_some(self._call, given_up)
