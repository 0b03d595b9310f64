"""XMPP servers that Spinal starts by itself: embedded, Prosody and ejabberd behind one contract.

A kind is imported when it is asked for, so that nobody pays for the ones they do not use.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final, Protocol, cast

from .contract import Ports, Server, ServerConfig
from .errors import PortTaken, ServerError, ServerMissing
from .ports import free_ports

__all__ = [
    "KINDS",
    "PortTaken",
    "Ports",
    "Server",
    "ServerConfig",
    "ServerError",
    "ServerMissing",
    "add_account",
    "add_accounts",
    "available",
    "free_ports",
    "launch",
    "remove_account",
]


class _Launcher(Protocol):
    """What the class of each kind offers without an instance."""

    async def start(self, config: ServerConfig) -> Server: ...
    async def set_account(self, config: ServerConfig, name: str, password: str) -> None: ...
    async def set_accounts(self, config: ServerConfig, accounts: Mapping[str, str]) -> None: ...
    async def drop_account(self, config: ServerConfig, name: str) -> None: ...
    def missing(self) -> ServerMissing | None: ...


#: Kind of server to the module and class that launches it.
KINDS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "embedded": (".embedded.launch", "EmbeddedProcess"),
        "prosody": (".prosody", "ProsodyServer"),
        "ejabberd": (".ejabberd", "EjabberdServer"),
    }
)


async def launch(kind: str, config: ServerConfig) -> Server:
    """Start a server of this kind and return it when it takes logins.

    Raises :class:`PortTaken`, :class:`ServerMissing` or another :class:`ServerError`; nothing is
    left running then, nor when the call is cancelled.
    """
    return await _launcher(kind).start(config)


async def add_account(kind: str, config: ServerConfig, name: str, password: str) -> None:
    """Make the account, or give it this password, on the server that runs in ``config.folder``.

    Any process that may enter the folder can call it.  Raises :class:`ServerError`, also when
    the server has to run for it and does not.
    """
    await _launcher(kind).set_account(config, name, password)


async def add_accounts(kind: str, config: ServerConfig, accounts: Mapping[str, str]) -> None:
    """Make many accounts, name to password; those that the server has cost next to nothing.

    For its start; the same applies as to :func:`add_account`.  Others that it has stay.
    """
    await _launcher(kind).set_accounts(config, accounts)


async def remove_account(kind: str, config: ServerConfig, name: str) -> None:
    """Remove the account and end its streams; unknown names are no error.

    The same applies as to :func:`add_account`.
    """
    await _launcher(kind).drop_account(config, name)


def available(kind: str) -> str | None:
    """Give None if this kind can be started here, else one line that says what is missing."""
    missing = _launcher(kind).missing()
    return None if missing is None else str(missing)


def _launcher(kind: str) -> _Launcher:
    try:
        module, name = KINDS[kind]
    except KeyError:
        raise ServerError(
            f"there is no server called {kind!r}: choose one of {', '.join(KINDS)}"
        ) from None
    return cast(_Launcher, getattr(import_module(module, __name__), name))
