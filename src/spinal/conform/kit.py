"""One run of the checks against one agent, check by check, in bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from spinal.bus.errors import BusError

from .check import LONGEST, Check
from .checks import CHECKS
from .checks.life import begin
from .seat import is_anybody
from .trial import Trial
from .verdict import Flooded, NotOffered, Outcome, Verdict, Wrong, shown

#: Seconds of a whole run at the most.
WHOLE: Final = 600.0
#: Seconds for the agent to direct presence at its caller.
GREETING: Final = 3.0


@dataclass
class Report:
    """What a run found.

    Attributes:
        agent: address of the agent that was tried.
        features: what it says that it can do.
        outcomes: one for each check, in their order.
        seconds: how long it took.
    """

    agent: str
    features: Sequence[str] = ()
    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    seconds: float = 0.0

    def count(self, verdict: Verdict) -> int:
        """Say how many checks ended so."""
        return sum(outcome.verdict is verdict for outcome in self.outcomes)

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and nothing that every agent has to pass was left out."""
        required = {check.number for check in CHECKS if check.required}
        return not self.count(Verdict.FAILED) and not any(
            outcome.verdict is Verdict.NOT_RUN and outcome.number in required
            for outcome in self.outcomes
        )


async def run(
    trial: Trial,
    checks: Sequence[Check] = CHECKS,
    told: Callable[[Outcome], None] = lambda outcome: None,
    whole: float = WHOLE,
) -> Report:
    """Try an agent.

    Returns a report whatever the agent does: one that is not there, says nothing, answers with
    garbage or floods its peers fails its first check, and the others do not run.

    Args:
        trial: the agent and our seats; changed when the agent begins a new life.
        checks: what to try.
        told: called with the outcome of each check as soon as it is there.
        whole: seconds for all of them.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    report = Report(trial.agent)
    stopped = ""

    def note(check: Check, verdict: Verdict, since: float, wrong: Wrong | None, text: str) -> None:
        outcome = Outcome(
            check.number,
            check.section,
            check.title,
            verdict,
            round(loop.time() - since, 3),
            text,
            shown(wrong.got) if wrong is not None else "",
            shown(wrong.sent) if wrong is not None else "",
        )
        report.outcomes.append(outcome)
        told(outcome)

    try:
        await _meet(trial)
    except Wrong as exc:
        note(checks[0], Verdict.FAILED, began, exc, exc.expected)
        stopped = "the agent could not be reached"
        checks = checks[1:]
    report.agent, report.features = trial.agent, sorted(trial.features)
    for check in checks:
        since = loop.time()
        if not stopped and since - began > whole:
            stopped = f"the run took more than {whole:g} s"
        if stopped:
            note(check, Verdict.NOT_RUN, since, None, stopped)
            continue
        if lacking := _lacking(trial, check):
            note(check, Verdict.NOT_OFFERED, since, None, lacking)
            continue
        trial.number = check.number
        try:
            async with asyncio.timeout(LONGEST):
                await check.run(trial)
        except NotOffered as exc:
            note(check, Verdict.NOT_OFFERED, since, None, str(exc))
        except Wrong as exc:
            note(check, Verdict.FAILED, since, exc, exc.expected)
            stopped = await _lives(trial, check)
        except Flooded as exc:
            note(check, Verdict.FAILED, since, None, f"a few stanzas for a call: {exc}")
            stopped = str(exc)
        except TimeoutError:
            note(check, Verdict.FAILED, since, None, f"its end within {LONGEST:g} s")
            stopped = await _lives(trial, check)
        except BusError as exc:
            note(check, Verdict.FAILED, since, None, f"that our stream lasts ({exc})")
            stopped = f"our stream ended: {exc}"
        else:
            note(check, Verdict.PASSED, since, None, "")
        trial.settle(*trial.seats)
    report.agent = trial.agent
    report.seconds = round(loop.time() - began, 3)
    return report


async def _meet(trial: Trial) -> None:
    """Have the agent there, and hear what it says of itself.

    Raises:
        Wrong: it is not there.
    """
    if trial.dispatcher is not None and trial.control is not None:
        await begin(trial)
    trial.caller.hello(trial.agent, "caller")

    def known() -> bool | None:
        for seat in trial.seats:
            for sender, heard in seat.news:
                if sender == trial.agent:
                    trial.features = frozenset(heard.event.get("features") or ())
                    trial.epoch = heard.event.get("epoch", trial.epoch)
                    if trial.features:
                        return True
        return None

    try:
        await trial.caller.until(known, GREETING)
    except TimeoutError:
        pass  # It has no feature, which is no fault.
    except Flooded as exc:
        raise Wrong(f"a few stanzas for a hello: {exc}") from exc
    try:
        await trial.echoes()
    except Wrong as exc:
        problem = None if exc.got is None else exc.got.problem
        if problem is None or problem.reason != "unreachable":
            raise
        why = (
            "somebody is there, but knows nothing of urn:spinal:1: is it an agent?"
            if await is_anybody(trial.caller.connection, trial.agent)
            else "nobody is connected at that address"
        )
        raise Wrong(f"an answer to a call: {why}", exc.got, exc.sent) from exc
    except Flooded as exc:
        raise Wrong(f"a few stanzas for a call: {exc}") from exc


def _lacking(trial: Trial, check: Check) -> str:
    """Say why a check is not the agent's business; empty if it is."""
    if check.feature and check.feature not in trial.features:
        return f"it does not name the feature {check.feature}"
    if check.needs == "other" and trial.other is None:
        return "this run has a single account"
    if check.needs == "dispatcher" and trial.dispatcher is None:
        return "it does not advertise to us: have it started with `-- COMMAND`"
    if check.needs == "control" and trial.control is None:
        return "we may not end its process: have it started with `-- COMMAND`"
    return ""


async def _lives(trial: Trial, check: Check) -> str:
    """Say why the run cannot go on after a check that failed; empty if it can."""
    trial.number = "0"
    try:
        await trial.echoes()
    except (Wrong, Flooded, BusError):
        return f"the agent no longer answers since check {check.number}"
    return ""
