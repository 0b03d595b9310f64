"""A service that runs on a machine, and on another one when that dies: real processes throughout.

Two deployment agents with folders and ports of their own stand for two machines.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import signal
import sys
import tarfile
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from spinal.bus.errors import CallError
from spinal.testing import Platform, Process, eventually, platform

#: Seconds within which what ran on a machine that died answers from another one.
GOAL = 20.0

PROGRAM = """
import http.server, os, sys

class Shop(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{os.environ['GREETING']} {os.getpid()}".encode())

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Shop).serve_forever()
"""


@dataclass
class Machine:
    """One that has a deployment agent."""

    name: str
    folder: Path
    agent: Process

    def processes(self) -> list[psutil.Process]:
        """The agent, and all that it started."""
        found = psutil.Process(self.agent.pid)
        return [found, *found.children(recursive=True)]

    def freeze(self) -> None:
        """Stop every process: nothing is heard of it any more, and its streams stay open."""
        for one in self.processes():
            one.suspend()

    def thaw(self) -> None:
        """Let them all go on."""
        for one in self.processes():
            one.resume()

    def kill(self) -> None:
        """End every process at once, as a power cut would."""
        self.freeze()
        for one in self.processes():
            one.kill()

    def services(self) -> list[psutil.Process]:
        """Processes of what it has deployed."""
        return [
            one
            for one in psutil.process_iter()
            if any(str(self.folder) in word for word in _words(one)) and one.pid != self.agent.pid
        ]


def _words(process: psutil.Process) -> list[str]:
    try:
        return [*process.cmdline(), process.cwd()]
    except psutil.Error:
        return []


class Site:
    """A platform with machines, and a place for releases."""

    def __init__(self, here: Platform, folder: Path) -> None:
        self.here = here
        self.folder = folder
        self.url = ""

    async def serve(self) -> None:
        """Offer the releases on loopback."""
        self.releases = self.folder / "releases"
        self.releases.mkdir()
        argv = ["-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", self.releases, "0"]
        server = await self.here.start(sys.executable, *map(str, argv))
        said = await server.line(lambda line: "Serving HTTP" in line)
        self.url = said.partition("(")[2].partition(")")[0]

    async def machine(self, name: str, first: int) -> Machine:
        """Start a deployment agent, also one that was there before."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        ports = {"first": first, "last": first + 49}
        config = folder / "deployment.yaml"
        config.write_text(json.dumps({"root": str(folder / "root"), "ports": ports}))
        words = ["--name", name, "--config", str(config), "--json"]
        agent = await self.here.spinal("agent", "run", "deployment", *words)
        await agent.line(lambda line: '"ready"' in line)

        async def known() -> bool:
            rows = await self.here.client.agents()
            return any(
                r["agent"].startswith(f"{name}@") and r["state"] == "available" for r in rows
            )

        await eventually(known, what=f"{name} is known")
        return Machine(name, folder, agent)

    def service(self, greeting: str, name: str = "shop") -> Path:
        """Make a release, and write the file that a user would."""
        program = PROGRAM.encode()
        with tarfile.open(self.releases / f"{name}.tar.gz", "w:gz") as archive:
            about = tarfile.TarInfo("shop.py")
            about.size = len(program)
            archive.addfile(about, io.BytesIO(program))
        sha256 = hashlib.sha256((self.releases / f"{name}.tar.gz").read_bytes()).hexdigest()
        file = self.folder / f"{name}.yaml"
        file.write_text(
            f"service: {name}\n"
            "release:\n"
            f"  url: {self.url}{name}.tar.gz\n"
            f"  sha256: {sha256}\n"
            f'start: [{sys.executable}, "{{release}}/shop.py", "{{port}}"]\n'
            "port: auto\n"
            f"env: {{GREETING: {greeting}}}\n"
            'health: {http: "http://127.0.0.1:{port}/", every: 1s}\n'
        )
        return file

    async def spinal(self, *words: str) -> str:
        """Run a command that is to succeed, and give what it printed."""
        process = await self.here.spinal(*words)
        code = await process.wait(60)
        assert code == 0, (words, process.lines, process.errors)
        return "\n".join(process.lines)

    async def where(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self.spinal("service", "where", "shop", "--json"))
        return found

    async def answer(self, port: int) -> str:
        """Ask the service over HTTP."""

        def get() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as answer:
                text: bytes = answer.read()
                return text.decode()

        return await asyncio.to_thread(get)

    async def says(self, greeting: str, at: str = "") -> bool:
        """Tell whether the service answers where it is said to be, on a machine if one is named."""
        try:
            found = await self.here.client.ask_dispatcher("/spinal/services/where", name="shop")
            answer = await self.answer(found["result"]["port"])
        except (OSError, CallError):
            return False
        return answer.startswith(f"{greeting} ") and found["agent"].startswith(at)


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with platform() as here:
        found = Site(here, tmp_path)
        await found.serve()
        yield found


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_a_service_answers_from_another_machine_when_its_own_dies(
    site: Site, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    machines = {name: await site.machine(name, first) for name, first in PORTS.items()}
    file = site.service("hello")

    place = await site.spinal("service", "deploy", str(file), "--wait")
    assert place.rpartition(":")[2].isdigit(), place
    found = await site.where()
    assert (await site.answer(found["result"]["port"])).startswith("hello ")
    first = machines.pop(found["agent"].partition("@")[0])
    (second,) = machines.values()
    assert "placed" in await site.spinal("service", "list")

    # Every process of the machine dies, or is silent.
    assert first.services()
    loop = asyncio.get_running_loop()
    died = loop.time()
    if how == "kill":
        first.kill()
        assert await first.agent.wait() == -signal.SIGKILL
        await eventually(lambda: first.services() == [], what="what it ran is gone as well")
    else:
        first.freeze()

    await eventually(lambda: site.says("hello"), GOAL, "it answers again")
    took = loop.time() - died
    with capsys.disabled():
        print(f"\nit answered from {second.name} {took:.1f} s after {first.name}: {how}")

    assert took <= GOAL
    found = await site.where()
    assert found["agent"].startswith(f"{second.name}@")
    why = await site.spinal("service", "why", "shop")
    assert f"{first.name}@" in why and "was lost" in why
    assert f"attempt 1 went to {second.name}@" in why and "the only one that could take it" in why

    # It comes back, and runs nothing of it.
    if how == "kill":
        back = await site.machine(first.name, PORTS[first.name])
    else:
        first.thaw()
        back = first

    async def is_ended() -> bool:
        shown = json.loads(await site.spinal("service", "show", "shop", "--json"))
        return "left" not in shown

    await eventually(is_ended, 30, "the first machine was told")
    await eventually(lambda: back.services() == [], 10)
    assert not list((back.folder / "root" / "services" / "shop").glob("releases/*"))
    assert (await site.answer(found["result"]["port"])).startswith("hello ")

    # A change goes to the machine that has it now.
    await site.spinal("service", "deploy", str(site.service("bonjour")), "--wait")
    changed = await site.where()
    assert changed["agent"] == found["agent"]
    assert (await site.answer(changed["result"]["port"])).startswith("bonjour ")

    await site.spinal("service", "rollback", "shop")
    await eventually(lambda: site.says("hello"), 30)
    await site.spinal("service", "rollback", "shop")
    await eventually(lambda: site.says("bonjour"), 30)

    # And by hand it goes back.
    await site.spinal("service", "move", "shop")
    await eventually(lambda: site.says("bonjour", at=f"{first.name}@"), 30)
    await eventually(lambda: second.services() == [], 30)

    await site.spinal("service", "remove", "shop", "--yes")
    await eventually(lambda: back.services() == [], 30)

    async def is_forgotten() -> bool:
        return bool(json.loads(await site.spinal("service", "list", "--json")) == {"items": []})

    await eventually(is_forgotten, 30)


#: Machines with the first of their ports.
PORTS = {"berlin": 23_100, "oslo": 23_150}
