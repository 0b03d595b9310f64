"""Ways to move stanzas that keep the contract of :mod:`spinal.bus.connection`.

Each is imported when it is wanted, because each brings a library of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Final

from ..connection import Connection
from ..errors import HomeError

#: What ``SPINAL_TRANSPORT`` may be, the library that logs in a client -> how to have it.
CLIENTS: Final[Mapping[str, str]] = {
    "slixmpp": "`pip install spinal`",
    "aioxmpp": "`pip install 'spinal[aioxmpp]'`, on Python 3.11 or 3.12",
}


def client_connection(name: str) -> Callable[..., Connection]:
    """Give the ``ClientConnection`` of the transport of this name; all take the same arguments.

    Raises:
        HomeError: there is no such transport, or its library is not installed.
    """
    if name not in CLIENTS:
        known = " or ".join(CLIENTS)
        raise HomeError(f"SPINAL_TRANSPORT: {name[:40]!r} is no transport: write {known}")
    try:
        return import_module(f".{name}", __name__).ClientConnection  # type: ignore[no-any-return]
    except ModuleNotFoundError as exc:
        raise HomeError(f"the transport {name} is not installed: {CLIENTS[name]}") from exc
