"""The drivers of libcloud, as they are, against each of the five clouds."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen

import pytest
from libcloud.common.exceptions import BaseHTTPError
from libcloud.common.types import InvalidCredsError, LibcloudError
from libcloud.common.vultr import VultrException
from libcloud.compute.providers import get_driver
from libcloud.compute.types import NodeState

from .cloud import Cloud, Clouds
from .fixtures import needs_clouds
from .renting import SCRIPT, TYPES, connect, image_of, region_of, rent
from .vendor import TOKEN
from .vendors import VENDORS

pytestmark = needs_clouds

ALL = pytest.mark.parametrize("vendor", VENDORS)


def _node(driver: Any, name: str) -> Any:
    return next((n for n in driver.list_nodes() if n.name == name), None)


@ALL
def test_a_machine_is_rented_listed_and_given_back(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    made = rent(cloud, "web-1")
    driver = connect(cloud)
    assert made.name == "web-1"
    node = _node(driver, "web-1")
    assert node.id == made.id and node.state == NodeState.RUNNING
    assert node.public_ips
    [machine] = cloud.living("web-1")
    assert machine["user_data"].rstrip("\n") == SCRIPT.rstrip("\n")
    assert machine["type"] == TYPES[vendor][0]
    assert machine["region"] == region_of(cloud)
    assert "web-1" in (
        list(machine["tags"].values()) if vendor in ("ec2", "openstack") else machine["tags"]
    )
    assert driver.destroy_node(node)
    left = _node(driver, "web-1")
    assert left is None or left.state == NodeState.TERMINATED
    assert cloud.living() == []
    assert cloud.state()["creates"] == {"web-1": 1}
    assert cloud.twice() == []


@ALL
def test_a_machine_starts_for_a_while(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    cloud.settings(boot=1000)
    rent(cloud, "web-1")
    driver = connect(cloud)
    assert _node(driver, "web-1").state in (NodeState.PENDING, NodeState.STARTING)
    cloud.settings(boot=0)
    assert _node(driver, "web-1").state == NodeState.RUNNING


@ALL
def test_a_wrong_credential_is_refused(clouds: Clouds, vendor: str) -> None:
    wanted = clouds[vendor].driver()
    args = tuple("wrong" if arg == TOKEN else arg for arg in wanted.args)
    made: Any = get_driver(wanted.name)
    driver = made(*args, **wanted.kwargs)
    if vendor == "digitalocean":
        connection = driver.connection
        connection.host, connection.port, connection.secure = "127.0.0.1", clouds[vendor].port, 0
        connection.connect()
    with pytest.raises((InvalidCredsError, VultrException)):
        driver.list_nodes()


@ALL
def test_regions_have_machines_of_their_own(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    rent(cloud, "web-1", region=0)
    rent(cloud, "web-2", region=1)
    regions = {machine["name"]: machine["region"] for machine in cloud.living()}
    assert regions == {"web-1": region_of(cloud, 0), "web-2": region_of(cloud, 1)}


@pytest.mark.parametrize("vendor", ["digitalocean", "linode", "vultr"])
def test_there_are_regions_on_three_continents(clouds: Clouds, vendor: str) -> None:
    countries = {place.country for place in connect(clouds[vendor]).list_locations()}
    # DigitalOcean's driver does not tell the country.
    assert countries == {None} or {"US", "SG", "DE"} <= countries
    assert len(connect(clouds[vendor]).list_locations()) >= 4


@ALL
def test_there_are_images_of_today(clouds: Clouds, vendor: str) -> None:
    names = " ".join(image.name for image in connect(clouds[vendor]).list_images())
    words = {"digitalocean": ("12 x64", "24.04")}.get(vendor, ("12", "24.04"))
    assert all(word in names for word in words)


def test_prices_have_the_units_of_the_vendors(clouds: Clouds) -> None:
    def price(driver: Any, type: str) -> float:
        return float(next(s.price for s in driver.list_sizes() if s.id == type))

    assert price(connect(clouds["digitalocean"]), "s-2vcpu-4gb") == 0.03571
    assert price(connect(clouds["linode"]), "g6-standard-2") == 0.036
    assert price(connect(clouds["vultr"]), "vc2-2c-4gb") == 20  # a month
    assert price(clouds["openstack"].connect("ORD", "rackspace"), "2") > 0
    assert {s.price for s in connect(clouds["openstack"]).list_sizes()} == {0.0}
    assert price(connect(clouds["ec2"]), "t4g.medium") == pytest.approx(0.0368, rel=0.1)


@pytest.mark.parametrize("vendor", ["digitalocean", "linode"])
def test_a_list_of_several_pages_is_whole(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    cloud.settings(limit=100)
    driver = connect(cloud)
    if vendor == "digitalocean":
        driver.ex_per_page = 10
    names = [f"web-{number}" for number in range(27)]
    for name in names:
        rent(cloud, name)
    before = cloud.state()["requests"].get("list", 0)
    assert [node.name for node in driver.list_nodes()] == names
    assert cloud.state()["requests"]["list"] - before == (3 if vendor == "digitalocean" else 2)


def test_pages_of_vultr_are_found_by_cursor(clouds: Clouds) -> None:
    # Its driver asks for 500 a page, so this asks without it.
    cloud = clouds["vultr"]
    for number in range(3):
        rent(cloud, f"web-{number}")
    names, cursor = list[str](), ""
    while True:
        request = Request(f"{cloud.url}/v2/instances?per_page=1&cursor={cursor}")
        request.add_header("Authorization", f"Bearer {TOKEN}")
        with urlopen(request, timeout=10) as answer:
            page = json.load(answer)
        names += [instance["label"] for instance in page["instances"]]
        cursor = page["meta"]["links"]["next"]
        if not cursor:
            break
    assert names == ["web-0", "web-1", "web-2"]


def _freeze(cloud: Cloud, driver: Any, node: Any) -> Any:
    if cloud.name == "linode":
        disk = next(d for d in driver.ex_list_disks(node) if d.filesystem == "ext4")
        return driver.create_image(disk, "frozen")
    if cloud.name == "vultr":
        return driver.ex_create_snapshot(node, "frozen")
    return driver.create_image(node, "frozen")


@ALL
def test_an_image_is_made_of_a_machine(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    rent(cloud, "web-1")
    driver = connect(cloud)
    assert _freeze(cloud, driver, _node(driver, "web-1"))
    if vendor == "vultr":
        assert [s.extra["description"] for s in driver.ex_list_snapshots()] == ["frozen"]
    elif vendor == "ec2":
        assert [i.name for i in driver.list_images(ex_owner="self")] == ["frozen"]
    else:
        assert "frozen" in [image.name for image in driver.list_images()]
    # The machine stays.
    assert [machine["name"] for machine in cloud.living()] == ["web-1"]


def test_a_machine_is_made_of_an_image(clouds: Clouds) -> None:
    cloud = clouds["digitalocean"]
    node = rent(cloud, "web-1")
    driver = connect(cloud)
    driver.create_image(node, "frozen")
    image = next(image for image in driver.list_images() if image.name == "frozen")
    size = driver.list_sizes()[4]
    place = next(place for place in driver.list_locations() if place.id == "fra1")
    driver.create_node("web-2", size, image, place)
    assert cloud.living("web-2")[0]["image"] == str(image.id)
    assert driver.delete_image(image)
    with pytest.raises(BaseHTTPError, match="invalid image"):
        driver.create_node("web-3", size, image, place)


def test_the_limit_of_an_account_can_be_asked(clouds: Clouds) -> None:
    # Linode and Vultr do not tell.
    for vendor in ("ec2", "openstack", "digitalocean"):
        clouds[vendor].settings(limit=7)
    assert connect(clouds["ec2"]).ex_get_limits()["resource"]["max-instances"] == 7
    assert connect(clouds["digitalocean"]).ex_account_info()["droplet_limit"] == 7
    rent(clouds["openstack"], "web-1")
    answer = connect(clouds["openstack"]).connection.request("/limits").object
    limits = answer["limits"]["absolute"]
    assert (limits["maxTotalInstances"], limits["totalInstancesUsed"]) == (7, 1)


@ALL
def test_an_account_that_is_full_refuses(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    cloud.settings(limit=1)
    node = rent(cloud, "web-1")
    with pytest.raises((BaseHTTPError, LibcloudError, VultrException)):
        rent(cloud, "web-2")
    assert [machine["name"] for machine in cloud.living()] == ["web-1"]
    connect(cloud).destroy_node(node)
    assert rent(cloud, "web-3").name == "web-3"


@pytest.mark.parametrize("vendor", ["ec2", "digitalocean"])
def test_a_limit_holds_against_many_at_once(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    cloud.settings(limit=3)
    rent(cloud, "web-0")  # What is slow the first time is done.

    def one(number: int) -> str:
        try:
            return str(rent(cloud, f"web-{number}").name)
        except BaseHTTPError:
            return ""

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(one, range(1, 9)))
    assert len(list(filter(None, made))) == 2
    assert len(cloud.living()) == 3


@ALL
def test_room_is_for_so_many_machines_of_a_type(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    room = {"region": region_of(cloud), "type": TYPES[vendor][0], "most": 1}
    cloud.settings(room=[room])
    rent(cloud, "web-1")
    rent(cloud, "web-2", type=1)
    if vendor == "openstack":
        # It accepts, and finds no host.
        rent(cloud, "web-3")
        assert _node(connect(cloud), "web-3").state == NodeState.ERROR
    else:
        with pytest.raises((BaseHTTPError, LibcloudError, VultrException)):
            rent(cloud, "web-3")
    rent(cloud, "web-4", region=1)


@ALL
def test_a_machine_that_is_gone_cannot_be_deleted(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    node = rent(cloud, "web-1")
    driver = connect(cloud)
    driver.destroy_node(node)
    if vendor == "ec2":
        # EC2 still knows it for an hour, and says that it is terminated.
        assert driver.destroy_node(node)
    else:
        with pytest.raises((BaseHTTPError, LibcloudError, VultrException)):
            driver.destroy_node(node)


def test_a_label_of_linode_is_unique(clouds: Clouds) -> None:
    rent(clouds["linode"], "web-1")
    with pytest.raises(LibcloudError, match="must be unique"):
        rent(clouds["linode"], "web-1")
    assert clouds["linode"].twice() == []


def test_a_client_token_of_ec2_buys_once(clouds: Clouds) -> None:
    cloud = clouds["ec2"]
    assert rent(cloud, "web-1").id == rent(cloud, "web-1").id
    assert cloud.twice() == []
    connect(cloud).destroy_node(_node(connect(cloud), "web-1"))
    with pytest.raises(BaseHTTPError, match="IdempotentInstanceTerminated"):
        rent(cloud, "web-1")


def test_ec2_takes_user_data_of_16_kilobytes(clouds: Clouds) -> None:
    cloud = clouds["ec2"]
    driver = connect(cloud)
    size = next(size for size in driver.list_sizes() if size.id == "t4g.medium")
    script = "#!/bin/sh\n" + "# ä\n" * 3000
    driver.create_node(name="web-1", size=size, image=image_of(driver), ex_userdata=script)
    assert cloud.living("web-1")[0]["user_data"] == script


@ALL
def test_a_reset_forgets_everything(clouds: Clouds, vendor: str) -> None:
    cloud = clouds[vendor]
    rent(cloud, "web-1")
    cloud.fault("server", count=None, on="any")
    cloud.settings(boot=1000, limit=1)
    cloud.reset()
    assert cloud.state()["machines"] == []
    assert connect(cloud).list_nodes() == []
    rent(cloud, "web-2")
    rent(cloud, "web-3")
    assert _node(connect(cloud), "web-3").state == NodeState.RUNNING
