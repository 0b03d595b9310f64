"""Machines join: the tickets of a home, the accounts that come of them, and the desk."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self
from weakref import WeakValueDictionary

import structlog

from spinal import __version__
from spinal.bus.errors import HomeError
from spinal.bus.home import Home, bracketed
from spinal.bus.registration import tell_server
from spinal.bus.server import ServerError
from spinal.bus.server.certificates import Certificates, ensure
from spinal.bus.server.ports import reachable
from spinal.bus.tasks import Tasks
from spinal.protocols import Json

from ..store.contract import FENCED, Keep, LifeOver, Record, Result, StoreError
from . import script, ticket, wheel
from .desk import Desk
from .ticket import KIND, JoiningError, Refused, Ticket
from .wheel import Wheel

log = structlog.get_logger()

#: Seconds for which a ticket is good if nobody says otherwise, and at most.
EXPIRES: Final = 3600.0
MAX_EXPIRES: Final = 7 * 86_400.0
#: Most tickets of a home, and how many are looked at together.
MAX_TICKETS: Final = 10_000
PAGE: Final = 100
#: Seconds between two looks for tickets that may be forgotten.
ROUND: Final = 600.0
#: Seconds after which a desk that could not be opened is tried again.
RETRY: Final = 10.0
#: Times that a record is read again because somebody else has changed it.
TRIES: Final = 5


class Records(Protocol):
    """Where tickets are kept: a part of :class:`~..store.contract.Store`."""

    async def write(self, *changes: Keep) -> Sequence[Result]:
        """Make the changes together."""
        ...

    async def records(self, kind: str, names: Sequence[str] | None = None) -> list[Record]:
        """Give those records of a kind that exist."""
        ...

    async def versions(self, kind: str) -> Mapping[str, int]:
        """Give the version of every record of a kind, by name."""
        ...


@dataclass(frozen=True, slots=True)
class Invitation:
    """A ticket that was just made."""

    ticket: Ticket
    #: ``NAME/SECRET``, which nobody can find out later.
    text: str


class Joining:
    """See the module.  Use as an async context manager, while the store is open.

    Entering opens the desk; one that cannot be opened is said in the log and tried again, because
    the bus works without.

    Args:
        home: whose accounts are made.
        records: where tickets are kept.
        host: name or address by which machines reach this home; by default that of the home.
        index: where pip looks on a new machine; by default what is set there.
        now: milliseconds since 1970 UTC.
    """

    def __init__(
        self,
        home: Home,
        records: Records,
        *,
        host: str = "",
        index: str = "",
        now: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._home = home
        self._records = records
        self._public = host
        self._index = index
        self.now = now
        self._desk: Desk | None = None
        #: Why there is no desk.
        self._closed = "it is not open yet"
        self._wheel: Wheel | None = None
        self._building = asyncio.Lock()
        #: Account -> held while it is made or removed.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks = Tasks("joining")

    # -- life

    async def __aenter__(self) -> Self:
        await self._open()
        self._tasks.spawn(self._rounds(), "tickets")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._tasks.close()
        if self._desk is not None:
            await self._desk.close()

    async def _open(self) -> None:
        try:
            self._home = await asyncio.to_thread(self._home.with_desk)
            files = await asyncio.to_thread(self._certificates)
            desk = Desk(self, self._home.listen, self._home.ports.desk, files)
            await desk.open()
        except (HomeError, ServerError, OSError) as error:
            self._closed = str(error)
            log.error("desk_not_open", error=str(error))
            return
        self._desk = desk
        log.info("desk_open", url=self.url)

    async def _rounds(self) -> None:
        while True:
            if self._desk is None:
                await asyncio.sleep(RETRY)
                await self._open()
                continue
            try:
                await self._forget()
            except (StoreError, LifeOver) as error:
                log.warning("tickets_not_looked_at", error=str(error))
            await asyncio.sleep(ROUND)

    def _certificates(self) -> Certificates:
        home = self._home
        hosts = [self.host, reachable(home.listen)]
        return ensure(home.path / "joining", home.domain, hosts)

    @property
    def host(self) -> str:
        """Name or address by which machines reach this home."""
        return self._public or self._home.public_host or reachable(self._home.listen)

    @property
    def url(self) -> str:
        """Address of the desk."""
        return f"https://{bracketed(self.host)}:{self._home.ports.desk}"

    async def authority(self) -> str:
        """Give the certificate (PEM) of the authority by which the desk is trusted."""
        return await asyncio.to_thread((self._home.path / "joining" / "ca.pem").read_text)

    # -- for whoever orders machines

    async def invite(
        self,
        name: str,
        agents: Mapping[str, str] = {},
        packages: Sequence[str] = (),
        place: Mapping[str, str] = {},
        cost: float | None = None,
        expires: float = EXPIRES,
        *,
        tags: Sequence[str] = (),
    ) -> str:
        """Make a ticket for a machine, and give the script that it is to run first.

        A ticket of this name that nobody has used is not good any more.

        Args:
            name: of the machine, and of the account that it will have.
            agents: name of each agent's file -> its content; none means the machine agent.
            packages: what pip installs for them.
            place: where the machine's agents are, by key.
            cost: price of an hour of the machine.
            expires: seconds after which it cannot join any more.
            tags: of its agents.

        Raises:
            JoiningError: it cannot join here, and why.
            StoreError: the ticket cannot be kept now.
        """
        made = await self.make(
            name,
            files=agents,
            packages=packages,
            run=tuple(agents) or (ticket.MACHINE,),
            place=place,
            tags=tags,
            cost=cost,
            expires=expires,
        )
        return await self.script(made)

    async def script(self, made: Invitation) -> str:
        """Give the script that the machine of a ticket is to run first."""
        found = await self.wheel()
        return script.script(
            script.Boot(
                name=made.ticket.name,
                ticket=made.text,
                url=self.url,
                ca=await self.authority(),
                version=__version__,
                wheel=found.name,
                sha256=found.sha256,
                index=self._index,
            )
        )

    async def make(
        self,
        name: str,
        *,
        files: Mapping[str, str] = {},
        packages: Sequence[str] = (),
        run: Sequence[str] = (ticket.MACHINE,),
        place: Mapping[str, str] = {},
        tags: Sequence[str] = (),
        cost: float | None = None,
        expires: float = EXPIRES,
    ) -> Invitation:
        """Make a ticket; see :meth:`invite`."""
        self._check_open()
        if not 0 < expires <= MAX_EXPIRES:
            raise JoiningError(f"a ticket is good for at most {MAX_EXPIRES / 86_400:g} days")
        now = self.now()
        made, text = ticket.fresh(
            Ticket(
                name=name,
                secret="",
                created=now,
                expires=now + int(expires * 1000),
                files=files,
                packages=packages,
                run=run,
                # Where a machine is says also which one it is.
                place={"machine": f"/{name}", **place},
                tags=tags,
                cost=cost,
            )
        )
        for _ in range(TRIES):
            if name in await asyncio.to_thread(self._home.accounts):
                raise JoiningError(
                    f"there is an account {name!r} already: choose another name, or "
                    f"`spinal account remove {name}` first"
                )
            versions = await self._records.versions(KIND)
            if len(versions) >= MAX_TICKETS:
                raise JoiningError(f"there are {MAX_TICKETS} tickets: revoke some first")
            made = replace(made, version=versions.get(name, 0))
            if await self._keep(made):
                log.info("ticket_made", machine=name, expires=expires)
                return Invitation(made, text)
        raise JoiningError(f"somebody else makes tickets for {name} at this moment: try again")

    async def dismiss(self, name: str) -> None:
        """Remove the account of a machine and its ticket; unknown names are no error.

        Its agents are off the bus when this returns, or within a second or so.

        Raises:
            HomeError: the account cannot be removed.
            StoreError: the ticket cannot be removed now.
            ServerError: the server cannot be told now.
        """
        async with self._turn(name):
            await self.revoke(name)
            roles = await asyncio.to_thread(self._home.accounts)
            if roles.get(name) == "agent":
                await asyncio.to_thread(self._home.remove_account, name)
                log.info("machine_dismissed", machine=name)
            if name not in roles or roles[name] == "agent":
                # Also where a former try got no further than the home.
                await tell_server(self._home, name)

    async def revoke(self, name: str) -> bool:
        """Forget the ticket of a machine; tells whether there was one.  An account stays."""
        for _ in range(TRIES):
            known = await self._ticket(name)
            if known is None:
                return False
            if await self._keep(known, drop=True):
                log.info("ticket_revoked", machine=name)
                return True
        raise JoiningError(f"somebody else uses the ticket of {name} at this moment: try again")

    async def tickets(self) -> list[Ticket]:
        """Give all tickets that are kept, by name."""
        names = sorted(await self._records.versions(KIND))
        found: list[Ticket] = []
        for at in range(0, len(names), PAGE):
            for record in await self._records.records(KIND, names[at : at + PAGE]):
                found.append(ticket.read(record))
        return sorted(found, key=lambda one: one.name)

    # -- for the desk

    async def admit(self, text: str, nonce: str) -> dict[str, Json]:
        """Take a ticket, make its account, and say what its machine needs to know.

        Raises :class:`Refused`, and what :meth:`dismiss` raises.
        """
        name, secret = ticket.split(text)
        async with self._turn(name):
            mine = await self._take(name, secret, nonce)
            await asyncio.to_thread(self._home.add_account, name, "agent")
            await tell_server(self._home, name)
            log.info("machine_joined", machine=name)
            return await asyncio.to_thread(self._answer, mine)

    async def _take(self, name: str, secret: str, nonce: str) -> Ticket:
        for _ in range(TRIES):
            known = await self._ticket(name)
            mine = ticket.taken(known, secret, nonce, self.now())
            if mine is known:
                return mine
            if name in await asyncio.to_thread(self._home.accounts):
                raise Refused(f"there is an account {name!r} already")
            if await self._keep(mine):
                return mine
        raise StoreError(f"somebody else changes the ticket of {name} at this moment")

    def _answer(self, mine: Ticket) -> dict[str, Json]:
        home = self._home
        ca = home.ca
        servers = [(self.host, port) for _, port in home.endpoints]
        return {
            "address": f"{mine.name}@{home.domain}",
            "password": home.password(mine.name),
            "servers": [f"{bracketed(host)}:{port}" for host, port in servers],
            "dispatchers": list(home.dispatchers),
            "uploads": list(home.uploads),
            "ca": None if ca is None else ca.read_text(),
            "agents": [
                {"name": name, "sha256": ticket.digest(content)}
                for name, content in mine.files.items()
            ],
            "packages": list(mine.packages),
            "run": list(mine.run),
            "place": dict(mine.place),
            "tags": list(mine.tags),
            "cost": mine.cost,
        }

    async def file(self, name: str, password: str, sha256: str) -> bytes:
        """Give an agent's file to a machine that has joined.  Raises :class:`Refused`."""
        known = await self._ticket(name)
        expected = ""
        if known is not None and known.used is not None:
            with suppress(HomeError):
                expected = await asyncio.to_thread(self._home.password, name)
        fits = hmac.compare_digest(expected.encode(), password.encode())
        if known is None or not expected or not fits:
            raise Refused("no machine of that name and password")
        content = known.file(sha256)
        if content is None:
            raise Refused(f"{name} has no file with that hash")
        return content

    async def wheel(self) -> Wheel:
        """Give our wheel, which is made when it is needed first.

        Raises:
            JoiningError: it cannot be made.
        """
        async with self._building:
            if self._wheel is None or not self._wheel.path.exists():
                try:
                    self._wheel = await asyncio.to_thread(wheel.build, self._wheels)
                except OSError as error:
                    raise JoiningError(f"no wheel can be made: {error}") from error
        return self._wheel

    def old_wheel(self, sha256: str) -> Path | None:
        """Give the wheel with a hash, if it is kept."""
        return wheel.kept(self._wheels, sha256)

    # -- helpers

    @property
    def _wheels(self) -> Path:
        return self._home.path / "joining" / "wheels"

    def _check_open(self) -> None:
        if not self._home.managed:
            raise JoiningError(
                f"machines cannot join here: the server at {self._home.server} makes its own "
                f"accounts, and we may not; make one there for each, and `spinal account add` it"
            )
        if self._desk is None:
            raise JoiningError(f"machines cannot join now: the desk is closed: {self._closed}")

    def _turn(self, name: str) -> asyncio.Lock:
        return self._turns.setdefault(name, asyncio.Lock())

    async def _ticket(self, name: str) -> Ticket | None:
        found = await self._records.records(KIND, [name])
        return ticket.read(found[0]) if found else None

    async def _keep(self, one: Ticket, drop: bool = False) -> bool:
        return (await self._records.write(Keep(ticket.written(one), drop)))[0] is not FENCED

    async def _forget(self) -> None:
        now = self.now()
        for one in await self.tickets():
            if one.over(now) and await self._keep(one, drop=True):
                log.info("ticket_forgotten", machine=one.name)
