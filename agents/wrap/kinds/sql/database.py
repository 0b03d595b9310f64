"""A database behind SQLAlchemy: connecting, reading only, bounding a statement and ending it.

One class for each database that we know.  Others are not taken: whether they keep a transaction
from writing, or end a statement, would be a guess.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sqlite3
import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import quote

from ....errors import one_line
from ....secret import Secret

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

#: Seconds until a connection has to be there, and until a server that says nothing is given up.
CONNECT: Final = 10
SILENCE: Final = 30

#: Seconds that SQLite waits for another writer, and longest value that it makes, in bytes.
BUSY: Final = 2.0
VALUE: Final = 16 * 1024 * 1024

#: Classes and codes of errors (PostgreSQL, appendix A) that mean something to the caller: the
#: transaction is undone in all of them.
_STATES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("22", "23", "P0001"), "refused"),
    **dict.fromkeys(("40", "53", "08", "55P03", "57P01", "57P02", "57P03", "57P05"), "retry"),
    "57014": "deadline",
    "25006": "writes",
}

#: The same for MySQL and MariaDB, by number: what a constraint, a type or a trigger refuses; locks
#: and too many connections; what took too long or was ended; and what would have written.
_MYSQL_CODES: Final[Mapping[int, str]] = {
    **dict.fromkeys((1048, 1062, 1264, 1292, 1366, 1406, 1451, 1452, 1644, 3819, 4025), "refused"),
    **dict.fromkeys((1040, 1205, 1213), "retry"),
    **dict.fromkeys((1317, 1969, 3024), "deadline"),
    1792: "writes",
}
_MYSQL_TLS: Final = ("ssl_ca", "ssl_disabled")

_UNVERIFIED: Final = ("allow", "prefer", "require")


class Database(ABC):
    """One database, and how it is treated.

    Args:
        url: where it is, without a password.
        password: of its user.
        writes: whether statements may write.
        slots: connections at once.
        folder: where relative paths start.
    """

    #: Whether a list can be bound.
    lists: ClassVar[bool] = False
    #: Whether its SQL has the texts and comments of MySQL.
    mysql: ClassVar[bool] = False
    #: Whether a text may hold a NUL character.
    nul: ClassVar[bool] = False

    def __init__(
        self, url: URL, password: Secret | None, writes: bool, slots: int, folder: Path
    ) -> None:
        self.url = url
        self._password = password
        self._writes = writes
        self._slots = slots
        self._folder = folder

    @classmethod
    @abstractmethod
    def mistakes(cls, url: URL) -> Iterator[str]:
        """Give what is wrong with a URL, and what to write."""

    def lacks(self) -> Iterator[tuple[str, str]]:
        """Give what is missing on this machine, and under which key it is named."""
        if self._password is not None and (why := self._password.missing()):
            yield "password", why

    @abstractmethod
    def engine(self) -> Engine:
        """Make the pool; it connects when it is used."""

    @abstractmethod
    def begin(self, connection: Connection, seconds: float, rows: int) -> None:
        """Begin a transaction, in which a statement takes no longer than that.

        No more than so many rows are wanted.
        """

    @abstractmethod
    def interrupt(self, raw: Any) -> None:
        """End the statement that a driver's connection runs, if it does; from another thread."""

    def sever(self, raw: Any) -> None:
        """Break a driver's connection that does not answer."""
        self.interrupt(raw)

    @abstractmethod
    def meaning(self, error: BaseException) -> str:
        """Say what an error of the driver means: refused, retry, deadline, writes or error."""

    def words(self, error: BaseException) -> str:
        """Give the words of an error of the driver, in one line."""
        return one_line(str(error).strip().partition("\n")[0], 300) or type(error).__name__

    def _made(self, **options: Any) -> Engine:
        from sqlalchemy import QueuePool, create_engine

        return create_engine(
            self.url,
            poolclass=QueuePool,
            pool_size=self._slots,
            max_overflow=0,
            hide_parameters=True,
            **options,
        )


class Postgres(Database):
    """PostgreSQL, by psycopg."""

    lists = True

    @classmethod
    def mistakes(cls, url: URL) -> Iterator[str]:
        """Give what is wrong with a URL."""
        if url.get_driver_name() != "psycopg":
            yield "write postgresql+psycopg://, which is the driver that is known here"
        if (mode := url.query.get("sslmode")) in _UNVERIFIED:
            yield (
                f"sslmode={mode} verifies no certificate: write sslmode=verify-full and sslrootcert, "
                "or sslmode=disable where nobody else is on the network"
            )

    def lacks(self) -> Iterator[tuple[str, str]]:
        """Say if the driver or the password is not here."""
        if find_spec("psycopg") is None:
            yield "url", "its driver is not here: pip install 'spinal[postgres]'"
        yield from super().lacks()

    def engine(self) -> Engine:
        """Make the pool."""
        import psycopg
        from sqlalchemy import event

        class Cursor(psycopg.ServerCursor[Any]):
            """One that is closed in any case: the driver's stays open if its connection breaks then."""

            def close(self) -> None:
                try:
                    super().close()
                finally:
                    psycopg.Cursor.close(self)

        made = self._made(
            connect_args={
                **self._tls(),
                "application_name": "spinal",
                "connect_timeout": CONNECT,
                "keepalives_idle": SILENCE,
                "tcp_user_timeout": SILENCE * 1000,
            }
        )

        def connecting(dialect: Any, record: Any, args: Any, parameters: dict[str, Any]) -> None:
            # Read each time, so that a new one is taken without a restart.
            if self._password is not None:
                parameters["password"] = self._password.read()

        def connected(raw: Any, record: Any) -> None:
            # Each transaction then begins as one that reads only.
            raw.read_only = not self._writes
            raw.server_cursor_factory = Cursor

        def failed(context: Any) -> None:
            # SQLAlchemy forgets it with a connection that broke, and the driver minds.
            cursor = getattr(context.execution_context, "cursor", None)
            if cursor is not None and context.is_disconnect:
                with contextlib.suppress(context.dialect.dbapi.Error):
                    cursor.close()

        event.listen(made, "do_connect", connecting)
        event.listen(made, "connect", connected)
        event.listen(made, "handle_error", failed)
        return made

    def _tls(self) -> dict[str, str]:
        """Verify a server on another machine, unless the URL says what to do."""
        host = str(self.url.host or self.url.query.get("host") or "/")
        if "sslmode" in self.url.query or host.startswith("/") or _local(host):
            return {}
        import psycopg

        found = {"sslmode": "verify-full"}
        if "sslrootcert" not in self.url.query and psycopg.pq.version() >= 160000:
            found["sslrootcert"] = "system"
        return found

    def begin(self, connection: Connection, seconds: float, rows: int) -> None:
        """Begin a transaction; rows wait in the server until they are fetched."""
        milliseconds = max(1, min(int(seconds * 1000), 2**31 - 1))
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {milliseconds}")

    def interrupt(self, raw: Any) -> None:
        """Ask the server to cancel."""
        import psycopg

        # Whoever does not answer is severed a little later.
        with contextlib.suppress(psycopg.Error):
            raw.cancel_safe(timeout=2.0)

    def sever(self, raw: Any) -> None:
        """Shut the socket, which the waiting thread sees."""
        import psycopg

        with (
            contextlib.suppress(psycopg.Error, OSError),
            socket.socket(fileno=os.dup(raw.fileno())) as ours,
        ):
            ours.shutdown(socket.SHUT_RDWR)

    def meaning(self, error: BaseException) -> str:
        """Say what an error means, by its SQLSTATE."""
        state = getattr(error, "sqlstate", None) or ""
        return _STATES.get(state) or _STATES.get(state[:2]) or "error"

    def words(self, error: BaseException) -> str:
        """Give the first words, which hold no statement."""
        diagnostics = getattr(error, "diag", None)
        first = getattr(diagnostics, "message_primary", None)
        return one_line(first, 300) if first else super().words(error)


class SQLite(Database):
    """A file of SQLite."""

    nul = True

    @classmethod
    def mistakes(cls, url: URL) -> Iterator[str]:
        """Give what is wrong with a URL."""
        if url.get_driver_name() != "pysqlite":
            yield "write sqlite:///PATH, which is the driver that is known here"
        if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
            yield "names no file: write sqlite:////var/lib/shop.db, or sqlite:///shop.db beside it"
        if url.query:
            yield "takes nothing after '?': leave it out"
        if url.username or url.host:
            yield "is a file and has no user or host: write sqlite:////var/lib/shop.db"

    @property
    def path(self) -> Path:
        """The file."""
        return self._folder / (self.url.database or "")

    def lacks(self) -> Iterator[tuple[str, str]]:
        """Say if the file is not here."""
        if not self.path.is_file():
            yield "url", f"there is no file {self.path}"
        yield from super().lacks()

    def engine(self) -> Engine:
        """Make the pool."""
        # Never one that makes a file that is not there.
        where = f"file:{quote(str(self.path))}?mode={'rw' if self._writes else 'ro'}"

        def connect() -> sqlite3.Connection:
            raw = sqlite3.connect(
                where, uri=True, timeout=BUSY, isolation_level=None, check_same_thread=False
            )
            raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE)
            if not self._writes:
                raw.execute("PRAGMA query_only = ON").close()
            return raw

        return self._made(creator=connect)

    def begin(self, connection: Connection, seconds: float, rows: int) -> None:
        """Begin a transaction; what runs too long is interrupted by whoever waits for it."""
        connection.exec_driver_sql("BEGIN IMMEDIATE" if self._writes else "BEGIN")

    def interrupt(self, raw: Any) -> None:
        """Interrupt it."""
        # It may have been closed meanwhile.
        with contextlib.suppress(sqlite3.ProgrammingError):
            raw.interrupt()

    def meaning(self, error: BaseException) -> str:
        """Say what an error means."""
        if isinstance(error, (sqlite3.IntegrityError, sqlite3.DataError)):
            return "refused"
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return {
            sqlite3.SQLITE_BUSY: "retry",
            sqlite3.SQLITE_LOCKED: "retry",
            sqlite3.SQLITE_CANTOPEN: "retry",
            sqlite3.SQLITE_INTERRUPT: "deadline",
            sqlite3.SQLITE_READONLY: "writes",
        }.get(code, "error")


class MySQL(Database):
    """MySQL and MariaDB, by PyMySQL, which quotes what is bound on our side."""

    nul = True
    mysql = True

    def __init__(
        self, url: URL, password: Secret | None, writes: bool, slots: int, folder: Path
    ) -> None:
        super().__init__(url.difference_update_query(_MYSQL_TLS), password, writes, slots, folder)
        ca = url.query.get("ssl_ca")
        self._ca = folder / str(ca) if ca else None
        self._plain = "ssl_disabled" in url.query or _local(url.host or "localhost")
        #: What the last connection was made with; another one has to end its statement.
        self._parameters: Mapping[str, Any] = {}

    @classmethod
    def mistakes(cls, url: URL) -> Iterator[str]:
        """Give what is wrong with a URL."""
        if url.get_driver_name() != "pymysql":
            yield "write mysql+pymysql://, which is the driver that is known here"
        if unknown := sorted(set(url.query) - {*_MYSQL_TLS, "unix_socket"}):
            yield f"{unknown[0]} is not known here: leave it out, or write ssl_ca, ssl_disabled or unix_socket"

    def lacks(self) -> Iterator[tuple[str, str]]:
        """Say if the driver or the password is not here."""
        if find_spec("pymysql") is None:
            yield "url", "its driver is not here: pip install 'spinal[mysql]'"
        yield from super().lacks()

    def engine(self) -> Engine:
        """Make the pool."""
        from sqlalchemy import event

        options: dict[str, Any] = {"connect_timeout": CONNECT, "charset": "utf8mb4"}
        if not self._plain:
            options["ssl"] = ssl.create_default_context(cafile=self._ca)
        made = self._made(connect_args=options)

        def connecting(dialect: Any, record: Any, args: Any, parameters: dict[str, Any]) -> None:
            if self._password is not None:
                parameters["password"] = self._password.read()
            self._parameters = dict(parameters)

        def connected(raw: Any, record: Any) -> None:
            with raw.cursor() as cursor:
                if not self._writes:
                    cursor.execute("SET SESSION TRANSACTION READ ONLY")
                # Or else it would shorten what is too long, and say nothing.
                cursor.execute("SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')")
            raw.commit()

        event.listen(made, "do_connect", connecting)
        event.listen(made, "connect", connected)
        return made

    def begin(self, connection: Connection, seconds: float, rows: int) -> None:
        """Begin a transaction; those who are not fetched would be read to their end."""
        connection.exec_driver_sql(f"SET SESSION sql_select_limit = {rows + 1}")
        seconds = max(0.001, seconds)
        if getattr(connection.dialect, "is_mariadb", False):
            connection.exec_driver_sql(f"SET SESSION max_statement_time = {seconds:.3f}")
        else:
            connection.exec_driver_sql(f"SET SESSION max_execution_time = {int(seconds * 1000)}")

    def interrupt(self, raw: Any) -> None:
        """Ask the server by another connection to end it."""
        # Whoever does not answer is severed a little later.
        with contextlib.suppress(raw.Error, OSError):
            short = {"connect_timeout": 2, "read_timeout": 2, "write_timeout": 2}
            other = type(raw)(**{**self._parameters, **short})
            with other, other.cursor() as cursor:
                cursor.execute(f"KILL QUERY {int(raw.thread_id())}")

    def sever(self, raw: Any) -> None:
        """Shut the socket, which the waiting thread sees."""
        # There is no public way to it.
        with contextlib.suppress(OSError, AttributeError):
            raw._sock.shutdown(socket.SHUT_RDWR)

    def meaning(self, error: BaseException) -> str:
        """Say what an error means, by its number."""
        return _MYSQL_CODES.get(error.args[0] if error.args else 0, "error")

    def words(self, error: BaseException) -> str:
        """Give its words without the number."""
        return one_line(str(error.args[-1]) if error.args else "", 300) or type(error).__name__


def _local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


#: Backend, as a URL names it -> how it is treated.
DATABASES: Final[Mapping[str, type[Database]]] = {
    "postgresql": Postgres,
    "sqlite": SQLite,
    "mysql": MySQL,
    "mariadb": MySQL,
}
