"""OpenStack: any private or public cloud with Keystone and Nova; and Rackspace's flavour of it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from libcloud.common.exceptions import BaseHTTPError
from libcloud.compute.providers import get_driver
from libcloud.pricing import (
    set_pricing,  # pyright: ignore[reportUnknownVariableType] - of a dictionary
)

from ..fault import Impossible
from ..machine import Machine
from .vendor import GIB, MIB, Order, Quota, Size, Vendor, named, priced_at

#: Seconds for which flavours, images and networks are kept.
_KEPT: Final = 600.0


class OpenStack(Vendor):
    """A driver for each region; there are no prices but those of the account's ``prices``."""

    driver_name = "openstack"
    whole = False
    #: Nova takes 65,535 bytes of base64.
    user_data = 49_149
    images: ClassVar[Mapping[str, str]] = {
        name: name for name in ("debian-12", "debian-13", "ubuntu-22.04", "ubuntu-24.04")
    }
    #: Whether a flavour is known by its name; an id may be anything.
    by_name: ClassVar[bool] = True

    def __init__(self, account: Any) -> None:
        super().__init__(account)
        self._lists: dict[tuple[str, str], tuple[float, list[Any]]] = {}

    def connect(self, region: str) -> Any:
        """Make a driver; it logs in when it is first asked."""
        account = self.account
        # It has no table of prices, and libcloud would read its whole file for each flavour.
        set_pricing("compute", "openstack", {})
        driver: Any = get_driver("openstack")
        endpoint = account.endpoint or ""
        common: dict[str, Any] = {
            "ex_force_auth_url": endpoint,
            "ex_force_service_region": region,
            "secure": endpoint.startswith("https"),
        }
        if account.word("tenant"):
            common["ex_tenant_name"] = account.word("tenant")
        if account.word("service"):
            common["ex_force_service_type"] = "compute"
            common["ex_force_service_name"] = account.word("service")
        if account.word("identity", "3") == "2":
            return driver(
                account.word("user"),
                account.word("password"),
                ex_force_auth_version="2.0_password",
                **common,
            )
        return driver(
            account.word("user"),
            account.word("password"),
            api_version="2.2",
            ex_force_auth_version="3.x_password",
            ex_domain_name=account.word("domain", "Default"),
            **common,
        )

    def list_regions(self) -> list[str]:
        """Give the regions that the catalogue of services names."""
        driver = self.driver(self.account.regions[0])
        catalogue: Any = driver.connection.get_service_catalog()
        return [str(one) for one in catalogue.get_regions() if one]

    def _kept(self, region: str, what: str) -> list[Any]:
        """Give a list of the driver, which may be some minutes old."""
        when, found = self._lists.get((region, what), (0.0, []))
        if not found or time.monotonic() - when > _KEPT:
            found = list(getattr(self.driver(region), what)())
            self._lists[region, what] = (time.monotonic(), found)
        return found

    def sizes(self, scope: str) -> Any:
        """Give the flavours."""
        self._lists.pop((scope, "list_sizes"), None)
        for one in self._kept(scope, "list_sizes"):
            if not one.extra.get("disabled"):
                yield self.size(one)

    def size(self, size: Any) -> Size:
        """Read a flavour."""
        arch = "arm64" if re.search(r"arm|aarch64|ampere", str(size.name).lower()) else "x86_64"
        return Size(
            type=self._type(size),
            cpu=size.vcpus,
            ram=size.ram * MIB,
            disk=(size.disk or 0) * GIB,
            arch=arch,
            price=size.price,
            source="seed",
            as_of=priced_at(),
        )

    def _type(self, size: Any) -> str:
        return str(size.name if self.by_name else size.id)

    def arguments(self, order: Order) -> dict[str, Any]:
        """Give what it takes."""
        region = order.region
        more: dict[str, Any] = {}
        if wanted := self.account.options.get("networks"):
            known = self._kept(region, "ex_list_networks")
            more["networks"] = [named(known, one, "network") for one in wanted]
        if order.ssh_key:
            more["ex_keyname"] = order.ssh_key
        return {
            "name": order.name,
            "size": named(self._kept(region, "list_sizes"), order.type, "flavour"),
            "image": self.made_image(self.image(order), order),
            "ex_userdata": order.user_data or None,
            "ex_config_drive": True,
            "ex_metadata": dict(order.tags),
            **more,
        }

    def image(self, order: Order) -> str:
        """Find an image by id or name, or by what a name has in common with ours."""
        wanted = super().image(order)
        images = self._kept(order.region, "list_images")
        for one in images:
            if wanted in (str(one.id), str(one.name)):
                return str(one.id)
        plain = _plain(wanted)
        near = [one for one in images if _plain(str(one.name)).startswith(plain)]
        if near:
            return str(min(near, key=lambda one: (len(str(one.name)), str(one.name))).id)
        try:
            return str(named(images, wanted, "image").id)
        except Impossible as exc:
            raise Impossible(f"{exc}; set it in 'images'") from None

    def type_of(self, node: Any) -> str:
        """Give the flavour; newer versions of Nova show its name, older ones its id."""
        details: Any = node.extra.get("flavor_details") or {}
        if details.get("original_name"):
            return str(details["original_name"])
        id = str(node.extra.get("flavorId") or "")
        if not self.by_name:
            return id
        region = node.driver.connection._ex_force_service_region
        return next(
            (str(one.name) for one in self._kept(region, "list_sizes") if str(one.id) == id), id
        )

    def tags_of(self, node: Any) -> dict[str, str]:
        """Read the metadata."""
        found: dict[str, Any] = node.extra.get("metadata") or {}
        return {str(key): str(value) for key, value in found.items()}

    def state_of(self, node: Any) -> str:
        """Say that one that is being deleted ends."""
        if node.extra.get("task_state") == "deleting" or node.extra.get("vm_state") == "deleted":
            return "ending"
        return super().state_of(node)

    def said_of(self, node: Any) -> str:
        """Give the fault, such as that no host was valid."""
        fault: Any = node.extra.get("fault") or {}
        return str(fault.get("message") or "")

    def freeze(self, machine: Machine, label: str) -> str:
        """Start an image."""
        made: Any = self.driver(machine.region).create_image(machine.node, label)
        return str(getattr(made, "id", label))

    def quota(self) -> Quota:
        """Ask for the project's limit as well."""
        found = super().quota()
        limits = [] if found.limit is None else [found.limit]
        for region in self.regions():
            try:
                answer: Any = self.driver(region).connection.request("/limits").object
            except BaseHTTPError:
                continue  # Not every cloud tells.
            most: Any = answer.get("limits", {}).get("absolute", {}).get("maxTotalInstances")
            if isinstance(most, int) and most >= 0:
                limits.append(most)
        return Quota(found.machines, min(limits, default=None))


class Rackspace(OpenStack):
    """Rackspace's public cloud: another log-in, regions in small letters, flavours by their id."""

    driver_name = "rackspace"
    by_name = False

    def connect(self, region: str) -> Any:
        """Make a driver."""
        account = self.account
        driver: Any = get_driver("rackspace")
        more: dict[str, Any] = {}
        if account.endpoint is not None:
            more = {
                "ex_force_auth_url": account.endpoint,
                "secure": account.endpoint.startswith("https"),
            }
        try:
            return driver(
                account.word("user"),
                account.word("password"),
                region=region.lower(),
                ex_force_auth_version="2.0_password",
                ex_force_service_region=region.upper(),
                **more,
            )
        except ValueError as exc:
            raise Impossible(f"region {region!r}: {exc}") from exc

    def list_regions(self) -> list[str]:
        """Give the regions that libcloud knows."""
        from libcloud.compute.drivers.rackspace import ENDPOINT_ARGS_MAP

        return [str(one) for one in ENDPOINT_ARGS_MAP]


def _plain(name: str) -> str:
    """Bring a name of an image to what is compared."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
