"""What the dispatcher tells about agents and operations: rows, and pages of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from spinal.bus.jsontext import dumps
from spinal.protocols import EFFECTS, Json, Operation
from spinal.protocols.values import escape

from .agent import KnownAgent
from .registry import Registry
from .resolver import Resolution

#: Bytes of JSON text that the rows of one page may take; a final may take 32 KiB.
ROOM = 28 * 1024

#: Most rows of a page.
MAX_ROWS = 1000

#: Most bytes of operation names in one agent's row.
MAX_OPS = 8 * 1024

T = TypeVar("T")


def fitting(rows: Iterable[Mapping[str, Json]], room: int = ROOM) -> list[Mapping[str, Json]]:
    """Give as many rows as fit into a final, or into so many bytes; the first one in any case."""
    fits: list[Mapping[str, Json]] = []
    for one in rows:
        room -= len(escape(dumps(one))) + 1
        if room < 0 and fits:
            break
        fits.append(one)
    return fits


def page(
    items: Sequence[T], offset: int, limit: int, row: Callable[[T], Mapping[str, Json]]
) -> dict[str, Json]:
    """Give the rows of the items from ``offset`` on, as many as fit, and whether there are more.

    At least one row is given, so that a reader who asks on gets to the end.
    """
    rows = fitting(map(row, items[offset : offset + min(limit, MAX_ROWS)]))
    return {
        "items": rows,
        "more": offset + len(rows) < len(items) and bool(rows),
        "total": len(items),
    }


def agent_row(agent: KnownAgent, now: float) -> dict[str, Json]:
    """Describe an agent."""
    said = agent.advertisement
    state = agent.state(now).value
    ops, left_out = _fitting(sorted(agent.operations))
    row: dict[str, Json] = {
        "agent": agent.address,
        "state": said.state if state == "available" else state,
        "slots": agent.slots,
        "busy": agent.busy,
        "load": said.load,
        "cost": said.cost,
        "ops": ops,
        "place": said.place,
        "tags": list(said.tags),
        "epoch": agent.epoch,
        "seen": round(now - agent.last_seen, 3),
    }
    if agent.held:
        row["held"] = agent.held
    if left_out:
        row["ops_left_out"] = left_out
    return row


def _fitting(ops: list[str]) -> tuple[list[str], int]:
    room = MAX_OPS
    for count, op in enumerate(ops):
        room -= len(op.encode()) + 3
        if room < 0:
            return ops[:count], len(ops) - count
    return ops, 0


def op_row(registry: Registry, op: str) -> dict[str, Json]:
    """Describe an operation, by the description that has been known longest.

    Its effects are the gravest that any description tells, because any agent may get it.  Schemas
    that are too large for a page are left out.
    """
    offers = registry.offers(op)
    operation: Operation = offers[0]
    row: dict[str, Json] = {
        "op": op,
        **operation.to_json(),
        "effects": max((each.effects for each in offers), key=EFFECTS.index),
        "agents": registry.count(op),
    }
    if len(escape(dumps(row))) > ROOM:
        row |= {"args": {}, "result": {}, "left_out": ["args", "result"]}
    return row


def resolution_page(resolution: Resolution, offset: int, limit: int) -> dict[str, Json]:
    """Give who could do it and who cannot, and why, counted through both lists."""
    rows: list[tuple[str, dict[str, Any]]] = [
        ("candidates", {"agent": one.agent.address, "reasons": list(one.reasons)})
        for one in resolution.candidates
    ]
    rows += [
        ("rejected", {"agent": one.agent.address, "reason": one.reason, "later": one.later})
        for one in resolution.rejected
    ]
    found = page(rows, offset, limit, lambda row: row[1])
    shown: Iterable[tuple[str, dict[str, Any]]] = rows[offset : offset + len(found["items"])]
    answer: dict[str, Json] = {"candidates": [], "rejected": []}
    for kind, row in shown:
        answer[kind].append(row)
    return {
        **answer,
        "more": found["more"],
        "total": found["total"],
        "counts": dict(resolution.counts()),
    }
