"""An agent as it is written down: a name, what it offers, where it is, what it costs.

What it does on the bus is in ``life.py``; this page has no task and no socket, so an agent's file
can be loaded for its schema alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spinal.bus.jsontext import dumps
from spinal.protocols import Capabilities, Json
from spinal.protocols.path import check_places

from .operation import Effects, Operation

if TYPE_CHECKING:
    from spinal.bus.blob import Store
    from spinal.bus.connection import Connection

    from .life import Life

F = TypeVar("F", bound=Callable[..., Any])

#: What an agent has around each of its lives.
Lifespan = Callable[["Life"], AbstractAsyncContextManager[object]]


class Agent:
    """Operations under one name.

    Args:
        name: account name on the bus; by default the name of the file that makes the agent.
        place: where it is, as a path or as keyed paths, such as ``{"site": "/eu/fra"}``.
        tags: words that callers may ask for.
        cost: price of an hour in the home's currency; none means unknown, never free.
        slots: calls that run at once; by default the number of processors.
        load: gives the load, 0 for idle and 1 for as much as it can take; by default the calls
            that run or wait, by slots.  Called on the event loop, so it must be quick.
        lifespan: makes a context manager of each life, for what is to be there as long as the agent
            is on the bus.  Entered before it logs in, left after it has logged out.
        role: role of its account in the home: ``agent``, or ``gateway`` for one that asks the
            dispatcher on behalf of others.

    Raises:
        ValueError: the place is no path, or the slots are less than one.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        place: Mapping[str, str] | str = {},
        tags: Sequence[str] = (),
        cost: float | None = None,
        slots: int | None = None,
        load: Callable[[], float] | None = None,
        lifespan: Lifespan | None = None,
        role: str = "agent",
    ) -> None:
        if isinstance(tags, str):
            raise TypeError(f"tags are a list of words: write [{tags!r}]")
        if slots is not None and slots < 1:
            raise ValueError(f"slots must be at least 1, not {slots}")
        if cost is not None and cost < 0:
            raise ValueError(f"cost must not be negative: {cost}")
        #: The file that makes it; worker processes load it.
        self.file = Path(sys._getframe(1).f_code.co_filename).resolve()  # pyright: ignore[reportPrivateUsage]
        #: The name in the file; whoever runs the agent may give it another one.
        self.declared = name if name is not None else self.file.stem
        self.name = self.declared
        self.place = check_places(place)
        self.tags = tuple(tags)
        self.cost = cost
        self.slots = slots
        self.load = load
        self.lifespan = lifespan
        self.role = role
        self._operations: dict[str, Operation] = {}
        self._capabilities: Capabilities | None = None

    def __repr__(self) -> str:
        return f"<Agent {self.name} {len(self._operations)} operations>"

    @property
    def operations(self) -> Mapping[str, Operation]:
        """What it offers, by path."""
        return self._operations

    @property
    def capabilities(self) -> Capabilities:
        """The description of what it offers, as others get it."""
        if self._capabilities is None:
            offered = (operation.public for operation in self._operations.values())
            self._capabilities = Capabilities.of(offered, dumps)
        return self._capabilities

    def op(
        self,
        path: str,
        *,
        timeout: str | float = "60s",
        effects: Effects = "writes",
        safe: bool | None = None,
        slots: int | None = None,
        retry: int | Mapping[str, Json] | None = None,
    ) -> Callable[[F], F]:
        """Offer a function as an operation; the function itself stays as it is.

        Its signature and docstring become schema and help.  A coroutine function runs on the event
        loop and must not block it; a plain function runs in a worker process.  A parameter
        annotated :class:`Job` gets the job, and callers do not see it.  What the function yields,
        if it is a generator, is sent as a stream.

        Args:
            path: exact path, such as ``/image/resize``.
            timeout: longest run, such as ``60s``, ``5m``, ``1h30m``, or a number of seconds.
            effects: what it does to the world: ``reads``, ``writes``, ``deletes`` or ``spends``.
            safe: may run twice without harm; by default only what ``reads`` is.
            slots: how many run at once, if fewer than the agent's slots.
            retry: how often a job that failed is tried again if its caller does not say: a number,
                or an object with ``count`` and any of ``backoff`` (seconds before the second try,
                doubled for each further one, with jitter; 1), ``most`` (longest pause; 60), ``on``
                (reasons; by default those that may be better next time) and ``elsewhere`` (at
                another agent, while there is one).

        Raises:
            TypeError: the function cannot be an operation; the text names the parameter.
            ValueError: a bad path, timeout, effects, slots or retry, or the path is taken.
        """

        def offer(function: F) -> F:
            self.add(
                Operation.of(
                    function,
                    path,
                    timeout=timeout,
                    effects=effects,
                    safe=safe,
                    slots=slots,
                    retry=retry,
                )
            )
            return function

        return offer

    def add(self, operation: Operation) -> None:
        """Offer an operation.

        Raises:
            ValueError: there is one at its path.
        """
        taken = self._operations.get(operation.path)
        if taken is not None:
            raise ValueError(
                f"{operation.function.__qualname__}(): {operation.path} is offered by "
                f"{taken.function.__qualname__}() already"
            )
        self._operations[operation.path] = operation
        self._capabilities = None

    def start(
        self,
        connection: Connection,
        *,
        dispatchers: Collection[str] = (),
        store: Store | None = None,
    ) -> Life:
        """Begin a life of this agent on the bus, for an ``async with`` block.

        Args:
            connection: who it is on the bus; opened and closed with the life.
            dispatchers: whom it advertises to, and believes on whose behalf they ask.
            store: where blobs come from and go to; without one they are refused.

        Raises, on entering, what :meth:`Connection.open` raises.
        """
        from .life import Life

        return Life(self, connection, dispatchers=dispatchers, store=store)
