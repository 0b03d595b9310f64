"""Who may do what at the dispatcher: one table over the roles of the home's accounts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum

from spinal.protocols.address import bare


class Right(Enum):
    """Something that an account may do here."""

    CALL = "call"
    ADVERTISE = "advertise"
    DISPATCH = "dispatch"
    WATCH = "watch"


#: Role -> rights.  What is not listed is denied.
RIGHTS: Mapping[str, frozenset[Right]] = {
    "owner": frozenset(Right),
    "caller": frozenset({Right.CALL}),
    "agent": frozenset({Right.CALL, Right.ADVERTISE}),
    "dispatcher": frozenset({Right.DISPATCH}),
}

#: Bare address -> role, as a table or as a function that gives nothing for strangers.
Roles = Mapping[str, str] | Callable[[str], str | None]


class RoleTable:
    """Answers whether an address has a right."""

    def __init__(self, roles: Roles) -> None:
        self._role: Callable[[str], str | None] = roles.get if isinstance(roles, Mapping) else roles

    def role(self, address: str) -> str | None:
        """Give the role of an account, by full or bare address."""
        return self._role(bare(address))

    def may(self, address: str, right: Right) -> bool:
        """Tell whether an address has a right; strangers have none."""
        return right in RIGHTS.get(self.role(address) or "", ())
