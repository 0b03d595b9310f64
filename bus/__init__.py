"""Stanzas in and out: the connection contract, its transports, sessions, clients and servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .blob import Blob
from .errors import (
    AddressTaken,
    BadCall,
    BlobError,
    BusError,
    CallError,
    CertificateRefused,
    HomeError,
    LoginRefused,
    NoAgent,
    NotAllowed,
    NotConnected,
    OperationFailed,
    Unreached,
)

if TYPE_CHECKING:
    from .client import Candidate, Client, Mapped, Rejected, Resolution
    from .home import Credentials, Home
    from .sync import SyncBlob, SyncClient

# The clients bring the XMPP library; who only needs an error class does not pay for it.
_LATER = {
    "Candidate": "client",
    "Client": "client",
    "Credentials": "home",
    "Home": "home",
    "Mapped": "client",
    "Rejected": "client",
    "Resolution": "client",
    "SyncBlob": "sync",
    "SyncClient": "sync",
}

__all__ = [
    "AddressTaken",
    "BadCall",
    "Blob",
    "BlobError",
    "BusError",
    "CallError",
    "Candidate",
    "CertificateRefused",
    "Client",
    "Credentials",
    "Home",
    "HomeError",
    "LoginRefused",
    "Mapped",
    "NoAgent",
    "NotAllowed",
    "NotConnected",
    "OperationFailed",
    "Rejected",
    "Resolution",
    "SyncBlob",
    "SyncClient",
    "Unreached",
]


def __getattr__(name: str) -> object:
    module = _LATER.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{module}", __name__), name)
