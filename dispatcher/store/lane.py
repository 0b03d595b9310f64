"""A thread with a connection of its own, and transactions on it, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc as errors
from sqlalchemy.sql.compiler import SQLCompiler

from spinal.protocols import LocalProtocolError, SpinalError

from .contract import StoreError
from .dialect import Dialect, first_line

_T = TypeVar("_T")

#: Seconds after which a connection that does not answer is broken.
PATIENCE: Final = 45.0

#: Times that a transaction is tried.
TRIES: Final = 4

#: Rows that a statement with a table of values has.
_ROWS: Final = (128, 32, 8, 2, 1)


class Statement:
    """SQL text that was made once and goes to the driver as it is, with values in the right order.

    Past SQLAlchemy, whose account of each statement costs more than most statements do.

    Args:
        engine: whose connections it runs on.
        clause: what to run.
        names: the parameters in their order, where their number decides what the text is.
    """

    def __init__(
        self, engine: sa.Engine, clause: sa.ClauseElement, names: Sequence[str] | None = None
    ) -> None:
        compiled = clause.compile(
            dialect=engine.dialect, column_keys=None if names is None else list(names)
        )
        assert isinstance(compiled, SQLCompiler)
        if names is not None:
            assert compiled.positiontup == list(names), compiled.positiontup
        self.text = str(compiled)

    def all(self, connection: sa.Connection, *parameters: Any) -> Sequence[Any]:
        """Run it once."""
        found: Sequence[Any] = driver_of(connection).execute(self.text, parameters).fetchall()
        return found

    def many(self, connection: sa.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Run it for each row."""
        if rows:
            driver_of(connection).cursor().executemany(self.text, rows)


class Table:
    """SQL text with a table of values in it, which is run once for many rows.

    A driver lets go of the interpreter's lock for each step of a statement and then waits until it
    gets it back; with one statement for many rows the database works while the event loop does.

    Args:
        text: with ``{}`` where the rows go.
        row: one row.
    """

    def __init__(self, text: str, row: str) -> None:
        self._row = row
        #: By their numbers of rows, largest first: few, because drivers keep what they prepared.
        self._texts = [(count, text.format(", ".join([row] * count))) for count in _ROWS]

    def many(self, connection: sa.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Run it for all rows."""
        driver = driver_of(connection)
        at = 0
        for count, text in self._texts:
            while len(rows) - at >= count:
                driver.execute(text, [*chain.from_iterable(rows[at : at + count])])
                at += count


def driver_of(connection: sa.Connection) -> Any:
    """Give the driver's own connection."""
    return connection.connection.driver_connection


class Lane:
    """One thread, one connection.

    A connection that broke is made anew, and its transaction tried again once, so nothing may go in
    there that would do harm when it happens twice.
    """

    def __init__(self, engine: sa.Engine, dialect: Dialect, name: str, *, writes: bool) -> None:
        self._engine = engine.execution_options(writes=writes)
        self._dialect = dialect
        #: What the driver raises, where nothing translates it.
        self._errors: Any = engine.dialect.loaded_dbapi
        self._thread = ThreadPoolExecutor(1, f"store {name}")
        self._connection: sa.Connection | None = None
        self._driver: Any = None

    async def run(self, work: Callable[[sa.Connection], _T]) -> _T:
        """Do something in a transaction; being cancelled does not stop it.

        Raises:
            StoreError: it cannot be done now, and nothing of it was.
            LocalProtocolError: the database does not take the values.
        """
        loop = asyncio.get_running_loop()
        watch = loop.call_later(PATIENCE, self._unblock)
        try:
            return await loop.run_in_executor(self._thread, self.transact, work)
        finally:
            watch.cancel()

    def transact(self, work: Callable[[sa.Connection], _T]) -> _T:
        """Do something in a transaction, in the thread."""
        tries = 0
        while True:
            tries += 1
            try:
                connection = self._connect()
                with connection.begin():
                    return work(connection)
            except (errors.DBAPIError, self._errors.Error) as exc:
                cause = exc
                lost = self._lost(exc)
                if isinstance(exc, errors.DBAPIError):
                    cause, lost = exc.orig or exc, exc.connection_invalidated
                if self._connection is not None and (lost or self._connection.in_transaction()):
                    self._disconnect()
                unfit = not lost and self._dialect.unfit(cause)
                # Two dispatchers may insert the same key at once: the second one has to look again.
                passing = isinstance(cause, self._errors.IntegrityError) or self._dialect.passing(
                    cause
                )
                if (lost and tries == 1) or (passing and tries < TRIES):
                    continue
                if unfit:
                    raise _unfit(cause) from exc
                raise StoreError(self._dialect.advise(cause)) from exc
            # What the drivers say of numbers and characters that no column can hold.
            except (OverflowError, UnicodeError) as exc:
                raise _unfit(exc) from exc

    def _lost(self, error: Any) -> bool:
        return self._engine.dialect.is_disconnect(error, self._driver, None)

    def _connect(self) -> sa.Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            self._driver = self._connection.connection.driver_connection
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection, self._driver = self._connection, None, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _unblock(self) -> None:
        driver = self._driver
        if driver is not None:
            self._dialect.unblock(driver)

    async def close(self) -> None:
        """Close the connection and end the thread, after what was asked for before."""
        loop = asyncio.get_running_loop()
        watch = loop.call_later(PATIENCE, self._unblock)
        try:
            await loop.run_in_executor(self._thread, self._disconnect)
        finally:
            watch.cancel()
            self._thread.shutdown(wait=False)


def _unfit(error: BaseException) -> SpinalError:
    return LocalProtocolError(f"the store does not take it: {first_line(error)}", "bad-arguments")
