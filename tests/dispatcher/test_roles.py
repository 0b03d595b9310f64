from __future__ import annotations

import pytest

from spinal.dispatcher.roles import Right, RoleTable
from spinal.protocols.address import bare

ROLES = {
    "o@x": "owner",
    "c@x": "caller",
    "a@x": "agent",
    "d@x": "dispatcher",
    "n@x": "nonsense",
    "g@x": "gateway",
}


def test_what_others_say_counts_where_we_know_nothing() -> None:
    table = RoleTable(ROLES)
    table.shared = {"c@x": "owner", "far@x": "agent"}
    assert table.role("c@x/phone") == "caller"
    assert table.role("far@x/agent") == "agent"
    assert table.role("stranger@x") is None


@pytest.mark.parametrize(
    ("account", "rights"),
    [
        ("o@x", set(Right)),
        ("c@x", {Right.CALL}),
        ("a@x", {Right.CALL, Right.ADVERTISE}),
        ("g@x", {Right.CALL, Right.ADVERTISE, Right.RELAY}),
        ("d@x", {Right.DISPATCH}),
        ("n@x", set[Right]()),
        ("stranger@x", set[Right]()),
    ],
)
def test_a_role_has_its_rights_and_no_others(account: str, rights: set[Right]) -> None:
    for table in (RoleTable(ROLES), RoleTable(lambda address: ROLES.get(bare(address)))):
        assert {right for right in Right if table.may(f"{account}/phone", right)} == rights
        assert {right for right in Right if table.may(account, right)} == rights
