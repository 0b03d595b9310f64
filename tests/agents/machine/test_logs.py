from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from spinal.agents.errors import CommandFailed
from spinal.agents.machine.folder import Folder
from spinal.agents.machine.logs import (
    CHUNK,
    MAX_LINE,
    File,
    Lines,
    journal_argv,
    lines_from,
    lines_of,
)
from spinal.agents.process import run
from spinal.bus.call import Call
from spinal.bus.errors import CallError
from spinal.protocols import Data

from .conftest import Start, World, needs


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "app.log").write_text("".join(f"line {number}\n" for number in range(1, 11)))
    return folder / "app.log"


@pytest.fixture
async def world(start: Start, log: Path) -> AsyncGenerator[World]:
    text = f'services: {{manager: none}}\nlogs: {{files: ["{log.parent}/*.log"], services: ["*"]}}'
    async with start(text) as world:
        yield world


async def data(call: Call) -> AsyncGenerator[object]:
    async for item in call:
        if isinstance(item, Data):
            yield item.value


async def lines(call: Call) -> list[object]:
    return [item async for item in data(call)]


async def tail(path: Path, last: int) -> list[str]:
    file = File(Folder(str(path.parent)), path.name)
    async with aclosing(lines_of(file, last, False)) as found:
        return [line async for line in found]


class TestTheLastLines:
    @pytest.mark.parametrize(
        ("count", "numbers"), [(3, [8, 9, 10]), (10, range(1, 11)), (5000, range(1, 11)), (0, [])]
    )
    async def test_they_come_one_by_one(
        self, world: World, log: Path, count: int, numbers: list[int]
    ) -> None:
        call = world.call("/log", file=str(log), lines=count)
        assert await lines(call) == [f"line {number}" for number in numbers]
        assert await call.result() is None

    @pytest.mark.parametrize(
        ("text", "last", "found"),
        [
            (b"", 5, []),
            (b"\n", 5, [""]),
            (b"a", 5, ["a"]),
            (b"a\nb", 1, ["b"]),
            (b"a\nb\n", 1, ["b"]),
            (b"a\n\n", 1, [""]),
            (b"a\n\n\n", 2, ["", ""]),
            (b"\xff\xfe\n\0\n", 2, ["��", "\0"]),
            (b"x" * (MAX_LINE + 1) + b"\n", 1, ["x" * MAX_LINE, "x"]),
        ],
    )
    async def test_the_ends_of_lines_count(
        self, tmp_path: Path, text: bytes, last: int, found: list[str]
    ) -> None:
        (tmp_path / "x.log").write_bytes(text)
        assert await tail(tmp_path / "x.log", last) == found

    @pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
    async def test_they_are_found_over_the_seams_of_what_is_read(
        self, tmp_path: Path, length: int
    ) -> None:
        rows = [f"{number:07}" for number in range(length // 8)]
        (tmp_path / "x.log").write_text("\n".join([*rows, "end"]))
        for last in (1, 2, 1000, len(rows)):
            assert await tail(tmp_path / "x.log", last) == [*rows, "end"][-last:]

    async def test_a_line_of_control_characters_travels(self, world: World, log: Path) -> None:
        log.write_bytes(b"\1" * 10_000 + b"\n" + b"<&>" * 3000 + b"\n")
        found = "".join(map(str, await lines(world.call("/log", file=str(log)))))
        assert found == "\1" * 10_000 + "<&>" * 3000


class TestFollowing:
    """New lines as they come; each test fails by its time-out if a line is lost."""

    @asynccontextmanager
    async def following(self, log: Path, last: int = 1) -> AsyncGenerator[AsyncGenerator[str]]:
        file = File(Folder(str(log.parent)), log.name)
        async with asyncio.timeout(20), aclosing(lines_of(file, last, True)) as found:
            yield found

    async def test_new_lines_come_when_they_are_complete(self, log: Path) -> None:
        async with self.following(log) as found:
            assert await anext(found) == "line 10"
            with log.open("a") as file:
                file.write("half")
                file.flush()
                nothing = asyncio.ensure_future(anext(found))
                done, _ = await asyncio.wait([nothing], timeout=0.6)
                assert not done
                file.write(" and half\nnext\n")
            assert await nothing == "half and half"
            assert await anext(found) == "next"

    async def test_a_rotated_file_is_read_to_its_end_and_then_the_new_one(self, log: Path) -> None:
        async with self.following(log) as found:
            assert await anext(found) == "line 10"
            for turn in range(3):
                with log.open("a") as file:
                    file.write(f"last of {turn}\n")
                    os.rename(log, log.with_suffix(f".{turn}"))
                    # The program goes on with the file that it has, as they do.
                    file.write(f"late for {turn}\nunfinished")
                assert await anext(found) == f"last of {turn}"
                assert await anext(found) == f"late for {turn}"
                log.write_text(f"first of {turn + 1}\n")
                assert await anext(found) == "unfinished"
                assert await anext(found) == f"first of {turn + 1}"

    async def test_a_truncated_file_is_read_from_its_beginning(self, log: Path) -> None:
        async with self.following(log) as found:
            assert await anext(found) == "line 10"
            os.truncate(log, 0)
            with log.open("a") as file:
                file.write("anew\n")
            assert await anext(found) == "anew"

    async def test_one_that_is_replaced_by_a_link_is_not_left_for_it(
        self, log: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "secret").write_text("SECRET\n")
        async with self.following(log) as found:
            assert await anext(found) == "line 10"
            with log.open("a") as file:
                log.unlink()
                log.symlink_to(tmp_path / "secret")
                file.write("still here\n")
            assert await anext(found) == "still here"
            nothing = asyncio.ensure_future(anext(found))
            done, _ = await asyncio.wait([nothing], timeout=0.6)
            assert not done
            nothing.cancel()
            await asyncio.gather(nothing, return_exceptions=True)

    async def test_on_the_bus_it_goes_on_until_it_is_cancelled(
        self, world: World, log: Path
    ) -> None:
        call = world.call("/log", file=str(log), lines=1, follow=True)
        items = data(call)
        async with asyncio.timeout(20):
            assert await anext(items) == "line 10"
            with log.open("a") as file:
                file.write("more\n")
            assert await anext(items) == "more"
            await call.cancel()
            with pytest.raises((CallError, StopAsyncIteration)):
                await anext(items)
            await world.life.slots.idle()

    async def test_it_ends_with_the_time_of_the_call(self, world: World, log: Path) -> None:
        args = {"file": str(log), "follow": True}
        call = world.caller.call("machine@memory.test/agent", "/machine/log", args, timeout=0.5)
        with pytest.raises(CallError):
            await call.result()
        async with asyncio.timeout(20):
            await world.life.slots.idle()

    async def test_an_agent_that_ends_does_not_wait_for_those_who_follow(
        self, world: World, log: Path
    ) -> None:
        call = world.call("/log", file=str(log), lines=1, follow=True)
        found = data(call)
        assert await anext(found) == "line 10"
        async with asyncio.timeout(10):
            assert await world.life.drain(grace=8)
            assert [line async for line in found] == []

    async def test_those_who_follow_leave_room_for_others(self, world: World, log: Path) -> None:
        calls = [world.call("/log", file=str(log), follow=True) for _ in range(20)]
        async with asyncio.timeout(20):
            assert (await world.ask("/processes", by="pid"))["processes"]
        for call in calls:
            await call.cancel()


class TestPermission:
    @pytest.mark.parametrize(
        "name",
        ["app.log.1", "x/app.log", "../log/app.log", "secret", "*.log", "\0.log"],
    )
    async def test_only_allowed_files_are_read(self, world: World, log: Path, name: str) -> None:
        (log.parent / "app.log.1").write_text("old\n")
        reason, said = await world.problem("/log", file=f"{log.parent}/{name}")
        assert reason == "refused" and "\n" not in said

    async def test_a_link_with_an_allowed_name_is_refused(
        self, world: World, log: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "secret").write_text("SECRET\n")
        (log.parent / "link.log").symlink_to(tmp_path / "secret")
        reason, said = await world.problem("/log", file=str(log.parent / "link.log"))
        assert reason == "refused" and "links are not followed" in said

    @pytest.mark.parametrize("args", [{}, {"file": "/a", "service": "b"}])
    async def test_it_is_one_or_the_other(self, world: World, args: dict[str, str]) -> None:
        reason, said = await world.problem("/log", **args)
        assert (reason, said) == ("refused", "name either a service or a file")

    async def test_without_a_manager_there_is_no_journal(self, world: World) -> None:
        reason, _ = await world.problem("/log", service="cron")
        assert reason == "refused"

    async def test_by_default_no_log_is_read(self, start: Start) -> None:
        async with start("{}") as world:
            assert (await world.problem("/log", file="/var/log/syslog"))[0] == "unknown-op"


class TestJournal:
    """Programs whose lines are given on; test_systemd.py has a journal."""

    @needs("journalctl")
    async def test_the_real_program_takes_what_we_give_it(self) -> None:
        done = await run(journal_argv("cron", 5, False))
        assert b"invalid option" not in done.stderr and b"unrecognized" not in done.stderr

    def test_a_name_cannot_be_an_option(self) -> None:
        assert journal_argv("cron", 5, True)[-2:] == ["--follow", "--unit=cron.service"]

    async def test_a_program_is_followed_and_ended(self) -> None:
        script = "import os, time\nprint(os.getpid(), flush=True)\nprint('x' * 5000, flush=True)\ntime.sleep(1000)"
        async with asyncio.timeout(20):
            async with aclosing(lines_from([sys.executable, "-c", script], None)) as found:
                pid = int(await anext(found))
                assert await anext(found) == "x" * MAX_LINE
                os.kill(pid, 0)
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    async def test_one_that_writes_faster_than_anybody_reads_fills_no_memory(self) -> None:
        async with aclosing(lines_from(["yes", "y" * 1000], None)) as found:
            for _ in range(1000):
                assert await anext(found) == "y" * 1000

    async def test_what_it_says_when_it_fails_is_told(self) -> None:
        with pytest.raises(CommandFailed, match="exit code 3: no journal"):
            async with aclosing(
                lines_from(["sh", "-c", "echo no journal >&2; exit 3"], None)
            ) as it:
                assert [line async for line in it] == []


def test_lines_are_cut_from_any_pieces() -> None:
    text = "eins\nzwei ü\n\nvier".encode()
    for size in range(1, len(text)):
        lines = Lines()
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        found = [line for piece in pieces for line in lines.feed(piece)]
        assert [*found, *lines.end()] == ["eins", "zwei ü", "", "vier"]
