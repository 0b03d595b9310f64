from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import pytest

from spinal.agents import Job, PlainJob
from spinal.agents.operation import Effects, Kind, Operation


async def look(job: Job, name: str = "x") -> str:
    """Look at something."""
    return name


async def stream() -> AsyncIterator[int]:
    yield 1


def plain(job: PlainJob) -> None: ...


def plain_stream() -> Iterator[int]:
    yield 1


async def wrong_job(job: PlainJob) -> None: ...


async def wrong_yield() -> int:  # type: ignore[misc]
    yield 1  # pyright: ignore[reportReturnType]


def test_an_operation_writes_and_is_unsafe_unless_told_otherwise() -> None:
    public = Operation.of(look, "/look").public

    assert (public.effects, public.safe, public.timeout) == ("writes", False, 60.0)
    assert public.summary == "Look at something."


def test_what_only_reads_is_safe_unless_it_says_otherwise() -> None:
    assert Operation.of(look, "/look", effects="reads").public.safe
    assert not Operation.of(look, "/look", effects="reads", safe=False).public.safe
    assert Operation.of(look, "/look", safe=True).public.safe


@pytest.mark.parametrize(
    ("function", "kind", "streams"),
    [
        (look, Kind.COROUTINE, False),
        (stream, Kind.STREAM, True),
        (plain, Kind.PLAIN, False),
        (plain_stream, Kind.PLAIN_STREAM, True),
    ],
)
def test_a_function_tells_how_it_runs(function: Any, kind: Kind, streams: bool) -> None:
    operation = Operation.of(function, "/x")

    assert (operation.kind, operation.public.stream) == (kind, streams)
    assert operation.kind.in_process == (function in (plain, plain_stream))


def test_an_operation_may_say_how_often_it_is_tried_again() -> None:
    policy = {"count": 2, "backoff": 0.5, "on": ["failed"]}

    assert Operation.of(look, "/look").public.retry is None
    assert Operation.of(look, "/look", retry=3).public.retry == {"count": 3}
    assert Operation.of(look, "/look", retry=policy).public.retry == policy


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("look", {}, "look(): not a path"),
        ("/", {}, "look(): "),
        ("/a//b", {}, "look(): not a path"),
        ("/a/*", {}, "look(): not a path"),
        ("/a", {"timeout": "fast"}, "look(): timeout: not a duration: 'fast'"),
        ("/a", {"timeout": 0}, "look(): timeout: "),
        ("/a", {"effects": "explodes"}, "look(): effects must be one of reads, writes"),
        ("/a", {"slots": 0}, "look(): slots must be at least 1"),
        ("/a", {"retry": "3"}, "look(): 'retry' must be a number of further tries"),
        ("/a", {"retry": True}, "look(): 'retry' must be a number of further tries"),
        ("/a", {"retry": -1}, "look(): 'retry.count' must be an integer from 0 to 100"),
        ("/a", {"retry": {"backoff": 2}}, "look(): 'retry.count' is missing"),
        ("/a", {"retry": {"count": 1, "on": ["rain"]}}, "look(): 'retry.on' must be one of"),
        ("/a", {"retry": {"count": 1, "often": 2}}, "look(): 'retry.often' is unknown"),
    ],
)
def test_a_wrong_option_is_named_with_the_function(
    path: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError) as caught:
        Operation.of(look, path, **options)

    assert str(caught.value).startswith(words)


def test_a_plain_function_inside_another_one_is_refused_with_what_to_do() -> None:
    def inner() -> None: ...

    with pytest.raises(TypeError, match="at the top of the file"):
        Operation.of(inner, "/x")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (wrong_job, "an async operation takes a Job"),
        (wrong_yield, "its result must be an Iterator"),
        (print, "an operation is a function"),
        (Operation, "an operation is a function, not type"),
    ],
)
def test_what_is_no_operation_is_refused(function: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Operation.of(function, "/x")


def test_effects_are_the_ones_of_the_protocol() -> None:
    from typing import get_args

    from spinal.protocols import EFFECTS

    assert cast(object, get_args(Effects)) == EFFECTS
