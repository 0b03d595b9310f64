"""What a service is, and the table of what is done about one.

A service is something that shall run on one machine, whichever it is.  Each placement is a job of
``/deployment/deploy`` with a generation of its own, one more than the last; so an agent that comes
back can be told to end whatever is older, and what comes late cannot undo what came later.  Agents
remember the highest one, also of what they ended; so the first generation is the time at which the
service came to be, in seconds, and a service that is made again under an old name is above the old.

Pure: :func:`decide` says what to do, the functions below it give the service as it is when that is
done, and nothing here does it.  Times of services are milliseconds since 1970 UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from spinal.protocols import Json, Problem
from spinal.protocols.retry import doubled

from ..jobs.job import Job, JobState

#: Seconds that an agent which has left may stay away and keeps its services.
MOVE_AFTER: Final = 8.0

#: Seconds without a word after which a silent agent loses them.  That is later than it takes to
#: find out that it is our server which passes nothing on (12 s until suspicion, a second until
#: somebody looks, 2 s for an echo).
SILENT: Final = 16.0

#: Seconds that agents have to come back after our start, or after our stream was gone.
RETURN: Final = 30.0

#: Seconds that one placement may take; a job that nobody can take waits as long.
ALLOWED: Final = 900.0

#: Seconds after which a job waits for an agent in vain that must not have it for one that may.
IN_VAIN: Final = 60.0

#: The longest pause before a placement that failed is tried again, in seconds; the first is 1.
MAX_PAUSE: Final = 60.0

#: Placements that are remembered, and agents that are to be told.
MAX_HISTORY: Final = 10
MAX_LEFT: Final = 100

#: Reason of a problem when the job itself is not kept any more.
_NO_JOB: Final = Problem("unknown-job", "its job is not kept any more")


class State(Enum):
    """Where a service is."""

    #: A job is under way that places it.  Where it ran before, it may still run.
    PLACING = "placing"
    #: An agent has it.
    PLACED = "placed"
    #: The last placement failed, and another one follows after a pause.
    UNPLACED = "unplaced"
    #: It is to end everywhere.
    REMOVING = "removing"


class Act(Enum):
    """What to do about a service."""

    NOTHING = "nothing"
    #: Its job is done: the agent of the job has it.
    SETTLE = "settle"
    #: Its job ended without success.
    FAIL = "fail"
    #: Place it anew: the agent that has it, or was to have it, is lost.
    MOVE = "move"
    #: Place it anew: that failed, or nobody took it.
    RETRY = "retry"
    #: See whether the agent, which was restarted, still has it.
    CHECK = "check"
    #: Cancel its job.
    STOP = "stop"
    #: Note where its last job has been.
    CLOSE = "close"
    #: Forget it: nobody runs it any more.
    DROP = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One time that it was placed, or tried to be."""

    generation: int
    job: str
    began: int
    #: In words: who asked for it, or what happened.
    why: str
    agent: str | None = None
    ended: int | None = None
    #: What went wrong; empty if nothing did.
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked of a service at a time."""

    arguments: Mapping[str, Json]
    want: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One service.  Every change makes another one, which is saved in place of the last."""

    name: str
    #: Bare address of whoever deployed it last.
    caller: str
    #: Arguments of ``/deployment/deploy`` but for ``service`` and ``generation``.
    arguments: Mapping[str, Json] = field(default_factory=dict[str, Json])
    #: Which machines come into question: ``place``, ``tags``, ``policy``.
    want: Mapping[str, Json] = field(default_factory=dict[str, Json])
    created: int
    #: Counts how often it was saved; 0 if it never was.
    version: int = 0
    #: That of the newest placement; see the module.
    generation: int = 0
    state: State = State.PLACING
    #: Since when it is in this state.
    since: int
    #: Full address of the agent that has it, the generation it has, and what it said of it.
    agent: str | None = None
    running: int | None = None
    result: Json = None
    #: What was asked for when it was placed last, and before something else was.
    ran: Asked | None = None
    ran_before: Asked | None = None
    #: The life of that agent in which it was known to have it.
    epoch: int | None = None
    #: Agents where it may still run, each with the generation below which it is to end there.
    left: Mapping[str, int] = field(default_factory=dict[str, int])
    #: Failures in a row, and when it is tried again.
    failures: int = 0
    due: int = 0
    #: Newest last.
    history: Sequence[Placement] = ()

    @property
    def last(self) -> Placement | None:
        """The newest placement."""
        return self.history[-1] if self.history else None

    @property
    def job(self) -> str | None:
        """Id of the job that places it, or did last."""
        return None if self.last is None else self.last.job

    @property
    def earlier(self) -> Asked | None:
        """What it ran with before it was changed, whether the change has come to something or not."""
        asked = Asked(arguments=self.arguments, want=self.want)
        return self.ran_before if self.ran == asked else self.ran

    @property
    def failed_at(self) -> frozenset[str]:
        """Agents where it failed since it was last placed."""
        recent = self.history[-self.failures :] if self.failures else ()
        return frozenset(one.agent for one in recent if one.agent and one.problem)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a decision is made by."""

    now: int
    #: The job of its newest placement; none if it is not kept any more.
    job: Job | None = None
    #: Agents that nobody waits for any more.
    lost: frozenset[str] = frozenset()
    #: Agents that can be called.
    here: frozenset[str] = frozenset()
    #: The life of the agent that has it, if that can be asked.
    epoch: int | None = None


def lost_at(heard: float | None, left: float | None, since: float) -> float:
    """Give the time from which nobody waits for an agent that is not there.

    Args:
        heard: when it was last heard, if it ever was.
        left: when it went offline after that, if it did.
        since: when our stream came up; who was not heard since then has time to come back.
    """
    if heard is None or heard < since:
        return since + RETURN
    return heard + SILENT if left is None else left + MOVE_AFTER


# -- the decision


def _done(service: Service, seen: Seen) -> bool:
    return seen.job is not None and seen.job.state is JobState.DONE


def _over(service: Service, seen: Seen) -> bool:
    return seen.job is None or seen.job.final


def _target_lost(service: Service, seen: Seen) -> bool:
    """One that is for whichever agent goes on by itself when that is lost; one for this one waits."""
    return seen.job is not None and seen.job.want.get("to") in seen.lost


def _in_vain(service: Service, seen: Seen) -> bool:
    """What it avoids may be all there is."""
    job, last = seen.job, service.last
    if job is None or last is None or job.state is not JobState.QUEUED or not job.want.get("avoid"):
        return False
    return seen.now - last.began >= IN_VAIN * 1000


def _agent_lost(service: Service, seen: Seen) -> bool:
    return service.agent in seen.lost


def _restarted(service: Service, seen: Seen) -> bool:
    return seen.epoch is not None and seen.epoch != service.epoch


def _due(service: Service, seen: Seen) -> bool:
    return service.due <= seen.now


def _under_way(service: Service, seen: Seen) -> bool:
    return _open(service, seen) and seen.job is not None and not seen.job.final


def _open(service: Service, seen: Seen) -> bool:
    return service.last is not None and service.last.ended is None


def _nowhere(service: Service, seen: Seen) -> bool:
    return not service.left


#: State -> what may be, and what is done then; the first that is so counts.
DECISIONS: Final[Mapping[State, Sequence[tuple[Callable[[Service, Seen], bool], Act]]]] = {
    State.PLACING: (
        (_done, Act.SETTLE),
        (_over, Act.FAIL),
        (_target_lost, Act.MOVE),
        (_in_vain, Act.RETRY),
    ),
    State.PLACED: ((_agent_lost, Act.MOVE), (_restarted, Act.CHECK)),
    State.UNPLACED: ((_due, Act.RETRY),),
    State.REMOVING: ((_under_way, Act.STOP), (_open, Act.CLOSE), (_nowhere, Act.DROP)),
}


def decide(service: Service, seen: Seen) -> Act:
    """Say what to do about a service now."""
    for holds, act in DECISIONS[service.state]:
        if holds(service, seen):
            return act
    return Act.NOTHING


def to_tell(service: Service, seen: Seen) -> Mapping[str, int]:
    """Give the agents that are to end it, each with the generation below which it ends.

    Only while another one has it, or nobody shall: what is old is better than nothing.
    """
    if service.state is State.PLACED or (
        service.state is State.REMOVING and not _open(service, seen)
    ):
        return {agent: below for agent, below in service.left.items() if agent in seen.here}
    return {}


# -- what becomes of it


def new(name: str, caller: str, now: int) -> Service:
    """Give a service that is not placed yet."""
    return Service(name=name, caller=caller, created=now, since=now, generation=now // 1000)


def placed_anew(service: Service, job: str, now: int, why: str, last: Job | None) -> Service:
    """Give a service that another job places.

    Args:
        service: as it is.
        job: id of the new job.
        now: the time.
        why: in words.
        last: the job of its last placement, which is given up if it is under way.
    """
    closed = closed_at(service, last, now, f"given up: {why}")
    generation = service.generation + 1
    placement = Placement(generation=generation, job=job, began=now, why=why)
    return replace(
        closed,
        generation=generation,
        state=State.PLACING,
        since=now,
        history=(*closed.history, placement)[-MAX_HISTORY:],
    )


def asked_for(
    service: Service, caller: str, arguments: Mapping[str, Json], want: Mapping[str, Json]
) -> Service:
    """Give a service of which something else is asked now."""
    return replace(service, caller=caller, arguments=arguments, want=want, failures=0, due=0)


def settled(service: Service, job: Job, now: int, result: Json) -> Service:
    """Give a service whose job is done."""
    closed = closed_at(service, job, now)
    asked = Asked(arguments=service.arguments, want=service.want)
    left = dict(closed.left)
    if service.agent is not None:
        left.setdefault(service.agent, service.generation)
    # What it has now has taken the place of what it had.
    left.pop(job.agent or "", None)
    return replace(
        closed,
        state=State.PLACED,
        since=now,
        agent=job.agent,
        running=service.generation,
        result=result,
        ran=asked,
        ran_before=service.ran_before if service.ran == asked else service.ran,
        epoch=next((one.epoch for one in reversed(job.tries) if one.agent == job.agent), None),
        left=_bounded(left),
        failures=0,
        due=0,
    )


def confirmed(service: Service, epoch: int, result: Json) -> Service:
    """Give a service that its agent still has in another life."""
    return replace(service, epoch=epoch, result=result)


def failed(service: Service, job: Job | None, now: int) -> Service:
    """Give a service whose job ended without success."""
    problem = _NO_JOB if job is None else job.problem or Problem("cancelled")
    closed = closed_at(service, job, now, problem.text or problem.reason)
    pause = doubled(1.0, service.failures, MAX_PAUSE)
    return replace(
        closed,
        state=State.UNPLACED,
        since=now,
        failures=service.failures + 1,
        due=now + int(pause * 1000),
    )


def removed(service: Service, now: int) -> Service:
    """Give a service that is to end everywhere."""
    left = dict(service.left)
    if service.agent is not None:
        left[service.agent] = service.generation + 1
    return replace(
        service,
        state=State.REMOVING,
        since=now,
        agent=None,
        running=None,
        result=None,
        epoch=None,
        left=_bounded(left),
    )


def told(service: Service, agent: str, below: int) -> Service:
    """Give a service of which an agent said that it has nothing below a generation any more."""
    left = {one: least for one, least in service.left.items() if one != agent or least > below}
    return replace(service, left=left)


def forgotten(service: Service, left: Mapping[str, int]) -> Service:
    """Give a service that is to end nowhere but there."""
    return replace(service, left=left)


def closed_at(service: Service, job: Job | None, now: int, problem: str = "") -> Service:
    """Give a service whose last placement is over, if it was not: wherever that was, it may run.

    Args:
        service: as it is.
        job: the job of that placement, if it is kept.
        now: the time.
        problem: why it is over, unless it went well.
    """
    last = service.last
    if last is None or last.ended is not None:
        return service
    reached = set[str]() if job is None else {one.agent for one in job.tries}
    if job is not None and (target := job.want.get("to")):
        reached.add(str(target))
    agent = None if job is None else job.agent
    over = replace(last, agent=agent, ended=now, problem=problem)
    return replace(
        service,
        left=_bounded({**service.left, **dict.fromkeys(sorted(reached), last.generation + 1)}),
        history=(*service.history[:-1], over),
    )


def _bounded(left: Mapping[str, int]) -> dict[str, int]:
    """Keep those who have been on the list for the shortest time."""
    return dict(list(left.items())[-MAX_LEFT:])
