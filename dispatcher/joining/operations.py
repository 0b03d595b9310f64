"""The dispatcher's own operations for tickets: only the owner makes machines part of the bus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from spinal.bus.errors import CallError
from spinal.bus.requests import Request
from spinal.protocols import Json, LocalProtocolError, Problem, readers
from spinal.protocols.readers import Reader

from ..jobs.rows import stamp
from ..listing import page
from ..own import Arguments, Own, needed
from ..roles import Right
from . import ticket
from .joining import EXPIRES, MAX_EXPIRES, Joining
from .ticket import JoiningError, Ticket

#: Most characters of a file that comes with a call; a call takes 32 KiB in all.
MAX_FILE: Final = 32 * 1024


class TicketOperations:
    """Answers them."""

    def __init__(self, joining: Joining) -> None:
        self._joining = joining

    async def create(self, request: Request, args: Arguments) -> Json:
        """Make a ticket, and say what to do with it."""
        name = needed(args, "name")
        files: dict[str, str] = args.get("files", {})
        wanted: dict[str, Any] = {
            "packages": args.get("packages", ()),
            "place": args.get("place", {}),
            "tags": args.get("tags", ()),
            "cost": args.get("cost"),
            "expires": args.get("expires", EXPIRES),
            "run": args.get("run") or tuple(files) or (ticket.MACHINE,),
        }
        try:
            made = await self._joining.make(name, files=files, **wanted)
            script = await self._joining.script(made) if args.get("script", False) else None
        except (JoiningError, LocalProtocolError) as exc:
            raise CallError.of(Problem("refused", str(exc))) from exc
        found: dict[str, Json] = {
            **row(made.ticket, made.ticket.created),
            "ticket": made.text,
            "url": self._joining.url,
            "ca": await self._joining.authority(),
        }
        return found if script is None else {**found, "script": script}

    async def list(self, request: Request, args: Arguments) -> Json:
        """List the tickets by name."""
        now = self._joining.now()
        found = await self._joining.tickets()
        return page(found, args.get("offset", 0), len(found), lambda one: row(one, now))

    async def revoke(self, request: Request, args: Arguments) -> Json:
        """Make a ticket good for nothing; an account that came of it stays."""
        name = needed(args, "name")
        if not await self._joining.revoke(name):
            raise CallError.of(Problem("unknown", f"no ticket {name!r}: `spinal ticket list`"))
        return {"revoked": name}


def row(one: Ticket, now: int) -> dict[str, Json]:
    """Give a ticket as JSON, without members that would say nothing."""
    out: dict[str, Any] = {
        "name": one.name,
        "state": one.state(now),
        "created": stamp(one.created),
        "expires": stamp(one.expires),
        "used": None if one.used is None else stamp(one.used),
        "run": list(one.run),
        "packages": list(one.packages) or None,
        "place": dict(one.place),
        "tags": list(one.tags) or None,
        "cost": one.cost,
    }
    return {name: item for name, item in out.items() if item is not None}


def _files(raw: Json, name: str) -> dict[str, str]:
    read = readers.text(MAX_FILE)
    given: dict[str, Json] = readers.mapping(raw, name)
    return {file: read(content, f"{name}.{file}") for file, content in given.items()}


def _seconds(raw: Json, name: str) -> float:
    found: float = readers.number(1.0)(raw, name)
    return min(found, MAX_EXPIRES + 1)


_NAME: Mapping[str, Reader] = {"name": readers.text(64)}
_Ops = TicketOperations

#: Path -> what it needs and does.
TICKET_OPERATIONS: Mapping[str, Own[TicketOperations]] = {
    "/spinal/tickets/create": Own(
        Right.WATCH,
        {
            **_NAME,
            "files": _files,
            "packages": readers.list_of(readers.text(ticket.MAX_PACKAGE), ticket.MAX_PACKAGES),
            "run": readers.list_of(readers.text(64), ticket.MAX_FILES + 1),
            "place": readers.places,
            "tags": readers.list_of(readers.text(64), ticket.MAX_TAGS),
            "cost": readers.number(0),
            "expires": _seconds,
            "script": readers.flag,
        },
        _Ops.create,
    ),
    "/spinal/tickets/list": Own(Right.WATCH, {"offset": readers.integer()}, _Ops.list),
    "/spinal/tickets/revoke": Own(Right.WATCH, _NAME, _Ops.revoke),
}
