"""Who may do what at the dispatcher: one table over the roles of the home's accounts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from spinal.protocols.address import bare


class Right(Enum):
    """Something that an account may do here."""

    CALL = "call"
    ADVERTISE = "advertise"
    DISPATCH = "dispatch"
    WATCH = "watch"
    #: Ask for others: the account that an op names as its ``caller`` counts as the one that asks.
    RELAY = "relay"


#: Role -> rights.  What is not listed is denied.
RIGHTS: Mapping[str, Sequence[Right]] = {
    "owner": tuple(Right),
    "caller": (Right.CALL,),
    "agent": (Right.CALL, Right.ADVERTISE),
    "gateway": (Right.CALL, Right.ADVERTISE, Right.RELAY),
    "dispatcher": (Right.DISPATCH,),
}

#: The role of every account: a table by bare address, or a function of the full address that gives
#: nothing for strangers.
Roles = Mapping[str, str] | Callable[[str], str | None]


class RoleTable:
    """Answers whether an address has a right.

    Args:
        roles: the roles.
        soon: calls a function once what is under way is done.  An answer holds until then, so that
            stanzas which come together cost one question each sender; without it each is asked.
    """

    def __init__(
        self, roles: Roles, soon: Callable[[Callable[[], None]], object] | None = None
    ) -> None:
        self._role = roles if callable(roles) else _by_bare_address(roles)
        self._soon = soon
        self._told: dict[str, str | None] = {}
        #: What other dispatchers say, by bare address; it counts where we know nothing ourselves.
        self.shared: Mapping[str, str] = {}

    def role(self, address: str) -> str | None:
        """Give the role of whoever has a full or bare address."""
        if address in self._told:
            return self._told[address]
        found = self._role(address) or self.shared.get(bare(address))
        if self._soon is not None:
            if not self._told:
                self._soon(self._told.clear)
            self._told[address] = found
        return found

    def may(self, address: str, right: Right) -> bool:
        """Tell whether an address has a right; strangers have none."""
        return right in RIGHTS.get(self.role(address) or "", ())


def _by_bare_address(table: Mapping[str, str]) -> Callable[[str], str | None]:
    return lambda address: table.get(bare(address))
