"""DigitalOcean, API v2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from .catalogue import DO_REGIONS, DO_SIZES, Size
from .ledger import ERROR, RUNNING, Machine
from .rest import Call, Image, Rest, address, number, stamp, strings
from .vendor import Refusal
from .wire import Reply

#: Of a month, after which an hour costs nothing more.
HOURS: Final = 672

UNPROCESSABLE: Final = "unprocessable_entity"


class DigitalOcean(Rest):
    """Droplets, their sizes, regions and images; snapshots; the account."""

    name = "digitalocean"
    systems: ClassVar[Mapping[str, str]] = {
        "debian-12-x64": "12 x64",
        "debian-13-x64": "13 x64",
        "ubuntu-22-04-x64": "22.04 (LTS) x64",
        "ubuntu-24-04-x64": "24.04 (LTS) x64",
    }
    regions, sizes = DO_REGIONS, DO_SIZES
    keys = ("region", "size", "name")
    refusals: ClassVar[Mapping[str, Refusal]] = {
        "capacity": Refusal(422, UNPROCESSABLE, "Size is not available in this region."),
        "quota": Refusal(
            422, UNPROCESSABLE, "creating this/these droplet(s) will exceed your droplet limit"
        ),
        "auth": Refusal(401, "Unauthorized", "Unable to authenticate you"),
        "rate": Refusal(429, "too_many_requests", "API Rate limit exceeded."),
        "server": Refusal(500, "server_error", "Unexpected server-side error"),
        "absent": Refusal(404, "not_found", "The resource you were accessing could not be found."),
    }

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """Say an error."""
        return {
            "id": refusal.code,
            "message": refusal.said,
            "request_id": "4d9d8375-3c56-4925-a3e7-eb137fed17e9",
        }

    def page(self, call: Call, key: str, rows: list[Any]) -> Reply:
        """Give one page of a list, with links to the others."""
        query = call.request.query
        most = number(query.get("per_page"), 20, 1, 200)
        page = number(query.get("page"), 1, 1, 1 << 20)
        last = max(1, -(-len(rows) // most))
        base = f"https://api.digitalocean.com{call.request.path}?per_page={most}&page="
        pages: dict[str, str] = {}
        if page < last:
            pages |= {"next": f"{base}{page + 1}", "last": f"{base}{last}"}
        if page > 1:
            pages |= {"first": f"{base}1", "prev": f"{base}{page - 1}"}
        links = {"pages": pages} if pages else {}
        some = rows[(page - 1) * most : page * most]
        return Reply.of(200, {key: some, "links": links, "meta": {"total": len(rows)}})

    def _create(self, call: Call) -> Reply:
        given = call.request.object()
        if self.region(call.ask.region) is None or self.size(call.ask.type) is None:
            return self.invalid("You specified an invalid size or region for Droplet creation.")
        if not call.ask.name:
            return self.invalid("Name can't be blank")
        image = str(given.get("image", ""))
        # Its own may be named by slug or by number.
        image = next((slug for slug in self.systems if str(_number(slug)) == image), image)
        if not self.has_image(image):
            return self.invalid("You specified an invalid image for Droplet creation.")
        count = self.ledger.number()
        machine = self.make(
            call,
            str(400_000_000 + count),
            count,
            image=image,
            tags=strings(given.get("tags")),
            user_data=given.get("user_data") or "",
        )
        action = {
            "id": 36_000_000 + count,
            "rel": "create",
            "href": f"https://api.digitalocean.com/v2/actions/{36_000_000 + count}",
        }
        shown = self._droplet(call, machine)
        return Reply.of(202, {"droplet": shown, "links": {"actions": [action]}})

    def _list(self, call: Call) -> Reply:
        query, rows = call.request.query, self.ledger.living(call.at)
        if "name" in query:
            rows = [machine for machine in rows if machine.name == query["name"]]
        if "tag_name" in query:
            rows = [machine for machine in rows if query["tag_name"] in machine.tags]
        return self.page(call, "droplets", [self._droplet(call, machine) for machine in rows])

    def _one(self, call: Call) -> Reply:
        machine = self.machine(call)
        if machine is None:
            return self.absent()
        return Reply.of(200, {"droplet": self._droplet(call, machine)})

    def _delete(self, call: Call) -> Reply:
        machine = self.machine(call)
        if machine is None:
            return self.absent()
        self.ledger.delete(machine)
        return Reply(204)

    def _action(self, call: Call) -> Reply:
        machine, given = self.machine(call), call.request.object()
        if machine is None:
            return self.absent()
        kind = str(given.get("type", ""))
        id = self.ledger.number()
        if kind == "snapshot":
            name = str(given.get("name") or machine.name)
            image = Image(str(190_000_000 + id), name, machine, call.at)
            self.images[image.id] = image
        elif kind not in ("reboot", "power_cycle", "power_on", "power_off", "shutdown"):
            return self.invalid(f"{kind} is not a valid action")
        action = {
            "id": 36_000_000 + id,
            "status": "in-progress",
            "type": kind,
            "started_at": stamp(call.at),
            "completed_at": None,
            "resource_id": int(machine.id),
            "resource_type": "droplet",
            "region": self._region(machine.region),
            "region_slug": machine.region,
        }
        return Reply.of(201, {"action": action})

    def _sizes(self, call: Call) -> Reply:
        return self.page(
            call, "sizes", [self._size(size, call.view.priced(size.id)) for size in self.sizes]
        )

    def _regions(self, call: Call) -> Reply:
        return self.page(call, "regions", [self._region(region.id) for region in self.regions])

    def _images(self, call: Call) -> Reply:
        rows = [self._system(slug) for slug in self.systems]
        if call.request.query.get("private") == "true":
            rows = []
        rows += [self._snapshot(image) for image in self.images.values()]
        return self.page(call, "images", rows)

    def _one_image(self, call: Call) -> Reply:
        image = self.images.get(call.ask.id)
        return self.absent() if image is None else Reply.of(200, {"image": self._snapshot(image)})

    def _delete_image(self, call: Call) -> Reply:
        return self.absent() if self.images.pop(call.ask.id, None) is None else Reply(204)

    def _account(self, call: Call) -> Reply:
        account = {
            "droplet_limit": self.settings.limit,
            "floating_ip_limit": 5,
            "reserved_ip_limit": 5,
            "volume_limit": 10,
            "email": "ops@example.org",
            "name": "Operations",
            "uuid": "b6fr89dbf6d9156cace5f3c78dc9851d957381ef",
            "email_verified": True,
            "status": "active",
            "status_message": "",
            "team": {"uuid": "5df3e3004a17e242b7c20ca6c9fc25b701a47ece", "name": "Operations"},
        }
        return Reply.of(200, {"account": account})

    def _droplet(self, call: Call, machine: Machine) -> dict[str, Any]:
        state, size = self.state(machine, call.view), self.size(machine.type)
        assert size is not None
        networks: list[dict[str, str]] = []
        if state == RUNNING:
            networks = [
                {
                    "ip_address": address(machine.number),
                    "netmask": "255.254.0.0",
                    "gateway": "198.18.0.1",
                    "type": "public",
                }
            ]
        taken = self.images.get(machine.image)
        image = self._snapshot(taken) if taken is not None else self._system(machine.image)
        return {
            "id": int(machine.id),
            "name": machine.name,
            "memory": size.ram,
            "vcpus": size.cpu,
            "disk": size.disk,
            "locked": False,
            "status": {RUNNING: "active", ERROR: "new"}.get(state, "new"),
            "kernel": None,
            "created_at": stamp(machine.created),
            "features": [],
            "backup_ids": [],
            "next_backup_window": None,
            "snapshot_ids": [],
            "image": image,
            "volume_ids": [],
            "size": self._size(size, True),
            "size_slug": size.id,
            "networks": {"v4": networks, "v6": []},
            "region": self._region(machine.region),
            "tags": machine.tags,
            "vpc_uuid": "760e09ef-dc84-11e8-981e-3cfdfeaae000",
        }

    def _size(self, size: Size, priced: bool) -> dict[str, Any]:
        return {
            "slug": size.id,
            "memory": size.ram,
            "vcpus": size.cpu,
            "disk": size.disk,
            "transfer": size.transfer / 1000,
            "price_monthly": size.monthly if priced else 0.0,
            "price_hourly": round(size.monthly / HOURS, 5) if priced else 0.0,
            "regions": list(size.regions),
            "available": True,
            "description": size.label,
        }

    def _region(self, id: str) -> dict[str, Any]:
        region = self.region(id)
        assert region is not None
        return {
            "name": region.city,
            "slug": region.id,
            "features": ["backups", "ipv6", "metadata"],
            "available": True,
            "sizes": [size.id for size in self.sizes if region.id in size.regions],
        }

    def _system(self, slug: str) -> dict[str, Any]:
        distribution = slug.split("-")[0].capitalize()
        # Of a machine whose image was deleted the vendor still tells.
        name = self.systems.get(slug, slug)
        return {
            "id": _number(slug),
            "name": name,
            "distribution": distribution,
            "slug": slug,
            "public": True,
            "regions": [region.id for region in self.regions],
            "created_at": "2026-01-15T10:00:00Z",
            "min_disk_size": 10,
            "size_gigabytes": 2.3,
            "description": f"{distribution} {name}",
            "tags": [],
            "status": "available",
            "error_message": "",
            "type": "base",
        }

    def _snapshot(self, image: Image) -> dict[str, Any]:
        return self._system(image.machine.image) | {
            "id": int(image.id),
            "name": image.name,
            "slug": None,
            "description": "",
            "public": False,
            "type": "snapshot",
            "regions": [image.machine.region],
            "created_at": stamp(image.created),
        }

    routes = (
        ("POST", "/v2/droplets", "create", _create),
        ("GET", "/v2/droplets", "list", _list),
        ("GET", "/v2/droplets/(?P<id>[0-9]+)", "one", _one),
        ("DELETE", "/v2/droplets/(?P<id>[0-9]+)", "delete", _delete),
        ("POST", "/v2/droplets/(?P<id>[0-9]+)/actions", "freeze", _action),
        ("GET", "/v2/sizes", "sizes", _sizes),
        ("GET", "/v2/regions", "other", _regions),
        ("GET", "/v2/images", "images", _images),
        ("GET", "/v2/images/(?P<id>[0-9]+)", "images", _one_image),
        ("DELETE", "/v2/images/(?P<id>[0-9]+)", "other", _delete_image),
        ("GET", "/v2/account", "limits", _account),
    )


def _number(slug: str) -> int:
    """Give the number of one of the vendor's images."""
    known = [*DigitalOcean.systems]
    return 150_000_000 + known.index(slug) if slug in known else 1
