from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from libcloud.common.types import ProviderError
from libcloud.compute.base import NodeImage, NodeLocation, NodeSize
from libcloud.compute.providers import get_driver, set_driver
from tests.processes import gone

from spinal.agents.provider.local import LocalNodeDriver, LocalSize
from spinal.testing import eventually

from .conftest import STUBBORN, MakeDriver, Rent, below, extra, look, renter, says, state

GIB = 1024**3

#: A provider's process of its own: rents one machine, says its name and id, and waits.
RENTER = """\
import sys
from pathlib import Path
from spinal.agents.provider.local import LocalNodeDriver
from libcloud.common.types import ProviderError
folder, isolation, name, script = sys.argv[1:]
driver = LocalNodeDriver(Path(folder), isolation=isolation)
sys.stdin.readline()
try:
    driver.create_node(name, driver.list_sizes()[0], driver.list_images()[0], ex_userdata=script)
    print("created", flush=True)
except ProviderError as exc:
    print(exc.http_code, flush=True)
sys.stdin.readline()
"""


def provider(folder: Path, isolation: str, name: str, script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RENTER, str(folder), isolation, name, f"#!/bin/sh\n{script}\n"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def refused(code: int, act: Any) -> str:
    with pytest.raises(ProviderError) as caught:
        act()
    assert caught.value.http_code == code
    return str(caught.value)


# -- what there is to rent


def test_sizes_have_a_price_in_the_currency_and_the_kind_of_processor(
    make_driver: MakeDriver,
) -> None:
    driver = make_driver(currency="CHF")

    sizes = driver.list_sizes()

    assert [(size.id, size.ram, extra(size)["vcpus"]) for size in sizes] == [
        ("small", 1024, 1),
        ("medium", 4096, 2),
        ("large", 8192, 4),
    ]
    assert all(size.price > 0 for size in sizes)
    assert {extra(size)["currency"] for size in sizes} == {"CHF"}
    assert {extra(size)["arch"] for size in sizes} <= {"x86_64", "arm64", platform.machine()}


def test_sizes_and_regions_are_those_of_the_settings(make_driver: MakeDriver) -> None:
    tiny = LocalSize(cpu=0.5, ram=GIB // 2, price=0.001, disk=3 * GIB)
    driver = make_driver(sizes={"tiny": tiny}, regions=("north", "south"))

    (size,) = driver.list_sizes(driver.list_locations()[1])

    assert (size.id, size.ram, size.disk, size.price) == ("tiny", 512, 3, 0.001)
    assert [location.id for location in driver.list_locations()] == ["north", "south"]
    assert [image.id for image in driver.list_images()] == ["host"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sizes": {}}, "at least one size"),
        ({"regions": ()}, "at least one size and one region"),
        ({"limit": 0}, "limit"),
        ({"capacity": {"local/huge": 1}}, "local/huge"),
        ({"isolation": "chroot"}, "chroot"),
        ({"isolation": "nspawn"}, "nspawn"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(
    folder: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        LocalNodeDriver(folder, **settings)


def test_a_size_costs_something() -> None:
    with pytest.raises(ValueError, match="price"):
        LocalSize(cpu=1, ram=GIB, price=0)


def test_it_can_be_had_by_name_as_any_driver(folder: Path) -> None:
    set_driver("spinal-local", "spinal.agents.provider.local", "LocalNodeDriver")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - as documented

    assert get_driver("spinal-local") is LocalNodeDriver
    assert get_driver("spinal-local")(folder).list_nodes() == []


# -- a machine


async def test_a_machine_runs_its_user_data_and_is_gone_when_it_is_destroyed(
    driver: LocalNodeDriver, rent: Rent, folder: Path
) -> None:
    node = rent("echo booted\nexec sleep 1000", ex_metadata={"spinal-pool": "pool"})

    await says(driver, node, "booted")
    await eventually(lambda: any("sleep" in process.name() for process in below(node)))
    processes = below(node)
    (listed,) = driver.list_nodes()
    assert (listed.id, listed.name, listed.state) == (node.id, "pool-a", "running")
    assert extra(listed)["metadata"] == {"spinal-pool": "pool"}
    assert (extra(listed)["region"], extra(listed)["size"]) == ("local", "small")
    assert listed.created_at is not None and abs(listed.created_at.timestamp() - time.time()) < 60

    assert node.destroy()

    assert driver.list_nodes() == []
    assert not any(process.is_running() for process in processes)
    assert os.listdir(folder) == ["lock"]


def test_libclouds_own_waiter_sees_it_run(driver: LocalNodeDriver, rent: Rent) -> None:
    node = rent()

    ((found, addresses),) = driver.wait_until_running(  # pyright: ignore[reportUnknownMemberType]
        [node], wait_period=0.01, timeout=10
    )

    assert (found.id, addresses) == (node.id, ["127.0.0.1"])


def test_to_destroy_it_twice_is_no_mistake(driver: LocalNodeDriver, rent: Rent) -> None:
    node = rent()

    assert node.destroy()
    assert driver.destroy_node(node)


async def test_its_environment_has_nothing_of_ours(
    make_driver: MakeDriver, isolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET", "hunter2")
    driver = make_driver(isolation=isolation, environment={"BUS": "bus.example"})
    node = renter(driver)("exec sleep 1000")

    await eventually(lambda: any("sleep" in process.name() for process in below(node)))

    (machine,) = [process for process in below(node) if "sleep" in process.name()]
    home = extra(node)["folder"]
    assert {name: word for name, word in machine.environ().items() if name != "PWD"} == {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": home,
        "BUS": "bus.example",
        "SPINAL_PYTHON": sys.executable,
        "SPINAL_MACHINE_ID": node.id,
        "SPINAL_MACHINE_NAME": "pool-a",
        "SPINAL_MACHINE_DIR": home,
    }
    for process in [psutil.Process(extra(node)["pid"]), *below(node)]:
        assert "hunter2" not in str(process.environ()) + str(process.cmdline())


async def test_the_spinal_that_is_here_can_be_used_in_it(
    make_driver: MakeDriver, isolation: str
) -> None:
    # As when this runs from a checkout, whose place the interpreter does not know by itself.
    driver = make_driver(
        isolation=isolation, environment={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    )
    node = renter(driver)('"$SPINAL_PYTHON" -c "import spinal.agents; print(spinal.__name__, 6*7)"')

    assert "spinal 42" in await says(driver, node, "spinal 42")


async def test_its_folder_is_its_own_and_nobody_elses(driver: LocalNodeDriver, rent: Rent) -> None:
    node = rent('echo mine > note; echo "$(pwd) $HOME"; echo written; exec sleep 1000')

    said = await says(driver, node, "written")

    folder = Path(extra(node)["folder"])
    assert f"{folder} {folder}" in said
    assert (folder / "note").read_text() == "mine\n"
    assert folder.stat().st_mode & 0o077 == 0


async def test_a_process_cannot_have_more_memory_than_the_size(
    make_driver: MakeDriver, isolation: str
) -> None:
    sizes = {"tiny": LocalSize(cpu=1, ram=128 * 1024**2, price=0.01)}
    driver = make_driver(isolation=isolation, sizes=sizes)
    node = renter(driver)(
        '"$SPINAL_PYTHON" -c "bytearray(50 << 20); print(\'little\')"\n'
        '"$SPINAL_PYTHON" -c "bytearray(300 << 20); print(\'much\')"'
    )

    await state(driver, "error")

    said = driver.ex_get_console_output(node)
    assert "little" in said and "MemoryError" in said and "much" not in said


async def test_its_console_is_bounded_and_keeps_the_end(
    make_driver: MakeDriver, isolation: str, folder: Path
) -> None:
    driver = make_driver(isolation=isolation, console=100_000)
    node = renter(driver)("seq 1 200000; echo the end; exec sleep 1000")

    said = await says(driver, node, "the end")

    assert said.splitlines()[-2:] == ["200000", "the end"]
    logs = list((folder / str(node.id)).glob("console.log*"))
    assert sum(path.stat().st_size for path in logs) <= 100_000


# -- how it ends


@pytest.mark.parametrize(
    ("script", "wanted", "said"),
    [
        ("exit 0", "stopped", "came to an end"),
        ("echo no disk >&2; exit 7", "error", "exit code 7: no disk"),
        ("kill -9 $$", "stopped", "signal 9"),
        ("exec /nowhere", "error", "exit code 127"),
    ],
)
async def test_one_that_has_ended_is_listed_with_its_reason(
    driver: LocalNodeDriver, rent: Rent, script: str, wanted: str, said: str
) -> None:
    rent(script)

    node = await state(driver, wanted)

    assert said in extra(node)["said"]
    assert node.destroy()
    assert driver.list_nodes() == []


async def test_nothing_that_it_started_goes_on_when_its_script_has_ended(
    driver: LocalNodeDriver, rent: Rent
) -> None:
    rent("setsid sleep 31415 & echo started")

    await state(driver, "stopped")

    assert not [one for one in psutil.process_iter(["cmdline"]) if "31415" in str(one.info)]


async def test_one_whose_warden_is_killed_is_stopped_with_all_of_it(
    driver: LocalNodeDriver, rent: Rent
) -> None:
    node = rent("setsid sleep 1000 & echo started; exec sleep 1000")
    await says(driver, node, "started")
    processes = below(node)

    os.kill(extra(node)["pid"], signal.SIGKILL)

    assert extra(await state(driver, "stopped"))["said"] == "it was killed"
    psutil.wait_procs(processes, timeout=5)
    assert all(map(gone, processes))


async def test_what_ignores_being_asked_or_has_left_the_group_is_killed(
    driver: LocalNodeDriver, rent: Rent
) -> None:
    node = rent(STUBBORN)
    await says(driver, node, "stubborn")
    await eventually(lambda: len([one for one in below(node) if one.name() == "sleep"]) == 3)
    processes = below(node)

    began = time.monotonic()
    node.destroy()

    assert 2.5 < time.monotonic() - began < 15
    assert not any(process.is_running() for process in processes)


async def test_it_is_asked_before_it_is_killed(
    driver: LocalNodeDriver, rent: Rent, tmp_path: Path
) -> None:
    node = rent("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    await says(driver, node, "ready")

    os.kill(extra(node)["pid"], signal.SIGTERM)

    await state(driver, "stopped")
    assert driver.ex_get_console_output(node).splitlines()[-1] == "bye"


async def test_everything_ends_at_once(driver: LocalNodeDriver, rent: Rent) -> None:
    nodes = [rent(STUBBORN, name=f"pool-{number}") for number in range(3)]
    for node in nodes:
        await says(driver, node, "stubborn")
    processes = [process for node in nodes for process in below(node)]

    began = time.monotonic()
    driver.end_all()

    # One after the other would take three times three seconds.
    assert time.monotonic() - began < 9
    assert driver.list_nodes() == []
    assert not any(process.is_running() for process in processes)


# -- it outlives its provider


async def test_it_outlives_a_killed_provider_and_the_next_one_finds_it(
    make_driver: MakeDriver, isolation: str, folder: Path
) -> None:
    first = provider(folder, isolation, "pool-a", "echo alive; trap 'exit 0' TERM; exec sleep 1000")
    with first:
        tell(first)
        assert hear(first) == "created"
        first.kill()
    second = make_driver(isolation=isolation)

    node = look(second)
    await says(second, node, "alive")
    assert node.state == "running"
    processes = [psutil.Process(extra(node)["pid"]), *below(node)]
    node.destroy()

    assert second.list_nodes() == []
    # Who is to bury what is no child of ours is not for us to say.
    assert all(map(gone, processes))


async def test_nothing_of_one_that_has_ended_waits_for_us_to_bury_it(
    driver: LocalNodeDriver, rent: Rent
) -> None:
    node = rent("exit 0")

    await eventually(lambda: not psutil.pid_exists(extra(node)["pid"]))


def test_one_that_was_never_started_can_be_seen_and_destroyed(
    driver: LocalNodeDriver, rent: Rent, folder: Path
) -> None:
    node = rent()
    path = folder / str(node.id) / "meta.json"
    meta = json.loads(path.read_text())
    driver.destroy_node(node)
    # As when the provider was killed in the moment between the record and the process.
    path.parent.mkdir()
    path.write_text(json.dumps(meta | {"pid": None, "start": None, "boot": None}))

    assert look(driver).state == "error"
    assert look(driver).destroy()
    assert driver.list_nodes() == []


@pytest.mark.parametrize("change", [{"start": 1}, {"boot": "another"}])
def test_whoever_has_the_number_of_a_dead_one_is_left_alone(
    driver: LocalNodeDriver, rent: Rent, folder: Path, change: dict[str, Any]
) -> None:
    node = rent()
    os.kill(extra(node)["pid"], signal.SIGKILL)
    path = folder / str(node.id) / "meta.json"
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        meta = json.loads(path.read_text())
        path.write_text(json.dumps(meta | {"pid": stranger.pid} | change))

        assert look(driver).state == "stopped"
        assert look(driver).destroy()

        assert stranger.poll() is None
        stranger.kill()


def test_what_is_no_record_hides_no_other_machine(
    driver: LocalNodeDriver, rent: Rent, folder: Path
) -> None:
    node = rent()
    (folder / "machine-0").mkdir()
    (folder / "machine-0" / "meta.json").write_text("{")

    assert [one.id for one in driver.list_nodes()] == [node.id]


# -- what is refused


def test_a_name_that_is_taken_is_refused(rent: Rent, driver: LocalNodeDriver) -> None:
    rent()

    assert "NameExists" in refused(409, rent)
    assert len(driver.list_nodes()) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"size": NodeSize("huge", "huge", 1, 1, 0, 1.0, None)}, "huge"),  # type: ignore[arg-type]
        ({"image": NodeImage("vista", "vista", None)}, "vista"),  # type: ignore[arg-type]
        ({"location": NodeLocation("moon", "moon", "", None)}, "moon"),  # type: ignore[arg-type]
        ({"ex_userdata": "#cloud-config\n"}, "script"),
        ({"ex_userdata": "#!" + "x" * 70_000}, "70002 bytes"),
        ({"name": "Not a name"}, "Not a name"),
        ({"name": "../up"}, "up"),
    ],
)
def test_what_can_never_be_is_refused(
    rent: Rent, driver: LocalNodeDriver, more: dict[str, Any], said: str
) -> None:
    assert said in refused(400, lambda: rent(**more))
    assert driver.list_nodes() == []


def test_a_full_host_has_no_capacity(make_driver: MakeDriver) -> None:
    driver = make_driver(limit=2)
    rent = renter(driver)
    node = rent(name="pool-1")
    rent(name="pool-2")

    assert "InsufficientCapacity" in refused(503, lambda: rent(name="pool-3"))

    node.destroy()
    rent(name="pool-3")


def test_a_region_runs_out_of_one_size(make_driver: MakeDriver) -> None:
    driver = make_driver(regions=("north", "south"), capacity={"north/small": 1, "south/small": 0})
    rent, (north, south) = renter(driver), driver.list_locations()
    rent(name="pool-1", location=north)

    said = refused(503, lambda: rent(name="pool-2", location=north))
    refused(503, lambda: rent(name="pool-2", location=south))

    assert "InsufficientCapacity" in said and "north/small" in said
    rent(name="pool-2", size=driver.list_sizes()[1], location=north)


async def test_a_boot_can_take_its_time(make_driver: MakeDriver) -> None:
    driver = make_driver(boot_delay=0.3)

    node = renter(driver)("echo booted; exec sleep 1000")

    await says(driver, node, "booted")
    assert _now() - extra(node)["created"] >= 300
    assert look(driver).state == "running"


def test_one_that_has_not_begun_is_pending_and_destroyed_at_once(make_driver: MakeDriver) -> None:
    driver = make_driver(boot_delay=60)
    node = renter(driver)("echo booted")

    assert look(driver).state == "pending"
    assert driver.ex_get_console_output(node) == ""
    began = time.monotonic()
    node.destroy()

    assert time.monotonic() - began < 3


def _now() -> float:
    return time.time() * 1000


# -- several at once


def test_two_processes_that_want_one_name_get_one_machine(
    make_driver: MakeDriver, isolation: str, folder: Path
) -> None:
    driver = make_driver(isolation=isolation)
    renters = [provider(folder, isolation, "pool-a", "exec sleep 1000") for _ in range(2)]
    try:
        for one in renters:
            tell(one)
        answers = sorted(hear(one) for one in renters)
    finally:
        for one in renters:
            with one:
                one.kill()

    assert answers == ["409", "created"]
    assert [node.name for node in driver.list_nodes()] == ["pool-a"]


def test_many_threads_each_with_its_own_driver(make_driver: MakeDriver, isolation: str) -> None:
    limit, together = 6, threading.Barrier(12)

    def create(number: int) -> int:
        driver = make_driver(isolation=isolation, limit=limit)
        together.wait()
        try:
            renter(driver)("exec sleep 1000", name=f"pool-{number}")
        except ProviderError as exc:
            return exc.http_code
        driver.list_nodes()
        return 0

    with ThreadPoolExecutor(12) as pool:
        answers = sorted(pool.map(create, range(12)))

    assert answers == [0] * 6 + [503] * 6
    driver = make_driver(isolation=isolation)
    assert {node.state for node in driver.list_nodes()} == {"running"}
    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(driver.destroy_node, driver.list_nodes() * 2))
    assert driver.list_nodes() == []


# -- images


async def test_a_machine_begins_with_what_an_image_has(driver: LocalNodeDriver, rent: Rent) -> None:
    first = rent("echo treasure > chest; echo buried; exec sleep 1000")
    await says(driver, first, "buried")

    image = driver.create_image(first, "golden", "with a treasure")
    first.destroy()

    listed = driver.list_images()
    assert [(one.id, one.name) for one in listed] == [("host", "host"), (image.id, "golden")]
    second = rent("cat chest; exec sleep 1000", name="pool-b", image=listed[1])
    await says(driver, second, "treasure")
    assert driver.get_image(image.id).name == "golden"

    assert driver.delete_image(image)

    assert [one.id for one in driver.list_images()] == ["host"]
    refused(404, lambda: driver.get_image(image.id))
    refused(400, lambda: rent(name="pool-c", image=image))


def test_images_of_no_machine_and_the_system_itself_are_refused(
    driver: LocalNodeDriver, rent: Rent
) -> None:
    node = rent()
    node.destroy()

    refused(404, lambda: driver.create_image(node, "late"))
    refused(400, lambda: driver.delete_image(driver.list_images()[0]))


def test_what_was_left_half_made_is_swept_away(
    driver: LocalNodeDriver, rent: Rent, folder: Path
) -> None:
    (folder / ".machine-1" / "disk").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / "images" / "image-1.tar.gz").write_bytes(b"half")

    rent()

    assert not (folder / ".machine-1").exists()
    assert os.listdir(folder / "images") == []
    assert [image.id for image in driver.list_images()] == ["host"]
