from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from spinal.cli.jobview import (
    HEADINGS,
    SPARE,
    age,
    attempt,
    cells,
    change,
    clock,
    facts,
    fitted,
    log_line,
    name,
    note,
    span,
    step,
)

from .conftest import time_zone

NOW = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
ID = "06b1kq2j3m4n5p6r7s8t"


@pytest.fixture(autouse=True, scope="module")
def zone() -> Iterator[None]:
    with time_zone("UTC"):
        yield


def row(**members: Any) -> dict[str, Any]:
    return {
        "id": ID,
        "op": "/image/resize",
        "caller": "owner@spinal.localhost",
        "state": "queued",
        "created": "2026-11-21T12:00:00.000Z",
        **members,
    }


PROBLEM = {"reason": "failed", "type": "cancel", "condition": "undefined-condition"}


class TestWords:
    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0, "0ms"),
            (0.1204, "120ms"),
            (0.9996, "1.0s"),
            (1.24, "1.2s"),
            (9.96, "10s"),
            (59.4, "59s"),
            (59.6, "1m00s"),
            (192, "3m12s"),
            (7500, "2h05m"),
            (86_399, "23h59m"),
            (273_600, "3d04h"),
        ],
    )
    def test_durations_are_short(self, seconds: float, text: str) -> None:
        assert span(seconds) == text

    @pytest.mark.parametrize(
        ("stamp", "text"),
        [
            ("2026-11-21T12:00:31.000Z", "0s"),
            ("2026-11-21T12:00:00.000Z", "30s"),
            ("2026-11-21T11:59:00.000Z", "90s"),
            ("2026-11-21T11:57:00.000Z", "3m"),
            ("2026-11-21T07:00:00.000Z", "5h"),
            ("2026-11-01T12:00:00.000Z", "20d"),
        ],
    )
    def test_an_age_has_one_unit(self, stamp: str, text: str) -> None:
        assert age(stamp, NOW) == text

    def test_a_time_has_its_day_unless_that_is_today(self) -> None:
        assert clock("2026-11-21T05:06:07.890Z", NOW) == "05:06:07"
        assert clock("2026-11-22T05:06:07.890Z", NOW) == "2026-11-22 05:06:07"

    def test_only_an_ordinary_agent_goes_by_its_name(self) -> None:
        assert name("worker-2@spinal.localhost/agent") == "worker-2"
        assert name("worker@spinal.localhost/other") == "worker@spinal.localhost/other"
        assert name("-") == "-"


class TestNote:
    @pytest.mark.parametrize(
        ("members", "text"),
        [
            ({}, ""),
            ({"state": "error", "problem": {**PROBLEM, "text": "no\npaper"}}, "failed: no paper"),
            ({"progress": {"done": 3, "total": 10, "note": "halfway"}}, "3/10 halfway"),
            ({"progress": {"done": 3.5}}, "3.5"),
            ({"progress": {"note": "thinking"}}, "thinking"),
            ({"state": "done", "progress": {"done": 3}}, ""),
            ({"children": {"done": 4, "queued": 0, "error": 1}}, "4 done, 1 error"),
            ({"state": "waiting", "held": True, "after": ["a"]}, "after a"),
            ({"state": "waiting", "held": True, "after": ["a", "b"]}, "after 2 jobs"),
            ({"state": "waiting", "due": "2026-11-21T13:00:00.000Z"}, "until 13:00:00"),
            ({"offered": False}, "nobody offers it now"),
        ],
    )
    def test_it_says_what_there_is_to_say(self, members: dict[str, Any], text: str) -> None:
        assert note(row(**members), NOW) == text


class TestTable:
    def test_a_row_has_every_column_and_dashes_for_nothing(self) -> None:
        assert cells(row(), NOW) == (
            ID,
            "/image/resize",
            "queued",
            "-",
            "-",
            "30s",
            "-/-",
            "0",
            "-",
        )
        full = row(state="done", labels=["a", "b"], agent="w@h/agent", wait=0.25, run=3, attempt=2)
        assert cells(full, NOW)[2:] == ("done", "a b", "w@h/agent", "30s", "250ms/3.0s", "2", "-")
        assert len(cells(full, NOW)) == len(HEADINGS)

    def test_a_wide_terminal_gets_the_columns_that_have_something(self) -> None:
        full = row(labels=["x"], agent="w@h/agent", wait=1, attempt=2, progress={"note": "far"})
        rows, headings = fitted([cells(full, NOW)], HEADINGS, 200, SPARE)
        assert headings == HEADINGS
        assert rows == [
            (ID, "/image/resize", "queued", "x", "w", "30s", "1.0s/-", "2", "far"),
        ]
        rows, headings = fitted([cells(row(), NOW)], HEADINGS, 200, SPARE)
        assert headings == ("id", "op", "state", "age")

    def test_on_a_narrow_one_the_least_important_go_and_the_note_is_cut(self) -> None:
        long = row(
            labels=["nightly"],
            agent="worker@h/agent",
            wait=1,
            run=2,
            attempt=2,
            state="processing",
            progress={"note": "reading the archives of the last hundred years"},
        )
        rows, headings = fitted([cells(long, NOW)], HEADINGS, 80, SPARE)
        assert headings[-1] == "note" and {"id", "op", "state", "age"} <= set(headings)
        assert "tries" not in headings and "labels" not in headings
        widths = [max(map(len, column)) for column in zip(*rows, headings, strict=True)]
        assert sum(widths) + 2 * (len(widths) - 1) <= 80
        assert rows[0][-1].endswith("…") and rows[0][0] == ID

    def test_long_names_are_cut_on_a_terminal_alone(self) -> None:
        long = row(op="/" + "x" * 60)
        assert cells(long, NOW)[1] == long["op"]
        ((_, op, *_),), _ = fitted([cells(long, NOW)], HEADINGS, 200, SPARE)
        assert len(op) == 32 and op.endswith("…")


class TestFacts:
    def test_a_job_that_ended_tells_all(self) -> None:
        told = dict(
            facts(
                row(
                    state="done",
                    labels=["a", "b"],
                    args={"width": 320, "name": "x", "list": [1, 2]},
                    value={"ok": True},
                    started="2026-11-21T12:00:01.000Z",
                    ended="2026-11-21T12:00:05.000Z",
                    ends="2026-11-21T13:00:00.000Z",
                    agent="w@h/agent",
                    wait=1.0,
                    run=4.0,
                    cpu=3.5,
                    memory=1536,
                    cost=0.002,
                    priority=0,
                    attempts=[
                        {
                            "number": 1,
                            "agent": "v@h/agent",
                            "began": "2026-11-21T12:00:01.000Z",
                            "ended": "2026-11-21T12:00:02.000Z",
                            "end": "lost",
                            "text": "went\noffline",
                            "uncounted": True,
                        },
                        {
                            "number": 2,
                            "agent": "w@h/agent",
                            "began": "2026-11-21T12:00:02.000Z",
                        },
                    ],
                ),
                NOW,
            )
        )
        assert told["job"] == ID and told["state"] == "done" and told["labels"] == "a b"
        assert told["created"] == "2026-11-21 12:00:00 (30s ago)"
        assert (told["waited"], told["ran"], told["CPU"]) == ("1.0s", "4.0s", "3.5s")
        assert (told["memory"], told["cost"]) == ("1.5 KiB", "0.002000")
        assert told["attempts"].splitlines() == [
            "1  12:00:01  v@h/agent  lost after 1.0s: went offline  (not counted)",
            "2  12:00:02  w@h/agent  runs",
        ]
        assert told["arguments"].splitlines() == ["width = 320", "name = x", "list = [1, 2]"]
        assert told["value"] == '{"ok": true}'
        assert not {"gives up", "priority", "key", "parent", "problem"} & told.keys()

    def test_a_live_one_says_what_it_waits_for_and_when_it_is_given_up(self) -> None:
        told = dict(
            facts(
                row(
                    state="waiting",
                    held=True,
                    after=["a", "b"],
                    when="any",
                    ends="2026-11-21T12:01:00.000Z",
                ),
                NOW,
            )
        )
        assert told["state"] == "waiting (after 2 jobs)"
        assert told["after"] == "a b (any)"
        assert told["gives up"] == "2026-11-21 12:01:00 (in 30s)"

    def test_a_problem_has_a_line_of_its_own(self) -> None:
        told = dict(facts(row(state="error", problem={**PROBLEM, "text": "no paper"}), NOW))
        assert (told["state"], told["problem"]) == ("error", "failed: no paper")

    def test_an_attempt_that_ended_well_says_so(self) -> None:
        one = {
            "number": 1,
            "agent": "w@h/agent",
            "began": "2026-11-21T12:00:01.000Z",
            "ended": "2026-11-21T12:00:02.500Z",
            "end": "done",
        }
        assert attempt(one, NOW) == "1  12:00:01  w@h/agent  done after 1.5s"


class TestWhatHappens:
    def test_a_change_is_one_line(self) -> None:
        running = row(state="processing", agent="w@h/agent", attempt=2, progress={"done": 1})
        assert change(running, NOW) == (
            f"12:00:30  {ID}  /image/resize  processing  at w@h/agent (attempt 2)  1"
        )
        assert step(row(state="done", run=1.5), NOW) == "12:00:30  done  ran 1.5s"
        failed = row(state="error", problem={**PROBLEM, "text": "no paper"})
        assert step(failed, NOW) == "12:00:30  error  failed: no paper"

    def test_a_line_of_the_log_has_its_level_unless_that_is_usual(self) -> None:
        line = {"seq": 1, "at": "2026-11-21T12:00:01.000Z", "text": "hello"}
        assert log_line({**line, "level": "info"}, NOW) == "12:00:01 hello"
        assert log_line({**line, "level": "error"}, NOW) == "12:00:01 error: hello"
