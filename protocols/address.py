"""XMPP addresses (RFC 7622) as plain strings: taking them apart and checking their form.

Comparison is left to servers, which normalise what they stamp; we only ever compare what a server
gave us with what a server gave us.
"""

from __future__ import annotations

import re

from .errors import LocalProtocolError

#: Longest full address in bytes: three parts of 1023 and two separators (RFC 7622, 3).
MAX_ADDRESS = 3071

#: Control characters, and what XML cannot hold.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_FORBIDDEN_LOCAL = frozenset("\"&'/:<>@ ")


def bare(address: str) -> str:
    """Give the address without its resource."""
    return address.partition("/")[0]


def resource(address: str) -> str:
    """Give the resource, or nothing."""
    return address.partition("/")[2]


def domain(address: str) -> str:
    """Give the domain part."""
    head = bare(address)
    return head.rpartition("@")[2]


def local(address: str) -> str:
    """Give the part before the ``@``, or nothing."""
    head, at, _ = bare(address).rpartition("@")
    return head if at else ""


def check(address: str) -> str:
    """Return the address unchanged.

    Raises:
        LocalProtocolError: it cannot be an XMPP address; the text says why.
    """
    if not address or len(address.encode("utf-8", "replace")) > MAX_ADDRESS:
        raise LocalProtocolError(f"not an address: {address[:60]!r} is empty or too long")
    head, slash, tail = address.partition("/")
    user, at, host = head.rpartition("@")
    if (
        not host
        or (slash and not tail)
        or (at and (not user or _FORBIDDEN_LOCAL & set(user)))
        or " " in head
        or _FORBIDDEN.search(address)
    ):
        raise LocalProtocolError(
            f"not an address: {address[:60]!r} (expected user@domain/resource)"
        )
    return address
