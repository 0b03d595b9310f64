from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spinal.agents import Agent, Job


def test_an_agent_is_named_after_its_file_unless_it_has_a_name() -> None:
    assert Agent().name == "test_agent"
    assert Agent("thumbs").name == "thumbs"
    assert Agent().file == Path(__file__)


def test_the_decorator_leaves_the_function_as_it_is() -> None:
    agent = Agent("x")

    async def look(job: Job, width: int = 3) -> str:
        return "x" * width

    offered = agent.op("/look")(look)

    assert offered is look
    assert list(agent.operations) == ["/look"]


def test_a_policy_for_retries_is_a_part_of_the_description() -> None:
    plain, patient = Agent("x"), Agent("x")

    async def look() -> None: ...

    plain.op("/look")(look)
    patient.op("/look", retry={"count": 2, "elsewhere": True})(look)

    offered = patient.capabilities.operations["/look"]
    assert offered.retry == {"count": 2, "elsewhere": True}
    assert plain.capabilities.hash != patient.capabilities.hash
    with pytest.raises(ValueError, match=r"'retry\.count' must be an integer"):
        plain.op("/again", retry=1000)(look)


def test_a_path_is_offered_once() -> None:
    agent = Agent("x")

    @agent.op("/look")
    async def look() -> None: ...

    with pytest.raises(ValueError, match=r"/look is offered by .*look\(\) already"):

        @agent.op("/look")
        async def again() -> None: ...


def test_equal_agents_have_one_description() -> None:
    def make() -> Agent:
        agent = Agent("x")

        @agent.op("/b")
        async def b() -> None: ...

        @agent.op("/a", effects="reads")
        async def a() -> None:
            """Do it."""

        return agent

    one, other = make().capabilities, make().capabilities

    assert one.hash == other.hash
    assert list(one.operations) == ["/a", "/b"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"slots": 0}, ValueError, "slots must be at least 1"),
        ({"cost": -1}, ValueError, "cost"),
        ({"place": "here"}, ValueError, "must start with '/'"),
        ({"tags": "gpu"}, TypeError, "list of words"),
    ],
)
def test_a_wrong_option_is_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Agent("x", **options)
