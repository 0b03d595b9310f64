"""Vultr, API v2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from libcloud.compute.providers import get_driver

from ..fault import Impossible
from ..machine import HOME, Machine
from ..offer import MONTH
from .vendor import GIB, MIB, Order, Size, Vendor, at


class Vultr(Vendor):
    """One driver sees all regions; prices are of a month; a machine keeps one tag of ours.

    That is the one that says whose it is; pool and name are in its label.
    """

    driver_name = "vultr"
    hours = MONTH
    #: How the name of an operating system begins.
    images: ClassVar[Mapping[str, str]] = {
        "debian-12": "Debian 12 x64",
        "debian-13": "Debian 13 x64",
        "ubuntu-22.04": "Ubuntu 22.04 LTS x64",
        "ubuntu-24.04": "Ubuntu 24.04 LTS x64",
    }

    def connect(self, region: str) -> Any:
        """Make a driver."""
        driver: Any = get_driver("vultr")
        return driver(self.account.word("token"), api_version="2", **at(self.account.endpoint))

    def sizes(self, scope: str) -> Any:
        """Give the plans; bare metal is left out, as it takes an hour to come."""
        for one in self.driver(scope).list_sizes(ex_list_bare_metals=False):
            yield self.size(one)

    def nodes(self, scope: str, name: str = "") -> list[Any]:
        """Ask for the instances, not for bare metal."""
        found: list[Any] = self.driver(scope).list_nodes(ex_list_bare_metals=False)
        return found

    def size(self, size: Any) -> Size:
        """Read a plan."""
        return Size(
            type=size.id,
            cpu=size.extra.get("vcpu_count"),
            ram=size.ram * MIB,
            disk=size.disk * GIB,
            price=size.price,
            regions=frozenset(size.extra["locations"]),
        )

    def arguments(self, order: Order) -> dict[str, Any]:
        """Give what it takes."""
        return {
            "name": order.name,
            "size": self.made_size(order),
            "location": self.made_location(order),
            "image": self.made_image(self._system(order), order),
            "ex_userdata": order.user_data or None,
            "ex_tag": f"{HOME}:{order.tags[HOME]}" if HOME in order.tags else None,
            "ex_hostname": order.name,
        }

    def _system(self, order: Order) -> int:
        wanted = self.image(order)
        if wanted.isdigit():
            return int(wanted)
        found = [one for one in self.driver("").list_images() if self._fits(str(one.name), wanted)]
        if not found:
            raise Impossible(f"no operating system {wanted!r} at this vendor: set it in 'images'")
        return int(found[0].id)

    @staticmethod
    def _fits(name: str, wanted: str) -> bool:
        return re.match(rf"{re.escape(wanted)}\b", name, re.IGNORECASE) is not None

    def region_of(self, node: Any, region: str) -> str:
        """Give what the machine shows."""
        return str(node.extra.get("location") or "")

    def tags_of(self, node: Any) -> dict[str, str]:
        """Read the one tag."""
        key, _, value = str(node.extra.get("tag") or "").partition(":")
        return {key: value} if value else {}

    def freeze(self, machine: Machine, label: str) -> str:
        """Start a snapshot."""
        return str(self.driver("").ex_create_snapshot(machine.node, description=label).id)
