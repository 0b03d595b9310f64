"""Drafts from help texts: what they offer to callers, and what they do not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from spinal.agents import document
from spinal.agents.wrap import manifest
from spinal.agents.wrap.draft import help as helps
from spinal.agents.wrap.draft import write
from spinal.agents.wrap.draft.program import Program, operation
from spinal.agents.wrap.draft.write import Draft, Op

RECORDED = sorted(Path(__file__).with_name("help").glob("*.txt"))


def of_text(text: str, *words: str, getopt: bool = False) -> Op:
    name, *subs = words or ("tool",)
    said = helps.read(text, [name, *subs])
    return operation(Program((name, *subs), getopt), said, "/" + "/".join([name, *subs]))


def recorded(name: str, **more: bool) -> Op:
    (path,) = [one for one in RECORDED if one.stem == name]
    return of_text(path.read_text(encoding="utf-8").partition("\n")[2], *name.split("_"), **more)


def command(op: Op) -> list[Any]:
    found: Any = op.keys["command"]
    return list(found)


def args(op: Op) -> dict[str, Any]:
    found: Any = op.keys.get("args", {})
    return dict(found)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
@pytest.mark.parametrize("getopt", [False, True])
def test_every_draft_is_a_manifest(path: Path, getopt: bool) -> None:
    text = write.write(Draft("tool", "its help", [recorded(path.stem, getopt=getopt)]))

    found = manifest.of(document.read(text, "draft.yaml", manifest.schema()))

    assert len(found.ops) == 1
    assert text.startswith("# yaml-language-server: $schema=")


def test_a_flag_is_a_boolean_and_its_word_is_left_out_where_it_is_false() -> None:
    op = of_text("usage: tool [options]\n  -v, --verbose   be loud\n")

    assert args(op) == {"verbose": {"type": "boolean", "default": False, "summary": "be loud"}}
    assert command(op) == ["tool", {"if": "verbose", "argv": ["--verbose"]}]


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ("--lines=N  how many", {"type": "integer"}),
        ("--port <port>   where", {"type": "integer"}),
        ("--wait SECONDS   how long", {"type": "number"}),
        ("--rules FILE   read rules", {"type": "file"}),
        ("--color {red,green}   which", {"enum": ["red", "green"]}),
        ("--name NAME   which", {"max_length": 1000}),
        ("--depth int   how deep", {"type": "integer"}),
    ],
)
def test_the_type_of_a_value_is_guessed_from_its_word(row: str, wanted: dict[str, Any]) -> None:
    ((_, said),) = args(of_text(f"usage: tool\n  {row}\n")).items()

    assert said.pop("optional")
    said.pop("summary")
    assert said == wanted


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("--exec CMD   run it", "run what the caller gives"),
        ("--to-command=COMMAND  pipe files to it", "run what the caller gives"),
        ("--script <file>  what to do", "run what the caller gives"),
        ("--filter-by X  run each through the given program", "run what the caller gives"),
        ("--password=PASS  for the server", "secret"),
        ("--api-key KEY  yours", "secret"),
        ("--output FILE  where the result goes", "written"),
        ("--log FILE  write messages to", "written"),
        ("-o file  output", "written"),
        ("--directory=DIR  go there first", "folder"),
        ("--cache-dir PATH  where", "folder"),
        ("--config FILE  settings", "sets what the program does"),
        ("--archive PATH  which", "path of this machine"),
        ("--files-from=F  names are in F", "files of this machine"),
        ("--interactive  ask", "terminal"),
        ("--help  this", "about the program itself"),
        ("--version  print version", "about the program itself"),
    ],
)
def test_what_a_caller_had_better_not_give_is_left_out_and_told(row: str, why: str) -> None:
    op = of_text(f"usage: tool\n  {row}\n  --fine  stays\n")

    assert list(args(op)) == ["fine"]
    assert why in " ".join(op.left)


@pytest.mark.parametrize(
    "name", ["env", "xargs", "sudo", "timeout", "sh", "perl", "python3", "ssh", "watch"]
)
def test_of_a_program_that_runs_others_nothing_is_taken_but_flags(name: str) -> None:
    op = of_text(
        f"usage: {name} [options] FIRST SECOND...\n  -S, --split=S  split S\n  -e CODE  x\n  -q  quiet\n",
        name,
    )

    assert args(op) == {"q": {"type": "boolean", "default": False, "summary": "quiet"}}
    assert not re.search(r"\{[A-Za-z]+\}", str(command(op)).replace("{'if'", ""))


def test_a_script_that_has_to_be_given_is_left_to_the_owner() -> None:
    op = of_text("Usage: sed [OPTION]... {script} [input-file]...\n", "sed")

    assert command(op) == ["sed", "SCRIPT", ["{input_file}"]]
    assert "a caller must not choose it" in op.notes["command", 1]


@pytest.mark.parametrize(
    ("usage", "getopt", "more", "dashes"),
    [
        ("tool NAME", False, "  --long  x\n", False),
        ("tool NAME", True, "  --long  x\n", True),
        # Known by what argparse, click and clap write of --help.
        ("tool NAME", False, "  -h, --help  show this help message and exit\n", True),
        ("tool NAME", False, "  -h, --help  Show this message and exit.\n", True),
        ("tool [--] NAME", False, "", True),
        # find(1) takes -exec after --, whatever its parser.
        ("tool NAME", True, "  --long  x\n  -exec COMMAND  run\n", False),
        ("tool NAME", True, "  -l  x\n", False),
        # In git log, -- ends the names of revisions, too.
        ("tool [NAME] [[--] PATH]", True, "  --long  x\n", False),
    ],
)
def test_dashes_stand_before_what_has_no_name_where_they_are_known_to_end_the_options(
    usage: str, getopt: bool, more: str, dashes: bool
) -> None:
    assert ("--" in command(of_text(f"usage: {usage}\n\n{more}", getopt=getopt))) is dashes


def test_a_value_is_joined_to_its_option_where_the_help_shows_it() -> None:
    op = of_text("usage: tool\n  --joined=NAME  x\n  --apart NAME  y\n  -s NAME  z\n")

    assert command(op) == [
        "tool",
        ["--joined={joined}"],
        ["--apart", "{apart}"],
        ["-s", "{s}"],
    ]


def test_those_of_one_bracket_come_together_or_not_at_all() -> None:
    op = of_text("usage: tool ['from-unit' 'to-unit']\n")

    assert command(op) == ["tool", ["{from_unit}", "{to_unit}"]]
    assert args(op)["from_unit"]["optional"] and args(op)["to_unit"]["optional"]


def test_none_is_taken_that_would_slip_into_the_place_of_another() -> None:
    op = of_text("usage: tool [FIRST] [SECOND]\n")

    assert list(args(op)) == ["FIRST".lower()]
    assert "stands after another that may be missing" in " ".join(op.left)


def test_a_file_that_is_written_becomes_the_result() -> None:
    op = of_text(
        "Usage: convert [options ...] file [ [options ...] file ...] [options ...] file\n",
        "convert",
    )

    assert command(op) == ["convert", "{file}", "{tmp}/out"]
    assert op.keys["output"] == {"blob": "application/octet-stream", "file": "{tmp}/out"}


@pytest.mark.parametrize(
    ("words", "effects"),
    [
        (("tool",), "writes"),
        (("list",), "writes"),
        (("git", "log"), "reads"),
        (("docker", "rm"), "deletes"),
        (("git", "clone"), "writes"),
    ],
)
def test_effects_are_writes_unless_the_name_leaves_no_doubt(
    words: tuple[str, ...], effects: str
) -> None:
    op = of_text("usage: x\n  --a  b\n", *words)

    assert op.keys["effects"] == effects
    assert op.notes["effects",]


def test_a_program_with_commands_wants_them_named() -> None:
    op = recorded("systemctl")

    assert "--sub" in " ".join(op.left)


def test_long_helps_are_cut() -> None:
    op = recorded("docker_run")

    assert len(args(op)) <= 45
    assert "a draft takes 40 options" in " ".join(op.left)


@pytest.mark.parametrize(
    "text",
    ["plain", "two words", "null", "yes", "0x1f", "1e3", "12", "-1", "a: b", "# no", "{x}", "é\x00\x85\u2028😀", "", " x",
     "it's", 'say "it"', "back\\slash", "--flag", "--a=b", "60s", "~", ".inf", "---", "--", "- a", "a #b", "[x]", "x,y"],
)  # fmt: skip
def test_every_text_comes_back_as_it_was(text: str) -> None:
    written = f"block: {write.scalar(text)}\nflow: {write.flow([text, {'k': text}])}"
    value: Any = document.read(written, "x.yaml").value

    assert value == {"block": text, "flow": [text, {"k": text}]}


def test_the_template_is_a_manifest() -> None:
    text = write.TEMPLATE.replace("NAME", "name", 1)

    assert list(manifest.of(document.read(text, "x.yaml", manifest.schema())).ops) == [
        "/units/convert"
    ]


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("units", "units"),
        ("Json.Tool", "json.tool"),
        ("-x y!", "x-y"),
        ("", "agent"),
        ("ü", "agent"),
        ("a" * 90, "a" * 62),
    ],
)
def test_names_of_agents_are_made_of_what_they_may_hold(said: str, name: str) -> None:
    assert write.agent_name(said) == name
