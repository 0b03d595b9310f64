"""The vendors, one module each; none is imported, and libcloud with it, before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..settings import Account
    from .vendor import Vendor


@dataclass(frozen=True, slots=True)
class Form:
    """What a driver's account has in ``providers.yaml``, and where its adapter is."""

    #: Module here and class in it.
    adapter: str
    #: Of its prices.
    currency: str = "USD"
    #: Keys that must be there, and those that may.
    needs: tuple[str, ...] = ()
    may: tuple[str, ...] = ()

    def make(self, account: Account) -> Vendor:
        """Make the adapter of an account; it opens no connection yet."""
        module, _, name = self.adapter.partition(":")
        found: type[Vendor] = getattr(import_module(f".{module}", __package__), name)
        return found(account)


#: What every account with an API may have.
_COMMON: Final = ("endpoint", "timeout", "images", "prices")

#: Driver -> its form.  Any other driver of libcloud has :data:`OTHER`.
FORMS: Final[Mapping[str, Form]] = {
    "local": Form(
        "local:Local", "EUR", may=("sizes", "capacity", "isolation", "root", "folder", "boot")
    ),
    "ec2": Form(
        "ec2:EC2",
        needs=("key", "secret", "regions"),
        may=(*_COMMON, "networks", "security_groups", "session"),
    ),
    "openstack": Form(
        "openstack:OpenStack",
        needs=("user", "password", "endpoint", "regions"),
        may=("tenant", "timeout", "images", "prices", "networks", "domain", "identity", "service"),
    ),
    "rackspace": Form(
        "openstack:Rackspace",
        needs=("user", "password", "regions"),
        may=_COMMON,
    ),
    "digitalocean": Form("digitalocean:DigitalOcean", needs=("token",), may=_COMMON),
    "linode": Form("linode:Linode", needs=("token",), may=_COMMON),
    "vultr": Form("vultr:Vultr", needs=("token",), may=_COMMON),
}

OTHER: Final = Form(
    "generic:Generic",
    needs=("arguments",),
    may=("timeout", "images", "prices", "create", "price_per"),
)

#: Drivers that are in libcloud and not fit to rent machines with.
UNFIT: Final = frozenset({"dummy", "libvirt"})
