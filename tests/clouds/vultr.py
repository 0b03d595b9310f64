"""Vultr, API v2."""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from .catalogue import VULTR_REGIONS, VULTR_SIZES, Size
from .ledger import RUNNING, Machine
from .rest import Call, Image, Rest, address, number, plain, stamp, strings
from .vendor import Refusal
from .wire import Reply


class Vultr(Rest):
    """Instances, plans, regions, operating systems, snapshots; the account."""

    name = "vultr"
    systems: ClassVar[Mapping[str, str]] = {
        "2136": "Debian 12 x64 (bookworm)",
        "2625": "Debian 13 x64 (trixie)",
        "1743": "Ubuntu 22.04 LTS x64",
        "2284": "Ubuntu 24.04 LTS x64",
    }
    regions, sizes = VULTR_REGIONS, VULTR_SIZES
    keys = ("region", "plan", "label")
    refusals: ClassVar[Mapping[str, Refusal]] = {
        "capacity": Refusal(400, "", "Plan is not available in the selected region."),
        "quota": Refusal(
            400,
            "",
            "You have reached the maximum number of instances (limit exceeded) for this account.",
        ),
        "auth": Refusal(401, "", "Invalid API token."),
        "rate": Refusal(429, "", "Rate limit exceeded"),
        "server": Refusal(500, "", "Internal server error"),
        "absent": Refusal(404, "", "Invalid instance-id."),
    }

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """Say an error."""
        return {"error": refusal.said, "status": refusal.status}

    def page(self, call: Call, key: str, rows: list[Any]) -> Reply:
        """Give one page of a list, with the cursors of its neighbours."""
        query = call.request.query
        most = number(query.get("per_page"), 100, 1, 500)
        start = _position(query.get("cursor", ""))
        links = {
            "next": _cursor(start + most) if start + most < len(rows) else "",
            "prev": _cursor(max(0, start - most)) if start > 0 else "",
        }
        meta = {"total": len(rows), "links": links}
        return Reply.of(200, {key: rows[start : start + most], "meta": meta})

    def _create(self, call: Call) -> Reply:
        given = call.request.object()
        if self.region(call.ask.region) is None:
            return self.invalid("Invalid region.")
        if self.size(call.ask.type) is None:
            return self.invalid("Invalid plan chosen.")
        image = str(given.get("os_id") or given.get("snapshot_id") or "")
        if not self.has_image(image):
            return self.invalid("Invalid OS or snapshot.")
        tags = strings(given.get("tags")) or strings(given.get("tag"))
        count = self.ledger.number()
        machine = self.make(
            call,
            str(uuid.uuid5(uuid.NAMESPACE_URL, f"vultr/{count}/{call.at}")),
            count,
            image=image,
            tags=tags,
            user_data=plain(given.get("user_data") or ""),
        )
        return Reply.of(202, {"instance": self._instance(call, machine)})

    def _list(self, call: Call) -> Reply:
        query, rows = call.request.query, self.ledger.living(call.at)
        for key, value in (("label", "name"), ("region", "region")):
            if key in query:
                rows = [machine for machine in rows if getattr(machine, value) == query[key]]
        if "tag" in query:
            rows = [machine for machine in rows if query["tag"] in machine.tags]
        return self.page(call, "instances", [self._instance(call, machine) for machine in rows])

    def _one(self, call: Call) -> Reply:
        machine = self.machine(call)
        if machine is None:
            return self.absent()
        return Reply.of(200, {"instance": self._instance(call, machine)})

    def _delete(self, call: Call) -> Reply:
        machine = self.machine(call)
        if machine is None:
            return self.absent()
        self.ledger.delete(machine)
        return Reply(204)

    def _power(self, call: Call) -> Reply:
        return self.absent() if self.machine(call) is None else Reply(204)

    def _freeze(self, call: Call) -> Reply:
        given = call.request.object()
        machine = self.ledger.machines.get(str(given.get("instance_id", "")))
        if machine is None or not machine.lives(call.at):
            return self.absent()
        id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"vultr/snapshot/{self.ledger.number()}"))
        self.images[id] = Image(id, str(given.get("description") or ""), machine, call.at)
        return Reply.of(201, {"snapshot": self._snapshot(self.images[id])})

    def _snapshots(self, call: Call) -> Reply:
        rows = [self._snapshot(image) for image in self.images.values()]
        return self.page(call, "snapshots", rows)

    def _one_snapshot(self, call: Call) -> Reply:
        image = self.images.get(call.ask.id)
        return (
            self.absent() if image is None else Reply.of(200, {"snapshot": self._snapshot(image)})
        )

    def _delete_snapshot(self, call: Call) -> Reply:
        return self.absent() if self.images.pop(call.ask.id, None) is None else Reply(204)

    def _plans(self, call: Call) -> Reply:
        return self.page(
            call, "plans", [self._plan(size, call.view.priced(size.id)) for size in self.sizes]
        )

    def _metal_plans(self, call: Call) -> Reply:
        return self.page(call, "plans_metal", [])

    def _metals(self, call: Call) -> Reply:
        return self.page(call, "bare_metals", [])

    def _systems(self, call: Call) -> Reply:
        rows = [
            {"id": int(id), "name": name, "arch": "x64", "family": name.split()[0].lower()}
            for id, name in self.systems.items()
        ]
        return self.page(call, "os", rows)

    def _regions(self, call: Call) -> Reply:
        rows = [
            {
                "id": region.id,
                "city": region.city,
                "country": region.country,
                "continent": region.continent,
                "options": ["ddos_protection", "kubernetes"],
            }
            for region in self.regions
        ]
        return self.page(call, "regions", rows)

    def _available(self, call: Call) -> Reply:
        if self.region(call.ask.id) is None:
            return self.invalid("Invalid region.")
        plans = [size.id for size in self.sizes if call.ask.id in size.regions]
        return Reply.of(200, {"available_plans": plans})

    def _account(self, call: Call) -> Reply:
        account = {
            "name": "Operations",
            "email": "ops@example.org",
            "acls": ["subscriptions", "provisioning", "billing"],
            "balance": -50.0,
            "pending_charges": 1.5,
            "last_payment_date": "2026-01-15T10:00:00+00:00",
            "last_payment_amount": -50.0,
        }
        return Reply.of(200, {"account": account})

    def _instance(self, call: Call, machine: Machine) -> dict[str, Any]:
        size = self.size(machine.type)
        assert size is not None
        running = self.state(machine, call.view) == RUNNING
        tags = [str(tag) for tag in machine.tags]
        return {
            "id": machine.id,
            "os": self.systems.get(machine.image, "Snapshot"),
            "ram": size.ram,
            "disk": size.disk,
            "main_ip": address(machine.number) if running else "0.0.0.0",
            "vcpu_count": size.cpu,
            "region": machine.region,
            "plan": machine.type,
            "date_created": stamp(machine.created, "+00:00"),
            "status": "active" if running else "pending",
            "allowed_bandwidth": size.transfer,
            "netmask_v4": "255.254.0.0" if running else "",
            "gateway_v4": "198.18.0.1" if running else "0.0.0.0",
            "power_status": "running",
            "server_status": "ok" if running else "none",
            "v6_network": "",
            "v6_main_ip": "",
            "v6_network_size": 0,
            "label": machine.name,
            "internal_ip": "",
            "kvm": "",
            "hostname": machine.name,
            "os_id": int(machine.image) if machine.image.isdecimal() else 164,
            "app_id": 0,
            "image_id": "",
            "firewall_group_id": "",
            "features": [],
            "tag": tags[0] if tags else "",
            "tags": tags,
            "user_scheme": "root",
        }

    def _plan(self, size: Size, priced: bool) -> dict[str, Any]:
        return {
            "id": size.id,
            "vcpu_count": size.cpu,
            "ram": size.ram,
            "disk": size.disk,
            "disk_count": 1,
            "bandwidth": size.transfer,
            "monthly_cost": size.monthly if priced else 0,
            "type": size.kind,
            "locations": list(size.regions),
        }

    def _snapshot(self, image: Image) -> dict[str, Any]:
        size = self.size(image.machine.type)
        assert size is not None
        return {
            "id": image.id,
            "date_created": stamp(image.created, "+00:00"),
            "description": image.name,
            "size": size.disk << 30,
            "compressed_size": size.disk << 28,
            "status": "complete",
            "os_id": 2136,
            "app_id": 0,
        }

    routes = (
        ("POST", "/v2/instances", "create", _create),
        ("GET", "/v2/instances", "list", _list),
        ("GET", "/v2/instances/(?P<id>[0-9a-f-]+)", "one", _one),
        ("DELETE", "/v2/instances/(?P<id>[0-9a-f-]+)", "delete", _delete),
        ("POST", "/v2/instances/(?P<id>[0-9a-f-]+)/(start|reboot|halt)", "other", _power),
        ("GET", "/v2/plans", "sizes", _plans),
        ("GET", "/v2/plans-metal", "other", _metal_plans),
        ("GET", "/v2/bare-metals", "other", _metals),
        ("GET", "/v2/os", "images", _systems),
        ("GET", "/v2/regions", "other", _regions),
        ("GET", "/v2/regions/(?P<id>[a-z]+)/availability", "other", _available),
        ("GET", "/v2/snapshots", "images", _snapshots),
        ("POST", "/v2/snapshots", "freeze", _freeze),
        ("GET", "/v2/snapshots/(?P<id>[0-9a-f-]+)", "images", _one_snapshot),
        ("DELETE", "/v2/snapshots/(?P<id>[0-9a-f-]+)", "other", _delete_snapshot),
        ("GET", "/v2/account", "limits", _account),
    )


def _cursor(position: int) -> str:
    return base64.urlsafe_b64encode(f"next__{position}".encode()).decode()


def _position(cursor: str) -> int:
    try:
        return int(base64.urlsafe_b64decode(cursor).decode().removeprefix("next__") or 0)
    except (binascii.Error, ValueError):
        return 0
