"""Machines here: the driver is Spinal's own, and its machines are processes."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from spinal.agents.document import seconds

from ..area import ANYWHERE
from ..machine import Machine
from .vendor import Order, Size, Vendor


class Local(Vendor):
    """One driver; sizes and prices are those of the account."""

    driver_name = "local"

    def connect(self, region: str) -> Any:
        """Make the driver; machines live in the account's folder."""
        from spinal.agents.provider.local import LocalNodeDriver, LocalSize

        account, options = self.account, self.account.options
        more: dict[str, Any] = {}
        if "home" in options:
            more["hidden"] = (Path(options["home"]),)
        if "isolation" in options:
            more["isolation"] = options["isolation"]
        if "root" in options:
            more["root"] = Path(options["root"])
        if "boot" in options:
            more["boot_delay"] = seconds(options["boot"])
        if "capacity" in options:
            more["capacity"] = options["capacity"]
        if account.limit is not None:
            more["limit"] = account.limit
        if account.regions:
            more["regions"] = account.regions
        return LocalNodeDriver(
            Path(account.word("folder")),
            sizes={
                one.name: LocalSize(cpu=one.cpu, ram=one.ram, disk=one.disk, price=one.price)
                for one in account.sizes
            },
            currency=account.currency,
            **more,
        )

    def size(self, size: Any) -> Size:
        """Read a size; the account says more exactly what the driver rounds."""
        own = next(one for one in self.account.sizes if one.name == size.id)
        return Size(
            type=size.id,
            cpu=own.cpu,
            ram=own.ram,
            disk=own.disk,
            arch={"aarch64": "arm64"}.get(platform.machine(), platform.machine()),
            price=own.price,
            source="config",
        )

    def area(self, region: str) -> str:
        """Give the area of a region; without one of its own the account is anywhere."""
        return super().area(region) if self.account.regions else ANYWHERE

    def image(self, order: Order) -> str:
        """Give an image that was frozen here; whatever else is wanted, there is this system."""
        known = self.driver("").list_images()
        wanted = super().image(order)
        return str(
            next((one.id for one in known if wanted in (one.id, one.name)), known[0].id),
        )

    def arguments(self, order: Order) -> dict[str, Any]:
        """Give what it takes."""
        return {
            "name": order.name,
            "size": self.made_size(order),
            "image": self.made_image(self.image(order), order),
            "location": self.made_location(order),
            "ex_userdata": order.user_data or None,
            "ex_metadata": dict(order.tags),
        }

    def tags_of(self, node: Any) -> dict[str, str]:
        """Read the metadata."""
        found: dict[str, Any] = node.extra.get("metadata") or {}
        return {str(key): str(value) for key, value in found.items()}

    def region_of(self, node: Any, region: str) -> str:
        """Give what the machine shows."""
        return str(node.extra.get("region") or "")

    def type_of(self, node: Any) -> str:
        """Give what the machine shows."""
        return str(node.extra.get("size") or "")

    def said_of(self, node: Any) -> str:
        """Give what the driver says."""
        return str(node.extra.get("said") or "")

    def freeze(self, machine: Machine, label: str) -> str:
        """Keep what the machine has in its folder."""
        return str(self.driver("").create_image(machine.node, label).id)
