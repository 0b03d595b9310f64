"""The dispatcher's own operations for pools, offers and money: the owner's alone, for they spend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from spinal.agents.errors import AgentError
from spinal.bus.errors import CallError
from spinal.bus.requests import Request
from spinal.protocols import Json, Problem, readers
from spinal.protocols.address import bare
from spinal.protocols.readers import Reader

from ..jobs.rows import stamp
from ..listing import ROOM, fitting, page
from ..own import Arguments, Own, needed
from ..roles import Right
from . import money, tending
from .books import TRIES
from .document import of_json
from .fleet import Fleet
from .machine import Machine, State
from .plan import Impossible, Plan
from .pool import Event, Phase, Pool
from .ranking import nearest, rank
from .scaling import Memory
from .spec import PoolSpec, Server
from .vendors import Offers

#: Offers that are told.
MAX_OFFERS: Final = 60

#: Most pools.
MAX_POOLS: Final = 200

#: Lines of a bill that are told.
MAX_COSTS: Final = 200

#: Bytes of an answer that a pool's machines may take; the events have what is left.
ROOM_FOR_MACHINES: Final = ROOM // 2


class PoolOperations:
    """Answers them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._books = fleet.books

    # -- offers and plans

    async def offers(self, request: Request, args: Arguments) -> Json:
        """Rank what all vendors offer for a demand; nothing is rented."""
        server = Server(
            cpu=args.get("cpu", 0.0),
            ram=args.get("ram", 0),
            disk=args.get("disk", 0),
            arch=args.get("arch", "any"),
            region=tuple(args.get("region", ())),
        )
        market = await self._fleet.vendors.offers(server, args.get("refresh", False))
        found = market.offers
        exchange, now = self._fleet.purse.market().exchange, self._books.now()
        blocked = self._fleet.refusals.blocked()
        ranked = rank(found, exchange, server, now, blocked=blocked)
        best: dict[str, Json] = {}
        for one in ranked.offers:
            best.setdefault(one.offer.vendor, one.row())
        near = "" if ranked.offers else nearest(found, exchange, server, now, blocked=blocked)
        return {
            "offers": [one.row() for one in ranked.offers[:MAX_OFFERS]],
            "dearest": ranked.offers[-1].row() if ranked.offers else None,
            "by_vendor": best,
            "currency": exchange.currency,
            "rates": dict(exchange.rates or {}),
            "rejected": ranked.counted() + market.left_out(),
            "nearest": near,
            "errors": market.errors,
        }

    async def plan(self, request: Request, args: Arguments) -> Json:
        """Say exactly what applying a pool file would do."""
        found, market = await self._planned(_spec(args), args.get("refresh", False))
        row = found.row()
        return {**row, "rejected": row["rejected"] + market.left_out(), "errors": market.errors}

    async def apply(self, request: Request, args: Arguments) -> Json:
        """Make a pool as its file says, or change it; refuses if the plan is another by now."""
        spec = _spec(args)
        found, _ = await self._planned(spec, False)
        if "hash" in args and args["hash"] != found.hash:
            text = f"the plan has changed: it is {found.hash[:12]} now, see `spinal pool plan`"
            raise CallError.of(Problem("refused", text, "hash"))
        caller, now = bare(request.caller), self._books.now()

        def change(known: Pool | None) -> Pool:
            event = Event(at=now, what="applied", about=spec.pool, said=f"by {caller}")
            wanted, memory = _start(spec, known), Memory()
            if known is None:
                known = Pool(spec=spec, caller=caller, created=now)
            elif known.phase is Phase.UP:
                memory = replace(known.memory, wanted=wanted)
            else:
                # Its time begins anew; else it would be over at once.
                known = replace(known, created=now)
            known = replace(known, spec=spec, caller=caller, phase=Phase.UP, hash=found.hash)
            known = replace(known, wanted=wanted, memory=memory, why="applied", short="")
            known = replace(known, failures=0, pause=0)
            return known.noting(event)

        pool = await self._make(spec.pool, change, new=True)
        return {**self._row(pool), "hash": found.hash}

    async def _planned(self, spec: PoolSpec, refresh: bool) -> tuple[Plan, Offers]:
        market = await self._fleet.vendors.offers(spec.server, refresh)
        await self._books.refresh()
        wanted = _start(spec, self._books.pools.get(spec.pool))
        try:
            return await self._fleet.orders.planned(spec, market.offers, wanted), market
        except Impossible as exc:
            told = "; ".join([str(exc), *market.told()])
            raise CallError.of(Problem("refused", told)) from exc

    # -- pools

    async def list(self, request: Request, args: Arguments) -> Json:
        """List the pools by name."""
        await self._books.refresh()
        pools = [pool for _, pool in sorted(self._books.pools.items())]
        return page(pools, args.get("offset", 0), len(pools), self._row)

    async def show(self, request: Request, args: Arguments) -> Json:
        """Give all that is known of a pool, what happened lately, and machines, as many as fit.

        With ``offset`` the machines from there on; ``more`` says whether there are more of them.
        """
        await self._books.refresh()
        pool = self._find(args)
        machines, offset = self._books.of_pool(pool.name), args.get("offset", 0)
        shown = fitting(map(machine_row, machines[offset:]), ROOM_FOR_MACHINES)
        events = fitting(map(_event_row, reversed(pool.events)), ROOM - ROOM_FOR_MACHINES)
        return {
            **self._row(pool),
            "machines": shown,
            "more": offset + len(shown) < len(machines),
            "events": events[::-1],
        }

    async def wind_down(self, request: Request, args: Arguments) -> Json:
        """Have the machines of a pool go: drained, frozen, or down, which forgets it as well."""
        phase = Phase(needed(args, "phase"))

        def change(known: Pool | None) -> Pool:
            event = Event(at=self._books.now(), what=phase.value, about=needed(args, "name"))
            return replace(_known(known, args), phase=phase, wanted=0, short="").noting(event)

        return self._row(await self._make(needed(args, "name"), change))

    async def replace(self, request: Request, args: Arguments) -> Json:
        """Have machines replaced one for one, before they go; all of a pool, or those named."""
        return await self._each(args, lambda one: _retired(one, "replaced by hand"))

    async def drain(self, request: Request, args: Arguments) -> Json:
        """Have machines finish what they run and go, and the pool want so many fewer."""
        books, names = self._books, frozenset[str](args.get("machines", ()))

        def change(known: Pool | None) -> Pool:
            pool = _known(known, args)
            wanted = max(pool.spec.size.min, pool.wanted - len(names))
            # Else a pool that does not scale would take new ones in their place.
            start = min(pool.spec.size.start, wanted)
            spec = replace(pool.spec, size=replace(pool.spec.size, start=start))
            memory = replace(pool.memory, wanted=wanted)
            return replace(pool, spec=spec, wanted=wanted, memory=memory)

        await books.refresh()
        self._check(names, needed(args, "name"))
        await self._make(needed(args, "name"), change)
        why = "drained by hand"
        return await self._each(args, lambda one: tending.draining(one, books.now(), why))

    async def _each(self, args: Arguments, change: Callable[[Machine], Machine]) -> Json:
        books, name = self._books, needed(args, "name")
        await books.refresh()
        pool = self._find(args)
        names = frozenset[str](args.get("machines", ()))
        self._check(names, name)
        for one in books.of_pool(name):
            if one.state is State.READY and (not names or one.name in names):
                await books.change(one.name, change)
        return self._row(books.pools.get(name, pool))

    def _check(self, names: frozenset[str], pool: str) -> None:
        for unknown in sorted(names - {one.name for one in self._books.of_pool(pool)}):
            text = f"pool {pool} has no machine {unknown}: `spinal pool show` names them"
            raise CallError.of(Problem("refused", text, "machines"))

    async def _make(
        self, name: str, change: Callable[[Pool | None], Pool], new: bool = False
    ) -> Pool:
        """Change a pool, also if somebody else does at the same time."""
        books = self._books
        for _ in range(TRIES):
            await books.refresh()
            known = books.pools.get(name)
            if known is None and new and len(books.pools) >= MAX_POOLS:
                raise CallError.of(Problem("full", f"there are {MAX_POOLS} pools"))
            if (kept := await books.keep(change(known))) is not None:
                return kept
        raise CallError.of(Problem("busy", f"pool {name} changes all the time", after=1.0))

    def _find(self, args: Arguments) -> Pool:
        return _known(self._books.pools.get(needed(args, "name")), args)

    def _row(self, pool: Pool) -> dict[str, Json]:
        machines = self._books.of_pool(pool.name)
        market = self._fleet.purse.market()
        ready = sum(one.state is State.READY for one in machines)
        exist = [one for one in machines if not one.state.in_doubt]
        # What was refused is looked up for a while, and another one has been ordered in its place.
        up = pool.phase is Phase.UP
        there = [one for one in machines if not (up and one.state is State.REFUSED)]
        out: dict[str, Json] = {
            "name": pool.name,
            "phase": pool.phase.value,
            "wanted": pool.wanted,
            "ready": ready,
            "exist": len(exist),
            "in_doubt": len(machines) - len(exist),
            "why": pool.why,
            "short": pool.short,
            "converged": ready == pool.wanted == len(there)
            and not any(one.retiring for one in machines),
            "price": round(sum(one.hourly for one in exist), 6),
            "currency": market.exchange.currency,
            "hash": pool.hash,
            "caller": pool.caller,
            "created": stamp(pool.created),
            "joined": pool.joined,
            "refused": pool.refused,
            "never_joined": pool.never_joined,
            "lost": pool.lost,
        }
        return out

    # -- money

    async def cost(self, request: Request, args: Arguments) -> Json:
        """Say what machines cost in a span, and what the month will."""
        books, purse = self._books, self._fleet.purse
        await books.refresh()
        machines, now = books.all(), books.now()
        since = now - int(args.get("since", 7 * 86_400.0) * 1000)
        rows = money.cost(machines, since, now, now, args.get("by", ["pool"]))
        told = fitting(map(_cost_row, rows[:MAX_COSTS]))
        begin, end = money.month(now)
        month = money.cost(machines, begin, now, now, ())
        return {
            "currency": purse.market().exchange.currency,
            "since": stamp(since),
            "rows": told,
            "left_out": len(rows) - len(told),
            "spent": sum(one.spent for one in rows),
            "month": sum(one.spent for one in month),
            "forecast": sum(one.forecast for one in month),
            "month_ends": stamp(end),
            "budgets": [
                {
                    "label": one.label,
                    "per_month": one.per_month,
                    "per_hour": one.per_hour,
                    "spent": money.spent(
                        [each for each in machines if one.covers(each.pool, each.label)],
                        begin,
                        now,
                        now,
                    ),
                }
                for one in purse.budgets()
            ],
        }

    async def sweep(self, request: Request, args: Arguments) -> Json:
        """Find machines of ours that no record owns, and records whose machine is gone.

        Only with ``delete`` are those deleted, and these closed.
        """
        return await self._fleet.sweeper.sweep(args.get("delete", False), args.get("names"))


def _start(spec: PoolSpec, known: Pool | None) -> int:
    """Give how many machines a pool has after its file is applied."""
    if known is None or known.phase is not Phase.UP or spec.size.start != known.spec.size.start:
        return spec.size.start
    return min(max(known.wanted, spec.size.min), spec.size.max)


def _retired(machine: Machine, why: str) -> Machine:
    return replace(machine, retiring=True, why=why)


def _known(pool: Pool | None, args: Arguments) -> Pool:
    if pool is None:
        text = f"there is no pool {needed(args, 'name')}: `spinal pool apply FILE` makes it"
        raise CallError.of(Problem("refused", text, "name"))
    return pool


def _spec(args: Arguments) -> PoolSpec:
    try:
        return of_json(args.get("spec"))
    except AgentError as exc:
        raise CallError.of(Problem("bad-arguments", str(exc), "spec")) from exc


def machine_row(one: Machine) -> dict[str, Json]:
    """Give a machine as JSON, without members that would say nothing."""
    out: dict[str, Json] = {
        "name": one.name,
        "state": one.state.value,
        "since": stamp(one.since),
        "vendor": one.vendor,
        "region": one.region,
        "type": one.type,
        "price": one.price,
        "currency": one.currency,
        "id": one.id or None,
        "created": stamp(one.created),
        "began": None if one.began is None else stamp(one.began),
        "expires": stamp(one.expires),
        "why": one.why or None,
        "said": one.said or None,
        "retiring": one.retiring or None,
        "image": one.image or None,
    }
    return {name: value for name, value in out.items() if value is not None}


def _cost_row(one: money.Cost) -> dict[str, Json]:
    return {
        "key": list(one.key),
        "machines": one.machines,
        "hours": one.hours,
        "spent": one.spent,
        "hourly": one.hourly,
        "forecast": one.forecast,
    }


def _event_row(one: Event) -> dict[str, Json]:
    return {"at": stamp(one.at), "what": one.what, "about": one.about, "said": one.said}


_NAME: Mapping[str, Reader] = {"name": readers.text(40)}
_NAMES: Mapping[str, Reader] = {**_NAME, "machines": readers.list_of(readers.text(64), 500)}
_SPEC: Mapping[str, Reader] = {"spec": readers.mapping, "hash": readers.text(64)}
_Ops = PoolOperations

#: Path -> what it needs and does.
POOL_OPERATIONS: Mapping[str, Own[PoolOperations]] = {
    "/spinal/offers": Own(
        Right.WATCH,
        {
            "cpu": readers.number(0),
            "ram": readers.integer(),
            "disk": readers.integer(),
            "arch": readers.one_of("any", "x86_64", "arm64"),
            "region": readers.list_of(readers.text(64), 20),
            "refresh": readers.flag,
        },
        _Ops.offers,
    ),
    "/spinal/pools/plan": Own(Right.WATCH, {**_SPEC, "refresh": readers.flag}, _Ops.plan),
    "/spinal/pools/apply": Own(Right.WATCH, _SPEC, _Ops.apply),
    "/spinal/pools/list": Own(Right.WATCH, {"offset": readers.integer()}, _Ops.list),
    "/spinal/pools/show": Own(Right.WATCH, {**_NAME, "offset": readers.integer()}, _Ops.show),
    "/spinal/pools/drain": Own(Right.WATCH, _NAMES, _Ops.drain),
    "/spinal/pools/replace": Own(Right.WATCH, _NAMES, _Ops.replace),
    "/spinal/pools/wind-down": Own(
        Right.WATCH,
        {**_NAME, "phase": readers.one_of("drained", "frozen", "down")},
        _Ops.wind_down,
    ),
    "/spinal/cost": Own(
        Right.WATCH,
        {
            "since": readers.number(0),
            "by": readers.list_of(readers.one_of(*money.BY), len(money.BY)),
        },
        _Ops.cost,
    ),
    "/spinal/sweep": Own(
        Right.WATCH,
        {"delete": readers.flag, "names": readers.list_of(readers.text(64), 1000)},
        _Ops.sweep,
    ),
}
