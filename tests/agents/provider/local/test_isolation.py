from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.needs import needs

from .conftest import MakeDriver, extra, look, renter, says, state

CHOOSE = """\
import sys
from pathlib import Path
from spinal.agents.provider.local import LocalNodeDriver
driver = LocalNodeDriver(Path(sys.argv[1]), isolation=sys.argv[2])
try:
    node = driver.create_node("pool-a", driver.list_sizes()[0], driver.list_images()[0])
    print(node.extra["isolation"])
finally:
    driver.end_all()
"""

#: Prints where the Python of a machine is that is made by the Python that runs it.
PREFIX = """\
import sys, time
from pathlib import Path
from spinal.agents.provider.local import LocalNodeDriver
driver = LocalNodeDriver(
    Path(sys.argv[1]), isolation="bubblewrap", environment={"PYTHONPATH": sys.argv[2]}
)
script = '#!/bin/sh\\nexec "$SPINAL_PYTHON" -c "import sys, spinal.agents; print(sys.prefix)"'
size, image = driver.list_sizes()[0], driver.list_images()[0]
try:
    node = driver.create_node("pool-a", size, image, ex_userdata=script)
    while driver.list_nodes()[0].state == "running":
        time.sleep(0.02)
    print(driver.ex_get_console_output(node))
finally:
    driver.end_all()
"""


def choose(folder: Path, wanted: str, path: str) -> subprocess.CompletedProcess[str]:
    """Let a process that finds its programs elsewhere make a driver."""
    return subprocess.run(
        [sys.executable, "-c", CHOOSE, str(folder), wanted],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def broken(folder: Path) -> str:
    """Make a bubblewrap that may not do what it needs, as in a container."""
    folder.mkdir()
    program = folder / "bwrap"
    program.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create a namespace' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


@needs("bwrap")
def test_auto_is_bubblewrap_where_that_works(make_driver: MakeDriver) -> None:
    assert extra(renter(make_driver())())["isolation"] == "bubblewrap"


def test_auto_is_process_where_there_is_no_bubblewrap_and_says_so(tmp_path: Path) -> None:
    done = choose(tmp_path / "machines", "auto", str(tmp_path))

    assert done.stdout.splitlines()[-1] == "process"
    assert "'bwrap' is not here" in done.stdout + done.stderr


def test_auto_is_process_where_bubblewrap_does_not_work_and_says_so(tmp_path: Path) -> None:
    done = choose(tmp_path / "machines", "auto", broken(tmp_path / "bin"))

    assert done.stdout.splitlines()[-1] == "process"
    assert "No permissions to create a namespace" in done.stdout + done.stderr


def test_one_who_asks_for_bubblewrap_gets_nothing_less(tmp_path: Path) -> None:
    done = choose(tmp_path / "machines", "bubblewrap", broken(tmp_path / "bin"))

    assert done.returncode != 0
    assert "No permissions to create a namespace" in done.stderr.splitlines()[-1]


@needs("bwrap")
class TestBubblewrap:
    async def test_it_has_its_own_host_name_and_processes(self, make_driver: MakeDriver) -> None:
        driver = make_driver(isolation="bubblewrap")
        node = renter(driver)("hostname; cat /proc/[0-9]*/comm | sort | uniq -c; echo all of them")

        said = await says(driver, node, "all of them")

        assert said.splitlines()[0] == "pool-a" != socket.gethostname()
        assert "python" not in said and "bwrap" in said

    async def test_it_writes_nothing_but_its_folder_and_its_own_tmp(
        self, make_driver: MakeDriver
    ) -> None:
        driver = make_driver(isolation="bubblewrap")
        mark = f"spinal-{socket.gethostname()}-mark"
        node = renter(driver)(
            f"for place in / /etc /usr /root /home; do echo x > $place/{mark} && echo BREACH; done\n"
            "mount -o remount,rw / && echo BREACH\n"
            f"echo x > /tmp/{mark} && echo x > ./{mark} && echo written; exec sleep 1000"
        )

        said = await says(driver, node, "written")

        assert "BREACH" not in said
        assert said.count("Read-only file system") >= 3
        assert not Path("/tmp", mark).exists()
        assert (Path(extra(node)["folder"]) / mark).exists()

    async def test_it_sees_no_other_machine_and_nothing_that_is_hidden(
        self, make_driver: MakeDriver, tmp_path: Path, folder: Path
    ) -> None:
        home = Path(__file__).parent
        driver = make_driver(isolation="bubblewrap", hidden=(home,))
        rent = renter(driver)
        other = rent("# ticket-for-the-other\nexec sleep 1000", name="pool-b")
        node = rent(
            f"ls {folder}; cat {folder}/*/user-data; echo [$(ls -A {home})]\n"
            # It writes its own script as well.
            "printf 'all %s\\n' seen; exec sleep 1000"
        )

        said = await says(driver, node, "all seen")

        assert str(other.id) not in said and "ticket" not in said
        assert str(node.id) in said and "[]" in said

    def test_a_python_below_tmp_can_be_used_in_it(self, folder: Path, tmp_path: Path) -> None:
        # Its own /tmp hides what this machine has there.
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True
        )
        places = os.pathsep.join(filter(None, sys.path))
        done = subprocess.run(
            [str(tmp_path / "venv" / "bin" / "python"), "-c", PREFIX, str(folder), places],
            env={**os.environ, "PYTHONPATH": places},
            capture_output=True,
            text=True,
            check=True,
        )

        assert done.stdout.splitlines()[-1] == str(tmp_path / "venv"), done.stderr

    async def test_the_network_is_this_machines(self, make_driver: MakeDriver) -> None:
        driver = make_driver(isolation="bubblewrap")
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(10)
            port = server.getsockname()[1]
            connect = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
            renter(driver)(f'exec "$SPINAL_PYTHON" -c "{connect}"')

            connection, _ = server.accept()
            connection.close()

    async def test_what_is_killed_inside_is_told_like_what_is_killed_outside(
        self, make_driver: MakeDriver
    ) -> None:
        driver = make_driver(isolation="bubblewrap")
        renter(driver)("kill -SEGV $$")

        await state(driver, "stopped")

        assert extra(look(driver))["said"] == "it was killed by signal 11"


async def test_a_machine_that_was_started_with_another_isolation_is_ended_as_it_was_started(
    make_driver: MakeDriver,
) -> None:
    node = renter(make_driver(isolation="process"))("echo up; exec sleep 1000")
    other = make_driver(isolation="auto")

    assert extra(look(other))["isolation"] == "process"
    assert other.destroy_node(node)
    assert other.list_nodes() == []


@pytest.mark.parametrize("isolation", ["process"])
async def test_a_machine_without_user_data_idles(make_driver: MakeDriver, isolation: str) -> None:
    driver = make_driver(isolation=isolation)
    renter(driver)()

    await state(driver, "running")
