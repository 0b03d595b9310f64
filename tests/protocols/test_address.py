from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.protocols import LocalProtocolError
from spinal.protocols.address import MAX_ADDRESS, bare, check, domain, local, resource


@pytest.mark.parametrize(
    ("address", "user", "host", "tail"),
    [
        ("ann@example.org/desk", "ann", "example.org", "desk"),
        ("ann@example.org", "ann", "example.org", ""),
        ("example.org", "", "example.org", ""),
        ("example.org/a@b/c", "", "example.org", "a@b/c"),
        ("ann@example.org/a@b/c", "ann", "example.org", "a@b/c"),
        ("ann@[::1]/x", "ann", "[::1]", "x"),
    ],
)
def test_an_address_is_taken_apart(address: str, user: str, host: str, tail: str) -> None:
    assert check(address) == address
    assert (local(address), domain(address), resource(address)) == (user, host, tail)
    assert bare(address) == (f"{user}@{host}" if user else host)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "@example.org",
        "ann@",
        "ann@example.org/",
        "/desk",
        "an n@example.org",
        "a@b@example.org",
        "ann'@example.org",
        "ann@exam ple.org",
        "ann@example.org/a\nb",
        "ann@example.org/\x7f",
        "ann@example.org/\ud800",
        "ann@example.org/\ufffe",
        "ann@example.org/" + "x" * MAX_ADDRESS,
    ],
)
def test_what_cannot_be_an_address_is_refused(address: str) -> None:
    with pytest.raises(LocalProtocolError, match="not an address"):
        check(address)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_refused_as_one(text: str) -> None:
    try:
        check(text)
    except LocalProtocolError:
        return
    assert domain(text)
    assert text.isprintable() or resource(text) or not text.isascii()
