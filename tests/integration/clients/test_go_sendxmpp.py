"""go-sendxmpp: one line from a script."""

import asyncio
import os
from pathlib import Path

import pytest

from spinal.bus.server import Server

from .conftest import DOMAIN, PASSWORD, SOON, Bot, need, soon, told

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def send(server: Server, text: str, ca: Path, home: Path) -> tuple[int, str]:
    """Run it; gives exit status and what it said."""
    need("go-sendxmpp")
    process = await asyncio.create_subprocess_exec(
        *("go-sendxmpp", "-u", f"dave@{DOMAIN}", "-p", PASSWORD),
        *("-j", f"127.0.0.1:{server.config.ports.c2s}", f"bot@{DOMAIN}"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "SSL_CERT_FILE": str(ca)},
    )
    try:
        async with asyncio.timeout(SOON):
            said, _ = await process.communicate(text.encode())
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_a_line_from_a_script_reaches_a_bot(server: Server, bot: Bot, tmp_path: Path) -> None:
    came = told(bot, "message")

    assert await send(server, "backup done: 5 < 6 ✓\n", server.ca, tmp_path) == (0, "")

    message = await soon(came, f"dave@{DOMAIN}")
    assert message["body"].rstrip("\n") == "backup done: 5 < 6 ✓"


async def test_an_authority_that_is_not_the_home_s_is_not_enough(
    server: Server, bot: Bot, tmp_path: Path
) -> None:
    code, said = await send(server, "hello", Path(os.devnull), tmp_path)

    assert code != 0
    assert "certificate" in said
