"""TLS to a service: what we show, and whom we believe.  There is no way not to verify."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from spinal.protocols import Json

from .... import secret
from ....errors import AgentError
from ....secret import Secret
from ...kind import Site

_FILE: Final[Mapping[str, Json]] = {"type": "string", "minLength": 1}

#: How it stands in a manifest.
SCHEMA: Final[Mapping[str, Json]] = {
    "type": "object",
    "properties": {
        "ca": {**_FILE, "description": "Certificates that we believe, in PEM."},
        "cert": {**_FILE, "description": "Our certificate, in PEM."},
        "key": {
            "anyOf": [_FILE, secret.SCHEMA],
            "description": "Its key: a file, or a secret.",
        },
        "name": {**_FILE, "description": "Name that its certificate bears."},
        "verify": {
            "const": True,
            "errorMessage": "a certificate is always verified: give the one that is to "
            "be believed in ca, and the name that it bears in name",
        },
    },
    "additionalProperties": False,
    "description": "A certificate is always verified; for one that nobody signed, it "
    "stands itself in ca.",
    "examples": [{"ca": "/etc/billing/ca.pem"}],
}


@dataclass(frozen=True, slots=True)
class Tls:
    """What our side shows, and whom it believes."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | Secret | None = None
    #: Name that the certificate has to bear, if not that of the host.
    name: str | None = None

    @classmethod
    def of(cls, site: Site, secure: bool) -> Tls:
        """Read it; ``secure`` says whether the service has TLS at all."""
        said: Mapping[str, Any] = site.value["tls"]
        if not secure:
            site.wrong("goes with https, and the URL is one of http", site.key, "tls")
        if "key" in said and "cert" not in said:
            site.wrong("has a key and no certificate: add cert", site.key, "tls")
        key = said.get("key")
        if isinstance(key, Mapping):
            read: Path | Secret | None = Secret.of(said["key"], site.folder)
        else:
            read = None if key is None else site.folder / key
        return cls(
            ca=site.folder / said["ca"] if "ca" in said else None,
            cert=site.folder / said["cert"] if "cert" in said else None,
            key=read,
            name=said.get("name"),
        )

    def lacks(self) -> Iterator[tuple[str, str]]:
        """Give what is missing on this machine, by its key."""
        for name, source in (("ca", self.ca), ("cert", self.cert), ("key", self.key)):
            if isinstance(source, Secret):
                if why := source.missing():
                    yield name, why
            elif source is not None and not source.is_file():
                yield name, f"there is no file {source}"

    def context(self) -> ssl.SSLContext:
        """Make the context; reads files.

        Raises:
            AgentError: a file or secret is not what it should be.
        """
        try:
            made = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as exc:
            raise AgentError(f"tls: ca {self.ca}: {exc}: give a file of PEM certificates") from exc
        if self.cert is None:
            return made
        try:
            if not isinstance(self.key, Secret):
                made.load_cert_chain(self.cert, self.key)
                return made
            # OpenSSL reads a key from a file only.
            with tempfile.NamedTemporaryFile("w", prefix="spinal-key-") as file:
                file.write(self.key.read())
                file.flush()
                made.load_cert_chain(self.cert, file.name)
        except (OSError, ssl.SSLError) as exc:
            raise AgentError(f"tls: cert {self.cert} and its key cannot be used: {exc}") from exc
        return made
