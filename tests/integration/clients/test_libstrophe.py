"""An agent in C: libstrophe, jansson, and docs/protocol.md."""

import subprocess
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from spinal.bus.server import Server

from . import echoing
from .conftest import Bot, Program, caller, environment, need, program

pytestmark = pytest.mark.asyncio(loop_scope="session")

SOURCE = Path(__file__).parent / "libstrophe" / "echo.c"
LIBRARIES = ("libstrophe", "jansson", "libcrypto")
NAME = "c"


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("cc", "pkg-config")
    for library in LIBRARIES:
        if subprocess.run(["pkg-config", "--exists", library], check=False).returncode:
            pytest.skip(f"MISSING: {library} (its development files)")
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", *LIBRARIES], capture_output=True, text=True, check=True
    )
    made = tmp_path_factory.mktemp("libstrophe") / "echo"
    strict = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-O1")
    # What reads past its memory ends with an error, and the test with it.
    watched = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    subprocess.run(["cc", *strict, *watched, "-o", made, SOURCE, *flags.stdout.split()], check=True)
    return made


def run(binary: Path, variables: Mapping[str, str]) -> AbstractAsyncContextManager[Program]:
    return program(binary, env=variables)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def agent(
    server: Server, binary: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Program]:
    variables = environment(server, NAME, tmp_path_factory.mktemp("account"))
    async with run(binary, variables) as running:
        await running.line("online ")
        yield running
        assert await running.end() == 0, running.lines


async def test_a_caller_of_ours_calls_it(server: Server, agent: Program) -> None:
    async with caller(server, "ann") as ann:
        await echoing.echoes(ann, NAME)


async def test_it_refuses_what_it_does_not_offer(server: Server, agent: Program) -> None:
    async with caller(server, "ann") as ann:
        await echoing.refuses(ann, NAME)


async def test_an_op_that_comes_twice_is_run_once(agent: Program, bot: Bot) -> None:
    await echoing.runs_once(bot, agent, NAME)


async def test_it_minds_deadline_epoch_and_must(agent: Program, bot: Bot) -> None:
    await echoing.minds_what_an_op_says(bot, NAME)


async def test_it_answers_whatever_comes(agent: Program, bot: Bot) -> None:
    await echoing.answers_everything(bot, NAME)


async def test_it_does_not_log_in_where_it_cannot_trust(
    server: Server, binary: Path, tmp_path: Path
) -> None:
    variables = environment(server, NAME, tmp_path) | {"SPINAL_CA": "/dev/null"}
    async with run(binary, variables) as agent:
        assert await agent.ended() == 1
        assert not any(line.startswith("online") for line in agent.lines)


async def test_the_dispatcher_gives_it_work(binary: Path) -> None:
    await echoing.is_brokered(partial(run, binary), NAME)
