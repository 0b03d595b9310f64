from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest
from libcloud.compute.base import Node, NodeSize
from tests.needs import needs

from spinal.agents.provider.local import LocalNodeDriver
from spinal.testing import eventually

#: Ends at nothing but SIGKILL, and has two children that do the same: one in the machine's group,
#: and one that has left it and cleared its environment.
STUBBORN = """\
trap '' TERM HUP INT
(while :; do sleep 1000; done) &
setsid env -i sh -c "trap '' TERM; echo stubborn; while :; do sleep 1001; done" &
while :; do sleep 1002; done
"""

#: Seconds in which a machine does what it is to do, on a machine that does much else.
WITHIN = 60.0

LIGHT = [pytest.param("process"), pytest.param("bubblewrap", marks=needs("bwrap"))]


class MakeDriver(Protocol):
    def __call__(self, **settings: Any) -> LocalNodeDriver: ...


class Rent(Protocol):
    def __call__(self, script: str | None = ..., name: str = ..., **more: Any) -> Node: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "machines"


@pytest.fixture(params=LIGHT)
def isolation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_driver(folder: Path) -> Iterator[MakeDriver]:
    made: list[LocalNodeDriver] = []

    def make(**settings: Any) -> LocalNodeDriver:
        made.append(LocalNodeDriver(folder, **settings))
        return made[-1]

    yield make
    for driver in made:
        driver.end_all()


@pytest.fixture
def driver(make_driver: MakeDriver, isolation: str) -> LocalNodeDriver:
    return make_driver(isolation=isolation)


@pytest.fixture
def rent(driver: LocalNodeDriver) -> Rent:
    return renter(driver)


def renter(driver: LocalNodeDriver) -> Rent:
    def rent(script: str | None = None, name: str = "pool-a", **more: Any) -> Node:
        user_data = None if script is None else f"#!/bin/sh\n{script}\n"
        size, image = driver.list_sizes()[0], driver.list_images()[0]
        given: dict[str, Any] = {"size": size, "image": image, "ex_userdata": user_data, **more}
        return driver.create_node(name, **given)

    return rent


def look(driver: LocalNodeDriver, name: str = "pool-a") -> Node:
    """Give a machine as it is now."""
    return next(node for node in driver.list_nodes() if node.name == name)


async def state(driver: LocalNodeDriver, wanted: str, name: str = "pool-a") -> Node:
    """Wait until a machine is in a state."""
    await eventually(lambda: look(driver, name).state == wanted, WITHIN, f"it is {wanted}")
    return look(driver, name)


async def says(driver: LocalNodeDriver, node: Node, word: str) -> str:
    """Wait until a machine has written a word; give all that it wrote."""
    await eventually(lambda: word in driver.ex_get_console_output(node), WITHIN, f"it says {word}")
    return driver.ex_get_console_output(node)


def below(node: Node) -> list[psutil.Process]:
    """Give the processes of a machine, without its warden."""
    return psutil.Process(extra(node)["pid"]).children(recursive=True)


def extra(of: Node | NodeSize) -> dict[str, Any]:
    """Give what only our driver says of it; libcloud's types do not."""
    return dict(of.extra)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
