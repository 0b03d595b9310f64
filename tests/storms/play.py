"""One run: what its script says is done, and what came of it is judged."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from spinal.bus import CallError

from .guests import Guests
from .judge import Bound, Verdict, bought, judge
from .script import Act, PoolFile, Script
from .world import World

#: Seconds after the end of all faults within which a pool is as it is to be: an order that nobody
#: answered, its list, a machine that falls silent, one more order, and that machine's joining, with
#: the pauses after refusals in between.
COME: Final = 60.0
#: The same for a pool that is to be down.
GONE: Final = 45.0


@dataclass
class Run:
    """What came of a run."""

    seed: int
    verdict: Verdict
    #: Kind -> how often it hit.
    faults: Counter[str] = field(default_factory=Counter[str])
    #: ``dispatcher`` or ``provider agent`` -> how often it was killed.
    kills: Counter[str] = field(default_factory=Counter[str])
    #: Machines: ``created``, ``joined``, ``refused``, ``orphans``, and those of each fate.
    counts: Counter[str] = field(default_factory=Counter[str])
    #: Seconds that it took until the pools were whole, and until they were down.
    came: float = 0.0
    went: float = 0.0
    seconds: float = 0.0
    #: What happened, by time.
    timeline: list[str] = field(default_factory=list[str])

    def to_json(self) -> dict[str, Any]:
        """Give it with everything."""
        return {**vars(self), "verdict": vars(self.verdict)}

    @staticmethod
    def of(row: dict[str, Any]) -> Run:
        """Read :meth:`to_json`."""
        for key in ("faults", "kills", "counts"):
            row[key] = Counter(row[key])
        row["verdict"] = Verdict(**row["verdict"])
        return Run(**row)


class Play:
    """One run."""

    def __init__(self, world: World, script: Script, folder: Path, log: Path) -> None:
        self._world, self._script, self._log = world, script, log
        dice = random.Random(script.seed)
        self._guests = Guests(world.vendors, folder, dice, script.fates)
        self._dice = random.Random(script.seed + 1)
        self._bounds: list[Bound] = []
        self._late: list[str] = []
        self._kills: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._did: list[tuple[float, str]] = []
        self._sizes: dict[str, Mapping[str, int]] = {}

    async def run(self) -> Run:
        """Play it."""
        world, script = self._world, self._script
        began, self._from = time.monotonic(), self._log.stat().st_size
        for vendor in world.vendors.values():
            await vendor.reset()
        watching = asyncio.create_task(self._guests.run())
        came = went = 0.0
        try:
            # What is offered, the agents keep for ten minutes: also what prices vanished before.
            await world.ask("/spinal/offers", 30.0, cpu=1.0, ram=1 << 30, refresh=True)
            await self._storm(script.coming, [self._apply(pool) for pool in script.pools])
            if script.calm:
                await self._mend()
                came = await self._whole()
            downs = [self._down(pool.name) for pool in script.pools]
            await self._storm(script.going, downs)
            await self._mend()
            went = await self._down_at_last()
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            await world.whole()
        await self._guests.look()
        machines = bought(self._guests.states, world.prices)
        verdict = judge(machines, self._bounds, self._late)
        self._counts["created"] = len(machines)
        self._counts += Counter(one.vendor for one in machines)
        self._counts += self._guests.counts
        self._counts["orphans"] = self._count('"what": "orphan"')
        self._counts["came back"] = self._count("machine_came_back")
        found = Run(script.seed, verdict, self._faults, self._kills, self._counts, came, went)
        found.seconds = time.monotonic() - began
        if verdict.findings:
            found.timeline = self._timeline()
        return found

    # -- what is done

    async def _storm(self, acts: Sequence[Act], meanwhile: Sequence[Any]) -> None:
        async with asyncio.TaskGroup() as group:
            for work in meanwhile:
                group.create_task(work)
            for act in acts:
                group.create_task(self._act(act))

    async def _act(self, act: Act) -> None:
        await asyncio.sleep(act.at)
        how = dict(act.how)
        match act.what:
            case "fault":
                vendor = self._world.vendors[act.whom]
                kind = how.pop("kind")
                self._say(f"fault at {act.whom}: {kind} {how}")
                await vendor.fault(kind=kind, **how)
                if kind == "no_price":
                    await self._tried("/spinal/offers", cpu=1.0, ram=1 << 30, refresh=True)
            case "kill":
                await self._kill(act.whom, how)
            case "apply":
                await self._apply(how["pool"])
            case _:
                await self._change(act.what, act.whom, how)

    async def _kill(self, whom: str, how: Mapping[str, Any]) -> None:
        if how.get("on") == "create":
            await self._on_create("" if whom == "dispatcher" else whom, 3.0)
        self._say(f"{whom} is killed, and back after {how['pause']} s")
        if await self._world.kill(whom, how["pause"]):
            self._kills["dispatcher" if whom == "dispatcher" else "provider agent"] += 1
        self._say(f"{whom} is back")

    async def _on_create(self, vendor: str, within: float) -> None:
        """Wait until a vendor is asked for a machine, or some seconds."""

        def asked() -> int:
            states = self._guests.states.items()
            return sum(
                sum(state["creates"].values()) for name, state in states if vendor in ("", name)
            )

        before, end = asked(), time.monotonic() + within
        while asked() <= before and time.monotonic() < end:
            await self._guests.looked.wait()

    async def _apply(self, pool: PoolFile) -> None:
        self._bounds.append(Bound(pool.name, int(time.time() * 1000), pool.budget))
        self._say(f"apply {pool.name}: {dict(pool.size)}, {pool.spread}, {pool.budget}")
        end = time.monotonic() + COME
        while True:
            try:
                spec = pool.to_json()
                await self._world.ask("/spinal/pools/apply", COME, spec=spec)
                self._sizes[pool.name] = pool.size
                return
            except CallError as error:
                # Such as that no vendor has anything just now.
                self._say(f"apply {pool.name} is refused: {error}")
                if time.monotonic() > end:
                    self._late.append(f"{pool.name} could not be applied: {error}")
                    return
            except TimeoutError as error:
                self._late.append(str(error))
                return
            await asyncio.sleep(0.5)

    async def _change(self, what: str, pool: str, how: Mapping[str, Any]) -> None:
        row = await self._tried("/spinal/pools/show", name=pool)
        machines: list[Mapping[str, Any]] = [] if row is None else row["machines"]
        ready = [str(one["name"]) for one in machines if one["state"] == "ready"]
        if not ready:
            return
        names = list[str]() if how["all"] else [self._dice.choice(ready)]
        self._say(f"{what} {pool}: {names or 'all'}")
        await self._tried(f"/spinal/pools/{what}", name=pool, machines=names)

    async def _tried(self, op: str, **arguments: Any) -> Any:
        try:
            return await self._world.ask(op, 6.0, **arguments)
        except (CallError, TimeoutError) as error:
            self._say(f"{op}: {error}")
            return None

    async def _down(self, pool: str) -> None:
        self._say(f"down {pool}")
        try:
            await self._world.ask("/spinal/pools/wind-down", GONE, name=pool, phase="down")
        except CallError as error:
            if "there is no pool" not in str(error):
                self._late.append(f"{pool} could not be taken down: {error}")
        except TimeoutError as error:
            self._late.append(str(error))

    async def _mend(self) -> None:
        """End the storm: no faults, everything runs, and new machines are well."""
        await self._world.whole()
        for vendor in self._world.vendors.values():
            for fault in (await vendor.state())["faults"]:
                self._faults[fault["kind"]] += fault["hits"]
            await vendor.mend()
        self._say("everything is mended")
        if self._script.calm:
            self._guests.fates = None

    # -- what is waited for

    async def _whole(self) -> float:
        """Wait until the pools are as they are to be; gives the seconds."""
        began = time.monotonic()
        missing = {pool.name for pool in self._script.pools}
        told = ""
        while missing:
            for pool in sorted(missing):
                row = await self._tried("/spinal/pools/show", name=pool)
                if row is None:
                    continue
                told = (
                    f"{row['ready']} of {row['wanted']} ready, {row['exist']} exist, {row['short']}"
                )
                if row["converged"] and self._fits(pool, row["wanted"]):
                    missing.discard(pool)
                    self._counted(row)
            if missing and time.monotonic() - began > COME:
                self._late += [f"{pool} is not there after {COME:g} s: {told}" for pool in missing]
                return COME
            await asyncio.sleep(0.1)
        return time.monotonic() - began

    def _fits(self, pool: str, wanted: int) -> bool:
        """Say whether the vendors have as many machines of a pool, and it may have as many."""
        size = self._sizes[pool]
        living = [
            row["name"]
            for state in self._guests.states.values()
            for row in state["machines"]
            if row["deleted"] is None and row["name"].rpartition("-")[0] == pool
        ]
        return len(living) == wanted and size["min"] <= wanted <= size["max"]

    def _counted(self, row: Mapping[str, Any]) -> None:
        for key in ("refused", "never_joined", "lost"):
            self._counts[key if key != "refused" else "orders refused"] += row[key]

    async def _down_at_last(self) -> float:
        began = time.monotonic()
        missing = {pool.name for pool in self._script.pools}
        while missing:
            for pool in sorted(missing):
                try:
                    row = await self._world.ask("/spinal/pools/show", 10.0, name=pool)
                    if row["phase"] != "down":
                        self._late.append(f"{pool} is {row['phase']} and not to be down")
                        missing.discard(pool)
                except CallError:
                    missing.discard(pool)
                    self._say(f"{pool} is down")
                except TimeoutError:
                    continue
            if missing and time.monotonic() - began > GONE:
                self._late += [f"{pool} is not down after {GONE:g} s" for pool in sorted(missing)]
                return GONE
            await asyncio.sleep(0.1)
        return time.monotonic() - began

    # -- what is told

    def _say(self, text: str) -> None:
        self._did.append((time.time(), text))

    def _count(self, words: str) -> int:
        return sum(words in line for line in self._lines())

    def _lines(self) -> list[str]:
        with self._log.open("rb") as file:
            file.seek(self._from)
            return file.read().decode(errors="replace").splitlines()

    def _timeline(self) -> list[str]:
        """Give what happened, by time: what was done, what the vendors saw, and what was logged."""
        rows = [(at, f"        {text}") for at, text in self._did]
        for vendor, state in self._guests.states.items():
            for one in state["machines"]:
                about = f"{one['name']} ({one['type']}, {one['region']}, {one['broken'] or 'well'})"
                rows.append((one["created"] / 1000, f"VENDOR  {vendor} has made {about}"))
                if one["deleted"] is not None:
                    rows.append((one["deleted"] / 1000, f"VENDOR  {vendor} has deleted {about}"))
        rows += [found for line in self._lines() if (found := _logged(line)) is not None]
        rows.sort(key=lambda row: row[0])
        begin = rows[0][0] if rows else 0.0
        return [f"{at - begin:8.3f}  {text}" for at, text in rows]


def _logged(line: str) -> tuple[float, str] | None:
    """Read a line of the log."""
    import json
    from datetime import datetime

    try:
        said = json.loads(line)
        at = datetime.fromisoformat(said.pop("timestamp")).timestamp()
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    event, level = said.pop("event"), said.pop("level", "")
    if level == "debug":
        return None
    about = " ".join(f"{key}={value}" for key, value in said.items())
    return at, f"{level:7} {event} {about}"[:400]
