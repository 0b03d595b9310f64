"""PostgreSQL: a server, for several dispatchers."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, Final

import psycopg
import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql import insert

from .dialect import first_line

log = structlog.get_logger()

#: The tables are in a schema of their own, so that the database may have others.
SCHEMA: Final = "spinal"
#: Whoever migrates has this lock ("SPNL").
_LOCK: Final = 0x53504E4C

#: What every connection asks for, whatever the server's defaults are.
_OPTIONS: Final = {
    "search_path": SCHEMA,
    # A commit returns when the log is on the disk.
    "synchronous_commit": "on",
    "default_transaction_isolation": r"read\ committed",
    "default_transaction_read_only": "off",
    # A client that is gone, or stopped, must not hold its locks for longer than a lease.
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "5s",
    "client_encoding": "UTF8",
}

_TO_DO: Final = "see that PostgreSQL runs and has that database and user"

#: What the server says by its code (SQLSTATE), or the beginning of it.
_ADVICE: Final = (
    ("53", "make room: its disk, memory or connections are used up"),
    ("58", "check its disk, and its log"),
    ("28", "check the user and the password in the URL"),
    ("3D", "make the database with createdb"),
    ("42501", "give the user the right to create a schema there"),
    ("25006", "it is a standby: give the URL of the primary"),
    ("55P03", "another dispatcher holds a lock: try again"),
    ("57014", "it is slow: try again"),
    ("57P", "it was stopped: start it"),
)

#: Deadlock, serialization: the other transaction came first, and is over now.
_PASSING: Final = frozenset({"40P01", "40001"})


class Postgres:
    """A store in a database of a server."""

    keyed = (
        "SELECT jobs.caller, jobs.key, jobs.id FROM jobs"
        " JOIN unnest(%s::text[], %s::text[]) AS pair (caller, key)"
        " ON jobs.caller = pair.caller AND jobs.key = pair.key"
    )

    def __init__(self, url: sa.URL) -> None:
        self._url = url.set(drivername="postgresql+psycopg")
        where = url.host or url.query.get("host") or "localhost"
        self.name = f"{url.database or url.username or ''} on {where}"

    def check(self) -> None:
        """See the contract."""
        # What is there can be seen from inside only: see prepare.

    def engine(self) -> sa.Engine:
        """See the contract."""
        given = self._url.query.get("options", "")
        options = [f"-c {name}={value}" for name, value in _OPTIONS.items()]
        return sa.create_engine(
            self._url.difference_update_query(["options"]),
            paramstyle="format",
            connect_args={
                "application_name": "spinal",
                "connect_timeout": 5,
                # A cable that was cut is noticed, with and without something on the way.
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "tcp_user_timeout": 10_000,
                "options": " ".join([given if isinstance(given, str) else given[-1], *options]),
            },
        )

    def prepare(self, connection: sa.Connection) -> None:
        """See the contract."""
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        there = connection.exec_driver_sql(
            "SELECT 1 FROM pg_namespace WHERE nspname = %s", (SCHEMA,)
        ).first()
        if there is None:
            connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")
        if connection.exec_driver_sql("SHOW fsync").scalar() == "off":
            log.warning("store_not_on_disk", store=self.name, problem="the server has fsync = off")

    def several(self, values: Sequence[str | int]) -> Any:
        """See the contract."""
        return list(values)

    def at_once(self, query: sa.Select[*tuple[Any, ...]]) -> sa.Select[*tuple[Any, ...]]:
        """See the contract."""
        # The server sends all rows together.
        return query

    def rows(self, answer: Sequence[Any]) -> Sequence[Sequence[Any]]:
        """See the contract."""
        return answer

    def pairs(self, keys: Sequence[tuple[str, str]]) -> tuple[Any, ...]:
        """See the contract."""
        return [caller for caller, _ in keys], [key for _, key in keys]

    def put(self, table: sa.Table) -> Any:
        """See the contract."""
        return insert(table)

    def advise(self, error: BaseException) -> str:
        """See the contract."""
        code = getattr(error, "sqlstate", None) or ""
        todo = next((todo for start, todo in _ADVICE if code.startswith(start)), _TO_DO)
        return f"the store {self.name}: {first_line(error)}: {todo}"

    def passing(self, error: BaseException) -> bool:
        """See the contract."""
        return getattr(error, "sqlstate", None) in _PASSING

    def unfit(self, error: BaseException) -> bool:
        """See the contract."""
        if isinstance(error, psycopg.ProgrammingError):
            # The driver does not know the type; the server would have given a code.
            return error.sqlstate is None
        return isinstance(error, psycopg.IntegrityError | psycopg.DataError)

    def unblock(self, driver: psycopg.Connection[Any]) -> None:
        """See the contract."""
        if driver.closed:
            return
        try:
            # Of a copy: the driver closes its own.
            with socket.socket(fileno=os.dup(driver.fileno())) as copy:
                copy.shutdown(socket.SHUT_RDWR)
        except (OSError, psycopg.Error) as exc:
            # It broke by itself just now.
            log.info("connection_gone", store=self.name, error=str(exc))
