from pathlib import Path

import pytest

from spinal.bus.home import Credentials, Home

from .conftest import Spinal


@pytest.fixture
def home(place: Path) -> Home:
    return Home.create(place)


def test_an_added_account_comes_with_all_one_needs(spinal: Spinal, home: Home) -> None:
    found = spinal("account", "add", "web", "--role", "caller", "--json").json
    assert found["address"] == f"web@{home.domain}"
    assert Path(found["password_file"]).read_text().strip() == home.password("web")
    assert (found["host"], found["port"]) == ("127.0.0.1", home.ports.c2s)
    assert found["ca_file"] == str(home.path / "server" / "ca.pem")
    (home.path / "server" / "ca.pem").write_text("certificate")
    assert Credentials.find(found["env"]) == home.credentials("web")


def test_people_get_the_same_in_lines(spinal: Spinal, home: Home) -> None:
    done = spinal("account", "add", "web", "--role", "agent")
    assert done.code == 0
    assert f"web@{home.domain}" in done.out and "password file" in done.out
    assert home.password("web") not in done.out
    assert "once `spinal up` runs" in done.line


def test_adding_it_again_shows_it_again(spinal: Spinal, home: Home) -> None:
    first = spinal("account", "add", "web", "--role", "caller", "--json").json
    before = home.password("web")
    assert spinal("account", "add", "web", "--role", "caller", "--json").json == first
    assert home.password("web") == before


def test_accounts_are_listed_and_removed(spinal: Spinal, home: Home) -> None:
    home.add_account("web", "caller")
    listed = spinal("account", "list", "--json").json
    assert [(one["address"], one["role"]) for one in listed] == [
        (f"owner@{home.domain}", "owner"),
        (f"web@{home.domain}", "caller"),
    ]
    assert f"web@{home.domain}\tcaller" in spinal("account", "list").out
    assert spinal("account", "remove", "web").code == 0
    assert home.accounts() == {"owner": "owner"}
    assert "no account 'web'" in spinal("account", "remove", "web").line


def test_the_home_may_be_named_before_and_after_the_verb(
    spinal: Spinal, home: Home, tmp_path: Path
) -> None:
    other = Home.create(tmp_path / "other")
    for words in (
        ("--home", str(other.path), "account", "list"),
        ("account", "--home", str(other.path), "list"),
        ("--home", str(home.path), "account", "list", "--home", str(other.path)),
    ):
        listed = spinal(*words, "--json").json
        assert str(other.path) in listed[0]["password_file"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("add", "Web", "--role", "caller"), "cannot be a name"),
        (("add", "web", "--role", "king"), "'king' is not one of"),
        (("add", "web"), "Missing option '--role'"),
        (("add", "owner", "--role", "caller"), "with the role owner"),
        (("remove", "owner"), "cannot be removed"),
    ],
)
def test_mistakes_are_one_line(
    spinal: Spinal, home: Home, words: tuple[str, ...], line: str
) -> None:
    done = spinal("account", *words)
    assert done.code == 2 and line in done.line


def test_a_server_elsewhere_makes_its_own_accounts(
    spinal: Spinal, place: Path, tmp_path: Path
) -> None:
    home = Home.create(place, server="xmpp.example.org", domain="example.org")
    done = spinal("account", "add", "dispatcher", "--role", "dispatcher")
    assert done.code == 2 and "--password-file FILE" in done.line
    (tmp_path / "secret").write_text("theirs\n")
    done = spinal(
        *("account", "add", "dispatcher", "--role", "dispatcher", "--json"),
        *("--password-file", str(tmp_path / "secret")),
    )
    assert done.json["host"] == "xmpp.example.org"
    assert home.password("dispatcher") == "theirs"
