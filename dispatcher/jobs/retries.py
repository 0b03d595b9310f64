"""Whether a job whose attempt failed is tried again, and after how long.

Not to be confused with an attempt that was lost or sent back and moves to another agent at once
(``dispatcher/retry.py``): that is not counted.  Here an attempt has ended badly, and the caller or
the operation said that more of them are worth it.
"""

from __future__ import annotations

from random import Random
from typing import Final

from spinal.protocols import Problem
from spinal.protocols.retry import MAX_COUNT, MAX_PAUSE, USUAL, RetryPolicy, doubled

__all__ = [
    "MAX_COUNT",
    "MAX_PAUSE",
    "NEVER",
    "USUAL",
    "RetryPolicy",
    "combined",
    "decide",
    "longest_pause",
]

#: Reasons after which the attempt may be going on where nobody sees it.
UNCERTAIN: Final = frozenset({"lost", "no-answer"})

#: Nobody asked for a retry.
NEVER: Final = RetryPolicy()


def combined(job: RetryPolicy | None, op: RetryPolicy | None) -> RetryPolicy:
    """Give the policy that holds: the job's wins whole over the operation's."""
    if job is not None:
        return job
    return NEVER if op is None else op


def decide(
    policy: RetryPolicy, problem: Problem, failures: int, may_rerun: bool, random: Random
) -> float | None:
    """Decide after an attempt ended with a problem that counts.

    Args:
        policy: what was asked for.
        problem: how the attempt ended.
        failures: attempts that ended so far and count, this one included.
        may_rerun: the operation is safe, or the caller said that it may run twice.
        random: where the jitter comes from.

    Returns:
        Seconds until the next try, or nothing if there is to be none.
    """
    reason = problem.reason
    if failures > policy.count or not policy.covers(reason):
        return None
    if reason in UNCERTAIN and not may_rerun and policy.on is None:
        return None
    # Full jitter: what failed together does not come back together.
    pause = random.uniform(0.0, longest_pause(policy, failures))
    return min(max(pause, problem.after or 0.0), MAX_PAUSE)


def longest_pause(policy: RetryPolicy, failures: int) -> float:
    """Give the bound in seconds of the pause after so many failures."""
    return doubled(policy.backoff, max(failures, 1) - 1, policy.most)
