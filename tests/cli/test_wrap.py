from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests.needs import needs

from .conftest import COMMAND, Program, Spinal, environment, spinal_here

pytestmark = needs("units")

UNITS = """\
agent: units
ops:
  /units/convert:
    summary: Convert between units of measurement.
    args:
      from: {max_length: 80}
      to: {max_length: 80, default: m}
    command: [units, --terse, "{from}", "{to}"]
    exit: {1: refused}
    timeout: 5s
    effects: reads
"""


@pytest.fixture
def here(place: Path) -> Spinal:
    return spinal_here(place)


@pytest.fixture
def units(tmp_path: Path) -> str:
    return _written(tmp_path, UNITS)


def _written(folder: Path, text: str) -> str:
    path = folder / "units.yaml"
    path.write_text(text)
    return str(path)


class TestCheck:
    def test_a_manifest_without_mistakes_says_what_it_offers(
        self, here: Spinal, units: str
    ) -> None:
        assert here("wrap", "check", units).out == (
            f"{units}: agent units, one operation, no mistakes\n"
        )
        assert here("wrap", "check", units, "--json").json == {
            "agent": "units",
            "ops": ["/units/convert"],
            "mistakes": [],
        }

    def test_each_mistake_is_a_line_with_file_line_key_and_what_to_write(
        self, here: Spinal, tmp_path: Path
    ) -> None:
        file = _written(tmp_path, UNITS.replace("5s", "soon").replace("effects", "efects"))
        done = here("wrap", "check", file)

        assert (done.code, done.out) == (2, "")
        assert done.err.splitlines() == [
            f"{file}:10: ops./units/convert.timeout: 'soon': "
            + "write a length of time such as 5s, 500ms, 2m or 1h30m",
            f"{file}:11: ops./units/convert.efects: is not known here: did you mean 'effects'?",
            f"spinal: 2 mistakes in {file}",
        ]

    def test_mistakes_are_json_too(self, here: Spinal, tmp_path: Path) -> None:
        file = _written(tmp_path, UNITS.replace("[units,", "[no-such-program,"))
        done = here("wrap", "check", file, "--json")

        assert done.code == 2
        assert done.json["mistakes"] == [
            {
                "file": file,
                "line": 8,
                "key": "ops./units/convert.command.0",
                "text": "'no-such-program' is not here: install it, or give its path",
            }
        ]

    @pytest.mark.parametrize("verb", ["run", "test", "show"])
    def test_no_verb_goes_on_with_a_mistake(self, here: Spinal, tmp_path: Path, verb: str) -> None:
        file = _written(tmp_path, UNITS.replace("5s", "soon"))
        done = here("wrap", verb, file)

        assert (done.code, done.out) == (2, "")
        assert done.line.startswith(f"spinal: {file}:10: ")

    def test_a_file_that_is_not_there_is_one_line(self, here: Spinal) -> None:
        assert here("wrap", "check", "none.yaml").line == (
            "spinal: none.yaml: No such file or directory: give the path of a YAML file"
        )


class TestShow:
    def test_the_operations_are_shown_as_callers_will_see_them(
        self, here: Spinal, units: str
    ) -> None:
        lines = here("wrap", "show", units).out.splitlines()

        assert lines[0] == "/units/convert from=STRING [to=STRING]"
        assert "Convert between units of measurement." in lines[1]

    def test_with_json_it_is_the_description_that_goes_over_the_bus(
        self, here: Spinal, units: str
    ) -> None:
        shown = here("wrap", "show", units, "--json").json["/units/convert"]

        assert shown["args"]["required"] == ["from"]
        assert shown["effects"] == "reads"


class TestTest:
    def test_one_operation_is_run_here(self, here: Spinal, units: str) -> None:
        done = here("wrap", "test", units, "from=3 feet", "to=cm")
        assert (done.code, done.out) == (0, "91.44\n")

        done = here("wrap", "test", units, "--op", "/units/convert", "from=1 km", "--json")
        assert done.json == {"value": "1000"}

    def test_what_goes_wrong_is_what_a_caller_would_get(self, here: Spinal, units: str) -> None:
        done = here("wrap", "test", units, "from=3 smiles")
        assert (done.code, done.line) == (1, "spinal: Unknown unit 'smiles'")

        done = here("wrap", "test", units, "from=-3")
        assert done.code == 2
        assert "'from': it begins with '-'" in done.line

    def test_an_operation_or_argument_that_is_none_is_told(self, here: Spinal, units: str) -> None:
        assert "only /units/convert" in here("wrap", "test", units, "--op", "/x").line
        assert "no argument width" in here("wrap", "test", units, "width=3").line
        assert "from is missing" in here("wrap", "test", units).line

    def test_a_file_goes_in_and_a_blob_comes_out(self, here: Spinal, tmp_path: Path) -> None:
        file = _written(
            tmp_path,
            "agent: rev\nops:\n  /rev:\n    args: {text: {type: file}}\n"
            "    command: [rev, '{text}']\n    output: blob\n",
        )
        (tmp_path / "in.txt").write_text("abc\n")
        done = here(
            "wrap", "test", file, f"text@={tmp_path / 'in.txt'}", "--out", str(tmp_path / "out")
        )

        assert done.code == 0
        assert (tmp_path / "out").read_text() == "cba\n"

    def test_ctrl_c_ends_the_program(self, place: Path, tmp_path: Path) -> None:
        file = _written(
            tmp_path, f"agent: s\nops:\n  /s:\n    command: [sh, -c, 'echo $$ > {tmp_path}/pid; "
            "exec sleep 60']\n"
        )  # fmt: skip
        program = subprocess.Popen(
            [*COMMAND, "wrap", "test", file], env=environment(place), stderr=subprocess.PIPE
        )
        pid = _appears(tmp_path / "pid")
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=30)

        assert program.returncode == 130, err
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def _appears(path: Path) -> int:
    import time

    end = time.monotonic() + 30
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return int(path.read_text())


class TestSchema:
    def test_it_is_printed_for_editors(self, here: Spinal) -> None:
        assert here("wrap", "schema").json["required"] == ["agent", "ops"]


def test_from_nothing_to_the_first_answer_in_three_commands_and_one_file(
    place: Path, tmp_path: Path, spinal: Spinal
) -> None:
    assert len(UNITS.splitlines()) <= 15
    file = _written(tmp_path, UNITS)
    up = Program(place, "up", "--no-providers", "--json")
    try:
        up.until(event="ready")
        agent = Program(place, "wrap", "run", file, "--json")
        try:
            ready = agent.until(event="ready")
            done = spinal("call", "/units/convert", "from=3 feet")
        finally:
            assert agent.end() == 0
    finally:
        assert up.end() == 0

    assert ready["ops"] == ["/units/convert"]
    assert (done.code, done.out) == (0, "0.9144\n")
