import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from spinal.bus import Retry
from spinal.bus.arguments import ArgumentError
from spinal.cli.submission import (
    asked,
    read_file,
    read_jobs,
    read_rate,
    read_retry,
    read_time,
    with_files,
)

from .conftest import time_zone


@pytest.fixture(autouse=True, scope="module")
def zone() -> Iterator[None]:
    with time_zone("Europe/Paris"):
        yield


class TestRetry:
    def test_a_number_is_enough(self) -> None:
        assert read_retry("3") == {"count": 3}

    def test_the_rest_comes_after_commas(self) -> None:
        assert read_retry("3,backoff=2s,most=1m,on=failed+deadline,elsewhere") == {
            "count": 3,
            "backoff": 2.0,
            "most": 60.0,
            "on": ["failed", "deadline"],
            "elsewhere": True,
        }

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "how often"),
            ("-1", "how often"),
            ("many", "how often"),
            ("3,", "is none of"),
            ("3,pause=1", "is none of"),
            ("3,elsewhere=yes", "is none of"),
            ("3,backoff", "is none of"),
            ("3,backoff=soon", "not a duration"),
        ],
    )
    def test_what_it_cannot_be_is_said(self, text: str, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            read_retry(text)


class TestTime:
    NOW = datetime(2026, 11, 21, 9, 0)

    @pytest.mark.parametrize(
        ("text", "read"),
        [
            ("2026-11-21T09:00:00Z", "2026-11-21T09:00:00.000Z"),
            ("2026-11-21T09:00:00.5+02:00", "2026-11-21T07:00:00.500Z"),
            ("2026-11-21T09:00", "2026-11-21T08:00:00.000Z"),
            ("2026-07-21 09:00:01", "2026-07-21T07:00:01.000Z"),
            ("09:01", "2026-11-21T08:01:00.000Z"),
            ("09:00", "2026-11-22T08:00:00.000Z"),
            ("08:59:59", "2026-11-22T07:59:59.000Z"),
        ],
    )
    def test_it_leaves_in_utc(self, text: str, read: str) -> None:
        assert read_time(text, self.NOW) == read

    @pytest.mark.parametrize("text", ["", "soon", "25:00", "2026-02-30T00:00", "0001-01-01"])
    def test_what_it_cannot_be_is_said(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"not a time: .* \(write 2026"):
            read_time(text, self.NOW)


class TestRate:
    @pytest.mark.parametrize(
        ("text", "read"),
        [
            ("10/s", (10, 1)),
            ("10/m", (10, 60)),
            ("0.5/h", (0.5, 3600)),
            ("100/30s", (100, 30)),
            ("5/1h30m", (5, 5400)),
        ],
    )
    def test_it_is_a_number_in_a_time(self, text: str, read: tuple[float, float]) -> None:
        assert read_rate(text) == read

    @pytest.mark.parametrize("text", ["", "10", "10/", "/s", "0/s", "-1/s", "inf/s", "1/x", "1/0s"])
    def test_what_it_cannot_be_is_said(self, text: str) -> None:
        with pytest.raises(ValueError, match="not a rate"):
            read_rate(text)


class TestOptions:
    def test_what_was_not_asked_for_is_not_sent(self) -> None:
        nothing = asked(labels=(), after=(), key=None, place=(), rerun=None, retry=None)
        assert nothing == asked()
        assert nothing.submission() == {}

    def test_what_was_asked_for_is(self) -> None:
        options = asked(
            labels=("a", "b"),
            place=("/eu",),
            tags=("gpu",),
            deadline="2h",
            max_run="5m",
            retry={"count": 3},
            after=("x",),
            when="any",
        )
        assert options.retry == Retry(3)
        assert options.submission() == {
            "labels": ["a", "b"],
            "place": {"site": "/eu"},
            "tags": ["gpu"],
            "deadline": 7200.0,
            "max_run": 300.0,
            "retry": {"count": 3},
            "after": ["x"],
            "when": "any",
        }

    def test_the_option_that_is_wrong_is_named_as_it_was_typed(self) -> None:
        with pytest.raises(ArgumentError, match=r"^--max-run: not a duration") as caught:
            asked(max_run="soon")
        assert caught.value.problem.argument == "max_run"


class TestFile:
    def test_jobs_are_read_with_texts_for_what_options_take(self) -> None:
        first, second = read_jobs(
            [
                {"name": "a", "op": "/x", "args": {"n": 1}, "delay": "10s", "retry": "2,elsewhere"},
                {"name": "b", "op": "/y", "after": ["a"], "at": "2026-11-21T09:00", "max_run": 5},
            ],
            "jobs.json",
        )
        assert (first.name, first.op, first.args) == ("a", "/x", {"n": 1})
        assert first.options.submission() == {
            "delay": 10.0,
            "retry": {"count": 2, "elsewhere": True},
        }
        assert second.options.submission() == {
            "after": ["a"],
            "at": "2026-11-21T08:00:00.000Z",
            "max_run": 5.0,
        }

    WRONG: ClassVar[list[tuple[Any, str]]] = [
        ([], "no list of jobs"),
        ({"name": "a"}, "no list of jobs"),
        (["a"], "job 1: must be an object"),
        ([{"op": "/x"}], "job 1: name: must be"),
        ([{"name": "a"}], "job 1: op: must be"),
        ([{"name": "a", "op": "x"}], "job 1: .*must start with '/'"),
        ([{"name": "a", "op": "/x", "args": []}], "job 1: args: must be"),
        ([{"name": "a", "op": "/x", "afer": []}], "job 1: there is no member 'afer'"),
        ([{"name": "a", "op": "/x", "delay": "soon"}], "job 1: delay: not a duration"),
        ([{"name": "a", "op": "/x", "retry": {"n": 1}}], "job 1: retry: "),
        ([{"name": "a", "op": "/x"}] * 2, "job 2: another one is named 'a'"),
    ]

    @pytest.mark.parametrize(("found", "said"), WRONG)
    def test_what_is_wrong_is_said_with_its_place(self, found: Any, said: str) -> None:
        with pytest.raises(ArgumentError, match=f"^jobs.json.*{said}"):
            read_jobs(found, "jobs.json")

    def test_a_file_must_be_json_of_a_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "jobs.json"
        file.write_text(json.dumps([{"name": "a", "op": "/x"}]))
        assert [job.name for job in read_file(file)] == ["a"]
        file.write_text("[{")
        with pytest.raises(ArgumentError, match="is not JSON"):
            read_file(file)
        monkeypatch.setattr("spinal.cli.submission.MAX_FILE", 1)
        with pytest.raises(ArgumentError, match="larger than 1 bytes"):
            read_file(file)
        with pytest.raises(FileNotFoundError):
            read_file(tmp_path / "none.json")

    def test_texts_where_the_operation_wants_blobs_are_files(self) -> None:
        schema = {"properties": {"photo": {"type": "object", "format": "blob"}, "name": {}}}
        args = {"photo": "cat.jpg", "name": "cat.jpg"}
        assert with_files(args, schema) == {"photo": Path("cat.jpg"), "name": "cat.jpg"}
