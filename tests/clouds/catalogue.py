"""Regions and sizes of the three vendors that are simulated here: few, with true shapes and prices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Region:
    """One place of a vendor."""

    id: str
    city: str
    country: str
    continent: str


@dataclass(frozen=True, slots=True)
class Size:
    """One size: memory in MiB, disk in GiB, transfer in GiB a month, USD a month."""

    id: str
    label: str
    kind: str
    cpu: int
    ram: int
    disk: int
    transfer: int
    monthly: float
    regions: tuple[str, ...]


DO_REGIONS: Final = (
    Region("ams3", "Amsterdam 3", "NL", "Europe"),
    Region("fra1", "Frankfurt 1", "DE", "Europe"),
    Region("nyc3", "New York 3", "US", "North America"),
    Region("sfo3", "San Francisco 3", "US", "North America"),
    Region("sgp1", "Singapore 1", "SG", "Asia"),
)
LINODE_REGIONS: Final = (
    Region("eu-central", "Frankfurt, DE", "de", "Europe"),
    Region("eu-west", "London, UK", "gb", "Europe"),
    Region("us-east", "Newark, NJ", "us", "North America"),
    Region("us-west", "Fremont, CA", "us", "North America"),
    Region("ap-south", "Singapore, SG", "sg", "Asia"),
)
VULTR_REGIONS: Final = (
    Region("ams", "Amsterdam", "NL", "Europe"),
    Region("fra", "Frankfurt", "DE", "Europe"),
    Region("ewr", "New Jersey", "US", "North America"),
    Region("lax", "Los Angeles", "US", "North America"),
    Region("sgp", "Singapore", "SG", "Asia"),
)


def _sizes(
    regions: tuple[Region, ...], rows: tuple[tuple[str, str, str, int, int, int, int, float], ...]
) -> tuple[Size, ...]:
    everywhere = tuple(region.id for region in regions)
    return tuple(Size(*row, everywhere) for row in rows)


DO_SIZES: Final = _sizes(
    DO_REGIONS,
    (
        ("s-1vcpu-512mb-10gb", "Basic", "basic", 1, 512, 10, 500, 4),
        ("s-1vcpu-1gb", "Basic", "basic", 1, 1024, 25, 1000, 6),
        ("s-1vcpu-2gb", "Basic", "basic", 1, 2048, 50, 2000, 12),
        ("s-2vcpu-2gb", "Basic", "basic", 2, 2048, 60, 3000, 18),
        ("s-2vcpu-4gb", "Basic", "basic", 2, 4096, 80, 4000, 24),
        ("s-4vcpu-8gb", "Basic", "basic", 4, 8192, 160, 5000, 48),
        ("s-8vcpu-16gb", "Basic", "basic", 8, 16384, 320, 6000, 96),
        ("c-2", "CPU-Optimized", "dedicated", 2, 4096, 25, 4000, 42),
        ("c-4", "CPU-Optimized", "dedicated", 4, 8192, 50, 5000, 84),
        ("g-2vcpu-8gb", "General Purpose", "dedicated", 2, 8192, 25, 4000, 63),
        ("m-2vcpu-16gb", "Memory-Optimized", "dedicated", 2, 16384, 50, 4000, 84),
    ),
)
LINODE_SIZES: Final = _sizes(
    LINODE_REGIONS,
    (
        ("g6-nanode-1", "Nanode 1GB", "nanode", 1, 1024, 25, 1000, 5),
        ("g6-standard-1", "Linode 2GB", "standard", 1, 2048, 50, 2000, 12),
        ("g6-standard-2", "Linode 4GB", "standard", 2, 4096, 80, 4000, 24),
        ("g6-standard-4", "Linode 8GB", "standard", 4, 8192, 160, 5000, 48),
        ("g6-standard-6", "Linode 16GB", "standard", 6, 16384, 320, 8000, 96),
        ("g6-standard-8", "Linode 32GB", "standard", 8, 32768, 640, 16000, 192),
        ("g6-dedicated-2", "Dedicated 4GB", "dedicated", 2, 4096, 80, 4000, 36),
        ("g6-dedicated-4", "Dedicated 8GB", "dedicated", 4, 8192, 160, 5000, 72),
        ("g7-highmem-1", "Linode 24GB", "highmem", 2, 24576, 20, 5000, 60),
    ),
)
VULTR_SIZES: Final = _sizes(
    VULTR_REGIONS,
    (
        ("vc2-1c-1gb", "Cloud Compute", "vc2", 1, 1024, 25, 1024, 5),
        ("vc2-1c-2gb", "Cloud Compute", "vc2", 1, 2048, 55, 2048, 10),
        ("vc2-2c-2gb", "Cloud Compute", "vc2", 2, 2048, 65, 3072, 15),
        ("vc2-2c-4gb", "Cloud Compute", "vc2", 2, 4096, 80, 3072, 20),
        ("vc2-4c-8gb", "Cloud Compute", "vc2", 4, 8192, 160, 4096, 40),
        ("vc2-6c-16gb", "Cloud Compute", "vc2", 6, 16384, 320, 5120, 80),
        ("vhf-2c-4gb", "High Frequency", "vhf", 2, 4096, 128, 3072, 24),
        ("voc-c-2c-4gb-75s-amd", "Optimized", "voc", 2, 4096, 75, 5120, 60),
    ),
)
