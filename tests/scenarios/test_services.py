"""Services stay placed whatever becomes of machines, dispatchers and the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from spinal.agents import Agent, Job, Refused
from spinal.agents.life import Life
from spinal.dispatcher import Dispatcher
from spinal.dispatcher.jobs.clock import Clock
from spinal.dispatcher.placing.placer import DEPLOY, SHOW, UNDEPLOY
from spinal.dispatcher.placing.service import MOVE_AFTER, RETURN, SILENT
from spinal.dispatcher.store import store_for
from spinal.testing import Faults, eventually, virtual_time

from .conftest import DISPATCHER, Worker, World, problem_of, role_of, world

#: Seconds within which what ran on a machine that died answers from another one.
GOAL = 20.0
OTHER = "other.memory.test"


@dataclass(eq=False)
class Machine:
    """What a machine keeps while its agents come and go: services with their generations."""

    name: str
    fleet: Fleet
    kept: dict[str, int] = field(default_factory=dict[str, int])
    heard: list[tuple[str, str, int]] = field(default_factory=list[tuple[str, str, int]])
    #: What it says when it is to deploy something; nothing if it does.
    refuses: str = ""
    #: Where and how its services answer.
    port: int = 8080
    state: str = "running"
    #: While it is not set, deploying does not end.
    free: asyncio.Event = field(default_factory=asyncio.Event)
    life: Life | None = None

    @property
    def address(self) -> str:
        return f"{self.name}@memory.test/agent"

    async def start(self, **options: Any) -> Machine:
        """Begin a life of its agent, and wait until it can be called."""
        worker = Worker(self.name, [])
        await self.fleet.home.add(worker, self.agent(**options))
        self.life = worker.life
        return self

    def agent(self, **options: Any) -> Agent:
        """Write the agent down."""
        agent = Agent(self.name, slots=4, **options)

        @agent.op(DEPLOY, effects="writes", safe=True)
        async def deploy(
            job: Job, service: str, generation: int, port: int = 8080
        ) -> dict[str, object]:
            """Run a service."""
            self.heard.append(("deploy", service, generation))
            await self.free.wait()
            if self.refuses:
                raise Refused(self.refuses)
            self.kept[service] = max(generation, self.kept.get(service, 0))
            self.port = port
            return self.row(service)

        @agent.op(UNDEPLOY, effects="writes", safe=True)
        async def undeploy(job: Job, service: str, below: int) -> None:
            """End a service."""
            self.heard.append(("undeploy", service, below))
            if self.kept.get(service, below) < below:
                del self.kept[service]

        @agent.op(SHOW, effects="reads")
        async def show(service: str) -> dict[str, object]:
            """Say how a service goes."""
            if service not in self.kept:
                raise Refused(f"there is no service {service} here")
            return {**self.row(service), "generation": self.kept[service], "releases": []}

        return agent

    def row(self, service: str) -> dict[str, object]:
        return {"port": self.port, "state": self.state}

    @property
    def services(self) -> dict[str, int]:
        """What it has, with generations counted from 1."""
        return {name: self.fleet.counted(found) for name, found in self.kept.items()}

    @property
    def told(self) -> list[tuple[str, str, int]]:
        """Everything that it was told, in order."""
        return [(what, name, self.fleet.counted(found)) for what, name, found in self.heard]

    def has(self, service: str = "shop") -> bool:
        return service in self.kept

    def deploys(self) -> list[int]:
        return [generation for what, _, generation in self.told if what == "deploy"]

    def kill(self) -> None:
        self.fleet.home.bus.kill(self.address)


class Fleet:
    """A world with machines."""

    def __init__(self, home: World) -> None:
        self.home = home
        #: Below the first generation, which is the time in seconds.
        self.base = 0

    async def machine(self, name: str = "agent1", *, free: bool = True, **options: Any) -> Machine:
        """Bring a machine to the bus."""
        machine = Machine(name, self)
        if free:
            machine.free.set()
        return await machine.start(**options)

    async def ask(self, what: str, **arguments: Any) -> Any:
        return await self.home.client.ask_dispatcher(f"/spinal/services/{what}", **arguments)

    async def deploy(self, name: str = "shop", **arguments: Any) -> dict[str, Any]:
        found: dict[str, Any] = await self.ask("deploy", name=name, **arguments)
        self.base = self.base or found["generation"] - 1
        return self._counted(found)

    async def show(self, name: str = "shop") -> dict[str, Any]:
        return self._counted(await self.ask("show", name=name))

    def counted(self, generation: int) -> int:
        """Count generations from 1."""
        return generation - self.base

    def _counted(self, found: dict[str, Any]) -> dict[str, Any]:
        numbers = {n: self.counted(found[n]) for n in ("generation", "running") if n in found}
        return found | numbers

    async def until(self, state: str = "placed", within: float = 60.0, **members: Any) -> None:
        """Wait until the service is so."""

        async def is_so() -> bool:
            now = await self.show()
            return now["state"] == state and all(now.get(n) == m for n, m in members.items())

        end = self.home.now + within
        while not await is_so():
            assert self.home.now < end, (state, members, await self.show())
            await asyncio.sleep(0.1)

    async def jobs(self) -> list[dict[str, Any]]:
        """All placements that there were, oldest first."""
        page = await self.home.client.ask_dispatcher("/spinal/jobs/list", op=DEPLOY)
        found: list[dict[str, Any]] = page["items"]
        return found[::-1]


@asynccontextmanager
async def a_fleet(folder: Path) -> AsyncGenerator[Fleet]:
    async with world(file=folder / "jobs.db") as home:
        yield Fleet(home)


@virtual_time
async def test_a_service_is_placed_where_it_may_run_and_its_place_is_known(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        await fleet.machine("agent1", place="/us")
        right = await fleet.machine("agent2", place="/eu/fra")

        made = await fleet.deploy(arguments={"port": 8080}, place={"site": "/eu"})
        assert made["state"] == "placing" and made["generation"] == 1
        await fleet.until(agent=right.address, running=1)

        assert right.services == {"shop": 1}
        assert await fleet.ask("where", name="shop") == {
            "name": "shop",
            "agent": right.address,
            "result": {"port": 8080, "state": "running"},
        }
        shown = await fleet.show()
        assert shown["arguments"] == {"port": 8080} and shown["place"] == {"site": "/eu"}
        assert any("1 at another place" in line for line in shown["why"]), shown["why"]
        (placement,) = shown["history"]
        assert placement["why"] == "deployed by caller@memory.test"
        assert placement["agent"] == right.address and "problem" not in placement
        (job,) = await fleet.jobs()
        assert job["id"] == made["job"] and job["origin"] == "service:shop"
        assert (await fleet.ask("list"))["items"][0]["name"] == "shop"


@virtual_time
async def test_what_ran_on_a_machine_that_dies_runs_on_another_one_in_time(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        first = await fleet.machine("agent1")
        await fleet.deploy()
        await fleet.until(agent=first.address)
        second = await fleet.machine("agent2")

        first.kill()
        died = fleet.home.now
        await asyncio.sleep(MOVE_AFTER - 1)
        assert (await fleet.ask("where", name="shop"))["agent"] == first.address
        await eventually(second.has, GOAL)

        assert MOVE_AFTER <= fleet.home.now - died <= GOAL
        await fleet.until(agent=second.address, running=2, left=[first.address])
        shown = await fleet.show()
        assert [one["why"] for one in shown["history"]] == [
            "deployed by caller@memory.test",
            f"{first.address} was lost",
        ]


@virtual_time
async def test_what_ran_on_a_machine_that_was_cut_off_in_silence_moves_in_time_too(
    tmp_path: Path,
) -> None:
    async with a_fleet(tmp_path) as fleet:
        first = await fleet.machine("agent1")
        await fleet.deploy()
        await fleet.until()
        second = await fleet.machine("agent2")

        fleet.home.bus.hang(first.address)
        known = fleet.home.dispatcher.registry.get(first.address)
        assert known is not None
        heard = known.last_seen
        await eventually(second.has, GOAL)

        assert SILENT <= fleet.home.now - heard <= GOAL


@virtual_time
async def test_a_machine_that_comes_back_after_a_move_is_told_to_end_it(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        first = await fleet.machine("agent1")
        await fleet.deploy()
        await fleet.until()
        second = await fleet.machine("agent2")
        first.kill()
        await fleet.until(agent=second.address)
        assert first.services == {"shop": 1}

        await first.start()
        await eventually(lambda: not first.has(), 5)

        assert first.told[-1] == ("undeploy", "shop", 2)
        await fleet.until(agent=second.address, left=None)
        assert second.services == {"shop": 2} and second.deploys() == [2]


@virtual_time
async def test_a_machine_that_comes_back_in_time_keeps_it(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        first = await fleet.machine("agent1")
        await fleet.deploy()
        await fleet.until()
        second = await fleet.machine("agent2")

        first.kill()
        await asyncio.sleep(MOVE_AFTER - 2)
        await first.start()
        await asyncio.sleep(60)

        assert first.deploys() == [1] and second.told == []
        await fleet.until(agent=first.address, running=1)


@virtual_time
async def test_a_machine_that_comes_back_elsewhere_on_itself_is_known_by_that(
    tmp_path: Path,
) -> None:
    async with a_fleet(tmp_path) as fleet:
        machine = await fleet.machine()
        await fleet.deploy()
        await fleet.until()

        machine.kill()
        machine.port, machine.state = 8081, "starting"
        await machine.start()
        await asyncio.sleep(10)
        assert (await fleet.ask("where", name="shop"))["result"]["port"] == 8080
        machine.state = "running"
        await asyncio.sleep(5)

        found = (await fleet.ask("where", name="shop"))["result"]
        assert found["port"] == 8081 and "releases" not in found
        assert machine.deploys() == [1]


@virtual_time
async def test_how_a_service_goes_is_asked_of_its_machine(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        machine = await fleet.machine()
        await fleet.deploy()
        await fleet.until()

        machine.state = "backing off"
        assert (await fleet.show())["result"]["state"] == "backing off"
        # What was said last is better than nothing.
        fleet.home.bus.hang(machine.address)
        assert (await fleet.show())["result"]["state"] == "running"


@virtual_time
async def test_a_machine_that_comes_back_empty_gets_it_again(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        machine = await fleet.machine()
        await fleet.deploy()
        await fleet.until()
        await fleet.machine("agent2")

        machine.kill()
        machine.kept.clear()
        await machine.start()
        await fleet.until(agent=machine.address, running=2)

        assert machine.services == {"shop": 2}
        why = [one["why"] for one in (await fleet.show())["history"]]
        assert why[-1] == f"{machine.address} came back without it"


@virtual_time
async def test_a_service_that_nobody_can_take_is_placed_when_somebody_comes(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        made = await fleet.deploy()
        await asyncio.sleep(5)
        shown = await fleet.show()
        assert shown["state"] == "placing"
        assert "no agent offers /deployment/deploy" in shown["note"]
        assert shown["job"] == made["job"]
        problem = await problem_of(fleet.ask("where", name="shop"))
        assert "placing" in problem.text

        # Longer than one job waits.
        await asyncio.sleep(1000)
        shown = await fleet.show()
        assert shown["generation"] > 1 and shown["state"] in ("placing", "unplaced")
        machine = await fleet.machine()
        await fleet.until(agent=machine.address, within=65)
        dead = await fleet.home.client.ask_dispatcher("/spinal/dead/list")
        assert dead["items"] == []


@virtual_time
async def test_a_machine_that_fails_is_not_asked_again_while_there_is_another(
    tmp_path: Path,
) -> None:
    async with a_fleet(tmp_path) as fleet:
        first = await fleet.machine("agent1")
        first.refuses = "the disk is full"
        await fleet.deploy()
        await fleet.until("unplaced", note="the disk is full")
        second = await fleet.machine("agent2")
        await fleet.until(agent=second.address)
        assert first.deploys() == [1] and second.deploys() == [2]


@virtual_time
async def test_a_placement_that_fails_is_tried_again_with_growing_pauses(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        machine = await fleet.machine()
        machine.refuses = "no such archive"
        await fleet.deploy()
        await asyncio.sleep(600)
        assert 10 <= len(machine.deploys()) <= 16
        shown = await fleet.show()
        assert len(shown["history"]) == 10
        assert all(one["problem"] == "no such archive" for one in shown["history"][:-1])

        machine.refuses = ""
        await fleet.until(within=65)
        assert machine.services == {"shop": machine.deploys()[-1]}


@virtual_time
async def test_a_change_goes_to_the_machine_that_has_it(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        first = await fleet.machine("agent1")
        await fleet.deploy(arguments={"port": 1})
        await fleet.until()
        second = await fleet.machine("agent2")

        same = await fleet.deploy(arguments={"port": 1})
        assert same["generation"] == 1 and same["state"] == "placed"
        for _ in range(3):
            again = await fleet.deploy(arguments={"port": 1}, again=True)
            await fleet.until(running=again["generation"])
        await fleet.deploy(arguments={"port": 2})
        await fleet.until(running=5)
        assert (await fleet.ask("where", name="shop"))["result"]["port"] == 2

        assert first.deploys() == [1, 2, 3, 4, 5] and second.told == []


@virtual_time
async def test_a_change_that_the_machine_does_not_fit_moves_it(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        first = await fleet.machine("agent1", tags=["hdd"])
        await fleet.deploy()
        await fleet.until()
        second = await fleet.machine("agent2", tags=["ssd"])

        await fleet.deploy(tags=["ssd"])
        await fleet.until(agent=second.address)
        await eventually(lambda: not first.has(), 5)


@virtual_time
async def test_a_change_whose_machine_dies_meanwhile_goes_elsewhere(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        first = await fleet.machine("agent1")
        await fleet.deploy()
        await fleet.until()
        second = await fleet.machine("agent2")
        first.free.clear()
        await fleet.deploy(arguments={"port": 2})
        await eventually(lambda: first.deploys() == [1, 2])

        first.kill()
        await fleet.until(agent=second.address, within=GOAL)
        assert second.services == {"shop": 3}

        # What it had begun must not be there either.
        first.kept["shop"] += 1
        first.free.set()
        await first.start()
        await eventually(lambda: not first.has(), 10)
        assert first.told[-1] == ("undeploy", "shop", 3)


@virtual_time
async def test_a_change_that_fails_leaves_the_old_one_running(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        first = await fleet.machine("agent1")
        await fleet.deploy()
        await fleet.until()
        first.refuses = "not well after 30 s"
        await fleet.deploy(arguments={"port": 2})
        await fleet.until("unplaced", agent=first.address, running=1, generation=2)
        assert first.services == {"shop": 1}
        assert (await fleet.ask("where", name="shop"))["agent"] == first.address
        await asyncio.sleep(30)
        assert not [one for one in first.told if one[0] == "undeploy"]


@virtual_time
async def test_a_change_is_rolled_back_whether_it_runs_or_fails(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        machine = await fleet.machine()
        await fleet.deploy(arguments={"port": 1})
        await fleet.until()
        problem = await problem_of(fleet.ask("rollback", name="shop"))
        assert problem.reason == "refused" and "anything else before" in problem.text

        async def arguments() -> Any:
            return (await fleet.show())["arguments"]

        await fleet.deploy(arguments={"port": 2})
        await fleet.until(running=2)
        await fleet.ask("rollback", name="shop")
        await fleet.until(running=3)
        assert await arguments() == {"port": 1} and machine.port == 1
        await fleet.ask("rollback", name="shop")
        await fleet.until(running=4)
        assert await arguments() == {"port": 2}

        # One that does not run is not what one goes back to.
        machine.refuses = "no such archive"
        await fleet.deploy(arguments={"port": 3})
        await fleet.until("unplaced")
        machine.refuses = ""
        await fleet.ask("rollback", name="shop")
        await fleet.until(running=6)
        assert await arguments() == {"port": 2}
        assert (await fleet.show())["history"][-1]["why"] == "rolled back by caller@memory.test"


@virtual_time
async def test_a_service_is_moved_by_hand_and_runs_until_the_other_has_it(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        first = await fleet.machine("agent1")
        await fleet.deploy()
        await fleet.until()
        problem = await problem_of(fleet.ask("move", name="shop"))
        assert problem.reason == "no-agent" and "no other agent" in problem.text
        second = await fleet.machine("agent2", free=False)

        await fleet.ask("move", name="shop")
        await eventually(lambda: second.deploys() == [2])
        await asyncio.sleep(5)
        assert first.has()
        second.free.set()
        await fleet.until(agent=second.address)
        await eventually(lambda: not first.has(), 5)


@virtual_time
async def test_a_service_is_removed_everywhere(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        first = await fleet.machine("agent1")
        await fleet.deploy()
        await fleet.until()
        second = await fleet.machine("agent2")
        first.kill()
        await fleet.until(agent=second.address)

        gone = await fleet.ask("remove", name="shop")
        assert gone["state"] == "removing"
        await eventually(lambda: not second.has(), 5)
        # The other one is away, and has it still.
        assert (await fleet.show())["left"] == [first.address]
        await first.start()
        await eventually(lambda: not first.has(), 5)
        await asyncio.sleep(1)
        assert (await fleet.ask("list"))["items"] == []
        problem = await problem_of(fleet.show())
        assert problem.text == "there is no service shop"


@virtual_time
async def test_who_does_not_come_back_can_be_forgotten(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        machine = await fleet.machine()
        await fleet.deploy()
        await fleet.until()
        machine.kill()
        await asyncio.sleep(30)
        await fleet.ask("remove", name="shop")
        await asyncio.sleep(5)
        assert (await fleet.show())["state"] == "removing"
        await fleet.ask("remove", name="shop", forget=True)
        await asyncio.sleep(1)
        assert (await fleet.ask("list"))["items"] == []


@virtual_time
async def test_a_service_that_is_removed_while_it_is_placed_runs_nowhere(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        machine = await fleet.machine(free=False)
        await fleet.deploy()
        await eventually(lambda: machine.deploys() == [1])

        await fleet.ask("remove", name="shop")
        await eventually(lambda: ("undeploy", "shop", 2) in machine.told, 20)
        machine.free.set()
        await asyncio.sleep(2)
        assert (await fleet.ask("list"))["items"] == [] and not machine.has()
        (job,) = await fleet.jobs()
        assert job["state"] == "killed"


@virtual_time
async def test_a_name_that_was_removed_begins_anew_above_what_may_still_run(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        first = await fleet.machine("agent1")
        await fleet.deploy()
        await fleet.until()
        first.kill()
        await asyncio.sleep(10)
        await fleet.ask("remove", name="shop")
        second = await fleet.machine("agent2")
        again = await fleet.deploy()
        assert again["generation"] > 1
        await fleet.until(agent=second.address)
        await first.start()
        await eventually(lambda: not first.has(), 5)
        assert second.has()


@virtual_time
@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
async def test_an_outage_of_our_server_moves_nothing(tmp_path: Path, late: bool) -> None:
    async with a_fleet(tmp_path) as fleet:
        first = await fleet.machine("agent1")
        await fleet.deploy()
        await fleet.until()
        second = await fleet.machine("agent2")

        bus = fleet.home.bus
        bus.up = False
        bus.restart()
        await asyncio.sleep(120)
        bus.up = True
        if late:
            bus.faults = Faults(drop=1.0, applies=lambda one: one.sender == first.address)
            await asyncio.sleep(RETURN - 5)
            assert first.address not in fleet.home.dispatcher.registry
            bus.faults = Faults()
        await asyncio.sleep(60)

        await fleet.until(agent=first.address, running=1)
        assert first.deploys() == [1] and second.told == []


@virtual_time
async def test_a_server_that_passes_nothing_on_moves_nothing(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        first = await fleet.machine("agent1")
        await fleet.deploy()
        await fleet.until()
        second = await fleet.machine("agent2")

        everybody = [DISPATCHER, first.address, second.address]
        for address in everybody:
            fleet.home.bus.hang(address)
        await asyncio.sleep(120)
        for address in everybody:
            fleet.home.bus.resume(address)
        await asyncio.sleep(60)

        await fleet.until(agent=first.address, running=1)
        assert first.deploys() == [1] and second.told == []


@virtual_time
async def test_a_restart_of_the_dispatcher_moves_nothing_and_forgets_nothing(
    tmp_path: Path,
) -> None:
    async with a_fleet(tmp_path) as fleet:
        home = fleet.home
        first = await fleet.machine("agent1")
        await fleet.deploy()
        await fleet.until()
        second = await fleet.machine("agent2")

        await home.dispatcher.close()
        await asyncio.sleep(40)
        await home.dispatch()
        await asyncio.sleep(RETURN + 10)
        await fleet.until(agent=first.address, running=1)
        assert second.told == []

        first.kill()
        await fleet.until(agent=second.address, within=GOAL)


@virtual_time
async def test_what_a_dispatcher_began_another_life_of_it_ends(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        machine = await fleet.machine(free=False)
        await fleet.deploy()
        await eventually(lambda: machine.deploys() == [1])
        await fleet.home.dispatcher.close()
        machine.free.set()
        await asyncio.sleep(5)

        await fleet.home.dispatch()
        await fleet.until(agent=machine.address, running=1)
        assert machine.deploys() == [1]


@virtual_time
async def test_two_dispatchers_that_notice_at_once_place_it_once(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        home = fleet.home
        store = store_for(f"sqlite:///{tmp_path}/jobs.db")
        roles = {OTHER: "dispatcher"}
        async with Dispatcher(
            home.bus.connection(OTHER),
            roles=lambda address: roles.get(address) or role_of(address),
            epoch=1,
            store=store,
            dispatchers=[DISPATCHER],
            clock=Clock(running=lambda: home.now),
        ) as other:
            first = await fleet.machine("agent1")
            await fleet.deploy()
            await fleet.until()
            second = await fleet.machine("agent2")
            await eventually(
                lambda: second.address in other.registry and first.address in other.registry, 30
            )

            first.kill()
            await fleet.until(agent=second.address, within=GOAL)
            await first.start()
            await eventually(lambda: not first.has(), 10)
            await asyncio.sleep(30)

            assert second.deploys() == [2] and len(await fleet.jobs()) == 2


@virtual_time
async def test_only_its_own_and_the_owner_change_a_service(tmp_path: Path) -> None:
    async with a_fleet(tmp_path) as fleet:
        await fleet.machine()
        await fleet.deploy(arguments={"port": 1})
        await fleet.until()
        stranger = await fleet.home.caller("caller2")
        for what, arguments in (
            ("deploy", {"arguments": {"port": 2}}),
            ("move", {}),
            ("rollback", {}),
            ("remove", {}),
        ):
            problem = await problem_of(
                stranger.ask_dispatcher(f"/spinal/services/{what}", name="shop", **arguments)
            )
            assert problem.reason == "not-allowed" and "caller@memory.test" in problem.text
        shown = await stranger.ask_dispatcher("/spinal/services/show", name="shop")
        assert shown["state"] == "placed" and "arguments" not in shown
        owner = await fleet.home.caller("owner")
        shown = await owner.ask_dispatcher("/spinal/services/show", name="shop")
        assert shown["arguments"] == {"port": 1}
        await owner.ask_dispatcher("/spinal/services/remove", name="shop")


@virtual_time
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "Shop"}, "name"),
        ({"name": "../shop"}, "name"),
        ({}, "name"),
        ({"name": "shop", "arguments": [1]}, "arguments"),
        ({"name": "shop", "arguments": {"x": "y" * 20_000}}, "arguments"),
        ({"name": "shop", "policy": "all"}, "policy"),
        ({"name": "shop", "place": {"site": "eu"}}, "place"),
    ],
)
async def test_a_service_that_cannot_be_is_refused_by_the_name_of_what_is_wrong(
    tmp_path: Path, arguments: dict[str, Any], named: str
) -> None:
    async with a_fleet(tmp_path) as fleet:
        problem = await problem_of(fleet.ask("deploy", **arguments))
        assert problem.reason == "bad-arguments" and problem.argument == named
        assert (await fleet.ask("list"))["items"] == []
