from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from spinal.agents.probe import Probe


@pytest.fixture
async def server() -> AsyncIterator[Any]:
    app = web.Application()

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/slow":
            await asyncio.sleep(60)
        return web.Response(status=503 if request.path == "/ill" else 200)

    app.router.add_get("/{any}", answer)
    async with TestServer(app) as found:
        yield found


async def ask(folder: Path = Path(), **said: Any) -> str:
    return await Probe.of(said, folder).ask()


async def test_a_program_is_well_while_it_ends_with_0(tmp_path: Path) -> None:
    assert await ask(run=["true"]) == ""
    assert await ask(run=["sh", "-c", "echo out of paper >&2; exit 3"]) == (
        "'sh' ended with exit code 3: out of paper"
    )
    assert "No such file" in await ask(run=["no-such-program"])
    assert await ask(run=["sleep", "60"], timeout="100ms") == "no answer within 100ms"


async def test_a_program_with_a_path_is_beside_its_file(tmp_path: Path) -> None:
    script = tmp_path / "well"
    script.write_text("#!/bin/sh\ntest -e mark\n")
    script.chmod(0o755)
    (tmp_path / "mark").touch()

    assert await ask(tmp_path, run=["./well"]) == ""


async def test_a_url_is_well_while_it_answers_with_a_2xx(server: Any) -> None:
    assert await ask(http=str(server.make_url("/well"))) == ""
    ill = str(server.make_url("/ill"))
    assert await ask(http=ill) == f"{ill} answers 503 Service Unavailable"
    assert await ask(http=str(server.make_url("/slow")), timeout=0.1) == "no answer within 100ms"


async def test_a_port_is_well_while_it_takes_connections(server: Any) -> None:
    address = f"127.0.0.1:{server.port}"
    assert await ask(tcp=address) == ""
    await server.close()
    assert f"{address} takes no connection" in await ask(tcp=address)


@pytest.mark.parametrize(
    ("said", "words"),
    [({}, "asks nothing: write one of"), ({"run": ["true"], "tcp": "a:1"}, "run and tcp stand")],
)
def test_it_asks_one_thing(said: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Probe.of(said)
