from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from spinal.bus.server.contract import Ports, ServerConfig
from spinal.bus.server.errors import PortTaken, ServerError
from spinal.bus.server.ports import RANGE, check, free_ports, reachable


def config(ports: Ports, listen: str = "127.0.0.1") -> ServerConfig:
    return ServerConfig(Path("unused"), "bus.test", ports, listen=listen)


def test_free_ports_are_different_and_below_those_of_outgoing_connections() -> None:
    ports = free_ports()
    chosen = {ports.c2s, ports.component, ports.upload}
    assert len(chosen) == 3
    assert all(port in RANGE for port in chosen)
    check(config(ports))


def test_free_ports_are_not_always_the_same() -> None:
    assert len({free_ports() for _ in range(5)}) > 1


@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_is_named(listen: str) -> None:
    ports = free_ports()
    with (
        socket.create_server(("127.0.0.1", ports.upload)),
        pytest.raises(PortTaken, match=rf"{ports.upload} \(uploads\).*--home") as caught,
    ):
        check(config(ports, listen))
    assert caught.value.port == ports.upload


@pytest.mark.parametrize("listen", ["192.0.2.1", "no address"])
def test_an_address_of_somebody_else_is_named(listen: str) -> None:
    with pytest.raises(ServerError, match=listen):
        check(config(free_ports(), listen))
    with pytest.raises(ServerError):
        free_ports(listen)


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Root may use every port, so it is somebody else for the length of a test."""
    us = os.geteuid()
    os.seteuid(us or 65534)
    yield
    os.seteuid(us)


def test_a_port_for_root_is_named(ordinary_user: None) -> None:
    with pytest.raises(ServerError, match="1023"):
        check(config(Ports(1, 2, 3)))


def test_an_address_for_all_interfaces_is_reached_on_loopback() -> None:
    assert reachable("0.0.0.0") == "127.0.0.1"
    assert reachable("::") == "::1"
    assert reachable("192.0.2.7") == "192.0.2.7"
