from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from spinal.bus.jsontext import dumps
from spinal.dispatcher.agent import KnownAgent
from spinal.dispatcher.listing import ROOM, agent_row, op_row, page
from spinal.dispatcher.registry import Registry
from spinal.protocols import Advertisement, Capabilities, Operation


def row(item: str) -> dict[str, Any]:
    return {"text": item}


@given(st.lists(st.text("ab<&", max_size=9000), max_size=40), st.integers(1, 50))
def test_pages_read_one_after_the_other_give_everything_once_and_fit(
    items: list[str], limit: int
) -> None:
    found: list[Any] = []
    while True:
        answer = page(items, len(found), limit, row)
        assert len(answer["items"]) <= limit
        assert len(dumps(answer["items"])) <= ROOM or len(answer["items"]) == 1
        found += answer["items"]
        if not answer["more"]:
            break

    assert found == [row(item) for item in items]


def test_a_page_beyond_the_end_is_empty_and_the_last() -> None:
    assert page(["a"], 5, 10, row) == {"items": [], "more": False, "total": 1}


def test_an_agent_with_very_many_operations_has_a_row_that_fits() -> None:
    agent = KnownAgent("w@x/1", Advertisement(hash="h", epoch=1), 0.0)
    agent.capabilities = Capabilities.of(Operation(f"/many/operation-{n}") for n in range(2000))

    found = agent_row(agent, 0.0)

    assert len(dumps(found)) < ROOM
    assert len(found["ops"]) + found["ops_left_out"] == 2000


def test_an_agent_that_is_silent_is_listed_as_suspect_and_one_that_drains_as_draining() -> None:
    agent = KnownAgent("w@x/1", Advertisement(hash="h", epoch=1, state="draining"), 0.0)

    assert agent_row(agent, 1.0)["state"] == "draining"
    assert agent_row(agent, 13.0)["state"] == "suspect"
    agent.gone_at = 13.0
    assert agent_row(agent, 13.0)["state"] == "gone"


def test_a_schema_that_does_not_fit_into_a_page_is_left_out() -> None:
    huge = Capabilities.of([Operation("/x", args={"description": "x" * ROOM})])
    registry = Registry()
    registry.advertised("w@x/1", Advertisement(hash=huge.hash, epoch=1), 0.0)
    registry.described(huge)

    found = op_row(registry, "/x")

    assert found["left_out"] == ["args", "result"]
    assert len(dumps(found)) < ROOM


def test_an_operation_has_the_gravest_effects_that_anybody_tells() -> None:
    registry = Registry()
    for number, effects in enumerate(("reads", "deletes", "writes")):
        described = Capabilities.of([Operation("/a", str(number), effects=effects)], dumps)
        registry.advertised(f"w@x/{number}", Advertisement(hash=described.hash, epoch=1), 0.0)
        registry.described(described)

    shown = op_row(registry, "/a")

    assert (shown["summary"], shown["effects"], shown["agents"]) == ("0", "deletes", 3)
