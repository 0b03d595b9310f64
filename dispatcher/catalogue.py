"""The dispatcher's own operations: who is there, what is offered, who could do it, what goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from spinal.bus.errors import CallError
from spinal.bus.requests import Request
from spinal.protocols import POLICIES, Json, Want, readers
from spinal.protocols.address import MAX_ADDRESS, bare
from spinal.protocols.readers import Reader

from .broker import Broker
from .listing import agent_row, op_row, page, resolution_page
from .own import Arguments, Own, needed
from .refusal import no_agent
from .registry import Registry
from .resolver import Demand, resolve
from .roles import Right, RoleTable
from .tap import Taps
from .watch import Watches

#: Seconds between two looks whether somebody has come who offers an operation.
PAUSE = 0.05


class Catalogue:
    """Answers them."""

    def __init__(
        self,
        registry: Registry,
        broker: Broker,
        taps: Taps,
        watches: Watches,
        roles: RoleTable,
        accounts: Callable[[], Mapping[str, str]],
    ) -> None:
        self._registry = registry
        self._broker = broker
        self._taps = taps
        self._watches = watches
        self._roles = roles
        self._accounts = accounts

    async def agents(self, request: Request, args: Arguments) -> Json:
        """List the agents, by address."""
        now = self._broker.context().now
        agents = sorted(self._registry, key=lambda agent: agent.address)
        return page(agents, *_bounds(args), lambda agent: agent_row(agent, now))

    async def watch(self, request: Request, args: Arguments) -> Json:
        """Stream which agents are gone, and which are here again."""
        return await self._watches.serve(request)

    async def accounts(self, request: Request, args: Arguments) -> Json:
        """List the accounts and their roles, by address."""
        if "account" in args:
            account = bare(args["account"])
            role = self._roles.role(account)
            found = {} if role is None else {account: role}
        else:
            found = {**self._roles.shared, **self._accounts()}
        wanted = args.get("role")
        rows = sorted(item for item in found.items() if wanted in (None, item[1]))
        return page(rows, *_bounds(args), lambda row: {"account": row[0], "role": row[1]})

    async def ops(self, request: Request, args: Arguments) -> Json:
        """List the operations that are offered, by path."""
        ops = list(self._registry.operations())
        return page(ops, *_bounds(args), lambda op: op_row(self._registry, op))

    async def op(self, request: Request, args: Arguments) -> Json:
        """Describe one operation."""
        op = needed(args, "op")
        while not self._registry.count(op) and self._broker.expecting:
            # As a call of it would wait; ends when remembered agents are given up, or with us.
            await asyncio.sleep(PAUSE)
        if not self._registry.count(op):
            raise CallError.of(no_agent(op, {}, self._registry.operations()))
        return op_row(self._registry, op)

    async def resolve(self, request: Request, args: Arguments) -> Json:
        """Say who could do an operation now and who could not, and why, without doing it."""
        op = needed(args, "op")
        want = Want(**{name: value for name, value in args.items() if name in _WANT})
        others = (agent for agent in self._registry if op not in agent.operations)
        agents = [*self._registry.offering(op), *others]
        resolution = resolve(agents, Demand.of(op, want), self._broker.context(request.caller))
        return resolution_page(resolution, *_bounds(args))

    async def status(self, request: Request, args: Arguments) -> Json:
        """Count what is there and what was done since the dispatcher started."""
        counts = self._broker.counts
        return {
            "agents": len(self._registry),
            "operations": len(self._registry.operations()),
            "waiting": self._broker.waiting,
            "in_flight": self._broker.in_flight,
            "taps": len(self._taps),
            "calls": counts.calls,
            "done": counts.done,
            "failed": counts.failed,
            "lost_attempts": counts.lost_attempts,
            "returned_attempts": counts.returned_attempts,
        }

    async def tap(self, request: Request, args: Arguments) -> Json:
        """Stream what goes on."""
        return await self._taps.serve(request)


_PAGE: Mapping[str, Reader] = {"offset": readers.integer(), "limit": readers.integer(1)}
_WANT: Mapping[str, Reader] = {
    "policy": readers.one_of(*POLICIES),
    "place": readers.places,
    "tags": readers.list_of(readers.text(64), 64),
    "sticky": readers.text(256),
    "rerun": readers.flag,
}
_ACCOUNTS: Mapping[str, Reader] = {
    "account": readers.text(MAX_ADDRESS),
    "role": readers.text(64),
}
_OP: Mapping[str, Reader] = {"op": readers.operation}

#: Path -> what it needs and does.  Everything else is brokered.
OWN: Mapping[str, Own[Catalogue]] = {
    "/spinal/agents": Own(Right.CALL, _PAGE, Catalogue.agents),
    "/spinal/agents/watch": Own(Right.RELAY, {}, Catalogue.watch),
    "/spinal/accounts": Own(Right.RELAY, {**_ACCOUNTS, **_PAGE}, Catalogue.accounts),
    "/spinal/ops": Own(Right.CALL, _PAGE, Catalogue.ops),
    "/spinal/op": Own(Right.CALL, _OP, Catalogue.op),
    "/spinal/resolve": Own(Right.CALL, {**_OP, **_WANT, **_PAGE}, Catalogue.resolve),
    "/spinal/status": Own(Right.CALL, {}, Catalogue.status),
    "/spinal/tap": Own(Right.WATCH, {}, Catalogue.tap),
}


def _bounds(args: Arguments) -> tuple[int, int]:
    return args.get("offset", 0), args.get("limit", 1_000_000)
