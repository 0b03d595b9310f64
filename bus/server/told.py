"""What a server was told at earlier starts, so that it is told only what is new.

A home of 5,000 accounts would else derive 5,000 passwords at each restart, in the very seconds in
which all its agents come back.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

_SALT: Final = 16


class Told:
    """Marks of the accounts and passwords that a server has, below one folder, a file for each.

    A mark that is lost or damaged only means that the server is told once more.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def news(self, accounts: Mapping[str, str], there: Collection[str]) -> dict[str, str]:
        """Give those of the accounts (name to password) that a server does not have like this.

        ``there`` are the names that it has.
        """
        return {
            name: password
            for name, password in accounts.items()
            if name not in there or not self._knows(name, password)
        }

    def _knows(self, name: str, password: str) -> bool:
        try:
            mark = self._file(name).read_bytes()
        except FileNotFoundError:
            return False
        salt = mark[:_SALT]
        return hmac.compare_digest(salt + _digest(salt, password), mark)

    def note(self, name: str, password: str) -> None:
        """Remember that the server has the account with this password."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        salt = secrets.token_bytes(_SALT)
        file = self._file(name)
        file.touch(mode=0o600)
        file.write_bytes(salt + _digest(salt, password))

    def forget(self, name: str) -> None:
        """Have the server told about the account at its next start."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        # A name may be longer than a file's.
        return self._folder / hashlib.sha256(name.encode()).hexdigest()


def _digest(salt: bytes, password: str) -> bytes:
    return hmac.digest(salt, password.encode(), hashlib.sha256)
