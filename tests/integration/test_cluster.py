"""Two ejabberd nodes, joined: one is killed, and everybody goes on at the other one.

The dispatcher is an account, as at any server that somebody else runs, and knows both nodes, as do
agents and callers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from spinal.bus import Client, Home
from spinal.bus.errors import CallError, LoginRefused
from spinal.bus.home import Credentials
from spinal.bus.server import available
from spinal.bus.session import Session
from spinal.bus.transports.slixmpp import ComponentConnection
from spinal.testing import READY, Platform, Process, eventually, platform

from .cluster import DOMAIN, Cluster, Node, cluster
from .conftest import READ, SOON, WRITE, Stage, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

PART, SECRET = f"part.{DOMAIN}", "of the part"
#: One agent and one caller for each node, which they go to first.
AGENTS, CALLERS = ("agent-one", "agent-two"), ("caller-one", "caller-two")
ROLES = {
    "owner": "owner",
    "dispatcher": "dispatcher",
    **dict.fromkeys(AGENTS, "agent"),
    **dict.fromkeys(CALLERS, "caller"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    reason = available("ejabberd")
    if reason is not None:
        pytest.skip(f"MISSING: {reason}")
    async with cluster(tmp_path_factory.mktemp("cluster"), {PART: SECRET}) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    nodes: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Platform]:
    server = nodes.server(nodes.one)
    home = Home.create(
        tmp_path_factory.mktemp("homes") / "home",
        server=server,
        domain=DOMAIN,
        authority=nodes.one.ca,
    )
    for name, role in ROLES.items():
        home.add_account(name, role, f"password of {name}")
        await nodes.one.add_account(name, home.password(name))
    async with platform(server, folder=home.path) as found:
        yield found


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def both_are_there(nodes: Cluster) -> None:
    await nodes.whole()


@dataclass
class Play:
    """A stage with an agent and a caller at each node."""

    nodes: Cluster
    stage: Stage
    agents: dict[str, Process]
    callers: dict[str, Client]

    def agent_at(self, node: Node) -> Process:
        """The agent that went to this node."""
        return self.agents[AGENTS[self.nodes.nodes.index(node)]]

    def caller_at(self, node: Node) -> Client:
        """The caller that went to this node."""
        return self.stage.at(self.callers[CALLERS[self.nodes.nodes.index(node)]])

    def to(self, client: Client, node: Node) -> Client:
        """Have a client ask the agent that went to this node, and nobody else."""
        name = AGENTS[self.nodes.nodes.index(node)]
        return client.options(to=f"{name}@{DOMAIN}/agent", timeout=120)

    async def begun(self, numbers: Iterable[int]) -> None:
        """Wait until the calls with these numbers have begun."""
        wanted = set(numbers)

        def all_have() -> bool:
            return wanted <= {note.n for note in self.stage.ledger()}

        await eventually(all_have, SOON, f"{sorted(wanted)} have begun")

    async def both_answer(self) -> None:
        """Every caller reaches every agent, by the dispatcher and directly."""
        pids = {self.agent_at(node).pid for node in self.nodes.nodes}

        async def all_of_them() -> bool:
            try:
                for client in map(self.stage.at, self.callers.values()):
                    rows = await client.options(policy="all", timeout=10).call(READ)
                    if {row["value"][0] for row in rows if "value" in row} != pids:
                        return False
                    for node in self.nodes.nodes:
                        direct = self.to(client, node).options(timeout=10)
                        assert await direct.call(READ) == [self.agent_at(node).pid, 0]
            except CallError:
                return False
            return True

        await eventually(all_of_them, READY, "all callers reach all agents")


@asynccontextmanager
async def play(nodes: Cluster, running: Platform, folder: Path) -> AsyncGenerator[Play]:
    async with stage(running, folder) as scene, AsyncExitStack() as stack:
        found = Play(nodes, scene, {}, {})
        for node, agent, caller in zip(nodes.nodes, AGENTS, CALLERS, strict=True):
            first = {"SPINAL_SERVER": nodes.server(node), "SPINAL_HOME": ""}
            variables = {**running.home.environment(agent), **first, "STORY_SLOTS": "8"}
            (found.agents[agent],) = await scene.start(1, **variables)
            credentials = Credentials.find(running.home.environment(caller) | first)
            client = await stack.enter_async_context(Client(credentials=credentials))
            found.callers[caller] = client
        await found.both_answer()
        yield found


async def places(node: Node) -> dict[str, str]:
    """Name of the account -> node that its stream is at, as this node knows it."""
    return {who.partition("@")[0]: where for who, where in (await node.clients()).items()}


async def moved(play: Play, survivor: Node) -> None:
    """Wait until all accounts of ours are at one node."""

    async def all_there() -> bool:
        found = await places(survivor)
        return set(ROLES) <= set(found) and set(found.values()) == {survivor.name}

    await eventually(all_there, SOON, f"all are at {survivor.name}")


@pytest.mark.parametrize("number", [1, 0], ids=["of the agents", "of the dispatcher"])
async def test_a_node_is_killed_and_nothing_is_lost_or_doubled(
    nodes: Cluster, running: Platform, tmp_path: Path, number: int
) -> None:
    victim = nodes.nodes[number]
    survivor = nodes.other(victim)
    async with play(nodes, running, tmp_path / f"node-{number}") as here:
        scene = here.stage
        found = await places(survivor)
        for node, agent, caller in zip(nodes.nodes, AGENTS, CALLERS, strict=True):
            assert found[agent] == found[caller] == node.name

        # At the node that stays: what is under way there, and what begins while the other one dies.
        calm, there = here.caller_at(survivor), here.to(here.caller_at(survivor), survivor)
        held = [scene.ask(WRITE, there, n=n, gate="calm") for n in range(1, 5)]
        # At the node that dies: direct calls, brokered calls and jobs.
        theirs = here.caller_at(victim)
        direct = [
            scene.ask(op, here.to(theirs, victim), n=n, gate="storm")
            for n, op in ((100, READ), (101, WRITE))
        ]
        jobs = {
            n: await theirs.options(to=f"{AGENTS[number]}@{DOMAIN}/agent").submit(
                WRITE if n % 2 else READ, n=n, gate="storm"
            )
            for n in range(200, 204)
        }
        await here.begun([*range(1, 5), 100, 101, *jobs])

        killed = time.monotonic()
        await victim.kill()
        assert await survivor.members() == {survivor.name}
        # Nobody at the other one has to wait; nor for the dispatcher, if it is there.
        for n, client in enumerate([there] * 20 + [calm] * 5 * (survivor is nodes.one), 300):
            assert (await client.options(timeout=20).call(READ, n=n))[1] == n
        assert time.monotonic() - killed < SOON
        scene.open("calm")
        assert [n for _, n in await asyncio.gather(*held)] == list(range(1, 5))

        await moved(here, survivor)
        scene.open("storm")
        at = here.agent_at(victim).pid
        async with asyncio.timeout(READY):
            assert await asyncio.gather(*direct) == [[at, 100], [at, 101]]
            for n, job in jobs.items():
                assert await job.result(timeout=READY) == [at, n]
        begun = Counter(note.n for note in scene.ledger() if note.n)
        # What is safe may have been moved, where the agent took longer than a second to come back.
        twice = {n for n, times in begun.items() if times > 1}
        assert twice <= {n for n in jobs if n % 2 == 0}, "something unsafe ran twice"
        assert {1, 2, 3, 4, 100, 101, *jobs, *range(300, 320)} <= set(begun)
        assert not scene.ledger("cancelled")
        for job in jobs.values():
            assert (await running.client.job(job.id).info())["attempt"] == 1
        await here.both_answer()


async def test_a_machine_is_gone_and_what_is_safe_goes_on_at_the_other(
    nodes: Cluster, running: Platform, tmp_path: Path
) -> None:
    async with play(nodes, running, tmp_path / "machine") as here:
        scene = here.stage
        victim, survivor = nodes.two, nodes.one
        gone = here.agent_at(victim)
        # Both kinds at the one that will go: the other one has no room yet.
        filled = [
            scene.ask(READ, here.to(here.caller_at(survivor), survivor), n=n, gate="first")
            for n in range(1, 9)
        ]
        await here.begun(range(1, 9))
        client = here.caller_at(survivor)

        async def is_full() -> bool:
            busy = {agent["agent"]: agent["busy"] for agent in await scene.known()}
            return bool(busy[f"{AGENTS[0]}@{DOMAIN}/agent"] == 8)

        await eventually(is_full, SOON, "the dispatcher knows that it is full")
        safe = [await client.submit(READ, n=n, gate="second") for n in range(50, 53)]
        unsafe = await client.submit(WRITE, n=60, gate="second")
        await here.begun([50, 51, 52, 60])
        assert {note.pid for note in scene.ledger() if note.n >= 50} == {gone.pid}

        gone.kill(signal.SIGSTOP)  # So that it does not end what it holds.
        gone.kill(signal.SIGKILL)
        await victim.kill()
        scene.open("first")
        scene.open("second")

        assert [n for _, n in await asyncio.gather(*filled)] == list(range(1, 9))
        for n, job in zip(range(50, 53), safe, strict=True):
            assert await job.result(timeout=READY) == [here.agent_at(survivor).pid, n]
        with pytest.raises(CallError) as caught:
            await unsafe.result(timeout=READY)
        assert caught.value.reason == "lost"
        assert [note.pid for note in scene.ledger() if note.n == 60] == [gone.pid]


async def test_a_node_that_comes_back_knows_what_was_done_without_it(
    nodes: Cluster, running: Platform
) -> None:
    await nodes.two.kill()
    await nodes.one.add_account("newcomer", "made meanwhile")
    host, _, port = nodes.two.endpoint.partition(":")
    credentials = replace(
        running.home.credentials("owner"),
        address=f"newcomer@{DOMAIN}",
        password="made meanwhile",
        host=host,
        port=int(port),
        home=None,
        further=(),
    )
    await nodes.whole()
    async with Client(credentials=credentials):
        assert (await places(nodes.one))["newcomer"] == nodes.two.name
    with pytest.raises(LoginRefused):
        async with Client(credentials=replace(credentials, password="another")):
            pass


async def test_a_component_is_reached_from_both_nodes_and_is_gone_with_its_own(
    nodes: Cluster, running: Platform
) -> None:
    two = nodes.two
    connection = ComponentConnection(PART, SECRET, "127.0.0.1", two.config.ports.component)
    async with Session(connection, trust=lambda sender: True) as part:
        credentials = running.home.credentials("owner")
        async with Client(credentials=replace(credentials, dispatchers=(PART,))) as client:
            assert (await places(two))["owner"] == nodes.one.name

            async def reason_of_a_call() -> str:
                try:
                    await client.options(to=PART, timeout=2).call("/anything")
                except CallError as error:
                    return error.reason
                raise AssertionError("it offers nothing")

            async def is_there() -> bool:
                return await reason_of_a_call() == "unknown-op"

            await eventually(is_there, SOON, "it answers at the other node")
            await two.kill()
            await eventually(lambda: not part.connected, SOON, "it has lost its stream")
            # What is on its way in that moment has no answer.  What comes later bounces, once the
            # other node has asked the DNS for a server of that name.
            assert await reason_of_a_call() in ("unreachable", "no-answer", "expired", "deadline")
            await two.start()
            await eventually(lambda: part.connected, SOON, "it is back by itself")
            await nodes.whole()
            await eventually(is_there, SOON, "it answers again")


async def test_nothing_of_a_cluster_outlives_it(tmp_path: Path) -> None:
    reason = available("ejabberd")
    if reason is not None:
        pytest.skip(f"MISSING: {reason}")
    async with cluster(tmp_path, {}):
        family = psutil.Process(os.getpid()).children(recursive=True)
        ours = [child for child in family if str(tmp_path) in _where(child)]
        assert {"epmd", "beam.smp"} <= {child.name() for child in ours}
    # What it left to the machine's first process may wait there to be noticed.
    assert not [child for child in ours if child.is_running() and child.status() != "zombie"]


def _where(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:
        return ""
