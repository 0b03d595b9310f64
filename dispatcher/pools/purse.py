"""The money that may still be spent: the budgets as they are now, against what the books say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import structlog

from spinal.agents.provider.settings import Providers
from spinal.bus.errors import CallError
from spinal.protocols import Problem

from . import money
from .books import Books
from .money import Budget
from .spec import PoolSpec

log = structlog.get_logger()


class Purse:
    """See the module.

    Args:
        books: what is spent.
        market: gives currency, rates and budgets as they are now.
    """

    def __init__(self, books: Books, market: Callable[[], Providers]) -> None:
        self._books = books
        self.market = market

    def budgets(self, spec: PoolSpec | None = None) -> list[Budget]:
        """Give the budgets of the home, and of a pool, in the home's currency.

        Raises:
            CallError: one is in a currency without a rate.
        """
        market = self.market()
        own = () if spec is None else (Budget.of(spec.pool, spec.money),)
        try:
            shared = [
                Budget(label=one.label or "", per_month=one.per_month) for one in market.budgets
            ]
            return [one.converted(market.exchange) for one in (*own, *shared)]
        except ValueError as exc:
            raise CallError.of(Problem("refused", str(exc))) from exc

    def room(self, spec: PoolSpec) -> float:
        """Give the money of an hour that a pool's further machines may cost.

        Raises:
            CallError: a budget is in a currency without a rate.
        """
        return money.room(
            self.budgets(spec),
            self._books.recent(),
            self._books.now(),
            spec.pool,
            spec.money.label,
            drain=spec.life.drain,
        )

    def overdue(self, specs: Iterable[PoolSpec]) -> Mapping[str, str]:
        """Find the machines for which a budget has no more money; gives their names, and why."""
        # Those of the home are among the budgets of each pool.
        budgets: dict[Budget, None] = {}
        drain = 0.0
        for spec in (None, *specs):
            drain = max(drain, 0.0 if spec is None else spec.life.drain)
            try:
                budgets |= dict.fromkeys(self.budgets(spec))
            except CallError as exc:
                log.error("budget_not_reckoned", error=str(exc))
        going = money.overdue(budgets, self._books.recent(), self._books.now(), drain=drain)
        return {machine.name: why for machine, why in going}
