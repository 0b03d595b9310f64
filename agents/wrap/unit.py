"""The systemd unit of a wrapped service, as text.

Nothing here touches the machine.  Every value is quoted for the place it goes to (systemd.syntax(7),
systemd.service(5), systemd.exec(5)); one that no quoting could carry is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from spinal.protocols import Json

from ..errors import AgentError, one_line
from ..life import DRAIN, TAKE_WITHIN
from ..process import GRACE

#: Seconds that systemd waits for the end: what runs may end, its callers take the results, and
#: what does not end is killed.
STOP: Final = round(DRAIN + TAKE_WITHIN + GRACE + 5)

#: First version of systemd that waits longer each time before it starts a service again.
BACKS_OFF: Final = 254

_UNQUOTED: Final = re.compile(r"[A-Za-z0-9_./:@=+,-]+")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_PATH: Final = re.compile(r"/[A-Za-z0-9_./@+=,-]*")

#: Settings that also the manager of a user can enforce, and why what is wrapped still works.
_ALWAYS: Final = (
    (
        "NoNewPrivileges=yes",
        "No program may gain rights: sudo and other setuid programs do not work.",
    ),
    ("RestrictSUIDSGID=yes", ""),
    ("RestrictRealtime=yes", ""),
    ("LockPersonality=yes", ""),
    ("SystemCallArchitectures=native", ""),
    ("UMask=0077", "What it writes is its own."),
)
#: Settings of the system's manager.
_SYSTEM: Final = (
    (
        "ProtectSystem=strict",
        "It writes to its state folder, its own /tmp and --write folders only.",
    ),
    ("PrivateTmp=yes", "Files of a call are in /tmp; nobody else sees them."),
    ("ProtectKernelTunables=yes", ""),
    ("ProtectKernelModules=yes", ""),
    ("ProtectKernelLogs=yes", ""),
    ("ProtectControlGroups=yes", ""),
    ("ProtectClock=yes", ""),
    ("ProtectHostname=yes", ""),
)
#: What is left open on purpose, for whoever reads the unit.
_OPEN: Final = (
    "Not restricted, because a wrapped program may need it: the network (and the bus does), devices,",
    "system calls, namespaces, and memory that is both writable and executable (Java, Node).",
)


@dataclass(frozen=True)
class Unit:
    """What a unit is made of.

    Raises:
        AgentError: a value that cannot stand in a unit.
    """

    #: Name of the agent.
    agent: str
    #: What is run, with absolute paths.
    command: Sequence[str]
    #: Who runs it; none for the user whose manager it is.
    user: str | None = None
    #: The user is made by systemd while the service runs.
    dynamic: bool = False
    #: Variables that are no secrets.
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    #: File with more variables, which only root, or the user, can read.
    environment_file: str | None = None
    #: Name of a credential -> the file that systemd reads it from.
    credentials: Mapping[str, str] = field(default_factory=dict[str, str])
    #: Variable -> name of the credential whose path it holds.
    credential_paths: Mapping[str, str] = field(default_factory=dict[str, str])
    #: Folders that it may write to.
    write: Sequence[str] = ()
    #: It needs to read below /home or /root.
    reads_homes: bool = False
    #: Version of systemd.
    systemd: int = 252

    @property
    def name(self) -> str:
        """Name of the unit."""
        return f"spinal-wrap-{self.agent}.service"

    @property
    def system(self) -> bool:
        """Whether it is for the system's manager, and not for a user's."""
        return self.user is not None

    def text(self) -> str:
        """Give the unit file."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "# Written by `spinal wrap install`, which writes it anew."
        yield "[Unit]"
        yield f"Description=Spinal agent {_specifiers(self.agent)}"
        if self.system:
            yield "Wants=network-online.target"
            yield "After=network-online.target"
        yield "# It is started again for ever."
        yield "StartLimitIntervalSec=0"
        yield ""
        yield "[Service]"
        yield "Type=exec"
        yield f"ExecStart={' '.join(_words(self.command))}"
        yield from self._who()
        for name, value in self.environment.items():
            yield f"Environment={_quoted(f'{name}={value}')}"
        for name, credential in self.credential_paths.items():
            yield f'Environment="{name}=%d/{credential}"'
        if self.environment_file is not None:
            yield f"EnvironmentFile={_specifiers(_path(self.environment_file))}"
        for name, path in self.credentials.items():
            yield f"LoadCredential={name}:{_specifiers(_path(path))}"
        yield from self._ending()
        yield ""
        yield from _explained(_ALWAYS)
        if self.system:
            yield from _explained(_SYSTEM)
            if self.user != "root":
                yield "CapabilityBoundingSet="
            yield f"ProtectHome={'read-only' if self.reads_homes else 'yes'}"
            for folder in self.write:
                yield f"ReadWritePaths={_quoted(folder)}"
        yield from (f"# {line}" for line in _OPEN)
        yield ""
        yield "[Install]"
        yield f"WantedBy={'multi-user.target' if self.system else 'default.target'}"

    def _who(self) -> Iterator[str]:
        if not self.system:
            return
        assert self.user is not None
        if not _USER.fullmatch(self.user):
            raise AgentError(f"{one_line(self.user, 40)!r} is no name of a user")
        if self.dynamic:
            yield "# A user of its own, there while it runs; one of this name that exists is taken."
            yield "DynamicUser=yes"
        yield f"User={self.user}"
        yield f"StateDirectory={self.name.removesuffix('.service')}"
        if self.dynamic:
            yield f'Environment="HOME=%S/{self.name.removesuffix(".service")}"'

    def _ending(self) -> Iterator[str]:
        yield "Restart=on-failure"
        if self.systemd >= BACKS_OFF:
            yield "RestartSec=1s"
            yield "RestartSteps=8"
            yield "RestartMaxDelaySec=2min"
        else:
            yield "RestartSec=5s"
        yield "# A manifest or credentials that cannot be used do not mend by themselves."
        yield "RestartPreventExitStatus=2"
        yield "# Only the agent is asked to end: it lets what runs end, and ends it itself."
        yield "KillMode=mixed"
        yield f"TimeoutStopSec={STOP}s"


def own_user(agent: str) -> str:
    """Give the name of an agent's own user; a long name is cut, and stays one of its own."""
    name = "spinal-" + re.sub(r"[^a-z0-9_-]", "-", agent)
    if len(name) > 31:
        name = f"{name[:24]}-{hashlib.sha256(agent.encode()).hexdigest()[:6]}"
    return name


def variables(values: Mapping[str, str]) -> str:
    """Give the text of a file of variables (``EnvironmentFile=``)."""
    lines: list[str] = []
    for name, value in values.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise AgentError(f"{one_line(name, 60)!r} is no name of a variable")
        _printable(value, f"the variable {name}")
        lines.append(f'{name}="' + re.sub(r'(["\\`$])', r"\\\1", value) + '"')
    return "".join(f"{line}\n" for line in lines)


def secrets(value: Json, kind: str) -> list[str]:
    """Give the names of all secrets of a kind (``env``, ``credential``) that a manifest refers to."""
    found: dict[str, None] = {}

    def walk(node: Any, key: str) -> None:
        if isinstance(node, Mapping):
            members: Mapping[str, Any] = node  # pyright: ignore[reportUnknownVariableType] - of Any
            named = members.get(kind)
            # Below env and headers the keys are the manifest's own.
            if (
                len(members) == 1
                and isinstance(named, str)
                and key not in ("env", "headers", "json")
            ):
                found[named] = None
            for name, inner in members.items():
                walk(inner, name)
        elif isinstance(node, list):
            items: list[Any] = node  # pyright: ignore[reportUnknownVariableType] - of Any
            for inner in items:
                walk(inner, key)

    walk(value, "")
    return list(found)


# -- quoting


def _printable(text: str, what: str) -> None:
    if not text.isprintable():
        raise AgentError(
            f"{what} holds a newline or another control character, which cannot stand in a unit"
        )


def _specifiers(text: str) -> str:
    _printable(text, "the unit")
    return text.replace("%", "%%")


def _path(text: str) -> str:
    """Check a path for a setting that knows no quotes."""
    if not _PATH.fullmatch(text):
        raise AgentError(
            f"{one_line(text, 80)!r} cannot stand in a unit: give an absolute path of letters, digits and /._@+=,-"
        )
    return text


def _quoted(text: str) -> str:
    _printable(text, one_line(text.partition("=")[0], 60))
    return '"' + _specifiers(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _words(command: Sequence[str]) -> Iterator[str]:
    """Write a command for ``ExecStart=``, where ``%`` and ``$`` mean something."""
    for place, word in enumerate(command):
        _printable(word, "the command")
        if not place and not re.fullmatch(r"/[^\s$%\"'\\]+", word):
            raise AgentError(
                f"{one_line(word, 80)!r} cannot be started by systemd: install Spinal elsewhere"
            )
        if _UNQUOTED.fullmatch(word):
            yield word
        else:
            yield _quoted(word).replace("$", "$$")


def _explained(settings: Sequence[tuple[str, str]]) -> Iterator[str]:
    for setting, why in settings:
        if why:
            yield f"# {why}"
        yield setting
