"""Accounts in a folder: one small file each, so that any process may add and remove them.

A file holds SCRAM keys (RFC 5803) and never a password.  It is read at each login and replaced in
one step, so nobody has to be told of a change.
"""

from __future__ import annotations

import hmac
import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast
from urllib.parse import quote, unquote

import scramp  # type: ignore[import-untyped]

from ..errors import ServerError
from ..files import write
from .addresses import BadAddress, localpart

#: Those whose keys are kept, the better one first.  RFC 6120, 13.8.1 makes SHA-1 mandatory, and
#: some clients have no other; with HMAC, and within TLS, it still does.
MECHANISMS: Final = ("SCRAM-SHA-256", "SCRAM-SHA-1")

#: PBKDF2 rounds: the least that RFC 7677 allows.  They only slow down guessing, and the passwords
#: here are random and of 24 characters or more, which nobody guesses at any speed.  Each login
#: pays for them at the client, 20 ms in pure Python as slixmpp has it: with 1,000 agents coming
#: back at once after a restart that is the longest part.
ITERATIONS: Final = 4096


@dataclass(frozen=True, slots=True)
class Keys:
    """What the server knows of a password, for one mechanism."""

    mechanism: str
    salt: bytes
    stored: bytes
    server: bytes
    iterations: int

    @classmethod
    def of(cls, mechanism: str, password: str, iterations: int = ITERATIONS) -> Keys:
        """Derive the keys of a password with a fresh salt."""
        return cls(mechanism, *scram(mechanism).make_auth_info(password, iterations, None))

    @classmethod
    def read(cls, mechanism: str, record: Mapping[str, Any]) -> Keys:
        """Read what :meth:`record` gave; raises ValueError, KeyError or TypeError."""
        salt, stored, server = (
            b64decode(record[name], validate=True) for name in ("salt", "stored", "server")
        )
        return cls(mechanism, salt, stored, server, int(record["iterations"]))

    def record(self) -> dict[str, Any]:
        """Give it as JSON."""
        texts = {"salt": self.salt, "stored": self.stored, "server": self.server}
        return {
            **{name: b64encode(value).decode() for name, value in texts.items()},
            "iterations": self.iterations,
        }

    def fit(self, password: str) -> bool:
        """Tell in constant time whether they were made of this password."""
        stored = scram(self.mechanism).make_auth_info(password, self.iterations, self.salt)[1]
        return hmac.compare_digest(stored, self.stored)


class ScramServer(Protocol):
    """One SCRAM exchange of scramp, which has no types of its own; each raises ScramException."""

    def set_client_first(self, client_first: str) -> None:
        """Take the first message."""

    def get_server_first(self) -> str:
        """Give the challenge."""
        ...

    def set_client_final(self, client_final: str) -> None:
        """Take the proof."""

    def get_server_final(self) -> str:
        """Give our own proof."""
        ...


class Scram(Protocol):
    """What is used of scramp's mechanism."""

    def make_auth_info(
        self, password: str, iteration_count: int, salt: bytes | None
    ) -> tuple[bytes, bytes, bytes, int]:
        """Give salt, stored key, server key and rounds."""
        ...

    def make_server(self, auth_fn: Callable[[str], tuple[bytes, bytes, bytes, int]]) -> ScramServer:
        """Begin an exchange; the function gives the same four for a name."""
        ...


def scram(mechanism: str) -> Scram:
    """Give scramp's form of a mechanism."""
    return cast(Scram, scramp.ScramMechanism(mechanism))


class Accounts:
    """The accounts below one folder.  All methods are synchronous and quick but :meth:`add`."""

    def __init__(self, folder: Path, iterations: int = ITERATIONS) -> None:
        self.folder = folder
        self._iterations = iterations

    def add(self, name: str, password: str) -> None:
        """Make the account, or give it this password.  Takes a few milliseconds.

        Raises :class:`ServerError` for a name that cannot be part of an address, or a password
        that SASLprep (RFC 4013) refuses.
        """
        path = self._path(name)
        if path is None:
            raise ServerError(
                f"{name!r} cannot be an account: use letters, digits, dots, dashes and underscores"
            )
        try:
            keys = [Keys.of(each, password, self._iterations) for each in MECHANISMS]
        except scramp.ScramException as error:
            raise ServerError(f"the password of {name} cannot be used: {error}") from error
        record = {each.mechanism: each.record() for each in keys}
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(path, json.dumps(record).encode(), 0o600)

    def remove(self, name: str) -> None:
        """Remove the account; unknown names are no error."""
        path = self._path(name)
        if path is not None:
            path.unlink(missing_ok=True)

    def list(self) -> list[str]:
        """Give the names in order."""
        return sorted(unquote(path.stem) for path in self.folder.glob("*.json"))

    def exists(self, name: str) -> bool:
        """Whether there is such an account."""
        path = self._path(name)
        return path is not None and path.exists()

    def keys(self, name: str, mechanism: str = MECHANISMS[0]) -> Keys | None:
        """Give the keys of an account for a mechanism, None if there are none.

        Raises :class:`ServerError` if its file is damaged.
        """
        path = self._path(name)
        if path is None:
            return None
        try:
            record: dict[str, Any] = json.loads(path.read_bytes())
            # Before there were two, the only one stood alone; the next start of `spinal up` writes
            # the file anew.
            found = {record["mechanism"]: record} if "mechanism" in record else record
            if MECHANISMS[0] not in found:
                raise ValueError("no keys")
            return Keys.read(mechanism, found[mechanism]) if mechanism in found else None
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ServerError(f"{path} is damaged: give {name} a password again") from error

    def stamp(self) -> int:
        """Give a number that differs after an account was added, changed or removed."""
        try:
            return self.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _path(self, name: str) -> Path | None:
        try:
            file = quote(localpart(name), safe="")
        except (BadAddress, UnicodeEncodeError):
            return None
        # Longest file name on Linux is 255 bytes; the temporary one beside it is longer.
        return self.folder / f"{file}.json" if len(file) <= 200 else None
