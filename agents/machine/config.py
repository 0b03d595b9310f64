"""What a machine's agent may do: its YAML file, read once.

Without a file it tells and changes nothing: facts, health, processes and services are shown, and
what reads files or changes anything is not even offered.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from spinal.agents.document import DURATION, SIZE, BadDocument, check, load, seconds, size
from spinal.protocols import Json, LocalProtocolError
from spinal.protocols.path import check_places

#: Signals that a file may allow.
SIGNALS: Final = ("TERM", "HUP", "INT", "QUIT", "USR1", "USR2", "STOP", "CONT", "KILL")

#: Seconds over which the load is smoothed.
SMOOTH: Final = 10.0


@dataclass(frozen=True, slots=True)
class Limit:
    """How much of something is still healthy."""

    limit: float
    #: Above it the agent takes no work at all.
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """What is looked at, how often, and how much is too much; none is not looked at."""

    every: float = 15.0
    #: Percent.
    disk: Limit | None = Limit(95)
    folders: tuple[str, ...] = ("/",)
    memory: Limit | None = Limit(95)
    swap: Limit | None = Limit(90)
    #: Load average of five minutes for each processor.
    load: Limit | None = Limit(8)
    #: Seconds that the clock may be wrong.
    clock: Limit | None = None


@dataclass(frozen=True, slots=True)
class FactsConfig:
    """How the cloud that the machine is in is asked."""

    cloud: Literal["auto", "on", "off"] = "auto"
    metadata: str = "http://169.254.169.254"
    within: float = 1.0


@dataclass(frozen=True, slots=True)
class SignalRule:
    """Processes that may get some signals: those that fit all of it."""

    signals: tuple[str, ...] = ("TERM",)
    name: str = "*"
    user: str | None = None
    exe: str | None = None

    def fits(self, name: str, user: str, exe: str) -> bool:
        """Tell whether a process is meant."""
        return (
            fnmatch.fnmatchcase(name, self.name)
            and (self.user is None or user == self.user)
            and (self.exe is None or exe == self.exe)
        )


@dataclass(frozen=True, slots=True)
class ProcessesConfig:
    """What is told about processes, and which may be signalled."""

    #: Whether the arguments are shown; they may hold passwords.
    arguments: bool = False
    signal: tuple[SignalRule, ...] = ()


@dataclass(frozen=True, slots=True)
class ServicesConfig:
    """Which services may be changed, and by what."""

    manager: Literal["auto", "systemd", "sysv", "none"] = "auto"
    change: tuple[str, ...] = ()
    #: Seconds that a change may take.
    timeout: float = 90.0
    #: Where the scripts are, without systemd.
    scripts: str = "/etc/init.d"


@dataclass(frozen=True, slots=True)
class LogsConfig:
    """Which logs may be read."""

    services: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FilesConfig:
    """Folders whose files may be read and written, and the largest file."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    largest: int = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Rule:
    """What may be deleted to make room."""

    folder: str
    match: str
    #: Seconds since its last change.
    older: float = 0.0
    #: How many of the newest stay.
    keep: int = 0
    #: Whether folders in the folder count.
    deep: bool = False


@dataclass(frozen=True, slots=True)
class Power:
    """That something may be done to the whole machine; and how, if not the platform's way."""

    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """All that a file may say."""

    name: str = "machine"
    place: Mapping[str, str] | str = field(default_factory=dict[str, str])
    tags: tuple[str, ...] = ()
    slots: int = 16
    cost: float | None = None
    #: Seconds over which the load is smoothed.
    smooth: float = SMOOTH
    facts: FactsConfig = FactsConfig()
    health: HealthConfig = HealthConfig()
    processes: ProcessesConfig = ProcessesConfig()
    services: ServicesConfig = ServicesConfig()
    logs: LogsConfig = LogsConfig()
    files: FilesConfig = FilesConfig()
    rules: Mapping[str, Rule] = field(default_factory=dict[str, Rule])
    reboot: Power | None = None
    shutdown: Power | None = None

    @classmethod
    def load(cls, path: Path | str) -> Config:
        """Read a file.

        Raises:
            BadDocument: it has mistakes; each with its line and what to write.
            AgentError: there is no such file.
        """
        document = load(path)
        # An empty file is a mapping without keys.
        value: Mapping[str, Any] = {} if document.value is None else document.value
        if document.value is not None and (wrong := list(check(document, SCHEMA))):
            raise BadDocument(wrong)
        try:
            check_places(value.get("place", {}))
        except LocalProtocolError as exc:
            raise BadDocument([document.mistake(["place"], str(exc))]) from exc
        return cls(
            **{key: value[key] for key in ("place", "slots", "cost") if key in value},
            name=value.get("agent", "machine"),
            tags=tuple(value.get("tags", ())),
            smooth=seconds(value.get("load", {}).get("smooth", SMOOTH)),
            facts=FactsConfig(**_plain(value.get("facts", {}))),
            health=_health(value.get("health", {})),
            processes=_processes(value.get("processes", {})),
            services=ServicesConfig(**_plain(value.get("services", {}))),
            logs=LogsConfig(**_plain(value.get("logs", {}))),
            files=FilesConfig(**_plain(value.get("files", {}))),
            rules={
                name: Rule(**_plain(rule))
                for name, rule in value.get("disk", {}).get("rules", {}).items()
            },
            reboot=_power(value.get("power", {}).get("reboot", False)),
            shutdown=_power(value.get("power", {}).get("shutdown", False)),
        )


_USUAL: Final = HealthConfig()

#: Key -> what makes a number of it.
_READ: Final[Mapping[str, Any]] = {
    "every": seconds,
    "within": seconds,
    "timeout": seconds,
    "older": seconds,
    "largest": size,
}


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Turn what YAML has into what the classes above have."""
    return {
        key: _READ[key](item) if key in _READ else item
        for key, item in ((key, _frozen(item)) for key, item in value.items())
    }


def _frozen(item: Any) -> Any:
    if isinstance(item, list):
        return tuple(item)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - of Any
    return item  # pyright: ignore[reportUnknownVariableType]


def _health(value: Mapping[str, Any]) -> HealthConfig:
    found: dict[str, Any] = {}
    for key, item in value.items():
        if key == "every":
            found[key] = seconds(item)
        elif item is False:
            found[key] = None
        else:
            default: Limit = getattr(_USUAL, key) or Limit(1)
            limit = item.get("limit", default.limit)
            limit = seconds(limit) if key == "clock" else limit
            found[key] = Limit(limit, item.get("fatal", False))
            if "folders" in item:
                found["folders"] = tuple(item["folders"])
    return HealthConfig(**found)


def _processes(value: Mapping[str, Any]) -> ProcessesConfig:
    rules = tuple(SignalRule(**_plain(rule)) for rule in value.get("signal", ()))
    return ProcessesConfig(value.get("arguments", False), rules)


def _power(value: Any) -> Power | None:
    if not value:
        return None
    return Power() if value is True else Power(tuple(value["command"]))


# -- the schema


def _object(properties: Mapping[str, Json], **more: Json) -> dict[str, Json]:
    return {
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
        **more,
    }


def _list(items: Mapping[str, Json], description: str, **more: Json) -> dict[str, Json]:
    return {
        "type": "array",
        "items": dict(items),
        "maxItems": 1000,
        "description": description,
        **more,
    }


_TEXT: Final[Mapping[str, Json]] = {"type": "string", "minLength": 1, "maxLength": 200}

_FOLDER: Final[Mapping[str, Json]] = {
    "type": "string",
    "maxLength": 4096,
    "pattern": r"^/(?!(.*/)?\.\.(/|$))[^\u0000]*$",
    "patternErrorMessage": "must be a path from the root, without '..'",
    "examples": ["/srv/app"],
}

_COMMAND: Final[Mapping[str, Json]] = {
    "type": "array",
    "items": {"type": "string"},
    "minItems": 1,
    "description": "The program and its arguments; there is no shell.",
    "examples": [["systemctl", "reboot"]],
}

_SWITCH: Final[Mapping[str, Json]] = {
    "anyOf": [
        {"type": "boolean"},
        _object({"command": dict(_COMMAND)}, required=["command"]),
    ],
    "examples": [True],
}


def _limit(about: str, limit: Mapping[str, Json], **more: Json) -> dict[str, Json]:
    fatal = {"type": "boolean", "description": "Above it the agent takes no work at all."}
    return {
        **_object({"limit": dict(limit), "fatal": fatal, **more}),
        "type": ["object", "boolean"],
        "not": {"const": True},
        "description": f"{about}; false: not looked at.",
        "errorMessage": "write {limit: NUMBER, fatal: false}, or false for what is not looked at",
    }


_PERCENT: Final[Mapping[str, Json]] = {
    "type": "number",
    "exclusiveMinimum": 0,
    "maximum": 100,
    "examples": [90],
}
_NUMBER: Final[Mapping[str, Json]] = {"type": "number", "exclusiveMinimum": 0, "examples": [4]}

#: What may stand in the file.
SCHEMA: Final[Mapping[str, Json]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Spinal machine agent",
    **_object(
        {
            "agent": {
                "type": "string",
                "pattern": "^[a-z0-9][a-z0-9_.-]{0,62}$",
                "patternErrorMessage": "must be small letters, digits, '-', '_' and '.'",
                "description": "Its name on the bus.",
                "examples": ["machine"],
            },
            "place": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "object", "additionalProperties": {"type": "string"}},
                ],
                "description": "Where the machine is.",
                "examples": [{"site": "/eu/fra/rack7"}],
            },
            "tags": _list(_TEXT, "Words that callers may ask for.", examples=[["linux"]]),
            "slots": {
                "type": "integer",
                "minimum": 1,
                "maximum": 1000,
                "description": "Calls that run at once.",
            },
            "cost": {"type": "number", "minimum": 0, "description": "Price of an hour."},
            "load": _object(
                {"smooth": dict(DURATION)},
                description="How the use of the processors becomes the load.",
            ),
            "facts": _object(
                {
                    "cloud": {
                        "enum": ["auto", "on", "off"],
                        "description": "Ask the cloud's metadata; auto: if the hardware says that "
                        "it is a cloud's.",
                    },
                    "metadata": {
                        "type": "string",
                        "pattern": "^https?://[^/?#\\s]+$",
                        "patternErrorMessage": "must be an address such as http://169.254.169.254",
                        "examples": ["http://169.254.169.254"],
                    },
                    "within": dict(DURATION),
                }
            ),
            "health": _object(
                {
                    "every": dict(DURATION),
                    "disk": _limit(
                        "Percent of a file system that is used",
                        _PERCENT,
                        folders=_list(_FOLDER, "One on each file system.", minItems=1),
                    ),
                    "memory": _limit("Percent of the memory that is used", _PERCENT),
                    "swap": _limit("Percent of the swap that is used", _PERCENT),
                    "load": _limit("Load average of five minutes for a processor", _NUMBER),
                    "clock": _limit("How wrong the clock may be", {**DURATION, "examples": ["1s"]}),
                }
            ),
            "processes": _object(
                {
                    "arguments": {
                        "type": "boolean",
                        "description": "Show the arguments of programs, which may hold passwords.",
                    },
                    "signal": _list(
                        _object(
                            {
                                "name": {**_TEXT, "description": "Pattern for the name."},
                                "user": dict(_TEXT),
                                "exe": dict(_FOLDER),
                                "signals": _list(
                                    {"enum": list(SIGNALS)}, "What it may get.", minItems=1
                                ),
                            },
                            anyOf=[{"required": [key]} for key in ("name", "user", "exe")],
                            errorMessage="does not say which processes: write name, user or exe",
                        ),
                        "Processes that may be signalled.",
                        examples=[[{"name": "worker", "user": "app", "signals": ["TERM"]}]],
                    ),
                }
            ),
            "services": _object(
                {
                    "manager": {"enum": ["auto", "systemd", "sysv", "none"]},
                    "change": _list(
                        _TEXT,
                        "Patterns for the services that may be started, stopped and so on.",
                        examples=[["nginx", "app-*"]],
                    ),
                    "timeout": dict(DURATION),
                    "scripts": dict(_FOLDER),
                }
            ),
            "logs": _object(
                {
                    "services": _list(
                        _TEXT, "Patterns for the services.", examples=[["nginx", "app-*"]]
                    ),
                    "files": _list(
                        {**_FOLDER, "examples": ["/var/log/nginx/*.log"]},
                        "Files; the name, not the folder, may be a pattern.",
                        examples=[["/var/log/syslog"]],
                    ),
                }
            ),
            "files": _object(
                {
                    "read": _list(_FOLDER, "Folders to read in.", examples=[["/srv/app"]]),
                    "write": _list(_FOLDER, "Folders to write in.", examples=[["/srv/app"]]),
                    "largest": dict(SIZE),
                }
            ),
            "disk": _object(
                {
                    "rules": {
                        "type": "object",
                        "maxProperties": 100,
                        "description": "Name -> what may be deleted to make room.",
                        "additionalProperties": _object(
                            {
                                "folder": dict(_FOLDER),
                                "match": {**_TEXT, "examples": ["*.log.*"]},
                                "older": dict(DURATION),
                                "keep": {"type": "integer", "minimum": 0},
                                "deep": {"type": "boolean"},
                            },
                            required=["folder", "match"],
                        ),
                    }
                }
            ),
            "power": _object({"reboot": dict(_SWITCH), "shutdown": dict(_SWITCH)}),
        }
    ),
}
