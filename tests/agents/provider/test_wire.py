from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from typing import Any

import pytest

from spinal.agents.errors import one_line
from spinal.agents.provider import wire
from spinal.agents.provider.fault import classify
from spinal.agents.provider.wire import Answer, Wire

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    "text, after",
    [
        ("120", 120.0),
        ("0", 0.0),
        ("1.5", 1.5),
        (formatdate(NOW + 30, usegmt=True), 30.0),
        (formatdate(NOW - 30, usegmt=True), 0.0),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, after: float | None) -> None:
    assert Answer.of(429, {"retry-after": text}, NOW).after == after


def test_the_clock_is_compared_with_the_vendors() -> None:
    assert Answer.of(200, {"date": formatdate(NOW - 90, usegmt=True)}, NOW).skew == 90.0
    assert Answer.of(200, {"date": "yesterday"}, NOW).skew is None
    assert Answer.of(200, {}, NOW).skew is None


# -- answers


@contextmanager
def a_vendor(answer: Callable[[socket.socket], None]) -> Generator[Any]:
    """Answer one request in a thread; gives a connection to there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection, suppress(OSError):
                connection.recv(4096)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        found = Wire("127.0.0.1", listener.getsockname()[1], secure=False)
        try:
            yield found
        finally:
            found.shut()
            wire.begin(20.0)
            thread.join()


def test_an_answer_is_read_whole_and_unpacked() -> None:
    body = gzip.compress(b"machines" * 100_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"

    with a_vendor(lambda to: to.sendall(head.encode() + body)) as vendor:
        vendor.request("GET", "/")
        assert vendor.read() == b"machines" * 100_000
        assert wire.last() == Answer(200)


def test_an_answer_that_comes_byte_by_byte_ends_at_the_time_of_the_call() -> None:
    over = threading.Event()

    def trickle(to: socket.socket) -> None:
        to.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
        while not over.wait(0.05):
            to.sendall(b"x")

    with a_vendor(trickle) as vendor:
        wire.begin(20.0, time.monotonic() + 0.5)
        try:
            with pytest.raises(TimeoutError, match="did not end in time") as raised:
                vendor.request("GET", "/")
        finally:
            over.set()
    assert classify(raised.value).kind == "transient"


def test_an_answer_that_unpacks_to_more_than_there_is_room_for_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "MAX_ANSWER", 1024 * 1024)
    body = gzip.compress(bytes(64 * 1024 * 1024))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"

    with (
        a_vendor(lambda to: to.sendall(head.encode() + body)) as vendor,
        pytest.raises(OSError, match="longer than 1048576 bytes"),
    ):
        vendor.request("GET", "/")


def test_words_of_a_vendor_only_show_on_a_terminal() -> None:
    said = one_line("no\x1b[2J\x1b]0;owned\x07 capacity\u202e\r\nhere", 300)
    assert said.isprintable() and said.startswith("no") and said.endswith("here")
