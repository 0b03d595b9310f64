"""A look at something that may hang, such as a disk on a network that is gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: Seconds that a look may take.
WITHIN: Final = 5.0


class Glance(Generic[T]):
    """A blocking function in a thread of its own, one look at a time.

    Not :func:`asyncio.to_thread`: its threads are few and shared, so one disk that hangs would
    soon have them all, and the end of the program waits for them.

    Args:
        look: what blocks.
        name: of the thread.
        within: seconds that whoever asks waits.
    """

    def __init__(self, look: Callable[[], T], name: str, within: float = WITHIN) -> None:
        self._look = look
        self._name = name
        self._within = within
        self._now: asyncio.Future[T] | None = None

    async def ask(self) -> T:
        """Give what is seen; who asks while a look is under way gets the result of that one.

        Cancelling leaves the thread to its end.

        Raises:
            TimeoutError: there is nothing in time; the look goes on, and no second one beside it.
        """
        loop = asyncio.get_running_loop()
        now = self._now
        if now is None or now.done() or now.get_loop() is not loop:
            now = self._now = loop.create_future()
            # Nobody may be left to ask when it fails.
            now.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            threading.Thread(target=self._run, args=(now,), name=self._name, daemon=True).start()
        async with asyncio.timeout(self._within):
            return await asyncio.shield(now)

    def _run(self, now: asyncio.Future[T]) -> None:
        def end(value: T | None, error: Exception | None) -> None:
            if error is not None:
                now.set_exception(error)
            else:
                now.set_result(value)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - what look() gave

        value, error = None, None
        try:
            value = self._look()
        except Exception as exc:  # noqa: BLE001 - whoever asked gets it
            error = exc
        with suppress(RuntimeError):  # The loop has been closed: nobody wants to know.
            now.get_loop().call_soon_threadsafe(end, value, error)
