from __future__ import annotations

import pytest

from spinal.bus.server.embedded.addresses import Address, BadAddress, parse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("bus.test", Address("", "bus.test", "")),
        ("a@bus.test", Address("a", "bus.test", "")),
        ("A@BUS.test/Desk", Address("a", "bus.test", "Desk")),
        ("bus.test/a@b/c", Address("", "bus.test", "a@b/c")),
        ("Ä@b", Address("ä", "b", "")),
        ("a@b./r", Address("a", "b", "r")),
    ],
)
def test_an_address_is_taken_apart_and_normalised(text: str, address: Address) -> None:
    assert parse(text) == address
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "@", "@b", "a@", "a@/r", "a@b/", "a b@c", "a@b c", "a'b@c", "x" * 1024, "a@b/\x07"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadAddress):
        parse(text)


def test_an_address_knows_its_bare_form() -> None:
    assert parse("a@b/c").bare == "a@b"
    assert parse("b/c").bare == "b"
