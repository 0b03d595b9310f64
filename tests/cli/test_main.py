import importlib
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from spinal import __version__
from spinal.cli import VERBS, cli, common
from spinal.cli.common import report

from .conftest import Spinal, environment

#: What prints JSON anyway.
NO_JSON = {("wrap", "schema")}


class TestHelp:
    def test_every_verb_is_listed_without_being_imported(self, place: Path) -> None:
        code = (
            "import sys; from spinal.cli import main\n"
            "try: main(['--help'])\n"
            "except SystemExit: pass\n"
            "heavy = {'slixmpp', 'aiohttp', 'rich', 'asyncio', 'structlog', 'msgspec'}\n"
            "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(place),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr.strip() == "[]"
        assert all(verb in done.stdout for verb in VERBS)

    @pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "demo"])
    def test_every_verb_has_help_and_takes_a_home(self, verb: str) -> None:
        module, _, name = VERBS[verb][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        commands: list[click.Command] = [command]
        if isinstance(command, click.Group):
            commands += command.commands.values()
        for one in commands:
            assert one.help
            options = {option for param in one.params for option in param.opts}
            assert "--home" in options
            if not isinstance(one, click.Group) and (verb, one.name) not in NO_JSON:
                assert "--json" in options

    def test_the_version_is_told(self, spinal: Spinal) -> None:
        assert spinal("--version").out == f"spinal {__version__}\n"

    def test_the_same_comes_from_the_function(self) -> None:
        assert CliRunner().invoke(cli, ["--version"]).output == f"spinal {__version__}\n"


class TestErrors:
    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (["nonsense"], r"No such command 'nonsense'"),
            (["call", "/x", "--nonsense"], r"No such option"),
            (["call", "/x", "--timeout", "soon"], r"not a duration"),
            (["call", "/x", "--timeout", "0"], r"more time than none"),
            (["call", "/x", "--policy", "best"], r"'best' is not one of"),
            (["call", "x"], r"must start with '/'"),
            (["call", "/x", "width"], r"key=value, key:=json or key@=file"),
            (["call", "/x", "--place", "eu"], r"must start with '/'"),
            (["call", "/x", "--out", "/no/such/file"], r"/no/such is no folder"),
            (["call"], r"Missing argument"),
            (["map", "/x", "--over", "p=/no/such/*.jpg"], r"no file matches /no/such/\*.jpg"),
            (["agents"], r"no home at .*: start one with `spinal up`"),
            (["up", "--domain", "not a domain"], r"is no domain"),
            (["up", "--server", "prosidy"], r"is no kind \(embedded, prosody, ejabberd\)"),
        ],
    )
    def test_usage_is_one_line_and_exit_2(
        self, spinal: Spinal, words: list[str], line: str
    ) -> None:
        done = spinal(*words)
        assert done.code == 2 and done.out == ""
        assert done.line.startswith("spinal: ")
        assert re.search(line, done.line), done.line

    def test_with_json_it_is_on_stdout_too(self, spinal: Spinal) -> None:
        done = spinal("agents", "--json")
        assert done.code == 2
        assert done.json["error"]["exit"] == 2
        assert done.line == f"spinal: {done.json['error']['text']}"

    def test_a_bad_argument_is_named_in_json(self, spinal: Spinal) -> None:
        done = spinal("call", "/x", "a=1", "a=2", "--json")
        assert done.json["error"]["argument"] == "a"
        assert done.json["error"]["reason"] == "bad-arguments"

    def test_a_bug_is_one_line_that_says_how_to_see_more(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert report(KeyError("x")) == 1
        assert "SPINAL_DEBUG=1" in capsys.readouterr().err

    def test_an_error_out_of_a_task_group_is_itself(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert report(ExceptionGroup("", [click.UsageError("that")])) == 2
        assert capsys.readouterr().err == "spinal: that (see `spinal --help`)\n"

    def test_a_level_of_the_log_must_be_one(self, spinal: Spinal, place: Path) -> None:
        assert "SPINAL_LOG: 'loud' is no level" in spinal("agents", SPINAL_LOG="loud").line

    def test_a_reader_that_goes_away_is_no_error(self, place: Path) -> None:
        done = subprocess.run(
            f"{sys.executable} -m spinal --help | true",
            shell=True,
            env=environment(place),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB")]
)
def test_sizes_are_written_for_people(count: int, text: str) -> None:
    assert common.size(count) == text


def test_places_without_a_key_are_the_site() -> None:
    assert common.places(["/eu", "role=/web"]) == {"site": "/eu", "role": "/web"}


def test_a_row_is_a_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    common.table([("/a", "First.\nSecond."), ("/b", "")], ("op", "about"), "None.")

    assert capsys.readouterr().out == "/a\tFirst. Second.\n/b\t\n"
