"""What is asked for, and what must have become of it: the known-good side of the comparison."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

#: Seconds that a job of the harness may take; the default of an hour would only make it wait.
DEADLINE: Final = 60.0
#: Seconds for one that cannot be done in time.
SHORT: Final = 3.0
#: Tries that a failing operation is allowed beyond the first, and seconds before the second.
RETRIES: Final = 2
BACKOFF: Final = 0.2


@dataclass(frozen=True)
class Kind:
    """One kind of job."""

    name: str
    op: str
    #: Part of all jobs.
    share: float
    safe: bool
    #: How it ends when nothing goes wrong.
    state: str = "done"
    reasons: frozenset[str] = frozenset()
    #: Most runs of one that is not safe.
    runs: int = 1
    #: What is asked for besides the operation.
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    #: It is cancelled once it runs.
    cancelled: bool = False


_RETRY = {"retry": {"count": RETRIES, "backoff": BACKOFF, "on": ["failed"]}}

#: All kinds; what a run asks for is drawn from here.
KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("safe short", "/fault/read", 0.23, True),
        Kind("unsafe short", "/fault/write", 0.25, False),
        Kind("safe long", "/fault/scan", 0.20, True),
        Kind("unsafe long", "/fault/print", 0.14, False),
        Kind("failing", "/fault/try", 0.10, False, runs=RETRIES + 1, options=_RETRY),
        Kind("cancelled", "/fault/hold", 0.05, True, "killed", cancelled=True),
        Kind(
            "too late",
            "/fault/hold",
            0.03,
            True,
            "error",
            # The others if its agent had not said that it has it, there was none, or it was lost.
            frozenset({"deadline", "expired", "no-answer", "no-agent", "lost"}),
            options={"deadline": SHORT},
        ),
    )
}


@dataclass(frozen=True)
class Asked:
    """One job to submit."""

    key: str
    kind: Kind
    #: Failures before it succeeds.
    fails: int = 0
    #: Seconds that it is not to begin before.
    delay: float = 0.0
    #: It is submitted a second time with the same key.
    twice: bool = False
    #: Seconds between its acceptance and its cancelling.
    patience: float = 0.0

    @property
    def args(self) -> dict[str, Any]:
        """Arguments of the operation."""
        more = {"fails": self.fails} if self.kind.name == "failing" else {}
        return {"key": self.key, **more}

    @property
    def options(self) -> dict[str, Any]:
        """Options of the submission."""
        chosen: dict[str, Any] = {"deadline": DEADLINE, **self.kind.options}
        return {**chosen, "delay": self.delay} if self.delay else chosen

    @property
    def deadline(self) -> float:
        """Seconds after its acceptance at which it must have ended."""
        allowed: float = self.options["deadline"]
        return self.delay + allowed

    @property
    def runs(self) -> int:
        """How often it runs when nothing goes wrong."""
        return min(self.fails + 1, self.kind.runs)

    def may_end(self, state: str, reason: str | None, losses: bool) -> bool:
        """Tell whether it may have ended so; ``losses``: also as lost."""
        if losses and (state, reason) == ("error", "lost"):
            return True
        if self.kind.name == "failing" and self.fails > RETRIES:
            return (state, reason) == ("error", "failed")
        reasons = self.kind.reasons
        return state == self.kind.state and (not reasons or reason in reasons)


def script(
    seed: int, count: int, names: Collection[str] = frozenset(KINDS), name: str = "j"
) -> Sequence[Asked]:
    """Draw the jobs of a run; the same seed gives the same."""
    dice = Random(f"{seed} {name}")
    kinds = [kind for kind in KINDS.values() if kind.name in names]
    drawn = dice.choices(kinds, [kind.share for kind in kinds], k=count)
    return [
        Asked(
            f"{name}-{number}",
            kind,
            fails=dice.choice((0, 1, 2, 3)) if kind.name == "failing" else 0,
            delay=round(dice.uniform(0.5, 5.0), 1) if dice.random() < 0.1 else 0.0,
            twice=dice.random() < 0.1,
            patience=round(dice.uniform(0.0, 2.0), 1),
        )
        for number, kind in enumerate(drawn)
    ]
