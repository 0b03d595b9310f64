"""A machine as its vendor shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from spinal.protocols import Json

#: Tag that says whose a machine is, the pool that it is of, and its name.
HOME: Final = "spinal"
POOL: Final = "spinal-pool"
NAME: Final = "spinal-name"

#: Where a machine may be in its life, as its vendor sees it.
STATES: Final = ("starting", "running", "stopped", "error", "ending")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """See the module."""

    name: str
    #: What the vendor calls it.
    id: str
    region: str
    type: str = ""
    #: One of :data:`STATES`.
    state: str
    #: Milliseconds since 1970 UTC; none if the vendor does not say.
    created: int | None = None
    addresses: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    #: What the vendor says is wrong with it.
    said: str = ""
    #: The driver's own object.
    node: Any = field(default=None, compare=False, repr=False)

    @property
    def pool(self) -> str:
        """The pool that it is of: what its tag says, else what its name begins with."""
        return self.tags.get(POOL) or self.name.rpartition("-")[0]

    def of(self, home: str) -> bool | None:
        """Tell whether it is a home's; none if no tag says so."""
        return self.tags[HOME] == home if HOME in self.tags else None

    def tagged(self, tags: Mapping[str, str]) -> Machine:
        """Give it with tags that the vendor keeps and does not show at once."""
        return replace(self, tags={**tags, **self.tags})

    def row(self) -> dict[str, Json]:
        """Give it as JSON."""
        return {
            "name": self.name,
            "id": self.id,
            "region": self.region,
            "type": self.type,
            "state": self.state,
            "created": self.created,
            "addresses": list(self.addresses),
            "tags": dict(self.tags),
            "pool": self.pool,
            "said": self.said,
        }


def pairs(words: Iterable[Any]) -> dict[str, str]:
    """Read tags that a vendor keeps as single words, ``key=value`` or ``key:value``."""
    found: dict[str, str] = {}
    for word in map(str, words):
        for sign in "=:":
            key, is_there, value = word.partition(sign)
            if is_there:
                found[key] = value
                break
    return found
