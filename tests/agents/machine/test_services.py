from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.processes import alive

from spinal.agents.errors import CommandFailed
from spinal.agents.machine.config import ServicesConfig
from spinal.agents.machine.manager import NAME, Service, Verb
from spinal.agents.machine.services import manager
from spinal.agents.machine.systemd import Systemd, properties, unit_files, units
from spinal.agents.machine.sysv import SysV
from spinal.agents.process import run
from spinal.testing import eventually

from .conftest import Start, World, needs

#: As in Debian's own scripts, with the daemon's ways.
DAEMON = """\
#!/bin/sh
### BEGIN INIT INFO
# Provides:          cache
# Default-Start:     2 3 4 5
# Short-Description: keeps things
### END INIT INFO
. /lib/lsb/init-functions
PIDFILE={folder}/cache.pid
case "$1" in
  start)
    start-stop-daemon --start --oknodo --background --make-pidfile --pidfile $PIDFILE \\
      --exec /usr/bin/memcached -- -u root -l 127.0.0.1 -p {port} ;;
  stop) start-stop-daemon --stop --oknodo --retry 5 --remove-pidfile --pidfile $PIDFILE ;;
  restart) $0 stop && $0 start ;;
  status) status_of_proc -p $PIDFILE /usr/bin/memcached cache ;;
  *) echo "Usage: $0 {{start|stop|restart|status}}" >&2; exit 3 ;;
esac
"""

#: An old one: it stays in the group of its script, holds the script's outputs, and writes to them.
OLD = """\
#!/bin/sh
case $1 in
  start) (while :; do echo tick; sleep 0.1; done) & echo $! > {folder}/old.pid ;;
  stop) kill $(cat {folder}/old.pid) ;;
  *) touch {folder}/ran-with-an-unknown-word; exit 2 ;;
esac
"""

#: One that hangs, has a child that hangs as well, and does not want to end.
HANGS = """\
#!/bin/sh
trap '' TERM
echo $$ > {folder}/hangs.pid
sleep 1000 &
echo $! >> {folder}/hangs.pid
wait
wait
"""

FAILS = "#!/bin/sh\nexit 6\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def no_daemon_is_left(tmp_path: Path) -> Iterator[None]:
    """A daemon is nobody's child, so a test that fails must not leave it behind."""
    yield
    for file in tmp_path.glob("*.pid"):
        for word in file.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(word), signal.SIGKILL)


@pytest.fixture
def etc(tmp_path: Path) -> Iterator[Path]:
    """A folder like /etc, with scripts that work; what they started ends with it."""
    etc = tmp_path / "etc"
    scripts = etc / "init.d"
    scripts.mkdir(parents=True)
    (etc / "rc2.d").mkdir()
    texts = {"cache": DAEMON, "old": OLD, "hangs": HANGS, "fails": FAILS}
    for name, text in texts.items():
        (scripts / name).write_text(text.format(folder=tmp_path, port=free_port()))
        (scripts / name).chmod(0o755)
    (etc / "rc2.d" / "S01cache").symlink_to("../init.d/cache")
    (scripts / "README").write_text("no service")
    (scripts / "-rf").write_text(FAILS)
    (scripts / "-rf").chmod(0o755)
    (scripts / "not-executable").write_text(FAILS)
    yield etc
    for file in tmp_path.glob("*.pid"):
        for word in file.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(word), signal.SIGKILL)


def config_of(etc: Path, change: str = "[cache, old, hangs, fails]", timeout: str = "20s") -> str:
    return (
        f"services: {{manager: sysv, scripts: {etc}/init.d, change: {change}, timeout: {timeout}}}"
    )


@pytest.fixture
async def world(start: Start, etc: Path) -> AsyncGenerator[World]:
    async with start(config_of(etc)) as world:
        yield world


class TestScripts:
    async def test_they_are_listed(self, world: World) -> None:
        found = await world.ask("/services/list")
        assert found["manager"] == "sysv" and not found["more"]
        assert {one["name"]: (one["state"], one["enabled"]) for one in found["services"]} == {
            "cache": ("stopped", True),
            "fails": ("unknown", False),
            "hangs": ("unknown", False),
            "old": ("unknown", False),
        }
        assert found["services"][0]["about"] == "keeps things"

    async def test_only_scripts_that_know_status_are_asked_for_it(
        self, world: World, tmp_path: Path
    ) -> None:
        await world.ask("/services/show", name="old")
        assert not (tmp_path / "ran-with-an-unknown-word").exists()

    @needs("memcached", "start-stop-daemon")
    async def test_a_daemon_is_started_restarted_and_stopped(
        self, world: World, tmp_path: Path
    ) -> None:
        done = await world.ask("/services/start", name="cache")
        assert (done["name"], done["state"]) == ("cache", "running")
        first = int((tmp_path / "cache.pid").read_text())
        await eventually(lambda: psutil.Process(first).name() == "memcached")
        found = await world.ask("/services/list", match="c*", state="running")
        assert [one["name"] for one in found["services"]] == ["cache"]
        assert (await world.ask("/services/restart", name="cache"))["state"] == "running"
        second = int((tmp_path / "cache.pid").read_text())
        assert second != first and not alive(first)
        assert (await world.ask("/services/stop", name="cache.service"))["state"] == "stopped"
        await eventually(lambda: not alive(second))

    async def test_an_old_one_outlives_the_script_that_starts_it(
        self, world: World, tmp_path: Path
    ) -> None:
        await world.ask("/services/start", name="old")
        pid = int((tmp_path / "old.pid").read_text())
        # It writes ten times a second to what its script had as output.
        ticks = psutil.Process(pid).num_ctx_switches().voluntary
        await eventually(lambda: psutil.Process(pid).num_ctx_switches().voluntary > ticks + 10)
        await world.ask("/services/stop", name="old")
        await eventually(lambda: not alive(pid))

    async def test_one_that_hangs_is_gone_in_time(
        self, start: Start, etc: Path, tmp_path: Path
    ) -> None:
        async with start(config_of(etc, timeout="500ms")) as world:
            loop = asyncio.get_running_loop()
            began = loop.time()
            reason, said = await world.problem("/services/start", name="hangs")
            took = loop.time() - began
        assert reason == "failed" and "took longer than 500ms" in said and took < 10
        pids = [int(word) for word in (tmp_path / "hangs.pid").read_text().split()]
        assert len(pids) == 2
        await eventually(lambda: not any(map(alive, pids)))

    async def test_one_that_is_cancelled_is_gone(self, world: World, tmp_path: Path) -> None:
        call = world.call("/services/start", name="hangs")
        task = asyncio.create_task(call.result())
        file = tmp_path / "hangs.pid"
        pids = await eventually(lambda: file.exists() and [*map(int, file.read_text().split())][1:])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: not any(map(alive, pids)))

    async def test_what_an_exit_code_means_is_told(self, world: World) -> None:
        reason, said = await world.problem("/services/restart", name="fails")
        assert reason == "failed"
        assert "restart of fails: it is not configured (exit code 6)" in said

    async def test_what_may_not_be_changed_is_shown_and_not_changed(
        self, start: Start, etc: Path, tmp_path: Path
    ) -> None:
        async with start(config_of(etc, change='["ca*"]')) as world:
            assert (await world.ask("/services/show", name="cache"))["changeable"]
            shown = await world.ask("/services/show", name="old")
            assert not shown["changeable"] and shown["says"]["script"].endswith("init.d/old")
            reason, said = await world.problem("/services/start", name="old")
        assert reason == "refused" and "services.change" in said
        assert not (tmp_path / "old.pid").exists()

    async def test_by_default_nothing_may_be_changed(self, start: Start, etc: Path) -> None:
        async with start(config_of(etc, change="[]")) as world:
            for verb in ("start", "stop", "restart", "enable", "disable"):
                reason, _ = await world.problem(f"/services/{verb}", name="cache")
                assert reason == "unknown-op"

    def test_what_starts_with_the_machine_is_set_by_what_is_there(
        self, etc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        sysv = SysV(etc / "init.d")
        argvs = {
            "update-rc.d": ["update-rc.d", "cache", "enable"],
            "chkconfig": ["chkconfig", "cache", "on"],
            "rc-update": ["rc-update", "add", "cache"],
        }
        for program, argv in argvs.items():
            folder = tmp_path / program
            folder.mkdir()
            shutil.copy("/bin/true", folder / program)
            monkeypatch.setenv("PATH", str(folder))
            assert sysv.argv("cache", "enable") == argv
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(Exception, match="is installed, so nothing can be disabled"):
            sysv.argv("cache", "disable")

    async def test_a_script_that_goes_meanwhile_is_told(self, etc: Path) -> None:
        sysv = SysV(etc / "init.d")
        (etc / "init.d" / "cache").unlink()
        with pytest.raises(CommandFailed, match="cannot run"):
            await sysv.change("cache", "start", 5)


#: Written by ``systemctl list-units --type=service --all --plain --no-legend --full`` of systemd
#: 252 on Debian 12, in the namespaces of test_systemd.py and on a whole machine; shortened, and with
#: a last but one line as other versions mark what failed.
LISTED = """\
auditd.service                       not-found inactive dead    auditd.service
broken.service           loaded failed failed  Fails
console-getty.service                loaded    inactive dead    Console Getty
modprobe@dm_mod.service              loaded    inactive dead    Load Kernel Module dm_mod
one@x.service            loaded active running One of many x
systemd-binfmt.service               loaded    active   exited  Set Up Additional Binary Formats
systemd-journald.service loaded active running Journal Service
\u25cf old.service                        loaded    failed   failed  Marked
nothing
"""

#: Written by ``systemctl --root=/ list-unit-files --type=service --plain --no-legend`` of systemd
#: 252 on Debian 12, shortened.
FILES = """\
apt-daily-upgrade.service              static   -
autovt@.service                        alias    -
console-getty.service                  disabled disabled
cron.service                           enabled  enabled
cryptdisks.service                     masked   enabled
"""


class TestSystemd:
    """What is asked and how answers are read; test_systemd.py has a systemd that runs."""

    def test_units_are_read(self) -> None:
        found = units(LISTED)
        assert found["systemd-journald"] == Service(
            "systemd-journald", "running", None, "Journal Service"
        )
        assert {name: one.state for name, one in found.items()} == {
            "broken": "failed",
            "console-getty": "stopped",
            "modprobe@dm_mod": "stopped",
            "one@x": "running",
            "systemd-binfmt": "running",
            "systemd-journald": "running",
            "old": "failed",
        }

    def test_files_of_units_are_read(self) -> None:
        assert unit_files(FILES) == {
            "apt-daily-upgrade": None,
            "console-getty": False,
            "cron": True,
            "cryptdisks": False,
        }

    @needs("systemctl")
    async def test_the_real_program_writes_files_of_units_like_that(self) -> None:
        argv = ["systemctl", "--root=/", "--no-pager", "list-unit-files"]
        options = ["--type=service", "--all", "--plain", "--no-legend", "--full"]
        found = unit_files((await run([*argv, *options], check=True)).text)
        assert len(found) > 20 and found["console-getty"] is not True
        assert all(NAME.fullmatch(name) for name in found)

    @needs("systemctl")
    async def test_the_real_program_takes_what_we_give_it(self) -> None:
        """Without a systemd that runs it refuses, and not because of the arguments."""
        verbs: tuple[Verb, ...] = ("start", "restart", "enable")
        for verb in verbs:
            argv = Systemd.argv("no-such-service-of-ours", verb)
            done = await run(argv)
            assert done.code != 0
            assert not re.search(
                rb"unrecognized|[Uu]nknown|Invalid arg|Too (few|many)", done.stderr
            )

    def test_properties_are_read(self) -> None:
        said = "Description=A = B\nMainPID=12\nMemoryCurrent=[not set]\nResult=\n"
        assert properties(said) == {"Description": "A = B", "MainPID": "12"}

    def test_a_name_stands_behind_the_options(self) -> None:
        assert Systemd.argv("cron", "restart")[-3:] == ["restart", "--", "cron.service"]

    async def test_a_machine_is_asked_through_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start
    ) -> None:
        """A program in the place of systemctl, which keeps what it is asked."""
        (tmp_path / "units").write_text(LISTED)
        (tmp_path / "files").write_text(FILES)
        program = tmp_path / "bin" / "systemctl"
        program.parent.mkdir()
        program.write_text(
            f"#!{sys.executable}\n"
            "import json, pathlib, sys\n"
            f"folder = pathlib.Path({str(tmp_path)!r})\n"
            "with (folder / 'asked').open('a') as file: print(json.dumps(sys.argv), file=file)\n"
            "if 'list-units' in sys.argv: print((folder / 'units').read_text())\n"
            "if 'list-unit-files' in sys.argv: print((folder / 'files').read_text())\n"
            "if 'show' in sys.argv: print('ActiveState=active\\nUnitFileState=enabled')\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        async with start("services: {manager: systemd, change: [cron]}") as world:
            found = await world.ask("/services/list", match="c*")
            assert [(one["name"], one["state"], one["enabled"]) for one in found["services"]] == [
                ("console-getty", "stopped", False),
                ("cron", "stopped", True),
                ("cryptdisks", "stopped", False),
            ]
            done = await world.ask("/services/restart", name="cron.service")
            assert (done["state"], done["enabled"]) == ("running", True)
            assert (await world.problem("/services/restart", name="broken"))[0] == "refused"
        asked = (tmp_path / "asked").read_text().splitlines()
        assert sum('"restart"' in line for line in asked) == 1


def test_systemd_is_taken_where_it_runs(tmp_path: Path) -> None:
    booted, none = tmp_path, tmp_path / "none"
    scripts = ServicesConfig(scripts=str(tmp_path))
    assert isinstance(manager(scripts, booted), Systemd)
    assert isinstance(manager(scripts, none), SysV)
    assert manager(ServicesConfig(scripts=str(none)), none) is None


async def test_a_machine_without_a_manager_says_so(start: Start) -> None:
    async with start("services: {manager: none}") as world:
        for op, args in (("list", {}), ("show", {"name": "cron"})):
            reason, said = await world.problem(f"/services/{op}", **args)
            assert reason == "refused" and "no service manager" in said
