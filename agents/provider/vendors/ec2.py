"""Amazon EC2."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, Final

from libcloud.compute.providers import get_driver

from ..fault import Impossible
from ..machine import Machine
from .vendor import GIB, MIB, Order, Size, Vendor, at, priced_at

#: Families with processors of ARM: ``a1``, and those with a ``g`` behind the generation.
_ARM: Final = re.compile(r"^(a1|[a-z]+\d+g[a-z]*)\.")

#: Image here -> the account at AWS that publishes it, and how its images are called.
_PUBLISHED: Final = {
    "debian-12": ("136693071363", "debian-12-{}-2*"),
    "debian-13": ("136693071363", "debian-13-{}-2*"),
    "ubuntu-22.04": ("099720109477", "ubuntu/images/hvm-ssd/ubuntu-jammy-22.04-{}-server-2*"),
    "ubuntu-24.04": ("099720109477", "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-{}-server-2*"),
}

#: Seconds for which the id of a published image is kept.
_KEPT: Final = 3600.0


def arch_of(type: str) -> str:
    """Say what processor a type has, by its name."""
    return "arm64" if _ARM.match(type) else "x86_64"


class EC2(Vendor):
    """A driver for each region; types and prices are libcloud's tables, and so of its date."""

    driver_name = "ec2"
    whole = False
    user_data = 16 * 1024
    images: ClassVar[Mapping[str, str]] = {name: name for name in _PUBLISHED}

    def __init__(self, account: Any) -> None:
        super().__init__(account)
        self._images: dict[tuple[str, str, str], tuple[float, str]] = {}
        #: Image -> the device that its disk is.
        self._roots: dict[str, str] = {}

    def connect(self, region: str) -> Any:
        """Make a driver; version 2 of the signature, libcloud's own choice, is out of use."""
        driver: Any = get_driver("ec2")
        account = self.account
        try:
            return driver(
                account.word("key"),
                account.word("secret"),
                region=region,
                token=account.word("session") or None,
                signature_version="4",
                **at(account.endpoint),
            )
        except ValueError as exc:
            raise Impossible(f"region {region!r}: {exc}") from exc

    def list_regions(self) -> list[str]:
        """Give the regions that libcloud knows, without asking."""
        driver: Any = get_driver("ec2")
        return [str(one) for one in driver.list_regions()]

    def size(self, size: Any) -> Size:
        """Read a type; disks are rented by themselves, so those that come with it do not count."""
        return Size(
            type=size.id,
            cpu=float(size.extra["vcpu"]),
            ram=size.ram * MIB,
            disk=0,
            arch=arch_of(size.id),
            price=size.price,
            source="seed",
            as_of=priced_at(),
        )

    def arguments(self, order: Order) -> dict[str, Any]:
        """Give what it takes; its name makes a repeated call give the same machine."""
        options = self.account.options
        more: dict[str, Any] = {}
        if options.get("networks"):
            more["ex_subnet"] = SimpleNamespace(id=options["networks"][0])
        if options.get("security_groups"):
            more["ex_security_group_ids"] = list(options["security_groups"])
        if order.ssh_key:
            more["ex_keyname"] = order.ssh_key
        if order.disk:
            more["ex_blockdevicemappings"] = self._disk(order)
        return {
            "name": order.name,
            "size": self.made_size(order),
            "image": self.made_image(self.image(order), order),
            "ex_userdata": order.user_data or None,
            "ex_clienttoken": order.name,
            "ex_metadata": dict(order.tags),
            **more,
        }

    def image(self, order: Order) -> str:
        """Give the id of an image in the region of the order, for the processor of its type."""
        wanted = super().image(order)
        if wanted.startswith("ami-"):
            return wanted
        if wanted not in _PUBLISHED:
            raise Impossible(
                f"no image {wanted!r} here: name one of {', '.join(_PUBLISHED)}, or set its id, "
                f"such as images: {{{wanted}: ami-...}}"
            )
        arch = "arm64" if arch_of(order.type) == "arm64" else "amd64"
        key = (order.region, wanted, arch)
        when, id = self._images.get(key, (0.0, ""))
        if not id or time.monotonic() - when > _KEPT:
            id = self._newest(order.region, wanted, arch)
            self._images[key] = (time.monotonic(), id)
        return id

    def _newest(self, region: str, image: str, arch: str) -> str:
        owner, pattern = _PUBLISHED[image]
        found = self.driver(region).list_images(
            ex_owner=owner, ex_filters={"name": pattern.format(arch)}
        )
        if not found:
            raise Impossible(f"no image {image!r} for {arch} in {region}: set it in 'images'")
        return str(max(found, key=lambda one: str(one.name)).id)

    def _disk(self, order: Order) -> list[dict[str, Any]]:
        """Say how large the first disk is, which has no name of its own but one by its image."""
        id = self.image(order)
        if id not in self._roots:
            found = self.driver(order.region).list_images(ex_image_ids=[id])
            disks: list[Any] = found[0].extra.get("block_device_mapping") or [] if found else []
            # The first one is that with the system.
            self._roots[id] = next(
                (str(one["device_name"]) for one in disks if one.get("device_name")), ""
            )
        if not self._roots[id]:
            raise Impossible(f"image {id} does not say what its disk is called")
        return [{"DeviceName": self._roots[id], "Ebs": {"VolumeSize": -(-order.disk // GIB)}}]

    def nodes(self, scope: str, name: str = "") -> list[Any]:
        """Ask for all machines, or for those of one name."""
        filters = {"tag:Name": name} if name else None
        found: list[Any] = self.driver(scope).list_nodes(ex_filters=filters)
        return found

    def state_of(self, node: Any) -> str:
        """Say that one that is shutting down ends, of which the driver knows nothing."""
        if node.extra.get("status") in ("shutting-down", "stopping"):
            return "ending"
        return super().state_of(node)

    def type_of(self, node: Any) -> str:
        """Give the type."""
        return str(node.extra.get("instance_type") or "")

    def tags_of(self, node: Any) -> dict[str, str]:
        """Read the tags, without the name."""
        tags: dict[str, Any] = node.extra.get("tags") or {}
        return {key: str(value or "") for key, value in tags.items() if key != "Name"}

    def freeze(self, machine: Machine, label: str) -> str:
        """Start an image; the machine is not restarted for it."""
        return str(self.driver(machine.region).create_image(machine.node, label).id)
