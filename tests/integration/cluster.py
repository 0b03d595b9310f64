"""Two ejabberd nodes of one cluster on this machine, each of which can be killed and come back."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from spinal.bus.server import Server, ServerConfig, ServerError, certificates, free_ports
from spinal.bus.server.child import Child, Owner
from spinal.bus.server.ejabberd import EjabberdServer
from spinal.testing import eventually

DOMAIN = "bus.test"
COOKIE = "of-this-test-alone"
#: Seconds for one step of a node.
STEP = 60.0

#: Keep Erlang's own traffic on loopback.
_LOOPBACK = ("-kernel", "inet_dist_use_interface", "{127,0,0,1}")


def _kind(node: str, epmd: Mapping[str, str]) -> type[EjabberdServer]:
    """Give the launcher of one node: as that of a single server, but with a name."""

    class Node(EjabberdServer):
        @classmethod
        def _command(cls, program: Path, base: str) -> tuple[Sequence[str], Mapping[str, str]]:
            argv, environ = super()._command(program, base)
            named = ("-name", node, "-setcookie", COOKIE, *_LOOPBACK)
            return [argv[0], *named, *argv[1:]], {**environ, **epmd}

    return Node


@dataclass
class Node:
    """One node of the cluster."""

    name: str
    config: ServerConfig
    #: Variables that name the port mapper.
    epmd: Mapping[str, str]
    #: What runs, if it does.
    server: Server | None = None

    @property
    def endpoint(self) -> str:
        """Where it takes clients."""
        return f"127.0.0.1:{self.config.ports.c2s}"

    @property
    def ca(self) -> Path:
        """The authority of both nodes."""
        return self.config.folder / "ca.pem"

    async def start(self) -> None:
        """Start it, for the first time or again."""
        self.server = await _kind(self.name, self.epmd).start(self.config)

    async def kill(self) -> None:
        """End it as a power cut does; its folder stays."""
        assert self.server is not None
        os.kill(self.server.pid, signal.SIGKILL)
        await self.server.wait()
        await self.stop()

    async def stop(self) -> None:
        """End it if it runs."""
        server, self.server = self.server, None
        if server is not None:
            await server.stop()

    async def add_account(self, name: str, password: str) -> None:
        """Make an account, at this node."""
        assert self.server is not None
        await self.server.add_account(name, password)

    async def tell(self, command: str, *arguments: str) -> list[str]:
        """Have it run a command of ejabberdctl, and give the lines of its answer.

        Raises AssertionError if it fails.
        """
        program = EjabberdServer.find()
        assert program is not None
        argv = ["erl", "-name", f"ctl-{os.getpid()}@127.0.0.1", "-setcookie", COOKIE, *_LOOPBACK]
        argv += ["-hidden", "-noinput", "-s", "ejabberd_ctl", "-extra", self.name]
        process = await asyncio.create_subprocess_exec(
            *(*argv, command, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.config.folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.config.folder),
                "ERL_LIBS": str(program),
                **self.epmd,
            },
        )
        try:
            async with asyncio.timeout(STEP):
                said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, said.decode(errors="replace")
        return said.decode().splitlines()

    async def members(self) -> set[str]:
        """The nodes of the cluster that run, as this one sees them."""
        return {line.strip("' ") for line in await self.tell("list_cluster") if line.strip()}

    async def clients(self) -> dict[str, str]:
        """Full address -> node, of all sessions in the cluster."""
        rows = [line.split("\t") for line in await self.tell("connected_users_info")]
        return {
            row[0]: next(cell for cell in row if "@127.0.0.1" in cell) for row in rows if row[0]
        }


@dataclass
class Cluster:
    """Both nodes; the second joined the first."""

    one: Node
    two: Node

    @property
    def nodes(self) -> tuple[Node, Node]:
        """Both."""
        return self.one, self.two

    def other(self, node: Node) -> Node:
        """The other one."""
        return self.two if node is self.one else self.one

    def server(self, first: Node) -> str:
        """What SPINAL_SERVER is for who goes to this node first."""
        return f"{first.endpoint} {self.other(first).endpoint}"

    async def whole(self) -> None:
        """Start what was killed, and wait until both see both."""
        for node in self.nodes:
            if node.server is None:
                await node.start()
        names = {node.name for node in self.nodes}
        for node in self.nodes:

            async def sees_both(node: Node = node) -> bool:
                return await node.members() == names

            await eventually(sees_both, STEP, f"{node.name} sees {names}")


@asynccontextmanager
async def cluster(folder: Path, components: Mapping[str, str]) -> AsyncGenerator[Cluster]:
    """Start two nodes and make a cluster of them; they and their port mapper are gone after it."""
    mapper = free_ports().c2s
    epmd = {"ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(mapper)}
    program = shutil.which("epmd")
    assert program is not None
    async with AsyncExitStack() as stack:
        # Started by us and in the foreground, or the first node would leave one behind for good.
        child = await Child.start(
            "epmd",
            [program, "-address", "127.0.0.1", "-port", str(mapper)],
            folder=folder,
            cwd=folder,
            env={"PATH": os.environ["PATH"]},
            owner=Owner.choose(),
        )
        stack.push_async_callback(child.stop, 0.0)
        nodes: list[Node] = []
        for number in (1, 2):
            place = folder / str(number)
            place.mkdir()
            if nodes:
                # One authority, so that a client may come to either.
                for file in ("ca.pem", "ca-key.pem"):
                    shutil.copy(nodes[0].config.folder / file, place / file)
            else:
                certificates.ensure(place, DOMAIN)
            config = ServerConfig(place, DOMAIN, free_ports(), components=components)
            node = Node(f"ej{number}@127.0.0.1", config, epmd)
            stack.push_async_callback(node.stop)
            await node.start()
            nodes.append(node)
        found = Cluster(*nodes)
        await found.two.tell("join_cluster", found.one.name)
        for node in found.nodes:

            async def answers(node: Node = node) -> bool:
                return await _answers(node)

            await eventually(answers, STEP, f"{node.name} takes logins")
        await found.whole()
        yield found


async def _answers(node: Node) -> bool:
    assert node.server is not None
    try:
        await node.server.probe()
    except ServerError:
        return False
    return True
