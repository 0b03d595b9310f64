"""What a dispatcher knows of services that a former life of ours left: who has them now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

import structlog

from spinal.bus.errors import BusError, CallError
from spinal.protocols import Json

if TYPE_CHECKING:
    from ..life import Life

log = structlog.get_logger()

#: The dispatcher's list of services.
LIST: Final = "/spinal/services/list"
#: Seconds for the log-in and the answer; then services are started without one.
WITHIN: Final = 10.0
#: Seconds between two looks whether we are on the bus.
LOOK: Final = 0.1
#: Most services that are read.
MAX_ROWS: Final = 10_000

#: A dispatcher's rows, by name of the service.
Rows = Mapping[str, Mapping[str, Json]]


def superseded(row: Mapping[str, Json], generation: int, address: str) -> str:
    """Say why a service is not to be started here; nothing if it is.

    Args:
        row: what a dispatcher says of it.
        generation: the one that is here.
        address: ours.

    Only who has it now counts.  A newer generation that is only being placed is no reason: it may
    come to nothing, and it may come to us.
    """
    if row.get("state") == "removing":
        return "it is being removed"
    theirs, running = row.get("agent"), row.get("running")
    if isinstance(running, int) and running > generation and theirs not in (None, address):
        return f"generation {running} runs at {theirs}"
    return ""


async def ask(life: Life, within: float) -> Rows:
    """Ask all dispatchers, and give what the first one says; nothing if none answers in time."""
    try:
        async with asyncio.timeout(within):
            while not life.session.connected:
                await asyncio.sleep(LOOK)
            asked = {
                asyncio.ensure_future(_ask_one(life, address, within))
                for address in life.session.dispatchers
            }
            try:
                while asked:
                    done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                    for one in done:
                        if (rows := one.result()) is not None:
                            return rows
            finally:
                for one in asked:
                    one.cancel()
                await asyncio.gather(*asked, return_exceptions=True)
    except TimeoutError:
        log.info("services_not_told", within=within)
    return {}


async def _ask_one(life: Life, address: str, within: float) -> Rows | None:
    found: dict[str, Mapping[str, Json]] = {}
    try:
        more = True
        while more and len(found) < MAX_ROWS:
            call = life.session.call(address, LIST, {"offset": len(found)}, timeout=within)
            page = cast("Mapping[str, Any]", await call.result())
            before = len(found)
            found |= {str(row["name"]): row for row in page["items"]}
            more = bool(page["more"]) and len(found) > before
    except (BusError, CallError) as exc:
        # A dispatcher that keeps no services has none of ours.
        log.info("services_not_told", dispatcher=address, error=str(exc))
        return None
    except (LookupError, TypeError) as exc:
        log.warning("services_not_understood", dispatcher=address, error=repr(exc))
        return None
    return found
