from __future__ import annotations

from typing import Any, cast

import pytest

from spinal.bus.errors import CallError, HomeError
from spinal.dispatcher.joining.joining import Joining
from spinal.dispatcher.pools.door import HomeDoor
from spinal.dispatcher.pools.machine import Machine, State
from spinal.dispatcher.pools.spec import PoolSpec, Server
from spinal.protocols import path

SPEC = PoolSpec(pool="web", server=Server(cpu=1, ram=1024**3))


class Tickets:
    """Makes tickets as far as their places can be."""

    def __init__(self) -> None:
        self.places: list[dict[str, str]] = []
        self.error: Exception | None = None

    async def make(self, name: str, **given: Any) -> str:
        if self.error is not None:
            raise self.error
        path.check_places(given["place"])
        self.places.append(given["place"])
        return name

    async def script(self, made: str) -> str:
        return f"#!/bin/sh\n# {made}\n"


def a_machine(region: str) -> Machine:
    return Machine(
        name="web-1", pool="web", state=State.ORDERED, since=0, vendor="it", region=region,
        type="small", price=0.1, currency="EUR", created=0, expires=0,
    )  # fmt: skip


@pytest.mark.parametrize("region", ["eu-1", "West Europe", "New York (1)", "a/b", "a'b\n$(c)", ""])
async def test_a_machine_is_invited_whatever_its_vendor_calls_the_region(region: str) -> None:
    tickets = Tickets()
    assert "web-1" in await HomeDoor(cast("Joining", tickets)).invite(a_machine(region), SPEC)
    assert tickets.places[0]["region"].isprintable()


async def test_a_home_that_cannot_be_read_invites_nobody_and_says_so() -> None:
    tickets = Tickets()
    tickets.error = HomeError("accounts.json cannot be read")
    with pytest.raises(CallError, match="cannot be read"):
        await HomeDoor(cast("Joining", tickets)).invite(a_machine("eu-1"), SPEC)
