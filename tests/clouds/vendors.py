"""The five vendors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .digitalocean import DigitalOcean
from .ec2 import Ec2
from .linode import Linode
from .openstack import OpenStack
from .vendor import Vendor
from .vultr import Vultr

VENDORS: Final[Mapping[str, type[Vendor]]] = {
    vendor.name: vendor for vendor in (Ec2, OpenStack, DigitalOcean, Linode, Vultr)
}
