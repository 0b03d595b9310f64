"""Rosters and subscriptions (RFC 6121, sections 2 and 3), one small file an account."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import structlog

from ..files import write
from . import stanzas

log = structlog.get_logger(__name__)

ROSTER: Final = "jabber:iq:roster"

#: (to, from) to the word for it.
_WORDS: Final = {(0, 0): "none", (1, 0): "to", (0, 1): "from", (1, 1): "both"}


@dataclass(slots=True)
class Contact:
    """One entry: what account and contact have agreed on, as the account's side sees it."""

    #: The account sees the contact's presence.
    to: bool = False
    #: The contact sees the account's presence.
    from_: bool = False
    #: The account has asked to see it, and has no answer yet.
    asked: bool = False
    #: The contact has asked, and waits for an answer.
    asks: bool = False
    #: Whether the account knows of the entry; not if it only holds a stranger's question.
    listed: bool = False
    name: str = ""
    groups: list[str] = field(default_factory=list[str])

    @property
    def empty(self) -> bool:
        """Whether there is nothing to keep."""
        return not (self.listed or self.asks or self.from_ or self.to or self.asked)

    def xml(self, address: str) -> str:
        """Give the ``<item/>``."""
        asked = " ask='subscribe'" if self.asked else ""
        name = f" name='{stanzas.escape(self.name)}'" if self.name else ""
        groups = "".join(f"<group>{stanzas.escape(group)}</group>" for group in self.groups)
        word = _WORDS[self.to, self.from_]
        return (
            f"<item jid='{stanzas.escape(address)}' subscription='{word}'{asked}{name}>"
            f"{groups}</item>"
        )


class Roster:
    """The contacts of one account, by bare address."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.contacts: dict[str, Contact] = {}
        try:
            record: dict[str, Any] = json.loads(path.read_bytes())
            self.contacts = {address: Contact(**each) for address, each in record.items()}
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, AttributeError) as error:
            # The roster of one account is not worth refusing all its logins.
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            log.error("roster_damaged", kept_as=str(aside), error=str(error))

    def get(self, address: str) -> Contact:
        """Give the entry, an empty one that is not kept if there is none."""
        return self.contacts.get(address) or Contact()

    def put(self, address: str, contact: Contact) -> None:
        """Keep the entry, or forget it if it is empty; on disk when this returns."""
        if contact.empty:
            self.contacts.pop(address, None)
        else:
            self.contacts[address] = contact
        record = {
            key: {name: getattr(each, name) for name in Contact.__slots__}
            for key, each in self.contacts.items()
        }
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(self._path, json.dumps(record).encode(), 0o600)

    def xml(self) -> bytes:
        """Give the whole ``<query/>``."""
        items = "".join(each.xml(key) for key, each in self.contacts.items() if each.listed)
        return f"<query xmlns='{ROSTER}'>{items}</query>".encode()


class Rosters:
    """The rosters below one folder, read when they are first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Roster] = {}

    def of(self, name: str) -> Roster:
        """Give the roster of an account."""
        roster = self._known.get(name)
        if roster is None:
            roster = self._known[name] = Roster(self._path(name))
        return roster

    def forget_all_but(self, exists: Callable[[str], bool]) -> None:
        """Delete the rosters of accounts that are gone."""
        for path in self._folder.glob("*.json"):
            name = unquote(path.stem)
            if not exists(name):
                self._known.pop(name, None)
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{quote(name, safe='')}.json"
