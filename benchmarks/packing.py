"""Packing of mixed jobs onto rented machines: how near the least possible price, and how soon.

``PYTHONPATH=src python -m benchmarks.packing`` prints the table; ``--jobs 20 60`` only some of it.
Against it stands first-fit-decreasing: the largest job first, into the first machine that has room,
else onto the cheapest one that carries it.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spinal.agents.provider.offer import Offer
from spinal.dispatcher.pools.packing import Job, pack
from spinal.dispatcher.pools.packing.pack import first_fit_price

GIB = 1024**3

#: Jobs of each row.
SIZES = (20, 60, 200, 1000)

#: Most machines of one type at EC2.
CAP = 20

#: EC2 family -> kind of processor, GiB for each CPU, price of a CPU and hour, and the CPUs of its
#: types; list prices of Linux in us-east-1, July 2026, in USD.
FAMILIES = {
    "m6i": ("x86_64", 4, 0.048, (2, 4, 8, 16, 32, 48, 64)),
    "c6i": ("x86_64", 2, 0.0425, (2, 4, 8, 16, 32, 48, 64)),
    "r6i": ("x86_64", 8, 0.063, (2, 4, 8, 16, 32, 48)),
    "m5": ("x86_64", 4, 0.048, (2, 4, 8, 16, 32, 48, 64)),
    "c5": ("x86_64", 2, 0.0425, (2, 4, 8, 16, 36, 48, 72)),
    "r5": ("x86_64", 8, 0.063, (2, 4, 8, 16, 32, 48)),
    "m7g": ("arm64", 4, 0.0408, (1, 2, 4, 8, 16, 32, 48, 64)),
    "c7g": ("arm64", 2, 0.03625, (1, 2, 4, 8, 16, 32, 48, 64)),
    "r7g": ("arm64", 8, 0.05355, (1, 2, 4, 8, 16, 32, 48, 64)),
}

#: Vendor, type, CPUs, GiB, price of an hour in USD, most of them.
OTHERS = (
    ("ec2", "t3a.nano", 2, 0.5, 0.0047, CAP),
    ("ec2", "t3a.micro", 2, 1, 0.0094, CAP),
    ("ec2", "t3a.small", 2, 2, 0.0188, CAP),
    ("ec2", "t3a.medium", 2, 4, 0.0376, CAP),
    ("ec2", "t3a.large", 2, 8, 0.0752, CAP),
    ("ec2", "t3a.xlarge", 4, 16, 0.1504, CAP),
    ("ec2", "t3a.2xlarge", 8, 32, 0.3008, CAP),
    ("digitalocean", "s-2vcpu-4gb", 2, 4, 0.03571, 5),
    ("digitalocean", "s-4vcpu-8gb", 4, 8, 0.07143, 5),
    ("digitalocean", "g-2vcpu-8gb", 2, 8, 0.09375, 5),
    ("linode", "g6-standard-2", 2, 4, 0.036, 4),
    ("linode", "g6-standard-4", 4, 8, 0.072, 4),
    ("linode", "g6-standard-6", 8, 32, 0.288, 4),
    ("vultr", "vc2-4c-8gb", 4, 8, 40 / 730, 3),
    ("hetzner", "cx32", 4, 8, 6.8 * 1.08 / 730, 2),
    ("hetzner", "cx42", 8, 16, 16.4 * 1.08 / 730, 2),
)


@dataclass(frozen=True)
class Row:
    """What was found for one number of jobs; money is USD of an hour."""

    jobs: int
    first_fit: float
    ours: float
    bound: float
    gap: float
    seconds: float
    method: str

    def __str__(self) -> str:
        saving = 1 - self.ours / self.first_fit
        return (
            f"| {self.jobs:>5} | {self.first_fit:>8.4f} | {self.ours:>8.4f} | {self.bound:>8.4f} "
            f"| {self.gap:>6.2%} | {saving:>6.1%} | {self.seconds:>5.1f} | {self.method} |"
        )


HEAD = """\
|  jobs |      FFD |     ours |    bound |    gap | saving |     s | method |
| ----: | -------: | -------: | -------: | -----: | -----: | ----: | ------ |"""


def offers() -> list[Offer]:
    """Give 80 offers."""
    return list(_offers())


def _offers() -> Iterator[Offer]:
    for family, (arch, ram, price, sizes) in FAMILIES.items():
        for cpu in sizes:
            yield _offer("ec2", f"{family}-{cpu}", cpu, ram * cpu, price * cpu, CAP, arch)
    for vendor, type, cpu, gib, price, cap in OTHERS:
        yield _offer(vendor, type, cpu, gib, price, cap)


def _offer(
    vendor: str, type: str, cpu: float, gib: float, price: float, cap: int, arch: str = "x86_64"
) -> Offer:
    return Offer(
        vendor=vendor,
        region="one",
        type=type,
        arch=arch,
        cpu=cpu,
        ram=int(gib * GIB),
        price=price,
        currency="USD",
        source="seed",
        as_of=0,
        cap=cap,
    )


def jobs(count: int, seed: int = 7) -> list[Job]:
    """Give mixed jobs, the same ones for the same seed."""
    chance = random.Random(seed)
    return [
        Job(
            cpu=chance.choice((0.5, 1, 1, 2, 2, 4)),
            ram=chance.choice((1, 2, 4, 8, 8, 16)) * GIB,
        )
        for _ in range(count)
    ]


def measure(count: int, *, solve: bool | None = None, seconds: float = 10.0, seed: int = 7) -> Row:
    """Pack so many jobs both ways."""
    work, market = jobs(count, seed), offers()
    began = time.perf_counter()
    found = pack(work, market, solve=solve, seconds=seconds)
    took = time.perf_counter() - began
    first_fit = first_fit_price(work, market)
    assert first_fit is not None, "there are enough machines"
    return Row(count, first_fit, found.price, found.bound, found.gap, took, found.method)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="*", default=SIZES)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--greedy", action="store_true", help="as without HiGHS")
    told = parser.parse_args(argv)
    print(HEAD, flush=True)
    for count in told.jobs:
        solve = False if told.greedy else None
        print(measure(count, solve=solve, seconds=told.seconds, seed=told.seed), flush=True)


if __name__ == "__main__":
    main()
