from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.mistakes import Case

from spinal.agents import document
from spinal.agents.document import BadDocument
from spinal.agents.errors import AgentError
from spinal.agents.wrap import Manifest, load, manifest
from spinal.agents.wrap.kinds import KINDS

from .mistakes import GOOD, MISTAKES


def read(text: str, file: str = "units.yaml") -> Manifest:
    return manifest.of(document.read(text, file, manifest.schema()))


def test_a_manifest_becomes_an_agent() -> None:
    agent = read(GOOD).agent()
    offered = agent.operations["/units/convert"].public

    assert (agent.name, agent.place, agent.tags, agent.slots) == (
        "units",
        {"site": "/eu/fra/rack7"},
        ("gnu",),
        4,
    )
    assert (offered.summary, offered.effects, offered.safe, offered.timeout) == (
        "Convert between units of measurement.",
        "reads",
        True,
        5.0,
    )
    assert offered.args == {
        "type": "object",
        "properties": {
            "from": {"type": "string", "maxLength": 80},
            "to": {"type": "string", "default": "m"},
        },
        "required": ["from"],
        "additionalProperties": False,
    }
    assert offered.result == {"type": "string"}


def test_all_but_a_name_and_one_kind_has_defaults() -> None:
    agent = read(
        "agent: a\nops:\n  /x:\n    args: {word:}\n    command: [echo, '{word}']\n"
    ).agent()
    offered = agent.operations["/x"].public

    assert offered.args["properties"] == {"word": {"type": "string"}}
    assert (offered.result, offered.effects, offered.safe, offered.timeout) == (
        {"type": "string"},
        "writes",
        False,
        60.0,
    )


def test_there_are_more_than_sixty_mistakes() -> None:
    assert len({case.text for case in MISTAKES}) >= 60


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: f"{case.line} {case.key or 'file'}")
def test_a_mistake_is_told_with_file_line_key_and_what_to_write(case: Case) -> None:
    with pytest.raises(BadDocument) as caught:
        read(case.text)
    told = caught.value.mistakes[0]

    assert (told.file, told.line, told.key) == ("units.yaml", case.line, case.key), str(told)
    assert all(word in told.text for word in case.words), told.text
    assert "\n" not in told.text
    assert str(told).startswith(f"units.yaml:{case.line}: ")


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: f"{case.line} {case.key or 'file'}")
def test_one_mistake_is_told_once(case: Case) -> None:
    with pytest.raises(BadDocument) as caught:
        read(case.text)

    assert len(caught.value.mistakes) == 1, str(caught.value)


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = GOOD.replace("slots: 4", "slots: four").replace("5s", "soon").replace("gnu", "''")
    with pytest.raises(BadDocument) as caught:
        read(text)

    assert [one.line for one in caught.value.mistakes] == [3, 4, 17]


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="give the path of a YAML file"):
        load(tmp_path / "none.yaml")


def test_what_is_missing_on_the_machine_is_told_with_its_line() -> None:
    text = GOOD.replace("[units, --terse", "[no-such-program, --terse").replace(
        "run: [units", "run: [nor-this"
    )
    missing = {(one.line, one.key): one.text for one in read(text).missing()}

    assert sorted(missing) == [(5, "health.run"), (14, "ops./units/convert.command.0")]
    assert "install it" in missing[(14, "ops./units/convert.command.0")]


def test_the_published_schema_is_one_and_takes_what_the_reader_takes() -> None:
    published: Any = json.loads(json.dumps(manifest.published()))
    jsonschema.Draft202012Validator.check_schema(published)
    validator = jsonschema.Draft202012Validator(published)

    assert validator.is_valid(document.read(GOOD, "good.yaml").value)  # pyright: ignore[reportUnknownMemberType]


def test_every_key_has_help_for_editors() -> None:
    op: Any = manifest.published()["properties"]["ops"]["additionalProperties"]
    for key, part in op["properties"].items():
        assert "description" in part, key
    assert set(KINDS) <= set(op["properties"])
