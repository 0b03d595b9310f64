"""Each fault at each vendor: what libcloud makes of it, and what became of the machine."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

import pytest
from libcloud.common.exceptions import BaseHTTPError, RateLimitReachedError
from libcloud.common.types import InvalidCredsError, LibcloudError
from libcloud.common.vultr import VultrException
from libcloud.compute.types import NodeState

from spinal.testing import eventually

from .cloud import Clouds
from .faults import KINDS, Fault, Faults
from .fixtures import needs_clouds
from .renting import REGIONAL, TYPES, connect, region_of, rent
from .vendors import VENDORS
from .wire import Ask

pytestmark = needs_clouds

ALL = pytest.mark.parametrize("vendor", VENDORS)

#: Vendor and kind -> exception of libcloud, and what its text matches.
REFUSED: Final[Mapping[tuple[str, str], tuple[type[Exception], str]]] = {
    ("ec2", "capacity"): (BaseHTTPError, "^InsufficientInstanceCapacity"),
    ("ec2", "quota"): (BaseHTTPError, "VcpuLimitExceeded"),
    ("ec2", "auth"): (InvalidCredsError, ""),
    ("ec2", "rate"): (BaseHTTPError, "RequestLimitExceeded"),
    ("ec2", "server"): (BaseHTTPError, "InternalError"),
    ("openstack", "quota"): (BaseHTTPError, "403 Forbidden Quota exceeded"),
    ("openstack", "auth"): (BaseHTTPError, "401"),
    ("openstack", "rate"): (RateLimitReachedError, ""),
    ("openstack", "server"): (BaseHTTPError, "500 .*Unexpected API Error"),
    ("digitalocean", "capacity"): (BaseHTTPError, "not available in this region.*422"),
    ("digitalocean", "quota"): (BaseHTTPError, "exceed your droplet limit.*422"),
    ("digitalocean", "auth"): (InvalidCredsError, "Unable to authenticate"),
    ("digitalocean", "rate"): (RateLimitReachedError, ""),
    ("digitalocean", "server"): (BaseHTTPError, "Unexpected server-side error"),
    ("linode", "capacity"): (LibcloudError, "not available in the selected.*Status code: 400"),
    ("linode", "quota"): (LibcloudError, "Limit reached.*Status code: 400"),
    ("linode", "auth"): (InvalidCredsError, "Invalid Token"),
    ("linode", "rate"): (LibcloudError, "Too many requests Status code: 429"),
    ("linode", "server"): (LibcloudError, "Status code: 500"),
    ("vultr", "capacity"): (VultrException, r"\(400\) Plan is not available in the selected"),
    ("vultr", "quota"): (VultrException, r"\(400\) .*limit"),
    ("vultr", "auth"): (VultrException, r"\(401\) Invalid API token"),
    ("vultr", "rate"): (VultrException, r"\(429\)"),
    ("vultr", "server"): (VultrException, r"\(500\)"),
}

#: What any driver of libcloud raises for an answer that is an error.
ANY: Final = (BaseHTTPError, LibcloudError, VultrException)


def _node(driver: Any, name: str) -> Any:
    return next((node for node in driver.list_nodes() if node.name == name), None)


def _living_nodes(driver: Any) -> list[str]:
    """Name what libcloud lists and is not over."""
    return [n.name for n in driver.list_nodes() if n.state != NodeState.TERMINATED]


@pytest.mark.parametrize(("vendor", "kind"), REFUSED, ids=str)
def test_a_refusal_is_in_the_vendors_words(clouds: Clouds, vendor: str, kind: str) -> None:
    cloud = clouds[vendor]
    cloud.fault(kind)
    wanted, words = REFUSED[vendor, kind]
    with pytest.raises(wanted, match=f"(?s){words}") as caught:
        rent(cloud, "web-1")
    # Not one that only has the same ancestor: the agent tells them apart by their types.
    assert type(caught.value) is wanted
    assert cloud.state()["machines"] == []
    assert cloud.state()["creates"] == {"web-1": 1}
    # It was for one request.
    assert rent(cloud, "web-1").name == "web-1"


def test_every_vendor_has_every_refusal() -> None:
    kinds = {"capacity", "quota", "auth", "rate", "server"}
    pairs = {(vendor, kind) for vendor in VENDORS for kind in kinds}
    # Nova accepts where there is no room; see below.
    assert pairs - set(REFUSED) == {("openstack", "capacity")}


@pytest.mark.parametrize("kind", ["capacity", "error_state"])
@ALL
def test_a_machine_may_never_run(clouds: Clouds, vendor: str, kind: str) -> None:
    if kind == "capacity" and vendor != "openstack":
        kind = "error_state"
    cloud = clouds[vendor]
    cloud.fault(kind)
    rent(cloud, "web-1")
    node = _node(connect(cloud), "web-1")
    shown = {
        "openstack": NodeState.ERROR,
        "ec2": NodeState.TERMINATED,
        "linode": NodeState.STARTING,
    }
    assert node.state == shown.get(vendor, NodeState.PENDING)
    if vendor == "openstack":
        words = "No valid host" if kind == "capacity" else "aborted"
        assert words in node.extra["fault"]["message"]
    [machine] = cloud.state()["machines"]
    assert machine["broken"] == kind
    # EC2 ends it by itself; the others go on asking money for it.
    assert bool(cloud.living("web-1")) == (vendor != "ec2")
    connect(cloud).destroy_node(node)
    assert cloud.living() == []


@ALL
def test_a_rate_may_say_when_to_come_again(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    cloud.fault("rate", status=429, after=7)
    with pytest.raises((RateLimitReachedError, LibcloudError, VultrException)) as caught:
        rent(cloud, "web-1")
    if isinstance(caught.value, RateLimitReachedError):
        assert caught.value.retry_after == 7
    cloud.fault("rate", status=429)
    with pytest.raises((RateLimitReachedError, LibcloudError, VultrException)) as caught:
        rent(cloud, "web-1")
    if isinstance(caught.value, RateLimitReachedError):
        assert caught.value.retry_after == 0


@ALL
def test_a_request_may_never_be_answered(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    cloud.fault("timeout", seconds=0.2)
    with pytest.raises(Exception, match=r"(?i)connection|aborted|disconnected"):
        rent(cloud, "web-1")
    assert cloud.state()["machines"] == []


@ALL
def test_an_error_may_come_though_the_machine_is_made(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    cloud.fault("created_error")
    with pytest.raises(ANY):
        rent(cloud, "web-1")
    assert [machine["name"] for machine in cloud.living()] == ["web-1"]
    # It is found by its name, as an agent has to.
    assert _node(connect(cloud), "web-1") is not None


@ALL
async def test_an_answer_may_come_late_though_the_machine_is_made(
    clouds: Clouds, vendor: str
) -> None:
    cloud = clouds[vendor]
    cloud.fault("created_slow", seconds=1)
    got: list[Any] = []
    renting = threading.Thread(target=lambda: got.append(rent(cloud, "web-1")))
    renting.start()
    await eventually(lambda: cloud.living("web-1"))
    assert got == []
    renting.join(timeout=20)
    assert [node.name for node in got] == ["web-1"]


@ALL
def test_a_delete_may_fail(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    node = rent(cloud, "web-1")
    driver = connect(cloud)
    cloud.fault("delete_fails")
    with pytest.raises(ANY):
        driver.destroy_node(node)
    assert _living_nodes(driver) == ["web-1"]
    assert driver.destroy_node(node)
    assert cloud.living() == []


@ALL
def test_a_list_may_not_show_a_new_machine_yet(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    rent(cloud, "web-1")
    rent(cloud, "web-2")
    driver = connect(cloud)
    cloud.fault("stale", changes=1)
    assert _living_nodes(driver) == ["web-1"]
    assert _living_nodes(driver) == ["web-1", "web-2"]
    cloud.fault("stale", seconds=3600)
    assert _living_nodes(driver) == []


@ALL
def test_a_list_may_still_show_a_machine_that_is_gone(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    node = rent(cloud, "web-1")
    driver = connect(cloud)
    driver.destroy_node(node)
    cloud.fault("stale", changes=1)
    assert _living_nodes(driver) == ["web-1"]
    assert _living_nodes(driver) == []


@ALL
def test_prices_may_vanish(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    driver: Any = cloud.connect("ORD", "rackspace") if vendor == "openstack" else connect(cloud)

    def priced() -> dict[str, bool]:
        return {str(size.id): bool(size.price) for size in driver.list_sizes()}

    one, other = TYPES[vendor]
    assert priced()[one] and priced()[other]
    with cloud.without_prices(one):
        assert not priced()[one] and priced()[other]
    with cloud.without_prices():
        assert not any(priced().values())
    assert priced()[one] and priced()[other]


@ALL
def test_a_fault_is_for_a_region_or_a_type(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    cloud.fault("server", count=None, region=region_of(cloud, 0))
    with pytest.raises(ANY):
        rent(cloud, "web-1")
    rent(cloud, "web-2", region=1)
    cloud.mend()
    cloud.fault("server", count=None, type=TYPES[vendor][0])
    with pytest.raises(ANY):
        rent(cloud, "web-3")
    rent(cloud, "web-4", type=1)
    cloud.mend()
    rent(cloud, "web-5")
    assert [machine["name"] for machine in cloud.living()] == ["web-2", "web-4", "web-5"]


@ALL
def test_a_fault_can_be_for_any_request(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    driver = connect(cloud)
    fault = cloud.fault("server", count=None, on="any")
    with pytest.raises(ANY):
        driver.list_nodes()
    cloud.mend(fault)
    assert driver.list_nodes() == []
    if vendor in REGIONAL:
        cloud.fault("rate", on="list", region=region_of(cloud, 1))
        assert driver.list_nodes() == []
        with pytest.raises(ANY):
            connect(cloud, 1).list_nodes()


def test_a_fault_counts_its_hits(clouds: Clouds) -> None:
    cloud = clouds["vultr"]
    cloud.fault("capacity", count=2)
    for _ in range(2):
        with pytest.raises(VultrException):
            rent(cloud, "web-1")
    rent(cloud, "web-1")
    [fault] = cloud.state()["faults"]
    assert (fault["hits"], fault["count"]) == (2, 0)
    assert cloud.state()["creates"] == {"web-1": 3}


@pytest.mark.parametrize(
    "how",
    [
        {"kind": "meteor"},
        {"kind": "server", "on": "lunch"},
        {"kind": "server", "colour": 1},
        {"kind": "server", "count": "3"},
    ],
)
def test_a_fault_that_is_none_is_told(clouds: Clouds, how: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"meteor|lunch|colour|numbers"):
        clouds["vultr"].fault(**how)


@pytest.mark.parametrize("vendor", ["ec2", "openstack"])
def test_a_vendor_without_prices_cannot_lose_them(clouds: Clouds, vendor: str) -> None:
    with pytest.raises(ValueError, match="lists no prices"):
        clouds[vendor].fault("no_price")


def test_chance_is_the_same_for_the_same_seed() -> None:
    def drawn(seed: int) -> list[bool]:
        faults = Faults()
        faults.add(Fault("server", count=None, probability=0.5, seed=seed))
        return [faults.take(Ask("create")) is not None for _ in range(200)]

    assert drawn(7) == drawn(7) != drawn(8)
    assert 70 < sum(drawn(7)) < 130


def test_every_kind_has_an_operation() -> None:
    assert {Fault(kind).on for kind in KINDS} == {"create", "delete", "list", "sizes"}
