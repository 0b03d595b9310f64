"""Help texts of many habits, as their programs printed them; the first line of a file says which."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from spinal.agents.wrap.draft import help as helps
from spinal.agents.wrap.draft.help import Help, Option, Positional

FOLDER = Path(__file__).with_name("help")


def recorded(name: str) -> Help:
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").partition("\n")[2]
    return helps.read(text, name.split("_"))


def option(said: Help, name: str) -> Option:
    (found,) = [one for one in said.options if name in one.names]
    return found


@pytest.mark.parametrize(
    ("program", "name", "value"),
    [
        ("psql", "-d", "DBNAME"),
        ("psql", "--csv", ""),
        ("psql", "-1", ""),
        ("curl", "--data", "data"),
        ("curl", "-f", ""),
        ("docker_run", "--cpu-quota", "int"),
        ("docker_run", "--detach", ""),
        ("cargo_build", "--jobs", "N"),
        ("cargo_build", "--release", ""),
        ("gofmt", "-cpuprofile", "string"),
        ("gofmt", "-d", ""),
        ("memcached", "-p", "num"),
        ("memcached", "--slab-min-size", "bytes"),
        ("memcached", "-D", "char"),
        ("busybox_wget", "--header", "STR"),
        ("busybox_wget", "-q", ""),
        ("git_clone", "--depth", "depth"),
        ("git_clone", "--bare", ""),
        ("ssh", "-p", "port"),
        ("ssh", "-A", ""),
        ("convert", "-affine", "matrix"),
        ("convert", "-adjoin", ""),
        ("pip_download", "--dest", "dir"),
        ("bc", "--mathlib", ""),
    ],
)
def test_an_option_is_told_from_one_with_a_value(program: str, name: str, value: str) -> None:
    assert option(recorded(program), name).value == value


def test_a_sign_is_no_part_of_what_a_value_is() -> None:
    # As coreutils writes it.
    said = helps.read("usage: head\n  -n, --lines=[-]NUM   print the first NUM\n", ["head"])

    assert said.options == (Option(("-n", "--lines"), "NUM", True, False, "print the first NUM"),)


def test_what_is_said_of_an_option_may_go_on_in_the_next_lines() -> None:
    about = option(recorded("memcached"), "-l").about

    assert about.startswith("interface to listen on")
    assert "'notls' prefix can be used" in about


def test_an_option_that_is_too_long_for_its_column_has_its_sentence_below() -> None:
    assert option(recorded("psql"), "--variable").about.startswith("set psql variable NAME")


@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        ("curl", [Positional("url")]),
        ("units", [Positional("from-unit", False, group=1), Positional("to-unit", False, group=1)]),
        ("bc", [Positional("file", False, several=True, group=1)]),
        ("memcached", []),
        ("busybox_wget", [Positional("URL", several=True)]),
    ],
)
def test_the_usage_tells_the_arguments_without_names(
    program: str, wanted: list[Positional]
) -> None:
    found = [
        Positional(one.name, one.required, one.several, min(one.group, 1))
        for one in recorded(program).positionals
    ]

    assert found == wanted


def test_dashes_in_the_usage_are_noted() -> None:
    repository, _ = recorded("git_clone").positionals

    assert (repository.name, repository.dashes, repository.required) == ("repo", True, True)


def test_a_value_with_a_part_that_may_be_missing_is_one_value() -> None:
    said = recorded("ssh")

    assert [one.name for one in said.positionals] == ["destination", "command", "argument"]
    assert option(said, "-D").value
    assert option(said, "-w").value == "local_tun"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{auto,always,never}", ("auto", "always", "never")),
        ("<json|yaml>", ("json", "yaml")),
        ("[text|xml]", ("text", "xml")),
        ("Coloring [possible values: auto, always, never]", ("auto", "always", "never")),
        ("FILE", ()),
        ("host:port", ()),
        ("NAME=VALUE", ()),
        ("a, b and others", ()),
    ],
)
def test_choices_are_found_where_they_are_shown(text: str, wanted: tuple[str, ...]) -> None:
    assert helps.choices(text) == wanted


def test_commands_are_found_with_what_they_are_for() -> None:
    commands = recorded("systemctl").commands

    assert commands["is-active"] == "Check whether units are active"
    assert "list-units" in commands


@pytest.mark.parametrize(
    ("program", "summary"),
    [
        ("cargo_build", "Compile a local package and all of its dependencies."),
        ("docker_run", "Create and run a new container from an image."),
        ("psql", "psql is the PostgreSQL interactive terminal."),
        ("busybox_wget", "Retrieve files via HTTP or FTP."),
        ("curl", ""),
        ("ssh", ""),
    ],
)
def test_the_first_sentence_is_the_summary(program: str, summary: str) -> None:
    assert recorded(program).summary == summary


def test_what_is_no_help_says_nothing() -> None:
    assert not helps.read("", ["x"]).found
    assert not helps.read("Segmentation fault\n", ["x"]).found
    assert not helps.read("-- \n---\n- a\n", ["x"]).found


def test_endless_text_and_nesting_are_bounded() -> None:
    said = helps.read("usage: x " + "[" * 100_000 + "\n" + "  --a  b\n" * 100_000, ["x"])

    assert len(said.options) == 1


@pytest.mark.parametrize(
    "text",
    [
        " " * 300_000,
        "a " * 150_000,
        "usage: x " + "-a" * 100_000,
        "usage: x " + "[-a " * 50_000,
        "  -" + "a" * 200_000 + "!",
        ("  -" + "a" * 900 + "!\n") * 300,
        ("  " + "x" * 400 + " " * 500 + "\n") * 300,
        "Commands:\n" + ("  a" + " " * 900 + "\n") * 300,
        "x" * 200_000 + "\x08" * 100_000,
        "<" * 100_000,
        "{" * 100_000 + "}" * 100_000,
        "\x1b[" + "0" * 200_000,
    ],
    ids=lambda text: text[:12].strip() or "blank",
)
def test_no_text_takes_long_to_be_read(text: str) -> None:
    began = time.process_time()

    helps.read(text, ["x"])

    # It takes some ten ms; a pattern that backtracks takes minutes.
    assert time.process_time() - began < 5


def test_bold_and_colours_are_no_part_of_a_text() -> None:
    said = helps.read(
        "usage: x [-v]\n\n  -\b-v\bv  b\bbe loud\n  \x1b[1m-q\x1b[0m  be quiet\n", ["x"]
    )

    assert {one.names for one in said.options} == {("-v",), ("-q",)}
