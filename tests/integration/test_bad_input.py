"""Bad input as people and programs give it: one clear line, the right exit code, nothing hangs.

After each of them the platform still answers, and nothing is left under way.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from spinal.bus import Client
from spinal.bus.errors import BadCall, LoginRefused, NoAgent, NotAllowed, OperationFailed
from spinal.bus.home import Credentials, Home
from spinal.bus.registration import tell_server
from spinal.bus.server import certificates
from spinal.testing import Platform, Process, eventually, platform

from .conftest import HERE, SOON

EXAMPLE = HERE.parents[1] / "examples" / "images"
#: What any of them may take, with the start of a Python on a busy machine.
AT_ONCE = 20.0

pytestmark = pytest.mark.asyncio(loop_scope="module")

AGENT = '''
from spinal.agents import Agent

agent = Agent("bad-input", slots=2)


@agent.op("/story/repeat", effects="reads")
async def repeat(text: str, times: int = 1, more: dict[str, object] | None = None) -> str:
    """Say something again."""
    return text * times


@agent.op("/story/much", effects="reads")
async def much() -> str:
    """Give more than fits into an answer."""
    return "x" * 10_000_000
'''


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    file = tmp_path_factory.mktemp("agent") / "agent.py"
    file.write_text(AGENT)
    async with platform() as found:
        await found.agent(file)
        yield found


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def it_still_answers(house: Platform) -> AsyncIterator[None]:
    yield
    async with asyncio.timeout(AT_ONCE):
        assert await house.client.call("/story/repeat", text="ab", times=2) == "abab"

        async def nothing_is_left() -> bool:
            status = await house.client.ask_dispatcher("/spinal/status")
            return bool(status["in_flight"] == status["waiting"] == 0)

        await eventually(nothing_is_left)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    #: What it said on stderr.
    lines: Sequence[str]

    @property
    def line(self) -> str:
        (found,) = self.lines
        assert len(found) < 500 and "Traceback" not in found
        return found


async def run(house: Platform, *words: str, **variables: str) -> Outcome:
    """Run a command to its end."""
    environ = {**house.environ, **variables}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "spinal", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environ,
    )
    try:
        async with asyncio.timeout(AT_ONCE):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), err.decode().splitlines())


def away(house: Platform, name: str, **others: str) -> Mapping[str, str]:
    """The environment of a program that has an account and no home."""
    return {**house.home.environment(name), "SPINAL_HOME": "", **others}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def account(house: Platform) -> str:
    """Give an account that may only call."""
    house.home.add_account("web", "caller")
    await tell_server(house.home, "web")
    return "web"


# Calls from a terminal.


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["/story/nothing"], 3, "no agent offers /story/nothing"),
        (["/story/repeet", "text=a"], 3, "did you mean /story/repeat?"),
        (["no-path"], 2, "no-path"),
        (["/story/repeat"], 2, "text is missing"),
        (["/story/repeat", "text=a", "loud=yes"], 2, "no argument loud"),
        (["/story/repeat", "text=a", "times=often"], 2, "'often' is not an integer"),
        (["/story/repeat", "text=a", "times:=NaN"], 2, "times"),
        (["/story/repeat", "text:=5"], 2, "text"),
        (["/story/repeat", "text=a", "more:=" + "[" * 5000 + "]" * 5000], 2, "more"),
        (["/story/repeat", "text=a", 'more:={"a":' + "[" * 60 + "]" * 60 + "}"], 2, "deep"),
        (["/story/repeat", "text=a", "more:={"], 2, "more"),
        (["/story/much"], 2, "blob"),
    ],
    ids=[
        *("unknown", "nearly known", "no path", "missing", "extra", "mistyped", "NaN"),
        *("another type", "very deep", "deep", "no JSON", "too large a result"),
    ],
)
async def test_a_bad_call_is_one_line(
    house: Platform, words: list[str], code: int, line: str
) -> None:
    done = await run(house, "call", *words, "--json")
    assert line.lower() in done.line.lower()
    assert done.code == code, done.line
    assert json.loads(done.out)["error"]["exit"] == code


async def test_ten_megabytes_in_an_argument_are_one_line(house: Platform, tmp_path: Path) -> None:
    (tmp_path / "big").write_text("x" * 10_000_000)
    done = await run(house, "call", "/story/repeat", f"text@={tmp_path}/big")
    assert done.code == 2 and "blob" in done.line


# Calls from Python.


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"text": "a", "loud": True},
        {"text": 5},
        {"text": "a", "times": "often"},
        {"text": "x" * 10_000_000},
        {"text": "a", "more": {"deep": nested(100)}},
        {"text": "a", "more": {"deep": nested(100_000)}},
        {"text": "a", "more": {"number": math.nan}},
        {"text": "a", "more": {"number": 2**60}},
        {"text": "a", "more": {"text": "\ud800"}},
        {"text": "a", "more": {"object": object()}},
        {"text": "a", "more": {5: "key"}},
        {"text": Path("/no/such/file")},
    ],
    ids=[
        *("missing", "extra", "mistyped", "mistyped number", "10 MB", "deep", "very deep", "NaN"),
        *("beyond I-JSON", "half a character", "no JSON", "no text as key", "no file"),
    ],
)
async def test_bad_arguments_are_refused_in_one_line(
    house: Platform, arguments: dict[str, Any]
) -> None:
    async with asyncio.timeout(AT_ONCE):
        with pytest.raises(BadCall) as caught:
            await house.client.call("/story/repeat", **arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


async def test_an_unknown_operation_is_refused_to_a_program_as_well(house: Platform) -> None:
    with pytest.raises(NoAgent, match="no agent offers"):
        await house.client.call("/story/nothing")


async def test_a_hundred_good_calls_among_bad_ones_all_end(house: Platform) -> None:
    inputs: list[dict[str, Any]] = [
        {"text": "a", "times": n} if n % 2 else {"text": "a", "times": "many"} for n in range(200)
    ]
    found = [row async for row in house.client.map("/story/repeat", inputs, ordered=True)]
    assert [row.value for row in found[1::2]] == ["a" * n for n in range(1, 200, 2)]
    assert all(isinstance(row.error, BadCall) for row in found[::2])


# Who logs in, and as what.


async def test_a_wrong_password_is_one_line(house: Platform, account: str, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("wrong")
    variables = away(house, account, SPINAL_PASSWORD_FILE=str(tmp_path / "wrong"))
    done = await run(house, "agents", **variables)
    assert done.code == 5 and "wrong password" in done.line
    credentials = Credentials.find(variables)
    with pytest.raises(LoginRefused):
        async with asyncio.timeout(AT_ONCE), Client(credentials=credentials):
            pass


async def test_another_authority_is_one_line(house: Platform, account: str, tmp_path: Path) -> None:
    other = certificates.ensure(tmp_path, house.home.domain).ca
    done = await run(house, "agents", **away(house, account, SPINAL_CA=str(other)))
    assert done.code == 5 and "certificate" in done.line


async def test_a_caller_may_neither_run_an_agent_nor_watch(
    house: Platform, account: str, tmp_path: Path
) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    variables = away(house, account, SPINAL_LOG="critical")
    done = await run(house, "agent", "run", str(tmp_path / "agent.py"), **variables)
    assert done.code == 5 and "role agent" in done.lines[-1]
    done = await run(house, "tap", **variables)
    assert done.code == 5 and "role caller" in done.lines[-1]
    async with Client(credentials=Credentials.find(variables)) as web:
        with pytest.raises(NotAllowed):
            await anext(web.tap())
        assert await web.call("/story/repeat", text="c") == "c"


async def test_an_account_that_is_removed_can_do_nothing_more(house: Platform) -> None:
    house.home.add_account("former", "caller")
    variables = away(house, "former")
    password = house.home.password("former")
    done = await run(house, "account", "remove", "former")
    assert done.code == 0, done.lines
    kept = house.home.path.parent / "kept"
    kept.write_text(password)
    done = await run(house, "agents", **{**variables, "SPINAL_PASSWORD_FILE": str(kept)})
    assert done.code == 5 and done.line


# The socket.

HEADER = (
    "<?xml version='1.0'?><stream:stream xmlns='jabber:client' version='1.0'"
    " xmlns:stream='http://etherx.jabber.org/streams' to='{domain}'>"
)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\0\xff\xfe garbage \x80",
        b"<a></b>",
        b"HEADER</nothing>",
        b"HEADER<a><b></a>",
        b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>",
        b"HEADER<a>" + b"x" * 2_000_000,
        b"HEADER" + b"<a>" * 100_000,
        b"HEADER<message to='owner@spinal.localhost'><body>let me in</body></message>",
    ],
    ids=[
        *("HTTP", "bytes", "tags that cross", "a tag too many", "tags that cross later"),
        *("a document type", "2 MB before the log-in", "deep", "unauthenticated"),
    ],
)
async def test_nonsense_on_the_socket_ends_that_stream_and_no_other(
    house: Platform, said: bytes
) -> None:
    header = HEADER.format(domain=house.home.domain).encode()
    heard = await _say(house, said.replace(b"HEADER", header))
    assert b"<stream:error" in heard or b"error" in heard or not heard


async def test_nonsense_after_the_handshake_ends_that_stream_as_well(house: Platform) -> None:
    host, port = house.home.endpoint
    context = ssl.create_default_context(cafile=str(house.home.ca))
    reader, writer = await asyncio.open_connection(host, port)
    try:
        async with asyncio.timeout(AT_ONCE):
            writer.write(HEADER.format(domain=house.home.domain).encode())
            await reader.readuntil(b"</stream:features>")
            writer.write(b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
            await reader.readuntil(b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
            await writer.start_tls(context, server_hostname=house.home.domain)
            writer.write(HEADER.format(domain=house.home.domain).encode() + b"<a></b>")
            heard = await reader.read()
        assert b"<stream:error" in heard
    finally:
        writer.transport.abort()


async def _say(house: Platform, said: bytes) -> bytes:
    """Say something and give all that is answered until the server ends the stream."""
    reader, writer = await asyncio.open_connection(*house.home.endpoint)
    heard = b""
    try:
        async with asyncio.timeout(AT_ONCE):
            try:
                writer.write(said)
                await writer.drain()
                while data := await reader.read(65536):
                    heard += data
            except ConnectionError:
                pass  # It did not even listen to the end, which is as good.
    finally:
        writer.transport.abort()
    return heard


# The machine.


async def test_a_port_that_is_taken_is_one_line(house: Platform, tmp_path: Path) -> None:
    home = Home.create(tmp_path / "home")
    with socket.create_server(("127.0.0.1", home.ports.c2s)):
        done = await run(house, "up", "--json", SPINAL_HOME=str(home.path))
    assert done.code == 4
    error = json.loads(done.out)["error"]
    assert f"port {home.ports.c2s}" in error["text"] and "\n" not in error["text"]


@pytest.mark.parametrize("where", ["/proc/spinal", "file", "file/home"])
async def test_a_home_that_cannot_be_made_is_one_line(
    house: Platform, tmp_path: Path, where: str
) -> None:
    (tmp_path / "file").write_text("")
    done = await run(house, "up", SPINAL_HOME=str(tmp_path / where))
    assert done.code == 2
    assert str(tmp_path / where) in done.line or where in done.line


# The example.


async def test_pillow_is_given_a_text_file(house: Platform, tmp_path: Path) -> None:
    worker: Process = await house.agent(EXAMPLE / "worker.py")
    for op in ("/image/resize", "/image/thumbnail", "/image/histogram"):
        done = await run(house, "call", op, f"photo={EXAMPLE / 'README.md'}")
        assert done.code == 1
        assert "not an image Pillow can read" in done.line
    with pytest.raises(OperationFailed, match="not an image") as caught:
        await house.client.call("/image/resize", photo=EXAMPLE / "README.md")
    assert caught.value.reason == "refused"
    (photo, *_) = sorted((EXAMPLE / "photos").glob("*.jpg"))
    done = await run(
        house, "call", "/image/thumbnail", f"photo={photo}", "--out", str(tmp_path / "small.jpg")
    )
    assert done.code == 0 and (tmp_path / "small.jpg").stat().st_size > 0
    worker.kill()
    await worker.wait(SOON)
