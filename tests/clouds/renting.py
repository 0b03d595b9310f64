"""One way to rent a machine from each of the five, by libcloud's own calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from .cloud import Cloud

#: A small type of each vendor, another one, and two of its regions.
TYPES: Final[Mapping[str, tuple[str, str]]] = {
    "ec2": ("t4g.medium", "m6g.large"),
    "openstack": ("2", "3"),
    "digitalocean": ("s-2vcpu-4gb", "c-2"),
    "linode": ("g6-standard-2", "g6-dedicated-2"),
    "vultr": ("vc2-2c-4gb", "vhf-2c-4gb"),
}
REGIONS: Final[Mapping[str, tuple[str, str]]] = {
    "ec2": ("eu-west-1", "us-east-1"),
    "openstack": ("ORD", "LON"),
    "digitalocean": ("fra1", "nyc3"),
    "linode": ("eu-central", "us-east"),
    "vultr": ("fra", "ewr"),
}
#: Vendors whose drivers of libcloud are for one region each.
REGIONAL: Final = ("ec2", "openstack")

#: What a new machine is to run.
SCRIPT: Final = "#!/bin/sh\necho 'grüß dich' > /etc/motd\n"


def region_of(cloud: Cloud, index: int = 0) -> str:
    """Give one of two regions of a vendor."""
    return REGIONS[cloud.name][index]


def connect(cloud: Cloud, index: int = 0) -> Any:
    """Make a driver for one of two regions."""
    return cloud.connect(region_of(cloud, index) if cloud.name in REGIONAL else "")


def rent(cloud: Cloud, name: str, *, type: int = 0, region: int = 0, driver: Any = None) -> Any:
    """Rent a machine with the script and a tag; gives libcloud's node."""
    driver = driver or connect(cloud, region)
    size = next(s for s in driver.list_sizes() if str(s.id) == TYPES[cloud.name][type])
    return _CREATE[cloud.name](driver, name, size, region_of(cloud, region))


def image_of(driver: Any) -> Any:
    """Give the vendor's image of Debian 12; at EC2 for the processor of its types here."""
    names = re.compile("debian-12-arm64|^Debian 12|^12 x64")
    return next(image for image in driver.list_images() if names.search(image.name))


def _location(driver: Any, region: str) -> Any:
    return next(place for place in driver.list_locations() if place.id == region)


def _ec2(driver: Any, name: str, size: Any, region: str) -> Any:
    return driver.create_node(
        name=name,
        size=size,
        image=image_of(driver),
        ex_userdata=SCRIPT,
        ex_clienttoken=name,
        ex_metadata={"spinal": name},
    )


def _openstack(driver: Any, name: str, size: Any, region: str) -> Any:
    return driver.create_node(
        name=name,
        size=size,
        image=image_of(driver),
        ex_userdata=SCRIPT,
        ex_config_drive=True,
        ex_metadata={"spinal": name},
    )


def _digitalocean(driver: Any, name: str, size: Any, region: str) -> Any:
    return driver.create_node(
        name,
        size,
        image_of(driver),
        _location(driver, region),
        ex_user_data=SCRIPT,
        ex_create_attr={"tags": [name]},
    )


def _linode(driver: Any, name: str, size: Any, region: str) -> Any:
    return driver.create_node(
        location=_location(driver, region),
        size=size,
        image=image_of(driver),
        name=name,
        root_pass="correct horse battery",
        ex_userdata=SCRIPT,
        ex_tags=[name],
    )


def _vultr(driver: Any, name: str, size: Any, region: str) -> Any:
    return driver.create_node(
        name,
        size,
        _location(driver, region),
        image=image_of(driver),
        ex_userdata=SCRIPT,
        ex_tag=name,
    )


_CREATE: Final[Mapping[str, Callable[[Any, str, Any, str], Any]]] = {
    "ec2": _ec2,
    "openstack": _openstack,
    "digitalocean": _digitalocean,
    "linode": _linode,
    "vultr": _vultr,
}
