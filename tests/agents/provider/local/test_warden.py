from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.processes import gone

from spinal.agents.provider.local import warden
from spinal.testing import eventually


@pytest.fixture
def orders(tmp_path: Path) -> dict[str, Any]:
    return {
        "steps": [],
        "env": {"PATH": os.environ["PATH"]},
        "cwd": str(tmp_path),
        "limits": {},
        "joins": [],
        "delay": 0,
        "grace": 0.2,
        "asked": [0, None],
        "console": str(tmp_path / "console"),
        "most": 10_000,
        "ended": str(tmp_path / "ended"),
    }


def start(text: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", warden.__file__], stdin=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    process.stdin.write(text.encode())
    process.stdin.close()
    return process


def run(orders: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Let a machine come to its end; give how, and what it wrote."""
    assert start(json.dumps(orders) + "\n").wait(10) == 0
    note = json.loads(Path(orders["ended"]).read_text())
    return note, Path(orders["console"]).read_text()


@pytest.mark.parametrize("much", [0.0, 0.5, 0.99])
def test_without_complete_orders_it_does_nothing(
    orders: dict[str, Any], tmp_path: Path, much: float
) -> None:
    text = json.dumps({**orders, "steps": [["touch", "done"]]}) + "\n"

    assert start(text[: int(len(text) * much)]).wait(10) == 0

    assert os.listdir(tmp_path) == []


def test_steps_are_run_in_turn(orders: dict[str, Any]) -> None:
    orders["steps"] = [["echo", "one"], ["echo", "two"], ["sh", "-c", "echo three; exit 4"]]

    assert run(orders) == ({"code": 4, "step": 2, "asked": False}, "one\ntwo\nthree\n")


@pytest.mark.parametrize(("argv", "code"), [(["false"], 1), (["/nowhere"], 127)])
def test_a_step_that_fails_is_the_last(orders: dict[str, Any], argv: list[str], code: int) -> None:
    orders["steps"] = [argv, ["echo", "never"]]

    note, said = run(orders)

    assert note == {"code": code, "step": 0, "asked": False}
    assert "never" not in said
    assert "/nowhere" in said or code == 1


def test_the_dead_that_it_was_given_are_buried(orders: dict[str, Any]) -> None:
    # Each of them loses its parent, and would stay where the first process buries nobody.
    orders["steps"] = [["sh", "-c", "for n in 1 2 3 4 5; do (setsid sleep 1000 & echo $!); done"]]

    _, said = run(orders)

    assert len(said.split()) == 5
    assert not [pid for pid in said.split() if psutil.pid_exists(int(pid))]


async def test_its_child_dies_with_it(orders: dict[str, Any]) -> None:
    orders["steps"] = [["sleep", "1000"]]
    process = start(json.dumps(orders) + "\n")
    children = await eventually(lambda: psutil.Process(process.pid).children())
    await eventually(lambda: children[0].name() == "sleep")

    process.send_signal(signal.SIGKILL)
    process.wait(10)

    psutil.wait_procs(children, timeout=5)
    assert all(map(gone, children))


async def test_other_signals_do_not_end_it(orders: dict[str, Any]) -> None:
    orders["steps"] = [["sleep", "1000"]]
    process = start(json.dumps(orders) + "\n")
    await eventually(lambda: psutil.Process(process.pid).children())

    for number in (signal.SIGHUP, signal.SIGINT):
        process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)

    process.terminate()
    assert process.wait(10) == 0
    assert json.loads(Path(orders["ended"]).read_text())["asked"]


def test_a_flood_leaves_no_more_than_is_allowed_and_its_end(
    orders: dict[str, Any], tmp_path: Path
) -> None:
    orders["steps"] = [["seq", "1", "300000"]]

    _, said = run(orders)

    assert said.endswith("\n299999\n300000\n")
    assert sum(path.stat().st_size for path in tmp_path.glob("console*")) <= 10_000
