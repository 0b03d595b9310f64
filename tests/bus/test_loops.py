from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Generator

import pytest

from spinal.bus.loops import loop_factory, run


@pytest.fixture(autouse=True)
def collector() -> Generator[None]:
    """Leave the collector as it was."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


async def kind() -> str:
    return type(asyncio.get_running_loop()).__module__


def test_programs_run_on_uvloop_where_it_is_installed() -> None:
    pytest.importorskip("uvloop", reason="MISSING: uvloop, of the extra 'speed'")
    assert run(kind()).startswith("uvloop")


def test_programs_run_on_asyncios_loop_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory() is None
    assert run(kind()).startswith("asyncio")


def test_what_a_program_raises_comes_out() -> None:
    async def fail() -> None:
        raise LookupError("it")

    with pytest.raises(LookupError, match="it"):
        run(fail())
