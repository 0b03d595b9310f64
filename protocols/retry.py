"""How often, when and after what something that failed is tried again, as callers and operations say.

On the wire it is a number of further tries, or an object with the members of :class:`RetryPolicy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from . import readers
from .errors import REASONS, RemoteProtocolError
from .readers import Reader
from .values import Json

#: Most tries after the first one.
MAX_COUNT: Final = 100

#: Longest pause between two tries, in seconds.
MAX_PAUSE: Final = 86_400.0

#: Reasons that are tried again if nobody says otherwise: those that may be better next time.
USUAL: Final = frozenset({"failed", "deadline", "no-answer", "lost", "blob"})

#: Reasons that may be asked for: all but the wish that there be no further try.
_CHOICES: Final = tuple(sorted(set(REASONS) - {"cancelled"}))


def _up_to(longest: float) -> Reader:
    def read(raw: Json, name: str) -> float:
        if type(raw) not in (int, float) or not 0 <= raw <= longest:
            raise RemoteProtocolError(
                f"'{name}' must be seconds from 0 to {longest:g}", "malformed", name
            )
        return float(raw)

    return read


def _reasons(raw: Json, name: str) -> frozenset[str] | None:
    # Whoever wants no retry says so with the count.
    return frozenset(_LIST(raw, name)) or None


_LIST: Final = readers.list_of(readers.one_of(*_CHOICES), len(_CHOICES))
_READS: Final[Mapping[str, Reader]] = {
    "count": readers.integer(0, MAX_COUNT),
    "backoff": _up_to(MAX_PAUSE),
    "most": _up_to(MAX_PAUSE),
    "on": _reasons,
    "elsewhere": readers.flag,
}


def doubled(first: float, times: int, most: float) -> float:
    """Give a pause that has been doubled so often, and is at most ``most``; all in seconds."""
    # 2^40 seconds are beyond every bound, and a float can still hold the product.
    return min(most, first * 2.0 ** min(times, 40))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, when and after what a job is tried again; by default never."""

    MEMBERS: ClassVar[Sequence[str]] = tuple(_READS)

    #: Tries after the first one.
    count: int = 0
    #: Longest first pause in seconds; it doubles with each try, up to ``most``.
    backoff: float = 1.0
    most: float = 60.0
    #: Reasons that are tried again; nothing stands for :data:`USUAL`.
    on: frozenset[str] | None = None
    #: Only at an agent that has not failed on it yet, while there is one.
    elsewhere: bool = False

    @classmethod
    def read(cls, raw: Json, name: str = "retry") -> RetryPolicy:
        """Read a number of tries, or an object with the members of this class.

        Raises:
            RemoteProtocolError: it is neither, or a member is wrong; the text names it.
        """
        if type(raw) is int:
            raw = {"count": raw}
        if not isinstance(raw, dict):
            raise RemoteProtocolError(
                f"'{name}' must be a number of further tries or an object with 'count'",
                "malformed",
                name,
            )
        found: dict[str, Any] = {
            member: _READS[member](item, f"{name}.{member}")
            for member, item in readers.mapping(raw, name).items()
            if item is not None and member in _READS
        }
        if "count" not in found:
            raise RemoteProtocolError(
                f"'{name}.count' is missing: how many further tries, 0 to {MAX_COUNT}",
                "malformed",
                f"{name}.count",
            )
        return cls(**found)

    @classmethod
    def normal(cls, raw: Json, name: str = "retry") -> dict[str, Json]:
        """Give the object form of what :meth:`read` reads; raises the same."""
        cls.read(raw, name)
        return {"count": raw} if isinstance(raw, int) else dict(readers.mapping(raw, name))

    def covers(self, reason: str) -> bool:
        """Tell whether a reason is tried again; one that nobody knows is read as ``failed``."""
        known = reason if reason in REASONS else "failed"
        return known != "cancelled" and known in (USUAL if self.on is None else self.on)
