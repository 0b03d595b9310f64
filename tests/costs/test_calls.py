"""What a call may cost at its two ends and in the codec, in calls of functions."""

from __future__ import annotations

import asyncio

import pytest

from spinal.agents import Agent
from spinal.agents.life import Life
from spinal.bus import Client
from spinal.bus.jsontext import dumps, loads
from spinal.bus.transports.memory import MemoryBus
from spinal.protocols import Ack, Codec, Event, Final, Op

from .counting import counted

ADDRESS = "quick@x/agent"
CODEC = Codec(dumps, loads)

#: An event of the hot path, and calls that it may take to be written, and to be read.
EVENTS: list[tuple[Event, int, int]] = [
    (Op("0123456789-1", op="/a/b", left=60_000, args={"x": 1, "name": "y"}), 41, 46),
    (Final("0123456789-1", value={"x": 1}, ran=0), 33, 39),
    (Ack("0123456789-1", also=[("0123456789-2", 1)]), 21, 44),
]

#: Calls that a call may take, both ends and the event loop of both together: alone, and one of many
#: that are under way.  A tenth more than they take (CPython 3.11).
ALONE, TOGETHER = 845, 186
#: How many are counted.
CALLS = 2000


@pytest.mark.parametrize(("event", "writing", "reading"), EVENTS, ids=lambda item: str(item)[:6])
def test_an_event_is_written_and_read_in_a_bounded_number_of_calls(
    event: Event, writing: int, reading: int
) -> None:
    body = CODEC.write([event])

    counted(f"to write {event.type!r}", lambda _: CODEC.write([event]), 200).at_most(writing)
    counted(f"to read {event.type!r}", lambda _: CODEC.read(body), 200).at_most(reading)


async def calls(together: int) -> None:
    """Make them from one end to the other on a bus in memory, so many at once."""
    agent = Agent("quick", slots=200)

    @agent.op("/nothing", effects="reads")
    async def nothing(x: int) -> int:
        """Give it back."""
        return x

    bus = MemoryBus()
    async with (
        Life(agent, bus.connection(ADDRESS)),
        Client(connection=bus.connection("ann@x/desk")) as client,
    ):
        direct = client.options(to=ADDRESS)
        # So many that log-in and the first calls are a small part.
        for _ in range(CALLS // together):
            await asyncio.gather(*(direct.call("/nothing", x=x) for x in range(together)))


@pytest.mark.parametrize(
    ("together", "bound"), [(1, ALONE), (100, TOGETHER)], ids=["alone", "together"]
)
def test_a_call_takes_a_bounded_number_of_calls_at_both_ends(together: int, bound: int) -> None:
    def run(number: int) -> None:
        with asyncio.Runner() as runner:
            runner.run(calls(together))

    cost = counted(f"a call, {together} at once,", run, 1, warm=1)
    cost.runs = CALLS
    cost.at_most(bound)
