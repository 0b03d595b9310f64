"""Where jobs are kept: one contract, and databases behind it."""

from __future__ import annotations

from .contract import NotAStore, Retention, Store

__all__ = ["store_for"]


def store_for(url: str, retention: Retention | None = None) -> Store:
    """Give the store at a URL; nothing is opened or made before :meth:`Store.open`.

    ``sqlite:////srv/spinal/jobs.db`` is a file (the path must be whole), and
    ``postgresql://user@host/database`` a database of a server.

    Raises:
        NotAStore: the URL is of no known kind, or its driver is not installed.
    """
    # SQLAlchemy takes a moment to import, and whoever only reads the contract does without.
    import sqlalchemy as sa
    from sqlalchemy.exc import ArgumentError

    from .database import Database

    retention = retention or Retention()
    try:
        parsed = sa.make_url(url)
    except ArgumentError as exc:
        raise NotAStore(_known("it is no URL")) from exc
    if parsed.drivername == "sqlite":
        from .sqlite import Sqlite

        return Database(Sqlite(parsed), retention)
    if parsed.drivername in ("postgresql", "postgres"):
        try:
            from .postgres import Postgres
        except ImportError as exc:
            raise NotAStore(f"{exc}: pip install 'spinal[postgres]'") from exc
        return Database(Postgres(parsed), retention)
    raise NotAStore(_known(f"{parsed.drivername} is not a kind of store"))


def _known(problem: str) -> str:
    return f"{problem}: give sqlite:////path/of/a/file or postgresql://user@host/database"
