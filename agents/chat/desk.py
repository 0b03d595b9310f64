"""Asks dispatchers for people: one after the other, until one answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from spinal.bus.call import Call
from spinal.bus.errors import CallError
from spinal.bus.line import ANSWER, ELSEWHERE, NOT_SAID
from spinal.bus.reconnect import Backoff
from spinal.bus.session import Session
from spinal.protocols import Json, Problem

#: Seconds for which dispatchers are tried when none answers, if nobody says otherwise.
PATIENCE: Final = 10.0

#: Bounds of the pause in seconds before the dispatchers are asked again.
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0


class Desk:
    """The dispatchers as a session knows them, which they refresh themselves.

    Args:
        session: of an account with the role gateway.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        #: Whom to ask first.
        self._preferred = ""

    def begin(self, op: str, window: int) -> Call:
        """Ask one dispatcher for a stream that goes on, for an hour at most.

        Raises:
            CallError: none is known.
        """
        return self._session.call(
            self._dispatchers()[0],
            op,
            window=window,
            timeout=3600.0,
            patience=ELSEWHERE,
        )

    async def ask(
        self,
        op: str,
        args: Mapping[str, Json],
        caller: str | None = None,
        *,
        wait: float = 0.0,
        patience: float = PATIENCE,
    ) -> Any:
        """Ask for one of the dispatchers' own operations.

        It is asked of several, and again, so it must be one that may be asked twice.

        Args:
            op: exact path.
            args: JSON object.
            caller: on whose behalf; on our own if it is none.
            wait: seconds for which the dispatcher itself waits.
            patience: seconds after which nobody is asked any more.

        Raises:
            CallError: the answer is a problem, or none came.
        """
        session = self._session
        until = session.now + max(patience, wait + 1.0)
        backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while True:
            found: CallError | None = None
            for dispatcher in self._dispatchers():
                left = max(0.05, min(wait + ANSWER, until - session.now))
                call = session.call(
                    dispatcher, op, args, caller=caller, timeout=left, patience=ELSEWHERE
                )
                try:
                    answer = await call.result()
                except CallError as exc:
                    if exc.reason not in NOT_SAID:
                        raise
                    found = exc
                else:
                    self._preferred = dispatcher
                    return answer
            assert found is not None
            pause = max(backoff.pause(), found.problem.after or 0.0)
            if session.now + pause >= until:
                raise found
            await asyncio.sleep(pause)

    def passed_over(self) -> None:
        """Ask another one first, because the first one did not answer."""
        self._preferred = self._dispatchers()[-1]

    def _dispatchers(self) -> list[str]:
        """Give whom to ask, the first one first: who answered last, then who is there."""
        peers = self._session.peers

        def rank(address: str) -> tuple[bool, bool, str]:
            peer = peers.get(address)
            return address != self._preferred, peer is None or not peer.present, address

        known = sorted(self._session.dispatchers, key=rank)
        if not known:
            raise CallError.of(Problem("no-agent", "no dispatcher is known"))
        return known
