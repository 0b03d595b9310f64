"""An offer: what kind of machine a vendor rents somewhere, and for how much an hour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from spinal.protocols import Json

#: Hours in a month, where a vendor names the price of one.
MONTH: Final = 730.0

#: Where a price is from: the vendor's API; the account's settings; a table that came with Spinal or
#: libcloud, which may be out of date.
SOURCES: Final = ("api", "config", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """See the module.  What has no price is no offer: 0 means unknown, and never free."""

    #: Name of the account, which people call a vendor.
    vendor: str
    #: As the vendor writes them.
    region: str
    type: str
    #: What the region belongs to: ``eu``, ``us``, ``ap``, ``sa``, ``af``, ``me``, or empty.
    area: str = ""
    #: ``x86_64`` or ``arm64``.
    arch: str = "x86_64"
    cpu: float
    #: Bytes; of a disk that is rented by itself, 0.
    ram: int
    disk: int = 0
    #: Of an hour, greater than 0.
    price: float
    currency: str
    #: One of :data:`SOURCES`, and when the price was learned, in milliseconds since 1970 UTC.
    source: str
    as_of: int
    #: Most machines of it that can be had; none if the vendor says nothing.
    cap: int | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others: vendor, region and type."""
        return self.vendor, self.region, self.type

    def row(self) -> dict[str, Json]:
        """Give it as JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    @staticmethod
    def of(row: Mapping[str, Any]) -> Offer:
        """Read :meth:`row`.

        Raises:
            TypeError: something is missing, or too much.
        """
        return Offer(**row)


@dataclass(frozen=True, slots=True)
class Exchange:
    """Money in one currency.

    Args:
        currency: which.
        rates: what one of each other currency costs in it.
    """

    currency: str = "EUR"
    rates: Mapping[str, float] | None = None

    def rate(self, currency: str) -> float | None:
        """Give what one of a currency costs in ours; none if that is not known."""
        return 1.0 if currency == self.currency else (self.rates or {}).get(currency)

    def of(self, offer: Offer) -> Offer | None:
        """Give an offer in our currency; none without a rate."""
        rate = self.rate(offer.currency)
        if rate is None:
            return None
        return replace(offer, price=offer.price * rate, currency=self.currency)
