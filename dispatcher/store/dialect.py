"""What the databases do not do alike; everything else is SQLAlchemy's business."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import sqlalchemy as sa


class Dialect(Protocol):
    """One kind of database."""

    #: Who it is, for people: without a password.
    name: str
    #: Gives caller, key and id of the jobs that have the keys of :meth:`pairs`, for :meth:`rows`.
    keyed: str

    def check(self) -> None:
        """Refuse what is not a store, without touching it; raises :class:`NotAStore`."""
        ...

    def engine(self) -> sa.Engine:
        """Make connections.  Transactions of those with the option ``writes`` are for writing."""
        ...

    def prepare(self, connection: sa.Connection) -> None:
        """Keep others from migrating until the transaction ends."""
        ...

    def several(self, values: Sequence[str | int]) -> Any:
        """Give the parameter of :class:`~.tables.Among`."""
        ...

    def at_once(self, query: sa.Select[*tuple[Any, ...]]) -> sa.Select[*tuple[Any, ...]]:
        """Give a query that is answered in as few steps as can be; :meth:`rows` reads the answer."""
        ...

    def rows(self, answer: Sequence[Any]) -> Sequence[Sequence[Any]]:
        """Give the rows of a query of :meth:`at_once`."""
        ...

    def pairs(self, keys: Sequence[tuple[str, str]]) -> tuple[Any, ...]:
        """Give the parameters of :attr:`keyed`: callers and keys."""
        ...

    def put(self, table: sa.Table) -> Any:
        """Give an ``INSERT`` that knows ``ON CONFLICT``."""
        ...

    def advise(self, error: BaseException) -> str:
        """Say in one line what is wrong, and what to do."""
        ...

    def passing(self, error: BaseException) -> bool:
        """Tell whether the same transaction, done again at once, is likely to succeed."""
        ...

    def unfit(self, error: BaseException) -> bool:
        """Tell whether it is about the values, and not about the database."""
        ...

    def unblock(self, driver: Any) -> None:
        """Break a connection (the driver's) that another thread has waited for too long."""
        ...


def first_line(error: BaseException) -> str:
    """Give what a driver says, without the statement."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__
