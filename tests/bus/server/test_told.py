from __future__ import annotations

from pathlib import Path

from spinal.bus.server.told import Told


def test_an_account_is_news_until_it_is_noted(tmp_path: Path) -> None:
    told = Told(tmp_path / "told")
    accounts = {"a": "one", "b/ü " * 250: "two"}
    assert told.news(accounts, accounts) == accounts
    for name, password in accounts.items():
        told.note(name, password)
    assert told.news(accounts, accounts) == {}


def test_another_password_is_news(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.note("a", "one")
    assert told.news({"a": "two"}, {"a"}) == {"a": "two"}


def test_a_server_without_the_account_has_to_be_told_again(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.note("a", "one")
    assert told.news({"a": "one"}, {"b"}) == {"a": "one"}


def test_what_is_forgotten_is_news(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.note("a", "one")
    told.forget("a")
    told.forget("a")
    assert told.news({"a": "one"}, {"a"}) == {"a": "one"}


def test_a_damaged_mark_is_none(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.note("a", "one")
    (mark,) = tmp_path.iterdir()
    for content in (b"", mark.read_bytes()[:-1], mark.read_bytes() + b"x"):
        mark.write_bytes(content)
        assert told.news({"a": "one"}, {"a"}) == {"a": "one"}


def test_nobody_else_reads_the_marks_and_they_hold_no_password(tmp_path: Path) -> None:
    told = Told(tmp_path / "told")
    told.note("a", "a secret")
    (mark,) = (tmp_path / "told").iterdir()
    assert b"secret" not in mark.read_bytes()
    assert mark.stat().st_mode & 0o077 == 0
    assert (tmp_path / "told").stat().st_mode & 0o077 == 0
