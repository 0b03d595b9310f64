"""How it is seen that a service is well, on services that really run."""

from __future__ import annotations

from typing import Any

import pytest

from spinal.bus.errors import CallError
from spinal.testing import eventually

from .conftest import Machine

FAST = {"every": "100ms", "within": "1500ms", "timeout": "1s"}


@pytest.mark.parametrize(
    "health",
    [
        None,
        {"tcp": "{port}"},
        {"http": "http://localhost:{port}/anything?x=1"},
        {"run": ["sh", "-c", 'test "$1" -gt 0 && test -d "$2" && test -f README', "-", "{port}", "{data}"]},
    ],
)  # fmt: skip
async def test_a_service_that_is_well_is_seen_to_be(
    machine: Machine, health: dict[str, Any] | None
) -> None:
    found = await machine.call("deploy", **machine.spec("one", health=health))
    assert found["state"] == "running"

    # That of a program may hold before the port is open.
    async def answers() -> bool:
        return await machine.word() == "one"

    await eventually(answers)
    shown = await machine.call("show", service="shop")
    assert shown["health"]["well"]


@pytest.mark.parametrize(
    ("health", "says"),
    [
        ({"tcp": 1}, ":1 takes no connection"),
        ({"http": "http://127.0.0.1:1/"}, "http://127.0.0.1:1/: "),
        ({"run": ["sh", "-c", "echo not yet >&2; exit 4"]}, "ends with code 4: not yet"),
        ({"run": ["no-such-check"]}, "ends with code 127: cannot run 'no-such-check'"),
        ({"run": ["sleep", "100"]}, "no answer within 1s|ran longer than 1s"),
    ],
)
async def test_one_that_is_not_is_told_with_the_reason(
    machine: Machine, health: dict[str, Any], says: str
) -> None:
    with pytest.raises(CallError, match=f"it was not well within 1.5s: .*({says})"):
        await machine.call("deploy", **machine.spec("one", health={**health, **FAST}))


async def test_one_without_a_port_and_a_check_must_run_for_a_second(machine: Machine) -> None:
    bare = {"port": None, "health": None}
    with pytest.raises(CallError, match="it ended at once: exit code 0; it said nothing"):
        await machine.call("deploy", **machine.spec("one", start=["sleep", "0.3"], **bare))
    found = await machine.call("deploy", **machine.spec("one", start=["sleep", "99"], **bare))
    assert found["state"] == "running" and found["port"] is None
