"""The packages that are installed, by whatever installs them here.

A caller's filters are compared here; no part of them reaches a program.
"""

from __future__ import annotations

import asyncio
import fnmatch
import importlib.metadata
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from msgspec import Meta

from spinal.agents.agent import Agent
from spinal.agents.errors import Refused
from spinal.agents.process import run
from spinal.agents.results import fitting

from .texts import readable

#: Bytes of a list and seconds for it.
MAX_LIST: Final = 16 * 1024 * 1024
WITHIN: Final = 30.0

#: Most packages that one answer gives.
MOST: Final = 500

#: Who knows of packages -> what has them listed as name, version and architecture, with tabs.
LISTS: Final[Mapping[str, tuple[str, ...]]] = {
    "dpkg": (
        "dpkg-query",
        "--show",
        "--showformat=${Package}\t${Version}\t${Architecture}\t${db:Status-Status}\n",
    ),
    "rpm": ("rpm", "-qa", "--queryformat", "%{NAME}\t%{VERSION}-%{RELEASE}\t%{ARCH}\n"),
    "apk": ("apk", "info", "-v"),
}

By = Literal["", "dpkg", "rpm", "apk", "python"]
Pattern = Annotated[str, Meta(max_length=200)]


@dataclass(frozen=True, slots=True)
class Package:
    """A package that is installed."""

    name: str
    version: str
    arch: str = ""


@dataclass(frozen=True, slots=True)
class Packages:
    """The packages that were asked for, by name."""

    #: ``dpkg``, ``rpm``, ``apk``, or ``python`` for those of the agent's own Python.
    by: str
    packages: list[Package]
    #: How many there are, and how many of them were meant.
    total: int
    matching: int


def parse(by: str, text: str) -> Iterator[Package]:
    """Read a list."""
    for line in text.splitlines():
        if by == "apk":
            # name-1.2.3-r0: the last two parts are the version.
            parts = line.strip().rsplit("-", 2)
            if len(parts) == 3:
                yield Package(readable(parts[0], 200), readable(f"{parts[1]}-{parts[2]}", 200))
            continue
        words = [readable(word, 200) for word in line.split("\t")]
        if len(words) >= 3 and words[3:] in ([], ["installed"]):
            yield Package(*words[:3])


def _python() -> list[Package]:
    found = ((one.name, one.version) for one in importlib.metadata.distributions())
    # What is installed twice is found twice; a broken one has no name.
    named = {(name, version) for name, version in found if name}
    return [Package(readable(name, 200), readable(version, 200)) for name, version in named]


def here() -> str:
    """Say who knows of packages on this machine."""
    return next((by for by, argv in LISTS.items() if shutil.which(argv[0])), "python")


async def look(by: By, name: str, version: str, limit: int) -> Packages:
    """Give the packages that are meant.

    Raises:
        Refused: there is no such list here.
        CommandFailed: it could not be had.
    """
    chosen = by or here()
    if chosen == "python":
        found = await asyncio.to_thread(_python)
    elif shutil.which(LISTS[chosen][0]) is None:
        raise Refused(f"there is no {chosen} on this machine, but {here()}")
    else:
        done = await run(LISTS[chosen], check=True, timeout=WITHIN, limit=MAX_LIST)
        found = [*parse(chosen, done.text)]
    meant = [
        one
        for one in found
        if fnmatch.fnmatchcase(one.name, name or "*")
        and fnmatch.fnmatchcase(one.version, version or "*")
    ]
    kept, _ = fitting(sorted(meant, key=lambda one: (one.name, one.arch)), limit)
    return Packages(chosen, kept, len(found), len(meant))


def offer(agent: Agent) -> None:
    """Offer the list of packages."""

    @agent.op("/machine/packages", effects="reads", slots=2)
    async def packages(
        name: Pattern = "",
        version: Pattern = "",
        by: By = "",
        limit: Annotated[int, Meta(ge=1, le=MOST)] = 100,
    ) -> Packages:
        """List the packages that are installed.

        Args:
            name: pattern for their names, such as postgresql*.
            version: pattern for their versions, such as 15.*.
            by: dpkg, rpm, apk or python; by default what this machine has.
            limit: how many.
        """
        return await look(by, name, version, limit)
