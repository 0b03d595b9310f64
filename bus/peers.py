"""Who is at the other end: what each peer announced, whether it is here, and what waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from spinal.protocols import Advertisement, Hello

if TYPE_CHECKING:
    from .call import Call


class Item(NamedTuple):
    """An event that waits to be sent."""

    written: bytes
    #: The call, if it is an op.
    call: Call | None
    #: Time until which it is said again if it may not have arrived; 0: somebody else sees to that.
    until: float


@dataclass(slots=True)
class Peer:
    """One address that we talk with."""

    address: str
    #: It sent available presence since our stream began, and no unavailable after it.
    present: bool = False
    #: We directed presence at it in this stream, so that it learns when we go.
    introduced: bool = False
    #: We have called it, so it may answer.
    called: bool = False
    #: Number of its present life, if it told us.
    epoch: int | None = None
    #: Bytes of JSON text it reads in one stanza.
    stanza: int = 60 * 1024
    features: Sequence[str] = ()
    #: It takes several ops in one stanza, and several sets of arguments in one op.
    batch: bool = False
    group: bool = False
    #: Our calls to it that have not ended.
    calls: dict[tuple[str, int], Call] = field(
        default_factory=lambda: dict[tuple[str, int], "Call"]()
    )
    #: What leaves in the next stanza.
    outbox: list[Item] = field(default_factory=lambda: list["Item"]())
    flushing: bool = False
    #: Time until which it may keep finals of calls that we have given up.
    owes: float = 0.0
    #: Exchanges whose acknowledgement waits for a stanza to ride on, and when it goes alone.
    acks: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    ack_timer: asyncio.TimerHandle | None = None
    #: Fires when it has been gone for the grace.
    gone: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is lost when it is forgotten."""
        return not (self.present or self.calls or self.outbox or self.acks or self.gone)

    def rest(self) -> None:
        """Stop its timers and say nothing more to it."""
        for timer in (self.gone, self.ack_timer):
            if timer is not None:
                timer.cancel()
        self.gone = self.ack_timer = None
        self.acks.clear()
        self.outbox.clear()

    def learn(self, said: Hello | Advertisement) -> bool:
        """Take over what it announced; true if it has begun a new life since we last heard."""
        reborn = said.epoch is not None and self.epoch is not None and said.epoch != self.epoch
        if said.epoch is not None:
            self.epoch = said.epoch
        self.stanza = said.stanza
        self.features = said.features
        self.batch = "batch" in said.features
        self.group = "group" in said.features
        return reborn
