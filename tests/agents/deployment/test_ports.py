from __future__ import annotations

import asyncio
import socket

import pytest

from spinal.agents.deployment.ports import Ports, is_free
from spinal.agents.errors import Retry

from .conftest import some_ports


def test_ports_are_given_in_turn_and_once() -> None:
    here = some_ports()
    ports = Ports(here[0], here[2])
    assert [ports.take() for _ in range(3)] == list(here[:3])
    with pytest.raises(Retry, match="all ports from"):
        ports.take()
    ports.give_back(here[1])
    ports.give_back(None)
    assert ports.take() == here[1]


def test_one_that_was_had_before_is_given_again_if_it_is_free() -> None:
    here = some_ports()
    ports = Ports(here[0], here[-1])
    assert ports.take(here[5]) == here[5]
    assert ports.take(here[5]) == here[6]
    with socket.create_server(("127.0.0.1", here[9])):
        assert not is_free(here[9])
        assert ports.take(here[9]) != here[9]
    # Never one outside of the range, whatever a file says.
    assert ports.take(22) in here


async def test_a_port_is_waited_for_but_not_for_long() -> None:
    here = some_ports()
    ports = Ports(here[0], here[-1])
    server = socket.create_server(("127.0.0.1", here[0]))
    await ports.wait(here[0], 0.05)
    waiting = asyncio.ensure_future(ports.wait(here[0], 30))
    server.close()
    await asyncio.wait_for(waiting, 10)
