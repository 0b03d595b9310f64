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
    NotEnded,
    OperationFailed,
    Unreached,
)

if TYPE_CHECKING:
    from .client import Candidate, Client, Rejected, Resolution
    from .home import Credentials, Home
    from .jobmap import JobMap
    from .jobs import Job, JobLog, JobUpdate, LogLine
    from .maps import Mapped
    from .options import Planned, Retry
    from .sync import SyncBlob, SyncClient, SyncJob, SyncJobMap

# The clients bring the XMPP library; who only needs an error class does not pay for it.
_LATER = {
    "Candidate": "client",
    "Client": "client",
    "Credentials": "home",
    "Home": "home",
    "Job": "jobs",
    "JobLog": "jobs",
    "JobMap": "jobmap",
    "JobUpdate": "jobs",
    "LogLine": "jobs",
    "Mapped": "maps",
    "Planned": "options",
    "Rejected": "client",
    "Resolution": "client",
    "Retry": "options",
    "SyncBlob": "sync",
    "SyncClient": "sync",
    "SyncJob": "sync",
    "SyncJobMap": "sync",
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
    "Job",
    "JobLog",
    "JobMap",
    "JobUpdate",
    "LogLine",
    "LoginRefused",
    "Mapped",
    "NoAgent",
    "NotAllowed",
    "NotConnected",
    "NotEnded",
    "OperationFailed",
    "Planned",
    "Rejected",
    "Resolution",
    "Retry",
    "SyncBlob",
    "SyncClient",
    "SyncJob",
    "SyncJobMap",
    "Unreached",
]


def __getattr__(name: str) -> object:
    module = _LATER.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{module}", __name__), name)
