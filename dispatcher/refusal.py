"""The one sentence for a call that no agent can do: what is missing, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import islice

from spinal.protocols import Problem

#: Operations whose names are compared with one that nobody offers; comparing is slow.
MAX_COMPARED = 300

#: Rule -> what so many agents do, after "of the agents that offer it".
_WORDS = {
    "target": "are not the one that was asked for",
    "unable": "said that they cannot do this call",
    "place": "are at another place",
    "tags": "lack a tag",
}


def no_agent(op: str, passed: Mapping[str, int], offered: Iterable[str]) -> Problem:
    """Say why nobody can do an operation, now or later.

    Args:
        op: its path.
        passed: how many agents offer it and will not do, by the rule of the resolver.
        offered: paths of all operations that are offered.
    """
    if not passed:
        near = _near(op, offered)
        if near is not None:
            return Problem("no-agent", f"no agent offers {op}: did you mean {near}?")
        return Problem("no-agent", f"no agent offers {op}: start one with `spinal agent run`")
    total = sum(passed.values())
    counts = sorted(passed.items(), key=lambda item: -item[1])
    why = ", ".join(f"{count} {_WORDS.get(rule, rule)}" for rule, count in counts)
    agents = "1 agent offers" if total == 1 else f"{total} agents offer"
    return Problem("no-agent", f"{agents} {op}, but none will do: {why}; see `spinal resolve {op}`")


def none_free(op: str, seconds: float, passed: Mapping[str, int]) -> Problem:
    """Say what a call waited for until its deadline."""
    counts = sorted(passed.items(), key=lambda item: -item[1])
    why = ", ".join(f"{count} {rule}" for rule, count in counts) or "all of them left"
    return Problem("expired", f"no agent was free for {op} within {seconds:.1f} s: {why}")


def _near(op: str, offered: Iterable[str]) -> str | None:
    alike = (path for path in offered if abs(len(path) - len(op)) <= 6)
    found = get_close_matches(op, islice(alike, MAX_COMPARED), n=1, cutoff=0.7)
    return found[0] if found else None
