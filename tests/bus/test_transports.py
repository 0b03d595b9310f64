"""Which library logs a client in, and what is said where it is not there."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from spinal.bus.client import connect
from spinal.bus.errors import HomeError
from spinal.bus.home import Credentials
from spinal.bus.transports import CLIENTS

CREDENTIALS = Credentials("ann@bus.test/desk", "secret", None, "127.0.0.1", 5222, (), ())

#: What is imported once a connection is made; the home's credentials do not matter.
MADE = """
import sys
from spinal.bus.client import connect
from spinal.bus.home import Credentials
connect(Credentials("ann@bus.test/desk", "secret", None, "127.0.0.1", 5222, (), ()))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def library(transport: str = "") -> str:
    return type(connect(CREDENTIALS, transport)).__module__.rpartition(".")[2]


def test_it_is_slixmpp_where_nobody_says_otherwise() -> None:
    assert library() == "slixmpp"


def test_the_other_one_is_not_touched_then() -> None:
    ended = subprocess.run([sys.executable, "-c", MADE], capture_output=True, text=True, check=True)
    modules = ended.stdout.split()
    assert "slixmpp" in modules
    assert not {"aioxmpp", "aiosasl", "OpenSSL", "lxml"}.intersection(modules)


@pytest.mark.parametrize("name", CLIENTS)
def test_the_environment_says_which(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec(name) is None:
        pytest.skip(f"MISSING: {name}, which there is for Python 3.11 and 3.12")
    monkeypatch.setenv("SPINAL_TRANSPORT", name)
    assert library() == name
    assert library("slixmpp") == "slixmpp"


def test_a_name_that_is_none_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPINAL_TRANSPORT", "pigeons")
    with pytest.raises(HomeError) as refused:
        connect(CREDENTIALS)
    assert str(refused.value) == (
        "SPINAL_TRANSPORT: 'pigeons' is no transport: write slixmpp or aioxmpp"
    )


@pytest.mark.parametrize("missing", ["aioxmpp", "aiosasl"])
def test_one_that_is_not_installed_says_how_to_have_it(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("aioxmpp", "aioxmpp_repairs"):
        monkeypatch.delitem(sys.modules, f"spinal.bus.transports.{name}", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(HomeError) as refused:
        connect(CREDENTIALS, "aioxmpp")
    assert str(refused.value) == (
        "the transport aioxmpp is not installed: `pip install 'spinal[aioxmpp]'`, on Python 3.11 "
        "or 3.12"
    )
