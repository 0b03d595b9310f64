"""Why a job went where it went, what became of it there, and what it waits for: in plain sentences.

Reads what the job remembers (:class:`~.job.Try`) and what it is told of the present; decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from spinal.agents.errors import one_line
from spinal.protocols import duration

from .job import Job, JobState, Try
from .retries import UNCERTAIN, RetryPolicy

#: Longest text of a problem that is repeated, in characters.
MAX_TEXT: Final = 300

#: Runners-up, and jobs before, that are named; more are counted.
NAMED: Final = 3

#: Policy -> why the first one was the first.
_FIRST: Final[Mapping[str, str]] = {
    "least-loaded": "least loaded",
    "cheapest": "cheapest",
    "round-robin": "next in turn",
    "random": "drawn at random",
    "sticky": "the one that such jobs stick to",
    "all": "one of all",
    "any-first": "least loaded",
}

#: Rule of the resolver -> what so many agents are that were passed over.
PASSED: Final[Mapping[str, str]] = {
    "description": "not described yet",
    "operation": "without the operation",
    "target": "not the one that was asked for",
    "unable": "unable to do it",
    "place": "at another place",
    "tags": "without a tag",
    "gone": "offline",
    "suspect": "silent",
    "state": "taking no work",
    "busy": "busy",
    "full": "just refused as busy",
    "sticky": "not the one that it sticks to",
}

#: What is asked of the jobs before -> in words.
_WHEN: Final[Mapping[str, str]] = {
    "done": "all of them to be done",
    "any": "one of them to be done",
    "ended": "all of them to end",
}

#: First word of an origin -> what the job is of the one that follows.
_ORIGINS: Final[Mapping[str, str]] = {
    "retry": "a retry of job",
    "schedule": "fired by schedule",
    "callback": "told of the end of job",
    "service": "a placement of service",
}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def lines(
    job: Job,
    *,
    now: int,
    blockers: Mapping[str, str] | None = None,
    waits_for: Mapping[str, int] | None = None,
    agents: int | None = None,
) -> list[str]:
    """Tell the story of a job, one sentence a line, from its submission to now.

    Args:
        job: the job, with its tries.
        now: milliseconds since 1970.
        blockers: states of the jobs that it comes after, as far as they are still known.
        waits_for: of a queued job, how many agents cannot take it now, by the resolver's rule.
        agents: how many are known that offer its operation, if anybody counted.
    """
    return [
        _beginning(job),
        *_attempts(job),
        *_present(job, now, blockers or {}, waits_for, agents),
        *_prospect(job, now),
    ]


def waiting(job: Job, waits_for: Mapping[str, int] | None, agents: int | None) -> str:
    """Say what a queued job waits for."""
    return _queued(job, waits_for, agents)


# -- the past


def _beginning(job: Job) -> str:
    kind, _, id = (job.origin or "").partition(":")
    origin = f", {_ORIGINS[kind]} {id}" if kind in _ORIGINS else ""
    if job.parent is not None:
        origin = f", number {job.position} of job {job.parent}"
    when = (_EPOCH + timedelta(milliseconds=job.created)).strftime("%Y-%m-%d %H:%M:%S")
    return f"{job.op} was submitted by {job.caller} at {when} UTC{origin}"


def _attempts(job: Job) -> Iterator[str]:
    last = 0
    for attempt in job.tries:
        missing = attempt.number - last - 1
        if missing > 0:
            yield f"{missing} attempts before that are not kept: they were only sent back"
        last = attempt.number
        yield _choice(job, attempt)
        if attempt.ended is not None:
            yield _end(job, attempt, attempt.ended)


def _choice(job: Job, attempt: Try) -> str:
    said = f"attempt {attempt.number} went to {attempt.agent} at {_clock(attempt.began, job)}"
    if not attempt.chosen:
        return said
    if job.want.get("to"):
        first = "the one that was asked for"
    elif not attempt.runners:
        first = "the only one that could take it"
    else:
        first = _FIRST.get(str(job.want.get("policy", "least-loaded")), "first by its policy")
    parts = [f"{said}: {first} ({', '.join(attempt.chosen)})"]
    if attempt.runners:
        named = ", ".join(_runner(runner) for runner in attempt.runners[:NAMED])
        more = len(attempt.runners) - NAMED
        parts.append(f"next best {named}" + (f" and {more} more" if more > 0 else ""))
    if attempt.passed:
        parts.append(f"{sum(attempt.passed.values())} passed over: {_counts(attempt.passed)}")
    return "; ".join(parts)


def _runner(runner: Mapping[str, Any]) -> str:
    reasons = runner.get("reasons") or ()
    return f"{runner.get('agent')} ({reasons[0]})" if reasons else str(runner.get("agent"))


def _counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {PASSED.get(rule, rule)}" for rule, count in ordered)


def _end(job: Job, attempt: Try, ended: int) -> str:
    after = duration.write(max(ended - attempt.began, 0) / 1000)
    if attempt.end == "done":
        return f"it answered after {after}"
    text = f", {_short(attempt.text)}" if attempt.text else ""
    said = f"it ended after {after}: {attempt.end}{text}"
    last = attempt is job.tries[-1]
    if not attempt.uncounted:
        return said if last else f"{said}; it was tried again"
    if attempt.end == "lost":
        # Only what may run twice goes on after it was lost.
        goes = "so it goes to another one" if last else "so it ran again"
        return f"{said}; it may run twice, {goes}"
    return f"{said}; it was only sent back, which does not count"


# -- the present


def _present(
    job: Job,
    now: int,
    blockers: Mapping[str, str],
    waits_for: Mapping[str, int] | None,
    agents: int | None,
) -> Iterator[str]:
    match job.state:
        case JobState.WAITING:
            if job.held:
                yield _blocked(job, blockers)
            due = max(job.due, job.at)
            if due > now:
                what = "for its next try" if job.failures else "for its time"
                yield f"it waits {what}, {_clock(due, job)}, in {_span(due - now)}"
            elif not job.held:
                yield "its time has come, and it is about to be queued"
        case JobState.QUEUED:
            yield _queued(job, waits_for, agents)
        case JobState.PROCESSING if job.kind:
            yield "its children are under way" + ("" if job.closed else ", and more may come")
        case JobState.PROCESSING | JobState.STALLED:
            yield _running(job, now)
        case JobState.DONE:
            yield f"it was done at {_clock(job.ended or now, job)}{_since(job)}"
        case JobState.ERROR:
            yield _failed(job, now)
        case JobState.KILLED:
            yield f"it was cancelled at {_clock(job.ended or now, job)}{_since(job)}"


def _blocked(job: Job, blockers: Mapping[str, str]) -> str:
    open = [id for id in job.after if not _ended(blockers.get(id))]
    named = ", ".join(f"job {id} ({blockers[id]})" for id in open[:NAMED])
    more = f" and {len(open) - NAMED} more" if len(open) > NAMED else ""
    if not open:
        return "the jobs that it comes after have ended, and it is about to be looked at"
    return f"it waits for {named}{more}; it asks for {_WHEN.get(job.when, job.when)}"


def _ended(state: str | None) -> bool:
    return state is None or JobState(state).final


def _queued(job: Job, waits_for: Mapping[str, int] | None, agents: int | None) -> str:
    if agents == 0:
        return f"no agent offers {job.op} now: start one with `spinal agent run`"
    if not waits_for:
        return f"it waits for its turn; there may be limits for {job.op}: see `spinal limit list`"
    free = "" if agents is None else f" of {agents}"
    total = sum(waits_for.values())
    return f"it waits for an agent: {total}{free} cannot take it now: {_counts(waits_for)}"


def _running(job: Job, now: int) -> str:
    current = job.current
    if current is None:
        return "it is under way"
    since = _span(now - current.began)
    if job.state is JobState.PROCESSING:
        return f"attempt {current.number} has been running at {current.agent} for {since}"
    then = "runs elsewhere" if current.may_rerun else "ends as lost, because it must not run twice"
    return (
        f"attempt {current.number} has been at {current.agent} for {since}, which is silent now; "
        f"if it is not heard again before its lease is over, the job {then}"
    )


def _failed(job: Job, now: int) -> str:
    said = f"it ended with an error at {_clock(job.ended or now, job)}{_since(job)}"
    problem = job.problem
    if problem is None:
        return said
    told = bool(job.tries) and job.tries[-1].text == problem.text
    return f"{said}: {problem.reason}" + ("" if told else f", {_short(problem.text)}")


def _since(job: Job) -> str:
    return "" if job.ended is None else f", {_span(job.ended - job.created)} after it was submitted"


# -- what may follow


def _prospect(job: Job, now: int) -> Iterator[str]:
    policy = None if job.retry is None else RetryPolicy.read(job.retry)
    if job.final:
        if job.state is JobState.ERROR and job.failures:
            yield f"it was not tried again: {_no_further(job, policy)}"
        return
    if policy is not None:
        left = max(policy.count - job.failures, 0)
        yield f"{left} of {policy.count} retries are left"
    if job.ends is not None:
        left_ms = job.ends - now
        yield (
            f"its deadline is {_clock(job.ends, job)}, in {_span(left_ms)}"
            if left_ms > 0
            else f"its deadline passed at {_clock(job.ends, job)}, and it is about to be ended"
        )
    else:
        yield f"once it can run, it may take {duration.write(job.allowed)}"


def _no_further(job: Job, policy: RetryPolicy | None) -> str:
    reason = "" if job.problem is None else job.problem.reason
    if policy is None:
        return "its caller asked for no retries"
    if job.failures > policy.count:
        return f"all of its {policy.count} retries are used"
    if not policy.covers(reason):
        return f"{reason} is not a reason for which it is"
    if reason in UNCERTAIN and policy.on is None and not (job.tries and job.tries[-1].may_rerun):
        return "it must not run twice, and may have been done"
    return "its deadline comes before its next try"


# -- words


def _short(text: str) -> str:
    return one_line(text, MAX_TEXT)


def _clock(ms: int, job: Job) -> str:
    """Give a time of day in UTC; with the day, if it is not that of the submission."""
    moment, created = (_EPOCH + timedelta(milliseconds=at) for at in (ms, job.created))
    form = "%H:%M:%S" if moment.date() == created.date() else "%Y-%m-%d %H:%M:%S"
    return moment.strftime(form)


def _span(ms: int) -> str:
    """Give a duration, without milliseconds where nobody would miss them."""
    seconds = max(ms, 0) / 1000
    return duration.write(round(seconds, 1) if seconds < 120 else round(seconds))
