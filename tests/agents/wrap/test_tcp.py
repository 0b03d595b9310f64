from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from spinal.bus.errors import CallError
from spinal.bus.server import free_ports
from spinal.bus.server.certificates import ensure
from spinal.testing import eventually

from . import hostile
from .kinds import check_mistake, op, opened, read

needs_memcached = pytest.mark.skipif(
    not shutil.which("memcached"), reason="MISSING: memcached (apt install memcached)"
)
needs_redis = pytest.mark.skipif(
    not shutil.which("redis-server"), reason="MISSING: redis-server (apt install redis-server)"
)


@contextlib.asynccontextmanager
async def service(*argv: str, port: int) -> AsyncGenerator[None]:
    """Have a real service running for a block."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )

    def answers() -> bool:
        assert process.returncode is None, "it ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    try:
        await eventually(answers)
        yield
    finally:
        process.kill()
        await process.wait()


def memcached(port: int) -> contextlib.AbstractAsyncContextManager[None]:
    return service(
        *("memcached", "-l", "127.0.0.1", "-p", str(port), "-u", "root", "-m", "32"), port=port
    )


CACHE = """\
agent: cache
ops:
  /get:
    args: {key: {pattern: "[!-~]{1,250}"}}
    tcp:
      connect: 127.0.0.1:PORT
      special: ""
      connections: 2
      talk:
        - send: get {key}
        - expect: VALUE \\S+ \\d+ (?P<bytes>\\d+)
          else: {END: {refused: no such key}}
        - read: "{bytes}"
        - expect: ""
        - expect: END
    output: blob
    effects: reads
  /set:
    args: {key: {max_length: 1000000}, value: {type: file}, seconds: {type: integer, default: 0}}
    tcp:
      connect: 127.0.0.1:PORT
      special: ""
      most: 2M
      talk:
        - send: set {key} 0 {seconds} {size}
          data: "{value}"
        - expect: STORED
          else: {'SERVER_ERROR (?P<text>.*)': refused}
    output: none
  /delete:
    args: {key: {max_length: 1000000}}
    tcp:
      connect: 127.0.0.1:PORT
      special: ""
      talk:
        - send: delete {key}
        - {expect: DELETED, else: {NOT_FOUND: {refused: no such key}, CLIENT_ERROR.*: error}}
  /stats:
    tcp:
      connect: 127.0.0.1:PORT
      talk: [{send: stats}, {until: END}]
    output: {regex: 'STAT (?P<name>\\S+) (?P<value>.*)', all: true}
    effects: reads
"""


@pytest.fixture
def port() -> int:
    return free_ports().c2s


@pytest.fixture(scope="module")
def cache_port() -> int:
    return free_ports().c2s


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cache(cache_port: int) -> AsyncIterator[str]:
    """A memcached that runs, and the manifest of it."""
    async with memcached(cache_port):
        yield CACHE.replace("PORT", str(cache_port))


# -- memcached


@needs_memcached
@pytest.mark.asyncio(loop_scope="module")
async def test_what_was_put_into_memcached_is_got_from_it(cache: str, tmp_path: Path) -> None:
    value = bytes(range(256)) * 100 + b"\r\nEND\r\n"
    async with opened(cache, tmp_path) as call:
        await call("/set", key="a", value=value)
        assert await (await call("/get", key="a")).read() == value
        assert await call("/delete", key="a") == "DELETED"
        with pytest.raises(CallError, match="no such key") as caught:
            await call("/delete", key="a")
        assert caught.value.reason == "refused"
        with pytest.raises(CallError, match="no such key"):
            await call("/get", key="a")
        stats = {row["name"]: row["value"] for row in await call("/stats")}
        assert int(stats["cmd_get"]) >= 2


@needs_memcached
@pytest.mark.asyncio(loop_scope="module")
async def test_connections_are_kept_and_bounded(cache: str, tmp_path: Path) -> None:
    async def stats() -> dict[str, str]:
        return {row["name"]: row["value"] for row in await call("/stats")}

    async with opened(cache, tmp_path) as call:
        await call("/set", key="kept", value=b"x")
        before = int((await stats())["total_connections"])
        await asyncio.gather(*(call("/get", key="kept") for _ in range(50)))
        await asyncio.gather(*(call("/get", key="kept") for _ in range(50)))
        # Those of /get, which may have two.
        assert int((await stats())["total_connections"]) - before <= 2


@needs_memcached
@pytest.mark.asyncio(loop_scope="module")
async def test_hostile_keys_are_kept_as_they_are_or_refused_by_name(
    cache: str, tmp_path: Path
) -> None:
    canary = b"untouched"
    async with opened(cache, tmp_path) as call:
        await call("/set", key="canary", value=canary)
        stored: dict[str, bytes] = {}
        for place, key in enumerate(hostile.texts()):
            value = str(place).encode()
            try:
                await call("/set", key=key, value=value)
            except CallError as exc:
                if exc.reason == "bad-arguments":
                    assert exc.problem.argument == "key"
                    continue
                # memcached takes 250 bytes, which this manifest leaves to it.
                assert len(key.encode()) > 250, hostile.shown(key)
                continue
            stored[key] = value
        assert len(stored) > 300
        for key, value in stored.items():
            if all("!" <= one <= "~" for one in key):
                assert await (await call("/get", key=key)).read() == value, hostile.shown(key)
        assert await (await call("/get", key="canary")).read() == canary


@needs_memcached
@pytest.mark.asyncio(loop_scope="module")
async def test_hostile_values_are_kept_as_they_are(cache: str, tmp_path: Path) -> None:
    async with opened(cache, tmp_path) as call:
        await call("/set", key="canary", value=b"untouched")
        for value in hostile.binaries():
            try:
                await call("/set", key="v", value=value)
            except CallError as exc:
                # Of 1 MB memcached itself says so.
                assert exc.reason == "refused" and "too large" in str(exc) and len(value) > 1e6
                continue
            if len(value) <= 1024 * 1024:
                assert await (await call("/get", key="v")).read() == value, hostile.shown(value)
        assert await (await call("/get", key="canary")).read() == b"untouched"


@needs_memcached
async def test_a_service_that_was_restarted_between_two_calls_is_not_noticed(
    port: int, tmp_path: Path
) -> None:
    async with opened(CACHE.replace("PORT", str(port)), tmp_path) as call:
        async with memcached(port):
            await call("/set", key="a", value=b"x")
        with pytest.raises(CallError) as caught:
            await call("/set", key="a", value=b"x")
        assert caught.value.reason == "busy" and "cannot connect" in str(caught.value)
        async with memcached(port):
            await call("/set", key="a", value=b"x")
            assert await (await call("/get", key="a")).read() == b"x"


# -- Redis


@needs_redis
async def test_redis_is_spoken_to_in_lines_and_in_counted_strings(
    port: int, tmp_path: Path
) -> None:
    text = f"""\
agent: redis
ops:
  /set:
    args: {{key: {{max_length: 100}}, value: {{}}}}
    tcp:
      connect: 127.0.0.1:{port}
      greeting: [{{send: "AUTH {{password}}"}}, {{expect: '\\+OK'}}]
      secrets: {{password: {{file: password}}}}
      talk:
        - {{send: "*3"}}
        - {{send: $3}}
        - {{send: SET}}
        - {{send: "${{size}}", data: "{{key}}"}}
        - {{send: "${{size}}", data: "{{value}}"}}
        - {{expect: '\\+OK'}}
  /get:
    args: {{key: {{max_length: 100}}}}
    tcp:
      connect: 127.0.0.1:{port}
      greeting: [{{send: "AUTH {{password}}"}}, {{expect: '\\+OK'}}]
      secrets: {{password: {{file: password}}}}
      errors: {{'-(?P<text>.*)': error}}
      talk:
        - {{send: 'GET "{{key}}"'}}
        - {{expect: '\\$(?P<bytes>\\d+)', else: {{'\\$-1': {{refused: no such key}}}}}}
        - {{read: "{{bytes}}"}}
        - {{expect: ""}}
    effects: reads
"""
    (tmp_path / "password").write_text("let me\n".replace(" ", ""))
    argv = ("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "")
    async with (
        service(*argv, "--requirepass", "letme", "--dir", str(tmp_path), port=port),
        opened(text, tmp_path) as call,
    ):
        await call("/set", key="a b", value='"quoted"\r\nFLUSHALL\r\n')
        assert await call("/get", key="a b") == '"quoted"\r\nFLUSHALL\r'
        with pytest.raises(CallError, match="no such key"):
            await call("/get", key="b")
        with pytest.raises(CallError, match="'key': it has \""):
            await call("/get", key='a" "b')
        kept = 0
        for value in hostile.texts():
            try:
                await call("/set", key="v", value=value)
            except CallError as exc:
                assert exc.problem.argument == "value", str(exc)
                continue
            kept += 1
            found = await call("/get", key="v")
            # A text output goes without the last newline, as everywhere.
            assert found == value.removesuffix("\n"), hostile.shown(value)
        assert kept > 900


# -- a server that notes all that it is told

#: Answers one line: its own number, and the line.
Answer = Callable[[int, bytes], Awaitable[bytes | None] | bytes | None]


class Recorder:
    """A server of lines."""

    def __init__(self, answer: Answer, greeting: bytes = b"") -> None:
        self.lines: list[tuple[int, bytes]] = []
        self.connections = 0
        self.closed = 0
        self._answer = answer
        self._greeting = greeting
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        writer.write(self._greeting)
        try:
            while line := await reader.readline():
                self.lines.append((number, line))
                answer = self._answer(number, line)
                if answer is not None and not isinstance(answer, bytes):
                    answer = await answer
                if answer is None:
                    break
                writer.write(answer)
        except (ConnectionError, asyncio.LimitOverrunError, ValueError):
            pass
        finally:
            self.closed += 1
            writer.close()

    @property
    def said(self) -> list[bytes]:
        return [line for _, line in self.lines]


@contextlib.asynccontextmanager
async def recorded(
    answer: Answer, greeting: bytes = b"", **options: object
) -> AsyncGenerator[tuple[Recorder, str]]:
    """Have a recording server for a block, and where it is."""
    recorder = Recorder(answer, greeting)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await recorder.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=4_000_000, **options)  # type: ignore[arg-type]
    try:
        yield recorder, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def echo(number: int, line: bytes) -> bytes:
    return b"OK " + line


WORDS = """
args: {a: {default: x}, b: {default: y}}
tcp:
  connect: PLACE
  talk: [{send: "DO {a} {b}"}, {expect: "OK (?P<rest>.*)"}]
"""


async def test_hostile_words_stay_words_or_are_refused_by_name(tmp_path: Path) -> None:
    passed = 0
    async with (
        recorded(echo) as (recorder, place),
        opened(op(WORDS.replace("PLACE", place)), tmp_path) as call,
    ):
        for value in hostile.texts():
            for name, other in (("a", "b"), ("b", "a")):
                recorder.lines.clear()
                try:
                    await call("/op", **{name: value, other: "other"})
                except CallError as exc:
                    assert exc.reason == "bad-arguments" and exc.problem.argument == name
                    assert not recorder.lines
                    continue
                passed += 1
                ((_, line),) = recorder.lines
                words = [value, "other"] if name == "a" else ["other", value]
                assert line.decode() == f"DO {words[0]} {words[1]}\r\n"
                assert len(line.split()) == 3
    assert passed > 300


async def test_hostile_lines_stay_lines_or_are_refused_by_name(tmp_path: Path) -> None:
    text = op("""
args: {a: {}, b: {}}
tcp:
  connect: PLACE
  talk:
    - {send: "{a}"}
    - {expect: "OK .*"}
    - {send: 'SAY "{a}" {b}', spaces: [b]}
    - {expect: "OK .*"}
""")
    passed = 0
    async with (
        recorded(echo) as (recorder, place),
        opened(text.replace("PLACE", place), tmp_path) as call,
    ):
        for value in hostile.texts():
            recorder.lines.clear()
            try:
                await call("/op", a=value, b="other words")
            except CallError as exc:
                assert exc.reason == "bad-arguments" and exc.problem.argument == "a"
                assert not recorder.lines
                continue
            passed += 1
            first, second = (line.decode("utf-8") for line in recorder.said)
            assert first == f"{value}\r\n"
            assert second == f'SAY "{value}" other words\r\n'
            assert '"' not in value and "\\" not in value
    assert passed > 300


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ('SAY "{a}"', True),
        ("SAY '{a}' \"b\"", True),
        ('SAY "b" "{a}"', True),
        ('SAY "{a}', False),
        ('SAY "b"{a}"c"', False),
        ("SAY \"{a}'", False),
        ("SAY {a}", False),
    ],
)
async def test_white_space_is_taken_between_quotes(tmp_path: Path, line: str, taken: bool) -> None:
    said = line.replace("'", "''")
    text = op(
        f"args: {{a: {{}}}}\ntcp:\n  connect: PLACE\n  talk: [{{send: '{said}'}}, {{expect: .*}}]"
    )
    async with (
        recorded(echo) as (_, place),
        opened(text.replace("PLACE", place), tmp_path) as call,
    ):
        if taken:
            assert await call("/op", a="x y") == f"OK {line.replace('{a}', 'x y')}"
        else:
            with pytest.raises(CallError, match="'a': it has white space"):
                await call("/op", a="x y")


SMTP = """
args: {to: {}, body: {}}
tcp:
  connect: PLACE
  errors: {'4\\d\\d (?P<text>.*)': retry, '5\\d\\d (?P<text>.*)': refused}
  greeting:
    - {expect: "220 .*"}
    - {send: EHLO here}
    - {expect: "250 .*", more: "250-.*"}
  goodbye: QUIT
  talk:
    - {send: "MAIL FROM:<wrap@example.org>"}
    - {expect: "250 .*"}
    - {send: "RCPT TO:<{to}>"}
    - {expect: "250 .*"}
    - {send: DATA}
    - {expect: "354 .*"}
    - {send: "X-By: wrap", dotted: "\\n{body}"}
    - {expect: "250 (?P<id>.*)"}
output: {regex: "250 (.*)"}
"""


def smtp() -> Answer:
    inside: set[int] = set()

    def answer(number: int, line: bytes) -> bytes | None:
        if number in inside:
            if line != b".\r\n":
                return b""
            inside.discard(number)
            return b"250 queued as 7\r\n"
        match line.split()[0]:
            case b"EHLO":
                return b"250-here\r\n250-8BITMIME\r\n250 HELP\r\n"
            case b"DATA":
                inside.add(number)
                return b"354 go on\r\n"
            case b"QUIT":
                return None
            case b"RCPT" if b"full" in line:
                return b"452 mailbox is full\r\n"
            case b"RCPT" if b"nobody" in line:
                return b"550 no such user here\r\n"
            case _:
                return b"250 well\r\n"

    return answer


async def test_a_greeting_codes_and_dotted_lines_are_spoken(tmp_path: Path) -> None:
    async with (
        recorded(smtp(), b"220 here ESMTP\r\n") as (recorder, place),
        opened(op(SMTP.replace("PLACE", place)), tmp_path) as call,
    ):
        body = "a\n.\nQUIT\r\n..b"
        assert await call("/op", to="ann@example.org", body=body) == "queued as 7"
        assert await call("/op", to="bob@example.org", body="x") == "queued as 7"
        assert recorder.connections == 1
        for to, reason, words in (
            ("full@here", "busy", "mailbox is full"),
            ("nobody@here", "refused", "no such user here"),
        ):
            with pytest.raises(CallError, match=words) as caught:
                await call("/op", to=to, body="x")
            assert caught.value.reason == reason
        await eventually(lambda: recorder.said[-1] == b"QUIT\r\n")
    said = recorder.said
    at = said.index(b"DATA\r\n")
    assert said[at + 1 : at + 8] == [
        *(b"X-By: wrap\r\n", b"\r\n", b"a\r\n", b"..\r\n", b"QUIT\r\n", b"...b\r\n", b".\r\n")
    ]


async def test_a_hostile_body_never_ends_early(tmp_path: Path) -> None:
    async with (
        recorded(smtp(), b"220 here ESMTP\r\n") as (recorder, place),
        opened(op(SMTP.replace("PLACE", place)), tmp_path) as call,
    ):
        for value in hostile.texts():
            recorder.lines.clear()
            try:
                await call("/op", to="ann@example.org", body=value)
            except CallError as exc:
                assert exc.problem.argument == "body", str(exc)
                continue
            said = recorder.said
            block = said[said.index(b"X-By: wrap\r\n") + 2 :]
            assert block.index(b".\r\n") == len(block) - 1
            lines = [
                line.removesuffix(b"\r\n").removeprefix(b".") if line[:1] == b"." else line[:-2]
                for line in block[:-1]
            ]
            wanted = value.replace("\r\n", "\n").removesuffix("\n")
            assert b"\n".join(lines).decode() == wanted, hostile.shown(value)


async def test_a_dotted_answer_and_one_until_the_end_are_taken(tmp_path: Path) -> None:
    def answer(number: int, line: bytes) -> bytes | None:
        return b"+OK\r\nSubject: x\r\n\r\n..dot\r\n.\r\n"

    text = op(
        'tcp:\n  connect: PLACE\n  talk: [{send: RETR 1}, {expect: "\\\\+OK"}, {until: "\\\\.", dots: true}]'
        "\noutput: lines"
    )
    async with (
        recorded(answer) as (_, place),
        opened(text.replace("PLACE", place), tmp_path) as call,
    ):
        assert await call("/op") == ["Subject: x", "", ".dot"]


async def test_another_answer_may_be_the_end_of_the_talk(tmp_path: Path) -> None:
    def answer(number: int, line: bytes) -> bytes | None:
        return {b"LIST": b"a\r\nb\r\n.\r\n", b"NONE": b".\r\n"}.get(line.strip(), b"-NO such\r\n")

    text = op("""
args: {a: {}}
tcp:
  connect: PLACE
  errors: {'-(?P<text>.*)': done}
  talk: [{send: "{a}"}, {until: '\\.'}]
output: lines
""")
    async with (
        recorded(answer) as (recorder, place),
        opened(text.replace("PLACE", place), tmp_path) as call,
    ):
        assert await call("/op", a="LIST") == ["a", "b"]
        assert await call("/op", a="NONE") == []
        assert await call("/op", a="WHAT") == ["-NO such"]
        assert await call("/op", a="LIST") == ["a", "b"]
        # One line was said and answered, so it is known where the talk is.
        assert recorder.connections == 1


async def test_operations_share_the_connections_to_a_service(tmp_path: Path) -> None:
    parts = [
        f"  /{name}:\n    tcp: {{connect: PLACE, connections: {size}, special: '{name}', "
        f"talk: [{{send: {name}}}, {{expect: 'OK .*'}}]}}\n"
        for name, size in (("a", 1), ("b", 1), ("c", 2))
    ]
    async with recorded(echo) as (recorder, place):
        text = "agent: test\nops:\n" + "".join(parts).replace("PLACE", place)
        async with opened(text, tmp_path) as call:
            for name in ("a", "b", "a", "b", "c"):
                assert await call(f"/{name}") == f"OK {name}"
    assert [number for number, _ in recorder.lines] == [1, 1, 1, 1, 2]


async def test_all_until_the_service_closes_is_read(tmp_path: Path) -> None:
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = await reader.readline()
        writer.write(b"Login: " + name + b"x" * 200_000)
        await writer.drain()
        writer.close()
        done.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    text = op(
        "args: {user: {}}\ntcp:\n  connect: PLACE\n  line_end: lf\n"
        "  talk: [{send: '{user}'}, {read: all}]"
    ).replace("PLACE", f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with server, opened(text, tmp_path) as call:
        assert await call("/op", user="ann") == "Login: ann\n" + "x" * 200_000
        assert await call("/op", user="bob w") == "Login: bob w\n" + "x" * 200_000
        await done.wait()


# -- what goes wrong


async def test_a_connection_whose_talk_did_not_end_cleanly_is_never_used_again(
    tmp_path: Path,
) -> None:
    late = asyncio.Event()

    async def answer(number: int, line: bytes) -> bytes | None:
        if b"slow" in line:
            await late.wait()
            return b"OK late\r\n"
        if b"odd" in line:
            return b"WHAT?\r\n"
        if b"twice" in line:
            return b"OK 1\r\nOK 2\r\n"
        return b"OK " + line

    text = op(
        "args: {a: {}}\neffects: reads\ntcp:\n  connect: PLACE\n  within: 1s\n"
        "  talk: [{send: 'DO {a}'}, {expect: 'OK (?P<rest>.*)'}]"
    )
    async with (
        recorded(answer) as (recorder, place),
        opened(text.replace("PLACE", place), tmp_path) as call,
    ):
        with pytest.raises(CallError, match=r"no answer within 1 s") as caught:
            await call("/op", a="slow")
        assert caught.value.reason == "failed"
        late.set()
        assert await call("/op", a="1") == "OK DO 1"
        with pytest.raises(CallError, match=r"it answered: WHAT\?"):
            await call("/op", a="odd")
        assert await call("/op", a="2") == "OK DO 2"
        # More than was asked for: whatever it means, it is no answer to the next one.
        assert await call("/op", a="twice") == "OK 1"
        assert await call("/op", a="3") == "OK DO 3"
        assert [number for number, _ in recorder.lines] == [1, 2, 2, 3, 3, 4]


async def test_a_cancelled_talk_closes_its_connection(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def answer(number: int, line: bytes) -> bytes | None:
        asked.set()
        return b""

    async with (
        recorded(answer) as (recorder, place),
        opened(op(WORDS.replace("PLACE", place)), tmp_path) as call,
    ):
        task = asyncio.create_task(call("/op"))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: recorder.closed == 1)


@pytest.mark.parametrize("effects", ["reads", "writes"])
async def test_a_kept_connection_that_dies_when_it_is_asked_is_replaced_for_what_only_reads(
    tmp_path: Path, effects: str
) -> None:
    def answer(number: int, line: bytes) -> bytes | None:
        # The first connection takes one request, and closes on the second one.
        return None if number == 1 and len(recorder.lines) == 2 else b"OK x\r\n"

    text = op(WORDS.replace("effects", "") + f"effects: {effects}")
    async with (
        recorded(answer) as (recorder, place),
        opened(text.replace("PLACE", place), tmp_path) as call,
    ):
        await call("/op")
        if effects == "reads":
            assert await call("/op") == "OK x"
            assert recorder.connections == 2
        else:
            with pytest.raises(CallError, match="it closed the connection") as caught:
                await call("/op")
            assert caught.value.reason == "failed" and recorder.connections == 1
        assert await call("/op") == "OK x"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"x" * 100_000, "a line of more than 65536 bytes"),
        (b"SIZE 2000000\r\n", "announced 2000000 bytes"),
        (b"SIZE 99999999999999999999999999\r\n", "bytes, and at most 1000"),
        ("SIZE ٣\r\n".encode(), "announced ٣ bytes"),
        (b"LINES\r\n" + b"abc\r\n" * 1000, "more than 1000 bytes"),
    ],
)
async def test_an_answer_is_bounded(tmp_path: Path, answer: bytes, words: str) -> None:
    step = "{until: END}" if answer.startswith(b"LINES") else '{read: "{n}"}'
    text = op(
        "tcp:\n  connect: PLACE\n  most: 1000\n"
        f"  talk: [{{send: GO}}, {{expect: 'SIZE (?P<n>.*)|LINES'}}, {step}]"
    )
    async with (
        recorded(lambda number, line: answer) as (recorder, place),
        opened(text.replace("PLACE", place), tmp_path) as call,
    ):
        with pytest.raises(CallError, match=words):
            await call("/op")
        await eventually(lambda: recorder.closed == 1)


async def test_a_service_that_does_not_greet_has_been_asked_nothing(tmp_path: Path) -> None:
    text = op(
        "tcp:\n  connect: PLACE\n  within: 100ms\n  greeting: [{expect: HELLO}]\n  talk: [{send: x}]"
    )
    for greeting in (b"", b"GO AWAY\r\n"):
        async with (
            recorded(echo, greeting) as (recorder, place),
            opened(text.replace("PLACE", place), tmp_path) as call,
        ):
            with pytest.raises(CallError) as caught:
                await call("/op")
            assert caught.value.reason == "busy" and not recorder.lines


async def test_other_encodings_are_written_and_read(tmp_path: Path) -> None:
    text = op(WORDS + "  encoding: latin-1")
    async with (
        recorded(echo) as (recorder, place),
        opened(text.replace("PLACE", place), tmp_path) as call,
    ):
        assert await call("/op", a="é") == "OK DO é y"
        assert recorder.said == [b"DO \xe9 y\r\n"]
        with pytest.raises(CallError, match="'a': it cannot be written in latin-1"):
            await call("/op", a="日")


# -- where it is


async def test_a_unix_socket_is_a_place(tmp_path: Path) -> None:
    recorder = Recorder(echo)
    server = await asyncio.start_unix_server(recorder.serve, tmp_path / "s")
    async with server, opened(op(WORDS.replace("PLACE", "./s")), tmp_path) as call:
        assert await call("/op") == "OK DO x y"


@pytest.fixture
def certificates(tmp_path: Path) -> Iterator[tuple[ssl.SSLContext, Path]]:
    made = ensure(tmp_path / "tls", "localhost", ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    yield context, made.ca


async def test_tls_is_spoken_and_the_certificate_verified(
    tmp_path: Path, certificates: tuple[ssl.SSLContext, Path]
) -> None:
    context, ca = certificates
    async with recorded(echo, ssl=context) as (recorder, place):
        words = WORDS.replace("PLACE", place)
        ours = f"  tls: {{ca: {ca}, name: localhost}}"
        async with opened(op(words + ours), tmp_path) as call:
            assert await call("/op") == "OK DO x y"
        lines = len(recorder.lines)
        for tls in ("  tls: true", f"  tls: {{ca: {ca}, name: other.example}}"):
            async with opened(op(words + tls), tmp_path) as call:
                with pytest.raises(CallError, match="certificate verify failed") as caught:
                    await call("/op")
                assert caught.value.reason == "busy"
        assert len(recorder.lines) == lines


def test_what_is_not_on_this_machine_is_told(tmp_path: Path) -> None:
    text = op(
        "tcp:\n  connect: ./none.sock\n  tls: {ca: none.pem, name: a}\n"
        "  secrets: {password: {file: nothing}}\n"
        "  greeting: [{send: 'AUTH {password}'}]\n  talk: [{send: x}]"
    )
    missing = {one.key.removeprefix("ops./op."): one.text for one in read(text, tmp_path).missing()}

    assert sorted(missing) == ["tcp.connect", "tcp.secrets.password", "tcp.tls.ca"]
    assert "start the service" in missing["tcp.connect"]


# -- mistakes

GOOD = op("""
args:
  key: {max_length: 250}
  value: {}
  doc: {type: file, optional: true}
tcp:
  connect: 127.0.0.1:11211
  within: 5s
  secrets: {password: {env: PASSWORD}}
  greeting: [{send: "AUTH {password}"}]
  goodbye: quit
  errors: {ERROR: error}
  talk:
    - send: set {key} 0 0 {size}
      data: "{value}"
    - expect: STORED (?P<bytes>.*)
      else: {NO: refused}
    - read: "{bytes}"
    - send: doc {size}
      data: "{doc}"
output: none
""")

TALK = "ops./op.tcp.talk"

MISTAKES = [
    ("connect: 127.0.0.1:11211", "connect: cache", "ops./op.tcp.connect", "write for example"),
    ("connect: 127.0.0.1:11211", "connect: '{key}:1'", "ops./op.tcp.connect", "HOST:PORT"),
    ("connect: 127.0.0.1:11211", "connect: a:70000", "ops./op.tcp.connect", "1 to 65535"),
    ("127.0.0.1:11211", "/run/x.sock\n      tls: true", "ops./op.tcp.tls", "write {name:"),
    ("connect: 127.0.0.1:11211", "conect: a:1", "ops./op.tcp.conect", "did you mean 'connect'?"),
    ("within: 5s", "within: soon", "ops./op.tcp.within", "write a length of time"),
    ("send: set {key} 0", "send: set {kay} 0", f"{TALK}.0.send", "(it has key, value, doc)"),
    ("send: set {key} 0", "send: set {doc} 0", f"{TALK}.0.send", "of type file"),
    ("send: set {key} 0 0 {size}", 'send: "set {key} {size}\\r\\n"', f"{TALK}.0.send", "leave"),
    ("set {key} 0 0 {size}", "set {key} 0 0", f"{TALK}.0.send", "{size} is missing"),
    ("max_length: 250", "min_length: 1", f"{TALK}.0.send", "give key a max_length or a pattern"),
    ('data: "{value}"', 'data: "{value"', f"{TALK}.0.data", "write it twice"),
    ('data: "{doc}"', 'data: "a{doc}"', f"{TALK}.3.data", "must be all of it"),
    ("expect: STORED (?P<bytes>.*)", "expect: STORED (", f"{TALK}.1.expect", "escape"),
    ("(?P<bytes>.*)", "(?P<bytes>.*)(?P<key>.*)", f"{TALK}.1.expect", "call it otherwise"),
    ("NO: refused", "NO: nope", f"{TALK}.1.else.NO", "write done, refused, retry or error"),
    ("NO: refused", "'(': refused", f"{TALK}.1.else.(", "no regular expression"),
    ('read: "{bytes}"', 'read: "{count}"', f"{TALK}.2.read", "write one of bytes"),
    ('read: "{bytes}"', "read: many", f"{TALK}.2.read", "or all"),
    ('read: "{bytes}"', "reed: 5", f"{TALK}.2.reed", "did you mean 'read'?"),
    ('    - read: "{bytes}"', "    - within: 5s", f"{TALK}.2", "a step has one of send"),
    ('read: "{bytes}"', 'read: "{bytes}"\n          expect: x', f"{TALK}.2", "make two steps"),
    ('read: "{bytes}"', 'read: "{bytes}"\n          dots: true', f"{TALK}.2.dots", "goes with until"),
    ("AUTH {password}", "AUTH {key}", "ops./op.tcp.greeting.0.send", "write one of password"),
    ("{env: PASSWORD}", "hunter2", "ops./op.tcp.secrets.password", "by reference"),
    ("goodbye: quit", 'goodbye: "quit\\r\\n"', "ops./op.tcp.goodbye", "leave its end out"),
    ("ERROR: error", "'*': error", "ops./op.tcp.errors.*", "no regular expression"),
    ("output: none", "output: {blob: a/b, file: x}", "ops./op.output.file", "goes with command"),
    ("output: none", "output: none\n    stdin: x", "ops./op.stdin", "goes with command"),
    ("output: none", "output: none\n    processes: 2", "ops./op.processes", "goes with program"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "key", "words"), MISTAKES, ids=[m[1] for m in MISTAKES])
def test_a_mistake_is_told_once_with_what_to_write(
    old: str, new: str, key: str, words: str
) -> None:
    check_mistake(GOOD, old, new, key, words)
