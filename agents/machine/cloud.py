"""What a cloud tells its machines about themselves, at an address that only they can reach.

Only what is asked for here is read, and of that only the members named here: metadata also holds
passwords, keys and scripts, which are nobody's business on the bus.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import structlog

from .config import FactsConfig
from .texts import readable

log = structlog.get_logger()

#: Most bytes of an answer.
MAX_ANSWER: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """How one kind of cloud is asked."""

    name: str
    #: Words of the hardware (DMI) that say that the machine is there.
    hints: tuple[str, ...]
    #: Where a JSON object is.
    path: str
    #: Our word -> where it is in the object.
    members: Mapping[str, str]
    headers: Mapping[str, str]
    #: Where a token for this session is to be had with PUT, and the header that shows it.
    token: tuple[str, str] | None = None


_AWS_TOKEN: Final = ("/latest/api/token", "X-aws-ec2-metadata-token")

#: In the order in which they are asked if the hardware does not say which one it is.
SOURCES: Final = (
    Source(
        "ec2",
        ("amazon ec2",),
        "/latest/dynamic/instance-identity/document",
        {
            "instance": "instanceId",
            "type": "instanceType",
            "region": "region",
            "zone": "availabilityZone",
            "image": "imageId",
            "address": "privateIp",
        },
        {},
        _AWS_TOKEN,
    ),
    Source(
        "openstack",
        ("openstack",),
        "/openstack/latest/meta_data.json",
        {"instance": "uuid", "name": "name", "zone": "availability_zone", "host": "hostname"},
        {},
    ),
    Source(
        "digitalocean",
        ("digitalocean",),
        "/metadata/v1.json",
        {
            "instance": "droplet_id",
            "name": "hostname",
            "region": "region",
            "address": "interfaces.public.0.ipv4.ip_address",
        },
        {},
    ),
    Source(
        "google",
        ("google",),
        "/computeMetadata/v1/instance/?recursive=true",
        {"instance": "id", "name": "name", "type": "machineType", "zone": "zone"},
        {"Metadata-Flavor": "Google"},
    ),
    Source(
        "azure",
        ("7783-7084-3265-9085-8269-3286-77",),  # the chassis tag of all of its machines
        "/metadata/instance/compute?api-version=2021-02-01",
        {
            "instance": "vmId",
            "name": "name",
            "type": "vmSize",
            "region": "location",
            "zone": "zone",
        },
        {"Metadata": "true"},
    ),
)

#: Words of hardware that is a cloud's, of one that has no name here.
_OTHERS: Final = ("hetzner", "scaleway", "vultr", "linode", "akamai", "exoscale", "upcloud", "ovh")


def hardware(folder: Path = Path("/sys/class/dmi/id")) -> str:
    """Give what the hardware says it is, in small letters; nothing if it says nothing."""
    found: list[str] = []
    for name in ("sys_vendor", "product_name", "product_version", "chassis_asset_tag"):
        with suppress(OSError):
            found.append((folder / name).read_text(errors="replace").strip())
    with suppress(OSError):
        # Some machines of EC2 show nothing else.
        if Path("/sys/hypervisor/uuid").read_text(errors="replace").startswith("ec2"):
            found.append("amazon ec2")
    return " ".join(found).lower()


def candidates(config: FactsConfig, words: str) -> Sequence[Source]:
    """Decide who is asked."""
    if config.cloud == "off":
        return ()
    hinted = [one for one in SOURCES if any(hint in words for hint in one.hints)]
    if hinted:
        return hinted
    # Many others speak EC2's or OpenStack's language.
    known = any(word in words for word in _OTHERS)
    return SOURCES if known or config.cloud == "on" else ()


def member(value: Any, path: str) -> str:
    """Give the text or number at a path of keys and places; nothing if there is none."""
    for step in path.split("."):
        if isinstance(value, dict):
            found: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON keys
            value = found.get(step)
        elif isinstance(value, list) and step.isdigit():
            items: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON items
            value = items[int(step)] if int(step) < len(items) else None
        else:
            return ""
    return readable(str(value), 300) if isinstance(value, (str, int)) else ""


class Cloud:
    """The cloud that the machine is in, if it is in one; asked until it has answered once."""

    def __init__(self, config: FactsConfig) -> None:
        self._config = config
        self._known: dict[str, str] = {}

    async def facts(self) -> dict[str, str]:
        """Give what is known, ``cloud`` among it; empty if no cloud answers in time.

        Takes no longer than the configuration says.
        """
        if not self._known:
            found = await asyncio.to_thread(hardware)
            if sources := candidates(self._config, found):
                self._known = await self._ask(sources)
        return self._known

    async def _ask(self, sources: Sequence[Source]) -> dict[str, str]:
        """Ask all of them at once, and take the first one in order that has answered in time."""
        limit = aiohttp.ClientTimeout(total=self._config.within)
        async with aiohttp.ClientSession(timeout=limit) as http:
            found = await asyncio.gather(*(self._one(http, source) for source in sources))
        answered: list[dict[str, str]] = [one for one in found if one]
        return answered[0] if answered else {}

    async def _one(self, http: aiohttp.ClientSession, source: Source) -> dict[str, str]:
        base = self._config.metadata
        headers = dict(source.headers)
        try:
            async with asyncio.timeout(self._config.within):
                if source.token is not None:
                    where, header = source.token
                    ask = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
                    async with http.put(base + where, headers=ask, allow_redirects=False) as got:
                        if got.status == 200:
                            token = await got.content.read(1024)
                            headers[header] = token.decode("ascii", "replace").strip()
                async with http.get(
                    base + source.path, headers=headers, allow_redirects=False
                ) as got:
                    if got.status != 200:
                        return {}
                    # Bounded, however long it goes on.
                    data = b""
                    while piece := await got.content.read(16 * 1024):
                        data += piece
                        if len(data) > MAX_ANSWER:
                            return {}
            value = json.loads(data)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError, RecursionError) as exc:
            log.debug("cloud_silent", cloud=source.name, error=str(exc))
            return {}
        members = {word: member(value, path) for word, path in source.members.items()}
        members = {word: text for word, text in members.items() if text}
        return {"cloud": source.name, **members} if members else {}
