"""Logging in (RFC 6120, section 6): SCRAM-SHA-256 and SCRAM-SHA-1, and PLAIN for who has neither.

All of them run inside TLS only.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64decode
from typing import Final, Protocol

import scramp  # type: ignore[import-untyped]
import structlog

from ..errors import ServerError
from .accounts import ITERATIONS, Accounts, Keys, scram
from .accounts import MECHANISMS as SCRAM
from .addresses import BadAddress, localpart

log = structlog.get_logger(__name__)

#: In the order of preference.
MECHANISMS: Final = (*SCRAM, "PLAIN")


class Failure(Exception):
    """The login failed; ``condition`` is one of RFC 6120, 6.5."""

    def __init__(self, condition: str) -> None:
        super().__init__(condition)
        self.condition = condition


class Login(Protocol):
    """One attempt to log in."""

    #: Who it is, once :meth:`step` has said that it is done.
    name: str

    def step(self, message: bytes) -> tuple[bytes, bool]:
        """Take what the client says; give the answer and whether that was all.

        Raises :class:`Failure`.
        """
        ...


class Door:
    """Makes logins for the accounts of one domain."""

    def __init__(self, accounts: Accounts, domain: str) -> None:
        self._accounts = accounts
        self.domain = domain
        self._secret = secrets.token_bytes(32)

    def login(self, mechanism: str) -> Login:
        """Begin a login; raise :class:`Failure` if there is no such mechanism."""
        if mechanism in SCRAM:
            return _Scram(self, mechanism)
        if mechanism == "PLAIN":
            return _Plain(self)
        raise Failure("invalid-mechanism")

    def keys(self, name: str, mechanism: str = SCRAM[0]) -> Keys:
        """Give the keys of an account, or keys that nothing fits.

        The salt for an unknown name is always the same, so that nobody learns which names exist.
        """
        try:
            keys = self._accounts.keys(name, mechanism)
        except ServerError as error:
            log.warning("account_not_read", account=name, error=str(error))
            keys = None
        if keys is not None:
            return keys
        salt = hmac.digest(self._secret, name.encode("utf-8", "replace"), hashlib.sha256)
        stored, server = secrets.token_bytes(32), secrets.token_bytes(32)
        return Keys(mechanism, salt[:16], stored, server, ITERATIONS)


class _Scram:
    name = ""

    def __init__(self, door: Door, mechanism: str) -> None:
        self._door = door
        self._mechanism = mechanism
        self._user = ""
        self._server = scram(mechanism).make_server(self._keys)
        self._first = True

    def _keys(self, user: str) -> tuple[bytes, bytes, bytes, int]:
        self._user = _name(user)
        keys = self._door.keys(self._user, self._mechanism)
        return keys.salt, keys.stored, keys.server, keys.iterations

    def step(self, message: bytes) -> tuple[bytes, bool]:
        try:
            text = message.decode()
            if self._first:
                self._first = False
                self._server.set_client_first(text)
                return self._server.get_server_first().encode(), False
            self._server.set_client_final(text)
            final = self._server.get_server_final().encode()
        except (scramp.ScramException, ValueError) as error:
            raise Failure("not-authorized") from error
        self.name = self._user
        return final, True


class _Plain:
    name = ""

    def __init__(self, door: Door) -> None:
        self._door = door

    def step(self, message: bytes) -> tuple[bytes, bool]:
        try:
            authzid, user, password = message.decode().split("\0")
        except ValueError as error:
            raise Failure("malformed-request") from error
        name = _name(user)
        if authzid not in ("", f"{name}@{self._door.domain}"):
            raise Failure("invalid-authzid")
        try:
            fits = self._door.keys(name).fit(password)
        except scramp.ScramException as error:
            raise Failure("not-authorized") from error
        if not fits:
            raise Failure("not-authorized")
        self.name = name
        return b"", True


def _name(user: str) -> str:
    try:
        return localpart(user)
    except BadAddress as error:
        raise Failure("not-authorized") from error


def decode(text: bytes) -> bytes:
    """Read base64 as RFC 6120, 6.4.2 has it: ``=`` means present but empty."""
    if text == b"=":
        return b""
    try:
        return b64decode(text, validate=True)
    except ValueError as error:
        raise Failure("incorrect-encoding") from error
