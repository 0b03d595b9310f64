"""Any other driver of libcloud, by configuration alone.

What such a driver calls its arguments stands in the account: ``arguments`` for its constructor, and
``create`` for its ``create_node``, which has our words as keys and its words as values.  None of it
is tested, against the vendor or anything else; ``spinal provider check`` says what the driver gives.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from libcloud.compute.providers import get_driver

from spinal.agents.secret import Secret

from ..fault import Impossible
from ..machine import Machine, pairs
from ..offer import MONTH
from .vendor import GIB, MIB, Order, Size, Vendor, named, words

#: What is looked for in a driver's signature if the account does not say.
_USER_DATA: Final = (
    "ex_userdata",
    "ex_user_data",
    "ex_cloud_config",
    "cloud_init",
    "ex_customdata",
)
_TAGS: Final = ("ex_metadata", "ex_tags")

#: Where drivers keep the number of processors.
_CPUS: Final = ("vcpus", "vcpu", "cpu", "cpus", "cores", "vcpu_count", "core_number", "guestCpus")


class Generic(Vendor):
    """See the module."""

    def __init__(self, account: Any) -> None:
        super().__init__(account)
        self.driver_name = account.driver  # type: ignore[misc]
        if account.options.get("price_per") == "month":
            self.hours = MONTH  # type: ignore[misc]
        self._words: Mapping[str, Any] = account.options.get("create", {})

    def connect(self, region: str) -> Any:
        """Make a driver with the account's arguments."""
        driver: Any = get_driver(self.account.driver)
        arguments = {
            key: value.read() if isinstance(value, Secret) else value
            for key, value in self.account.options["arguments"].items()
        }
        try:
            return driver(**arguments)
        except (TypeError, ValueError) as exc:
            raise Impossible(f"driver {self.account.driver}: {exc}: see 'arguments'") from exc

    def list_regions(self) -> list[str]:
        """Give the locations; a driver without them has one."""
        found = self._locations()
        return [str(one.id) for one in found] or ["default"]

    def _locations(self) -> list[Any]:
        try:
            return list(self.driver("").list_locations())
        except NotImplementedError:
            return []

    def size(self, size: Any) -> Size:
        """Read a size, by what drivers have in common."""
        extra: Mapping[str, Any] = size.extra or {}
        cpu: Any = next((extra[key] for key in _CPUS if extra.get(key)), None)
        cpu = getattr(size, "vcpus", None) if cpu is None else cpu
        return Size(
            type=str(size.id),
            cpu=None if cpu is None else float(cpu),
            ram=int(size.ram or 0) * MIB,
            disk=int(size.disk or 0) * GIB,
            price=size.price,
        )

    def arguments(self, order: Order) -> dict[str, Any]:
        """Give what it takes, as far as its signature tells."""
        driver = self.driver("")
        takes = set(inspect.signature(driver.create_node).parameters)
        arguments: dict[str, Any] = {
            "name": order.name,
            "size": named(driver.list_sizes(), order.type, "size"),
            "image": named(driver.list_images(), self.image(order), "image"),
        }
        if "location" in takes and (places := self._locations()):
            arguments["location"] = named(places, order.region, "location")
        key = self._words.get("user_data") or next((one for one in _USER_DATA if one in takes), "")
        if order.user_data and not key:
            raise Impossible(
                f"driver {self.account.driver} takes no user-data: a machine could not join"
            )
        if order.user_data:
            arguments[key] = order.user_data
        key = self._words.get("tags") or next((one for one in _TAGS if one in takes), "")
        if key:
            arguments[key] = words(order.tags, 250) if key == "ex_tags" else dict(order.tags)
        known = ("user_data", "tags")
        return {**arguments, **{k: v for k, v in self._words.items() if k not in known}}

    def region_of(self, node: Any, region: str) -> str:
        """Give what the machine shows, else the only region."""
        extra: Mapping[str, Any] = node.extra or {}
        for key in ("location", "region", "zone"):
            if place := extra.get(key):
                return str(getattr(place, "id", place))
        regions = self.regions()
        return regions[0] if len(regions) == 1 else ""

    def tags_of(self, node: Any) -> dict[str, str]:
        """Read the tags, or metadata, where the driver has them."""
        extra: Mapping[str, Any] = node.extra or {}
        for key in ("tags", "metadata"):
            found = extra.get(key)
            if isinstance(found, dict):
                return {str(k): str(v) for k, v in found.items()}  # pyright: ignore
            if isinstance(found, list):
                return pairs(found)  # pyright: ignore[reportUnknownArgumentType]
        return {}

    def freeze(self, machine: Machine, label: str) -> str:
        """Make an image, where the driver does."""
        return str(self.driver("").create_image(machine.node, label).id)
