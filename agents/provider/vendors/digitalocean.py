"""DigitalOcean, API v2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from libcloud.compute.providers import get_driver

from ..machine import Machine, pairs
from .vendor import GIB, MIB, Order, Quota, Size, Vendor, address, words


class DigitalOcean(Vendor):
    """One driver sees all regions; prices are live; an image may be named by its slug."""

    driver_name = "digitalocean"
    user_data = 64 * 1024
    images: ClassVar[Mapping[str, str]] = {
        "debian-12": "debian-12-x64",
        "debian-13": "debian-13-x64",
        "ubuntu-22.04": "ubuntu-22-04-x64",
        "ubuntu-24.04": "ubuntu-24-04-x64",
    }

    def __init__(self, account: Any) -> None:
        super().__init__(account)
        #: Name of a region, which is all that a machine shows -> its slug.
        self._slugs: dict[str, str] = {}

    def connect(self, region: str) -> Any:
        """Make a driver; its constructor takes no address."""
        driver: Any = get_driver("digitalocean")(self.account.word("token"))
        if self.account.endpoint is not None:
            connection = driver.connection
            host, port, secure, _ = address(self.account.endpoint)
            connection.host, connection.port, connection.secure = host, port, int(secure)
            connection.connect()
        return driver

    def list_regions(self) -> list[str]:
        """Give the slugs of the regions."""
        found = self.driver("").list_locations(ex_available=False)
        self._slugs = {str(one.name): str(one.id) for one in found}
        return list(self._slugs.values())

    def size(self, size: Any) -> Size:
        """Read a size; the driver drops whether it is available, but not where."""
        return Size(
            type=size.id,
            cpu=size.extra["vcpus"],
            ram=size.ram * MIB,
            disk=size.disk * GIB,
            price=size.price,
            regions=frozenset(size.extra["regions"]),
        )

    def arguments(self, order: Order) -> dict[str, Any]:
        """Give what it takes; ``tags`` must be in ``ex_create_attr`` and user-data must not."""
        more: dict[str, Any] = {"tags": words(order.tags, 255)}
        if order.ssh_key:
            more["ssh_keys"] = [order.ssh_key]
        return {
            "name": order.name,
            "size": self.made_size(order),
            "image": self.made_image(self.image(order), order),
            "location": self.made_location(order),
            "ex_create_attr": more,
            "ex_user_data": order.user_data or None,
        }

    def region_of(self, node: Any, region: str) -> str:
        """Find the slug of the region, of which a machine shows the name."""
        name = str(node.extra.get("region") or "")
        if name not in self._slugs:
            self.known_regions()
        return self._slugs.get(name, name)

    def type_of(self, node: Any) -> str:
        """Give the slug of the size."""
        return str(node.extra.get("size_slug") or "")

    def tags_of(self, node: Any) -> dict[str, str]:
        """Read the tags."""
        return pairs(node.extra.get("tags") or ())

    def freeze(self, machine: Machine, label: str) -> str:
        """Start a snapshot, which is found by its name once it is done."""
        self.driver("").create_image(machine.node, label)
        return label

    def image(self, order: Order) -> str:
        """Give the slug; a name that is none is looked up among the account's own images."""
        found = super().image(order)
        if found in self.images.values() or found.isdigit() or found.endswith("-x64"):
            return found
        for one in self.driver("").list_images():
            if found in (one.name, one.extra.get("slug")):
                return str(one.id)
        return found

    def quota(self) -> Quota:
        """Ask for the account's limit as well."""
        found = super().quota()
        limit = self.driver("").ex_account_info().get("droplet_limit")
        limits = [one for one in (found.limit, limit) if isinstance(one, int)]
        return Quota(found.machines, min(limits, default=None), {"vendor_limit": limit})
