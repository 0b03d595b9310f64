"""An agent in JavaScript: @xmpp/client, and docs/protocol.md."""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
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

SOURCE = Path(__file__).parent / "node"
#: What @xmpp/client 0.14 says that it needs.
OLDEST = (20, 10)
NAME = "node"


def fetched() -> Path:
    """Give the folder with the packages of the lock file; they are fetched once per machine."""
    need("node", "npm")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    if tuple(map(int, re.findall(r"\d+", version.stdout)[:2])) < OLDEST:
        pytest.skip(f"MISSING: node {OLDEST[0]}.{OLDEST[1]} or newer, not {version.stdout.strip()}")
    lock = (SOURCE / "package-lock.json").read_bytes()
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    place = Path(base, "spinal-tests", f"node-{hashlib.sha256(lock).hexdigest()[:16]}")
    packages = place / "node_modules"
    if not packages.exists():
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as made:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(SOURCE / name, made)
            try:
                npm = subprocess.run(
                    ["npm", "ci", "--ignore-scripts", "--no-audit", "--fetch-retries=0"],
                    cwd=made,
                    capture_output=True,
                    text=True,
                    timeout=90,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                pytest.skip("MISSING: @xmpp/client (npm ci took more than 90 s)")
            if npm.returncode:
                why = [line for line in npm.stderr.splitlines() if line.startswith("npm error")]
                pytest.skip(f"MISSING: @xmpp/client ({', '.join(why[:3])})")
            try:
                Path(made, "node_modules").rename(packages)
            except OSError:
                # Another run of the tests may have been faster.
                if not packages.exists():
                    raise
    return packages


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the agent, in a folder where it finds its packages."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "node_modules").symlink_to(fetched())
    for name in ("package.json", "echo.js"):
        shutil.copy(SOURCE / name, folder)
    return folder / "echo.js"


def run(script: Path, variables: Mapping[str, str]) -> AbstractAsyncContextManager[Program]:
    ca = {"NODE_EXTRA_CA_CERTS": variables["SPINAL_CA"]}
    return program("node", script, env={**ca, **variables})


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def agent(
    server: Server, script: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Program]:
    variables = environment(server, NAME, tmp_path_factory.mktemp("account"))
    async with run(script, variables) as running:
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
    server: Server, script: Path, tmp_path: Path
) -> None:
    variables = environment(server, NAME, tmp_path)
    async with run(script, variables | {"NODE_EXTRA_CA_CERTS": "/dev/null"}) as agent:
        await agent.line("Error: self-signed certificate")
        assert await agent.ended() == 1
        assert not any(line.startswith("online") for line in agent.lines)


async def test_the_dispatcher_gives_it_work(script: Path) -> None:
    await echoing.is_brokered(partial(run, script), NAME)
