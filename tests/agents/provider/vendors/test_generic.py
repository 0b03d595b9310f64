"""Other drivers by configuration, tried with libcloud's own dummy."""

from __future__ import annotations

from typing import Any

import pytest

from spinal.agents.provider.settings import Account
from spinal.agents.provider.vendors.generic import Generic
from spinal.agents.provider.vendors.vendor import Order

ORDER = Order(name="web-1", type="1", region="1", image="1", tags={"spinal": "home1"})


def account(**changed: Any) -> Account:
    made: dict[str, Any] = {"driver": "dummy", "options": {"arguments": {"creds": 0}}}
    return Account(name="it", **{**made, **changed})


def test_sizes_become_offers_once_their_processors_are_known() -> None:
    reasons: list[str] = []
    vendor = Generic(account())

    assert list(vendor.offers("", 5, reasons.append)) == []
    # The dummy says nothing of processors.
    assert reasons == 4 * ["no number of processors"]


def test_a_machine_is_made_and_destroyed() -> None:
    vendor = Generic(account())
    before = len(vendor.machines(""))
    made = vendor.create(ORDER, vendor.arguments(ORDER))

    assert (made.name, made.tags) == ("web-1", {"spinal": "home1"})
    assert len(vendor.machines("")) == before + 1
    vendor.destroy(made)
    assert "web-1" not in [one.name for one in vendor.machines("")]


def test_a_driver_without_user_data_is_told_before_anything_is_bought() -> None:
    order = Order(name="web-1", type="1", region="1", image="1", user_data="#!/bin/sh")

    with pytest.raises(Exception, match="driver dummy takes no user-data: a machine could not"):
        Generic(account()).arguments(order)


def test_what_the_account_calls_it_counts() -> None:
    options = {"arguments": {"creds": 0}, "create": {"user_data": "script", "ex_more": 7}}
    order = Order(name="web-1", type="1", region="1", image="1", user_data="#!/bin/sh")
    arguments = Generic(account(options=options)).arguments(order)

    assert (arguments["script"], arguments["ex_more"]) == ("#!/bin/sh", 7)
    assert arguments["size"].id == "1"


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"type": "huge"}, "no size 'huge'"),
        ({"image": "beos"}, "no image 'beos'"),
    ],
)
def test_what_is_not_there_is_named(changed: dict[str, str], words: str) -> None:
    wanted: Any = {"name": "web-1", "type": "1", "region": "1", "image": "1", **changed}

    with pytest.raises(Exception, match=words):
        Generic(account()).arguments(Order(**wanted))


def test_arguments_that_the_driver_does_not_take_are_told() -> None:
    wrong = account(options={"arguments": {"nonsense": 1}})

    with pytest.raises(Exception, match=r"driver dummy: .*nonsense.*: see 'arguments'"):
        Generic(wrong).driver("")
