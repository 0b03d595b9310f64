from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.processes import gone

from spinal.agents import process
from spinal.agents.errors import one_line
from spinal.agents.job import Facts
from spinal.agents.pools import Outcome, Pool
from spinal.bus.errors import CallError

from .conftest import Recorder, Shelf


@pytest.fixture
async def pool(files: Path) -> AsyncIterator[Pool]:
    async with Pool(files / "plain.py", "plain", 2, grace=2.0) as pool:
        yield pool
    assert pool.pids == []
    assert [child for child in psutil.Process().children(recursive=True)] == []


@pytest.fixture
def call(pool: Pool, tmp_path: Path, recorder: Callable[[], Recorder]) -> Any:
    async def call(
        op: str,
        args: dict[str, Any] | None = None,
        channel: Recorder | None = None,
        files: dict[str, Path] | None = None,
        timeout: float = 20.0,
    ) -> Outcome:
        folder = tmp_path / "results"
        return await pool.run(
            Facts("id-1", op, "me@x/y", 2),
            args or {},
            channel or recorder(),
            folder=folder,
            files=files,
            timeout=timeout,
        )

    return call


async def test_a_worker_is_started_on_demand_and_used_again(pool: Pool, call: Any) -> None:
    assert pool.pids == []
    assert (await call("/add", {"a": 1})).value == 2
    first = await call("/pid")
    second = await call("/pid")

    assert first.value == second.value
    assert os.getpgid(first.value) == pool.pids[0]


async def test_two_calls_at_once_have_two_workers_and_a_third_waits(pool: Pool, call: Any) -> None:
    values = await asyncio.gather(*(call("/burn") for _ in range(3)))

    assert [outcome.value for outcome in values] == [None] * 3
    assert len(pool.pids) == 2


async def test_news_and_facts_pass_between_function_and_caller(
    call: Any, recorder: Callable[[], Recorder]
) -> None:
    channel = recorder()
    outcome = await call("/talk", channel=channel)

    assert channel.said == [(1.0, 2.0, "half"), "a line", {"data": {"piece": 1}}]
    assert outcome.value == "id-1 /talk me@x/y 2 True"


async def test_what_a_generator_yields_is_data(call: Any, recorder: Callable[[], Recorder]) -> None:
    channel = recorder()
    outcome = await call("/count", {"to": 3}, channel)

    assert channel.said == [{"data": 0}, {"data": 1}, {"data": 2}]
    assert outcome.value is None


@pytest.mark.parametrize(
    ("op", "reason", "text"),
    [
        ("/fail", "failed", "ValueError: no such photo"),
        ("/refuse", "refused", "the shop is closed"),
        ("/leave", "failed", "RuntimeError: it called sys.exit('bye')"),
        ("/odd", "failed", "result: nan is not a JSON number; send null or a string instead"),
        (
            "/big",
            "too-large",
            "the result takes 40002 bytes, and 32768 travel inline: give a Blob",
        ),
    ],
)
async def test_what_a_function_raises_reaches_the_caller_in_one_line(
    pool: Pool, call: Any, op: str, reason: str, text: str
) -> None:
    with pytest.raises(CallError) as caught:
        await call(op)

    assert (caught.value.reason, str(caught.value)) == (reason, text)
    assert len(pool.pids) == 1, "the worker is still good"


@pytest.mark.parametrize(
    ("op", "text"),
    [
        ("/segfault", "worker process died (signal 11)"),
        ("/exit", "worker process died (exit code 7)"),
    ],
)
async def test_a_worker_that_dies_fails_its_call_and_is_replaced(
    pool: Pool, call: Any, op: str, text: str
) -> None:
    with pytest.raises(CallError) as caught:
        await call(op)

    assert (caught.value.reason, str(caught.value)) == ("failed", text)
    assert (await call("/add", {"a": 1})).value == 2


@pytest.mark.parametrize("victim", ["guard", "worker"])
async def test_a_worker_that_is_killed_during_a_call_fails_it(
    pool: Pool, call: Any, tmp_path: Path, recorder: Callable[[], Recorder], victim: str
) -> None:
    channel = recorder()
    note = tmp_path / "pids"
    running = asyncio.create_task(call("/sleep", {"file": str(note)}, channel))
    await channel.heard("sleeping")
    worker = int(note.read_text().split()[0])
    os.kill(worker if victim == "worker" else pool.pids[0], signal.SIGKILL)
    with pytest.raises(CallError, match=r"died \(signal 9\)"):
        await running

    assert all(gone(int(pid)) for pid in note.read_text().split())


async def test_a_worker_that_died_while_idle_costs_nobody_a_call(pool: Pool, call: Any) -> None:
    first = (await call("/pid")).value
    os.kill(first, signal.SIGKILL)
    second = (await call("/pid")).value

    assert second != first
    assert pool.pids == [os.getpgid(second)]


async def test_a_cancelled_function_cleans_up_and_its_children_go(
    call: Any, tmp_path: Path, recorder: Callable[[], Recorder]
) -> None:
    channel = recorder()
    note = tmp_path / "pids"
    running = asyncio.create_task(call("/sleep", {"file": str(note)}, channel))
    await channel.heard("sleeping")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert note.with_suffix(".ended").read_text() == "True"
    assert all(gone(int(pid)) for pid in note.read_text().split())


async def test_a_function_that_ignores_its_cancellation_is_killed(
    files: Path, tmp_path: Path, recorder: Callable[[], Recorder]
) -> None:
    channel = recorder()
    note = tmp_path / "pids"
    async with Pool(files / "plain.py", "plain", 1, grace=0.1) as pool:
        running = asyncio.create_task(
            pool.run(
                Facts("1", "/sleep", "me@x"),
                {"file": str(note), "stubborn": True},
                channel,
                folder=tmp_path,
            )
        )
        await channel.heard("sleeping")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    assert not note.with_suffix(".ended").exists()
    assert all(gone(int(pid)) for pid in note.read_text().split())


async def test_a_timeout_ends_the_function_and_says_how_long_it_was(
    call: Any, tmp_path: Path
) -> None:
    note = tmp_path / "pids"
    with pytest.raises(CallError) as caught:
        await call("/sleep", {"file": str(note)}, timeout=0.5)

    assert caught.value.reason == "deadline"
    assert str(caught.value) == "ran longer than its timeout of 500ms"
    assert all(gone(int(pid)) for pid in note.read_text().split())


async def test_a_timeout_does_not_count_the_start_of_the_worker(call: Any) -> None:
    # Importing the library alone takes longer than this.
    assert (await call("/add", {"a": 1}, timeout=0.2)).value == 2


@pytest.mark.parametrize("fails", [False, True])
async def test_a_run_tells_its_cost(
    call: Any, recorder: Callable[[], Recorder], fails: bool
) -> None:
    channel = recorder()
    with pytest.raises(CallError) if fails else contextlib.nullcontext():
        await call("/burn", {"fails": fails}, channel=channel)

    (cost,) = channel.costs
    assert cost[0] >= 0.1
    assert cost[1] >= 64 * 1024 * 1024


async def test_blobs_go_in_and_come_out_as_files(
    call: Any, shelf: Shelf, tmp_path: Path, files: Path
) -> None:
    ref = shelf.put(b"picture", "image/png")
    here = tmp_path / "blob.png"
    here.write_bytes(b"picture")
    size = await call("/size", {"photo": ref.to_json()}, files={ref.sha256: here})
    made = await call("/make")

    assert size.value == {"size": 7, "suffix": ".png", "sha256": ref.sha256}
    assert made.value == {"list": [1, None], "blob": None}
    found = {tuple(file.steps): file for file in made.files}
    assert Path(found["list", 1].path).read_bytes() == b"bytes"
    assert found["list", 1].media_type == "text/plain"
    assert Path(found["blob",].path) == files / "plain.py"


async def test_reading_a_blob_with_a_coroutine_in_a_plain_function_says_what_to_use(
    call: Any, shelf: Shelf, tmp_path: Path
) -> None:
    ref = shelf.put(b"x")
    (tmp_path / "b").write_bytes(b"x")
    with pytest.raises(CallError, match=r"a blob has \.data"):
        await call("/read-blob", {"photo": ref.to_json()}, files={ref.sha256: tmp_path / "b"})


async def test_a_file_that_does_not_load_fails_the_call_with_its_line(
    tmp_path: Path, recorder: Callable[[], Recorder]
) -> None:
    broken = tmp_path / "broken_agent.py"
    broken.write_text("import os\n\nos.no_such_thing\n")
    async with Pool(broken, "broken", 1) as pool:
        with pytest.raises(CallError) as caught:
            await pool.run(Facts("1", "/x", "me@x"), {}, recorder(), folder=tmp_path)

    assert f"{broken}, line 3: AttributeError" in str(caught.value)
    assert str(caught.value) == one_line(str(caught.value))


async def test_closing_the_pool_ends_what_runs(
    files: Path, tmp_path: Path, recorder: Callable[[], Recorder]
) -> None:
    channel = recorder()
    note = tmp_path / "pids"
    async with Pool(files / "plain.py", "plain", 1) as pool:
        running = asyncio.create_task(
            pool.run(Facts("1", "/sleep", "me@x"), {"file": str(note)}, channel, folder=tmp_path)
        )
        await channel.heard("sleeping")
    with pytest.raises(CallError):
        await running

    assert all(gone(int(pid)) for pid in note.read_text().split())


PARENT = """
import asyncio, sys
from pathlib import Path
from spinal.agents.job import Facts
from spinal.agents.pools import Pool

class Channel:
    remaining = 60.0
    def progress(self, *a): pass
    def log(self, text, level="info"): print(text, flush=True)
    async def data(self, value): pass
    def spent(self, cpu, memory): pass

async def main():
    async with Pool(Path(sys.argv[1]), "plain", 1) as pool:
        await pool.run(Facts("1", sys.argv[3], "me@x"), {"file": sys.argv[2]}, Channel(), folder=Path("."))

asyncio.run(main())
"""


@pytest.mark.parametrize("op", ["/sleep", "/hog"])
async def test_nothing_outlives_an_agent_that_is_killed(
    files: Path, tmp_path: Path, op: str
) -> None:
    note = tmp_path / "pids"
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PARENT,
        str(files / "plain.py"),
        str(note),
        op,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert parent.stdout is not None
    async with asyncio.timeout(30):
        assert await parent.stdout.readline() == b"sleeping\n"
        parent.kill()
        await parent.wait()
        pids = [int(pid) for pid in note.read_text().split()]
        while not all(gone(pid) for pid in pids):
            await asyncio.sleep(0.01)


SCRIPT = """
import asyncio, os
from pathlib import Path
from spinal.agents import Agent
from spinal.agents.job import Facts
from spinal.agents.pools import Pool

agent = Agent()

@agent.op("/double")
def double(number: int) -> list[int | str]:
    return [number * 2, os.getpid(), __name__]

class Channel:
    remaining = 60.0
    def spent(self, cpu, memory): pass

async def main():
    async with Pool(agent.file, agent.declared, 1) as pool:
        outcome = await pool.run(
            Facts("1", "/double", "me@x"), {"number": 2}, Channel(), folder=Path("unused")
        )
    number, pid, name = outcome.value
    print(number, pid != os.getpid(), name)

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_an_agent_in_the_file_that_is_run_works_too(tmp_path: Path) -> None:
    script = tmp_path / "doubling.py"
    script.write_text(SCRIPT)
    done = await process.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=30,
        check=True,
    )

    assert done.text == "4 True doubling"
