from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.processes import alive

from spinal.agents import document
from spinal.agents.errors import AgentError
from spinal.agents.wrap import Manifest, manifest
from spinal.agents.wrap.trial import Trial
from spinal.bus.blob import Blob
from spinal.bus.errors import CallError
from spinal.testing import eventually

from . import hostile

#: Reads one op's description and gives the manifest.
Read = Callable[[str], Manifest]


@pytest.fixture
def wrapped(tmp_path: Path) -> Read:
    """Make a manifest of one operation, ``/op``, that stands in a folder of its own."""

    def read(op: str) -> Manifest:
        lines = "\n".join(f"    {line}" for line in op.strip().splitlines())
        text = f"agent: test\nops:\n  /op:\n{lines}\n"
        return manifest.of(document.read(text, str(tmp_path / "m.yaml"), manifest.schema()))

    return read


async def run(found: Manifest, **values: Any) -> Any:
    return await Trial(found, "/op").run(values)


async def refusal(found: Manifest, **values: Any) -> tuple[str, str]:
    with pytest.raises(CallError) as caught:
        await run(found, **values)
    return caught.value.reason, str(caught.value)


# -- arguments

SHOW = r"""
args: {value: {dashes: true}}
command: [printf, '%s\0', first, "{value}", "--x={value}", last]
output: blob
"""


async def test_a_placeholder_fills_one_argument(wrapped: Read) -> None:
    blob: Blob = await run(wrapped(SHOW), value="a b  'c' $(d)")

    assert await blob.read() == b"first\0a b  'c' $(d)\0--x=a b  'c' $(d)\0last\0"


#: Hostile arguments that go into one call, beside each other.
TOGETHER = 20
_NAMES = [f"v{place}" for place in range(TOGETHER)]
HOSTILE = [hostile.texts()[at : at + TOGETHER] for at in range(0, hostile.COUNT, TOGETHER)]


async def passed(found: Manifest, values: Sequence[str]) -> tuple[dict[str, str], Sequence[bytes]]:
    """Call with all of them; one that is refused by name is left empty the next time."""
    given = dict(zip(_NAMES, values, strict=True))
    while True:
        try:
            blob: Blob = await run(found, **given)
        except CallError as exc:
            name = exc.problem.argument
            assert exc.reason == "bad-arguments" and name and given[name], str(exc)
            assert f"argument '{name}'" in str(exc)
            given[name] = ""
        else:
            return given, (await blob.read()).split(b"\0")[:-1]


@pytest.mark.parametrize("part", range(5))
async def test_hostile_arguments_are_passed_as_they_are_or_refused_by_name(
    wrapped: Read, tmp_path: Path, part: int
) -> None:
    arguments = ", ".join(f'"{{{name}}}", "--x={{{name}}}"' for name in _NAMES)
    found = wrapped(
        f"args: {{{', '.join(f'{name}: {{dashes: true}}' for name in _NAMES)}}}\n"
        f"command: [printf, '%s\\0', first, {arguments}, last]\noutput: blob\nfolder: '{{tmp}}'\n"
    )
    arrived = 0
    for values in HOSTILE[part::5]:
        given, got = await passed(found, values)
        pairs = [part for raw in map(str.encode, given.values()) for part in (raw, b"--x=" + raw)]
        assert got == [b"first", *pairs, b"last"]
        arrived += sum(map(bool, given.values()))

    assert arrived > 150
    assert not list(tmp_path.rglob(hostile.CANARY))


@pytest.mark.parametrize("part", range(5))
async def test_hostile_variables_are_set_as_they_are_or_refused_by_name(
    wrapped: Read, part: int
) -> None:
    variables = ", ".join(f'{name.upper()}: "{{{name}}}"' for name in _NAMES)
    found = wrapped(
        f"args: {{{', '.join(f'{name}: {{}}' for name in _NAMES)}}}\n"
        f"command: [printenv, -0, {', '.join(map(str.upper, _NAMES))}]\n"
        f"env: {{{variables}}}\noutput: blob"
    )
    for values in HOSTILE[part::5]:
        given, got = await passed(found, values)
        assert got == [value.encode() for value in given.values()]


@pytest.mark.parametrize("part", range(5))
async def test_hostile_bytes_reach_standard_input_as_they_are(
    wrapped: Read, tmp_path: Path, part: int
) -> None:
    found = wrapped("args: {data: {type: file}}\ncommand: [cat]\nstdin: '{data}'\noutput: blob")
    path = tmp_path / "data"
    for data in hostile.binaries()[part::5]:
        path.write_bytes(data)
        blob: Blob = await run(found, data=path)
        assert await blob.read() == data


@pytest.mark.parametrize("part", range(5))
async def test_hostile_texts_reach_standard_input_as_they_are(wrapped: Read, part: int) -> None:
    found = wrapped("args: {text: {}}\ncommand: [cat]\nstdin: '<{text}>'\noutput: blob")
    for value in hostile.texts()[part::5]:
        try:
            blob: Blob = await run(found, text=value)
        except CallError as exc:
            assert exc.problem.argument == "text"
            continue
        assert await blob.read() == f"<{value}>".encode()


async def test_a_value_that_looks_like_an_option_is_refused_by_name(wrapped: Read) -> None:
    found = wrapped('args: {file: {}}\ncommand: [ls, "{file}"]')

    assert await refusal(found, file="--color=always") == (
        "bad-arguments",
        "argument 'file': it begins with '-', and the program would take it for an option",
    )


async def test_after_a_double_dash_it_is_no_option(wrapped: Read) -> None:
    assert await run(wrapped('args: {w: {}}\ncommand: [printf, "%s", --, "{w}"]'), w="-n") != ""


async def test_a_negative_number_is_no_option_where_the_manifest_says_so(wrapped: Read) -> None:
    options = "args: {n: {type: integer}}\ncommand: [printf, '%s', '{n}']"
    assert await run(wrapped(options), n=5) == "5"
    assert "begins with '-'" in (await refusal(wrapped(options), n=-5))[1]

    found = wrapped(options.replace("integer", "integer, dashes: true"))
    assert await run(found, n=-5) == "-5"


async def test_a_double_dash_of_a_caller_ends_no_options(wrapped: Read) -> None:
    found = wrapped("args: {pat: {dashes: true}, path: {}}\ncommand: [echo, -e, '{pat}', '{path}']")

    assert "'path': it begins with '-'" in (await refusal(found, pat="--", path="--version"))[1]


async def test_the_file_that_is_the_result_stays_where_the_manifest_has_it(
    wrapped: Read,
) -> None:
    found = wrapped(
        "args: {name: {}}\ncommand: ['true', '{name}']\n"
        "output: {blob: text/plain, file: '{tmp}/{name}'}"
    )
    for name in ("../../proc/self/environ", "/etc/passwd", "..", "a\0b"):
        reason, text = await refusal(found, name=name)
        assert reason == "bad-arguments" and "'name'" in text


async def test_an_inner_list_is_left_out_where_its_argument_is(wrapped: Read) -> None:
    found = wrapped(
        "args: {copies: {type: integer, optional: true}, fast: {type: boolean, default: false}}\n"
        'command: [echo, [--copies, "{copies}"], {if: fast, argv: [--fast]}, end]'
    )

    assert await run(found) == "end"
    assert await run(found, copies=3) == "--copies 3 end"
    assert await run(found, copies=3, fast=True) == "--copies 3 --fast end"


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("{pattern: '[0-9]+'}", "12\n", "all of it must match [0-9]+"),
        ("{pattern: '[0-9]+'}", "x12", "'value'"),
        ("{max_length: 3}", "four", "length <= 3"),
        ("{type: integer, minimum: 1}", 0, ">= 1"),
        ("{type: integer}", 1.5, "expected integer"),
        ("{enum: [EUR, USD]}", "GBP", "'GBP' is not one of EUR, USD"),
        ("{type: boolean}", "yes", "expected boolean"),
    ],
)
async def test_an_argument_that_does_not_fit_is_refused_by_name(
    wrapped: Read, argument: str, value: Any, words: str
) -> None:
    reason, text = await refusal(
        wrapped(f'args: {{value: {argument}}}\ncommand: [echo, "{{value}}"]'), value=value
    )

    assert reason == "bad-arguments"
    assert "'value'" in text and words in text


async def test_a_file_is_at_hand_under_a_name_of_ours(wrapped: Read, tmp_path: Path) -> None:
    found = wrapped(
        'args: {photo: {type: file}}\ncommand: [sh, -c, "cat $1; echo $1", sh, "{photo}"]'
    )

    photo = tmp_path / "it is; a photo"
    photo.write_bytes(b"bytes\n")

    text = await run(found, photo=photo)
    data, path = text.split("\n")
    assert data == "bytes"
    assert not Path(path).exists()


async def test_a_program_gets_little_of_our_environment(
    wrapped: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPINAL_PASSWORD", "secret")
    monkeypatch.setenv("OF_MANIFEST", "from a secret")
    found = wrapped("command: [env]\noutput: lines\nenv: {MODE: batch, KEY: {env: OF_MANIFEST}}")

    lines = await run(found)
    assert {"MODE=batch", "KEY=from a secret"} <= set(lines)
    assert not any("PASSWORD" in line or line.startswith("OF_MANIFEST") for line in lines)
    assert any(line.startswith("PATH=") for line in lines)


async def test_a_relative_program_is_beside_its_manifest(wrapped: Read, tmp_path: Path) -> None:
    script = tmp_path / "old.sh"
    script.write_text("#!/bin/sh\npwd\n")
    script.chmod(0o755)

    assert await run(wrapped("command: [./old.sh]")) == str(tmp_path)


async def test_whoever_has_the_manifest_may_try_it(wrapped: Read) -> None:
    assert await run(wrapped("command: [echo, hi]\nrights: {call: [ann@home.test]}")) == "hi"


# -- outcomes


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (3, "refused", "no such invoice"),
        (4, "refused", "said on standard error"),
        (75, "busy", "said on standard error"),
        (5, "failed", "said on standard error"),
    ],
)
async def test_exit_codes_mean_what_the_manifest_says(
    wrapped: Read, code: int, reason: str, words: str
) -> None:
    found = wrapped(
        f"command: [sh, -c, 'echo out; echo said on standard error >&2; exit {code}']\n"
        "exit: {3: {refused: no such invoice}, 4: refused, 75: retry}"
    )

    assert await refusal(found) == (reason, words)


async def test_an_exit_code_may_be_fine(wrapped: Read) -> None:
    assert await run(wrapped("command: [sh, -c, 'echo some; exit 2']\nexit: {2: done}")) == "some"


async def test_a_signal_is_an_error(wrapped: Read) -> None:
    found = wrapped("command: [sh, -c, 'kill -9 $$']\nexit: {other: refused}")

    assert await refusal(found) == ("failed", "it ended with signal 9 and said nothing")


def _prints(written: str, output: str) -> str:
    written = written.replace("{", "{{").replace("}", "}}")
    return f"command: [printf, '{written}']\noutput: {output}"


@pytest.mark.parametrize(
    ("output", "written", "value"),
    [
        ("text", "a\\nb\\n", "a\nb"),
        ("lines", "a\\nb\\n", ["a", "b"]),
        ("json", '{"a": [1, 2]}', {"a": [1, 2]}),
        ("{json: /a/1}", '{"a": [1, 2]}', 2),
        ("csv", "n,v\\n1,x\\n", [{"n": "1", "v": "x"}]),
        ("{csv: {delimiter: ';', header: false}}", "1;x\\n", [["1", "x"]]),
        ("{regex: '(?P<n>\\d+) pages', fields: {n: integer}}", "7 pages", {"n": 7}),
        ("{regex: '(\\d)', all: true}", "a1b2", ["1", "2"]),
        ("{regex: '(\\d)', all: true}", "", []),
        ("none", "whatever", None),
    ],
)
async def test_output_becomes_what_the_manifest_says(
    wrapped: Read, output: str, written: str, value: Any
) -> None:
    assert await run(wrapped(_prints(written, output))) == value


@pytest.mark.parametrize(
    ("output", "written", "words"),
    [
        ("json", "oops", "the output is no JSON"),
        ("{json: /b}", '{"a": 1}', "nothing at /b"),
        ("csv", "a,b\\n1\\n", "row 1 has 1 columns, and there are 2"),
        ("{regex: '(?P<n>\\d+) pages'}", "none", "does not match"),
        ("text", "\\377", "not UTF-8 text (byte 0): say output: blob"),
    ],
)
async def test_output_of_another_form_is_an_error_that_shows_it(
    wrapped: Read, output: str, written: str, words: str
) -> None:
    reason, text = await refusal(wrapped(_prints(written, output)))

    assert reason == "failed"
    assert words in text


async def test_a_file_that_it_wrote_is_the_result(wrapped: Read) -> None:
    found = wrapped(
        "command: [cp, /etc/hostname, '{tmp}/out.txt']\n"
        "output: {blob: text/plain, file: '{tmp}/out.txt'}"
    )

    blob: Blob = await run(found)
    assert blob.media_type == "text/plain"
    assert await blob.read() == Path("/etc/hostname").read_bytes()


async def test_lines_are_progress(wrapped: Read) -> None:
    found = wrapped(
        "command: [printf, '1/4 first\\nnoise\\n2/4 second\\n']\n"
        "progress: {regex: '(?P<done>\\d+)/(?P<total>\\d+) (?P<note>.*)'}"
    )
    said: list[tuple[float | None, float | None, str]] = []

    def progress(done: float | None, total: float | None, note: str) -> None:
        said.append((done, total, note))

    await Trial(found, "/op", progress).run({})

    assert said == [(1.0, 4.0, "first"), (2.0, 4.0, "second")]


async def test_words_on_standard_error_may_be_a_refusal(wrapped: Read) -> None:
    found = wrapped("command: [sh, -c, 'echo fine; echo but no >&2']\nstderr: refused")

    assert await refusal(found) == ("refused", "but no")


async def test_a_file_of_another_type_or_size_is_refused_by_name(
    wrapped: Read, tmp_path: Path
) -> None:
    found = wrapped(
        "args: {photo: {type: file, media: [image/png, 'text/*'], max_size: 1K}}\n"
        "command: [wc, -c, '{photo}']"
    )
    for name, size in (("a.jpg", 3), ("a.txt", 2000), ("b.txt", 3)):
        (tmp_path / name).write_bytes(b"x" * size)

    assert await refusal(found, photo=tmp_path / "a.jpg") == (
        "bad-arguments",
        "argument 'photo': image/jpeg is none of image/png, text/*",
    )
    assert await refusal(found, photo=tmp_path / "a.txt") == (
        "bad-arguments",
        "argument 'photo': 2000 bytes are more than 1024",
    )
    assert (await run(found, photo=tmp_path / "b.txt")).startswith("3 ")


# -- limits


async def test_more_output_than_is_allowed_is_an_error(wrapped: Read) -> None:
    found = wrapped("command: [head, -c, 5000, /dev/zero]\nlimits: {output: 4K}\noutput: blob")

    assert await refusal(found) == (
        "too-large",
        "it wrote more than 4096 bytes (limits: output)",
    )


async def test_a_program_that_writes_for_ever_is_ended_at_its_limit(wrapped: Read) -> None:
    found = wrapped("command: ['yes']\nlimits: {output: 1M}\ntimeout: 60s")
    began = asyncio.get_running_loop().time()

    assert (await refusal(found))[0] == "too-large"
    assert asyncio.get_running_loop().time() - began < 10


async def test_who_gives_one_of_a_group_gives_all(wrapped: Read) -> None:
    found = wrapped(
        "args: {a: {optional: true}, b: {optional: true}}\ncommand: [echo, ['{a}', '{b}'], end]"
    )

    assert await run(found) == "end"
    assert await run(found, a="1", b="2") == "1 2 end"
    assert await refusal(found, a="1") == (
        "bad-arguments",
        "argument 'b': it is missing, and goes with 'a'",
    )


async def test_memory_is_bounded(wrapped: Read) -> None:
    found = wrapped(
        f"command: [{sys.executable}, -c, 'x = bytearray(900_000_000)']\nlimits: {{memory: 300M}}"
    )

    assert await refusal(found) == ("failed", "MemoryError")


async def test_cpu_time_is_bounded(wrapped: Read) -> None:
    found = wrapped("command: [sh, -c, 'while :; do :; done']\nlimits: {cpu: 1s}\ntimeout: 20s")

    assert await refusal(found) == ("failed", "it used more CPU time than it may (limits: cpu)")


async def test_time_is_bounded(wrapped: Read) -> None:
    found = wrapped("command: [sleep, '60']\ntimeout: 200ms")

    assert await refusal(found) == ("deadline", "ran longer than its timeout of 200ms")


async def test_a_program_that_is_not_there_is_told_before_anything_runs(wrapped: Read) -> None:
    (missing,) = wrapped("command: [no-such-program]").missing()

    assert (missing.line, missing.key) == (4, "ops./op.command.0")
    assert "install it" in missing.text


async def test_a_secret_that_is_not_set_is_told_before_anything_runs(wrapped: Read) -> None:
    (missing,) = wrapped("command: [env]\nenv: {KEY: {env: NOT_SET_ANYWHERE}}").missing()

    assert missing.key == "ops./op.env.KEY"
    assert "set the variable NOT_SET_ANYWHERE" in missing.text


# -- the end of a call

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(2):
    os.fork()
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(600)
"""


@pytest.mark.parametrize("escape", ["", "setsid"])
async def test_children_that_ignore_a_signal_are_gone_five_seconds_after_a_cancel(
    wrapped: Read, tmp_path: Path, escape: str
) -> None:
    script, pids = tmp_path / "stubborn.py", tmp_path / "pids"
    script.write_text(STUBBORN)
    words = [*([escape, "--fork", "--wait"] if escape else []), sys.executable, script, pids]
    found = wrapped(f"command: [{', '.join(map(str, words))}]\ntimeout: 60s")
    task = asyncio.create_task(run(found))
    await eventually(lambda: pids.exists() and len(pids.read_text().split()) == 4)
    children = [int(word) for word in pids.read_text().split()]
    loop = asyncio.get_running_loop()
    began = loop.time()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert loop.time() - began < 5
    await eventually(lambda: not any(map(alive, children)), 5 - (loop.time() - began))


async def test_it_is_asked_to_end_before_it_is_killed(wrapped: Read, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = f"trap 'echo bye > {mark}; exit' TERM; echo ready > {mark}; sleep 60 & wait"
    task = asyncio.create_task(run(wrapped(f'command: [sh, -c, "{script}"]')))
    await eventually(lambda: mark.exists() and mark.read_text() == "ready\n")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert mark.read_text() == "bye\n"


def test_a_manifest_that_does_not_fit_is_an_agents_error(wrapped: Read) -> None:
    with pytest.raises(AgentError):
        wrapped("command: [sh, -c, 'echo {value}']\nargs: {value:}")
