"""Who is at the other end: what each peer announced, whether it is here, and what waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spinal.protocols import Ack, Advertisement, Hello

if TYPE_CHECKING:
    from .call import Call


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
    #: Events that leave in the next stanza, written; with the call where one is an op.
    outbox: list[tuple[bytes, Call | None]] = field(
        default_factory=lambda: list[tuple[bytes, "Call | None"]]()
    )
    flushing: bool = False
    #: Acknowledgements that wait for a stanza to ride on.
    acks: list[Ack] = field(default_factory=list[Ack])
    #: Fires when it has been gone for the grace.
    gone: asyncio.TimerHandle | None = None

    def learn(self, said: Hello | Advertisement) -> bool:
        """Take over what it announced; true if it has begun a new life since we last heard."""
        reborn = said.epoch is not None and self.epoch is not None and said.epoch != self.epoch
        if said.epoch is not None:
            self.epoch = said.epoch
        self.stanza = said.stanza
        self.features = said.features
        return reborn
