"""Linode, API v4."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from .catalogue import LINODE_REGIONS, LINODE_SIZES, Size
from .ledger import RUNNING, Machine
from .rest import Call, Image, Rest, address, number, plain, stamp, strings
from .vendor import Refusal
from .wire import Reply

#: What an hour costs, as part of the price of a month.
HOUR: Final = 0.0015

_LABEL: Final = re.compile(r"[a-zA-Z]((?!--|__|\.\.)[a-zA-Z0-9-_.]){2,63}")


class Linode(Rest):
    """Instances, their types, disks and images; regions."""

    name = "linode"
    systems: ClassVar[Mapping[str, str]] = {
        "linode/debian12": "Debian 12",
        "linode/debian13": "Debian 13",
        "linode/ubuntu22.04": "Ubuntu 22.04 LTS",
        "linode/ubuntu24.04": "Ubuntu 24.04 LTS",
    }
    regions, sizes = LINODE_REGIONS, LINODE_SIZES
    keys = ("region", "type", "label")
    #: The code is the field that the error names.
    refusals: ClassVar[Mapping[str, Refusal]] = {
        "capacity": Refusal(
            400, "region", "The selected plan is not available in the selected region."
        ),
        "quota": Refusal(
            400,
            "",
            "Account Limit reached. Please open a support ticket to have your limit raised.",
        ),
        "auth": Refusal(401, "", "Invalid Token"),
        "rate": Refusal(429, "", "Too many requests"),
        "server": Refusal(500, "", "Internal server error"),
        "absent": Refusal(404, "", "Not found"),
    }

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """Say an error."""
        error = {"reason": refusal.said}
        return {"errors": [error | ({"field": refusal.code} if refusal.code else {})]}

    def page(self, call: Call, rows: list[Any]) -> Reply:
        """Give one page of a list."""
        query = call.request.query
        most = number(query.get("page_size"), 100, 25, 500)
        page = number(query.get("page"), 1, 1, 1 << 20)
        some = rows[(page - 1) * most : page * most]
        pages = max(1, -(-len(rows) // most))
        return Reply.of(200, {"data": some, "page": page, "pages": pages, "results": len(rows)})

    def _create(self, call: Call) -> Reply:
        ask = call.ask
        given = call.request.object()
        if self.region(ask.region) is None:
            return self._wrong("region", "region is not valid")
        if self.size(ask.type) is None:
            return self._wrong("type", "A valid plan type by that ID was not found")
        if given.get("image") and not self.has_image(given["image"]):
            return self._wrong("image", "image is not valid")
        if given.get("image") and not given.get("root_pass"):
            return self._wrong("root_pass", "root_pass is required")
        if _LABEL.fullmatch(ask.name) is None:
            return self._wrong("label", "Label must be 3 to 64 letters, digits, - _ and .")
        if any(machine.name == ask.name for machine in self.ledger.living(call.at)):
            return self._wrong("label", "Label must be unique among your linodes")
        count = self.ledger.number()
        machine = self.make(
            call,
            str(70_000_000 + count),
            count,
            image=given.get("image") or "",
            tags=strings(given.get("tags")),
            user_data=plain(str(given.get("metadata", {}).get("user_data", ""))),
        )
        return Reply.of(200, self._instance(call, machine))

    def _wrong(self, field: str, said: str) -> Reply:
        return Reply.of(400, self.error(Refusal(400, field, said)))

    def _list(self, call: Call) -> Reply:
        rows = [self._instance(call, machine) for machine in self.ledger.living(call.at)]
        for key, value in json.loads(call.request.headers.get("x-filter", "{}")).items():
            rows = [r for r in rows if (value in r["tags"] if key == "tags" else r[key] == value)]
        return self.page(call, rows)

    def _one(self, call: Call) -> Reply:
        machine = self.machine(call)
        return self.absent() if machine is None else Reply.of(200, self._instance(call, machine))

    def _delete(self, call: Call) -> Reply:
        machine = self.machine(call)
        if machine is None:
            return self.absent()
        self.ledger.delete(machine)
        return Reply.of(200, {})

    def _power(self, call: Call) -> Reply:
        return self.absent() if self.machine(call) is None else Reply.of(200, {})

    def _disks(self, call: Call) -> Reply:
        machine = self.machine(call)
        if machine is None:
            return self.absent()
        size = self.size(machine.type)
        assert size is not None
        disk: dict[str, Any] = {
            "id": int(machine.id) * 10,
            "label": "Debian 12 Disk",
            "status": "ready",
            "size": size.disk * 1024 - 512,
            "filesystem": "ext4",
            "disk_encryption": "enabled",
            "created": stamp(machine.created, ""),
            "updated": stamp(machine.created, ""),
        }
        swap = {"id": disk["id"] + 1, "label": "512 MB Swap Image", "size": 512}
        return self.page(call, [disk, disk | swap | {"filesystem": "swap"}])

    def _freeze(self, call: Call) -> Reply:
        given = call.request.object()
        machine = self.ledger.machines.get(str(int(given.get("disk_id", 0)) // 10))
        if machine is None or not machine.lives(call.at):
            return self._wrong("disk_id", "disk_id is not valid")
        count = self.ledger.number()
        image = Image(f"private/{15_000_000 + count}", given.get("label") or "", machine, call.at)
        self.images[image.id] = image
        return Reply.of(200, self._private(image))

    def _images(self, call: Call) -> Reply:
        rows = [self._image(id, name) for id, name in self.systems.items()]
        return self.page(call, rows + [self._private(image) for image in self.images.values()])

    def _one_image(self, call: Call) -> Reply:
        image = self.images.get(call.ask.id)
        return self.absent() if image is None else Reply.of(200, self._private(image))

    def _delete_image(self, call: Call) -> Reply:
        gone = self.images.pop(call.ask.id, None)
        return self.absent() if gone is None else Reply.of(200, {})

    def _types(self, call: Call) -> Reply:
        return self.page(call, [self._type(size, call.view.priced(size.id)) for size in self.sizes])

    def _regions(self, call: Call) -> Reply:
        rows = [
            {
                "id": region.id,
                "label": region.city,
                "country": region.country,
                "capabilities": ["Linodes", "Cloud Firewall", "Metadata"],
                "status": "ok",
                "resolvers": {"ipv4": "198.18.0.2,198.18.0.3", "ipv6": "2001:2::2,2001:2::3"},
                "site_type": "core",
                "placement_group_limits": {
                    "maximum_pgs_per_customer": 100,
                    "maximum_linodes_per_pg": 5,
                },
            }
            for region in self.regions
        ]
        return self.page(call, rows)

    def _instance(self, call: Call, machine: Machine) -> dict[str, Any]:
        size = self.size(machine.type)
        assert size is not None
        running = self.state(machine, call.view) == RUNNING
        return {
            "id": int(machine.id),
            "label": machine.name,
            "group": "",
            "status": "running" if running else "provisioning",
            "created": stamp(machine.created, ""),
            "updated": stamp(machine.created, ""),
            "type": machine.type,
            "ipv4": [address(machine.number)],
            "ipv6": f"2001:2::{machine.number:x}/128",
            "image": machine.image or None,
            "region": machine.region,
            "specs": {
                "disk": size.disk * 1024,
                "memory": size.ram,
                "vcpus": size.cpu,
                "gpus": 0,
                "transfer": size.transfer,
            },
            "alerts": {
                "cpu": 90 * size.cpu,
                "network_in": 10,
                "network_out": 10,
                "transfer_quota": 80,
                "io": 10_000,
            },
            "backups": {
                "enabled": False,
                "available": False,
                "schedule": {"day": None, "window": None},
                "last_successful": None,
            },
            "hypervisor": "kvm",
            "watchdog_enabled": True,
            "tags": machine.tags,
            "host_uuid": f"{machine.number:040x}",
            "has_user_data": bool(machine.user_data),
            "disk_encryption": "enabled",
            "lke_cluster_id": None,
            "placement_group": None,
            "capabilities": [],
            "interface_generation": "legacy_config",
            "maintenance_policy": "linode/migrate",
            "site_type": "core",
        }

    def _type(self, size: Size, priced: bool) -> dict[str, Any]:
        price = {"hourly": round(size.monthly * HOUR, 4), "monthly": size.monthly}
        return {
            "id": size.id,
            "label": size.label,
            "price": price if priced else {"hourly": 0.0, "monthly": 0.0},
            "region_prices": [],
            "addons": {"backups": {"price": {"hourly": 0.008, "monthly": 5}, "region_prices": []}},
            "memory": size.ram,
            "disk": size.disk * 1024,
            "transfer": size.transfer,
            "vcpus": size.cpu,
            "gpus": 0,
            "network_out": 1000 * size.cpu,
            "class": size.kind,
            "successor": None,
        }

    def _image(self, id: str, label: str) -> dict[str, Any]:
        return {
            "id": id,
            "label": label,
            "deprecated": False,
            "size": 1500,
            "created": "2026-01-15T10:00:00",
            "updated": "2026-01-15T10:00:00",
            "description": "",
            "created_by": "linode",
            "type": "manual",
            "is_public": True,
            "vendor": label.split()[0],
            "expiry": None,
            "eol": "2028-06-30T04:00:00",
            "status": "available",
            "capabilities": ["cloud-init"],
        }

    def _private(self, image: Image) -> dict[str, Any]:
        return self._image(image.id, image.name) | {
            "created": stamp(image.created, ""),
            "updated": stamp(image.created, ""),
            "created_by": "spinal",
            "is_public": False,
            "vendor": None,
            "eol": None,
        }

    routes = (
        ("POST", "/v4/linode/instances", "create", _create),
        ("GET", "/v4/linode/instances", "list", _list),
        ("GET", "/v4/linode/instances/(?P<id>[0-9]+)", "one", _one),
        ("DELETE", "/v4/linode/instances/(?P<id>[0-9]+)", "delete", _delete),
        ("POST", "/v4/linode/instances/(?P<id>[0-9]+)/(boot|reboot|shutdown)", "other", _power),
        ("GET", "/v4/linode/instances/(?P<id>[0-9]+)/disks", "other", _disks),
        ("GET", "/v4/linode/types", "sizes", _types),
        ("GET", "/v4/regions", "other", _regions),
        ("GET", "/v4/images", "images", _images),
        ("POST", "/v4/images", "freeze", _freeze),
        ("GET", "/v4/images/(?P<id>private/[0-9]+)", "images", _one_image),
        ("DELETE", "/v4/images/(?P<id>private/[0-9]+)", "other", _delete_image),
    )
