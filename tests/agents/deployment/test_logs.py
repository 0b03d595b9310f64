from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from spinal.agents.deployment.logs import MAX_WAITING, LogFile, older


def write(log: LogFile, *lines: str) -> None:
    for line in lines:
        log.append(f"{line}\n".encode())
        log.tell(f"{line}\n".encode())


def test_a_log_never_takes_more_than_twice_its_limit(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", 1000)
    for number in range(1000):
        write(log, f"line {number}")
    log.close()
    sizes = [one.stat().st_size for one in tmp_path.iterdir()]
    assert len(sizes) == 2 and max(sizes) <= 1000
    assert log.tail(3) == ["line 997", "line 998", "line 999"]


def test_the_last_lines_may_lie_in_the_older_file(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", 36)
    write(log, "first " + "x" * 20, "second")
    write(log, "third")
    log.close()
    assert older(log.path).exists()
    assert log.tail(2) == ["second", "third"]
    assert log.tail(0) == []


def test_a_log_goes_on_where_it_was(tmp_path: Path) -> None:
    for word in ("one", "two"):
        log = LogFile(tmp_path / "log", 1000)
        write(log, word)
        log.close()
        log.close()
    assert LogFile(tmp_path / "log", 1000).tail(10) == ["one", "two"]


def test_no_log_has_no_lines(tmp_path: Path) -> None:
    assert LogFile(tmp_path / "log", 1000).tail(10) == []


def test_lines_are_text_and_bounded(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", 100_000)
    log.append(b"\xff\xfe" + b"y" * 10_000 + b"\r\n")
    log.close()
    (line,) = log.tail(1)
    assert line.startswith("\ufffd\ufffdyyy") and len(line) == 4000


def test_a_link_in_place_of_the_log_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError):
        LogFile(tmp_path / "log", 1000).append(b"x")


async def test_who_follows_gets_what_comes_and_is_told_what_was_too_much(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", 1_000_000)
    news = log.follow()
    first = asyncio.ensure_future(anext(news))
    await asyncio.sleep(0)
    write(log, "before")
    log.tell(b"ha")
    log.tell(b"lf\n")
    assert await first == ["before", "half"]
    write(log, *map(str, range(MAX_WAITING + 5)))
    found = await anext(news)
    assert found[0] == "0" and found[-1] == "... 5 lines left out"
    await news.aclose()
    write(log, "nobody hears")
    log.close()
