from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.processes import gone

from spinal.bus.errors import CallError
from spinal.testing import eventually

from . import hostile
from .kinds import Ears, Opened, check_mistake, op, opened, read

ASKED = Path(__file__).parent / "files" / "asked.py"

ARGS = {
    "/echo": "{value: {}, other: {default: x}}",
    "/end": "{how: {}, text: {}}",
    "/file": "{document: {type: file}, name: {optional: true}}",
    "/die": "{once: {optional: true}}",
    "/stubborn": "{answers: {type: boolean, optional: true}}",
}


def manifest(*ops: str, more: str = "", word: str = "") -> str:
    """Give a manifest of operations of the program, all with something more."""
    argv = f'["{sys.executable}", "{ASKED}"{word}]'
    parts = [
        f"  {path}:\n    args: {ARGS.get(path, '{}')}\n    program: {argv}\n"
        + "".join(f"    {line}\n" for line in more.splitlines())
        for path in ops
    ]
    return "agent: test\nops:\n" + "".join(parts)


async def refusal(call: Opened, path: str, **values: Any) -> tuple[str, str]:
    with pytest.raises(CallError) as caught:
        await call(path, **values)
    return caught.value.reason, str(caught.value)


# -- requests and answers


async def test_its_words_and_variables_are_what_stands_in_the_manifest(tmp_path: Path) -> None:
    program = tmp_path / "said.py"
    program.write_text(
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    value = [sys.argv[1:], os.environ['LEVEL']]\n"
        "    print(json.dumps({'id': json.loads(line)['id'], 'value': value}), flush=True)\n"
    )
    text = (
        f'agent: a\nops:\n  /said:\n    program: ["{sys.executable}", "{program}", -0, 010, 1.50]\n'
        "    env: {LEVEL: 007}\n"
    )
    async with opened(text, tmp_path) as call:
        assert await call("/said") == [["-0", "010", "1.50"], "007"]


async def test_hostile_arguments_arrive_as_they_are(tmp_path: Path) -> None:
    async with opened(manifest("/echo", more="limits: {output: 16M}"), tmp_path) as call:
        for value in hostile.texts():
            if any("\ud800" <= one <= "\udfff" for one in value):
                reason, text = await refusal(call, "/echo", value=value)
                assert reason == "bad-arguments" and "'value'" in text
                continue
            found = await call("/echo", value=value)
            assert found == {"value": value, "other": "x"}, hostile.shown(value)


async def test_hostile_files_arrive_as_they_are(tmp_path: Path) -> None:
    text = manifest("/file", more="output: {blob: application/x-something}")
    async with opened(text, tmp_path) as call:
        for data in hostile.binaries():
            found = await call("/file", document=data)
            assert await found.read() == data[::-1], hostile.shown(data)
            assert found.media_type == "application/x-reversed"


async def test_one_process_does_one_request_after_the_other(tmp_path: Path) -> None:
    async with opened(manifest("/pid", "/echo"), tmp_path) as call:
        first = await call("/pid")
        await asyncio.gather(*(call("/echo", value=str(n)) for n in range(20)))
        # Operations with the same list share it.
        assert await call("/pid") == {"pid": first["pid"], "count": 22}
    assert gone(first["pid"])


async def test_there_are_as_many_processes_as_are_needed_and_allowed(tmp_path: Path) -> None:
    async with opened(manifest("/pid", more="processes: 3"), tmp_path) as call:
        found = await asyncio.gather(*(call("/pid") for _ in range(60)))
        assert len({one["pid"] for one in found}) <= 3
        assert len(psutil.Process().children(recursive=True)) <= 3 + 1  # and the guard


async def test_progress_and_log_lines_reach_the_caller(tmp_path: Path) -> None:
    ears = Ears()
    async with opened(manifest("/news"), tmp_path) as call:
        assert await call.told("/news", ears, {}) is None

    assert ears.progressed == [(1.0, 2.0, "half")]
    assert ears.lines == [("warning", "a line"), ("info", "another")]


@pytest.mark.parametrize(
    ("how", "reason"), [("error", "failed"), ("refused", "refused"), ("retry", "busy")]
)
async def test_a_request_ends_as_the_program_says(tmp_path: Path, how: str, reason: str) -> None:
    async with opened(manifest("/end"), tmp_path) as call:
        assert await refusal(call, "/end", how=how, text="no\npaper") == (reason, "no paper")
        assert await call("/end", how="value", text="well") == "well"


async def test_lines_that_are_no_answer_are_skipped(tmp_path: Path) -> None:
    async with opened(manifest("/stray", "/pid"), tmp_path) as call:
        assert await call("/stray") == "the answer"
        # Also those that came after it.
        assert (await call("/pid"))["count"] == 2


async def test_a_file_has_to_be_in_the_folder_of_the_request(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_text("secret")
    async with opened(manifest("/file", more="output: blob"), tmp_path) as call:
        for name in ("../secret", str(outside), "/etc/passwd", "link", "none", "a\0b", "."):
            reason, text = await refusal(call, "/file", document=b"x", name=name)
            assert reason == "failed", name
            assert "outside of the folder" in text or "not there" in text


async def test_a_text_is_a_text(tmp_path: Path) -> None:
    async with opened(manifest("/pid", "/end", more="output: text"), tmp_path) as call:
        assert await call("/end", how="value", text="well") == "well"
        assert "answered with dict, not with a text" in (await refusal(call, "/pid"))[1]


async def test_it_gets_a_bare_environment_and_what_the_manifest_adds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_OURS", "x")
    monkeypatch.setenv("BILLING", "token")
    text = manifest("/environment", more="env: {MODE: batch, TOKEN: {env: BILLING}}")
    async with opened(text, tmp_path) as call:
        found = await call("/environment")

    assert found["MODE"] == "batch" and found["TOKEN"] == "token"
    assert "SECRET_OF_OURS" not in found and "BILLING" not in found


# -- when it dies, hangs, or will not go


async def test_what_was_with_a_program_that_dies_is_lost_and_the_next_request_starts_another(
    tmp_path: Path,
) -> None:
    async with opened(manifest("/die", "/pid"), tmp_path) as call:
        first = await call("/pid")
        reason, text = await refusal(call, "/die")
        assert reason == "lost"
        assert text == (
            "the program died while it worked on this: it ended with exit code 7: out of paper"
        )
        assert (await call("/pid"))["pid"] != first["pid"]


async def test_what_may_run_twice_is_tried_once_more(tmp_path: Path) -> None:
    async with opened(manifest("/die", more="safe: true"), tmp_path) as call:
        assert await call("/die", once=str(tmp_path / "died")) == "the second time"
        assert (await refusal(call, "/die"))[0] == "failed"


async def test_an_answer_right_before_the_end_counts(tmp_path: Path) -> None:
    async with opened(manifest("/last"), tmp_path) as call:
        # One after the other, so that some come while the one before is going.
        for _ in range(20):
            assert await call("/last") == "my last answer"


async def test_a_program_that_keeps_dying_is_started_with_growing_pauses(tmp_path: Path) -> None:
    async with opened(manifest("/pid", word=", dead"), tmp_path) as call:
        began = time.monotonic()
        found = [await refusal(call, "/pid") for _ in range(4)]
        took = time.monotonic() - began

    # The first pauses are waited for, and then it is somebody else's turn.
    assert [reason for reason, _ in found] == ["busy"] * 4
    assert "does not start: it ended with exit code 3: no licence" in found[2][1]
    assert "keeps ending and is started again in" in found[3][1]
    assert took >= 1.4


async def test_a_program_that_is_not_there_can_be_tried_later(tmp_path: Path) -> None:
    text = op("program: [./none]")
    async with opened(text, tmp_path) as call:
        reason, words = await refusal(call, "/op")
    assert reason == "busy" and "cannot run" in words
    (missing,) = read(text, tmp_path).missing()
    assert missing.key == "ops./op.program.0" and "install it" in missing.text


async def test_a_program_can_say_when_it_is_ready(tmp_path: Path) -> None:
    async with opened(manifest("/pid", more="ready: 20s", word=", slow-start"), tmp_path) as call:
        assert (await call("/pid"))["count"] == 1
    async with opened(
        manifest("/pid", more="ready: 300ms", word=", never-ready"), tmp_path
    ) as call:
        reason, text = await refusal(call, "/pid")
    assert reason == "busy" and "not ready within 0.3 s" in text


async def test_a_line_that_is_too_long_ends_the_program_and_not_us(tmp_path: Path) -> None:
    async with opened(manifest("/long", "/pid"), tmp_path) as call:
        first = await call("/pid")
        reason, text = await refusal(call, "/long")
        assert reason == "too-large" and "a line of more than 1048576 bytes" in text
        assert gone(first["pid"])
        assert (await call("/pid"))["count"] == 1


async def test_a_program_that_babbles_for_ever_is_stopped(tmp_path: Path) -> None:
    async with opened(manifest("/babble"), tmp_path) as call:
        reason, text = await refusal(call, "/babble")
    assert reason == "too-large" and "that are no answer" in text


async def pids(call: Opened, path: str, **values: Any) -> tuple[asyncio.Task[Any], list[int]]:
    """Ask for something that names its processes, and is at work then."""
    ears = Ears()
    task = asyncio.create_task(call.told(path, ears, values))
    await eventually(lambda: ears.lines or task.done())
    return task, [int(word) for word in ears.lines[0][1].split()]


async def test_a_cancelled_request_ends_its_process_and_no_other(tmp_path: Path) -> None:
    async with opened(manifest("/hang", "/echo", more="processes: 2"), tmp_path) as call:
        hanging, (pid,) = await pids(call, "/hang")
        assert (await call("/echo", value="a"))["value"] == "a"
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        assert gone(pid)
        assert (await call("/echo", value="b"))["value"] == "b"


async def test_children_that_ignore_the_signal_are_gone_five_seconds_after_a_cancel(
    tmp_path: Path,
) -> None:
    async with opened(manifest("/stubborn"), tmp_path) as call:
        task, found = await pids(call, "/stubborn")
        assert len(found) == 3 and not any(map(gone, found))
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 5 and all(map(gone, found))


async def test_children_that_ignore_the_signal_are_gone_five_seconds_after_the_end(
    tmp_path: Path,
) -> None:
    async with opened(manifest("/stubborn"), tmp_path) as call:
        task, found = await pids(call, "/stubborn", answers=True)
        await task
        assert not any(map(gone, found))
        began = time.monotonic()
    assert time.monotonic() - began < 5 and all(map(gone, found))


async def test_a_program_that_was_killed_while_it_waited_is_replaced(tmp_path: Path) -> None:
    async with opened(manifest("/pid"), tmp_path) as call:
        first = (await call("/pid"))["pid"]
        psutil.Process(first).send_signal(signal.SIGKILL)
        await eventually(lambda: gone(first))
        assert (await call("/pid"))["pid"] != first


async def test_a_limit_bounds_its_memory(tmp_path: Path) -> None:
    text = op(
        f'program: ["{sys.executable}", -c, "import sys; sys.stdin.readline(); x = bytes(10**9)"]\n'
        "limits: {memory: 256M}"
    )
    async with opened(text, tmp_path) as call:
        reason, words = await refusal(call, "/op")
    assert reason == "lost" and "MemoryError" in words


# -- mistakes

GOOD = op("""
args: {name: {}}
program: [perl, report.pl]
processes: 2
ready: 5s
folder: .
env: {MODE: batch}
limits: {memory: 64M}
output: json
""")

MISTAKES = [
    ("[perl, report.pl]", "perl report.pl", "ops./op.program", "is not a list"),
    ("[perl, report.pl]", '["perl report.pl"]', "ops./op.program.0", "[perl, report.pl]"),
    ("[perl, report.pl]", "[]", "ops./op.program", "is empty"),
    ("[perl, report.pl]", '[""]', "ops./op.program.0", "is no program"),
    ("report.pl", 'report.pl, "{name}"', "ops./op.program.2", "arguments with each request"),
    ("report.pl", 'report.pl, "--n={name}"', "ops./op.program.2", "leave it out"),
    ("processes: 2", "processes: 0", "ops./op.processes", "at least 1"),
    ("processes: 2", "processes: many", "ops./op.processes", "not an integer"),
    ("processes: 2", "proceses: 2", "ops./op.proceses", "did you mean 'processes'?"),
    ("ready: 5s", "ready: soon", "ops./op.ready", "write a length of time"),
    ("folder: .", 'folder: "{name}"', "ops./op.folder", "write what holds for all"),
    ("folder: .", 'folder: "{"', "ops./op.folder", "write it twice"),
    ("MODE: batch", 'MODE: "{name}"', "ops./op.env.MODE", "kept running for many calls"),
    ("MODE: batch", "MODE: {password: x}", "ops./op.env.MODE", "{env: NAME}"),
    ("memory: 64M", "memory: much", "ops./op.limits.memory", "write a size"),
    ("memory: 64M", "ram: 64M", "ops./op.limits.ram", "one of output, memory"),
    ("output: json", "output: lines", "ops./op.output", "write json, text, none, blob"),
    ("output: json", "output: {json: /a}", "ops./op.output", "a program answers with JSON"),
    ("output: json", "stdin: x", "ops./op.stdin", "goes with command"),
    ("output: json", "exit: {1: refused}", "ops./op.exit", "goes with command"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "key", "words"), MISTAKES, ids=[m[1] for m in MISTAKES])
def test_a_mistake_is_told_once_with_what_to_write(
    old: str, new: str, key: str, words: str
) -> None:
    check_mistake(GOOD, old, new, key, words)
