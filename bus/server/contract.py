"""What every XMPP server that Spinal starts by itself promises.

A launcher turns a :class:`ServerConfig` into a running server below one folder and gives it back
as a :class:`Server`.  Nothing above ``bus/`` knows which of them it got.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports of one server; chosen once per home and kept."""

    #: Client streams (RFC 6120), STARTTLS required.
    c2s: int
    #: External components (XEP-0114); always on loopback only.
    component: int
    #: HTTPS for uploads and downloads of blobs (XEP-0363).
    upload: int
    #: HTTPS at which new machines join; the dispatcher's.  0 in a home that never needed one.
    desk: int = 0


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where a server lives, who it serves and where it listens."""

    #: Everything that the server writes goes below this folder.
    folder: Path
    domain: str
    ports: Ports
    #: Address to listen on for clients and uploads.  Loopback unless somebody asked for more.
    listen: str = "127.0.0.1"
    #: Host in the URLs of blobs, as agents elsewhere reach it; the listening address if empty.
    public_host: str = ""
    #: Component domain to shared secret.
    components: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    #: Largest stanza in bytes that a client may send.
    max_stanza: int = 1024 * 1024
    #: Largest blob in bytes.
    max_blob: int = 1024 * 1024 * 1024
    #: How long a blob is kept, in seconds.
    blob_age: int = 24 * 3600

    @property
    def upload_host(self) -> str:
        """Host in the URLs of blobs."""
        if self.public_host:
            return self.public_host
        return "127.0.0.1" if self.listen in ("0.0.0.0", "::") else self.listen

    @property
    def upload_domain(self) -> str:
        """Address of the upload service (XEP-0363)."""
        return f"upload.{self.domain}"


class Server(Protocol):
    """A server process that is ready for logins; its owner must call :meth:`stop`."""

    config: ServerConfig

    @property
    def ca(self) -> Path:
        """The certificate authority (PEM) that clients of this server trust."""
        ...

    @property
    def pid(self) -> int:
        """Process that can be killed to take the server down; our own if it runs in-process."""
        ...

    async def add_account(self, name: str, password: str) -> None:
        """Make the account, or give it this password.  It can log in when this returns."""
        ...

    async def remove_account(self, name: str) -> None:
        """Remove the account and end its streams.  Unknown names are no error."""
        ...

    async def probe(self, timeout: float = 3.0) -> None:
        """Raise :class:`ServerError` unless a new stream is answered with features in time."""
        ...

    async def wait(self) -> int:
        """Return the exit status once the process has ended by itself or was killed."""
        ...

    async def stop(self, *, hung: bool = False) -> None:
        """End it and wait until its ports are free; one that hangs is not asked, but killed.

        Calling it again does nothing.
        """
        ...
