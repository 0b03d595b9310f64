"""What a deployment agent may do on its machine: its YAML file."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, cast

from spinal.protocols import Json, LocalProtocolError
from spinal.protocols.path import check_places

from .. import document
from ..document import BadDocument
from ..errors import AgentError, Refused
from ..secret import Secret
from .urls import USUAL, Allowed

_PATH: Final[Mapping[str, Json]] = {"type": "string", "minLength": 1, "maxLength": 1024}
_TEXTS: Final[Mapping[str, Json]] = {
    "type": "array",
    "items": {"type": "string", "minLength": 1, "maxLength": 1024},
    "maxItems": 1000,
}
_PORT: Final[Mapping[str, Json]] = {"type": "integer", "minimum": 1, "maximum": 65535}
_COUNT: Final[Mapping[str, Json]] = {"type": "integer", "minimum": 1}


def _object(about: str, **properties: Json) -> dict[str, Json]:
    return {
        "type": "object",
        "description": about,
        "properties": properties,
        "additionalProperties": False,
    }


#: JSON Schema of the agent's file; every key has a default.
SCHEMA: Final[Mapping[str, Json]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A deployment agent of Spinal",
    **_object(
        "What a deployment agent may do.",
        root={**_PATH, "description": "Folder of all services; that of systemd's StateDirectory."},
        urls={
            **_TEXTS,
            "description": "Beginnings of URLs that releases may come from; any over TLS, and "
            "this machine.",
            "examples": [["https://releases.example.org/shop/"]],
        },
        ca={**_PATH, "description": "Certificate authority (PEM) of the servers of releases."},
        ports=_object("Ports that auto may give.", first=_PORT, last=_PORT),
        pip=_object(
            "How what a wheel needs is found; without an index the wheel must need nothing.",
            index={
                "type": "string",
                "pattern": "^https://",
                "patternErrorMessage": "must be an https URL",
                "examples": ["https://pypi.org/simple"],
            },
        ),
        images=_object(
            "How container images are run.",
            engine={
                "type": "string",
                "minLength": 1,
                "description": "docker or podman, or its path; no images without.",
                "examples": ["podman"],
            },
            publish={
                "type": "string",
                "description": "Address on which ports are published; 127.0.0.1.",
                "pattern": r"^[0-9.]{7,15}$",
                "examples": ["0.0.0.0"],
            },
        ),
        user={
            "type": "string",
            "minLength": 1,
            "description": "Account that services run as; the agent must be root for it.",
            "examples": ["services"],
        },
        secrets=_object(
            "Which secrets a service may be given; none unless listed.",
            env={
                **_TEXTS,
                "description": "Variables of the agent, or patterns.",
                "examples": [["SHOP_*"]],
            },
            files={**_TEXTS, "description": "Files, or folders of them."},
            credentials={**_TEXTS, "description": "Credentials of systemd, or patterns."},
        ),
        limits=_object(
            "How much is too much.",
            fetched={**document.SIZE, "description": "Size of an archive or wheel; 1G."},
            unpacked={**document.SIZE, "description": "Size of what is in it; 4G."},
            files={**_COUNT, "description": "Files that are in it; 100000."},
            cache={**document.SIZE, "description": "Archives and wheels that are kept; 4G."},
            log={**document.SIZE, "description": "Size of a release's log, twice; 10M."},
            services={**_COUNT, "description": "Services on this machine; 100."},
            memory={**document.SIZE, "description": "Address space of each process of a service."},
            open_files={**_COUNT, "description": "Files that each of them has open."},
        ),
        place={
            "anyOf": [
                {"type": "string", "maxLength": 256},
                {"type": "object", "additionalProperties": {"type": "string", "maxLength": 256}},
            ],
            "errorMessage": "write a place such as {site: /eu/fra}",
            "examples": [{"site": "/eu/fra"}],
        },
        tags={**_TEXTS, "examples": [["ssd"]]},
        slots={**_COUNT, "description": "Calls that run at once; 16."},
    ),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is too much; sizes in bytes."""

    fetched: int = 1024**3
    unpacked: int = 4 * 1024**3
    files: int = 100_000
    cache: int = 4 * 1024**3
    log: int = 10 * 1024**2
    services: int = 100
    memory: int | None = None
    open_files: int | None = None

    def of_process(self) -> dict[str, int]:
        """Give those that a process of a service has, by their name in setrlimit(2)."""
        found = {"RLIMIT_CORE": 0, "RLIMIT_AS": self.memory, "RLIMIT_NOFILE": self.open_files}
        return {name: most for name, most in found.items() if most is not None}


@dataclass(frozen=True, slots=True)
class User:
    """An account of the machine."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str


@dataclass(frozen=True, slots=True)
class Secrets:
    """Which secrets a service may be given."""

    env: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    credentials: tuple[str, ...] = ()

    def read(self, secret: Secret, environ: Mapping[str, str] = os.environ) -> str:
        """Give a secret.

        Raises:
            Refused: it is not listed.
            AgentError: it cannot be read.
        """
        match secret.kind:
            case "env":
                listed = any(fnmatchcase(secret.name, one) for one in self.env)
            case "credential":
                listed = any(fnmatchcase(secret.name, one) for one in self.credentials)
            case _:
                real = Path(secret.name).resolve()
                listed = any(real.is_relative_to(one.resolve()) for one in self.files)
                secret = Secret("file", str(real))
        if not listed:
            raise Refused(f"this agent gives no service the secret {secret}: its file lists others")
        return secret.read(environ)


@dataclass(frozen=True, slots=True)
class Config:
    """What the agent's file says, with every default in its place."""

    root: Path
    allowed: Allowed = field(default_factory=Allowed)
    ca: Path | None = None
    ports: tuple[int, int] = (20_000, 20_999)
    index: str = ""
    engine: str = ""
    publish: str = "127.0.0.1"
    user: User | None = None
    secrets: Secrets = Secrets()
    limits: Limits = Limits()
    place: Mapping[str, str] = field(default_factory=dict[str, str])
    tags: Sequence[str] = ()
    slots: int = 16


def usual_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Give where services are if nothing is said (systemd.exec(5); XDG base directories)."""
    if "STATE_DIRECTORY" in environ:
        return Path(environ["STATE_DIRECTORY"].partition(":")[0])
    state = environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state, "spinal", "deployment")


def load(path: Path | None) -> Config:
    """Read the agent's file, or give the defaults.

    Raises:
        BadDocument: it has mistakes; every one with its line.
        AgentError: there is no such file or account.
    """
    if path is None:
        return Config(usual_root())
    found = document.load(path, SCHEMA)
    given = cast("dict[str, Any]", found.value)
    folder = Path(path).absolute().parent
    try:
        place = check_places(given.get("place", {}))
    except LocalProtocolError as exc:
        raise BadDocument([found.mistake(("place",), str(exc))]) from exc
    ports = {"first": 20_000, "last": 20_999, **given.get("ports", {})}
    if ports["first"] > ports["last"]:
        raise BadDocument([found.mistake(("ports",), "first must not be above last")])
    try:
        allowed = Allowed(given.get("urls", USUAL))
        user = _user(given["user"]) if "user" in given else None
    except AgentError as exc:
        key = "urls" if str(exc).startswith("urls") else "user"
        raise BadDocument([found.mistake((key,), str(exc))]) from exc
    secrets = given.get("secrets", {})
    images = given.get("images", {})
    return Config(
        root=folder / given["root"] if "root" in given else usual_root(),
        allowed=allowed,
        ca=folder / given["ca"] if "ca" in given else None,
        ports=(ports["first"], ports["last"]),
        index=given.get("pip", {}).get("index", ""),
        engine=images.get("engine", ""),
        publish=images.get("publish", "127.0.0.1"),
        user=user,
        secrets=Secrets(
            tuple(secrets.get("env", ())),
            tuple(folder / one for one in secrets.get("files", ())),
            tuple(secrets.get("credentials", ())),
        ),
        limits=_limits(given.get("limits", {})),
        place=place,
        tags=given.get("tags", ()),
        slots=given.get("slots", 16),
    )


def _limits(given: Mapping[str, Json]) -> Limits:
    counts = ("files", "services", "open_files")
    return Limits(
        **{key: value if key in counts else document.size(value) for key, value in given.items()}
    )


def _user(name: str) -> User:
    try:
        found = pwd.getpwnam(name)
    except KeyError as exc:
        raise AgentError(f"there is no account {name!r} on this machine") from exc
    if os.geteuid() not in (0, found.pw_uid):
        raise AgentError(f"only root can run services as {name!r}: run the agent as root")
    groups = tuple(os.getgrouplist(name, found.pw_gid))
    return User(found.pw_uid, found.pw_gid, groups, name, found.pw_dir)
