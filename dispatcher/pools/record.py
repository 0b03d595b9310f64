"""Pools and machines as records of the store, and back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final, cast

from spinal.protocols import Json

from ..store.contract import Record
from .document import of_json, to_json
from .machine import Machine, State
from .pool import Event, Phase, Pool
from .scaling import Memory

#: What records are called: of pools; of machines that may exist; of those that do not any more,
#: which are kept for the bill.
POOL: Final = "pool"
MACHINE: Final = "machine"
LEDGER: Final = "ledger"

_POOL: Final = [one.name for one in fields(Pool) if one.name != "version"]
_MACHINE: Final = [one.name for one in fields(Machine) if one.name not in ("name", "version")]


def of_pool(pool: Pool) -> Record:
    """Take down a pool."""
    body: dict[str, Any] = {name: getattr(pool, name) for name in _POOL}
    body["spec"] = to_json(pool.spec)
    body["phase"] = pool.phase.value
    body["memory"] = pool.memory.row()
    body["events"] = [[one.at, one.what, one.about, one.said] for one in pool.events]
    return Record(POOL, pool.name, pool.version, body)


def pool(record: Record) -> Pool:
    """Read a pool."""
    body = _members(record)
    body["spec"] = of_json(body["spec"])
    body["phase"] = Phase(body["phase"])
    body["memory"] = Memory.of(body["memory"])
    body["events"] = tuple(
        Event(at=at, what=what, about=about, said=said) for at, what, about, said in body["events"]
    )
    return Pool(version=record.version, **body)


def of_machine(machine: Machine) -> Record:
    """Take down a machine; one that is over goes into the ledger."""
    body: dict[str, Json] = {name: getattr(machine, name) for name in _MACHINE}
    body["state"] = machine.state.value
    return Record(LEDGER if machine.state.final else MACHINE, machine.name, machine.version, body)


def machine(record: Record) -> Machine:
    """Read a machine."""
    body = _members(record)
    body["state"] = State(body["state"])
    return Machine(name=record.name, version=record.version, **body)


def _members(record: Record) -> dict[str, Any]:
    return dict(cast("dict[str, Any]", record.body))
