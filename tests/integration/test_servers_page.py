"""What docs/servers.md says, done: its configurations, its commands, its groups."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio
from slixmpp import ClientXMPP

from spinal.bus.server import ServerError, available, certificates, free_ports
from spinal.bus.server.contract import Ports
from spinal.bus.server.ejabberd import EjabberdServer
from spinal.bus.server.probe import probe
from spinal.testing import READY, Platform, eventually, platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: slixmpp declares types that are too loose to check anything against.
Bot: TypeAlias = Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "servers.md").read_text()
DOMAIN = "example.org"
ACCOUNTS = ("dispatcher", "owner", "worker", "ann")
SOON = 30.0

WORKER = '''
from spinal.agents import Agent, Blob

agent = Agent("worker")


@agent.op("/text/size", effects="reads")
async def size(text: str) -> int:
    """Count the characters."""
    return len(text)


@agent.op("/file/copy", effects="reads")
def copy(file: Blob) -> Blob:
    """Give the same bytes."""
    return Blob.of(file.data)
'''


def blocks(language: str) -> list[str]:
    """The blocks of the page in one language."""
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def commands(program: str) -> list[list[str]]:
    """The words of all lines that begin with this program."""
    lines = "".join(blocks("sh")).splitlines()
    return [shlex.split(line) for line in lines if line.startswith(f"{program} ")]


def changed(text: str, changes: Mapping[str, str]) -> str:
    """Put what is this machine's for what is the page's."""
    for theirs, ours in changes.items():
        assert theirs in text, f"the page no longer has {theirs!r}"
        text = text.replace(theirs, ours)
    return text


@dataclass
class Place:
    """A folder of this test's server, which nobody may own who is root."""

    folder: Path
    ports: Ports
    files: certificates.Certificates

    def file(self, name: str) -> Path:
        """One of its files."""
        return self.folder / name

    async def run(self, *argv: str, **variables: str) -> asyncio.subprocess.Process:
        """Start a program in it, as a user that is not root."""
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.folder), **variables}
        with self.file("log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *argv,
                cwd=self.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **user,
            )

    def give(self) -> None:
        """Make all of it that user's."""
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.rglob("*")):
                shutil.chown(path, "nobody", "nogroup")

    async def takes_logins(self, server: asyncio.subprocess.Process) -> None:
        """Wait until it does."""

        async def does() -> bool:
            assert server.returncode is None, self.file("log").read_text()[-2000:]
            try:
                await probe("127.0.0.1", self.ports.c2s, DOMAIN)
            except ServerError:
                return False
            return True

        await eventually(does, READY, "it takes logins")


@asynccontextmanager
async def prosody(place: Place) -> AsyncGenerator[None]:
    """Start a Prosody with the page's configuration, and make the page's accounts."""
    (text,) = blocks("lua")
    config = place.file("prosody.cfg.lua")
    config.write_text(
        changed(
            text,
            {
                "/run/prosody/prosody.pid": str(place.file("pid")),
                "/var/lib/prosody": str(place.file("data")),
                "/etc/prosody/certs/example.org.key": str(place.files.key),
                "/etc/prosody/certs/example.org.crt": str(place.files.certificate),
                "/etc/prosody/groups.txt": str(place.file("groups.txt")),
                "{ 5222 }": f"{{ {place.ports.c2s} }}",
                "{ 5281 }": f"{{ {place.ports.upload} }}",
                "https://upload.example.org:5281/": f"https://127.0.0.1:{place.ports.upload}/",
            },
        )
    )
    (groups,) = blocks("ini")
    place.file("groups.txt").write_text(groups)
    place.file("data").mkdir()
    place.give()
    for program, *words in commands("prosodyctl"):
        done = await place.run(program, "--config", str(config), *words)
        assert await done.wait() == 0, place.file("log").read_text()[-2000:]
    server = await place.run("prosody", "-F", "--config", str(config))
    async with ending(server):
        await place.takes_logins(server)
        yield


@asynccontextmanager
async def ejabberd(place: Place) -> AsyncGenerator[None]:
    """Start an ejabberd with the page's configuration, and give it the page's commands.

    They are given inside of it, because ejabberdctl wants the node of the Debian package.
    """
    (text,) = blocks("yaml")
    upload = f"https://127.0.0.1:{place.ports.upload}/upload"
    place.file("ejabberd.yml").write_text(
        changed(
            text,
            {
                "/etc/ejabberd/certs/example.org.pem": str(place.files.combined),
                "/var/lib/ejabberd/upload": str(place.file("upload")),
                "https://upload.example.org:5443/upload": upload,
                "port: 5222": f"port: {place.ports.c2s}",
                "port: 5443": f"port: {place.ports.upload}",
            },
        )
    )
    place.give()
    library = EjabberdServer.find()
    assert library is not None
    orders = [erlang(words) for _, *words in commands("ejabberdctl")]
    checked = ", ".join(f"0 = ejabberd_ctl:process({words})" for words in orders)
    server = await place.run(
        *("erl", "-noinput", "-mnesia", "dir", f'"{place.file("spool")}"', "-s", "ejabberd"),
        *("-eval", f'{checked}, io:format("all done~n").'),
        EJABBERD_CONFIG_PATH=str(place.file("ejabberd.yml")),
        EJABBERD_LOG_PATH=str(place.file("ejabberd.log")),
        ERL_LIBS=str(library),
        ERL_CRASH_DUMP_SECONDS="0",
    )
    async with ending(server):
        await place.takes_logins(server)
        await eventually(lambda: "all done" in place.file("log").read_text(), READY, "accounts")
        yield


def erlang(words: Sequence[str]) -> str:
    """Write a list of strings as Erlang does; ours need no escapes."""
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


@asynccontextmanager
async def ending(server: asyncio.subprocess.Process) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        if server.returncode is None:
            server.terminate()
        try:
            async with asyncio.timeout(15):
                await server.wait()
        except TimeoutError:
            server.kill()
            await server.wait()


SERVERS = {"prosody": prosody, "ejabberd": ejabberd}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(SERVERS))
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    reason = available(request.param)
    if reason is not None:
        pytest.skip(f"MISSING: {reason}")
    with tempfile.TemporaryDirectory(prefix="spinal-page-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        found = Place(folder, free_ports(), certificates.ensure(folder / "tls", DOMAIN))
        async with SERVERS[request.param](found):
            yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    place: Place, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Platform]:
    """Do what the page says to have Spinal on it, up to and with the last ``spinal up``."""
    folder = tmp_path_factory.mktemp("page")
    home = folder / "home"
    shutil.copy(place.files.ca, folder / "ca.pem")
    for name in ACCOUNTS:
        (folder / f"{name}.password").write_text(f"password-of-{name}\n")
    (folder / "worker.py").write_text(WORKER)
    server = f"127.0.0.1:{place.ports.c2s}"
    first, *others = commands("spinal")
    outcomes = [await spinal(folder, home, [word_of(word, server) for word in first[1:]])]
    for words in others:
        if words[1:] == ["up"]:
            break
        outcomes.append(await spinal(folder, home, words[1:]))
    (code, said), *rest = outcomes
    assert code == 2 and "no account 'dispatcher'" in said and "--password-file" in said
    assert [code for code, _ in rest] == [0, 0, 0], rest
    async with platform(server, folder=home) as found:
        await found.agent(folder / "worker.py")
        yield found


def word_of(word: str, server: str) -> str:
    return server if word == "xmpp.example.org:5222" else word


async def spinal(folder: Path, home: Path, words: Sequence[str]) -> tuple[int, str]:
    """Run a command in a folder; gives its exit code and what it said on stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "spinal", *words),
        cwd=folder,
        env={**os.environ, "SPINAL_HOME": str(home), "PYTHONPATH": str(ROOT / "src")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(READY):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, f"{err.decode()}{out.decode()}"


async def test_a_call_goes_through_it(running: Platform, tmp_path: Path) -> None:
    (words,) = [words[1:] for words in commands("spinal") if words[1] == "call"]
    (tmp_path / "notes.txt").write_text("x" * 20_000)
    code, said = await spinal(tmp_path, running.home.path, words)
    assert (code, said.strip()) == (0, "20000")


async def test_a_call_with_a_blob_goes_through_it(running: Platform, tmp_path: Path) -> None:
    # More than Prosody takes as shipped.
    source = os.urandom(30 * 1024 * 1024)
    (tmp_path / "large").write_bytes(source)
    blob = await running.client.call("/file/copy", file=tmp_path / "large")
    await blob.save(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source


async def test_a_large_stanza_and_many_small_ones_go_through_it(running: Platform) -> None:
    async with asyncio.timeout(SOON):
        found = [
            row.value
            async for row in running.client.map(
                "/text/size", [{"text": "x" * 30_000} for _ in range(200)]
            )
        ]
    assert found == [30_000] * 200


async def test_a_person_sees_the_agent_in_its_group_and_online(
    place: Place, running: Platform
) -> None:
    async with chatting(place, "ann") as ann:
        present = ann.seen("worker")
        roster = (await ann.bot.get_roster(timeout=SOON))["roster"]["items"]
        assert roster[f"worker@{DOMAIN}"]["groups"] == ["Agents"]
        ann.bot.send_presence()
        await eventually(lambda: "available" in present, SOON, "the agent is online")


@dataclass
class Person:
    """Somebody with a stock client."""

    bot: Bot

    def seen(self, name: str) -> list[str]:
        """The presence of an account as it comes, from now on."""
        kinds: list[str] = []

        def note(presence: Any) -> None:
            if presence["from"].bare == f"{name}@{DOMAIN}":
                kinds.append(str(presence["type"]))

        self.bot.add_event_handler("presence", note)
        return kinds


@asynccontextmanager
async def chatting(place: Place, name: str) -> AsyncGenerator[Person]:
    bot: Bot = ClientXMPP(f"{name}@{DOMAIN}/chat", f"password-of-{name}")
    bot.ca_certs = place.files.ca
    bot.enable_direct_tls = bot.enable_plaintext = False
    bot.ssl_context.verify_flags |= ssl.VERIFY_X509_STRICT
    begun = asyncio.Event()

    def has_begun(_: Any) -> None:
        begun.set()

    bot.add_event_handler("session_start", has_begun)
    bot.connect("127.0.0.1", place.ports.c2s)
    try:
        async with asyncio.timeout(SOON):
            await begun.wait()
        yield Person(bot)
    finally:
        await bot.disconnect(wait=0.1)
        bot.cancel_connection_attempt()
        bot._run_out_filters.cancel()
        await asyncio.wait([bot._run_out_filters])
