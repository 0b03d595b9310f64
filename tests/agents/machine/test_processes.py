from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator

import psutil
import pytest

from spinal.agents.errors import Refused
from spinal.agents.machine.config import ProcessesConfig, SignalRule
from spinal.agents.machine.processes import look, send, started
from spinal.testing import eventually

from .conftest import Start, World

SLEEP = [sys.executable, "-c", "import signal; signal.pause()", "--password=hunter2"]
BUSY = [sys.executable, "-c", "while True: pass"]


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(SLEEP) as child:
        yield child
        child.kill()


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(BUSY) as child:
        yield child
        child.kill()


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as child:
        return child.pid


def name_of(child: subprocess.Popen[bytes]) -> str:
    return psutil.Process(child.pid).name()


@pytest.fixture
async def world(start: Start) -> AsyncGenerator[World]:
    async with start('processes: {signal: [{name: "python*", signals: [TERM, STOP]}]}') as world:
        yield world


class TestLooking:
    async def test_the_busiest_come_first(
        self, world: World, busy: subprocess.Popen[bytes]
    ) -> None:
        async def seen() -> bool:
            found = await world.ask("/processes", limit=200)
            one = [one for one in found["processes"] if one["pid"] == busy.pid]
            return bool(one) and one[0]["cpu"] > 10

        await eventually(seen, 20)
        used = [one["cpu"] for one in (await world.ask("/processes", limit=200))["processes"]]
        assert used == sorted(used, reverse=True)

    @pytest.mark.parametrize(
        ("by", "key", "reverse"),
        [("memory", "memory", True), ("age", "started", False), ("pid", "pid", False)],
    )
    async def test_there_are_other_orders(
        self, world: World, by: str, key: str, reverse: bool
    ) -> None:
        found = await world.ask("/processes", by=by, limit=50)
        values = [one[key] for one in found["processes"]]
        assert len(values) > 1 and values == sorted(values, reverse=reverse)

    async def test_they_are_filtered_and_counted(
        self, world: World, child: subprocess.Popen[bytes]
    ) -> None:
        name = name_of(child)
        found = await world.ask("/processes", by="pid", name=f"{name[:4]}*", limit=1)
        assert len(found["processes"]) == 1 <= found["matching"] <= found["total"]
        assert (await world.ask("/processes", by="pid", name="no such thing"))["matching"] == 0
        assert (await world.ask("/processes", by="pid", user="nobody else"))["processes"] == []

    async def test_arguments_are_shown_only_if_the_configuration_says_so(
        self, child: subprocess.Popen[bytes]
    ) -> None:
        for arguments in (False, True):
            found = await look(ProcessesConfig(arguments), "pid", name_of(child), "", 10_000)
            (command,) = [one.command for one in found.processes if one.pid == child.pid]
            assert ("hunter2" in command) == arguments

    async def test_a_thousand_do_not_burst_the_answer(self, world: World) -> None:
        async def one() -> None:
            found = await world.ask("/processes", by="pid", limit=200)
            assert found["processes"]

        await asyncio.gather(*(one() for _ in range(8)))


class TestSignalling:
    async def test_a_process_is_ended(self, world: World, child: subprocess.Popen[bytes]) -> None:
        args = {"pid": child.pid, "started": started(child.pid)}
        assert (await world.ask("/process/signal", **args)).startswith("python")
        assert await asyncio.to_thread(child.wait, 10) == -15

    async def test_what_the_list_says_is_what_the_signal_wants(
        self, world: World, child: subprocess.Popen[bytes]
    ) -> None:
        found = await world.ask("/processes", by="pid", name=name_of(child), limit=200)
        (one,) = [one for one in found["processes"] if one["pid"] == child.pid]
        await world.ask("/process/signal", pid=one["pid"], started=one["started"], signal="STOP")
        await eventually(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)

    async def test_a_number_that_another_process_has_is_not_signalled(
        self, world: World, child: subprocess.Popen[bytes]
    ) -> None:
        args = {"pid": child.pid, "started": started(child.pid) - 1}
        reason, said = await world.problem("/process/signal", **args)
        assert reason == "refused" and "another one has its number" in said
        assert child.poll() is None

    async def test_one_that_has_ended_is_told(self, world: World, gone: int) -> None:
        reason, said = await world.problem("/process/signal", pid=gone, started=1)
        assert reason == "refused" and said == f"there is no process {gone}"

    async def test_only_allowed_signals_are_sent(
        self, world: World, child: subprocess.Popen[bytes]
    ) -> None:
        args = {"pid": child.pid, "started": started(child.pid)}
        reason, said = await world.problem("/process/signal", **args, signal="KILL")
        assert reason == "refused" and "processes.signal" in said
        assert child.poll() is None

    @pytest.mark.parametrize(
        "rule",
        [
            SignalRule(("TERM",), "other"),
            SignalRule(("TERM",), user="nobody"),
            SignalRule(("TERM",), exe="/bin/sh"),
            SignalRule(("HUP",)),
        ],
    )
    def test_only_allowed_processes_are_signalled(
        self, child: subprocess.Popen[bytes], rule: SignalRule
    ) -> None:
        with pytest.raises(Exception, match="is not allowed"):
            send(ProcessesConfig(signal=(rule,)), child.pid, started(child.pid), "TERM")
        assert child.poll() is None

    def test_a_program_is_allowed_by_its_file(self, child: subprocess.Popen[bytes]) -> None:
        exe = psutil.Process(child.pid).exe()
        config = ProcessesConfig(signal=(SignalRule(("TERM",), exe=exe),))
        send(config, child.pid, started(child.pid), "TERM")
        assert child.wait(10) == -15

    async def test_the_agent_and_what_it_runs_under_are_never_signalled(self, world: World) -> None:
        for pid in (os.getpid(), os.getppid()):
            args = {"pid": pid, "started": started(pid)}
            reason, said = await world.problem("/process/signal", **args)
            assert reason == "refused" and "this agent" in said

    @pytest.mark.parametrize("pid", [1, 0, -1, -(2**31), 2**31, 2**53 - 1])
    async def test_numbers_that_mean_many_or_the_first_one_are_refused(
        self, world: World, pid: int
    ) -> None:
        reason, _ = await world.problem("/process/signal", pid=pid, started=0)
        assert reason == "bad-arguments"

    @pytest.mark.parametrize("pid", [1, 0, -1, -(2**31)])
    def test_they_are_refused_below_the_bus_as_well(self, pid: int) -> None:
        config = ProcessesConfig(signal=(SignalRule(("TERM",)),))
        with pytest.raises(Refused, match="is not the number of a process"):
            send(config, pid, 0, "TERM")

    @pytest.mark.parametrize(
        "signal", ["SIGTERM", "15", "", "term", "TERM ", "TERM\n", "-9", "RTMIN", "\0", "0"]
    )
    async def test_what_is_no_signal_is_refused(
        self, world: World, child: subprocess.Popen[bytes], signal: str
    ) -> None:
        args = {"pid": child.pid, "started": started(child.pid), "signal": signal}
        reason, said = await world.problem("/process/signal", **args)
        assert reason == "bad-arguments" and "signal" in said
        assert child.poll() is None

    async def test_without_a_rule_it_is_not_offered(self, start: Start) -> None:
        async with start("{}") as world:
            reason, _ = await world.problem("/process/signal", pid=2, started=0)
        assert reason == "unknown-op"
