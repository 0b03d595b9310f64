"""Which part of the world a region is in, by the names that vendors give to regions."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

#: Areas that an offer may be in.
AREAS: Final = ("eu", "us", "ap", "sa", "af", "me")

#: The area of an offer that is wherever it is wanted: of a local account that names no region.
ANYWHERE: Final = "*"

#: Area -> how a region's name begins that is in it; digits at the end do not count.
_PREFIXES: Final = {
    "eu": "eu uk nl de fr it es se pl gb ie ch lon fra ams cdg mad sto waw man par ber mil nordics "
    "lhr arn europe west-europe north-europe",
    "us": "us ca nyc sfo tor ord dfw iad ewr lax sea atl mia dal sjc mex hnl yto mx north-america",
    "ap": "ap in jp sg au id kr sgp blr syd nrt icn itm del bom mel hkg asia cn tyo osa",
    "sa": "sa br sao scl gru south-america",
    "af": "af jnb za africa",
    "me": "me il tlv dxb middle-east",
}
_AREA: Final = {word: area for area, words in _PREFIXES.items() for word in words.split()}


def of(region: str) -> str:
    """Give the area of a region; empty if its name does not tell."""
    name = region.lower()
    words = re.split(r"[-_]", name)
    candidates = ("-".join(words[:2]), words[0], re.sub(r"\d+$", "", words[0]))
    return next((_AREA[word] for word in candidates if word in _AREA), "")


def wanted(region: str, area: str, regions: Collection[str]) -> bool:
    """Tell whether a region of an area is among some; none of them means all.

    It is by its name, its area, or the beginning of its name up to a ``-``.
    """
    if not regions or area == ANYWHERE:
        return True
    name = region.lower()
    return any(
        one in (name, area.lower()) or name.startswith(f"{one.rstrip('-')}-")
        for one in map(str.lower, regions)
    )
