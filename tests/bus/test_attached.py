from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from spinal.bus.errors import BusError, Unreached
from spinal.bus.server import ServerConfig, free_ports
from spinal.bus.server.embedded.server import EmbeddedServer
from spinal.bus.session import Request, Session
from spinal.bus.transports.attached import AttachedConnection
from spinal.protocols import Data, Json
from spinal.testing import eventually

ONE, TWO = "one.bus.test", "two.bus.test"


async def numbers(request: Request) -> Json:
    for number in range(request.op.args.get("pieces", 0)):
        await request.data(number)
    return request.op.args


async def test_two_sessions_in_the_process_of_the_server_talk_at_once(tmp_path: Path) -> None:
    server = EmbeddedServer(ServerConfig(tmp_path, "bus.test", free_ports()))
    await server.start()
    async with (
        Session(AttachedConnection(server, ONE), numbers, trust=lambda _: True) as one,
        Session(AttachedConnection(server, TWO), numbers, trust=lambda _: True) as two,
    ):
        began = asyncio.get_running_loop().time()
        assert await one.call(TWO, "/x", {"a": 1}).result() == {"a": 1}
        assert await two.call(ONE, "/x", {"pieces": 50}, window=1).result() == {"pieces": 50}
        call = one.call(TWO, "/x", {"pieces": 50}, window=4)
        found = [item.value async for item in call if isinstance(item, Data)]
        assert found == list(range(50))
        await call.result()
        assert asyncio.get_running_loop().time() - began < 2
        await eventually(lambda: one.kept == two.kept == 0)
        with pytest.raises(Unreached):
            await one.call("bob@bus.test/nobody", "/x").result()
    await server.stop()


async def test_a_server_that_is_not_started_is_said_to_be_so(tmp_path: Path) -> None:
    server = EmbeddedServer(ServerConfig(tmp_path, "bus.test", free_ports()))
    connection = AttachedConnection(server, ONE)
    with pytest.raises(BusError, match="not started"):
        async with Session(connection):
            pass
