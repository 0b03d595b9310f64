"""A large blob through upload and download, beside curl with the same file and the same server.

    python -m benchmarks.blob [--size 50] [--runs 5] [--json]

A platform on the embedded server, over TLS on loopback.  *Spinal*: ``Client.upload`` of a file, and
``Blob.save`` into another, with the hash made and checked.  *curl*: PUT and GET of the same file to
a slot that was asked for by hand; a process each.  The two take turns.  CPU is the operating
system's account of the process that moves the blob, and of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import psutil
from benchmarks.ours import serving

from spinal.bus.blobs import UPLOAD
from spinal.bus.connection import Connection
from spinal.bus.transports.slixmpp import ClientConnection
from spinal.protocols import Message, Stanza
from spinal.testing import Platform, platform

MB = 1024 * 1024


class Deaf:
    """Listens to nothing."""

    def opened(self) -> None:
        """Do nothing."""

    def closed(self, reason: str) -> None:
        """Do nothing."""

    def received(self, stanza: Stanza) -> None:
        """Do nothing."""

    def asked(self, kind: str, sender: str, id: str, payload: Element) -> bool:
        """Understand nothing."""
        return False

    def said(self, message: Message) -> None:
        """Nobody talks here."""


async def slot(connection: Connection, service: str, size: int) -> tuple[str, str]:
    """Ask for a place: the URL to put to, and the one to get from."""
    asked = Element(f"{{{UPLOAD}}}request", {"filename": "blob", "size": str(size)})
    given = await connection.ask("get", service, asked)
    assert given is not None
    put, get = (given.find(f"{{{UPLOAD}}}{name}") for name in ("put", "get"))
    assert put is not None and get is not None
    return put.get("url", ""), get.get("url", "")


class Curl:
    """Moves a file by curl."""

    def __init__(self, connection: Connection, service: str, ca: Path, source: Path) -> None:
        self._connection = connection
        self._service = service
        self._ca = ca
        self._source = source
        self._get = ""

    async def upload(self) -> None:
        """Ask for a slot, and put the file there."""
        size = self._source.stat().st_size
        put, self._get = await slot(self._connection, self._service, size)
        await self._run("--upload-file", str(self._source), put)

    async def download(self) -> None:
        """Get it."""
        await self._run("--output", str(self._source.with_suffix(".curl")), self._get)

    async def _run(self, *argv: str) -> None:
        command = ("curl", "--silent", "--show-error", "--fail", "--cacert", str(self._ca))
        process = await asyncio.create_subprocess_exec(*command, "--header", "Expect:", *argv)
        if await process.wait():
            raise RuntimeError(f"curl ended with {process.returncode}")


class Spinal:
    """Moves a file as a user does."""

    def __init__(self, here: Platform, source: Path) -> None:
        self._client = here.client
        self._source = source
        self._blob: Any = None

    async def upload(self) -> None:
        """Upload the file."""
        self._blob = await self._client.upload(self._source)

    async def download(self) -> None:
        """Save the blob into another."""
        await self._blob.save(self._source.with_suffix(".spinal"))


def used(who: int) -> float:
    """Give the CPU seconds of this process, or of its children that have ended."""
    spent = resource.getrusage(who)
    return spent.ru_utime + spent.ru_stime


async def measured(
    work: Callable[[], Awaitable[None]], who: int, server: psutil.Process, size: int
) -> dict[str, float]:
    """Do it, and give its rate and the CPU seconds on either side."""
    before, served = used(who), sum(server.cpu_times()[:2])
    began = time.perf_counter()
    await work()
    took = time.perf_counter() - began
    return {
        "mb_a_second": size / MB / took,
        "cpu_seconds": used(who) - before,
        "server_cpu_seconds": sum(server.cpu_times()[:2]) - served,
    }


async def measure(size: int = 50 * MB, runs: int = 5) -> dict[str, Any]:
    """Measure, and give medians by mover and direction, and the ratios of the rates.

    Args:
        size: bytes of the blob.
        runs: how often each is done; a first one is not counted.
    """
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    async with AsyncExitStack() as stack:
        here: Platform = await stack.enter_async_context(platform("embedded"))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = folder / "blob"
        source.write_bytes(os.urandom(size))
        await (await here.spinal("account", "add", "curl", "--role", "caller")).wait()
        known = here.home.credentials("curl")
        connection = ClientConnection(
            f"{known.address}/curl", known.password, known.host, known.port, known.ca
        )
        await connection.open(Deaf())
        stack.push_async_callback(connection.close)
        assert known.ca is not None
        curl = Curl(connection, f"upload.{known.domain}", known.ca, source)
        spinal = Spinal(here, source)
        (server,) = map(psutil.Process, serving(here.up.pid)["server"])
        for run in range(runs + 1):
            for name, mover, who in (
                ("curl", curl, resource.RUSAGE_CHILDREN),
                ("spinal", spinal, resource.RUSAGE_SELF),
            ):
                for way, work in (("upload", mover.upload), ("download", mover.download)):
                    figures = await measured(work, who, server, size)
                    if run:
                        found.setdefault(name, {}).setdefault(way, []).append(figures)
            for copy in (".curl", ".spinal"):
                assert source.with_suffix(copy).stat().st_size == size
    medians = {
        name: {
            way: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            for way, runs in ways.items()
        }
        for name, ways in found.items()
    }
    ratios = {
        way: [
            ours["mb_a_second"] / theirs["mb_a_second"]
            for ours, theirs in zip(found["spinal"][way], found["curl"][way], strict=True)
        ]
        for way in ("upload", "download")
    }
    return {"size": size, "runs": runs, **medians, "spinal_over_curl": ratios}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=50, help="megabytes")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measure(options.size * MB, options.runs))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name in ("curl", "spinal"):
        for way, figures in found[name].items():
            row = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
            print(f"{name:7} {way:9} {row}")
    for way, ratios in found["spinal_over_curl"].items():
        middle = statistics.median(ratios)
        print(f"{way}: {middle:.2f} of curl's rate ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    main()
