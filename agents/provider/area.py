"""Which part of the world a region is in, by the names that vendors give to regions."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

#: Areas that an offer may be in.
AREAS: Final = ("eu", "us", "ap", "sa", "af", "me")

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


def wanted(region: str, regions: Collection[str]) -> bool:
    """Tell whether a region is among some regions or areas; none of them means all."""
    return not regions or region in regions or (bool(of(region)) and of(region) in regions)
