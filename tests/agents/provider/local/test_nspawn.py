"""Machines with systemd and real cloud-init; takes root, and once a Debian (network, half a minute)."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.conftest import MISSING
from tests.needs import needs
from tests.processes import alive

from spinal.agents.errors import AgentError
from spinal.agents.provider.local import LocalNodeDriver, image
from spinal.testing import eventually

from .conftest import WITHIN, MakeDriver, below, extra, look, renter, says, state

#: Where the system that is made once is kept.
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "spinal"

pytestmark = [
    needs("systemd-nspawn", "mmdebstrap", "unshare"),
    pytest.mark.skipif(os.geteuid() != 0, reason=f"{MISSING} the rights of root"),
    pytest.mark.timeout(600),
]

#: Says a line to a listener of ours.
DIAL = """\
python3 - <<'END'
import os, socket
with socket.create_connection(("127.0.0.1", {port})) as bus:
    bus.sendall(" ".join([socket.gethostname(), os.environ["SPINAL_MACHINE_ID"], {word!r}]).encode())
END
"""


@pytest.fixture(scope="session")
def root() -> Path:
    folder = CACHE / "debian-bookworm"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Other workers want it as well.
        try:
            image.build(folder)
        except AgentError as exc:
            pytest.skip(f"{MISSING} a system for systemd-nspawn: {exc}")
    return folder


@pytest.fixture
def driver(make_driver: MakeDriver, root: Path) -> LocalNodeDriver:
    return make_driver(isolation="nspawn", root=root, environment={"WORD": 'a "b" 100% $HOME \\'})


class Listener:
    """Takes what machines say, one connection after the other."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self.port: int = server.getsockname()[1]
        self.said: list[str] = []
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        with suppress(OSError):  # Shut down.
            while True:
                connection, _ = self._server.accept()
                with connection:
                    self.said.append(connection.recv(1000).decode())

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()


@pytest.fixture
def listener() -> Iterator[Listener]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        listener = Listener(server)
        yield listener
        listener.close()


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def groups(id: str) -> list[Path]:
    return [path for path in Path("/sys/fs/cgroup").rglob(id) if path.is_dir()]


async def test_cloud_init_runs_the_script_which_reaches_what_listens_here(
    driver: LocalNodeDriver, listener: Listener, folder: Path, root: Path
) -> None:
    before = mounts()
    system = sorted(path.name for path in (root / "etc").iterdir())
    script = DIAL.format(port=listener.port, word="joined")
    began = time.monotonic()
    node = renter(driver)(f'{script}\necho "WORD is $WORD"; touch /etc/breach; echo finished')

    await eventually(lambda: listener.said, WITHIN)

    print(f"from create to joined: {time.monotonic() - began:.1f} s")
    assert listener.said == [f"pool-a {node.id} joined"]
    said = await says(driver, node, "finished")
    assert "Cloud-init v." in said and "DataSourceNoCloud" in await says(driver, node, "NoCloud")
    assert 'WORD is a "b" 100% $HOME \\' in said
    assert look(driver).state == "running"
    # What it changes is its own, and so are its mounts.
    assert (Path(extra(node)["folder"]) / "etc" / "breach").exists()
    assert sorted(path.name for path in (root / "etc").iterdir()) == system
    assert mounts() == before
    processes = below(node)

    began = time.monotonic()
    node.destroy()

    print(f"destroyed: {time.monotonic() - began:.1f} s")
    assert driver.list_nodes() == []
    assert os.listdir(folder) == ["lock"]
    assert mounts() == before
    assert groups(str(node.id)) == []
    assert not any(process.is_running() for process in processes)


async def test_it_shuts_down_in_good_order(driver: LocalNodeDriver) -> None:
    node = renter(driver)("echo finished")
    await says(driver, node, "finished")
    assert groups(str(node.id)), "it has groups of its own"

    os.kill(extra(node)["pid"], signal.SIGTERM)

    await state(driver, "stopped")
    assert "Reached target shutdown.target" in driver.ex_get_console_output(node)


async def test_one_whose_warden_is_killed_leaves_neither_process_nor_mount(
    driver: LocalNodeDriver,
) -> None:
    before = mounts()
    node = renter(driver)("setsid sleep 16180 & echo finished")
    await says(driver, node, "finished")
    processes = below(node)

    os.kill(extra(node)["pid"], signal.SIGKILL)

    await state(driver, "stopped")
    await eventually(lambda: not any(map(alive, processes)))
    node.destroy()
    assert mounts() == before
    assert groups(str(node.id)) == []


async def test_a_machine_begins_with_what_an_image_has(
    driver: LocalNodeDriver, listener: Listener
) -> None:
    first = renter(driver)("echo treasure > /opt/chest; rm /etc/issue; echo buried")
    await says(driver, first, "buried")
    image = driver.create_image(first, "golden")
    first.destroy()

    script = DIAL.format(port=listener.port, word="again")
    second = renter(driver)(
        f"cat /opt/chest; ls /etc/issue; {script}\necho finished", name="pool-b", image=image
    )

    said = await says(driver, second, "finished")
    assert "treasure" in said and "cannot access '/etc/issue'" in said
    # Its script and not the first one's, and its name.
    await eventually(lambda: listener.said == [f"pool-b {second.id} again"])
    assert "buried" not in said


def test_a_folder_that_is_no_system_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"python -m spinal\.agents\.provider\.local\.image"):
        LocalNodeDriver(folder, isolation="nspawn", root=tmp_path)
