"""Which certificates a client's stream accepts; one rule, whichever library keeps the stream."""

from __future__ import annotations

import ssl
from functools import lru_cache
from pathlib import Path

from ..errors import CertificateRefused


def trusting(ca: Path | None) -> ssl.SSLContext:
    """Trust an authority and no other; without one, those of the system.

    Raises:
        CertificateRefused: its file cannot be read.
    """
    try:
        return _context(ca, 0 if ca is None else ca.stat().st_mtime_ns)
    except (OSError, ssl.SSLError) as exc:
        raise CertificateRefused(f"cannot read the certificate authority {ca}: {exc}") from exc


@lru_cache(maxsize=16)
def _context(ca: Path | None, stamp: int) -> ssl.SSLContext:
    """Make a context; ``stamp`` is another whenever the file is.

    Streams that trust the same one share it: making it is a tenth of a login, and 50 kB.
    """
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
