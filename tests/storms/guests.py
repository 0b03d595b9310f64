"""The machines, as far as they can be had here: what runs at a vendor joins the bus, for real.

Of each machine that its vendor shows as running, the user-data is read as cloud-init would, its
ticket is redeemed at the desk over HTTPS, and an agent of it logs in with what it was given.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from spinal.agents import Agent
from spinal.bus.client import connect
from spinal.bus.errors import BusError
from spinal.bus.home import Credentials
from spinal.bus.tasks import Tasks
from spinal.cli.enrol import Told

from .script import Fates
from .world import BOOT, Vendor

#: Seconds between two looks at the vendors, and between two tries at the desk.
LOOK: Final = 0.15
AGAIN: Final = 0.3

_TICKET: Final = re.compile(r"printf '%s\\n' '?([a-z0-9-]+/[a-z0-9]+)'? > ticket")
_URL: Final = re.compile(r"^url='?(https://[^'\s]+)'?$", re.MULTILINE)
_CA: Final = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", re.DOTALL)


@dataclass
class Guests:
    """See the module."""

    vendors: Mapping[str, Vendor]
    folder: Path
    #: What machines are told of their fates by; none once the storm is over.
    dice: random.Random
    fates: Fates | None
    #: What became of them: ``joined``, ``never``, ``sick``, ``dies``, ``taken``, ``refused``.
    counts: Counter[str] = field(default_factory=Counter[str])
    #: What each vendor said last.
    states: dict[str, Any] = field(default_factory=dict[str, Any])
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: Tasks = field(default_factory=lambda: Tasks("guests"))
    _lives: dict[str, asyncio.Task[None]] = field(default_factory=dict[str, asyncio.Task[None]])

    async def run(self) -> None:
        """Look after the machines until cancelled."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(LOOK)
        finally:
            await self._tasks.close()

    async def look(self) -> None:
        """Start what runs now, and end what was deleted."""
        found = await asyncio.gather(*(vendor.state() for vendor in self.vendors.values()))
        self.states = dict(zip(self.vendors, found, strict=True))
        here: set[str] = set()
        for vendor, state in self.states.items():
            for row in state["machines"]:
                if row["deleted"] is not None:
                    continue
                here.add(row["id"])
                age = time.time() - row["created"] / 1000
                if row["id"] not in self._lives and not row["broken"] and age >= BOOT:
                    work = self._live(self.vendors[vendor], row, self._fate(vendor))
                    self._lives[row["id"]] = self._tasks.spawn(work, row["name"])
        for id in self._lives.keys() - here:
            self._lives[id].cancel()
        self.looked.set()
        self.looked.clear()

    def _fate(self, vendor: str) -> str:
        drawn, fates = self.dice.random(), self.fates
        if fates is None:
            return ""
        for fate in ("never", "sick", "dies", "taken"):
            drawn -= getattr(fates, fate)
            if drawn < 0:
                priced = vendor in ("digitalocean", "linode", "vultr")
                return fate if fate != "taken" or priced else "dies"
        return ""

    async def _live(self, vendor: Vendor, row: Mapping[str, Any], fate: str) -> None:
        if fate:
            self.counts[fate] += 1
        if fate == "never":
            return
        credentials, told = await self._join(row)
        if credentials is None or told is None:
            self.counts["refused"] += 1
            return
        agent = Agent("machine", place=told.place, tags=told.tags, cost=told.cost, slots=2)

        @agent.op("/machine/health", effects="reads")
        async def health() -> dict[str, Any]:
            """Tell how it is."""
            return {"healthy": fate != "sick"}

        try:
            connection = connect(credentials)
            async with agent.start(connection, dispatchers=credentials.dispatchers) as life:
                self.counts["joined"] += 1
                if fate in ("dies", "taken"):
                    await asyncio.sleep(self.dice.uniform(0.2, 4.0))
                    if fate == "taken":
                        await vendor.take_away(row["id"])
                    return
                await life.failed()
        except BusError:
            # Its account was taken away before it was deleted.
            return

    async def _join(self, row: Mapping[str, Any]) -> tuple[Credentials | None, Told | None]:
        text: str = row["user_data"]
        ticket, url, ca = _TICKET.search(text), _URL.search(text), _CA.search(text)
        assert ticket and url and ca, text
        trust = ssl.create_default_context(cadata=ca[0])
        nonce = f"{row['id']}-{row['name']}-0123456789abcdef"
        body = {"ticket": ticket[1], "nonce": nonce}
        said = b""
        while True:
            try:
                async with aiohttp.request(
                    "POST", f"{url[1]}/join", json=body, ssl=trust
                ) as answer:
                    said = await answer.read()
                    status = answer.status
            except (aiohttp.ClientError, OSError):
                status = 503
            if status == 200:
                break
            if status == 403:
                return None, None
            await asyncio.sleep(AGAIN)
        told = msgspec.json.decode(said, type=Told)
        authority = None
        if told.ca is not None:
            authority = self.folder / f"{row['name']}.pem"
            authority.write_text(told.ca)
        host, _, port = told.servers[0].rpartition(":")
        return (
            Credentials(
                f"{told.address}/machine",
                told.password,
                authority,
                host,
                int(port),
                tuple(told.dispatchers),
                tuple(told.uploads),
            ),
            told,
        )
