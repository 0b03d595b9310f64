"""What is known of a service beyond the agent's life: written whole, and before it counts."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from spinal.protocols import Json

from .layout import Folder, number_of, write

log = structlog.get_logger()

#: Version of the file's form.
FORM: Final = 1


@dataclass(frozen=True, slots=True)
class Deployed:
    """A release as it was asked for."""

    #: Arguments of its deploy, without the generation.
    arguments: dict[str, Json]
    #: Seconds since 1970.
    at: float


@dataclass(slots=True)
class State:
    """What is to go on in the next life."""

    #: The highest that was deployed here, or that is not wanted any longer.
    generation: int = 0
    #: It is to run; else nothing is left of it but the generation, and its data.
    wanted: bool = False
    #: Number of the latest release; never given twice.
    number: int = 0
    current: str = ""
    #: Port of the current release.
    port: int | None = None
    releases: dict[str, Deployed] = field(default_factory=dict[str, Deployed])

    def save(self, folder: Folder) -> None:
        """Write it down; it is on disk when this returns.

        Raises:
            OSError: it could not be written, and what was there still is.
        """
        text = json.dumps({"form": FORM, **asdict(self)}, indent=1)
        write(folder.state, text.encode())


def load(folder: Folder) -> State:
    """Read what is known of a service; a fresh state if nothing is.

    A file that cannot be read is put aside as ``state.json.broken-<time>``, because the agent
    has to go on with its other services.
    """
    try:
        raw = folder.state.read_bytes()
    except FileNotFoundError:
        return _fresh(folder)
    try:
        return _read(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        aside = _aside(folder.state)
        log.error("state_broken", file=str(folder.state), moved_to=str(aside), error=str(exc))
        return _fresh(folder)


def _fresh(folder: Folder) -> State:
    return State(number=max(map(number_of, folder.on_disk()), default=0))


def _aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.broken-{int(time.time())}")
    path.replace(aside)
    return aside


def _read(raw: Any) -> State:
    if raw["form"] != FORM:
        raise ValueError(f"of form {raw['form']}, which this version does not know")
    releases = {
        str(name): Deployed(dict(one["arguments"]), float(one["at"]))
        for name, one in raw["releases"].items()
        if number_of(name)
    }
    port = raw["port"]
    state = State(
        int(raw["generation"]),
        bool(raw["wanted"]),
        int(raw["number"]),
        str(raw["current"]),
        None if port is None else int(port),
        releases,
    )
    if state.wanted and state.current not in releases:
        raise ValueError(f"its current release {state.current!r} is not listed")
    return state
