"""SQLite: a file, for one dispatcher (or several on one machine)."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects.sqlite import insert

from spinal.bus.jsontext import dumps, loads

from .contract import NotAStore, StoreError
from .dialect import first_line
from .schema import check_version

#: "SPNL": what tells our files from others', at :data:`_ID_AT` of the file.
APPLICATION_ID: Final = 0x53504E4C
_MAGIC: Final = b"SQLite format 3\0"
_ID_AT: Final = 68
#: ``RETURNING`` came with this one.
OLDEST: Final = (3, 35, 0)

#: Seconds to wait for another process that writes, and between two tries where we wait ourselves.
BUSY: Final = 5.0
AGAIN: Final = 0.02

_ADVICE: Final = (
    ("full", "make room on its disk"),
    ("locked", "another program holds it: stop that one, or try again"),
    ("readonly", "make it writable for this user"),
    ("read-only", "make it writable for this user"),
    ("unable to open", "check that its folder is there and writable for this user"),
    ("i/o error", "check its disk, and the kernel's log"),
    ("malformed", "it is damaged: put a backup in its place"),
)


class Sqlite:
    """A store in a file."""

    keyed = (
        "SELECT json_group_array(json_array(jobs.caller, jobs.key, jobs.id))"
        " FROM json_each(?) AS pair CROSS JOIN jobs"
        " ON jobs.caller = json_extract(pair.value, '$[0]')"
        " AND jobs.key = json_extract(pair.value, '$[1]')"
    )

    def __init__(self, url: sa.URL) -> None:
        if not url.database or not os.path.isabs(url.database):
            raise NotAStore(f"{url}: give the whole path of the file, as in sqlite:////srv/jobs.db")
        self._path = Path(url.database)
        self.name = str(self._path)

    def check(self) -> None:
        """See the contract."""
        if sqlite3.sqlite_version_info < OLDEST:
            need = ".".join(map(str, OLDEST))
            raise NotAStore(
                f"SQLite {sqlite3.sqlite_version} is older than {need}: use a Python with a newer "
                "one, or keep the jobs in PostgreSQL"
            )
        try:
            # 0600, and what SQLite puts beside it gets the same mode.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            with self._path.open("rb") as file:
                head = file.read(100)
        except OSError as exc:
            raise StoreError(
                f"{self.name}: {exc.strerror}: check that its folder is there and writable"
            ) from exc
        if not head:
            self._sign()
        elif not head.startswith(_MAGIC):
            raise NotAStore(f"{self.name} is not an SQLite file: give the store another path")
        elif int.from_bytes(head[_ID_AT : _ID_AT + 4], "big") != APPLICATION_ID:
            raise NotAStore(
                f"{self.name} is an SQLite file of another program: give the store another path"
            )
        else:
            self._check_version()

    def _sign(self) -> None:
        """Write our id into a file that is still empty, before anything else is in it."""
        try:
            with closing(sqlite3.connect(self._path, timeout=BUSY, isolation_level=None)) as fresh:
                # In the file itself, where check looks, as long as there is no other journal.
                fresh.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                _keep_log(fresh)
        except sqlite3.Error as exc:
            raise StoreError(self.advise(exc)) from exc

    def _check_version(self) -> None:
        # Read-only, so that not even what a crash left beside the file is worked into it; and if
        # there is nothing beside it, so that nothing comes to be there.
        how = "mode=ro" if Path(f"{self._path}-wal").exists() else "immutable=1"
        try:
            with closing(
                sqlite3.connect(f"{self._path.as_uri()}?{how}", uri=True, timeout=BUSY)
            ) as there:
                found = (
                    there.execute(
                        "SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"
                    ).fetchone()
                    and there.execute("SELECT version_num FROM alembic_version").fetchone()
                )
        except sqlite3.Error as exc:
            raise StoreError(self.advise(exc)) from exc
        check_version(found[0] if found else None, self.name)

    def engine(self) -> sa.Engine:
        """See the contract."""
        engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(self._path)), connect_args={"timeout": BUSY}
        )
        event.listen(engine, "connect", _connected)
        event.listen(engine, "begin", _begin)
        return engine

    def prepare(self, connection: sa.Connection) -> None:
        """See the contract."""
        # There is one writer at a time, from the beginning of its transaction.

    def several(self, values: Sequence[str | int]) -> Any:
        """See the contract."""
        return dumps(values).decode()

    def at_once(self, query: sa.Select[*tuple[Any, ...]]) -> sa.Select[*tuple[Any, ...]]:
        """See the contract."""
        # Each row is a step of its own, and each step may have to wait for the interpreter's lock.
        found = query.subquery("found")
        return sa.select(sa.func.json_group_array(sa.func.json_array(*found.columns)))

    def rows(self, answer: Sequence[Any]) -> Sequence[Sequence[Any]]:
        """See the contract."""
        found: Sequence[Sequence[Any]] = loads(answer[0][0].encode())
        return found

    def pairs(self, keys: Sequence[tuple[str, str]]) -> tuple[Any, ...]:
        """See the contract."""
        return (dumps(keys).decode(),)

    def put(self, table: sa.Table) -> Any:
        """See the contract."""
        return insert(table)

    def advise(self, error: BaseException) -> str:
        """See the contract."""
        said = first_line(error)
        todo = next((todo for word, todo in _ADVICE if word in said.lower()), "try again")
        return f"the store {self.name}: {said}: {todo}"

    def passing(self, error: BaseException) -> bool:
        """See the contract."""
        return False

    def unfit(self, error: BaseException) -> bool:
        """See the contract."""
        # The last two are what its versions say of a type that they do not know.
        kinds = sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError
        return isinstance(error, (*kinds, sqlite3.ProgrammingError))

    def unblock(self, driver: Any) -> None:
        """See the contract."""
        driver.interrupt()


def _connected(driver: sqlite3.Connection, record: object) -> None:
    # The module's own transactions begin late and end before some statements; ours do neither.
    driver.isolation_level = None
    _keep_log(driver)
    for pragma in (
        # A commit returns when the log is on the disk; NORMAL would leave that for later.
        "synchronous = FULL",
        "foreign_keys = ON",
        "wal_autocheckpoint = 2000",
    ):
        driver.execute(f"PRAGMA {pragma}").close()


def _keep_log(driver: sqlite3.Connection) -> None:
    """Have writes go to a log; waits for others who use the file, which SQLite itself does not here.

    Only the first change of a file needs it for itself; later it is so already.
    """
    until = time.monotonic() + BUSY
    while True:
        try:
            driver.execute("PRAGMA journal_mode = WAL").close()
            return
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc) or time.monotonic() > until:
                raise
        time.sleep(AGAIN)


def _begin(connection: sa.Connection) -> None:
    # A transaction that read first could not be sure to get the lock for writing later.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
