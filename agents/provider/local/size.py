"""Sizes of local machines."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

GIB: Final = 1024**3

#: Names of processors as other vendors write them.
_ARCH: Final = {"amd64": "x86_64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSize:
    """What a machine of this size has, and what it costs.

    Raises:
        ValueError: something of it is not greater than 0.
    """

    #: Processors; for those who choose a size, as nothing keeps a machine from using more.
    cpu: float
    #: Bytes; one process cannot have more.
    ram: int
    #: Of an hour, in the driver's currency.
    price: float
    #: Bytes; for those who choose, as for processors.
    disk: int = 10 * GIB

    def __post_init__(self) -> None:
        for name in ("cpu", "ram", "price", "disk"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of a size must be greater than 0")


#: Those that there are if nobody says otherwise.
SIZES: Final[Mapping[str, LocalSize]] = MappingProxyType(
    {
        "small": LocalSize(cpu=1, ram=GIB, price=0.005),
        "medium": LocalSize(cpu=2, ram=4 * GIB, price=0.02),
        "large": LocalSize(cpu=4, ram=8 * GIB, price=0.04),
    }
)


def arch() -> str:
    """Give this machine's kind of processor: ``x86_64``, ``arm64``, or as its kernel says."""
    machine = platform.machine()
    return _ARCH.get(machine, machine)
