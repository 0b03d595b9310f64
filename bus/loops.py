"""Which event loop programs of ours run on."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Give what makes uvloop's loops if it is installed: they save a third of the CPU.

    Without it (extra ``speed``) asyncio's own serve, and behave the same.
    """
    try:
        return importlib.import_module("uvloop").new_event_loop  # type: ignore[no-any-return]
    except ImportError:
        return None


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a program to its end, as :func:`asyncio.run` does."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main)
