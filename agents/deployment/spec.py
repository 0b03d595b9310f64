"""What is to run: the service file that a user writes, and the arguments of ``/deployment/deploy``.

Both say the same but for ``place``, ``tags`` and ``policy``, which say where, and are the
dispatcher's; so both are checked against parts of one schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from spinal.protocols import Json, LocalProtocolError
from spinal.protocols.path import check_places

from .. import document, secret
from ..document import BadDocument, Document, Mistake, Steps
from ..errors import Refused

Kind = Literal["archive", "wheel", "image"]

#: Name of a service: that of its folder as well, and of its containers.
NAME: Final = "^[a-z][a-z0-9-]{0,62}$"
#: Most releases that are kept.
MAX_KEEP: Final = 20
#: How a release is unpacked, by the end of its URL.
ARCHIVES: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")

#: What a placeholder may be, each inside one argument.
PLACEHOLDERS: Final = ("port", "release", "data")
_PLACEHOLDER: Final = re.compile(r"\{([a-z_]+)\}")

_ARGUMENT: Final[Mapping[str, Json]] = {
    "type": "string",
    "maxLength": 4096,
    "pattern": "^[^\\u0000]*$",
    "patternErrorMessage": "must not hold a NUL",
}
_ARGV: Final[Mapping[str, Json]] = {
    "type": "array",
    "description": "A program and its arguments; there is no shell. {port}, {release} and {data} "
    "stand for the port, the folder of the release, and the folder that stays.",
    "items": _ARGUMENT,
    "minItems": 1,
    "maxItems": 256,
    "errorMessage": "write a list of texts, such as [bin/shop, --port, '{port}']",
    "examples": [["bin/shop", "--port", "{port}"]],
}
_RELEASE: Final[Mapping[str, Json]] = {
    "type": "object",
    "description": "Where the release is, and the hash that it must have.",
    "properties": {
        "url": {
            "type": "string",
            "description": "URL of the archive or wheel, or NAME@sha256:DIGEST of the image.",
            "maxLength": 2048,
            "pattern": r"^[\x21-\x7e]+$",
            "patternErrorMessage": "must be a URL without spaces",
            "examples": ["https://example.org/shop-1.2.tar.gz"],
        },
        "sha256": {
            "type": "string",
            "pattern": "^[0-9a-f]{64}$",
            "patternErrorMessage": "must be the SHA-256 in 64 small hexadecimal digits, as "
            "sha256sum prints it",
        },
        "kind": {"enum": list(get_args(Kind))},
    },
    "required": ["url"],
    "additionalProperties": False,
    "examples": [{"url": "https://example.org/shop-1.2.tar.gz", "sha256": "9f86..."}],
}
_PROBE: Final[Mapping[str, Json]] = {
    "http": {
        "type": "string",
        "description": "It is well if this answers with a status below 400.",
        "maxLength": 2048,
        "pattern": r"^http://(127\.0\.0\.1|localhost|\[::1\])(:(\{port\}|[0-9]{1,5}))?(/[\x21-\x7e]*)?$",
        "patternErrorMessage": "must be a URL of this machine",
        "examples": ["http://127.0.0.1:{port}/"],
    },
    "tcp": {
        "description": "It is well if this port of 127.0.0.1 takes a connection.",
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 65535},
            {"type": "string", "pattern": r"^\{port\}$"},
        ],
        "errorMessage": "write a port, or '{port}'",
        "examples": ["{port}"],
    },
    "run": {**_ARGV, "examples": [["bin/check", "{port}"]]},
}

#: What ``/deployment/deploy`` takes, but for ``generation``.
ARGUMENTS: Final[Mapping[str, Json]] = {
    "service": {
        "type": "string",
        "description": "Its name.",
        "pattern": NAME,
        "patternErrorMessage": "must be a name: small letters, digits and '-', at most 63, and a "
        "letter first",
        "examples": ["shop"],
    },
    "release": _RELEASE,
    "start": {**_ARGV, "minItems": 0},
    "port": {
        "description": "The port it listens on; with auto the agent picks one that is free, and "
        "a new release starts beside the old one.",
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {"const": "auto"}],
        "errorMessage": "write a port such as 8080, or auto",
        "examples": [8080],
    },
    "env": {
        "type": "object",
        "description": "All of its environment but PATH, HOME and LANG: texts, or secrets by "
        "reference that are read on the machine.",
        "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,127}$"},
        "maxProperties": 256,
        "additionalProperties": {
            "anyOf": [_ARGUMENT, {"type": ["number", "boolean"]}, secret.SCHEMA],
            "errorMessage": "write a text, or a secret as {env: NAME} or {file: PATH}",
        },
        "examples": [{"MODE": "production"}],
    },
    "health": {
        "type": "object",
        "description": "How it is seen that it is well; by default that its port takes a "
        "connection, and without a port that it runs for a second.",
        "properties": {
            **_PROBE,
            "every": {**document.DURATION, "description": "Time between two checks; 5s."},
            "within": {**document.DURATION, "description": "Time it has to become well; 30s."},
            "timeout": {**document.DURATION, "description": "Longest time of a check; 5s."},
            "fail_after": {
                "type": "integer",
                "description": "Checks that fail in a row before it is started anew; 3.",
                "minimum": 1,
                "maximum": 1000,
            },
        },
        "additionalProperties": False,
        "examples": [{"http": "http://127.0.0.1:{port}/"}],
    },
    "keep": {
        "type": "integer",
        "description": "Releases that stay on disk; 3.",
        "minimum": 1,
        "maximum": MAX_KEEP,
    },
    "restart": {
        "type": "object",
        "description": "How soon it is started again when it has ended.",
        "properties": {
            "backoff": {
                **document.DURATION,
                "description": "The first wait, doubled each time; 1s.",
            },
            "most": {**document.DURATION, "description": "The longest wait; 60s."},
        },
        "additionalProperties": False,
        "examples": [{"backoff": "1s", "most": "60s"}],
    },
}

#: Where it may run; a service may be spread by what ranks agents one by one.
_POLICIES: Final = ("least-loaded", "cheapest", "round-robin", "random")
WANT: Final[Mapping[str, Json]] = {
    "place": {
        "description": "Where the machine is.",
        "anyOf": [
            {"type": "string", "maxLength": 256},
            {"type": "object", "additionalProperties": {"type": "string", "maxLength": 256}},
        ],
        "errorMessage": "write a place such as {site: /eu/fra}",
        "examples": [{"site": "/eu/fra"}],
    },
    "tags": {
        "type": "array",
        "description": "What the machine must have.",
        "items": {"type": "string", "minLength": 1, "maxLength": 64},
        "maxItems": 64,
        "examples": [["ssd"]],
    },
    "policy": {"enum": list(_POLICIES), "description": "Which machine is taken of several."},
}

_REQUIRED: Final = ["service", "release"]

#: JSON Schema of a service file.
SCHEMA: Final[Mapping[str, Json]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A service that Spinal deploys",
    "type": "object",
    "properties": {**ARGUMENTS, **WANT},
    "required": _REQUIRED,
    "additionalProperties": False,
}
_ARGUMENTS_SCHEMA: Final[Mapping[str, Json]] = {
    "type": "object",
    "properties": ARGUMENTS,
    "required": _REQUIRED,
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Release:
    """Bytes that are named by their hash."""

    url: str
    sha256: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Health:
    """How it is seen that a service is well."""

    #: ``http``, ``tcp``, ``run``, or ``alive`` when nothing was said.
    how: str
    #: URL, port or argv, with placeholders.
    what: tuple[str, ...] = ()
    #: Seconds.
    every: float = 5.0
    within: float = 30.0
    timeout: float = 5.0
    fail_after: int = 3


@dataclass(frozen=True, slots=True)
class Restart:
    """The first and the longest wait before it is started again, in seconds."""

    backoff: float = 1.0
    most: float = 60.0


@dataclass(frozen=True, slots=True)
class Spec:
    """What is to run, with every default in its place; two that mean the same are equal."""

    service: str
    release: Release
    start: tuple[str, ...]
    #: A number, ``auto``, or none.
    port: int | Literal["auto"] | None
    #: Name and text, or the reference of a secret.
    env: tuple[tuple[str, str | secret.Secret], ...]
    health: Health
    keep: int
    restart: Restart

    @classmethod
    def of(cls, arguments: Mapping[str, Json]) -> Spec:
        """Read the arguments of ``/deployment/deploy``, without the generation.

        Raises:
            Refused: they do not fit; the text names every key that is wrong.
        """
        given = Document("", dict(arguments), {})
        wrong = list(document.check(given, _ARGUMENTS_SCHEMA)) or list(_check(given))
        if wrong:
            told = (f"{one.key}: {one.text}" if one.key else one.text for one in wrong[:5])
            raise Refused("; ".join(told))
        return cls._read(arguments)

    @classmethod
    def _read(cls, given: Mapping[str, Any]) -> Spec:
        port = given.get("port")
        env = given.get("env", {})
        return cls(
            given["service"],
            _release(given["release"]),
            tuple(given.get("start", ())),
            port,
            tuple(sorted((name, _value(value)) for name, value in env.items())),
            _health(given.get("health", {}), port is not None),
            given.get("keep", 3),
            Restart(**_seconds(given.get("restart", {}))),
        )


@dataclass(frozen=True, slots=True)
class ServiceFile:
    """A service file that has been read."""

    name: str
    #: Those of ``/deployment/deploy``, without the generation.
    arguments: Mapping[str, Json]
    #: Where it is to run: any of ``place`` in its keyed form, ``tags`` and ``policy``.
    want: Mapping[str, Json]


def load(path: Path | str) -> ServiceFile:
    """Read a service file.

    Raises:
        BadDocument: it has mistakes; every one with its line.
        AgentError: there is no such file, or it is too large.
    """
    return _file(document.load(path, SCHEMA))


def read(text: bytes | str, file: str = "service.yaml") -> ServiceFile:
    """Read a service file from memory; as :func:`load`."""
    return _file(document.read(text, file, SCHEMA))


def _file(found: Document) -> ServiceFile:
    wrong = list(_check(found))
    value = cast("dict[str, Any]", found.value)
    want = {key: value[key] for key in WANT if key in value}
    if "place" in want:
        try:
            want["place"] = check_places(want["place"])
        except LocalProtocolError as exc:
            wrong.append(found.mistake(("place",), f"{exc}: write a place such as {{site: /eu}}"))
    if wrong:
        raise BadDocument(wrong)
    arguments = {key: value[key] for key in ARGUMENTS if key in value}
    # Said once, by whoever read the file; the machine is not to guess.
    arguments["release"] = {**arguments["release"], "kind": _release(arguments["release"]).kind}
    return ServiceFile(value["service"], arguments, want)


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put values in place of placeholders, each inside the one argument that it stands in."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], text)


# -- what a schema cannot say


def _check(found: Document) -> Iterator[Mistake]:
    """Give what is wrong in a document that fits the schema."""
    value = cast("Mapping[str, Any]", found.value)
    yield from _check_release(found, value["release"])
    if _guess(value["release"]) != "image" and not value.get("start"):
        yield found.mistake((), "'start' is missing: write start: [bin/shop, --port, '{port}']")
    for steps, text in _texts(value):
        for name in _PLACEHOLDER.findall(text):
            if name not in PLACEHOLDERS:
                known = ", ".join(f"{{{one}}}" for one in PLACEHOLDERS)
                yield found.mistake(steps, f"{{{name}}} is no placeholder: there are {known}")
            elif name != "port" and steps[-1] in ("http", "tcp"):
                yield found.mistake(steps, f"{{{name}}} has no meaning here: only {{port}} has")
            elif name == "port" and "port" not in value:
                yield found.mistake(steps, "there is no port to put here: write port: auto")
    health = value.get("health", {})
    if len(how := [key for key in _PROBE if key in health]) > 1:
        yield found.mistake(("health",), f"says {' and '.join(how)}: write one of them")
    for key in ("every", "within", "timeout"):
        if key in health and document.seconds(health[key]) > 3600:
            yield found.mistake(("health", key), "must be at most 1h")


def _check_release(found: Document, release: Mapping[str, str]) -> Iterator[Mistake]:
    url = release["url"]
    kind = _guess(release)
    ends = ", ".join((*ARCHIVES, ".whl"))
    if kind is None:
        text = f"{url!r} is no archive, wheel or image by its name: end it with one of {ends}, "
        yield found.mistake(("release", "url"), f"{text}or write kind: image")
    elif kind == "image":
        image = _IMAGE.fullmatch(url)
        if image is None:
            text = "an image is named with its digest: write NAME@sha256:DIGEST"
            yield found.mistake(("release", "url"), text)
        elif release.get("sha256", image[1]) != image[1]:
            yield found.mistake(("release", "sha256"), "is not the digest in the URL: leave it out")
    else:
        if "sha256" not in release:
            yield found.mistake(("release",), "'sha256' is missing: write what sha256sum prints")
        name = url_name(url)
        if kind == "wheel" and _WHEEL.fullmatch(name) is None:
            yield found.mistake(("release", "url"), f"{name!r} is no name of a wheel")
        if kind == "archive" and archive_end(name) is None:
            text = f"{name!r} is no archive by its name: end it with one of {', '.join(ARCHIVES)}"
            yield found.mistake(("release", "url"), text)


#: A reference with a digest, as the engines take it: never one that looks like an option.
_IMAGE: Final = re.compile(r"[a-z0-9][a-z0-9._:/-]{0,254}@sha256:([0-9a-f]{64})")
#: The name of a wheel (packaging.python.org, Binary distribution format).
_WHEEL: Final = re.compile(
    r"[A-Za-z0-9._]+-[A-Za-z0-9._!+]+(-[0-9][A-Za-z0-9_]*)?(-[A-Za-z0-9_.]+){3}\.whl"
)


def url_name(url: str) -> str:
    """Give the last part of a URL's path."""
    return re.split(r"[?#]", url, maxsplit=1)[0].rpartition("/")[2]


def archive_end(name: str) -> str | None:
    """Give which of :data:`ARCHIVES` a name ends with."""
    return next((end for end in ARCHIVES if name.endswith(end)), None)


def _guess(release: Mapping[str, Any]) -> Kind | None:
    if "kind" in release:
        return cast("Kind", release["kind"])
    if "@sha256:" in release["url"]:
        return "image"
    name = url_name(release["url"])
    if name.endswith(".whl"):
        return "wheel"
    return None if archive_end(name) is None else "archive"


def _texts(value: Mapping[str, Any]) -> Iterator[tuple[Steps, str]]:
    """Give every text that may hold placeholders, and where it stands."""
    health = value.get("health", {})
    for steps, argv in (
        (("start",), value.get("start", ())),
        (("health", "run"), health.get("run", ())),
    ):
        for place, text in enumerate(argv):
            yield (*steps, place), text
    for key in ("http", "tcp"):
        if key in health:
            yield ("health", key), str(health[key])
    for name, text in value.get("env", {}).items():
        if isinstance(text, str):
            yield ("env", name), text


def _release(given: Mapping[str, Any]) -> Release:
    kind = _guess(given)
    assert kind is not None, "checked before"
    url = given["url"]
    return Release(url, url.rpartition(":")[2] if kind == "image" else given["sha256"], kind)


def _value(value: Json) -> str | secret.Secret:
    if isinstance(value, dict):
        return secret.Secret.of(cast("Mapping[str, Json]", value))
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _health(given: Mapping[str, Any], port: bool) -> Health:
    how, what = ("tcp", ("{port}",)) if port else ("alive", ())
    for key in _PROBE:
        if key in given:
            how = key
            what = tuple(given[key]) if key == "run" else (str(given[key]),)
    times = _seconds({key: given[key] for key in ("every", "within", "timeout") if key in given})
    return Health(how, what, fail_after=given.get("fail_after", 3), **times)


def _seconds(given: Mapping[str, Json]) -> dict[str, float]:
    return {key: document.seconds(value) for key, value in given.items()}
