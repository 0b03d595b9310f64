"""The verbs that ask something of a platform that runs; it is shared by the tests of this file."""

import json
import signal
from pathlib import Path

import pytest

from spinal.bus.home import Home

from .conftest import WORKER, Program, Spinal, spinal_at

AGENT = "worker@spinal.localhost/agent"


@pytest.fixture
def spinal(running: Path) -> Spinal:
    return spinal_at(running)


class TestCall:
    @pytest.mark.parametrize(
        ("words", "value"),
        [
            (("/test/add", "a=2", "b=3"), 5),
            (("/test/add", "a:=2"), 3),
            (("/test/greet", "name=5"), "Hello, 5!"),
            (("/test/add", "a=2", "--to", "worker"), 3),
            (("/test/add", "a=2", "--to", AGENT), 3),
            (("/test/add", "a=2", "--place", "/eu", "--tag", "test", "--policy", "random"), 3),
            (("/test/add", "a=2", "--timeout", "30s"), 3),
        ],
    )
    def test_the_value_is_printed(
        self, spinal: Spinal, words: tuple[str, ...], value: object
    ) -> None:
        done = spinal("call", *words, "--json")
        assert (done.code, done.err) == (0, "")
        assert done.json == {"value": value}

    def test_people_get_the_bare_value(self, spinal: Spinal) -> None:
        assert spinal("call", "/test/greet", "name=you").out == "Hello, you!\n"
        assert spinal("call", "/test/add", "a=1").out == "2\n"

    def test_a_file_goes_and_comes_as_a_blob(self, spinal: Spinal, tmp_path: Path) -> None:
        (tmp_path / "in.txt").write_text("quiet")
        out = tmp_path / "out.txt"
        for word in (f"text={tmp_path}/in.txt", f"text@={tmp_path}/in.txt"):
            done = spinal("call", "/test/upper", word, "--out", str(out))
            assert (done.code, done.out) == (0, "")
            assert done.line == f"wrote {out} (5 B)"
            assert out.read_text() == "QUIET"
        reference = spinal("call", "/test/upper", word, "--json").json["value"]
        assert reference["blob"]["size"] == 5 and reference["blob"]["media"] == "text/plain"
        again = spinal("call", "/test/upper", f"text:={json.dumps(reference)}")
        assert reference["blob"]["sha256"] in again.out

    def test_a_stream_comes_as_lines(self, spinal: Spinal) -> None:
        assert spinal("call", "/test/count", "to=3").out == "1\n2\n3\n"
        lines = spinal("call", "/test/count", "to=2", "--json").out.splitlines()
        assert [json.loads(line) for line in lines] == [{"data": 1}, {"data": 2}, {"value": None}]

    @pytest.mark.parametrize(
        ("words", "code", "line"),
        [
            (("/test/add", "a=x"), 2, "a: 'x' is not an integer"),
            (("/test/add",), 2, "a is missing: it takes a=INTEGER [b=INTEGER]"),
            (("/test/add", "a=1", "c=1"), 2, "no argument c"),
            (("/test/add", "a=1", "--to", "worker", "--timeout", "0.001ms"), 4, ""),
            (("/test/upper", "text=/no/such"), 2, "/no/such cannot be read"),
            (("/test/fail",), 1, f"out of paper (at {AGENT})"),
            (("/test/nothing",), 3, "no agent offers /test/nothing"),
            (("/test/add", "a=1", "--tag", "gpu"), 3, ""),
            (("/test/add", "a=1", "--to", "nobody"), 4, ""),
        ],
    )
    def test_each_error_is_one_line_with_its_code(
        self, spinal: Spinal, words: tuple[str, ...], code: int, line: str
    ) -> None:
        done = spinal("call", *words, "--json")
        assert done.code == code and line in done.line
        assert done.json["error"]["exit"] == code

    def test_an_operation_that_refuses_is_one_line(self, spinal: Spinal, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"\0")
        done = spinal("call", "/test/upper", f"text={tmp_path}/x")
        assert done.code == 1 and "that is no text" in done.line

    def test_ctrl_c_cancels_it_and_ends_quietly(self, spinal: Spinal, running: Path) -> None:
        tap = Program(running, "tap", "--json")
        try:
            while spinal("call", "/spinal/status", "--json").json["value"]["taps"] == 0:
                pass
            call = Program(running, "call", "/test/wait", "--json")
            try:
                began = tap.until(op="/test/wait")
            finally:
                assert call.end(signal.SIGINT) == 130
            assert call.err in ("", "/test/wait 1/2 waiting\n")
            ended = tap.until(id=began["id"], what="final")
            assert ended["state"] == "cancelled"
        finally:
            assert tap.end(signal.SIGINT) == 130


class TestLooking:
    def test_agents_are_listed(self, spinal: Spinal) -> None:
        (found,) = spinal("agents", "--json").json
        assert {"agent", "state", "slots", "busy", "load", "cost", "ops"} <= found.keys()
        assert (found["agent"], found["state"], found["slots"]) == (AGENT, "available", 4)
        assert "/test/add" in found["ops"]
        assert spinal("agents").out.startswith(f"{AGENT}\tavailable\t")

    def test_operations_are_listed(self, spinal: Spinal) -> None:
        found = {one["op"]: one for one in spinal("ops", "--json").json}
        assert found["/test/add"]["args"]["required"] == ["a"]
        assert "/test/add\ta=INTEGER [b=INTEGER]\treads\tAdd two numbers." in spinal("ops").out

    def test_resolving_says_why(self, spinal: Spinal) -> None:
        found = spinal("resolve", "/test/add", "--json").json
        assert [one["agent"] for one in found["candidates"]] == [AGENT]
        assert found["candidates"][0]["reasons"] and found["rejected"] == []
        found = spinal("resolve", "/test/add", "--place", "/us", "--json").json
        assert found["candidates"] == []
        assert "/us" in found["rejected"][0]["reason"]
        assert AGENT in spinal("resolve", "/test/add").out

    def test_only_the_owner_may_tap(self, spinal: Spinal, running: Path) -> None:
        added = spinal("account", "add", "web", "--role", "caller", "--json").json
        variables = {**added["env"], "SPINAL_HOME": ""}
        done = spinal("tap", **variables)
        assert done.code == 5 and "role caller" in done.err.splitlines()[-1]
        assert spinal("call", "/test/add", "a=1", **variables).out == "2\n"

    def test_wrong_credentials_are_one_line(
        self, spinal: Spinal, running: Path, tmp_path: Path
    ) -> None:
        home = Home.find(running)
        variables = {**home.environment("owner"), "SPINAL_HOME": ""}
        (tmp_path / "wrong").write_text("wrong")
        done = spinal("agents", **{**variables, "SPINAL_PASSWORD_FILE": str(tmp_path / "wrong")})
        assert done.code == 5 and "wrong password" in done.line
        other = Home.create(tmp_path / "other")
        from spinal.bus.server import certificates

        files = certificates.ensure(tmp_path / "ca", other.domain)
        done = spinal("agents", **{**variables, "SPINAL_CA": str(files.ca)})
        assert done.code == 5 and "certificate" in done.line


class TestMap:
    @pytest.fixture
    def inputs(self, tmp_path: Path) -> Path:
        folder = tmp_path / "in"
        folder.mkdir()
        for number in range(20):
            (folder / f"{number:02}.txt").write_text(f"text {number}")
        return folder

    def test_there_is_one_file_for_each_input_and_nothing_else(
        self, spinal: Spinal, inputs: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        done = spinal("map", "/test/upper", "--over", f"text={inputs}/*.txt", "--out", str(out))
        assert (done.code, done.out) == (0, ""), done.err
        assert done.err.splitlines()[-1].startswith("20 of 20 done in ")
        found = sorted(path.name for path in out.iterdir())
        assert found == [f"{number:02}.txt" for number in range(20)]
        assert (out / "07.txt").read_text() == "TEXT 7"

    def test_failures_are_named_and_counted(
        self, spinal: Spinal, inputs: Path, tmp_path: Path
    ) -> None:
        (inputs / "07.txt").write_bytes(b"\0")
        out = tmp_path / "out"
        done = spinal(
            *("map", "/test/upper", "--over", f"text={inputs}/*.txt", "--out", str(out)),
            *("--window", "3", "--json"),
        )
        assert done.code == 1
        assert f"spinal: {inputs}/07.txt: that is no text" in done.err
        lines = [json.loads(line) for line in done.out.splitlines()]
        assert lines[-1]["done"] == 19 and lines[-1]["failed"] == 1
        assert len(list(out.iterdir())) == 19
        (bad,) = (line for line in lines if "error" in line)
        assert bad["input"] == f"{inputs}/07.txt" and bad["error"]["reason"] == "refused"

    def test_other_arguments_are_set_and_text_is_sent(self, spinal: Spinal, inputs: Path) -> None:
        for name in ("08.txt", "09.txt"):
            (inputs / name).write_text("5")
        over = ("--over", f"a@={inputs}/0[89].txt")
        done = spinal("map", "/test/add", *over, "--set", "b=10")
        assert sorted(done.out.splitlines()) == [f"{inputs}/08.txt\t15", f"{inputs}/09.txt\t15"]

    def test_what_does_not_fit_is_told_before_anything_is_sent(
        self, spinal: Spinal, inputs: Path
    ) -> None:
        done = spinal("map", "/test/add", "--over", f"a={inputs}/0[89].txt")
        assert done.code == 2 and "is not an integer" in done.line
        done = spinal("map", "/test/nothing", "--over", f"a={inputs}/*.txt")
        assert done.code == 3


class TestAgents:
    def test_a_second_one_gets_a_number_and_a_taken_name_is_refused(
        self, spinal: Spinal, running: Path
    ) -> None:
        done = spinal("agent", "run", str(WORKER), "--name", "worker")
        assert done.code == 2 and "agent name 'worker' is taken" in done.line
        words = ("--slots", "2", "--place", "role=/web", "--tag", "extra", "--cost", "0.5")
        second = Program(running, "agent", "run", str(WORKER), *words, "--json")
        try:
            ready = second.until(event="ready")
            assert ready["agent"] == "worker-2@spinal.localhost/agent"
            listed = {one["agent"]: one for one in spinal("agents", "--json").json}
            shown = listed[ready["agent"]]
            assert (shown["slots"], shown["cost"]) == (2, 0.5)
            assert shown["place"] == {"site": "/eu/fra", "role": "/web"}
            assert shown["tags"] == ["test", "extra"]
        finally:
            assert second.end() == 0, second.err

    def test_away_from_the_home_the_variables_do(self, spinal: Spinal, running: Path) -> None:
        added = spinal("account", "add", "remote", "--role", "agent", "--json").json
        agent = Program(
            running, "agent", "run", str(WORKER), "--json", **{**added["env"], "SPINAL_HOME": ""}
        )
        try:
            assert agent.until(event="ready")["agent"] == "remote@spinal.localhost/agent"
        finally:
            assert agent.end() == 0, agent.err

    def test_an_account_with_another_role_is_not_taken(self, spinal: Spinal, running: Path) -> None:
        added = spinal("account", "add", "web", "--role", "caller", "--json").json
        done = spinal(
            "agent",
            "run",
            str(WORKER),
            **{**added["env"], "SPINAL_HOME": "", "SPINAL_LOG": "error"},
        )
        assert done.code == 5 and "role" in done.err.splitlines()[-1]

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("x = 1", "has no agent"),
            ("import nothing_of_that_name", "ModuleNotFoundError"),
            ("def (", "SyntaxError"),
        ],
    )
    def test_a_file_without_an_agent_is_one_line(
        self, spinal: Spinal, tmp_path: Path, text: str, line: str
    ) -> None:
        (tmp_path / "bad.py").write_text(text)
        done = spinal("agent", "run", str(tmp_path / "bad.py"))
        assert done.code == 2 and line in done.line
        assert spinal("agent", "run", "/no/such.py").code == 2
