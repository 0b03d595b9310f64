"""Who gets a call, who waits, and who is refused."""

from __future__ import annotations

import asyncio

import pytest

from spinal.agents.errors import RoleRefused
from spinal.bus.errors import NoAgent, NotAllowed, Unreached
from spinal.dispatcher.queue import Queue
from spinal.testing import eventually, virtual_time

from .conftest import QUICK, READ, WRITE, counted, problem_of, world


@virtual_time
@pytest.mark.parametrize("slots", [20, 50])
@pytest.mark.parametrize("op", [QUICK, READ], ids=["instant", "slow"])
async def test_a_hundred_calls_within_one_report_spread_evenly_over_five_idle_workers(
    op: str, slots: int
) -> None:
    async with world() as home:
        workers = [await home.worker(f"agent{n}", slots=slots) for n in range(5)]
        await asyncio.sleep(6)

        calls = [home.ask(op)(n=n) for n in range(100)]
        if op == READ:
            await eventually(lambda: len(home.ledger) == 100)
        for worker in workers:
            worker.free.set()
        await asyncio.gather(*calls)

        shares = [len(worker.begun()) for worker in workers]
        assert min(shares) >= 18 and max(shares) <= 22, shares
        assert sum(shares) == 100


@virtual_time
async def test_a_hundred_calls_one_after_the_other_spread_evenly_as_well() -> None:
    async with world() as home:
        workers = [await home.worker(f"agent{n}") for n in range(5)]
        began = home.now

        for n in range(100):
            await home.ask(QUICK)(n=n)

        assert home.now - began < 1
        shares = [len(worker.begun()) for worker in workers]
        assert min(shares) >= 18 and max(shares) <= 22, shares


@virtual_time
@pytest.mark.parametrize("slots", [1, 2, 4, 8])
async def test_nobody_gets_most_of_a_burst_of_short_calls_that_have_to_wait(slots: int) -> None:
    async with world() as home:
        workers = [await home.worker(f"agent{n}", slots=slots) for n in range(5)]

        await asyncio.gather(*(home.ask(QUICK)(n=n) for n in range(100)))

        # Who is free next is a matter of chance, so the last round is uneven.
        shares = [len(worker.begun()) for worker in workers]
        assert min(shares) >= 20 - slots - 2 and max(shares) <= 20 + slots + 2, shares
        assert sum(shares) == 100


@virtual_time
async def test_more_calls_than_slots_wait_and_all_end_in_turn_for_each_caller() -> None:
    async with world() as home:
        worker = await home.worker(slots=1)
        other = await home.caller("caller2")
        first = home.ask(READ)(n=0)
        await eventually(worker.is_running)
        mine = [home.ask(READ)(n=n) for n in range(100, 106)]
        await eventually(lambda: home.dispatcher.broker.waiting == 6)
        others = [home.ask(READ, other)(n=n) for n in range(200, 203)]
        await eventually(lambda: home.dispatcher.broker.waiting == 9)

        worker.free.set()
        await asyncio.gather(first, *mine, *others)

        assert worker.begun() == [0, 100, 200, 101, 201, 102, 202, 103, 104, 105]


@virtual_time
async def test_a_thousand_calls_for_twelve_slots_all_end() -> None:
    async with world() as home:
        workers = [await home.worker(f"agent{n}", free=True) for n in range(3)]

        answers = await asyncio.gather(*(home.ask(WRITE)(n=n) for n in range(1000)))

        assert [n for _, n in answers] == list(range(1000))
        assert len(home.ledger) == 1000
        assert all(len(worker.begun()) > 200 for worker in workers)


@virtual_time
async def test_an_operation_is_its_exact_path() -> None:
    async with world() as home:
        one = await home.worker("agent1", ["/slice/1"])
        fifteen = await home.worker("agent2", ["/slice/15"])

        assert await home.ask("/slice/1")(n=1) == [one.name, 1]
        assert await home.ask("/slice/15")(n=15) == [fifteen.name, 15]
        found = await home.client.resolve("/slice/1")
        assert [candidate.agent for candidate in found.candidates] == [one.address]
        assert [rejected.agent for rejected in found.rejected] == [fifteen.address]
        for near in ("/slice", "/slice/1/disk", "/slice/5", "/slice/150"):
            with pytest.raises(NoAgent):
                await home.ask(near)()
        home.bus.kill(one.address)
        await eventually(lambda: one.address not in home.dispatcher.registry, 20)
        with pytest.raises(NoAgent):
            await home.ask("/slice/1")()
        assert await home.ask("/slice/15")(n=3) == [fifteen.name, 3]


@virtual_time
async def test_an_agent_that_comes_back_with_one_operation_less_keeps_the_others() -> None:
    async with world() as home:
        before = await home.worker("agent1", [READ, WRITE, QUICK], free=True)
        assert await home.ask(READ)(n=1) == [before.name, 1]

        home.bus.kill(before.address)
        after = await home.worker("agent1", [WRITE, QUICK], free=True)

        problem = await problem_of(home.ask(READ)())
        assert problem.reason == "no-agent"
        assert await home.ask(WRITE)(n=2) == [after.name, 2]
        assert await home.ask(QUICK)(n=3) == [after.name, 3]
        assert [row["op"] for row in await home.client.ops()] == sorted([WRITE, QUICK])


@virtual_time
async def test_calls_that_wait_for_an_operation_that_is_withdrawn_are_told_so() -> None:
    async with world() as home:
        before = await home.worker("agent1", [READ, WRITE], slots=1)
        running = home.ask(WRITE)(n=1)
        await eventually(before.is_running)
        waiting = [home.ask(op)(n=n) for n, op in enumerate((READ, WRITE))]
        await eventually(lambda: home.dispatcher.broker.waiting == 2)

        home.bus.kill(before.address)
        after = await home.worker("agent1", [WRITE], free=True)

        assert (await problem_of(waiting[0])).reason == "no-agent"
        assert await waiting[1] == [after.name, 1]
        assert (await problem_of(running)).reason == "lost"


@virtual_time
async def test_all_gives_what_there_is_when_one_of_them_dies() -> None:
    async with world() as home:
        workers = [await home.worker(f"agent{n}") for n in range(3)]
        call = home.ask(WRITE, policy="all")(n=5)
        await eventually(lambda: len(home.ledger) == 3)

        home.bus.kill(workers[1].address)
        workers[0].free.set()
        workers[2].free.set()
        rows = await call

        assert [row["agent"] for row in rows] == [worker.address for worker in workers]
        assert [row["state"] for row in rows] == ["done", "error", "done"]
        assert rows[0]["value"] == [workers[0].name, 5]
        assert rows[1]["problem"]["reason"] == "lost"


@virtual_time
async def test_all_does_not_wait_for_a_dead_one_beyond_its_deadline() -> None:
    async with world() as home:
        workers = [await home.worker(f"agent{n}", free=n != 1) for n in range(3)]
        call = home.ask(READ, policy="all", timeout=5.0)(n=5)
        await eventually(lambda: len(home.ledger) == 3)
        home.bus.kill(workers[1].address)

        rows = await call

        assert [row["state"] for row in rows] == ["done", "error", "done"]


@virtual_time
async def test_any_first_gives_the_first_answer_and_stops_the_others() -> None:
    async with world() as home:
        workers = [await home.worker(f"agent{n}") for n in range(3)]
        call = home.ask(READ, policy="any-first")(n=5)
        await eventually(lambda: len(home.ledger) == 3)

        workers[1].free.set()

        assert await call == [workers[1].name, 5]
        await eventually(lambda: workers[0].stopped == workers[2].stopped == [5], 2)
        assert home.dispatcher.broker.in_flight == 0
        refused = await problem_of(home.ask(WRITE, policy="any-first")())
        assert refused.reason == "refused" and "not safe" in refused.text


@virtual_time
async def test_any_first_survives_the_death_of_a_runner() -> None:
    async with world() as home:
        workers = [await home.worker(f"agent{n}") for n in range(3)]
        call = home.ask(READ, policy="any-first")(n=5)
        await eventually(lambda: len(home.ledger) == 3)

        for worker in workers[:2]:
            home.bus.kill(worker.address)
        await asyncio.sleep(5)
        workers[2].free.set()

        assert await call == [workers[2].name, 5]


@virtual_time
async def test_the_cheapest_that_is_free_gets_the_call() -> None:
    async with world() as home:
        unknown = await home.worker("agent1", slots=1)
        dear = await home.worker("agent2", cost=3.0, slots=1)
        cheap = await home.worker("agent3", cost=0.1, slots=1)

        for worker in (cheap, dear, unknown):
            home.ask(READ, policy="cheapest")()
            await eventually(worker.is_running)

        assert [e.worker for e in home.ledger] == [cheap.name, dear.name, unknown.name]


@virtual_time
async def test_sticky_calls_stay_until_their_worker_leaves() -> None:
    async with world() as home:
        for n in range(5):
            await home.worker(f"agent{n}", free=True)

        async def who(key: str) -> str:
            found: str = (await home.ask(READ, policy="sticky", sticky=key)())[0]
            return found

        homes = {key: await who(key) for key in (f"album-{n}" for n in range(20))}
        assert len(set(homes.values())) > 1
        assert homes == {key: await who(key) for key in homes}
        gone = homes["album-0"]
        home.bus.kill(f"{gone}@memory.test/agent")
        await asyncio.sleep(20)
        moved = {key: await who(key) for key in homes}
        assert gone not in moved.values()
        assert all(moved[key] == name for key, name in homes.items() if name != gone)


@virtual_time
async def test_a_place_selects_those_above_and_below_it() -> None:
    async with world() as home:
        rack = await home.worker("agent1", free=True, place={"site": "/eu/fra/rack7"})
        await home.worker("agent2", free=True, place={"site": "/us"})
        await home.worker("agent3", free=True)

        for place in ("/eu", "/eu/fra/rack7", "/eu/fra/rack7/u3"):
            for _ in range(5):
                assert (await home.ask(READ, place=place)())[0] == rack.name
        problem = await problem_of(home.ask(READ, place="/eu/fra/rack70")())
        assert problem.reason == "no-agent" and "place" in problem.text
        problem = await problem_of(home.ask(READ, place={"site": "/eu", "role": "/web"})())
        assert problem.reason == "no-agent"


@virtual_time
async def test_a_full_queue_is_one_clear_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as home:
        worker = await home.worker(slots=1)
        monkeypatch.setattr(home.dispatcher.broker, "_queue", Queue[object](most=3))
        calls = [home.ask(READ)(n=n) for n in range(4)]
        await eventually(lambda: home.dispatcher.broker.waiting == 3)

        problem = await problem_of(home.ask(READ)(n=4))

        assert problem.reason == "full"
        assert (problem.type, problem.condition) == ("wait", "resource-constraint")
        worker.free.set()
        assert [n for _, n in await asyncio.gather(*calls)] == [0, 1, 2, 3]


@virtual_time
async def test_a_call_whose_time_is_over_while_it_waits_never_runs() -> None:
    async with world() as home:
        worker = await home.worker(slots=1)
        first = home.ask(READ)(n=1)
        await eventually(worker.is_running)
        began = home.now

        with pytest.raises(Unreached, match="no agent was free for /photo/read within") as caught:
            await home.ask(READ, timeout=5.0)(n=2)

        assert caught.value.reason == "expired"
        assert home.now - began <= 5.0
        worker.free.set()
        await first
        await asyncio.sleep(10)
        assert worker.begun() == [1]


@virtual_time
async def test_an_operation_that_runs_too_long_is_stopped_at_the_deadline() -> None:
    async with world() as home:
        worker = await home.worker()

        with pytest.raises(Unreached) as caught:
            await home.ask(WRITE, timeout=5.0)(n=1)

        assert caught.value.reason == "deadline"
        await eventually(lambda: worker.stopped == [1], 2)
        assert home.dispatcher.broker.in_flight == 0


@virtual_time
async def test_an_unknown_operation_is_refused_with_a_near_name() -> None:
    async with world() as home:
        await home.worker()

        problem = await problem_of(home.ask("/photo/reed")())

        assert problem.text == "no agent offers /photo/reed: did you mean /photo/read?"


@virtual_time
@pytest.mark.parametrize("name", ["caller2", "stranger"])
async def test_who_is_no_agent_may_not_offer_operations(name: str) -> None:
    async with world() as home:
        intruder = await home.worker(name, known=False)

        error = await intruder.life.failed()

        assert isinstance(error, RoleRefused) and "role agent" in str(error)
        assert len(home.dispatcher.registry) == 0
        with pytest.raises(NoAgent):
            await home.ask(READ)()


@virtual_time
async def test_only_the_owner_may_watch_and_sees_brokered_and_direct_calls() -> None:
    async with world() as home:
        worker = await home.worker(free=True)
        with pytest.raises(NotAllowed):
            await anext(home.client.tap())
        owner = await home.caller("owner")
        seen: list[tuple[str, str, str, str]] = []

        async def watch() -> None:
            async for event in owner.tap():
                row = (event["what"], event["caller"], event["agent"], event["op"])
                seen.append(row)

        watching = asyncio.create_task(watch())
        await asyncio.sleep(1)
        await home.ask(READ)(n=1)
        await home.ask(WRITE, to=worker.address)(n=2)

        await eventually(lambda: len(seen) == 4)
        caller = home.client.address
        assert seen == [
            (what, caller, worker.address, op) for op in (READ, WRITE) for what in ("op", "final")
        ]
        assert counted(home.ledger, lambda e: e.op) == {READ: 1, WRITE: 1}
        watching.cancel()
        await asyncio.wait([watching])
