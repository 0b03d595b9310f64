"""The home folder: where a platform keeps its settings, accounts, secrets and locks.

One home is one tenant.  Everything that finds the bus by itself (``spinal up``, the other commands,
:class:`~spinal.bus.Client`, agents) asks here, so that ``--home`` is all one has to agree on::

    home.json              version, id, domain, kind of server, where it listens, ports
    providers.yaml         the vendors' accounts, if there are any but this machine
    machines/              what the machines of local accounts have
    accounts.json          name -> role
    secrets/NAME.password  what the account logs in with
    secrets/component      what the dispatcher's component logs in with
    server/                the XMPP server's folder; its authority is server/ca.pem
    joining/               certificates and wheels for machines that join
    agents/NAME.lock       held by the agent that runs under this name
    dispatcher/            the dispatcher's own files; others.json names the others on its store
    run/up.lock            held by ``spinal up``

Files are replaced in one step.  Locks are ``flock``s: they end with the process that held them,
so a stale one cannot be.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
import re
import secrets
import socket
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from spinal.protocols import Exit, LocalProtocolError, address

from .errors import HomeError
from .server.contract import Ports, ServerConfig
from .server.files import write
from .server.ports import free_port, free_ports, reachable

#: Version of the layout.  A home with a higher one was made by a newer Spinal.
VERSION: Final = 1

#: What an account may be.
ROLES: Final = ("caller", "agent", "dispatcher", "owner", "gateway")

#: Servers that Spinal starts by itself; anything else is the address of one that runs elsewhere.
MANAGED: Final = ("embedded", "prosody", "ejabberd")

DOMAIN: Final = "spinal.localhost"
OWNER: Final = "owner"
#: Port of client streams that is used where none is given (RFC 6120, 14.7).
CLIENT_PORT: Final = 5222

#: Longest file that is read as a password, in bytes.
MAX_SECRET: Final = 4096
#: Most agents of one file that may run at once.
MAX_NUMBER: Final = 100_000
#: Most nodes of one server.
MAX_NODES: Final = 16
#: Most dispatchers on one store whose addresses are kept.
MAX_OTHERS: Final = 100

_FOLDERS: Final = ("secrets", "server", "agents", "dispatcher", "run")
#: What may be where a home is made: what an interrupted making left, and what was put there before.
_BEFORE: Final = frozenset({*_FOLDERS, "accounts.json", "ca.pem", "providers.yaml"})
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ODD = re.compile(r"[^a-z0-9._-]+")


class NoHome(HomeError):
    """There is no home at that place yet."""


class NeverUp(HomeError):
    """The home's server was never started, so there is nothing to log in to and to trust."""

    exit_code = Exit.UNREACHED.value


@dataclass(frozen=True, slots=True)
class Credentials:
    """All that one program needs to log in and to know whom to believe."""

    #: Bare, or full where the program must be found at a fixed address.
    address: str
    password: str = field(repr=False)
    #: The only authority to trust; none means those of the system.
    ca: Path | None
    host: str
    port: int
    #: Addresses of the dispatchers of this bus, full or of a component.
    dispatchers: tuple[str, ...]
    #: ``host:port`` from which blobs may be fetched; ``host`` alone allows any port.
    uploads: tuple[str, ...]
    #: The home they are from, if they are from one.
    home: Path | None = field(default=None, compare=False)
    #: Host and port of the server's further nodes, if it is a cluster.
    further: tuple[tuple[str, int], ...] = ()

    @property
    def domain(self) -> str:
        """Domain of the server."""
        return address.domain(self.address)

    @classmethod
    def find(
        cls, environ: Mapping[str, str] = os.environ, home: Home | Path | None = None
    ) -> Credentials:
        """Find them: those of the home if one is given, else the environment, else the home.

        ``SPINAL_ADDRESS`` in the environment decides; ``SPINAL_PASSWORD_FILE`` then has to be
        there.  ``SPINAL_CA`` is the authority's file (else those of the system are trusted),
        ``SPINAL_SERVER`` is ``host`` or ``host:port`` (else the address's domain), several of
        them for the nodes of a cluster, separated by spaces, which are tried in turn,
        ``SPINAL_DISPATCHER`` lists dispatchers, separated by spaces (else
        ``dispatcher.DOMAIN``), ``SPINAL_UPLOAD`` lists ``host`` or ``host:port`` of blobs (else
        the host of the server).

        Raises:
            HomeError: something is missing or cannot be read; the text says what to do.
        """
        if home is None and "SPINAL_ADDRESS" in environ:
            return cls._of_environment(environ)
        if home is None:
            stray = [name for name in _NEEDS_ADDRESS if name in environ]
            if stray:
                raise HomeError(f"{stray[0]} is set without SPINAL_ADDRESS: set that one as well")
        found = home if isinstance(home, Home) else Home.find(home, environ)
        return found.credentials()

    @property
    def endpoints(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each node of the server, in the order in which they are tried."""
        return (self.host, self.port), *self.further

    def present_endpoints(self) -> tuple[tuple[str, int], ...]:
        """Give the endpoints as they are now: a home may have been started with others."""
        if self.home is not None:
            with suppress(HomeError):
                return Home.find(self.home, {}).endpoints
        return self.endpoints

    @classmethod
    def _of_environment(cls, environ: Mapping[str, str]) -> Credentials:
        who = environ["SPINAL_ADDRESS"]
        try:
            address.check(who)
        except LocalProtocolError as error:
            raise HomeError(f"SPINAL_ADDRESS: {error}") from error
        if not address.local(who):
            raise HomeError(f"SPINAL_ADDRESS: {who!r} has no name: write name@domain")
        domain = address.domain(who)
        if "SPINAL_PASSWORD_FILE" not in environ:
            raise HomeError("SPINAL_ADDRESS is set without SPINAL_PASSWORD_FILE: set that one too")
        password = read_password(Path(environ["SPINAL_PASSWORD_FILE"]), "SPINAL_PASSWORD_FILE: ")
        ca = Path(environ["SPINAL_CA"]) if environ.get("SPINAL_CA") else None
        if ca is not None:
            with _told("SPINAL_CA: "), ca.open("rb"):
                pass
        nodes = split_endpoints(environ.get("SPINAL_SERVER") or domain, "SPINAL_SERVER: ")
        hosts = dict.fromkeys(bracketed(host) for host, _ in nodes)
        return cls(
            who,
            password,
            ca,
            *nodes[0],
            tuple((environ.get("SPINAL_DISPATCHER") or f"dispatcher.{domain}").split()),
            tuple((environ.get("SPINAL_UPLOAD") or " ".join(hosts)).split()),
            further=nodes[1:],
        )


_NEEDS_ADDRESS: Final = ("SPINAL_PASSWORD_FILE", "SPINAL_SERVER", "SPINAL_CA")


@dataclass(frozen=True, slots=True)
class Home:
    """A home that exists: its settings as they were read.  Accounts are read when asked for."""

    path: Path
    domain: str
    #: One of :data:`MANAGED`, or ``host`` or ``host:port`` of a server that runs elsewhere, several
    #: of them if it is a cluster.
    server: str
    #: Address that a managed server listens on.
    listen: str
    ports: Ports
    #: Host by which other machines reach a managed server that listens on all addresses.
    public_host: str = ""
    #: Authority of a server that runs elsewhere; none means those of the system.
    authority: Path | None = None
    #: Where the dispatcher keeps jobs, if not in a file of the home; may hold a password.
    store_url: str = field(default="", repr=False)
    #: Its id, if it had one when it was read; ask :attr:`id`.
    given_id: str = ""

    # Finding and making.

    @staticmethod
    def locate(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
        """Say where the home is or would be: ``path``, ``$SPINAL_HOME``, the XDG data folder."""
        if path is not None:
            return path.expanduser().absolute()
        if environ.get("SPINAL_HOME"):
            return Path(environ["SPINAL_HOME"]).expanduser().absolute()
        data = environ.get("XDG_DATA_HOME", "")
        # A relative path there is to be ignored (XDG Base Directory Specification, 0.8).
        base = Path(data) if data.startswith("/") else Path("~/.local/share").expanduser()
        return base / "spinal"

    @classmethod
    def find(cls, path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Home:
        """Open the home that :meth:`locate` names.

        Raises:
            NoHome: there is none yet.
            HomeError: it cannot be read, or was made by a newer Spinal; nothing was touched.
        """
        place = cls.locate(path, environ)
        settings = place / "home.json"
        try:
            text = settings.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            if place.is_dir() and any(place.iterdir()):
                raise NoHome(
                    f"{place} is not a home (no home.json in it): choose another with --home"
                ) from None
            if place.exists() and not place.is_dir():
                raise NoHome(f"{place} is no folder: choose another with --home") from None
            raise NoHome(f"no home at {place}: start one with `spinal up`") from None
        except OSError as error:
            raise HomeError(f"{settings} cannot be read: {error.strerror}") from error
        return cls._read(place, text)

    @classmethod
    def create(
        cls,
        path: Path | None = None,
        *,
        domain: str = DOMAIN,
        server: str = "embedded",
        listen: str = "127.0.0.1",
        authority: Path | None = None,
        store: str | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Home:
        """Make a home with the account ``owner``, and choose its ports.

        Raises:
            HomeError: it exists already, its place is not empty or cannot be written, or the
                domain, address or store is none.
            ServerError: no free ports at ``listen``.
        """
        place = cls.locate(path, environ)
        _check_domain(domain)
        managed = server in MANAGED
        if not managed:
            split_endpoints(server, "--server: ")
        if store is not None:
            check_store(store)
        with _told(f"no home can be made at {place}: "):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            if (place / "home.json").exists():
                raise HomeError(f"there is a home at {place} already: use it, or choose another")
            # What an interrupted making left behind is taken up, and nothing of it made twice.
            if {entry.name for entry in place.iterdir()} - _BEFORE:
                raise HomeError(
                    f"{place} is not empty and not a home: choose another folder with --home"
                )
            place.chmod(0o700)
            home = cls(
                place,
                domain,
                server,
                listen,
                free_ports(listen if managed else "127.0.0.1"),
                _public_host(listen),
                store_url=store or "",
                given_id=_fresh_id(),
            )
            for folder in _FOLDERS:
                (place / folder).mkdir(exist_ok=True, mode=0o700)
            if not home._component_file.exists():
                _write_secret(home._component_file, secrets.token_urlsafe(24))
            if not home._accounts_file.exists():
                home._write_accounts({})
            if managed:
                home.add_account(OWNER, OWNER)
            # Last, because it is what makes the folder a home.
            if authority is not None:
                return home.with_authority(authority)
            home._save()
        return home

    @classmethod
    def _read(cls, place: Path, text: bytes) -> Home:
        try:
            raw = json.loads(text)
            version = raw["version"]
            if version > VERSION:
                raise HomeError(
                    f"{place} was made by a newer Spinal (layout {version}, this one knows "
                    f"{VERSION}): update spinal, or choose another --home"
                )
            found = cls(
                place,
                raw["domain"],
                raw["server"],
                raw["listen"],
                Ports(**raw["ports"]),
                raw.get("public_host", ""),
                place / "ca.pem" if raw.get("authority") else None,
                raw.get("store") or "",
                str(raw.get("id") or ""),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise HomeError(
                f"{place / 'home.json'} cannot be understood ({error}): put it back from a "
                f"backup, or choose another --home"
            ) from error
        return found

    def changed(
        self, *, server: str | None = None, listen: str | None = None, store: str | None = None
    ) -> Home:
        """Give and keep the home with another server, listening address or store; ports stay.

        Jobs stay in the store that they are in.
        """
        where = listen or self.listen
        home = replace(
            self,
            server=server or self.server,
            listen=where,
            public_host=_public_host(where),
            store_url=self.store_url if store is None else check_store(store),
        )
        home._save()
        return home

    def with_authority(self, file: Path) -> Home:
        """Give and keep the home with a copy of the authority of a server that runs elsewhere."""
        with _told("--ca: "):
            write(self.path / "ca.pem", file.read_bytes(), 0o644)
        home = replace(self, authority=self.path / "ca.pem")
        home._save()
        return home

    def with_desk(self) -> Home:
        """Give the home with a port at which machines join; chosen and kept if it has none yet.

        Raises :class:`~spinal.bus.server.ServerError` if no port is free.
        """
        if self.ports.desk:
            return self
        desk = free_port(self.listen, self.ports)
        home = replace(self, ports=replace(self.ports, desk=desk))
        home._save()
        return home

    def _save(self) -> None:
        settings: dict[str, Any] = {
            "version": VERSION,
            "domain": self.domain,
            "server": self.server,
            "listen": self.listen,
            "ports": {
                "c2s": self.ports.c2s,
                "component": self.ports.component,
                "upload": self.ports.upload,
                "desk": self.ports.desk,
            },
            "public_host": self.public_host,
            "authority": self.authority is not None,
            **({"store": self.store_url} if self.store_url else {}),
            # One that was given meanwhile stays.
            **({"id": id} if (id := self.given_id or self._kept_id()) else {}),
            # For readers that are not Spinal; found from the rest when it is read.
            "dispatchers": self.dispatchers,
            "uploads": self.uploads,
        }
        with _told():
            write(self.path / "home.json", _json(settings), 0o600)

    def _kept_id(self) -> str:
        with suppress(OSError, ValueError, AttributeError):
            return str(json.loads((self.path / "home.json").read_bytes()).get("id") or "")
        return ""

    # What follows from the settings.

    @property
    def id(self) -> str:
        """Short random word that tells what is this home's from what is another's, for ever.

        Machines at vendors are tagged with it.  A home of an older Spinal gets one now.

        Raises :class:`HomeError` if that cannot be written.
        """
        if self.given_id:
            return self.given_id
        with self._locked():
            found = Home.find(self.path, {})
            if not found.given_id:
                found = replace(found, given_id=_fresh_id())
                found._save()
        return found.given_id

    @property
    def managed(self) -> bool:
        """Whether ``spinal up`` runs the server itself."""
        return self.server in MANAGED

    @property
    def ca(self) -> Path | None:
        """The authority to trust; a managed server makes it at its first start."""
        return self.path / "server" / "ca.pem" if self.managed else self.authority

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port at which this machine reaches the server, or its first node."""
        return self.endpoints[0]

    @property
    def endpoints(self) -> tuple[tuple[str, int], ...]:
        """Host and port at which this machine reaches each node of the server."""
        if self.managed:
            return ((reachable(self.listen), self.ports.c2s),)
        return split_endpoints(self.server)

    @property
    def dispatcher(self) -> str:
        """Address of the dispatcher of this home: a component where we configure the server."""
        if self.managed:
            return f"dispatcher.{self.domain}"
        return f"{self.dispatcher_account}@{self.domain}/dispatcher"

    @property
    def dispatcher_account(self) -> str:
        """Account that the dispatcher uses at a server that runs elsewhere: the one with that role.

        Raises :class:`HomeError` if there are several.
        """
        names = [name for name, role in self.accounts().items() if role == "dispatcher"]
        if len(names) > 1:
            raise HomeError(
                f"{self.path} has several accounts with the role dispatcher ({', '.join(names)}), "
                f"and runs one: `spinal account remove NAME` the others"
            )
        return names[0] if names else "dispatcher"

    @property
    def dispatchers(self) -> tuple[str, ...]:
        """Addresses of the dispatchers: our own, then the others on its store, as it last met them."""
        return tuple(dict.fromkeys((self.dispatcher, *self._others())))

    def _others(self) -> list[str]:
        # Only a help for those who come while our own is away, so a bad one is as good as none.
        with suppress(OSError, ValueError, KeyError, TypeError, LocalProtocolError):
            raw = json.loads(self._others_file.read_bytes())["dispatchers"]
            return [address.check(str(one)) for one in raw[:MAX_OTHERS]]
        return []

    def keep_others(self, addresses: Iterable[str]) -> None:
        """Keep the addresses of the other dispatchers, for programs that come later.

        Raises :class:`HomeError` if they cannot be written.
        """
        others = sorted(set(addresses) - {self.dispatcher})
        if others != self._others():
            with _told():
                write(self._others_file, _json({"dispatchers": others[:MAX_OTHERS]}), 0o600)

    @property
    def _others_file(self) -> Path:
        return self.dispatcher_folder / "others.json"

    @property
    def uploads(self) -> tuple[str, ...]:
        """Where blobs come from, ``host:port``; ``host`` alone on a server that runs elsewhere."""
        if self.managed:
            config = self.server_config(secret="")
            return (f"{bracketed(config.upload_host)}:{self.ports.upload}",)
        # The upload service is somewhere in the domain; which host, only the server knows.
        hosts = (*(host for host, _ in self.endpoints), self.domain, f"upload.{self.domain}")
        return tuple(dict.fromkeys(bracketed(host) for host in hosts))

    def server_config(self, secret: str | None = None) -> ServerConfig:
        """Say how the managed server of this home is to be run."""
        return ServerConfig(
            self.path / "server",
            self.domain,
            self.ports,
            self.listen,
            self.public_host,
            {self.dispatcher: self.component_secret() if secret is None else secret},
        )

    @property
    def store(self) -> str:
        """Where the dispatcher keeps jobs, as a database URL; show it only :func:`masked`."""
        return self.store_url or f"sqlite:///{self.dispatcher_folder / 'jobs.db'}"

    @property
    def dispatcher_folder(self) -> Path:
        """Where the dispatcher keeps its files."""
        return self.path / "dispatcher"

    # Accounts.

    def accounts(self) -> dict[str, str]:
        """Give the role of every account by its name."""
        file = self._accounts_file
        with _told():
            text = file.read_bytes()
        try:
            raw = dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise HomeError(f"{file} is damaged: put it back from a backup") from error
        return {str(name): str(role) for name, role in raw.items()}

    def add_account(self, name: str, role: str, password: str | None = None) -> None:
        """Make an account with a random password, or the one given.

        One that is there with the same role keeps its password unless another is given.  A
        server that runs already has to be told separately (``spinal.bus.server.add_account``).

        Raises:
            HomeError: the name or role is none, or the account has another role.
        """
        if password is not None and not 0 < len(password.encode()) <= MAX_SECRET:
            raise HomeError(f"the password of {name!r} is empty or longer than {MAX_SECRET} bytes")
        self._add({name: password}, role)

    def add_accounts(self, names: Iterable[str], role: str) -> None:
        """Make many accounts with random passwords, all or none; see :meth:`add_account`."""
        self._add(dict.fromkeys(names), role)

    def _add(self, wanted: Mapping[str, str | None], role: str) -> None:
        if role not in ROLES:
            raise HomeError(f"{role!r} is no role: use {', '.join(ROLES)}")
        for name in wanted:
            check_name(name)
        with self._locked():
            accounts = self.accounts()
            for name in wanted:
                if (known := accounts.get(name, role)) != role:
                    raise HomeError(
                        f"account {name!r} is there with the role {known}: choose another name, or "
                        f"`spinal account remove {name}` first"
                    )
                if role == "dispatcher" and not self.managed:
                    self._check_only_dispatcher(name, accounts)
            fresh = {name: role for name in wanted if name not in accounts}
            for name, password in wanted.items():
                if name in fresh or password is not None:
                    # The password first, so that every account that is listed has one.
                    _write_secret(self.password_file(name), password or secrets.token_urlsafe(24))
            if fresh:
                self._write_accounts({**accounts, **fresh})
        self._renew_settings(role)

    def _check_only_dispatcher(self, name: str, accounts: Mapping[str, str]) -> None:
        others = [one for one, role in accounts.items() if role == "dispatcher" and one != name]
        if others:
            raise HomeError(
                f"{self.path} runs the dispatcher {others[0]!r} already: a further one has a home "
                f"of its own (choose another --home)"
            )

    def _renew_settings(self, role: str | None) -> None:
        """Say in the settings how the dispatcher is called now."""
        if role == "dispatcher" and not self.managed:
            self._save()

    def remove_account(self, name: str) -> None:
        """Forget an account and its password.

        Raises:
            HomeError: there is none of that name, or it is the owner's.
        """
        if name == OWNER:
            raise HomeError("the account 'owner' belongs to the home and cannot be removed")
        with self._locked():
            accounts = self.accounts()
            role = accounts.pop(name, None)
            if role is None:
                raise HomeError(f"no account {name!r}: `spinal account list` shows them")
            self._write_accounts(accounts)
            with _told():
                self.password_file(name).unlink(missing_ok=True)
        self._renew_settings(role)

    def password_file(self, name: str) -> Path:
        """Say where the account's password is."""
        return self.path / "secrets" / f"{name}.password"

    def password(self, name: str) -> str:
        """Give the password of an account.

        Raises:
            HomeError: it cannot be read, or others may read it.
        """
        return _own_secret(self.password_file(name))

    def component_secret(self) -> str:
        """Give the secret of the dispatcher's component (XEP-0114)."""
        return _own_secret(self._component_file)

    def credentials(self, name: str = OWNER, resource: str = "") -> Credentials:
        """Give what the account logs in with; ``resource`` makes the address a full one.

        Raises:
            HomeError: there is no such account, or its password cannot be read.
            NeverUp: the managed server has not made its authority yet.
        """
        if name not in self.accounts():
            raise HomeError(
                f"no account {name!r} in {self.path}: make it with "
                f"`spinal account add {name} --role ROLE{self._password_option}`"
            )
        if self.managed and self.ca is not None and not self.ca.exists():
            raise NeverUp(f"the home {self.path} was never up: start it with `spinal up`")
        who = f"{name}@{self.domain}"
        first, *further = self.endpoints
        return Credentials(
            f"{who}/{resource}" if resource else who,
            self.password(name),
            self.ca,
            *first,
            self.dispatchers,
            self.uploads,
            self.path,
            tuple(further),
        )

    def environment(self, name: str) -> dict[str, str]:
        """Give the ``SPINAL_*`` variables that do for a program what the home does for ours."""
        nodes = [(self.public_host or host, port) for host, port in self.endpoints]
        values = {
            "SPINAL_ADDRESS": f"{name}@{self.domain}",
            "SPINAL_PASSWORD_FILE": str(self.password_file(name)),
            "SPINAL_SERVER": " ".join(f"{bracketed(host)}:{port}" for host, port in nodes),
            "SPINAL_DISPATCHER": " ".join(self.dispatchers),
            "SPINAL_UPLOAD": " ".join(self.uploads),
        }
        if self.ca is not None:
            values["SPINAL_CA"] = str(self.ca)
        return values

    @property
    def _password_option(self) -> str:
        return "" if self.managed else " --password-file FILE"

    @property
    def _accounts_file(self) -> Path:
        return self.path / "accounts.json"

    @property
    def _component_file(self) -> Path:
        return self.path / "secrets" / "component"

    def _write_accounts(self, accounts: Mapping[str, str]) -> None:
        with _told():
            write(self._accounts_file, _json(dict(sorted(accounts.items()))), 0o600)

    # Locks.

    @contextmanager
    def claim_agent_name(
        self, stem: str, explicit: str | None = None, role: str = "agent"
    ) -> Generator[str]:
        """Hold a name that no other running agent has, and no account of another role than this.

        Without ``explicit`` it is made of ``stem`` (a file's name) with the lowest free number:
        ``worker``, ``worker-2``, ...  The name is free again when the block or the process ends.

        Raises:
            HomeError: the explicit name is taken, or is none.
        """
        with _told():
            (self.path / "agents").mkdir(exist_ok=True, mode=0o700)
        for name in _numbered(stem) if explicit is None else (check_name(explicit),):
            known = self.accounts().get(name)
            if known not in (None, role):
                if explicit is None:
                    continue
                raise HomeError(
                    f"account {name!r} is there with the role {known}, and this agent needs the "
                    f"role {role}: choose another --name"
                )
            lock = self.path / "agents" / f"{name}.lock"
            descriptor = _try_lock(lock)
            if descriptor is not None:
                try:
                    yield name
                finally:
                    _unlock(descriptor)
                return
            if explicit is not None:
                raise HomeError(
                    f"agent name {name!r} is taken by a running agent{_holder(lock)}: choose "
                    f"another --name"
                )
        raise HomeError(f"{MAX_NUMBER} agents called {stem!r} run already: choose a --name")

    @contextmanager
    def hold(self) -> Generator[None]:
        """Be the one ``spinal up`` of this home.

        Raises:
            HomeError: another one is; the text names its process.
        """
        with _told():
            self._up_lock.parent.mkdir(exist_ok=True, mode=0o700)
        descriptor = _try_lock(self._up_lock)
        if descriptor is None:
            raise HomeError(
                f"{self.path} is up already{_holder(self._up_lock)}: use it as it is, or stop "
                f"that `spinal up` first"
            )
        try:
            yield
        finally:
            _unlock(descriptor)

    def holder(self) -> int | None:
        """Give the process of ``spinal up`` if one runs for this home."""
        return _pid_of_holder(self._up_lock)

    @property
    def _up_lock(self) -> Path:
        return self.path / "run" / "up.lock"

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Keep other processes from changing the accounts meanwhile."""
        with _told():
            descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class Roles:
    """Who may do what, by address; read again whenever the home's accounts have changed.

    Cheap enough to be asked for every stanza: one ``stat`` a question.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._seen: tuple[int, int, int] | None = None
        self._table: Mapping[str, str] = {}

    def of(self, who: str) -> str | None:
        """Give the role of the account at an address; none if the home does not know it."""
        return self.table().get(address.bare(who))

    def table(self) -> Mapping[str, str]:
        """Give the role of every account, and of the dispatcher's component, by bare address."""
        home = self._home
        with _told():
            status = os.stat(home.path / "accounts.json")
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp != self._seen:
            found = {f"{name}@{home.domain}": role for name, role in home.accounts().items()}
            if home.managed:
                found[home.dispatcher] = "dispatcher"
            self._table, self._seen = found, stamp
        return self._table


def check_name(name: str) -> str:
    """Give the account's name back, or raise :class:`HomeError` if it can be none."""
    if not _NAME.fullmatch(name):
        raise HomeError(
            f"{name!r} cannot be a name: use lower-case letters, digits, '.', '_' and '-', "
            f"at most 64, beginning with a letter or digit"
        )
    return name


def check_store(url: str) -> str:
    """Give the URL of a store back, or raise :class:`HomeError` if it can be none."""
    if not re.match(r"sqlite:////.|postgres(ql)?://.", url):
        raise HomeError(
            f"--store: {masked(url)[:80]!r} is no store: write postgresql://USER@HOST/DATABASE, or "
            f"sqlite:////PATH/OF/A/FILE"
        )
    return url


def masked(url: str) -> str:
    """Give a URL as it may be shown: without the password in it."""
    url = re.sub(r"(://[^/?#:@]*):.*@", r"\1:***@", url, count=1)
    return re.sub(r"([?&]password=)[^&#]*", r"\1***", url)


def split_endpoint(text: str, what: str = "") -> tuple[str, int | None]:
    """Take ``host``, ``host:port`` or ``[v6]:port`` apart.

    Raises:
        HomeError: it is none of them.
    """
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s,;:/@\[\]]+))(?::([0-9]{1,5}))?", text)
    if found is None and re.fullmatch(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]+", text):
        return text, None
    port = int(found[3]) if found and found[3] else None
    if found is None or (port is not None and not 0 < port < 65_536):
        raise HomeError(f"{what}{text[:80]!r} is no address: write HOST or HOST:PORT")
    return found[1] or found[2], port


def split_endpoints(text: str, what: str = "") -> tuple[tuple[str, int], ...]:
    """Take one or several of them apart, separated by spaces; :data:`CLIENT_PORT` if none is given.

    Raises:
        HomeError: one is none of them, or there are none or too many.
    """
    found = [split_endpoint(one, what) for one in text.split()]
    if not 0 < len(found) <= MAX_NODES:
        raise HomeError(f"{what}give 1 to {MAX_NODES} addresses, not {len(found)}")
    return tuple((host, port or CLIENT_PORT) for host, port in found)


def bracketed(host: str) -> str:
    """Write a host as it stands before ``:port`` in a URL (RFC 3986, 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def _check_domain(domain: str) -> None:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?", domain) or ".." in domain:
        raise HomeError(f"--domain: {domain[:80]!r} is no domain: write it like bus.example.org")


def _public_host(listen: str) -> str:
    """Give the address by which other machines reach us if we listen on all of them."""
    if listen not in ("0.0.0.0", "::"):
        return ""
    family, remote = (
        (socket.AF_INET6, "2001:db8::1") if listen == "::" else (socket.AF_INET, "192.0.2.1")
    )
    with socket.socket(family, socket.SOCK_DGRAM) as probe, suppress(OSError):
        # Sends nothing: it only asks the kernel which of our addresses it would use.
        probe.connect((remote, 9))
        return str(probe.getsockname()[0])
    return socket.gethostname()


def _fresh_id() -> str:
    """Make an id of 8 small letters and digits, which every vendor takes in a tag."""
    return base64.b32encode(secrets.token_bytes(5)).decode().lower()


def _numbered(stem: str) -> Iterable[str]:
    base = _ODD.sub("-", stem.lower()).strip("-._")[:48] or "agent"
    yield base
    yield from (f"{base}-{number}" for number in range(2, MAX_NUMBER))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


@contextmanager
def _told(what: str = "") -> Generator[None]:
    """Turn an error of the operating system into one line that says what to do."""
    try:
        yield
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        hint = _HINTS.get(error.errno or 0, "check the path")
        raise HomeError(f"{what}{name}{error.strerror or error}; {hint}") from error


_HINTS: Final[Mapping[int, str]] = {
    errno.EACCES: "make it writable for you, or choose another place with --home",
    errno.EPERM: "make it yours, or choose another place with --home",
    errno.EROFS: "choose another place with --home",
    errno.ENOSPC: "make room on the disk",
    errno.ENOENT: "check that it is there",
    errno.ENOTDIR: "choose another place with --home",
}


# Secrets.


def _write_secret(file: Path, text: str) -> None:
    with _told():
        write(file, text.encode() + b"\n", 0o600)


def _own_secret(file: Path) -> str:
    with _told():
        status = file.stat()
    # Refused rather than mended: whoever could read it may have, and should be told.
    if status.st_mode & 0o077:
        raise HomeError(
            f"{file} can be read by others: `chmod 600 {file}`, and think of a new password"
        )
    return read_password(file)


def read_password(file: Path, what: str = "") -> str:
    """Read a password from the first line of a file.

    Raises:
        HomeError: there is none; the text begins with ``what``.
    """
    with _told(what), file.open("rb") as opened:
        text = opened.read(MAX_SECRET + 1)
    if len(text) > MAX_SECRET:
        raise HomeError(f"{what}{file} is too long for a password: check which file it is")
    try:
        secret = text.decode().partition("\n")[0].rstrip("\r")
    except UnicodeDecodeError as error:
        raise HomeError(f"{what}{file} is not text: check which file it is") from error
    if not secret:
        raise HomeError(f"{what}{file} is empty: put the password on its first line")
    return secret


# Locks.  What is held here must not live on in a forked child, which would keep it after our end.

_held: set[int] = set()


def _try_lock(file: Path) -> int | None:
    """Lock the file and put our number in it; nothing if somebody holds it."""
    with _told():
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Somebody who only asked has given it back by now; a holder has not.
                if _pid_of_holder(file) is not None:
                    os.close(descriptor)
                    return None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except BaseException:
        os.close(descriptor)
        raise
    _held.add(descriptor)
    return descriptor


def _unlock(descriptor: int) -> None:
    if descriptor in _held:
        _held.discard(descriptor)
        os.close(descriptor)


def _let_go_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


def _pid_of_holder(file: Path) -> int | None:
    """Give the process that holds the lock, None if it is free.

    The number is what its holder wrote into it; the lock itself is asked by a shared one, which is
    given back at once.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HomeError(f"{file} cannot be read: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32)
        return int(text) if text.strip().isdigit() else 0
    else:
        return None
    finally:
        os.close(descriptor)


def _holder(file: Path) -> str:
    pid = _pid_of_holder(file)
    return f" (pid {pid})" if pid else ""
