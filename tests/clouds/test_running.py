"""How the clouds start and end: from a test, from a shell, and when who started them is killed."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from urllib.request import Request, urlopen

import pytest
from tests.processes import alive, below

from spinal.testing import eventually

from . import Clouds
from .fixtures import needs_clouds
from .renting import connect
from .upstream import ROOT


def test_a_vendor_starts_alone() -> None:
    with Clouds("linode") as clouds:
        assert [cloud.name for cloud in clouds] == ["linode"]
        assert connect(clouds["linode"]).list_nodes() == []


async def test_clouds_start_from_a_loop_too() -> None:
    async with Clouds("vultr") as clouds:
        assert clouds["vultr"].state()["machines"] == []


def test_an_unknown_vendor_is_told() -> None:
    with pytest.raises(OSError, match="no such vendor: tencent"), Clouds("tencent"):
        pass


def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDS_VENV", "/nonexistent")
    with pytest.raises(OSError, match=r"not installed: .*make clouds"), Clouds("ec2"):
        pass


@needs_clouds
async def test_clouds_end_when_who_started_them_is_killed() -> None:
    code = "import sys; from tests.clouds import Clouds; c = Clouds('ec2', 'vultr'); c.start()"
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", f"{code}; print(flush=True); sys.stdin.read()"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert owner.stdout is not None
    await owner.stdout.readline()
    started = below(owner.pid)
    assert len(started) == 2  # The simulator, and moto.
    owner.kill()
    await owner.wait()
    await eventually(lambda: not any(map(alive, started)), timeout=30)


@needs_clouds
def test_a_shell_has_them_until_it_is_interrupted() -> None:
    shown = subprocess.Popen(
        [sys.executable, "-m", "tests.clouds.show", "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with shown:
        assert shown.stdout is not None and shown.stderr is not None
        said = ""
        while "Ctrl-C" not in said:
            line = shown.stdout.readline()
            assert line, shown.stderr.read()
            said += line
        # What it says to type does what it says.
        found = re.search(r"curl -d '(.*)' (\S+)", said)
        assert found is not None
        with urlopen(Request(found[2], found[1].encode()), timeout=30) as answer:
            assert answer.status == 200
        assert said.count("driver: ") == 5
        shown.send_signal(signal.SIGINT)
        assert shown.wait(timeout=30) == 0
        assert shown.stderr.read() == ""
