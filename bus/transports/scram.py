"""SCRAM for slixmpp with passwords salted by OpenSSL, and each once.

slixmpp salts them in Python and anew for each login, which was two thirds of the CPU of a login
(measured).  A server offers an account the same salt until its password changes, so the result is
kept in memory, as RFC 5802 provides for (section 5.1); what is checked stays the same.

Importing this registers the mechanism with slixmpp, in place of its own of the same name.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

from slixmpp.util.sasl import sasl_mech
from slixmpp.util.sasl.mechanisms import SCRAM

#: Never a password in clear, not even inside TLS.
MECHANISMS = frozenset(
    f"SCRAM-SHA-{size}{plus}" for size in ("1", "256", "512") for plus in ("", "-PLUS")
)

#: Salted passwords that are kept: one for each account that this process logs in to.
_KEPT = 8192


@sasl_mech(60)  # The score of slixmpp's own.
class Scram(SCRAM):
    """SCRAM-SHA-* (RFC 5802)."""

    def Hi(self, text: Any, salt: bytes, iterations: int) -> bytes:
        """Salt a password."""
        mechanism: Any = self
        return salted(mechanism.hash().name, text, salt, iterations)


@lru_cache(maxsize=_KEPT)
def salted(hash: str, password: bytes, salt: bytes, iterations: int) -> bytes:
    """Give the salted password (``Hi`` of the RFC), from memory if it was made before."""
    return hashlib.pbkdf2_hmac(hash, password, salt, iterations)
