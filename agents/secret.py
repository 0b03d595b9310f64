"""A secret by reference: where it is, and never what it is.

A file of ours holds ``{env: NAME}``, ``{file: PATH}`` or ``{credential: NAME}``; the secret itself
is read when it is needed, and shows itself in no log, error or ``repr``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spinal.protocols import Json

from .errors import AgentError

#: Longest secret in bytes.
MAX_SECRET: Final = 64 * 1024

#: How a reference stands in a file.
SCHEMA: Final[Mapping[str, Json]] = {
    "type": "object",
    "description": "Where a secret is: a variable of the environment, a file, or a credential that "
    "systemd hands to the service.",
    "properties": {
        "env": {"type": "string", "minLength": 1, "examples": ["BILLING_TOKEN"]},
        "file": {"type": "string", "minLength": 1, "examples": ["/etc/billing/token"]},
        "credential": {"type": "string", "pattern": "^[A-Za-z0-9_.-]+$", "examples": ["token"]},
    },
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
    "errorMessage": "a secret stands here by reference: write {env: NAME} or {file: PATH}",
    "examples": [{"env": "BILLING_TOKEN"}],
}


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret is."""

    #: ``env``, ``file`` or ``credential``.
    kind: str
    name: str

    @classmethod
    def of(cls, reference: Mapping[str, Json], folder: Path = Path()) -> Secret:
        """Read a reference that fits :data:`SCHEMA`; paths are taken from ``folder``."""
        ((kind, name),) = reference.items()
        return cls(kind, str(folder / name) if kind == "file" else name)

    def __str__(self) -> str:
        return f"{{{self.kind}: {self.name}}}"

    def missing(self) -> str:
        """Say why it cannot be read now; empty if it can."""
        try:
            self.read()
        except AgentError as exc:
            return str(exc)
        return ""

    def read(self, environ: Mapping[str, str] = os.environ) -> str:
        """Give the secret, without the newline at the end of a file.

        Raises:
            AgentError: it is not there, empty, or cannot be read; the text names the reference.
        """
        if self.kind == "env":
            found = environ.get(self.name)
            if not found:
                raise AgentError(f"the secret {self} is not set: set the variable {self.name}")
            return found
        path = Path(self.name)
        if self.kind == "credential":
            path = Path(environ.get("CREDENTIALS_DIRECTORY", "/nowhere"), self.name)
        try:
            with path.open(encoding="utf-8") as file:
                found = file.read(MAX_SECRET).removesuffix("\n")
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
            raise AgentError(f"the secret {self} cannot be read: {path}: {why}") from exc
        if not found:
            raise AgentError(f"the secret {self} is empty")
        return found
