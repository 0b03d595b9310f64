"""``spinal conform`` on a platform that runs, against agents and against those who are none."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from xml.etree.ElementTree import parse

import pytest

from spinal.bus import Client
from spinal.bus.home import Home
from spinal.conform import CHECKS, reference

from .conftest import COMMAND, Spinal, spinal_at

REFERENCE = (*COMMAND, "agent", "run", reference.__file__)

PARROT = """
from spinal.agents import Agent

agent = Agent("parrot")


@agent.op("/mine/say", effects="reads")
async def say(words: str) -> str:
    return words
"""


@pytest.fixture
def spinal(running: Path) -> Spinal:
    return spinal_at(running)


class TestAnAgent:
    def test_the_reference_passes_every_check_within_a_minute(
        self, running: Path, spinal: Spinal, tmp_path: Path
    ) -> None:
        done = spinal(
            "conform", "reference", "--json", "--junit", f"{tmp_path}/junit.xml", "--", *REFERENCE,
            timeout=110,
        )  # fmt: skip
        *rows, found = [json.loads(line) for line in done.out.splitlines()]
        assert [row for row in rows if row["verdict"] != "passed"] == []
        assert (done.code, done.err) == (0, "")
        assert [row["check"] for row in rows] == [check.number for check in CHECKS]
        assert found["conforms"] and found["seconds"] < 60
        assert parse(tmp_path / "junit.xml").find("testsuite[@failures='0']") is not None
        assert not [name for name in Home.find(running).accounts() if "conform-" in name]

    def test_one_that_runs_already_is_tried_as_far_as_that_goes(self, spinal: Spinal) -> None:
        done = spinal("conform", "worker", "--only", "1", "--only", "2.6", "--only", "14.1")
        assert done.code == 1
        assert done.line.startswith("worker@spinal.localhost/agent: does not conform; ")
        assert "expected an answer to a call" in done.out or "expected a final" in done.out

    def test_its_own_operations_can_be_named(self, spinal: Spinal, tmp_path: Path) -> None:
        agent = tmp_path / "parrot.py"
        agent.write_text(PARROT)
        ops = tmp_path / "ops.json"
        ops.write_text('{"echo": {"op": "/mine/say", "args": {"words": "{value}"}}}')
        argv = ("--", *COMMAND, "agent", "run", str(agent))
        done = spinal("conform", "parrot", "--ops", str(ops), "--json", *argv, timeout=100)
        *rows, found = [json.loads(line) for line in done.out.splitlines()]
        assert [row for row in rows if row["verdict"] == "failed"] == []
        assert done.code == 0 and found["conforms"]
        assert found["not_offered"] > 20 and found["passed"] > 20


class TestNoAgent:
    def test_nobody(self, spinal: Spinal) -> None:
        done = spinal("conform", "nobody@spinal.localhost/here")
        assert done.code == 1
        assert "nobody is connected at that address" in done.out
        assert "not-run: the agent could not be reached" in done.out

    def test_a_person(self, running: Path, spinal: Spinal) -> None:
        async def try_it() -> tuple[int, str]:
            async with Client(running) as person:
                process = await asyncio.create_subprocess_exec(
                    *COMMAND, "conform", person.address,
                    env={"SPINAL_HOME": str(running), "PYTHONPATH": ":".join(sys.path)},
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )  # fmt: skip
                out, _ = await process.communicate()
                return process.returncode or 0, out.decode()

        code, out = asyncio.run(try_it())

        assert code == 1
        assert "✗ 1.1" in out

    def test_a_command_that_ends_at_once(self, spinal: Spinal) -> None:
        words = "raise SystemExit('no such luck')"
        done = spinal("conform", "brief", "--", sys.executable, "-c", words)
        assert done.code == 1
        assert "the agent ended: no such luck" in done.out

    def test_a_command_that_cannot_be_started(self, spinal: Spinal) -> None:
        done = spinal("conform", "brief", "--", "/nowhere/agent")
        assert done.code == 2
        assert done.line == (
            "spinal: cannot start agent: No such file or directory; check the command"
        )

    def test_accounts_of_the_run_are_gone(self, running: Path) -> None:
        assert not [name for name in Home.find(running).accounts() if "conform-" in name]


class TestWords:
    def test_the_checks_are_listed(self, spinal: Spinal) -> None:
        rows = spinal("conform", "--list").out.splitlines()
        assert len(rows) == len(CHECKS)
        assert rows[0].split("\t") == ["1.1", "3", "core", "it answers a call"]
        found = spinal("conform", "--list", "--only", "6", "--json").json
        assert [(each["check"], each["feature"]) for each in found] == [
            (f"6.{n}", "cancel") for n in (1, 2, 3, 4)
        ]

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            ((), "give the ADDRESS of an agent, or --list"),
            (("x", "--only", "99"), "there is no check 99: see `spinal conform --list`"),
            (("x", "--ops", "/nowhere"), "/nowhere: No such file or directory"),
            (("x", "--junit", "/nowhere/x.xml"), "/nowhere is no folder"),
            (("a b", "--only", "1"), "address"),
        ],
    )
    def test_what_cannot_be_is_said_in_one_line(
        self, spinal: Spinal, words: tuple[str, ...], line: str
    ) -> None:
        done = spinal("conform", *words)
        assert done.code == 2
        assert line in done.line

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("{", "not JSON"),
            ("[]", "an object is needed"),
            ('{"eco": {"op": "/x"}}', "'eco' is none of echo"),
            ('{"echo": "/x"}', "'echo' needs an \"op\""),
            ('{"echo": {"op": "/x", "args": []}}', "is no object"),
            ('{"work": {"op": "/x"}}', '"echo" is needed'),
        ],
    )
    def test_operations_that_cannot_be_read_are_said_in_one_line(
        self, spinal: Spinal, tmp_path: Path, text: str, why: str
    ) -> None:
        file = tmp_path / "ops.json"
        file.write_text(text)
        done = spinal("conform", "worker", "--ops", str(file))
        assert done.code == 2
        assert why in done.line
