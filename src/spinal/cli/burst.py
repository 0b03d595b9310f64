"""``spinal map --burst``: machines that are rented for one map, and returned after it.

They are a pool like any other, with a budget and an end of its own; so nothing of it depends on this
process.  If that is killed, its machines go when nothing waits for them, and the pool at its end.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import asynccontextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Final

import click

from .call import describe
from .common import Ended, option_of, print_json, say, together
from .jobview import span
from .pool import confirm, event, money, show_plan

if TYPE_CHECKING:
    from spinal.bus import Client, Mapped
    from spinal.dispatcher.pools.batch import Choice
    from spinal.dispatcher.pools.spec import PoolSpec

    from .progress import Progress

Row = Mapping[str, Any]

#: Inputs that are timed before the number of machines is chosen: at least so many, and until so many
#: or so many seconds after the first.  The first ones take longer, as everything begins; so it is the
#: median that counts.
SAMPLES: Final = 3
ENOUGH: Final = 20
TIMING: Final = 5.0

#: Most machines where nobody says how many.
MACHINES: Final = 20

#: Seconds that a machine is reckoned to take to start where none has yet, and at most this share of
#: the time until the deadline.
START: Final = 60.0
START_SHARE: Final = 0.25

#: Seconds after the deadline at which the pool ends by itself; its machines live no longer either.
END_AFTER: Final = 120.0

#: Seconds without work after which a machine is returned before the others.
IDLE: Final = 30.0

#: Seconds that are waited for vendors to show that the machines are gone.
GONE_WITHIN: Final = 300.0

#: Seconds between two reckonings of whether the deadline is met, and the share on top then: what is
#: measured has all in it that the first inputs did not show.
CHECK: Final = 8.0
CHECK_SPARE: Final = 0.05

#: Seconds between two looks at the pool.
LOOK: Final = 1.0

_RATE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Z]{3})?\s*(?:/\s*h)?")


# -- what is asked for


def read_rate(text: str) -> tuple[float, str]:
    """Read money of an hour: ``0.40/h``, ``0.40 EUR/h``; gives the amount, and the currency or nothing.

    Raises:
        ValueError: it is none; the text says how to write it.
    """
    found = _RATE.fullmatch(text.strip())
    amount = float(found[1]) if found else 0.0
    if found is None or not 0 < amount <= 1e9:
        raise ValueError(f"{text!r} is no money of an hour: write 0.40/h, or 0.40 EUR/h")
    return amount, found[2] or ""


def _time(text: str) -> float:
    from spinal.protocols import duration

    seconds = duration.parse(text)
    if not seconds:
        raise ValueError("it takes more time than none")
    return seconds


def _size(text: str) -> int:
    from spinal.agents import document

    return document.size(text)


_FILE: Final = click.Path(path_type=Path, exists=True, dir_okay=False, readable=True)

#: Decorator: gives a verb the options of a burst; :func:`wished` reads them.
burst_options: Final = together(
    click.option(
        "--burst",
        is_flag=True,
        help="Rent machines for this map, and return them: see below. Needs --max, --deadline, and "
        "--with or --pool.",
    ),
    click.option(
        "--max",
        "burst_max",
        metavar="0.40/h",
        callback=option_of(read_rate),
        help="Of a burst: what all its machines together may cost at most, of an hour.",
    ),
    click.option(
        "--deadline",
        "burst_deadline",
        metavar="20m",
        callback=option_of(_time),
        help="Of a burst: time from the answer on; what is not done then is cancelled.",
    ),
    click.option(
        "--with",
        "burst_agents",
        type=_FILE,
        multiple=True,
        metavar="FILE.py",
        help="Of a burst: an agent's file that its machines run; may be repeated.",
    ),
    click.option(
        "--package",
        "burst_packages",
        multiple=True,
        metavar="NAME",
        help="Of a burst: what pip installs for it; may be repeated.",
    ),
    click.option(
        "--cpu", "burst_cpu", type=click.FloatRange(0, min_open=True), help="Of a burst (1)."
    ),
    click.option(
        "--ram", "burst_ram", metavar="8G", callback=option_of(_size), help="Of a burst (1G)."
    ),
    click.option(
        "--region", "burst_region", multiple=True, metavar="R", help="Of a burst (anywhere)."
    ),
    click.option(
        "--machines",
        "burst_machines",
        type=click.IntRange(1, 1000),
        help=f"Of a burst: at most so many ({MACHINES}).",
    ),
    click.option(
        "--pool",
        "burst_pool",
        type=_FILE,
        metavar="FILE.yaml",
        help="Of a burst: take server, place, label and agents from a pool file.",
    ),
    click.option(
        "--each",
        "burst_each",
        metavar="2s",
        callback=option_of(_time),
        help="Of a burst: what one input takes, if that is known.",
    ),
    click.option("--yes", "burst_yes", is_flag=True, help="Of a burst: do not ask."),
)


#: Key of a pool file -> the option that says it.
_WORDS: Final = {
    "life.agents": "--with",
    "life.packages": "--package",
    "server.cpu": "--cpu",
    "server.ram": "--ram",
    "server.region": "--region",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a burst is to be."""

    #: Money of an hour, and its currency; that of the home where empty.
    per_hour: float
    currency: str
    #: Seconds.
    deadline: float
    most: int
    #: Seconds that one input takes; none if that is to be found out.
    each: float | None
    yes: bool
    #: Its pool, with one machine.
    spec: PoolSpec


def wished(op: str, given: Mapping[str, Any]) -> Wish | None:
    """Read the options of a burst; none if there is to be none.

    Raises:
        click.UsageError: something is missing, or is there in vain.
        BadDocument: the pool file or an agent's file has mistakes.
    """
    named = {name.removeprefix("burst_"): value for name, value in given.items()}
    if not named.pop("burst"):
        for name, value in named.items():
            if value:
                word = {"agents": "with", "packages": "package"}.get(name, name)
                raise click.UsageError(f"--{word} goes with --burst")
        return None
    for name in ("max", "deadline"):
        if named[name] is None:
            raise click.UsageError(f"--burst needs --{name}")
    if not named["agents"] and named["pool"] is None:
        raise click.UsageError(
            f"--burst needs the agent that offers {op}: --with FILE.py, or --pool"
        )
    per_hour, currency = named["max"]
    deadline: float = named["deadline"]
    return Wish(
        per_hour=per_hour,
        currency=currency,
        deadline=deadline,
        most=named["machines"] or MACHINES,
        each=named["each"],
        yes=named["yes"],
        spec=_pool(op, named, per_hour, currency, deadline),
    )


def _pool(
    op: str, given: Mapping[str, Any], per_hour: float, currency: str, deadline: float
) -> PoolSpec:
    from spinal.agents.document import BadDocument
    from spinal.dispatcher.pools import document
    from spinal.dispatcher.pools.spec import Money, Rule, Scale, Size

    name = f"burst-{secrets.token_hex(3)}"
    server: dict[str, Any] = {"cpu": 1, "ram": "1G"}
    if given["cpu"] is not None:
        server["cpu"] = given["cpu"]
    if given["ram"] is not None:
        server["ram"] = given["ram"]
    if given["region"]:
        server["region"] = list(given["region"])
    life = {
        "agents": [str(file.absolute()) for file in given["agents"]],
        "packages": list(given["packages"]),
    }
    try:
        said = document.of_words({"pool": name, "server": server, "life": life})
    except BadDocument as exc:
        first = exc.mistakes[0]
        word = next((word for key, word in _WORDS.items() if first.key.startswith(key)), first.key)
        raise click.UsageError(f"{word}: {first.text}") from exc
    found = said
    if given["pool"] is not None:
        found = document.load(given["pool"])
        if found.demand:
            raise click.UsageError(
                f"{given['pool']} packs a demand, and a map takes equal machines"
            )
        if given["cpu"] is not None:
            found = replace(found, server=replace(found.server, cpu=said.server.cpu))
        if given["ram"] is not None:
            found = replace(found, server=replace(found.server, ram=said.server.ram))
        if given["region"]:
            found = replace(found, server=replace(found.server, region=said.server.region))
        if given["agents"]:
            found = replace(found, life=replace(found.life, agents=said.life.agents))
        if given["packages"]:
            found = replace(found, life=replace(found.life, packages=said.life.packages))
    ends = deadline + END_AFTER
    return replace(
        found,
        pool=name,
        size=Size(min=0, max=1, start=1),
        # Without work they go one after the other, also if nobody is there to return them.
        scale=Scale(
            ops=(op,), remove_when={"idle": Rule(sign=">", bound=0, lasting=IDLE)}, cool=1.0
        ),
        money=Money(max_per_hour=per_hour, currency=currency, label=found.money.label),
        life=replace(
            found.life,
            ttl=ends,
            join=min(found.life.join, deadline),
            drain=min(found.life.drain, 30.0),
            ends=ends,
        ),
    )


# -- the machines


@dataclass(slots=True)
class Burst:
    """The machines of one map."""

    bus: Client
    op: str
    wish: Wish
    #: Inputs of the map.
    inputs: int
    as_json: bool
    #: What the operation takes, once a machine offers it.
    described: dict[str, Any] = field(default_factory=dict[str, Any])
    #: The deadline came first.
    late: bool = False
    #: What was chosen, and what it cost.
    choice: Choice | None = None
    bill: Row = field(default_factory=dict[str, Any])
    _offers: Row = field(default_factory=dict[str, Any])
    _hash: str = ""
    _began: float = 0.0
    _ready: asyncio.Event = field(default_factory=asyncio.Event)
    _row: Row = field(default_factory=dict[str, Any])
    _told: list[Row] = field(default_factory=list[Row])
    #: What inputs took, and when the first of them was done.
    _first: float = 0.0
    _ran: list[float] = field(default_factory=list[float])
    _ended: int = 0
    #: When it was reckoned last, how many inputs had ended then, and with how many machines.
    _mark: tuple[float, int, int] = (0.0, 0, 0)

    @property
    def name(self) -> str:
        """Name of its pool."""
        return self.wish.spec.pool

    @property
    def place(self) -> dict[str, str]:
        """Where its machines are, and nobody else."""
        return {"pool": self._at}

    @property
    def _at(self) -> str:
        return f"/{self.name}"

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return max(0.001, self._began + self.wish.deadline - time.monotonic())

    async def ask(self) -> None:
        """Show what would be rented, and ask whether it is to be.

        Raises:
            TooMuch: it cannot be done by then for the money.
            CallError: nothing fits, or a bound is in a currency that has no rate.
            click.Abort: the answer was no.
        """
        from spinal.dispatcher.pools.batch import TooMuch

        wish, server = self.wish, self.wish.spec.server
        self._offers = await self.bus.ask_dispatcher(
            "/spinal/offers",
            cpu=server.cpu,
            ram=server.ram,
            disk=server.disk,
            arch=server.arch,
            region=list(server.region),
        )
        self._began = time.monotonic()
        machines = 1
        if wish.each is not None:
            start = min(START, wish.deadline * START_SHARE)
            self.choice = self._chosen(wish.each, max(1, ceil(server.cpu)), start, 0)
            machines = self.choice.machines
        spec = self._spec(machines)
        plan: Row = await self.bus.ask_dispatcher("/spinal/pools/plan", spec=_sent(spec))
        if plan["missing"]:
            raise TooMuch("; ".join(plan["notes"]))
        self._hash = plan["hash"]
        per_hour, currency = self._per_hour(), plan["currency"]
        if not self.as_json:
            with redirect_stdout(sys.stderr):  # The results are on the other one.
                show_plan(plan)
            for line in self._promise(per_hour, currency):
                say(line)
        confirm(f"rent this for {self.inputs} inputs?", wish.yes)
        self._began = time.monotonic()

    def _promise(self, per_hour: float, currency: str) -> list[str]:
        most = per_hour * (self.wish.deadline + END_AFTER) / 3600
        bound = (
            f"at most {money(per_hour, currency)} an hour, so {money(most, currency)} if it takes "
            f"until the deadline in {span(self.wish.deadline)}"
        )
        if self.choice is None:
            first = (
                "the first machine; once a few inputs were timed there, as many more as the "
                f"deadline needs, {self.wish.most} at most"
            )
            return [first, bound]
        return [self._reckoned(self.choice, currency), bound]

    def _reckoned(self, choice: Choice, currency: str) -> str:
        many = "1 machine" if choice.machines == 1 else f"{choice.machines} machines"
        return (
            f"{many} for {money(choice.price, currency)} an hour, done in about "
            f"{span(choice.seconds)} for {money(choice.cost, currency)}"
        )

    def _per_hour(self) -> float:
        """Give the bound in the home's currency."""
        from spinal.dispatcher.pools.batch import TooMuch

        home, currency = self._offers["currency"], self.wish.currency or self._offers["currency"]
        rate = 1.0 if currency == home else self._offers["rates"].get(currency)
        if rate is None:
            raise TooMuch(
                f"--max: there is no rate from {currency} to {home}: give it in {home}, or write "
                f"'rates: {{{currency}: ...}}' into providers.yaml"
            )
        return self.wish.per_hour * float(rate)

    def _chosen(
        self, each: float, slots: int, start: float, there: int, spare: float | None = None
    ) -> Choice:
        from spinal.dispatcher.pools.batch import SPARE, Batch, TooMuch, choose

        offers: Sequence[Row] = self._offers["offers"]
        if not offers:
            raise TooMuch(self._offers["nearest"] or "no vendor offers such a machine")
        most = self.wish.most
        prices = [
            one["price"]
            for one in offers
            for _ in range(most if one["cap"] is None else min(most, one["cap"]))
        ]
        batch = Batch(
            inputs=max(1, self.inputs - self._ended),
            each=max(each, 0.001),
            left=self.left,
            slots=slots,
            start=start,
            spare=SPARE if spare is None else spare,
        )
        return choose(batch, prices, there=there, most=most, per_hour=self._per_hour())

    def _spec(self, machines: int) -> PoolSpec:
        from spinal.dispatcher.pools.spec import Size

        return replace(self.wish.spec, size=Size(min=0, max=machines, start=machines))

    # -- while it runs

    @asynccontextmanager
    async def rented(self, progress: Progress) -> AsyncGenerator[None]:
        """Have the machines, from when the first one is ready until the block ends.

        Whatever ends it, they are returned, and it is waited until their vendors have shown that
        they are gone; then :attr:`bill` is there, and printed.  At the deadline the block is
        cancelled and :attr:`late` set.

        Raises:
            TooMuch: once the first inputs were timed: the deadline cannot be met for the money; or
                no machine was ready by then.
            Ended: by SIGTERM or SIGHUP.
        """
        from spinal.dispatcher.pools.batch import TooMuch

        stopped: list[int] = []
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def stop(number: int) -> None:
            if not stopped:
                task.cancel()
            stopped.append(number)

        numbers = (signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, stop, number)
        try:
            async with asyncio.timeout(self.left), asyncio.TaskGroup() as group:
                await self._apply(1 if self.choice is None else self.choice.machines, self._hash)
                watching = group.create_task(self._watch(progress))
                await self._ready.wait()
                await self._slots()  # There is an agent that can do it.
                self.described = await describe(self.bus, self.op)
                yield
                watching.cancel()
        except TimeoutError:
            self.late = True
            if not self._ready.is_set():
                why = self._row.get("short") or "none has joined"
                raise TooMuch(f"no machine was ready by the deadline: {why}") from None
        except asyncio.CancelledError:
            if stopped:
                raise Ended(128 + stopped[0]) from None
            raise
        finally:
            try:
                await self._return(progress)
            finally:
                for number in numbers:
                    loop.remove_signal_handler(number)

    async def _apply(self, machines: int, hash: str) -> None:
        await self.bus.ask_dispatcher(
            "/spinal/pools/apply", spec=_sent(self._spec(machines)), hash=hash
        )

    async def watched(self, mapped: AsyncIterable[Mapped]) -> AsyncGenerator[Mapped]:
        """Give the results of the map, and learn from them how long one takes."""
        async for one in mapped:
            self._ended += 1
            if one.error is None and one.ran is not None:
                if not self._ran:
                    self._first = time.monotonic()
                self._ran.append(one.ran)
            yield one

    async def _watch(self, progress: Progress) -> None:
        """Tell what happens to the pool, and have more machines as soon as it is known how many."""
        from spinal.bus import BusError, CallError

        began, started, trouble = time.monotonic(), START, ""
        while True:
            try:
                self._tell(await self._show(), progress)
                if self._row["ready"] and not self._ready.is_set():
                    started = time.monotonic() - began
                    self._ready.set()
                if self._ready.is_set() and self.choice is None and self._timed():
                    await self._grow(median(self._ran), started, progress)
                elif self.choice is not None:
                    await self._check(started, progress)
            except (CallError, BusError) as exc:
                # It is tried again; the jobs go on meanwhile.
                if trouble != str(exc):
                    trouble = str(exc)
                    progress.line(f"spinal: the pool is not looked after: {trouble}")
            await asyncio.sleep(LOOK)

    async def _check(self, started: float, progress: Progress) -> None:
        """Have more machines if those that are there turn out to be too slow."""
        from spinal.dispatcher.pools.batch import TooMuch

        now, row = time.monotonic(), self._row
        ready = row.get("ready", 0)
        if not ready or ready != row["wanted"] or ready != self._mark[2]:
            self._mark = now, self._ended, ready
            return
        took, done = now - self._mark[0], self._ended - self._mark[1]
        if took < CHECK or self._ended >= self.inputs:
            return
        self._mark = now, self._ended, ready
        if not done or ready >= self.wish.most:
            return
        slots = await self._slots()
        with suppress(TooMuch):  # What there is does what it can.
            each = took * ready * slots / done
            await self._grow(each, started, progress, ready, CHECK_SPARE)

    def _timed(self) -> bool:
        """Tell whether it is known what an input takes."""
        count = len(self._ran)
        return count >= ENOUGH or (count >= SAMPLES and time.monotonic() - self._first >= TIMING)

    async def _grow(
        self,
        each: float,
        started: float,
        progress: Progress,
        there: int = 1,
        spare: float | None = None,
    ) -> None:
        """Choose how many machines it takes, and order those that are missing.

        Raises:
            TooMuch: the deadline cannot be met for the money.
        """
        from spinal.bus import CallError

        found = self._chosen(each, await self._slots(), started, there, spare)
        if self.choice is not None and found.machines <= there:
            return
        self.choice = found
        currency = self._offers["currency"]
        progress.line(f"{span(each)} for each input: {self._reckoned(found, currency)}")
        if found.machines == there:
            return
        spec = self._spec(found.machines)
        for last in (False, True):
            plan: Row = await self.bus.ask_dispatcher("/spinal/pools/plan", spec=_sent(spec))
            for note in plan["notes"]:
                progress.line(note)
            try:
                return await self._apply(found.machines, plan["hash"])
            except CallError as exc:
                # Offers may change in between.
                if last or exc.problem.argument != "hash":
                    raise

    async def _slots(self) -> int:
        """Give how much a machine of the pool does at once.

        Raises:
            CallError: none of its agents offers the operation.
        """
        from spinal.bus import CallError
        from spinal.protocols import Problem

        agents = [one for one in await self.bus.agents() if one["place"].get("pool") == self._at]
        slots = [
            int(one["slots"]) for one in agents if self.op in one["ops"] or "ops_left_out" in one
        ]
        if agents and not slots:
            text = f"the agents of the machines do not offer {self.op}: see --with"
            raise CallError.of(Problem("no-agent", text))
        return max(1, *slots, 0)

    async def _show(self) -> Row:
        row: Row = await self.bus.ask_dispatcher("/spinal/pools/show", name=self.name)
        return row

    def _tell(self, row: Row, progress: Progress) -> None:
        news = [one for one in row["events"] if one not in self._told]
        self._told += news
        self._row = row
        for one in news:
            progress.line(event(one))

    # -- the end

    async def _return(self, progress: Progress) -> None:
        """Return the machines, wait until they are gone, and print what they cost."""
        try:
            async with asyncio.timeout(GONE_WITHIN):
                await self._down(progress)
        except TimeoutError:
            progress.line(
                f"spinal: pool {self.name} is not gone yet; it goes on, and ends by itself at the "
                f"latest: spinal pool show {self.name}"
            )
        if self._row:  # Else it never came to be.
            self.bill = await self._reckon()
            self._say()

    async def _down(self, progress: Progress) -> None:
        """Take the pool down, and look at it until it is forgotten; who is away is asked again."""
        from spinal.bus import BusError, CallError

        asked, trouble = False, ""
        while True:
            try:
                if not asked:
                    await self.bus.ask_dispatcher(
                        "/spinal/pools/wind-down", name=self.name, phase="down"
                    )
                    asked = True
                    progress.line("the machines are returned")
                self._tell(await self._show(), progress)
            except (CallError, BusError) as exc:
                if isinstance(exc, CallError) and exc.reason == "refused":
                    return
                if trouble != str(exc):
                    trouble = str(exc)
                    progress.line(
                        f"spinal: {trouble}; pool {self.name} is taken down as soon as can be"
                    )
            await asyncio.sleep(LOOK / 2)

    async def _reckon(self) -> Row:
        """Make the bill, and what the same machine time would have cost elsewhere."""
        since = time.monotonic() - self._began + 60
        cost: Row = await self.bus.ask_dispatcher(
            "/spinal/cost", by=["pool", "vendor", "type", "machine"], since=since
        )
        rows = [one for one in cost["rows"] if one["key"][0] == self.name]
        hours = sum(one["hours"] for one in rows)
        dearest = self._offers["dearest"]
        best: Sequence[Row] = list(self._offers["by_vendor"].values())
        naive = fmean([one["price"] for one in best]) if best else 0.0
        return {
            "pool": self.name,
            "machines": [
                {
                    "name": one["key"][3],
                    "vendor": one["key"][1],
                    "type": one["key"][2],
                    "minutes": round(one["hours"] * 60, 3),
                    "cost": one["spent"],
                }
                for one in rows
            ],
            "minutes": round(hours * 60, 3),
            "cost": sum(one["spent"] for one in rows),
            "currency": cost["currency"],
            "dearest": {
                "cost": hours * dearest["price"] if dearest else None,
                "vendor": dearest and dearest["vendor"],
                "type": dearest and dearest["type"],
            },
            "naive": {"cost": hours * naive, "price": naive, "vendors": len(best)},
            "late": self.late,
            "each": median(self._ran) if self._ran else self.wish.each,
            "planned": self.choice
            and {
                "machines": self.choice.machines,
                "price": self.choice.price,
                "seconds": self.choice.seconds,
                "cost": self.choice.cost,
            },
        }

    def _say(self) -> None:
        bill = self.bill
        if self.as_json:
            print_json({"burst": dict(bill)})
            return
        currency = bill["currency"]
        rows = [
            (
                one["name"],
                one["vendor"],
                one["type"],
                f"{one['minutes']:.1f}",
                money(one["cost"], currency),
            )
            for one in bill["machines"]
        ]
        for line in _bill_lines(bill, rows):
            say(line)


def _bill_lines(bill: Row, rows: Sequence[Sequence[str]]) -> list[str]:
    currency = bill["currency"]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    many = "1 machine" if len(rows) == 1 else f"{len(rows)} machines"
    lines.append(f"{many}, {bill['minutes']:.1f} min of them: {money(bill['cost'], currency)}")
    if bill["dearest"]["cost"] is not None:
        dearest, naive = bill["dearest"], bill["naive"]
        where = f"at the dearest that fits ({dearest['vendor']} {dearest['type']})"
        lines.append(f"{where}: {money(dearest['cost'], currency)}")
        where = f"at one vendor, unseen (mean of the {naive['vendors']} vendors' cheapest)"
        lines.append(f"{where}: {money(naive['cost'], currency)}")
    return lines


def _sent(spec: PoolSpec) -> Any:
    from spinal.dispatcher.pools import document

    return document.to_json(spec)
