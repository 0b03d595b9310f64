from __future__ import annotations

import json
from pathlib import Path

import pytest

from spinal.bus.server.embedded.accounts import Accounts
from spinal.bus.server.errors import ServerError


@pytest.fixture
def accounts(tmp_path: Path) -> Accounts:
    return Accounts(tmp_path / "accounts")


def test_what_is_added_is_there_until_it_is_removed(accounts: Accounts) -> None:
    assert accounts.list() == []
    accounts.add("b", "secret")
    accounts.add("a.b-c_d%", "secret")
    assert accounts.list() == ["a.b-c_d%", "b"]
    assert accounts.exists("b")
    accounts.remove("b")
    accounts.remove("b")
    assert accounts.list() == ["a.b-c_d%"]
    assert not accounts.exists("b")
    assert accounts.keys("b") is None


def test_no_password_is_ever_written(accounts: Accounts) -> None:
    accounts.add("a", "the secret")
    (path,) = accounts.folder.iterdir()
    assert "secret" not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert accounts.folder.stat().st_mode & 0o077 == 0


def test_keys_fit_their_password_only(accounts: Accounts) -> None:
    accounts.add("a", "right")
    keys = accounts.keys("a")
    assert keys is not None
    assert keys.fit("right")
    assert not keys.fit("wrong")
    assert keys.iterations == 4096


def test_a_password_can_be_changed_from_elsewhere(accounts: Accounts) -> None:
    accounts.add("a", "old")
    Accounts(accounts.folder).add("A", "new")
    keys = accounts.keys("a")
    assert keys is not None
    assert keys.fit("new")


def test_the_stamp_changes_with_the_accounts(accounts: Accounts) -> None:
    stamps = [accounts.stamp()]
    accounts.add("a", "x")
    stamps.append(accounts.stamp())
    accounts.remove("a")
    stamps.append(accounts.stamp())
    assert len(set(stamps)) == 3


@pytest.mark.parametrize("name", ["", "a b", "a@b", "a/b", "../x", "a\nb", "x" * 300, "ü" * 100])
def test_a_name_that_cannot_be_in_an_address_is_refused(accounts: Accounts, name: str) -> None:
    with pytest.raises(ServerError, match="cannot be an account"):
        accounts.add(name, "x")
    assert not accounts.exists(name)
    assert accounts.keys(name) is None
    accounts.remove(name)


def test_a_password_that_nobody_could_type_is_refused(accounts: Accounts) -> None:
    with pytest.raises(ServerError, match="password"):
        accounts.add("a", "x\0y")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"salt": "!"}'])
def test_a_damaged_file_is_reported(accounts: Accounts, content: str) -> None:
    accounts.add("a", "x")
    (path,) = accounts.folder.iterdir()
    path.write_text(content)
    with pytest.raises(ServerError, match="damaged"):
        accounts.keys("a")


def test_the_file_has_keys_for_each_mechanism(accounts: Accounts) -> None:
    accounts.add("a", "x")
    (path,) = accounts.folder.iterdir()
    assert list(json.loads(path.read_bytes())) == ["SCRAM-SHA-256", "SCRAM-SHA-1"]
    for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-1"):
        keys = accounts.keys("a", mechanism)
        assert keys is not None and keys.fit("x") and not keys.fit("y")


def test_a_file_from_before_there_were_two_is_read(accounts: Accounts) -> None:
    accounts.add("a", "x")
    (path,) = accounts.folder.iterdir()
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps({"mechanism": "SCRAM-SHA-256", **record["SCRAM-SHA-256"]}))
    keys = accounts.keys("a")
    assert keys is not None and keys.fit("x")
    assert accounts.keys("a", "SCRAM-SHA-1") is None
