"""Addresses (RFC 7622): taken apart, and brought to the one form that the tables know."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Final, NamedTuple

#: Bytes of one part (RFC 7622, 3.2 to 3.4).
LIMIT: Final = 1023
_NOT_IN_LOCAL: Final = frozenset("\"&'/:<>@")


class BadAddress(ValueError):
    """The text is no XMPP address."""


class Address(NamedTuple):
    """The parts of an address; an absent part is empty."""

    local: str
    domain: str
    resource: str

    @property
    def bare(self) -> str:
        """The address without the resource."""
        return f"{self.local}@{self.domain}" if self.local else self.domain

    def __str__(self) -> str:
        return f"{self.bare}/{self.resource}" if self.resource else self.bare


# Small, because whoever logs in can fill it with 3 kB addresses.
@lru_cache(maxsize=4096)
def parse(text: str) -> Address:
    """Take an address apart; raise :class:`BadAddress` if it is none."""
    rest, slash, resource = text.partition("/")
    local, at, domain = rest.rpartition("@")
    if (at and not local) or (slash and not resource):
        raise BadAddress(text)
    return Address(
        localpart(local) if local else "",
        domainpart(domain),
        resourcepart(resource) if resource else "",
    )


def localpart(text: str) -> str:
    """Normalise the part before the ``@`` (UsernameCaseMapped, RFC 8265, less its rare rules)."""
    local = unicodedata.normalize("NFKC", text).lower()
    if not _printable(local) or " " in local or not _NOT_IN_LOCAL.isdisjoint(local):
        raise BadAddress(text)
    return local


def domainpart(text: str) -> str:
    """Normalise a domain."""
    domain = unicodedata.normalize("NFKC", text).lower().rstrip(".")
    if not _printable(domain) or not {" ", "@", "/"}.isdisjoint(domain):
        raise BadAddress(text)
    return domain


def resourcepart(text: str) -> str:
    """Normalise a resource (OpaqueString, RFC 8265)."""
    resource = unicodedata.normalize("NFC", text)
    if not _printable(resource):
        raise BadAddress(text)
    return resource


def _printable(part: str) -> bool:
    return 0 < len(part.encode("utf-8", "replace")) <= LIMIT and part.isprintable()
