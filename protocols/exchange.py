"""The life of one call, as a table that both ends live under.

Theory of operation.  An exchange is one attempt of one call, named by the caller's bare address,
its id and the attempt.  Each end keeps its own copy of the state and moves it with everything it
says and hears; the table does not know which end we are, only who spoke.  Our own words that the
table lacks are our mistake (:class:`LocalProtocolError`), the peer's are the peer's
(:class:`RemoteProtocolError`).

Stanzas of the two directions cross each other, stanzas of one direction can overtake each other
(a message and an IQ are not ordered), and everything may come twice, because a sender that is
unsure says it again.  So the table accepts in each state what an honest peer may have said before
it heard the news: a progress after the final, an op that was resent while its final was on the
way.  It refuses what no order of honest stanzas can bring: a final for what was never asked, an
acknowledgement of what never ended, a refusal after the work began.

Honesty asks a little more than the table, which does not know which end we are: an agent in
``closed`` says ``error`` only to an op that was sent again, and an id that is over is remembered
until its deadline, so that it is answered and not run.  The tests walk every situation of two ends,
and show that no row can be left out.

``cancel`` moves nothing.  It is answered by ``cancelled``, and an operation that had been started
still ends with a final.  A cancel for an unknown id does not make an exchange: the agent remembers
the id until that call's deadline and refuses the op, each time that it arrives.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from .errors import LocalProtocolError, RemoteProtocolError


class Speaker(Enum):
    """The two ends of an exchange."""

    CALLER = "caller"
    AGENT = "agent"

    # Members are one of a kind; Enum's own hash is that of the name, and in Python.
    __hash__ = object.__hash__


class State(Enum):
    """Where an exchange is, as one end sees it."""

    NEW = "new"
    ASKED = "asked"
    RUNNING = "running"
    ENDED = "ended"
    CLOSED = "closed"
    REFUSED = "refused"

    __hash__ = object.__hash__

    @property
    def over(self) -> bool:
        """Whether nothing more is to come: the answer was taken, or there is none."""
        return self in (State.CLOSED, State.REFUSED)


_C, _A = Speaker.CALLER, Speaker.AGENT
_LATE = {
    (_C, "op"): State.ENDED,
    (_C, "cancel"): State.ENDED,
    (_A, "accepted"): State.ENDED,
    (_A, "progress"): State.ENDED,
    (_A, "data"): State.ENDED,
    (_A, "log"): State.ENDED,
    (_A, "final"): State.ENDED,
    (_A, "cancelled"): State.ENDED,
}

#: State -> (speaker, type of event) -> next state.
TRANSITIONS: Mapping[State, Mapping[tuple[Speaker, str], State]] = {
    State.NEW: {
        (_C, "op"): State.ASKED,
    },
    State.ASKED: {
        (_C, "op"): State.ASKED,
        (_C, "cancel"): State.ASKED,
        (_A, "accepted"): State.RUNNING,
        (_A, "progress"): State.RUNNING,
        (_A, "data"): State.RUNNING,
        (_A, "log"): State.RUNNING,
        (_A, "final"): State.ENDED,
        (_A, "error"): State.REFUSED,
        (_A, "cancelled"): State.ASKED,
    },
    State.RUNNING: {
        (_C, "op"): State.RUNNING,
        (_C, "cancel"): State.RUNNING,
        (_A, "accepted"): State.RUNNING,
        (_A, "progress"): State.RUNNING,
        (_A, "data"): State.RUNNING,
        (_A, "log"): State.RUNNING,
        (_A, "final"): State.ENDED,
        (_A, "cancelled"): State.RUNNING,
    },
    State.ENDED: {**_LATE, (_C, "ack"): State.CLOSED},
    State.CLOSED: {
        **{key: State.CLOSED for key in _LATE},
        (_C, "ack"): State.CLOSED,
        # A resent op that arrives after the acknowledgement: the answer is no longer kept.
        (_A, "error"): State.CLOSED,
    },
    State.REFUSED: {
        (_C, "op"): State.REFUSED,
        (_C, "cancel"): State.REFUSED,
        (_A, "error"): State.REFUSED,
        (_A, "cancelled"): State.REFUSED,
    },
}


def step(state: State, speaker: Speaker, event: str) -> State | None:
    """Give the next state, or nothing where the table has no row."""
    return TRANSITIONS[state].get((speaker, event))


class Exchange:
    """One end's copy of the state of one exchange."""

    __slots__ = ("role", "state")

    def __init__(self, role: Speaker) -> None:
        self.role = role
        self.state = State.NEW

    def __repr__(self) -> str:
        return f"<Exchange {self.role.value} {self.state.value}>"

    def say(self, event: str) -> None:
        """Move by something that we say.

        Raises:
            LocalProtocolError: the table does not allow it; nothing moved.
        """
        after = TRANSITIONS[self.state].get((self.role, event))
        if after is None:
            raise LocalProtocolError(
                f"a {self.role.value} cannot say '{event}' when the call is {self.state.value}"
            )
        self.state = after

    def hear(self, event: str) -> None:
        """Move by something that the peer said.

        Raises:
            RemoteProtocolError: the table does not allow it; nothing moved.
        """
        peer = _A if self.role is _C else _C
        after = TRANSITIONS[self.state].get((peer, event))
        if after is None:
            raise RemoteProtocolError(
                f"the {peer.value} said '{event}' when the call was {self.state.value}"
            )
        self.state = after
