"""Calls to a vendor from the event loop: threads, each with an adapter of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar
from weakref import WeakSet

from spinal.agents.errors import AgentError

from . import wire
from .fault import Fault, Late, classify
from .settings import Account
from .vendors.vendor import Vendor

T = TypeVar("T")

#: Calls to one vendor at once.
THREADS: Final = 8

#: Requests that one call may make one after the other, for the time that is left to it when its
#: caller has gone: those of a long list's pages, at most.
PAGES: Final = 10


class Failed(AgentError):
    """A vendor did not do it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


class Desk:
    """See the module.

    Args:
        account: whose vendor is called.
        threads: how many calls at once.
    """

    def __init__(self, account: Account, threads: int = THREADS) -> None:
        wire.install()
        self.account = account
        self._pool = ThreadPoolExecutor(threads, f"vendor-{account.name}")
        self._own = threading.local()
        #: Of each thread, the connections that it has made.
        self._wires: list[WeakSet[wire.Wire]] = []
        #: Counts up when all adapters are to be made anew.
        self._series = 0

    async def call(
        self, work: Callable[[Vendor], T], within: float | None = None, least: float = 0.0
    ) -> T:
        """Do something with the vendor in a thread.

        Cancelled, it goes on in its thread, until the vendor has answered or its time is over.

        Args:
            work: gets this thread's adapter.
            within: seconds after which no request of it waits any longer.
            least: seconds that must be left when a thread is free for it.

        Raises:
            Failed: the vendor did not do it; with what that means.
        """
        if within is None:
            within = PAGES * self.account.timeout
        until = time.monotonic() + within
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, self._do, work, until, least)
        # Whoever waits may be gone; then nobody else takes what it ends with.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await future

    def _do(self, work: Callable[[Vendor], T], until: float, least: float) -> T:
        wire.begin(self.account.timeout, until)
        try:
            if until - time.monotonic() < least:
                raise Late(f"not begun: less than {least:g} s were left for the vendor's answer")
            return work(self._vendor())
        except Exception as exc:
            fault = classify(exc, wire.last(), self._hidden())
            if fault.kind == "auth":
                # The secret may be another one by now.
                self._series += 1
            raise Failed(fault) from exc

    def _vendor(self) -> Vendor:
        series, vendor = getattr(self._own, "vendor", (None, None))
        if vendor is None:
            self._wires.append(wire.opened())
        if vendor is None or series != self._series:
            _shut(wire.opened())
            series, vendor = self._series, self.account.form.make(self.account)
            self._own.vendor = series, vendor
        return vendor

    def _hidden(self) -> list[str]:
        found: list[str] = []
        for _, secret in self.account.secrets():
            try:
                found.append(secret.read())
            except AgentError:
                continue  # Not there, so it cannot be in anybody's words.
        return found

    def close(self) -> None:
        """Take no more calls; those that wait are dropped, those that run end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for wires in self._wires:
            _shut(wires)


def _shut(wires: WeakSet[wire.Wire]) -> None:
    for one in list(wires):
        one.shut()
