from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.agents.chat.grammar import COMMANDS, MAX_TEXT, NotUnderstood, Request, parse, split


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n\t ", []),
        ("a b\nc\td", ["a", "b", "c", "d"]),
        ('"two words" end', ["two words", "end"]),
        ("text='it is \"quoted\"'", ['text=it is "quoted"']),
        (r'text="a \"b\" \\ \n c"', [r'text=a "b" \ \n c']),
        (r"text='a \' b", ["text=a \\", "b"]),
        ("numbers:='[1, 2]'", ["numbers:=[1, 2]"]),
        ("text=\u201ctwo words\u201d", ["text=two words"]),
        ("text=\u201etwo words\u201c", ["text=two words"]),
        ("text=\u2018two words\u2019", ["text=two words"]),
        ("text='line\none'", ["text=line\none"]),
        # A quote elsewhere is a character as any other.
        ("text=don't o'clock", ["text=don't", "o'clock"]),
        ('a=b="c d"', ['a=b="c', 'd"']),
        # Nothing is expanded.
        (
            "a=$HOME `id` $(id) ; | & > * ~ #x",
            ["a=$HOME", *["`id`", "$(id)", ";", "|", "&", ">", "*", "~", "#x"]],
        ),
        (r"path=C:\new\table", [r"path=C:\new\table"]),
        ("<a>&amp;<b/></a>", ["<a>&amp;<b/></a>"]),
        ("''", [""]),
        ("a='' b", ["a=", "b"]),
    ],
)
def test_words_are_taken_apart(text: str, words: list[str]) -> None:
    assert split(text) == words


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a 'b", "the quote ' is not closed"),
        ('a="b', 'the quote " is not closed'),
        ('a="b\\"', 'the quote " is not closed'),
        ("a='b'c", "write a space behind the closing quote '"),
        ("a " * 200, "too many words"),
    ],
)
def test_what_cannot_be_taken_apart_is_told(text: str, problem: str) -> None:
    with pytest.raises(NotUnderstood, match=problem):
        split(text)


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("!help", Request("help")),
        ("help", Request("help")),
        ("  HELP  ", Request("help")),
        ("!Call /a/b x=1", Request("call", ("/a/b", "x=1"))),
        ("!call\n/a/b\nx='1 2'", Request("call", ("/a/b", "x=1 2"))),
        ("why 01m7y7kg407zm76d34pn", Request("why", ("01m7y7kg407zm76d34pn",))),
    ],
)
def test_in_private_the_mark_may_be_left_out(text: str, request_: Request) -> None:
    assert parse(text) == request_


@pytest.mark.parametrize("text", ["hello all", "help", "!nonsense", "! help", "!", "", "!!help"])
def test_among_others_only_a_marked_command_is_meant_for_us(text: str) -> None:
    assert parse(text, private=False) is None
    assert parse("!help", private=False) == Request("help")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "write a command: !help lists them"),
        ("!", "write a command"),
        ("!!", "there is no command '!'"),
        ("!hlp", "there is no command 'hlp': did you mean !help?"),
        ("agnets", "did you mean !agents?"),
        ("zzz", "there is no command 'zzz': !help lists them"),
        ("/image/resize width=1", "to have an operation done, write !call /image/resize"),
        ("!call", r"write !call /OP \[key=value\]..."),
        ("!why", "write !why ID"),
        ("!why a b", "write !why ID"),
        ("x" * (MAX_TEXT + 1), "that is too long"),
        ("!help " + "x" * 1_000_000, "that is too long"),
    ],
)
def test_what_is_no_request_is_told_what_to_write(text: str, problem: str) -> None:
    with pytest.raises(NotUnderstood, match=problem) as told:
        parse(text)
    assert "\n" not in str(told.value) and len(str(told.value)) < 200


def test_each_command_says_how_it_is_written() -> None:
    for name, command in COMMANDS.items():
        assert command.usage.startswith(f"!{name}") and command.about.endswith(".")


def test_what_the_page_shows_is_what_is_understood() -> None:
    page = (Path(__file__).parents[3] / "docs" / "chat.md").read_text()
    typed = re.findall(r"^me: (.*)$", page, re.MULTILINE)
    assert len(typed) > 4
    for line in typed:
        assert parse(line) is not None, line
    for command in COMMANDS.values():
        assert f"| `{command.usage}` |" in page
    assert f"may have {MAX_TEXT} characters" in page


@given(st.text(max_size=200))
def test_whatever_is_typed_is_a_request_or_told(text: str) -> None:
    try:
        found = parse(text)
    except NotUnderstood as told:
        assert str(told)
    else:
        assert found is not None and found.command in COMMANDS


@given(st.lists(st.text(max_size=20), max_size=10))
def test_what_is_quoted_comes_out_as_it_was(words: list[str]) -> None:
    quoted = ['"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words]
    assert split(" ".join(quoted)) == words
