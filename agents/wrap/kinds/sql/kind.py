"""Statements that are sent to a database for each call.

They stand in the manifest, and arguments are bound to their parameters: nothing that a caller gives
becomes part of a statement.  A transaction reads only, unless the manifest says that it writes; the
database itself sees to that.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import decimal
import ipaddress
import math
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

import msgspec

from spinal.bus.errors import CallError
from spinal.bus.tasks import Tasks
from spinal.protocols import LIMITS, MAX_INTEGER, Json, Problem

from .... import secret
from ....errors import AgentError, Refused, Retry
from ....secret import Secret
from ...kind import Call, Host, Kind, Site
from ..http import quoting
from .database import DATABASES, Database, SQLite
from .statement import Statement

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult, Engine
    from sqlalchemy.exc import DBAPIError

#: Rows that are taken if the manifest does not say, and how many are fetched at a time.
ROWS: Final = 1000
FETCH: Final = 100

#: First words of what the database can hold open while rows are fetched.
_CURSORS: Final = frozenset({"select", "with", "values", "table"})

#: Connections at once if the manifest has no slots.
CONNECTIONS: Final = 16

#: Bytes of a file that can be bound.
FILE: Final = 16 * 1024 * 1024

#: Seconds in which a cancelled statement has to end, before its connection is broken.
GRACE: Final = 4.0


@dataclass(slots=True, eq=False)
class _Running:
    """A transaction in a thread, as seen from outside."""

    until: float
    #: The driver's connection while it is ours, which the lock keeps true.
    raw: Any = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    connected: bool = False
    #: Whether the end of it was sent, after which nobody knows without an answer.
    committing: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def on(self, connection: Connection) -> Generator[None]:
        """Run on a connection for a block; one that was interrupted is not used again."""
        self.connected = True
        with self.lock:
            self.raw = connection.connection.driver_connection
        try:
            yield
        finally:
            with self.lock:
                self.raw = None
            if self.cancelled.is_set():
                connection.invalidate()

    def end(self, how: Callable[[Any], None]) -> None:
        """Do something to the driver's connection, if it still is ours."""
        with self.lock:
            if self.raw is not None:
                how(self.raw)


class Sql(Kind):
    """Sends statements."""

    SCHEMA: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "properties": {
            "url": {
                "type": "string",
                "minLength": 1,
                "description": "The database, as SQLAlchemy names it, without a password.",
                "examples": ["postgresql+psycopg://app@127.0.0.1:5432/shop"],
            },
            "password": secret.SCHEMA,
            "query": {
                "type": "string",
                "minLength": 1,
                "description": "One statement. :name is an argument, bound and never filled in.",
                "examples": ["select id, name from customers where name ilike :name"],
            },
            "statements": {
                "type": "array",
                "items": {"type": "string", "minLength": 1},
                "minItems": 1,
                "maxItems": 100,
                "description": "Several, in one transaction; the result is that of the last one.",
                "examples": [["update stock set n = n - 1 where id = :id", "select 1"]],
            },
            "writes": {
                "type": "boolean",
                "default": False,
                "description": "It may write; without, the database itself keeps it from that.",
            },
            "rows": {
                "type": "integer",
                "minimum": 1,
                "maximum": 10_000,
                "description": "Most rows (1000); more is an error.",
                "examples": [100],
            },
            "cut": {"type": "boolean", "description": "More is no error: leave them out."},
            "one": {
                "enum": [False, True, "row", "value"],
                "description": "The result is no list: a single row, or the value of its only "
                "column.",
            },
            "empty": {
                "type": "string",
                "minLength": 1,
                "description": "No row is refused, with these words.",
                "examples": ["no such customer"],
            },
        },
        "required": ["url"],
        "additionalProperties": False,
        "description": "Statements with parameters, in a transaction that reads only.",
        "examples": [
            {
                "url": "postgresql+psycopg://app@127.0.0.1:5432/shop",
                "password": {"env": "SHOP_DB_PASSWORD"},
                "query": "select id, name from customers where name ilike :name",
            }
        ],
    }

    result = Any

    def __init__(
        self,
        database: Database,
        statements: Sequence[Statement],
        *,
        writes: bool = False,
        rows: int = ROWS,
        cut: bool = False,
        one: str | bool = False,
        empty: str = "",
        threads: int = CONNECTIONS,
    ) -> None:
        self._database = database
        self._statements = statements
        self._writes = writes
        self._most = 1 if one else rows
        self._cut = cut
        self._one = "row" if one is True else one
        self._empty = empty
        self._slots = threads
        self._names = list(dict.fromkeys(n for one in statements for n in one.names))
        self._engine: Engine | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._tasks: Tasks | None = None
        self._running: set[_Running] = set()

    # -- reading

    @classmethod
    def read(cls, site: Site) -> Sql:
        """Read it."""
        from sqlalchemy import URL

        said: Mapping[str, Any] = site.value
        writes: bool = said.get("writes", False)
        slots: int = site.op.get("slots") or site.document.value.get("slots") or CONNECTIONS
        if writes and site.op.get("effects") == "reads":
            site.wrong(
                "reads is not what it does, with sql.writes: write effects: writes", "effects"
            )
        if site.op.get("output", "json") != "json":
            site.wrong("rows come as JSON: leave it out", "output")
        if "rows" in said and said.get("one"):
            site.wrong("goes with a list, and one is a single row: leave it out", site.key, "rows")
        database = _database(site, writes, slots)
        statements = list(_statements(site, writes, database is not None and database.mysql))
        for name in (n for one in statements for n in one.names):
            kind = site.arguments[name].type
            if kind == "object" or (kind == "array" and database and not database.lists):
                site.wrong(
                    f":{name} is of type {kind}, which this database cannot take: write a string, and "
                    "JSON in it",
                    *(site.key, "query" if "query" in said else "statements"),
                )
        return cls(
            # Whatever is returned with a mistake is not used.
            database or SQLite(URL.create("sqlite"), None, False, 1, site.folder),
            statements,
            writes=writes,
            rows=said.get("rows", ROWS),
            cut=said.get("cut", False),
            one=said.get("one", False),
            empty=said.get("empty", ""),
            threads=slots,
        )

    def lacks(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Say if the driver, the file or the password is not here."""
        for key, words in self._database.lacks():
            yield ("sql", key), words

    # -- running

    @contextlib.asynccontextmanager
    async def open(self, host: Host) -> AsyncGenerator[None]:
        """Keep connections for a block, one for each slot that was used."""
        self._engine = self._database.engine()
        self._threads = ThreadPoolExecutor(self._slots, "sql")
        self._tasks = Tasks("sql")
        try:
            yield
        finally:
            await self._tasks.close()
            # A thread that waits for a silent server would hold up the end of the process.
            for running in list(self._running):
                running.cancelled.set()
                await asyncio.to_thread(running.end, self._database.sever)
            self._threads.shutdown(wait=False, cancel_futures=True)
            await asyncio.to_thread(self._engine.dispose)
            self._engine = self._threads = self._tasks = None

    async def run(self, call: Call) -> Any:
        """Run the statements in one transaction; cancelled, what runs is ended in the database."""
        quoting.unicode(call)
        values = {name: await self._bound(call, name) for name in self._names}
        tasks = self._tasks
        if self._threads is None or tasks is None:
            raise AgentError("this operation is not open")
        running = _Running(time.monotonic() + call.job.remaining)
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._threads, self._work, running, values)
        self._running.add(running)
        future.add_done_callback(lambda _: self._running.discard(running))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # Not ours to be cancelled again: the slot is free once the statement has ended.
            running.cancelled.set()
            await asyncio.shield(tasks.spawn(self._end(future, running), "end a statement"))
            raise

    async def _end(self, future: asyncio.Future[Any], running: _Running) -> None:
        loop = asyncio.get_running_loop()
        patience = loop.time() + GRACE
        while not future.done():
            late = loop.time() > patience
            end = self._database.sever if late else self._database.interrupt
            await asyncio.to_thread(running.end, end)
            # It may not have begun when it was interrupted.
            await asyncio.wait((future,), timeout=0.1)
        if not future.cancelled():
            future.exception()  # The caller has gone.

    async def _bound(self, call: Call, name: str) -> Any:
        """Give an argument as its driver takes it."""
        value = call.args.get(name)
        kind = call.arguments[name].type
        if value is None:
            return None
        if kind == "file":
            if value.size > FILE:
                raise call.bad(name, f"larger than {FILE} bytes")
            return await value.read()
        several: list[Any] = value if kind == "array" else [value]
        for item in several:
            if isinstance(item, (list, dict)):
                raise call.bad(name, "only a list of texts and numbers can be bound")
            if isinstance(item, str) and "\0" in item and not self._database.nul:
                raise call.bad(name, "it has a NUL character, which no text of this database holds")
            if type(item) is int and not -(2**63) <= item < 2**63:
                raise call.bad(name, "it takes more than 64 bits")
        return value

    # -- in a thread

    def _work(self, running: _Running, values: Mapping[str, Any]) -> Any:
        from sqlalchemy.exc import DBAPIError

        for last in (False, True):
            try:
                return self._transaction(running, values)
            except DBAPIError as exc:
                # A connection that broke while nobody used it shows only now.  What it had not
                # committed is undone, so that a second time does no harm.
                lost = exc.connection_invalidated and running.connected
                if lost and not (last or running.committing or running.cancelled.is_set()):
                    running.connected = False
                    continue
                self._failed(exc, running)
        raise AssertionError("the second time is the last")

    def _transaction(self, running: _Running, values: Mapping[str, Any]) -> Any:
        assert self._engine is not None
        if running.cancelled.is_set():
            raise AgentError("it was cancelled before it began")
        with self._engine.connect() as connection, running.on(connection):
            self._database.begin(connection, running.until - time.monotonic(), self._most)
            found: Any = None
            for statement in self._statements:
                if running.cancelled.is_set():
                    raise AgentError("it was cancelled")
                bound = {name: values[name] for name in statement.names}
                with contextlib.closing(self._executed(connection, statement, bound)) as result:
                    if statement is self._statements[-1]:
                        found = self._taken(result)
            running.committing = self._writes
            connection.commit()
            return found

    def _executed(
        self, connection: Connection, statement: Statement, bound: Mapping[str, Any]
    ) -> CursorResult[Any]:
        from sqlalchemy import text

        options: dict[str, Any] = {}
        if not self._writes and statement.verb in _CURSORS:
            # Rows stay in the database until they are wanted, so that no query fills our memory.
            options = {"stream_results": True, "max_row_buffer": FETCH}
        return connection.execute(text(statement.text), bound, execution_options=options)

    def _taken(self, result: CursorResult[Any]) -> Any:
        """Make the result of the rows."""
        if not result.returns_rows:
            return {"rows": max(0, result.rowcount)}
        keys = list(result.keys())
        double = next((key for key in keys if keys.count(key) > 1), None)
        if double is not None:
            raise _failure(f"two columns are named {double}: tell them apart with as")
        most = self._most
        found: list[dict[str, Json]] = []
        size = 0
        while len(found) <= most:
            part = result.fetchmany(min(FETCH, most + 1 - len(found)))
            if not part:
                break
            for row in part:
                found.append({key: _plain(item, key) for key, item in zip(keys, row, strict=True)})
                size += len(msgspec.json.encode(found[-1]))
                if size > LIMITS.inline:
                    words = f"the rows take more than {LIMITS.inline} bytes: ask for less"
                    raise CallError.of(Problem("too-large", words))
        if len(found) > most:
            if not self._cut:
                what = "one row" if self._one else f"{most} rows (sql: rows)"
                raise CallError.of(Problem("too-large", f"there are more than {what}"))
            del found[most:]
        if not found and (self._empty or self._one):
            raise Refused(self._empty or "there is no such row")
        if not self._one:
            return found
        if self._one == "row":
            return found[0]
        if len(keys) != 1:
            raise _failure(f"one: value is for one column, and there are {len(keys)}")
        return found[0][keys[0]]

    def _failed(self, exc: DBAPIError, running: _Running) -> NoReturn:
        """Tell what the database says, and never the statement."""
        error = exc.orig or exc
        words = self._database.words(error)
        if not running.connected:
            raise Retry(f"the database cannot be reached: {words}") from exc
        if exc.connection_invalidated:
            if running.committing:
                words = f"the database broke off at the end: it may have been done: {words}"
                raise _failure(words) from exc
            raise Retry(f"the database broke off, and nothing was done: {words}") from exc
        match self._database.meaning(error):
            case "refused":
                raise Refused(words) from exc
            case "retry":
                raise Retry(words) from exc
            case "deadline":
                problem = Problem("deadline", "the statement took too long, and was ended")
                raise CallError.of(problem) from exc
            case "writes":
                raise _failure(f"{words}: write writes: true if it may") from exc
            case _:
                raise _failure(words) from exc


def _failure(words: str) -> CallError:
    return CallError.of(Problem("failed", words))


def _database(site: Site, writes: bool, slots: int) -> Database | None:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    said: Mapping[str, Any] = site.value
    where = (site.key, "url")
    text: str = said["url"]
    if "{" in text or "}" in text:
        site.wrong("a database cannot come from an argument: write it out", *where)
        return None
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        site.wrong(
            "is no URL of a database: write for example postgresql+psycopg://app@127.0.0.1:5432/shop "
            "or sqlite:///shop.db",
            *where,
        )
        return None
    hidden = [key for key in url.query if "password" in key]
    if url.password is not None or hidden:
        site.wrong(
            "a password stands here by reference: leave it out, and write password: {env: NAME} or "
            "{file: PATH} below",
            *where,
        )
        return None
    known = DATABASES.get(url.get_backend_name())
    if known is None:
        site.wrong(
            f"{url.get_backend_name()} is not known here: write postgresql+psycopg://, mysql+pymysql:// "
            "or sqlite://",
            *where,
        )
        return None
    for words in known.mistakes(url):
        site.wrong(words, *where)
    if known is SQLite and "password" in said:
        site.wrong("SQLite has no passwords: leave it out", site.key, "password")
    password = Secret.of(said["password"], site.folder) if "password" in said else None
    return known(url, password, writes, slots, site.folder)


def _statements(site: Site, writes: bool, mysql: bool) -> Iterator[Statement]:
    said: Mapping[str, Any] = site.value
    if ("query" in said) == ("statements" in said):
        has = "has query and statements: keep one" if "query" in said else "asks nothing"
        site.wrong(f"{has}; write for example query: select 1 as one", site.key)
        return
    texts: list[tuple[str, tuple[str | int, ...]]] = [
        (text, ("statements", place)) for place, text in enumerate(said.get("statements", ()))
    ]
    for text, steps in texts or [(said["query"], ("query",))]:
        where = (site.key, *steps)
        try:
            found = Statement.of(text, site.arguments, mysql)
        except ValueError as exc:
            site.wrong(str(exc), *where)
            continue
        if not found.reads and not writes:
            site.wrong(f"{found.verb} does more than read: write writes: true beside it", *where)
        site.used.update(found.names)
        yield found


def _plain(value: Any, column: str) -> Json:
    """Bring a value into JSON; dates, decimals and bytes become strings (docs/protocol.md, 4)."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if abs(value) <= MAX_INTEGER else str(value)
        case float() | decimal.Decimal() if not math.isfinite(value):
            raise _failure(f"column {column} has {value}, which is no number of JSON: nullif() it")
        case float():
            return value
        case decimal.Decimal():
            return format(value, "f")
        case datetime.date() | datetime.time() | datetime.timedelta():
            return msgspec.to_builtins(value)
        case uuid.UUID() | ipaddress.IPv4Address() | ipaddress.IPv6Address():
            return str(value)
        case ipaddress.IPv4Interface() | ipaddress.IPv6Interface():
            return str(value)
        case ipaddress.IPv4Network() | ipaddress.IPv6Network():
            return str(value)
        case bytes():
            return base64.b64encode(value).decode()
        case _:
            return _several(value, column)


def _several(value: Any, column: str) -> Json:
    if isinstance(value, (list, tuple)):
        items: Sequence[Any] = [*value]  # pyright: ignore[reportUnknownVariableType]
        return [_plain(item, column) for item in items]
    if isinstance(value, dict):
        members: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
        return {str(key): _plain(item, column) for key, item in members.items()}
    kind = type(value).__name__
    raise _failure(f"column {column} has a {kind}, which has no form in JSON: cast it to text")
