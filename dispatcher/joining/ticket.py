"""Tickets: who has one may make one account, once, and be handed what its agents need.

A ticket is ``NAME/SECRET``.  The name says which machine it is for; of the secret only the hash is
kept, so that who reads the store can join with nothing.  Pure, but for the dice of :func:`fresh`.

Theory of operation.  A machine sends its ticket with a number that it has drawn itself, the
*nonce*.  The first who comes takes the ticket: the record is kept under its version, so of two who
come at once exactly one does, whichever dispatcher each of them asks.  An answer may be lost on its
way, and a dispatcher may die between taking the ticket and answering.  So who comes again with the
same nonce, within :data:`AGAIN`, gets the same answer once more; nobody else does.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, cast

from spinal.agents.provider.settings import PREFIX
from spinal.bus.errors import HomeError
from spinal.bus.home import check_name
from spinal.protocols import Exit, Json, SpinalError, path

from ..store.contract import Record

#: What records of tickets are called.
KIND: Final = "ticket"

#: Milliseconds within which the same machine may ask once more.
AGAIN: Final = 10 * 60_000
#: Milliseconds after which a ticket that was used, or has expired, is forgotten.
FORGOTTEN: Final = 24 * 3_600_000

#: Bytes of the secret; 160 bits are 32 letters and digits.
_SECRET: Final = 20
#: Longest text of a ticket, and of a nonce, in characters.
MAX_TEXT: Final = 128
MIN_NONCE: Final = 16

#: Most files that are handed out with a ticket, and most bytes of all of them.
MAX_FILES: Final = 32
MAX_BYTES: Final = 512 * 1024
#: Most packages, and most characters of one.
MAX_PACKAGES: Final = 64
MAX_PACKAGE: Final = 200
MAX_TAGS: Final = 64

#: The agent that needs no file.
MACHINE: Final = "machine"


class JoiningError(SpinalError):
    """A ticket cannot be made or used; the text says why and what to do."""

    exit_code = Exit.USAGE.value


class Refused(JoiningError):
    """The ticket is not good for this."""

    exit_code = Exit.NOT_ALLOWED.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What is kept of a ticket.  Times are milliseconds since 1970 UTC."""

    #: Of the machine: its account.
    name: str
    #: SHA-256 of the secret, as hex digits.
    secret: str
    created: int
    expires: int
    #: Name of an agent's file -> its content.
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    #: What pip installs for them.
    packages: Sequence[str] = ()
    #: Which agents are run: names of files, and :data:`MACHINE`.
    run: Sequence[str] = (MACHINE,)
    #: Where the agents are, their tags, and the price of an hour of the machine.
    place: Mapping[str, str] = field(default_factory=dict[str, str])
    tags: Sequence[str] = ()
    cost: float | None = None
    #: When it was taken, and SHA-256 of the nonce with which.
    used: int | None = None
    nonce: str = ""
    #: Counts how often it was kept; 0 if it never was.
    version: int = 0

    def over(self, now: int) -> bool:
        """Whether nobody can do anything with it any more, so that it may be forgotten."""
        return now > (self.expires if self.used is None else self.used) + FORGOTTEN

    def state(self, now: int) -> str:
        """Say in a word how it is: ``used``, ``expired`` or ``open``."""
        if self.used is not None:
            return "used"
        return "expired" if now >= self.expires else "open"

    def file(self, sha256: str) -> bytes | None:
        """Give the content of the file with this hash."""
        for content in self.files.values():
            if hmac.compare_digest(digest(content), sha256):
                return content.encode()
        return None


def fresh(ticket: Ticket) -> tuple[Ticket, str]:
    """Give the ticket with a secret of its own, and its text, which is kept nowhere.

    Raises:
        JoiningError: something of it is wrong.
    """
    check(ticket)
    secret = base64.b32encode(secrets.token_bytes(_SECRET)).decode().lower()
    return replace(ticket, secret=digest(secret), used=None, nonce=""), f"{ticket.name}/{secret}"


def check(ticket: Ticket) -> None:
    """See whether what is asked of a ticket is possible.

    Raises:
        JoiningError: it is not; one line that says what to write.
    """
    try:
        check_name(ticket.name)
    except HomeError as error:
        raise JoiningError(str(error)) from error
    if ticket.name.startswith(PREFIX):
        # Who has such an account is asked to rent machines.
        raise JoiningError(
            f"{ticket.name!r} is the name of a provider agent: choose one that does not begin "
            f"with {PREFIX!r}"
        )
    path.check_places(dict(ticket.place))
    if len(ticket.files) > MAX_FILES or sum(map(_size, ticket.files.items())) > MAX_BYTES:
        raise JoiningError(
            f"agent files of a machine are at most {MAX_FILES}, and {MAX_BYTES} bytes together: "
            f"put the rest into a package"
        )
    for name in ticket.files:
        check_file(name)
    if len(ticket.packages) > MAX_PACKAGES or len(ticket.tags) > MAX_TAGS:
        raise JoiningError(f"at most {MAX_PACKAGES} packages and {MAX_TAGS} tags")
    for package in ticket.packages:
        if not 0 < len(package) <= MAX_PACKAGE or package[0] == "-" or not package.isprintable():
            raise JoiningError(f"{package[:80]!r} is no package: write it as for pip install")
    if not ticket.run:
        raise JoiningError(f"nothing to run: name agent files, or {MACHINE}")
    for name in ticket.run:
        if name != MACHINE and name not in ticket.files:
            raise JoiningError(f"{name!r} is to run and is no file of the ticket")
    taken = [resource(name) for name in ticket.run]
    if len(set(taken)) < len(taken):
        raise JoiningError(f"two agents of {ticket.name} would have one name: rename a file")


def check_file(name: str) -> str:
    """Give the name of an agent's file back if it can be one on every machine.

    Raises:
        JoiningError: it cannot.
    """
    stem, dot, ending = name.rpartition(".")
    plain = stem.replace("-", "").replace("_", "")
    if not dot or ending not in ENDINGS or not (plain.isascii() and plain.isalnum()):
        raise JoiningError(
            f"{name[:80]!r} cannot be the name of an agent's file: use letters, digits, '_' and "
            f"'-', and one of {', '.join(f'.{one}' for one in ENDINGS)} at the end"
        )
    if len(name) > 64 or name[0] == "-":
        raise JoiningError(f"{name[:80]!r} is longer than 64 characters, or begins with '-'")
    return name


#: Ending of an agent's file -> the verb that runs it.
ENDINGS: Final[Mapping[str, str]] = {"py": "agent", "yaml": "wrap", "yml": "wrap"}


def resource(name: str) -> str:
    """Give the resource (RFC 7622, 3.4) under which an agent of a machine is on the bus."""
    return name.rpartition(".")[0] or name


def taken(ticket: Ticket | None, secret: str, nonce: str, now: int) -> Ticket:
    """Give the ticket as it is once this machine has it; unchanged if it had it already.

    Args:
        ticket: as it is kept, if it is.
        secret: what the machine has shown.
        nonce: what it has drawn itself.
        now: the time.

    Raises:
        Refused: the machine does not get it.
    """
    # The comparison is made in any case: how long it takes tells nothing.
    fits = hmac.compare_digest("" if ticket is None else ticket.secret, digest(secret))
    if ticket is None or not fits:
        raise Refused("the ticket is not known here: make a new one with `spinal ticket create`")
    if not MIN_NONCE <= len(nonce) <= MAX_TEXT:
        raise Refused(f"a nonce has {MIN_NONCE} to {MAX_TEXT} characters")
    if ticket.used is None:
        if now >= ticket.expires:
            raise Refused(f"the ticket of {ticket.name} has expired: make a new one")
        return replace(ticket, used=now, nonce=digest(nonce))
    if now > ticket.used + AGAIN or not hmac.compare_digest(ticket.nonce, digest(nonce)):
        raise Refused(f"the ticket of {ticket.name} was used already: make a new one")
    return ticket


def split(text: str) -> tuple[str, str]:
    """Give name and secret of a ticket's text.

    Raises:
        Refused: it is none.
    """
    name, slash, secret = text.strip().partition("/")
    if len(text) > MAX_TEXT or not (slash and secret.isascii() and secret.isalnum()):
        raise Refused("that is no ticket: it has the form NAME/SECRET")
    try:
        return check_name(name), secret
    except HomeError as error:
        raise Refused("that is no ticket: it has the form NAME/SECRET") from error


def digest(text: str) -> str:
    """Give the SHA-256 of a text as hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _size(file: tuple[str, str]) -> int:
    return len(file[1].encode())


# As a record of the store.


_APART: Final = ("name", "version")


def written(ticket: Ticket) -> Record:
    """Give the record of a ticket."""
    body: Json = {name: item for name, item in asdict(ticket).items() if name not in _APART}
    return Record(KIND, ticket.name, ticket.version, body)


def read(record: Record) -> Ticket:
    """Give the ticket of a record."""
    members = dict(cast("Mapping[str, Any]", record.body))
    for name in ("packages", "run", "tags"):
        members[name] = tuple(members[name])
    return Ticket(name=record.name, version=record.version, **members)
