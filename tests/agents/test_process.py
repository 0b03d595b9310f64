from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from tests.processes import gone

from spinal.agents.errors import CommandFailed
from spinal.agents.process import Guard, Process, kill_marked, run


async def until(condition: object, within: float = 10.0) -> None:
    """Wait for a file to appear or a process to vanish; the kernel does not announce either."""
    assert callable(condition)
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_program_gives_its_code_and_what_it_wrote() -> None:
    done = await run(["sh", "-c", "echo out; echo err >&2; exit 3"])

    assert (done.code, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert done.text == "out"


async def test_input_reaches_the_program_and_without_it_there_is_none() -> None:
    assert (await run(["cat"], input="héllo")).text == "héllo"
    assert (await run(["cat"])).stdout == b""


async def test_a_program_that_does_not_read_its_input_does_not_hold_us_up() -> None:
    done = await run(["true"], input=b"x" * 1_000_000)

    assert done.code == 0


async def test_folder_and_environment_are_given(tmp_path: Path) -> None:
    done = await run(["/bin/sh", "-c", "pwd; echo $WORD"], cwd=tmp_path, env={"WORD": "yes"})

    assert done.text == f"{tmp_path}\nyes"


@pytest.mark.parametrize("argv", ["ls -l", b"ls", [], ["ls", 1]])
async def test_anything_but_a_list_of_strings_is_a_type_error(argv: object) -> None:
    with pytest.raises(TypeError, match="list of strings"):
        await run(argv)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandFailed, match="cannot run 'no-such-program'"):
        await run(["no-such-program"])


async def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandFailed, match="/no/such/folder"):
        await run(["true"], cwd="/no/such/folder")


async def test_with_check_another_code_is_an_error_with_the_last_line() -> None:
    with pytest.raises(CommandFailed, match="'sh' ended with exit code 2: it broke") as caught:
        await run(["sh", "-c", "echo first >&2; echo it broke >&2; exit 2"], check=True)

    assert caught.value.code == 2


async def test_output_above_the_limit_is_cut_and_flagged() -> None:
    done = await run(["sh", "-c", "yes | head -c 300000"], limit=1000)

    assert len(done.stdout) == 1000
    assert (done.stdout_cut, done.stderr_cut) == (True, False)


async def test_lines_are_passed_on_whole_with_the_last_one() -> None:
    lines: list[str] = []
    await run(["printf", "one\\ntwo\\nthr\\303\\251"], line=lines.append)

    assert lines == ["one", "two", "thré"]


async def test_a_line_without_end_is_passed_on_in_pieces() -> None:
    lines: list[str] = []
    await run(["sh", "-c", "yes | tr -d '\\n' | head -c 100000"], line=lines.append)

    assert "".join(lines) == "y" * 100_000
    assert len(lines) > 1


async def test_a_timeout_ends_the_whole_group(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    with pytest.raises(TimeoutError, match="'sh' ran longer than 300ms"):
        await run(["sh", "-c", f"sleep 1000 & echo $$ $! > {note}; wait"], timeout=0.3)

    assert all(gone(int(pid)) for pid in note.read_text().split())


async def test_a_cancellation_ends_the_whole_group(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    running = asyncio.create_task(run(["sh", "-c", f"sleep 1000 & echo $$ $! > {note}; wait"]))
    await until(lambda: note.exists() and len(note.read_text().split()) == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert all(gone(int(pid)) for pid in note.read_text().split())


async def test_what_ignores_the_request_to_end_is_killed_after_the_grace(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"trap '' TERM; echo $$ > {note}; while true; do sleep 0.05; done"
    running = asyncio.create_task(run(["sh", "-c", script], grace=0.1))
    await until(lambda: note.exists() and note.read_text().strip())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert gone(int(note.read_text()))


async def test_what_a_program_leaves_running_does_not_outlive_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    done = await run(["sh", "-c", f"sleep 1000 & echo $! > {note}; echo done"])

    assert done.text == "done"
    assert gone(int(note.read_text()))


async def test_what_left_the_group_with_the_output_open_does_not_hold_us_up(
    tmp_path: Path,
) -> None:
    note = tmp_path / "pid"
    script = (
        f"setsid sh -c 'echo $$ > {note}; exec sleep 1000' & while ! test -s {note}; do :; done"
    )
    done = await run(["sh", "-c", f"{script}; echo done"])

    assert done.text == "done"
    os.kill(int(note.read_text()), signal.SIGKILL)


async def test_a_signal_is_a_negative_code() -> None:
    done = await run(["sh", "-c", "kill -9 $$"])

    assert done.code == -signal.SIGKILL


@pytest.mark.parametrize("pidfd", [True, False])
async def test_an_end_tells_what_it_cost(pidfd: bool) -> None:
    burn = "import time\nwhile time.process_time() < 0.1: pass"
    process = Process.start([sys.executable, "-c", burn], pidfd=pidfd)
    ended = await process.wait()

    assert ended.code == 0
    assert ended.cpu >= 0.1
    assert ended.memory > 1_000_000
    assert process.ended
    process.signal(signal.SIGTERM)


@pytest.mark.parametrize("pidfd", [True, False])
async def test_ending_a_process_that_is_cancelled_meanwhile_still_ends_it(pidfd: bool) -> None:
    process = Process.start(["sh", "-c", "trap '' TERM; sleep 1000"], pidfd=pidfd)
    ending = asyncio.create_task(process.end(grace=1000))
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending

    assert process.ended
    assert gone(process.pid)


KILLED = """
import asyncio, sys
from spinal.agents.process import Guard, run

async def main():
    guard = Guard()
    await asyncio.gather(*(run(["sh", "-c", script], guard=guard) for script in sys.argv[1:]))

asyncio.run(main())
"""


def guard_of(pid: int) -> psutil.Process:
    children = psutil.Process(pid).children()
    (found,) = filter(is_guard, children)
    return found


def is_guard(child: psutil.Process) -> bool:
    return not gone(child.pid) and any("guard.py" in word for word in child.cmdline())


async def test_when_we_are_killed_everything_that_runs_dies_with_us(tmp_path: Path) -> None:
    notes = [tmp_path / str(number) for number in range(3)]
    script = "trap '' TERM; (trap '' TERM; sleep 1000) & echo $$ $! > {}.new; mv {}.new {}; wait"
    scripts = [script.replace("{}", str(note)) for note in notes]
    us = Process.start([sys.executable, "-c", KILLED, *scripts, "true"])
    await until(lambda: all(note.exists() for note in notes))
    pids = [int(pid) for note in notes for pid in note.read_text().split()]
    guard = guard_of(us.pid)
    assert not any(map(gone, pids))

    os.kill(us.pid, signal.SIGKILL)
    await until(lambda: all(map(gone, [*pids, guard.pid])))
    await us.wait()


async def test_a_guard_that_died_is_replaced_with_the_next_program(tmp_path: Path) -> None:
    guard = Guard()
    one = Process.start(["sleep", "1000"], guard=guard)
    died = guard_of(os.getpid())
    died.kill()
    await until(lambda: gone(died.pid))
    two = Process.start(["sleep", "1000"], guard=guard)
    lives = [child for child in psutil.Process().children() if is_guard(child)]

    await guard.close()
    for process in (one, two):
        async with asyncio.timeout(10):
            assert (await process.wait()).code == -signal.SIGKILL
    assert all(gone(child.pid) for child in lives)


async def test_a_guard_that_hangs_holds_nobody_up() -> None:
    guard = Guard()
    await run(["true"], guard=guard)
    hangs = guard_of(os.getpid())
    hangs.suspend()
    await run(["true"], guard=guard)
    await guard.close()

    assert gone(hangs.pid)


async def test_what_cannot_be_guarded_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/no/such/python")
    guard = Guard()
    done = await run(["echo", "here"], guard=guard)
    await guard.close()

    assert done.text == "here"


async def test_no_descriptor_is_left_open() -> None:
    guard = Guard()
    await run(["true"])
    before = psutil.Process().num_fds()
    await run(["true"], guard=guard)
    await guard.close()
    for _ in range(5):
        await run(["true"])
        with pytest.raises(CommandFailed):
            await run(["no-such-program"])

    assert psutil.Process().num_fds() == before


async def test_a_file_may_be_the_input(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"\x00\xff")

    assert (await run(["cat"], input=tmp_path / "in")).stdout == b"\x00\xff"


async def test_what_has_left_its_group_is_found_by_its_environment(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    # It has left before its parent ends, with which the group is killed.
    script = (
        f"setsid --fork sh -c 'echo $$ >> {pids}; exec sleep 600'; until [ -s {pids} ]; do :; done"
    )
    mark = "SPINAL_TEST=5f2c"
    await run(["sh", "-c", script], env={**os.environ, "SPINAL_TEST": "5f2c"})
    await until(lambda: pids.exists() and pids.read_text().strip())
    pid = int(pids.read_text())
    assert not gone(pid)

    assert kill_marked(f"{mark}0") == 0
    assert kill_marked(mark) >= 1
    await until(lambda: gone(pid))
