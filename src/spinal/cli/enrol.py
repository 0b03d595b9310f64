"""What a machine does to join: it shows its ticket once, and keeps what it was given in a folder.

The folder of a machine, readable by its owner only::

    nonce           drawn before the first try, so that a lost answer can be asked for again
    machine.json    everything that it was told but the password; written last
    password        of its account
    bus.pem         the authority of the bus, if it has one of its own
    agents/         the agents' files
    packages/       what they need besides
    lock            held by the `spinal join` that runs here
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import http.client
import json
import os
import random
import secrets
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from spinal.bus.errors import BusError, CertificateRefused, HomeError, LoginRefused
from spinal.bus.home import read_password
from spinal.bus.server.files import write
from spinal.dispatcher.joining import ticket
from spinal.protocols.retry import doubled

from .common import say

#: Seconds that a desk may take to answer, and most bytes of an answer.
TIME: Final = 60.0
MAX_ANSWER: Final = 4 * 1024 * 1024
#: Seconds for which a desk that cannot be reached is tried, and the longest pause between tries.
#: Within the time in which it gives the same answer once more.
PATIENCE: Final = 480.0
MAX_PAUSE: Final = 15.0


class Handed(msgspec.Struct, frozen=True):
    """A file that is handed out."""

    name: str
    sha256: str


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine is told when it joins."""

    address: str
    servers: list[str]
    dispatchers: list[str]
    uploads: list[str]
    ca: str | None
    agents: list[Handed]
    packages: list[str]
    run: list[str]
    place: dict[str, str]
    tags: list[str]
    cost: float | None
    password: str = ""
    #: SHA-256 of the ticket that it was told this for.
    ticket: str = ""


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of a machine; see the module."""

    path: Path

    @property
    def password(self) -> Path:
        """Where the password of its account is."""
        return self.path / "password"

    @property
    def ca(self) -> Path:
        """Where the authority of the bus is."""
        return self.path / "bus.pem"

    @property
    def agents(self) -> Path:
        """Where the agents' files are."""
        return self.path / "agents"

    @property
    def packages(self) -> Path:
        """Where the packages are that they need."""
        return self.path / "packages"

    def told(self) -> Told | None:
        """Give what the machine was told, if it has joined.

        Raises:
            HomeError: it cannot be understood.
        """
        file = self.path / "machine.json"
        try:
            return msgspec.json.decode(file.read_bytes(), type=Told)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise HomeError(
                f"{file} cannot be understood ({error}): delete it, and join with a new ticket"
            ) from error

    @contextmanager
    def held(self) -> Generator[None]:
        """Be the only ``spinal join`` in this folder.

        Raises:
            HomeError: another one is.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o700)
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise HomeError(
                    f"another `spinal join` runs in {self.path}: stop it first, or choose another "
                    f"--folder"
                ) from error
            yield
        finally:
            os.close(descriptor)

    def keep(self, told: Told, files: Mapping[str, bytes]) -> None:
        """Write down what the machine was given; who dies in between asks once more."""
        write(self.password, told.password.encode() + b"\n", 0o600)
        if told.ca is not None:
            write(self.ca, told.ca.encode(), 0o644)
        self.agents.mkdir(exist_ok=True, mode=0o700)
        for name, content in files.items():
            write(self.agents / ticket.check_file(name), content, 0o600)
        plain = msgspec.structs.replace(told, password="")
        write(self.path / "machine.json", msgspec.json.encode(plain) + b"\n", 0o600)

    def nonce(self) -> str:
        """Give the number that this machine has drawn."""
        file = self.path / "nonce"
        if not file.exists():
            write(file, secrets.token_hex(16).encode(), 0o600)
        return file.read_text().strip()

    def environment(self, told: Told, name: str) -> dict[str, str]:
        """Give the variables with which an agent of the machine logs in."""
        kept = {key: text for key, text in os.environ.items() if not key.startswith("SPINAL_")}
        for key in ("SPINAL_LOG", "SPINAL_DEBUG"):
            if key in os.environ:
                kept[key] = os.environ[key]
        found = {
            **kept,
            "SPINAL_ADDRESS": f"{told.address}/{ticket.resource(name)}",
            "SPINAL_PASSWORD_FILE": str(self.password),
            "SPINAL_SERVER": " ".join(told.servers),
            "SPINAL_DISPATCHER": " ".join(told.dispatchers),
            "SPINAL_UPLOAD": " ".join(told.uploads),
        }
        if told.ca is not None:
            found["SPINAL_CA"] = str(self.ca)
        if told.packages:
            paths = (kept.get("PYTHONPATH", ""), str(self.packages))
            found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return found


class Desk:
    """The desk as a machine sees it.

    Args:
        url: ``https://HOST:PORT``.
        ca: the only authority to trust; none means those of the system.

    Raises:
        HomeError: the URL is none, or the authority cannot be read.
    """

    def __init__(self, url: str, ca: Path | None) -> None:
        self._url = check_url(url)
        try:
            trust = ssl.create_default_context(cafile=ca)
        except (OSError, ssl.SSLError) as error:
            raise HomeError(f"--ca: {ca} is no certificate that can be read: {error}") from error
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trust))

    def join(self, text: str, nonce: str) -> Told:
        """Show a ticket, and give what the machine is told.

        Raises:
            LoginRefused: the ticket is not good.
            CertificateRefused: it is not the desk that we trust.
            BusError: it was not reached in time, or answers nonsense.
        """
        body = json.dumps({"ticket": text, "nonce": nonce}).encode()
        answer = self._ask("/join", body, {"Content-Type": "application/json"})
        try:
            told = msgspec.json.decode(answer, type=Told)
        except msgspec.DecodeError as error:
            raise BusError(f"{self._url} gave an answer that is none: {error}") from error
        return msgspec.structs.replace(told, ticket=ticket.digest(text))

    def file(self, told: Told, wanted: Handed) -> bytes:
        """Fetch an agent's file, and compare its hash; raises as :meth:`join`."""
        name = told.address.partition("@")[0]
        basic = base64.b64encode(f"{name}:{told.password}".encode()).decode()
        content = self._ask(f"/agents/{wanted.sha256}", None, {"Authorization": f"Basic {basic}"})
        if hashlib.sha256(content).hexdigest() != wanted.sha256:
            raise BusError(f"{self._url} gave another file than the {wanted.name} that it promised")
        return content

    def _ask(self, path: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
        request = urllib.request.Request(self._url + path, body, dict(headers))
        return patiently(lambda: self._once(request))

    def _once(self, request: urllib.request.Request) -> bytes:
        try:
            with self._opener.open(request, timeout=TIME) as answer:
                found: bytes = answer.read(MAX_ANSWER)
                return found
        except urllib.error.HTTPError as error:
            text = _reason(error)
            if error.code in (429, 503):
                raise _NotNowError(f"{self._url}: {text}") from error
            if error.code == 403:
                raise LoginRefused(f"{self._url} refused: {text}") from error
            raise BusError(f"{self._url} answered {error.code}: {text}") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise CertificateRefused(
                    f"{self._url} showed a certificate that --ca does not vouch for "
                    f"({error.reason.verify_message}): compare it with that of the home, and the "
                    f"clocks"
                ) from error
            raise _NotNowError(f"{self._url} is not reached: {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise _NotNowError(f"{self._url} is not reached: {error}") from error


class _NotNowError(BusError):
    """It may work later."""


def patiently(work: Callable[[], bytes], patience: float = PATIENCE) -> bytes:
    """Try until it works or ``patience`` seconds are over; raises what the last try raised."""
    end = time.monotonic() + patience
    tries = 0
    while True:
        try:
            return work()
        except _NotNowError as error:
            pause = doubled(0.5, tries, MAX_PAUSE) * random.uniform(0.5, 1.0)
            if time.monotonic() + pause > end:
                raise
            tries += 1
            say(f"spinal: {error}; again in {pause:.1f} s")
            time.sleep(pause)


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        said: Any = json.loads(error.read(4096))
        return " ".join(str(said["error"]).split())[:500]
    except (ValueError, KeyError, TypeError, OSError):
        return str(error.reason)


def check_url(url: str) -> str:
    """Give the URL of a desk without a slash at its end.

    Raises:
        HomeError: it is none.
    """
    parts = urlsplit(url)
    try:
        good = parts.scheme == "https" and bool(parts.hostname) and parts.port is not None
    except ValueError:
        good = False
    if not good or parts.path.strip("/") or parts.query or parts.username:
        raise HomeError(f"{url[:80]!r} is no address of a desk: write https://HOST:PORT")
    return f"https://{parts.netloc}"


def enrol(folder: Folder, url: str, file: Path | None, ca: Path | None, name: str | None) -> Told:
    """Give what this machine was told: from its folder, or for its ticket.

    A ticket file is deleted once it was used.

    Raises:
        HomeError: neither was there, or the ticket is another machine's.
        LoginRefused: the ticket is not good.
        BusError: the desk was not reached.
    """
    told = folder.told()
    text = "" if file is None or not file.exists() else read_password(file, "--ticket-file: ")
    # One that lies there once it was used is what a crash left.
    if told is not None and (not text or ticket.digest(text) == told.ticket):
        _check_name(told.address.partition("@")[0], name)
        if file is not None:
            file.unlink(missing_ok=True)
        return told
    if not text:
        where = "--ticket-file" if file is None else str(file)
        raise HomeError(
            f"{folder.path} has not joined, and there is no ticket ({where}): make one with "
            f"`spinal ticket create NAME` at the home"
        )
    _check_name(text.partition("/")[0], name)
    desk = Desk(url, ca)
    told = desk.join(text, folder.nonce())
    folder.keep(told, {one.name: desk.file(told, one) for one in told.agents})
    assert file is not None
    file.unlink(missing_ok=True)
    return told


def _check_name(own: str, wanted: str | None) -> None:
    if wanted not in (None, own):
        raise HomeError(f"this is the machine {own!r} or its ticket, and not {wanted!r}")
