"""Linear programs by HiGHS: the little of it that is used here, with types.

HiGHS comes with the extra ``packing`` and is imported when it is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

#: Most nodes of one search in whole numbers; usually this and not the time ends a long one.
MAX_NODES: Final = 2000

#: Seconds for each second of computing that may take: HiGHS goes by the clock on the wall.
PATIENCE: Final = 3.0


class SolverError(Exception):
    """HiGHS gave up; a packing is found without it."""


def available() -> bool:
    """Tell whether HiGHS is installed."""
    return importlib.util.find_spec("highspy") is not None


@dataclass(frozen=True, slots=True)
class Linear:
    """The optimum of the relaxation."""

    objective: float
    #: One for each row: what one more of it costs.
    duals: Sequence[float]
    #: One for each column.
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Whole:
    """What was found in whole numbers."""

    #: One for each column; none if nothing was found in time.
    values: Sequence[int] | None
    #: No solution with these columns costs less.
    bound: float


class Program:
    """A linear program that is minimised: columns are never negative, rows are from and to.

    Args:
        rows: lowest and highest value of each.
    """

    def __init__(self, rows: Sequence[tuple[float, float]]) -> None:
        self._highspy: Any = importlib.import_module("highspy")
        self._highs: Any = _quiet(self._highspy)()
        # Several threads do not pay for programs of this size, and make the answer vary.
        self._highs.setOptionValue("threads", 1)
        self._highs.setOptionValue("random_seed", 0)
        for low, high in rows:
            self._highs.addRow(low, high, 0, [], [])
        self._rows = len(rows)
        self._columns = 0

    def column(self, cost: float, entries: Mapping[int, float]) -> None:
        """Add a column: its cost, and what one of it adds to rows."""
        self._highs.addCol(
            cost,
            0.0,
            self._highspy.kHighsInf,
            len(entries),
            list(entries.keys()),
            [float(value) for value in entries.values()],
        )
        self._columns += 1

    def relaxed(self) -> Linear:
        """Solve it in any numbers.

        Raises:
            SolverError: there is no optimum.
        """
        self._highs.run()
        if self._highs.getModelStatus() != self._highspy.HighsModelStatus.kOptimal:
            raise SolverError(str(self._highs.getModelStatus()))
        found = self._highs.getSolution()
        objective = float(self._highs.getInfo().objective_function_value)
        return Linear(objective, list(found.row_dual), list(found.col_value))

    def whole(self, seconds: float, gap: float) -> Whole:
        """Solve it in whole numbers.

        Args:
            seconds: of computing, roughly, after which the best that was found is taken.
            gap: how far above the bound a solution is good enough, as a share.
        """
        kind = self._highspy.HighsVarType.kInteger
        for place in range(self._columns):
            self._highs.changeColIntegrality(place, kind)
        self._highs.setOptionValue(
            "time_limit", float(self._highs.getRunTime() + seconds * PATIENCE)
        )
        self._highs.setOptionValue("mip_rel_gap", gap)
        # Nodes are the same each time, and seconds are not: the same input gives the same answer.
        self._highs.setOptionValue("mip_max_nodes", MAX_NODES)
        self._highs.run()
        info = self._highs.getInfo()
        bound = float(info.mip_dual_bound)
        solution = self._highs.getSolution()
        if not solution.value_valid or not isfinite(float(info.objective_function_value)):
            return Whole(None, bound)
        return Whole([round(value) for value in solution.col_value], bound)


def _quiet(highspy: Any) -> Any:
    """Give a solver that does not greet on the standard output, where results go."""

    class Quiet(highspy.Highs):  # type: ignore[misc]
        # The greeting comes with the first thing that the constructor does.
        def enableCallbacks(self) -> None:
            self.setOptionValue("output_flag", False)
            super().enableCallbacks()  # pyright: ignore[reportUnknownMemberType]

    return Quiet
