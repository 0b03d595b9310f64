"""Linode (Akamai), API v4."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, ClassVar

from libcloud.compute.providers import get_driver

from ..machine import Machine, pairs
from .vendor import MIB, Order, Size, Vendor, at, words


class Linode(Vendor):
    """One driver sees all regions, and every type is taken to be had in each of them."""

    driver_name = "linode"
    user_data = 16 * 1024
    images: ClassVar[Mapping[str, str]] = {
        "debian-12": "linode/debian12",
        "debian-13": "linode/debian13",
        "ubuntu-22.04": "linode/ubuntu22.04",
        "ubuntu-24.04": "linode/ubuntu24.04",
    }

    def connect(self, region: str) -> Any:
        """Make a driver."""
        driver: Any = get_driver("linode")
        return driver(self.account.word("token"), api_version="4.0", **at(self.account.endpoint))

    def size(self, size: Any) -> Size:
        """Read a type; one with a GPU is a machine like any other."""
        return Size(
            type=size.id,
            cpu=size.extra["vcpus"],
            ram=size.ram * MIB,
            disk=size.disk * MIB,
            price=size.price,
        )

    def arguments(self, order: Order) -> dict[str, Any]:
        """Give what it takes; the password that it insists on is random and kept by nobody."""
        return {
            "location": self.made_location(order),
            "size": self.made_size(order),
            "image": self.made_image(self.image(order), order),
            "name": order.name,
            "root_pass": secrets.token_urlsafe(32),
            "ex_userdata": order.user_data or None,
            "ex_tags": words(order.tags, 50),
            "ex_authorized_keys": [order.ssh_key] if order.ssh_key else None,
        }

    def region_of(self, node: Any, region: str) -> str:
        """Give what the machine shows."""
        return str(node.extra.get("location") or "")

    def tags_of(self, node: Any) -> dict[str, str]:
        """Read the tags."""
        return pairs(node.extra.get("tags") or ())

    def freeze(self, machine: Machine, label: str) -> str:
        """Make an image of the largest disk."""
        driver = self.driver("")
        disk = max(driver.ex_list_disks(machine.node), key=lambda one: int(one.size or 0))
        return str(driver.create_image(disk, name=label).id)
