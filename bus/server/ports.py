"""TCP ports: choosing free ones, and noticing that one is taken."""

from __future__ import annotations

import errno
import os
import random
import socket
from dataclasses import astuple, fields
from typing import Final

from .contract import Ports, ServerConfig
from .errors import PortTaken, ServerError

#: Above the well-known ports and below those that Linux gives to outgoing connections, so that a
#: port that was chosen once is not taken by chance the next time.
RANGE: Final = range(20_000, 32_000)


def free_ports(listen: str = "127.0.0.1") -> Ports:
    """Choose ports that nobody uses right now, on ``listen`` and on loopback.

    Raises :class:`ServerError` if none can be found.
    """
    return Ports(*_free(listen, len(fields(Ports))))


def free_port(listen: str, taken: Ports) -> int:
    """Choose one more port besides those that are taken.

    Raises :class:`ServerError` if none can be found.
    """
    return next(port for port in _free(listen, 5) if port not in astuple(taken))


def _free(listen: str, count: int) -> list[int]:
    chosen: list[int] = []
    for port in random.sample(RANGE, len(RANGE)):
        if _refusal(listen, port) is None and _refusal("127.0.0.1", port) is None:
            chosen.append(port)
            if len(chosen) == count:
                return chosen
    raise ServerError(
        f"no port between {RANGE.start} and {RANGE.stop} can be used on {listen}: "
        f"check that the address belongs to this machine"
    )


def check(config: ServerConfig) -> None:
    """Raise :class:`PortTaken` or another :class:`ServerError` for the first unusable port."""
    for what, host, port in endpoints(config):
        number = _refusal(host, port)
        if number is None:
            continue
        if number == errno.EADDRINUSE:
            raise PortTaken(port, what)
        if number == errno.EADDRNOTAVAIL:
            raise ServerError(f"{host} is no address of this machine: listen on another one")
        if number in (errno.EACCES, errno.EPERM):
            raise ServerError(f"port {port} ({what}) needs root: choose one above 1023")
        raise ServerError(f"port {port} ({what}) on {host} cannot be used: {os.strerror(number)}")


def endpoints(config: ServerConfig) -> list[tuple[str, str, int]]:
    """Give what it is for, address and port of everything that the server listens on."""
    return [
        ("clients", config.listen, config.ports.c2s),
        ("components", "127.0.0.1", config.ports.component),
        ("uploads", config.listen, config.ports.upload),
    ]


def reachable(listen: str) -> str:
    """Give the address at which this machine itself reaches what listens there."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)


def _refusal(host: str, port: int) -> int | None:
    """Give the error number with which the port cannot be bound, None if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do it: connections in TIME_WAIT are no obstacle, a listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise ServerError(f"{host!r} is no address: listen on an IP address") from error
        except OSError as error:
            if error.errno is None:
                raise
            return error.errno
    return None
