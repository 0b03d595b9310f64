"""Offers and machines for tests."""

from __future__ import annotations

from typing import Any

from spinal.agents.provider.offer import Exchange, Offer
from spinal.dispatcher.pools.machine import Machine, State

GIB = 1024**3
NOW = 1_800_000_000_000
HOME = Exchange("EUR", {"USD": 0.5})


def offer(
    vendor: str, type: str, cpu: float, gib: float, price: float, region: str = "eu-1", **more: Any
) -> Offer:
    given: dict[str, Any] = {
        "area": region.partition("-")[0],
        "currency": "EUR",
        "source": "api",
        "as_of": NOW,
        **more,
    }
    return Offer(
        vendor=vendor,
        region=region,
        type=type,
        cpu=cpu,
        ram=int(gib * GIB),
        price=price,
        **given,
    )


def machine(name: str, of: Offer, pool: str = "web", state: State = State.READY) -> Machine:
    return Machine(
        name=name,
        pool=pool,
        state=state,
        since=NOW,
        vendor=of.vendor,
        region=of.region,
        type=of.type,
        arch=of.arch,
        cpu=of.cpu,
        ram=of.ram,
        price=of.price,
        currency=of.currency,
        rate=HOME.rate(of.currency) or 1.0,
        created=NOW,
        expires=NOW + 1,
    )
