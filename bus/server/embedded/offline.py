"""Messages for accounts that are away, kept until they come (XEP-0160), one small file an account."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import structlog

from . import stanzas
from .limits import Limits

log = structlog.get_logger(__name__)

#: What a client is told by disco#info.
FEATURE: Final = "msgoffline"

#: XEP-0334: whoever sends it does not want it kept.
_NO_STORE: Final = b"urn:xmpp:hints"
_BODY: Final = b"<body"


@dataclass(slots=True)
class _Kept:
    """How much there is for one account."""

    messages: int = 0
    bytes: int = 0


class Offline:
    """The messages below one folder.

    A message is appended to the file of its account, one line of JSON each, and is in the hands of
    the operating system when :meth:`keep` returns; a server that is killed loses none.
    """

    def __init__(self, folder: Path, domain: str, limits: Limits) -> None:
        self._folder = folder
        self._domain = domain
        self._limits = limits
        self._kept: dict[str, _Kept] = {}
        for path in folder.glob("*.jsonl"):
            data = path.read_bytes()
            self._kept[unquote(path.stem)] = _Kept(data.count(b"\n"), len(data))

    def keep(self, name: str, attributes: dict[str, str], inner: bytes) -> bool:
        """Keep a message for an account, with the time as XEP-0203 says.

        False if it is none that is kept (nothing is said in it, or it asks not to be), or there is
        no room, or it cannot be written.
        """
        if _BODY not in inner or (_NO_STORE in inner and b"no-store" in inner):
            return False
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        delay = f"<delay xmlns='urn:xmpp:delay' from='{self._domain}' stamp='{now}'/>"
        record = json.dumps([attributes, inner.decode() + delay]).encode() + b"\n"
        kept = self._kept.get(name, _Kept())
        if kept.messages >= self._limits.offline:
            return False
        if kept.bytes + len(record) > self._limits.offline_bytes:
            return False
        try:
            self._append(self._path(name), record)
        except OSError as error:
            log.error("message_not_kept", account=name, error=str(error))
            return False
        kept.messages += 1
        kept.bytes += len(record)
        self._kept[name] = kept
        return True

    def _append(self, path: Path, record: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            before = os.fstat(descriptor).st_size
            if file.write(record) != len(record):
                # The disk is full: half a line would spoil the next one.
                os.ftruncate(descriptor, before)
                raise OSError("no room")

    def take(self, name: str) -> list[bytes]:
        """Give the stanzas that are kept for an account, oldest first, and keep them no longer."""
        if name not in self._kept:
            return []
        del self._kept[name]
        path = self._path(name)
        found: list[bytes] = []
        try:
            lines = path.read_bytes().splitlines()
            path.unlink()
        except OSError as error:
            log.error("messages_not_read", account=name, error=str(error))
            return []
        for line in lines:
            try:
                record: Any = json.loads(line)
                attributes, inner = record
                found.append(stanzas.encode("message", attributes, inner.encode()))
            except (ValueError, TypeError, AttributeError) as error:
                log.error("message_damaged", account=name, error=str(error))
        return found

    def forget_all_but(self, exists: Callable[[str], bool]) -> None:
        """Delete what is kept for accounts that are gone."""
        for name in [name for name in self._kept if not exists(name)]:
            del self._kept[name]
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{quote(name, safe='')}.jsonl"
