"""The verbs about jobs, on a platform that runs; it is shared by the tests of this file."""

import io
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from spinal.cli.common import Listing
from spinal.cli.jobs import changed, picture
from spinal.cli.limit import told

from .conftest import COMMAND, Outcome, Program, Spinal, environment, spinal_here, until

AGENT = "worker@spinal.localhost/agent"
NOBODY = "/test/nobody/offers"
UNKNOWN = "00000000000000000000"


@pytest.fixture
def spinal(running: Path) -> Spinal:
    return spinal_here(running)


@pytest.fixture
def program(running: Path) -> Iterator[Callable[..., Program]]:
    """Start the command line in a process that stays, and end it with the test at the latest."""
    started: list[Program] = []

    def start(*words: str) -> Program:
        started.append(Program(running, *words))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture
def submitted(spinal: Spinal) -> Callable[..., str]:
    """Submit a job and give its id."""

    def submit(*words: str) -> str:
        done = spinal("submit", *words)
        assert done.code == 0, done.err
        return done.out.strip()

    return submit


def state(spinal: Spinal, id_: str) -> str:
    found: str = spinal("job", "show", id_, "--json").json["state"]
    return found


ROW = {
    "id": UNKNOWN,
    "op": "/x",
    "state": "queued",
    "created": "2026-11-21T12:00:00.000Z",
}


class TestDecisions:
    """What is decided without a platform."""

    def test_a_change_is_a_new_job_another_state_agent_or_attempt(self) -> None:
        assert changed({}, [ROW]) == [ROW]
        assert changed({UNKNOWN: ROW}, [{**ROW, "progress": {"done": 1}}]) == []
        for news in ({"state": "done"}, {"attempt": 2}, {"agent": "w@h/agent"}):
            assert changed({UNKNOWN: ROW}, [{**ROW, **news}]) == [{**ROW, **news}]

    @pytest.mark.parametrize("width", [60, 80, 120])
    def test_a_picture_keeps_to_its_terminal_and_ids_stay_whole(self, width: int) -> None:
        console = Console(width=width, record=True, file=io.StringIO())
        long = {**ROW, "op": "/a" * 40, "labels": ["x" * 50], "progress": {"note": "y" * 200}}
        console.print(picture([long, ROW], True, width))
        lines = console.export_text().splitlines()
        assert sum(UNKNOWN in line for line in lines) == 2
        assert len(lines) == 7 and "the newest 2" in lines[-1]

    def test_a_picture_of_nothing_says_so(self) -> None:
        assert "0 jobs" in str(picture([], False, 80))

    @pytest.mark.parametrize(
        ("words", "listed"),
        [
            ([], True),
            (["--json"], True),
            (["--home", "/x"], True),
            (["--home=/x", "--json"], True),
            (["--label", "retry"], True),
            (["list"], False),
            (["--home", "/x", "retry"], False),
            (["retry", "--all"], False),
            (["--help"], False),
        ],
    )
    def test_a_group_alone_lists(self, words: list[str], listed: bool) -> None:
        seen: list[str] = []

        @click.group(cls=Listing)
        @click.option("--home")
        def group(home: str | None) -> None:
            pass

        @group.command(name="list")
        @click.option("--json", "as_json", is_flag=True)
        @click.option("--label")
        def list_(as_json: bool, label: str | None) -> None:
            seen.append("list")

        @group.command()
        @click.option("--all", "everyone", is_flag=True)
        def retry(everyone: bool) -> None:
            seen.append("retry")

        assert CliRunner().invoke(group, words).exit_code == 0
        assert (seen == ["list"]) == (listed or words == ["list"])

    def test_a_limit_is_written_as_it_is_given(self) -> None:
        assert told({"op": "/x", "rate": 10.0, "per": 1.0}) == "10/s begin"
        assert told({"op": "/x", "rate": 1, "per": 90, "concurrent": 2}) == "1/90s begin, 2 at once"


class TestSubmit:
    def test_the_id_alone_is_printed_and_the_job_is_done(self, spinal: Spinal) -> None:
        done = spinal("submit", "/test/add", "a=2", "b=3")
        assert (done.code, done.err) == (0, "")
        assert re.fullmatch(r"[0-9a-z]{20}\n", done.out)
        ended = spinal("job", "wait", done.out.strip())
        assert (ended.code, ended.out) == (0, "5\n")

    def test_with_json_it_is_the_job(self, spinal: Spinal) -> None:
        words = ("--label", "a", "--label", "b", "--priority", "3", "--key", "json-key")
        job = spinal("submit", "/test/add", "a=1", *words, "--json").json
        assert (job["op"], job["labels"], job["priority"]) == ("/test/add", ["a", "b"], 3)
        assert job["caller"] == "owner@spinal.localhost"
        again = spinal("submit", "/test/add", "a=1", "--key", "json-key", "--json").json
        assert again["id"] == job["id"]

    def test_a_key_whose_job_has_ended_is_told(self, spinal: Spinal) -> None:
        first = spinal("submit", "--wait", "/test/add", "a=1", "--key", "told")
        assert first.out == "2\n"
        again = spinal("submit", "/test/add", "a=1", "--key", "told")
        assert again.code == 0 and again.out.strip() in first.err
        assert again.line == "this key has a job already, which has ended: it is done"

    def test_waiting_prints_the_value_and_what_happens_meanwhile(self, spinal: Spinal) -> None:
        done = spinal("submit", "/test/talk", "--wait")
        assert (done.code, done.out) == (0, "said\n")
        lines = done.err.splitlines()
        assert lines[0].startswith("job ")
        assert [line for line in lines if line in ("began", "careful")] == ["began", "careful"]
        shown = spinal("submit", "/test/talk", "--wait", "--json")
        assert shown.json["value"] == "said" and len(shown.json["id"]) == 20

    def test_waiting_ends_with_the_exit_code_of_the_job(self, spinal: Spinal) -> None:
        done = spinal("submit", "/test/fail", "--wait")
        assert done.code == 1
        assert "out of paper" in done.err.splitlines()[-1]
        done = spinal("submit", "/test/add", "a=x", "--wait")
        assert done.code == 2 and "a: 'x' is not an integer" in done.line

    def test_a_file_goes_and_comes_as_a_blob(self, spinal: Spinal, tmp_path: Path) -> None:
        (tmp_path / "in.txt").write_text("quiet")
        out = tmp_path / "out.txt"
        id_ = spinal("submit", "/test/upper", f"text={tmp_path}/in.txt").out.strip()
        done = spinal("job", "wait", id_, "--out", str(out))
        assert (done.code, out.read_text()) == (0, "QUIET")
        assert done.err.splitlines()[-1] == f"wrote {out} (5 B)"
        shown = spinal("job", "show", id_)
        assert "text/plain" in shown.out

    def test_ctrl_c_leaves_the_job_and_says_how_to_get_back(
        self, spinal: Spinal, program: Callable[..., Program]
    ) -> None:
        waiting = program("submit", "/test/wait", "--wait", "--label", "left", "--json")
        words = ("jobs", "--label", "left", "--state", "processing", "--json")
        (job,) = until(lambda: spinal(*words).json["items"])
        until(lambda: "waiting" in waiting.err)
        assert waiting.end(signal.SIGINT) == 130
        id_ = job["id"]
        assert waiting.err.splitlines()[-1] == f"job {id_} goes on: `spinal job wait {id_}`"
        assert state(spinal, id_) == "processing"
        assert spinal("job", "cancel", id_).out == "killed\n"

    def test_nobody_to_do_it_is_told_with_the_time_that_it_waits(self, spinal: Spinal) -> None:
        done = spinal("submit", NOBODY, "n:=1", "--deadline", "2h")
        assert done.code == 0
        assert re.fullmatch(
            rf"nobody offers {NOBODY} now; it waits until [-0-9 ]*\d\d:\d\d:\d\d", done.line
        )
        id_ = done.out.strip()
        assert state(spinal, id_) == "queued"
        done = spinal("submit", NOBODY, "n=1", "--delay", "1h")
        assert done.err.splitlines()[0].endswith("key:=json sends anything else")
        assert "it waits until " in done.err
        for one in (id_, done.out.strip()):
            assert spinal("job", "cancel", one).code == 0

    def test_jobs_come_after_others(self, spinal: Spinal, submitted: Callable[..., str]) -> None:
        first = submitted("/test/wait")
        second = spinal("submit", "/test/add", "a=1", "--after", first, "--when", "ended")
        assert second.line == f"it waits after {first}"
        id_ = second.out.strip()
        assert state(spinal, id_) == "waiting"
        assert spinal("job", "cancel", first).out == "killed\n"
        assert spinal("job", "wait", id_).out == "2\n"

    def test_one_agent_alone_can_be_asked(self, spinal: Spinal) -> None:
        assert spinal("submit", "/test/add", "a=1", "--to", "worker", "--wait").out == "2\n"
        elsewhere = spinal("submit", "/test/add", "a=1", "--to", "nobody").out.strip()
        assert state(spinal, elsewhere) == "queued"
        assert spinal("job", "cancel", elsewhere).code == 0

    def test_the_end_is_told_to_an_operation(
        self, spinal: Spinal, submitted: Callable[..., str]
    ) -> None:
        id_ = submitted("/test/add", "a=1", "--on-done", "/test/told")
        spinal("job", "wait", id_)
        told = until(lambda: spinal("jobs", "--op", "/test/told", "--json").json["items"])
        assert [job["origin"] for job in told] == [f"callback:{id_}"]
        assert spinal("job", "cancel", told[0]["id"]).code == 0

    def test_a_time_is_waited_for(self, spinal: Spinal) -> None:
        done = spinal("submit", "/test/add", "a=1", "--at", "2027-01-01T00:00:00Z", "--json")
        assert done.json["state"] == "waiting" and done.json["due"] == "2027-01-01T00:00:00.000Z"
        assert spinal("job", "cancel", done.json["id"]).code == 0

    @pytest.mark.parametrize(
        ("words", "code", "line"),
        [
            (("/test/add", "a=1", "--after", UNKNOWN), 1, UNKNOWN),
            (("/test/add", "a=1", "--priority", "10"), 2, "10"),
            (("/test/add", "a=1", "--retry", "often"), 2, "how often"),
            (("/test/add", "a=1", "--retry", "1,on=nonsense"), 2, "--retry: on: there is no"),
            (("/test/add", "a=1", "--max-run", "soon"), 2, "--max-run: not a duration"),
            (("/test/add", "a=1", "--at", "soon"), 2, "not a time: 'soon'"),
            (("/test/add", "a=1", "--on-done", "x"), 2, "--on-done: "),
            (("/test/add", "a=1", "--out", "x"), 2, "--out goes with --wait"),
            (("/test/add",), 2, "a is missing"),
            (("add",), 2, "must start with '/'"),
            ((), 2, "Missing argument 'OP', or --file"),
            (("/test/add", "--file", "x"), 2, "--file goes alone"),
            (("--file", "x", "--label", "y"), 2, "--file goes alone"),
            (("--file", "/no/such.json"), 1, "/no/such.json"),
        ],
    )
    def test_each_error_is_one_line_with_its_code(
        self, spinal: Spinal, words: tuple[str, ...], code: int, line: str
    ) -> None:
        done = spinal("submit", *words, "--json")
        assert done.code == code and line in done.line, done.err
        assert done.json["error"]["exit"] == code


class TestFile:
    @pytest.fixture
    def submit(self, spinal: Spinal, tmp_path: Path) -> Callable[..., Outcome]:
        def submit(jobs: Any, *words: str) -> Outcome:
            file = tmp_path / "jobs.json"
            file.write_text(json.dumps(jobs))
            return spinal("submit", "--file", str(file), *words)

        return submit

    def test_each_name_is_printed_with_its_id(
        self, spinal: Spinal, submit: Callable[..., Outcome], tmp_path: Path
    ) -> None:
        (tmp_path / "in.txt").write_text("quiet")
        jobs = [
            {"name": "second", "op": "/test/add", "args": {"a": 1}, "after": ["first"]},
            {"name": "first", "op": "/test/upper", "args": {"text": f"{tmp_path}/in.txt"}},
        ]
        done = submit(jobs)
        assert (done.code, done.err) == (0, "")
        ids = dict(line.split("\t") for line in done.out.splitlines())
        assert list(ids) == ["second", "first"]
        assert spinal("job", "wait", ids["second"]).out == "2\n"
        shown = spinal("job", "show", ids["second"], "--json").json
        assert shown["after"] == [ids["first"]]
        assert state(spinal, ids["first"]) == "done"

    def test_standard_input_is_a_file_too(self, running: Path) -> None:
        done = subprocess.run(
            [*COMMAND, "submit", "--file", "-", "--json"],
            env=environment(running),
            input=json.dumps([{"name": "a", "op": "/test/add", "args": {"a": 1}}]),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        (job,) = json.loads(done.stdout)["jobs"]
        assert job["name"] == "a" and len(job["id"]) == 20

    def test_a_cycle_is_refused_and_named(self, submit: Callable[..., Outcome]) -> None:
        done = submit(
            [
                {"name": "a", "op": "/test/add", "after": ["b"]},
                {"name": "b", "op": "/test/add", "after": ["a"]},
            ]
        )
        assert (done.code, done.out) == (2, "")
        assert re.search(r"a -> b -> a|b -> a -> b", done.line)

    def test_all_or_none(self, spinal: Spinal, submit: Callable[..., Outcome]) -> None:
        done = submit(
            [
                {"name": "a", "op": "/test/add", "labels": ["none"]},
                {"name": "b", "op": "/test/add", "after": ["c"]},
            ]
        )
        assert done.code == 2 and "'c'" in done.line
        assert spinal("jobs", "--label", "none", "--json").json["items"] == []


class TestJobs:
    def test_they_are_listed_newest_first(
        self, spinal: Spinal, submitted: Callable[..., str]
    ) -> None:
        ids = [submitted("/test/add", f"a={n}", "--label", "list-me") for n in range(3)]
        for id_ in ids:
            spinal("job", "wait", id_)
        done = spinal("jobs", "--label", "list*", "--json").json
        assert [job["id"] for job in done["items"]] == ids[::-1] and done["more"] is False
        lines = spinal("jobs", "--label", "list-me").out.splitlines()
        first = lines[0].split("\t")
        assert first[:5] == [ids[2], "/test/add", "done", "list-me", AGENT]

    def test_a_cut_list_says_so(self, spinal: Spinal, submitted: Callable[..., str]) -> None:
        ids = [submitted("/test/add", "a=1", "--label", "cut") for _ in range(3)]
        done = spinal("jobs", "--label", "cut", "--limit", "2")
        assert len(done.out.splitlines()) == 2
        assert done.line == "these are the newest 2: --limit N or --all shows more"
        assert spinal("jobs", "--label", "cut", "--limit", "2", "--json").json["more"] is True
        assert len(spinal("jobs", "--label", "cut", "--all").out.splitlines()) == len(ids)
        assert spinal("jobs", "--label", "cut", "--limit", "3").err == ""

    def test_filters_narrow_it(self, spinal: Spinal, submitted: Callable[..., str]) -> None:
        good, bad = (
            submitted("/test/add", "a=1", "--label", "f"),
            submitted("/test/fail", "--label", "f"),
        )
        spinal("job", "wait", good)
        spinal("job", "wait", bad)

        def found(*words: str) -> list[str]:
            return [
                job["id"] for job in spinal("jobs", "--label", "f", *words, "--json").json["items"]
            ]

        assert found("--state", "error") == [bad]
        assert found("--state", "error", "--state", "done") == [bad, good]
        assert found("--op", "/test/add") == [good]
        assert found("--op", "/test/**") == [bad, good]
        assert found("--op", "/other/**") == []
        (row,) = spinal("jobs", "--label", "f", "--state", "error").out.splitlines()
        assert row.split("\t")[-1].startswith("failed: ") and "out of paper" in row
        none = spinal("jobs", "--label", "nothing-has-it")
        assert (none.code, none.out, none.line) == (0, "", "no such jobs")

    def test_watching_tells_each_change(
        self, spinal: Spinal, program: Callable[..., Program], submitted: Callable[..., str]
    ) -> None:
        first = submitted("/test/wait", "--label", "watched")
        until(lambda: state(spinal, first) == "processing")
        which = ("--label", "watched", "--state", "processing")
        watch = program("jobs", *which, "--watch", "--json")
        assert watch.until(id=first)["state"] == "processing"
        spinal("job", "cancel", first)
        # It is not on the list any more, and told all the same.
        assert watch.until(id=first)["state"] == "killed"
        second = submitted("/test/wait", "--label", "watched")
        assert watch.until(id=second)["state"] == "processing"
        spinal("job", "cancel", second)
        assert watch.end(signal.SIGINT) == 130
        assert watch.err == ""

    def test_watching_gives_plain_lines_to_a_pipe(
        self, running: Path, submitted: Callable[..., str], spinal: Spinal
    ) -> None:
        id_ = submitted("/test/add", "a=1", "--label", "lines")
        spinal("job", "wait", id_)
        with subprocess.Popen(
            [*COMMAND, "jobs", "--label", "lines", "--watch"],
            env=environment(running),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        ) as watch:
            assert watch.stdout is not None
            line = watch.stdout.readline()
            watch.send_signal(signal.SIGINT)
            assert watch.wait(30) == 130
        assert re.fullmatch(rf"\d\d:\d\d:\d\d  {id_}  /test/add  done(  ran \S+)?\n", line)


class TestJob:
    def test_all_is_shown(self, spinal: Spinal, submitted: Callable[..., str]) -> None:
        id_ = submitted("/test/add", "a=1", "b=2", "--label", "shown")
        spinal("job", "wait", id_)
        shown = spinal("job", "show", id_)
        told = dict(
            re.split(r"  +", line, maxsplit=1) for line in shown.out.splitlines() if line[0] != " "
        )
        assert told["job"] == id_ and told["state"] == "done" and told["labels"] == "shown"
        assert told["agent"] == AGENT and told["value"] == "3"
        assert told["attempts"].startswith("1  ") and "done after" in told["attempts"]
        assert {"waited", "ran"} <= told.keys()
        assert "b = 2" in shown.out
        found = spinal("job", "show", id_, "--json").json
        assert found["args"] == {"a": 1, "b": 2} and found["value"] == 3

    def test_why_is_told_in_sentences(self, spinal: Spinal, submitted: Callable[..., str]) -> None:
        id_ = submitted("/test/add", "a=1")
        spinal("job", "wait", id_)
        assert AGENT in spinal("job", "why", id_).out
        found = spinal("job", "why", id_, "--json").json
        assert found["id"] == id_ and any(AGENT in line for line in found["lines"])

    def test_the_log_is_kept(self, spinal: Spinal, submitted: Callable[..., str]) -> None:
        id_ = submitted("/test/talk")
        spinal("job", "wait", id_)
        lines = spinal("job", "log", id_).out.splitlines()
        assert [line.split(" ", 1)[1] for line in lines] == ["began", "warning: careful"]
        found = [json.loads(line) for line in spinal("job", "log", id_, "--json").out.splitlines()]
        assert [(line["seq"], line["text"]) for line in found] == [(1, "began"), (2, "careful")]

    def test_the_log_is_followed_until_the_end(
        self, program: Callable[..., Program], submitted: Callable[..., str], tmp_path: Path
    ) -> None:
        gate = tmp_path / "gate"
        id_ = submitted("/test/talk", f"gate={gate}")
        log = program("job", "log", id_, "--follow", "--json")
        assert log.next()["text"] == "began"
        gate.touch()
        assert log.next()["text"] == "careful"
        assert log.process.wait(30) == 0 and log.end() == 0

    def test_watching_tells_all_that_happens(
        self, program: Callable[..., Program], submitted: Callable[..., str], tmp_path: Path
    ) -> None:
        gate = tmp_path / "gate"
        id_ = submitted("/test/talk", f"gate={gate}")
        watch = program("job", "watch", id_, "--json")
        said = [watch.next()]
        while "began" not in str(said):
            said.append(watch.next())
        gate.touch()
        while said[-1].get("state") != "done":
            said.append(watch.next())
        assert watch.process.wait(30) == 0 and watch.end() == 0
        assert said[-1]["value"] == "said"
        assert [one["log"]["text"] for one in said if "log" in one] == ["began", "careful"]
        states = [one["state"] for one in said if "state" in one]
        assert states[0] in ("queued", "processing") and states[-1] == "done"

    def test_watching_people_get_lines_and_the_exit_code(
        self, spinal: Spinal, submitted: Callable[..., str]
    ) -> None:
        done = spinal("job", "watch", submitted("/test/fail"))
        assert done.code == 1
        assert re.search(r"\d\d:\d\d:\d\d  error  .*out of paper", done.out)
        assert "out of paper" in done.line

    def test_a_cancelled_job_is_killed_and_an_ended_one_stays_so(
        self, spinal: Spinal, submitted: Callable[..., str]
    ) -> None:
        id_ = submitted("/test/wait")
        done = spinal("job", "cancel", id_)
        assert (done.code, done.out, done.err) == (0, "killed\n", "")
        waited = spinal("job", "wait", id_)
        assert waited.code == 1 and "cancel" in waited.line
        ended = submitted("/test/add", "a=1")
        spinal("job", "wait", ended)
        late = spinal("job", "cancel", ended)
        assert (late.code, late.out) == (1, "done\n")
        assert late.line == f"spinal: job {ended} had ended already: it is done"
        assert spinal("job", "cancel", ended, "--json").json == {"id": ended, "state": "done"}

    def test_a_retry_is_a_new_job(self, spinal: Spinal, submitted: Callable[..., str]) -> None:
        id_ = submitted("/test/add", "a=1")
        assert spinal("job", "wait", id_).out == "2\n"
        done = spinal("job", "retry", id_)
        new = done.out.strip()
        assert done.code == 0 and new != id_
        assert spinal("job", "wait", new).out == "2\n"
        assert spinal("job", "show", new, "--json").json["origin"] == f"retry:{id_}"
        assert spinal("job", "retry", id_, "--json").json["origin"] == f"retry:{id_}"

    def test_waiting_has_a_limit(self, spinal: Spinal, submitted: Callable[..., str]) -> None:
        id_ = submitted("/test/wait")
        done = spinal("job", "wait", id_, "--timeout", "0.2")
        assert done.code == 4
        assert f"job {id_} has not ended within 200ms" in done.err.splitlines()[-1]
        assert state(spinal, id_) == "processing"
        assert spinal("job", "cancel", id_).code == 0

    @pytest.mark.parametrize("verb", ["show", "why", "log", "cancel", "retry", "wait", "watch"])
    def test_an_unknown_id_is_an_error_with_the_id(self, spinal: Spinal, verb: str) -> None:
        done = spinal("job", verb, UNKNOWN)
        assert (done.code, done.out) == (1, "")
        assert UNKNOWN in done.line and "pending" not in done.line
        told = spinal("job", verb, UNKNOWN, "--json").json["error"]
        assert (told["reason"], told["exit"]) == ("unknown-job", 1)

    @pytest.mark.parametrize("cut", [10, 19])
    def test_the_beginning_of_an_id_is_not_taken(
        self, spinal: Spinal, submitted: Callable[..., str], cut: int
    ) -> None:
        beginning = submitted("/test/add", "a=1")[:cut]
        done = spinal("job", "show", beginning)
        assert done.code == 1
        assert (
            done.line == f"spinal: there is no job {beginning}: an id has 20 characters, all needed"
        )
        assert spinal("job", "show", "an odd one").code == 1


class TestDead:
    @pytest.fixture
    def dead(self, spinal: Spinal, submitted: Callable[..., str]) -> Iterator[str]:
        """Give the label of three jobs that failed."""
        label = f"dead-{time.monotonic_ns()}"
        for _ in range(3):
            spinal("job", "wait", submitted("/test/fail", "--label", label))
        yield label
        spinal("dead", "delete", "--all", "--label", label)

    def listed(self, spinal: Spinal, label: str) -> list[str]:
        found = spinal("dead", "list", "--label", label, "--json").json
        return [job["id"] for job in found["items"]]

    def test_it_lists_what_failed_and_why(self, spinal: Spinal, dead: str) -> None:
        ids = self.listed(spinal, dead)
        assert len(ids) == 3 and ids == sorted(ids, reverse=True)
        row = spinal("dead", "--label", dead).out.splitlines()[0].split("\t")
        assert (row[0], row[1], row[3]) == (ids[0], "/test/fail", "failed")
        assert "out of paper" in row[4]
        assert set(ids) <= {job["id"] for job in spinal("dead", "--json").json["items"]}
        assert len(spinal("dead", "--label", dead, "--limit", "1").out.splitlines()) == 1

    def test_one_is_retried_and_one_deleted(self, spinal: Spinal, dead: str) -> None:
        first, second, third = self.listed(spinal, dead)
        done = spinal("dead", "retry", first)
        old, new = done.out.split()
        assert (done.code, old) == (0, first)
        assert spinal("job", "wait", new).code == 1
        assert set(self.listed(spinal, dead)) == {second, third, new}
        done = spinal("dead", "delete", second, third)
        assert (done.code, done.line) == (0, "deleted 2 jobs")
        assert self.listed(spinal, dead) == [new]
        assert spinal("job", "show", second).code == 1

    def test_all_are_retried_or_deleted(self, spinal: Spinal, dead: str) -> None:
        ids = self.listed(spinal, dead)
        pairs = spinal("dead", "retry", "--all", "--label", dead, "--json").json["jobs"]
        retried = {pair["id"] for pair in pairs}
        assert set(ids) <= retried
        new = [pair["new"] for pair in pairs if pair["new"] not in retried]
        for id_ in new:
            spinal("job", "wait", id_)
        assert set(self.listed(spinal, dead)) == set(new)
        gone = spinal("dead", "delete", "--all", "--label", dead, "--json").json["jobs"]
        assert {job["id"] for job in gone} == set(new)
        assert spinal("dead", "list", "--label", dead).line == "no job is dead"

    def test_what_is_not_dead_is_an_error(
        self, spinal: Spinal, submitted: Callable[..., str]
    ) -> None:
        id_ = submitted("/test/add", "a=1")
        spinal("job", "wait", id_)
        done = spinal("dead", "retry", id_)
        assert done.code == 1 and id_ in done.line
        assert UNKNOWN in spinal("dead", "delete", UNKNOWN).line
        assert spinal("dead", "retry").code == 2
        assert spinal("dead", "delete", id_, "--all").code == 2
        assert spinal("dead", "delete", id_, "--label", "x").code == 2


class TestSchedules:
    def test_one_is_added_listed_and_removed(self, spinal: Spinal) -> None:
        words = ("0 7 * * *", "/test/add", "a=1", "--zone", "Europe/Paris", "--name", "morning")
        done = spinal("schedule", "add", *words, "--label", "early", "--retry", "2")
        assert (done.code, done.out) == (0, "morning\n")
        assert done.line.startswith("next at ")
        (found,) = spinal("schedule", "list", "--json").json["items"]
        assert found["next"][11:] in ("06:00:00.000Z", "05:00:00.000Z")
        row = spinal("schedule").out.splitlines()[0].split("\t")
        assert row[:3] == ["morning", "0 7 * * *", "Europe/Paris"] and row[5] == "/test/add"
        taken = spinal("schedule", "add", *words)
        assert taken.code != 0 and "morning" in taken.line
        assert spinal("schedule", "remove", "morning").line == "removed morning"
        gone = spinal("schedule", "remove", "morning", "--json")
        assert gone.code == 1 and "morning" in gone.line
        assert spinal("schedule", "list").line.startswith("no schedules yet")

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (("every day", "/test/add", "a=1"), "every day"),
            (("* * * *", "/test/add", "a=1"), r"\* \* \* \*"),
            (("0 0 30 2 *", "/test/add", "a=1"), "0 0 30 2 .* never"),
            (("61 * * * *", "/test/add", "a=1"), "61"),
            (("* * * * *", "/test/add", "a=1", "--zone", "Mars/Olympus"), "Mars/Olympus"),
            (("* * * * *", "add", "a=1"), "must start with '/'"),
            (("* * * * *", "/test/add"), "a is missing"),
        ],
    )
    def test_what_never_fires_is_refused_in_one_line(
        self, spinal: Spinal, words: tuple[str, ...], line: str
    ) -> None:
        done = spinal("schedule", "add", *words, "--json")
        assert done.code == 2 and re.search(line, done.line), done.err
        assert done.json["error"]["exit"] == 2


class TestLimits:
    def test_one_is_set_listed_and_removed(self, spinal: Spinal) -> None:
        done = spinal("limit", "set", "/test/limited", "--rate", "10/m", "--concurrent", "2")
        assert (done.code, done.line) == (0, "/test/limited: 10/m begin, 2 at once")
        (found,) = spinal("limit", "--json").json["items"]
        assert found == {"op": "/test/limited", "rate": 10, "per": 60, "concurrent": 2}
        assert spinal("limit", "list").out == "/test/limited\t10/m\t2\n"
        spinal("limit", "set", "/test/limited", "--rate", "100/30s")
        assert spinal("limit", "list").out == "/test/limited\t100/30s\t-\n"
        assert spinal("limit", "remove", "/test/limited").code == 0
        gone = spinal("limit", "remove", "/test/limited")
        assert gone.code == 1 and "/test/limited" in gone.line
        assert spinal("limit").line.startswith("no limits")

    def test_only_the_owner_sets_them(self, spinal: Spinal) -> None:
        added = spinal("account", "add", "web", "--role", "caller", "--json").json
        variables = {**added["env"], "SPINAL_HOME": ""}
        done = spinal("limit", "set", "/test/add", "--concurrent", "1", **variables)
        assert done.code == 5

    def test_usage(self, spinal: Spinal) -> None:
        assert spinal("limit", "set", "/x").line.startswith("spinal: give --rate")
        assert "not a rate: 'fast'" in spinal("limit", "set", "/x", "--rate", "fast").line
        assert spinal("limit", "set", "/x", "--concurrent", "0").code == 2


class TestOthers:
    def test_somebody_elses_job_is_unknown(
        self, spinal: Spinal, submitted: Callable[..., str]
    ) -> None:
        id_ = submitted("/test/add", "a=1")
        added = spinal("account", "add", "web", "--role", "caller", "--json").json
        variables = {**added["env"], "SPINAL_HOME": ""}
        done = spinal("job", "show", id_, **variables)
        assert done.code == 1 and id_ in done.line
        own = spinal("submit", "/test/add", "a=1", "--label", "webs", **variables).out.strip()
        listed = spinal("jobs", "--json", **variables).json["items"]
        assert [job["id"] for job in listed] == [own]
        assert spinal("jobs", "--label", "webs", "--json").json["items"][0]["id"] == own


class TestMap:
    @pytest.fixture
    def inputs(self, tmp_path: Path) -> Path:
        folder = tmp_path / "in"
        folder.mkdir()
        for number in range(12):
            (folder / f"{number:02}.txt").write_text(f"text {number}")
        return folder

    def test_a_durable_one_is_a_job_with_children(
        self, spinal: Spinal, inputs: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        (inputs / "07.txt").write_bytes(b"\0")
        done = spinal(
            *("map", "/test/upper", "--over", f"text={inputs}/*.txt", "--out", str(out)),
            *("--durable", "--label", "mapped", "--window", "4", "--json"),
        )
        assert done.code == 1, done.err
        *lines, last = [json.loads(line) for line in done.out.splitlines()]
        assert (last["done"], last["failed"]) == (11, 1)
        assert (out / "03.txt").read_text() == "TEXT 3"
        (parent,) = spinal("jobs", "--label", "mapped", "--json").json["items"]
        assert parent["id"] == last["job"] and parent["kind"] == "map"
        children = spinal("jobs", "--parent", parent["id"], "--json").json["items"]
        assert {job["id"] for job in children} == {line["job"] for line in lines}
        (bad,) = (job for job in children if job["state"] == "error")
        assert "that is no text" in bad["problem"]["text"]

    def test_the_same_key_runs_nothing_twice(self, spinal: Spinal, inputs: Path) -> None:
        words = ("map", "/test/upper", "--over", f"text={inputs}/*.txt", "--durable", "--json")
        first, again = (spinal(*words, "--key", "album").out.splitlines() for _ in range(2))
        ids = [{json.loads(line)["job"] for line in lines} for lines in (first, again)]
        assert ids[0] == ids[1] and len(ids[0]) == 13

    def test_its_options_are_its_own(self, spinal: Spinal, inputs: Path) -> None:
        done = spinal("map", "/test/upper", "--over", f"text={inputs}/*.txt", "--key", "x")
        assert done.code == 2 and "go with --durable" in done.line
