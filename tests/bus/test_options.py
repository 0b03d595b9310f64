from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from spinal.bus import Client, Retry
from spinal.bus.options import Options
from spinal.testing import MemoryBus


def given(**options: Any) -> dict[str, Any]:
    return Options().changed(**options).submission()


def test_a_submission_says_only_what_was_asked_for() -> None:
    assert given() == {}
    assert given(timeout=5, durable=True, news=print) == {}
    assert given(to="thumbs", policy="cheapest", place="/eu", tags="gpu", sticky="a") == {
        "to": "thumbs",
        "policy": "cheapest",
        "place": {"site": "/eu"},
        "tags": ["gpu"],
        "sticky": "a",
    }
    assert given(
        key="k", label="a", labels=["b", "c"], priority=-3, delay="5m", after=["x", "y", "x"],
        when="any", deadline="1h", max_run=30, retry=2, on_done="/told", on_error="/mourn",
        rerun=True, trace="00-1-2-03",
    ) == {
        "key": "k",
        "labels": ["a", "b", "c"],
        "priority": -3,
        "delay": 300.0,
        "after": ["x", "y"],
        "when": "any",
        "deadline": 3600.0,
        "max_run": 30.0,
        "retry": {"count": 2},
        "on_done": "/told",
        "on_error": "/mourn",
        "rerun": True,
        "trace": "00-1-2-03",
    }  # fmt: skip


def test_times_are_said_in_utc() -> None:
    east = timezone(timedelta(hours=1))
    assert given(at=datetime(2026, 11, 21, 6, 30, tzinfo=east)) == {
        "at": "2026-11-21T05:30:00.000Z"
    }
    assert given(at=datetime(2026, 11, 21, tzinfo=UTC)) == {"at": "2026-11-21T00:00:00.000Z"}
    for text in ("2026-11-21T06:30:00+01:00", "2026-11-21T05:30:00Z"):
        assert given(at=text) == {"at": "2026-11-21T05:30:00.000Z"}


@pytest.mark.parametrize("at", [datetime(2026, 11, 21), "2026-11-21T06:30:00"])
def test_a_time_without_a_zone_is_refused_with_what_to_do(at: Any) -> None:
    with pytest.raises(ValueError, match=r"^at: .*no zone.*astimezone"):
        given(at=at)


def test_retries_are_a_number_a_mapping_or_all_of_it() -> None:
    policy = Retry(3, backoff="2s", most="5m", on=["lost", "failed"], elsewhere=True)
    wire = {
        "count": 3,
        "backoff": 2.0,
        "most": 300.0,
        "on": ["lost", "failed"],
        "elsewhere": True,
    }
    assert given(retry=policy) == {"retry": wire}
    assert given(retry={**wire, "backoff": "2s"}) == {"retry": wire}
    assert given(retry=0) == {"retry": {"count": 0}}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("priority", 10),
        ("priority", "high"),
        ("priority", True),
        ("delay", "soon"),
        ("delay", -1),
        ("at", "tomorrow"),
        ("at", 5),
        ("after", 5),
        ("after", [""]),
        ("when", "sometimes"),
        ("deadline", "1 fortnight"),
        ("max_run", float("inf")),
        ("retry", -1),
        ("retry", True),
        ("retry", {"times": 3, "count": 1}),
        ("retry", {"backoff": 3}),
        ("retry", {"count": 1, "on": ["bad-luck"]}),
        ("retry", {"count": 1, "most": "long"}),
        ("labels", ["a", ""]),
        ("labels", [str(n) for n in range(17)]),
        ("labels", 5),
        ("key", ""),
        ("key", "x" * 241),
        ("on_done", "no path"),
        ("policy", "dearest"),
        ("durable", "yes"),
        ("news", "paper"),
        ("place", "not a path"),
        ("timeout", "soon"),
    ],
)
def test_what_cannot_be_is_refused_by_name(name: str, value: Any) -> None:
    client = Client(connection=MemoryBus().connection("ann@memory.test/desk"))
    with pytest.raises(ValueError, match=f"^{name}: ") as caught:
        client.options(**{name: value})
    assert "\n" not in str(caught.value)


def test_a_label_for_a_search_is_no_label() -> None:
    with pytest.raises(ValueError, match=r"^labels: "):
        given(label="web*")
    with pytest.raises(TypeError, match="colour"):
        given(colour="red")
