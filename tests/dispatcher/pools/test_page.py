"""docs/pools.md says what is so."""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest

from spinal.cli import cli
from spinal.dispatcher.pools import document, launches

PAGE = Path(__file__).parents[3] / "docs" / "pools.md"
TEXT = PAGE.read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def keys(schema: Mapping[str, Any], *above: str) -> Iterator[str]:
    """Give the keys of a pool file, with those that they stand in."""
    for name, inner in schema.get("properties", {}).items():
        if "properties" in inner and name != "remove_when":
            yield from keys(inner, *above, name)
        else:
            yield ".".join((*above, name))


def cells(heading: str) -> list[str]:
    """Give the words in code of a table's first column."""
    table = TEXT.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    return [word for cell in first for word in re.findall("`([^`]+)`", cell)]


def commands() -> list[list[str]]:
    text = "".join(blocks("sh")).replace("\\\n", "")
    lines = (shlex.split(line, comments=True) for line in text.splitlines())
    return [line[1:] for line in lines if line[:1] == ["spinal"]]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_each_pool_file_in_it_is_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("")
    file = tmp_path / "pool.yaml"
    file.write_text(text)
    assert document.load(file).pool


def test_it_has_a_line_for_every_key_and_for_no_other() -> None:
    assert sorted(cells("key")) == sorted(keys(document.schema()))


def test_it_has_a_line_for_every_kind_of_refusal() -> None:
    assert sorted(cells("kind")) == sorted(launches._KINDS)  # pyright: ignore[reportPrivateUsage]


def test_it_has_a_line_for_every_event() -> None:
    source = "".join(
        (Path(document.__file__).parent / f"{name}.py").read_text()
        for name in ("tending", "tender", "fleet", "orders", "operations")
    )
    said = set(re.findall(r'(?:event|what)="([a-z-]+)"', source))
    said |= set(re.findall(r'Ask\.DESTROY, "([a-z-]+)"', source)) | {"lost", "failed", "refused"}
    assert said <= set(cells("event"))


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_each_command_in_it_can_be_read(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "worker.py").write_text("")
    command: click.Command = cli
    context = click.Context(cli, info_name="spinal")
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, words[0]
        command, words = found, words[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    command.parse_args(context, list(words))
