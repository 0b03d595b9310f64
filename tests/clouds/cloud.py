"""The simulated clouds as a test sees them: processes of their own, and drivers of libcloud."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Final, Self
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from libcloud.compute.base import NodeDriver
from libcloud.compute.providers import get_driver
from libcloud.pricing import (
    get_pricing,  # pyright: ignore[reportUnknownVariableType] - of a dictionary
    set_pricing,  # pyright: ignore[reportUnknownVariableType] - of a dictionary
)

from .upstream import ROOT
from .vendor import TOKEN
from .vendors import VENDORS

#: Seconds that all of them may take to start, and one answer of the control API.
READY: Final = 90
ANSWER: Final = 30


@dataclass(frozen=True, slots=True)
class Driver:
    """How libcloud is told to use a vendor at a port: name, and what its constructor takes."""

    name: str
    args: tuple[str, ...]
    kwargs: Mapping[str, Any]


def _ec2(port: int, region: str) -> Driver:
    at = {"host": "127.0.0.1", "port": port, "secure": False}
    return Driver(
        "ec2", (TOKEN, "secret"), {**at, "region": region or "eu-west-1", "signature_version": "4"}
    )


def _openstack(port: int, region: str) -> Driver:
    return Driver(
        "openstack",
        ("spinal", TOKEN),
        {
            "ex_force_auth_url": f"http://127.0.0.1:{port}/identity",
            "ex_force_auth_version": "2.0_password",
            "ex_force_service_type": "compute",
            "ex_force_service_name": "cloudServersOpenStack",
            "ex_force_service_region": region or "ORD",
            "secure": False,
        },
    )


def _rackspace(port: int, region: str) -> Driver:
    return Driver(
        "rackspace",
        ("spinal", TOKEN),
        {
            "region": (region or "ORD").lower(),
            "ex_force_auth_url": f"http://127.0.0.1:{port}/identity",
            "ex_force_auth_version": "2.0_password",
            "ex_force_service_name": "cloudServersOpenStack",
            "ex_force_service_region": (region or "ORD").upper(),
            "secure": False,
        },
    )


def _digitalocean(port: int, region: str) -> Driver:
    # Its constructor takes no host: see Cloud.connect.
    return Driver("digitalocean", (TOKEN,), {})


def _linode(port: int, region: str) -> Driver:
    at = {"host": "127.0.0.1", "port": port, "secure": False}
    return Driver("linode", (TOKEN,), {"api_version": "4.0", **at})


def _vultr(port: int, region: str) -> Driver:
    at = {"host": "127.0.0.1", "port": port, "secure": False}
    return Driver("vultr", (TOKEN,), {"api_version": "2", **at})


#: By the names of libcloud's drivers; rackspace is the vendor "openstack" with prices.
DRIVERS: Final[Mapping[str, Callable[[int, str], Driver]]] = {
    "ec2": _ec2,
    "openstack": _openstack,
    "rackspace": _rackspace,
    "digitalocean": _digitalocean,
    "linode": _linode,
    "vultr": _vultr,
}


#: Where libcloud has the prices of vendors that list none.
TABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "ec2": ("ec2_linux",),
    "openstack": ("rackspacenovaus", "rackspacenovalon", "rackspacenovasyd"),
}


class Cloud:
    """One vendor that runs."""

    def __init__(self, name: str, port: int) -> None:
        self.name, self.port = name, port

    @property
    def url(self) -> str:
        """Give the address of it."""
        return f"http://127.0.0.1:{self.port}"

    def driver(self, region: str = "", name: str = "") -> Driver:
        """Say what libcloud's constructor is to be given; ``name`` may be "rackspace"."""
        return DRIVERS[name or self.name](self.port, region)

    def connect(self, region: str = "", name: str = "") -> NodeDriver:
        """Make a driver of libcloud; one for each thread."""
        wanted = self.driver(region, name)
        if wanted.name == "openstack":
            # Else libcloud reads its table of prices once per flavour: 2 seconds for a list.
            set_pricing("compute", "openstack", defaultdict(float))
        driver: Any = get_driver(wanted.name)
        made: NodeDriver = driver(*wanted.args, **wanted.kwargs)
        if wanted.name == "digitalocean":
            connection: Any = made.connection
            connection.host, connection.port, connection.secure = "127.0.0.1", self.port, False
            connection.connect()
        return made

    def fault(self, kind: str, **how: Any) -> int:
        """Let something go wrong; gives its id.

        ``how`` are the fields of :class:`tests.clouds.faults.Fault`; ValueError for what is none.
        """
        return int(self._control("POST", "fault", {"kind": kind, **how})["id"])

    def mend(self, id: int | None = None) -> None:
        """Let this fault be over, or all."""
        self._control("DELETE", "fault" if id is None else f"fault/{id}")

    @contextmanager
    def without_prices(self, type: str = "") -> Generator[None]:
        """Take the prices away for a while, of one type or of all.

        Where the vendor lists none, from the table that libcloud has in this process.
        """
        tables = TABLES.get(self.name, ())
        if not tables:
            id = self.fault("no_price", count=None, type=type)
            try:
                yield
            finally:
                self.mend(id)
            return
        before: dict[str, dict[str, Any]] = {t: get_pricing("compute", t) or {} for t in tables}
        for table, prices in before.items():
            left = {key: price for key, price in prices.items() if type not in ("", key)}
            set_pricing("compute", table, left)
        try:
            yield
        finally:
            for table, prices in before.items():
                set_pricing("compute", table, prices)

    def settings(self, **settings: Any) -> None:
        """Set ``boot`` (seconds), ``limit`` (machines) or ``room`` ([{region, type, most}])."""
        self._control("POST", "settings", settings)

    def reset(self) -> None:
        """Forget machines, faults and settings."""
        self._control("POST", "reset", {})

    def state(self) -> dict[str, Any]:
        """Give all machines that ever were, how often each name was asked for, and the faults."""
        return self._control("GET", "state")

    def living(self, name: str = "") -> list[dict[str, Any]]:
        """List the machines that cost money, of all names or of this one."""
        machines = self.state()["machines"]
        return [m for m in machines if m["deleted"] is None and name in ("", m["name"])]

    def twice(self) -> list[str]:
        """List the names that were bought more than once."""
        bought = Counter(machine["name"] for machine in self.state()["machines"])
        return sorted(name for name, count in bought.items() if count > 1)

    def _control(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.url}/__sim/{path}", data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urlopen(request, timeout=ANSWER) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except HTTPError as error:
            with error:
                raise ValueError(error.read().decode(errors="replace")) from None


class Clouds:
    """Vendors of a test, in a child process; a context manager, with ``async`` as well.

    ``vendors`` names those that are wanted, by default all five.
    A child ends with this process, however that ends.
    """

    def __init__(self, *vendors: str, boot: float = 0.0, limit: int = 25) -> None:
        self._vendors = vendors or tuple(VENDORS)
        self._options = ("--boot", str(boot), "--limit", str(limit), "--follow")
        self._process: subprocess.Popen[bytes] | None = None
        # A file, as nobody reads a pipe while they run.
        self._said: IO[bytes] | None = None
        self._clouds: dict[str, Cloud] = {}

    def start(self) -> None:
        """Start them; OSError with their words if they do not."""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed by _end
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.clouds.simulator", *self._vendors, *self._options],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OSError(f"the clouds did not start: {self._end()}")
        self._clouds = {name: Cloud(name, port) for name, port in json.loads(line).items()}

    def stop(self) -> None:
        """End them, and wait until they are gone; AssertionError if one of them broke."""
        if said := self._end():
            raise AssertionError(f"the clouds said: {said}")

    def _end(self) -> str:
        """End them; gives what they had to complain of."""
        process, said = self._process, self._said
        self._process = self._said = None
        if process is None or said is None:
            return ""
        # Its standard input ends: that ends it.
        process.communicate(timeout=READY)
        with said:
            said.seek(0)
            return said.read().decode(errors="replace").strip()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)

    def __getitem__(self, name: str) -> Cloud:
        return self._clouds[name]

    def __iter__(self) -> Iterator[Cloud]:
        return iter(self._clouds.values())
