"""Who of the machines may work: one that is not ready gets nothing, and one that is over has no account."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final

import structlog

from spinal.protocols import SpinalError
from spinal.protocols.retry import doubled

from ..store.contract import LifeOver
from .door import Door
from .machine import Machine, State

log = structlog.get_logger()

#: Times that a machine's account is tried to be taken away, the longest pause between two of them in
#: seconds, and milliseconds for which that is begun again by a dispatcher that does not know whether
#: it was.
DISMISSALS: Final = 12
MAX_PAUSE: Final = 600.0
DOUBTFUL: Final = 3_600_000

#: Why a machine's agents get no work, by its state.
_HOLDS: Final[Mapping[State, str]] = {
    State.ORDERED: "it joins",
    State.UNKNOWN: "it joins",
    State.REFUSED: "it is returned",
    State.BOOTING: "it joins",
    State.TESTING: "its self-test is not passed",
    State.DRAINING: "it is returned",
    State.LEAVING: "it is returned",
}


class Gate:
    """See the module.

    Args:
        door: takes accounts away.
        domain: of the accounts.
        spawn: starts a task of ours.
        hold: holds back the agents of an account, and says why.
        release: gives them work again.
    """

    def __init__(
        self,
        door: Door,
        domain: str,
        spawn: Callable[[str, Callable[[str], Coroutine[Any, Any, None]], str], None],
        *,
        hold: Callable[[str, str], None],
        release: Callable[[str], None],
    ) -> None:
        self._door = door
        self._domain = domain
        self._spawn = spawn
        self._hold = hold
        self._release = release
        #: The machines that are held back, and why.
        self._held: dict[str, str] = {}
        #: Machines that are over, and whose account is taken away.
        self._dismissed: set[str] = set()

    def account(self, name: str) -> str:
        """Give the account of a machine."""
        return f"{name}@{self._domain}"

    def watch(self, machine: Machine) -> None:
        """Keep work from a machine that is not ready, or is to go."""
        why = _HOLDS.get(machine.state, "")
        if not why:
            self.open(machine.name)
        elif self._held.get(machine.name, "") != why:
            self._held[machine.name] = why
            self._hold(self.account(machine.name), why)

    def open(self, name: str) -> None:
        """Keep nothing from a machine any more."""
        if self._held.pop(name, None) is not None:
            self._release(self.account(name))

    def close(self, name: str) -> None:
        """Take away the account of a machine that is over."""
        self.open(name)
        self._spawn("dismissing", self.dismiss, name)

    def tidy(self, ledger: Iterable[Machine], now: int) -> None:
        """Take away the accounts of those of whom nobody knows whether it was done."""
        recent = {one.name for one in ledger if one.since + DOUBTFUL > now}
        for name in recent - self._dismissed:
            self._dismissed.add(name)
            self._spawn("dismissing", self.dismiss, name)
        self._dismissed &= recent

    async def dismiss(self, name: str) -> None:
        """Take a machine's account away, however often that has to be tried: it knows the password."""
        for tries in range(DISMISSALS):
            try:
                await self._door.dismiss(name)
            except LifeOver:
                raise
            except (SpinalError, OSError) as exc:
                log.warning("machine_not_dismissed", machine=name, error=str(exc))
                await asyncio.sleep(doubled(1.0, tries, MAX_PAUSE))
            else:
                self._dismissed.add(name)
                return
