"""The example that talks in lines, with a memcached of its own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from spinal.agents.wrap import load
from spinal.bus.errors import BadCall, CallError
from spinal.bus.server import free_ports
from spinal.testing import Platform, eventually

from .conftest import EXAMPLES

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        not shutil.which("memcached"), reason="MISSING: memcached (apt install memcached)"
    ),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manifest(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """The example's manifest, for a memcached that runs on another port."""
    port = free_ports().c2s
    process = await asyncio.create_subprocess_exec(
        *("memcached", "-l", "127.0.0.1", "-p", str(port), "-u", "root", "-m", "16")
    )

    def answers() -> bool:
        assert process.returncode is None, "it ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    try:
        await eventually(answers)
        text = (EXAMPLES / "memcached" / "memcached.yaml").read_text()
        changed = tmp_path_factory.mktemp("memcached") / "memcached.yaml"
        changed.write_text(text.replace("127.0.0.1:11211", f"127.0.0.1:{port}"))
        yield changed
    finally:
        process.kill()
        await process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cache(running: Platform, manifest: Path) -> AsyncIterator[Platform]:
    await running.agent(manifest)
    yield running


async def test_the_example_has_no_mistakes() -> None:
    assert list(load(EXAMPLES / "memcached" / "memcached.yaml").missing()) == []


async def test_one_operation_can_be_tried_without_a_bus(running: Platform, manifest: Path) -> None:
    for words in (("/cache/set", "key=tried", f"value@={manifest}"), ("/cache/get", "key=tried")):
        op, *arguments = words
        out = manifest.parent / "out"
        trial = await running.spinal(
            *("wrap", "test", str(manifest), "--op", op, *arguments, "--out", str(out))
        )
        assert await trial.wait() == 0, trial.errors
    assert out.read_bytes() == manifest.read_bytes()


async def test_a_value_is_kept_over_the_bus(cache: Platform, tmp_path: Path) -> None:
    photo = EXAMPLES.parent / "images" / "photos" / "coffee.png"
    await cache.client.call("/cache/set", key="photo", value=photo, seconds=600)
    found = await cache.client.call("/cache/get", key="photo")
    assert await found.read() == photo.read_bytes()

    await cache.client.call("/cache/delete", key="photo")
    for op in ("/cache/get", "/cache/delete"):
        with pytest.raises(CallError, match="no such key") as caught:
            await cache.client.call(op, key="photo")
        assert caught.value.reason == "refused"


async def test_a_key_cannot_become_a_command(cache: Platform) -> None:
    for key in ("a b", "a\r\nflush_all", "x" * 251, ""):
        with pytest.raises(BadCall, match="'key'") as caught:
            await cache.client.call("/cache/get", key=key)
        assert caught.value.problem.argument == "key"


async def test_it_says_how_it_is(cache: Platform) -> None:
    rows = await cache.client.call("/cache/stats")
    stats = {row["name"]: row["value"] for row in rows}
    assert int(stats["cmd_flush"]) == 0 and int(stats["curr_connections"]) > 0
