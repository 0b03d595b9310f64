"""How a pool's machines come onto the bus: what each of them is handed, and what it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from spinal.bus.errors import CallError
from spinal.protocols import Problem, SpinalError

from ..joining import ticket
from ..joining.joining import Joining
from .machine import Machine
from .spec import PoolSpec

#: Operations that the machine agent offers are below this.
OF_MACHINE: Final = "/machine/"


class Door(Protocol):
    """How machines come onto the bus."""

    def agents(self, spec: PoolSpec) -> Sequence[str]:
        """Give the resources of the agents that run on each machine of a pool."""
        ...

    async def invite(self, machine: Machine, spec: PoolSpec) -> str:
        """Make a ticket for a machine, and give the script that it boots with.

        Raises:
            CallError: machines cannot join here; the text says why.
            StoreError, OSError: the same, for now.
        """
        ...

    async def dismiss(self, name: str) -> None:
        """Take a machine's account and tickets away; nothing for one that has none."""
        ...


class HomeDoor:
    """The desk of this home, where machines show their tickets."""

    def __init__(self, joining: Joining) -> None:
        self._joining = joining

    def agents(self, spec: PoolSpec) -> Sequence[str]:
        """See :meth:`Door.agents`."""
        return [ticket.resource(name) for name in running(spec)]

    async def invite(self, machine: Machine, spec: PoolSpec) -> str:
        """See :meth:`Door.invite`."""
        try:
            made = await self._joining.make(
                machine.name,
                files=spec.life.agents,
                packages=spec.life.packages,
                run=running(spec),
                place={
                    "pool": f"/{spec.pool}",
                    "vendor": f"/{machine.vendor}",
                    "region": f"/{_part(machine.region)}",
                },
                cost=machine.hourly,
                expires=spec.life.join,
            )
            return await self._joining.script(made)
        except SpinalError as exc:
            # As it is where the home cannot be read, or a name cannot be one of a place.
            raise CallError.of(Problem("refused", str(exc))) from exc

    async def dismiss(self, name: str) -> None:
        """See :meth:`Door.dismiss`."""
        await self._joining.dismiss(name)


def _part(region: str) -> str:
    """Give a region as a part of a path: some vendors write them with blanks and brackets."""
    return "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in region)


def running(spec: PoolSpec) -> tuple[str, ...]:
    """Give what a pool's machines run: its files, and the machine agent where something needs it."""
    files = tuple(spec.life.agents)
    tested = any(op.startswith(OF_MACHINE) for op in spec.life.self_test)
    return (*files, ticket.MACHINE) if tested or not files else files
