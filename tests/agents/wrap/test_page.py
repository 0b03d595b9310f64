"""docs/wrap.md and docs/manifest.schema.json say what the code does.

``PYTHONPATH=src python -m tests.agents.wrap.test_page`` writes the schema and the tables anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from spinal.agents import document
from spinal.agents.wrap import argument, manifest, output
from spinal.agents.wrap.draft.write import flow
from spinal.agents.wrap.kinds import KINDS

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = DOCS / "wrap.md"
SCHEMA = DOCS / "manifest.schema.json"

ANEW = "run PYTHONPATH=src python -m tests.agents.wrap.test_page"

Node = Mapping[str, Any]


def published() -> str:
    return json.dumps(manifest.published(), indent=2, ensure_ascii=False) + "\n"


# -- the tables


def table(schema: Node, *, leave: tuple[str, ...] = ()) -> str:
    """Draw the keys of a mapping; those of a mapping in it after a dot."""
    lines = ["| key | what it says | for example |", "| --- | --- | --- |"]
    for name, about, example in rows(schema, ""):
        if name.partition(".")[0] not in leave:
            lines.append(f"| `{name}` | {about} | {example} |")
    return "\n".join(lines)


def rows(schema: Node, above: str, alternative: bool = False) -> Iterator[tuple[str, str, str]]:
    required: list[str] = [] if alternative else schema.get("required", [])
    for name, part in schema.get("properties", {}).items():
        about = str(part.get("description", ""))
        if name in required:
            about = f"Has to be there. {about}".strip()
        if part.get("default") not in (None, False):
            about = f"{about} Default {flow(part['default'])}.".strip()
        yield f"{above}{name}", about.replace("|", "\\|"), example(part)
        # What explains itself where it is wrong, such as a secret, is one thing.
        if "errorMessage" not in part:
            yield from rows(part, f"{above}{name}.")
            for branch in part.get("anyOf", ()):
                if "errorMessage" not in branch:
                    yield from rows(branch, f"{above}{name}.", alternative=True)


def example(schema: Node) -> str:
    for found in schema.get("examples", ())[:1]:
        return f"`{flow(found)}`".replace("|", "\\|")
    if "enum" in schema:
        return ", ".join(f"`{flow(one)}`" for one in schema["enum"])
    if schema.get("type") == "boolean":
        return "`true`"
    return ""


def operation() -> str:
    schema: Any = manifest.schema()
    found = schema["properties"]["ops"]["additionalProperties"]
    beside = [key for kind in KINDS.values() for key in kind.BESIDE]
    return table(found, leave=(*KINDS, *beside, "rights", "output"))


def kind(name: str) -> str:
    one = KINDS[name]
    tables: list[str] = []
    schema: Any = one.SCHEMA
    if "properties" in schema:
        tables.append(f"Under `{name}`:\n\n{table(schema)}")
    if one.BESIDE:
        tables.append(f"Beside `{name}`:\n\n{table({'properties': one.BESIDE})}")
    return "\n\n".join(tables)


def generated() -> dict[str, str]:
    said: Any = manifest.schema()["properties"]
    return {
        "manifest": table(manifest.schema(), leave=("health", "load", "rights")),
        "operation": operation(),
        "argument": table(argument.SCHEMA),
        "output": table({"properties": {"output": output.SCHEMA}}),
        "health": table(said["health"]),
        "load": table(said["load"]["anyOf"][1]),
        "rights": table(said["rights"]),
        **{name: kind(name) for name in KINDS},
    }


def fresh(page: str) -> str:
    """Give the page with its tables as they should be."""
    for name, text in generated().items():
        marked = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        # A table is no template: a backslash in it stays one.
        escaped = text.replace("\\", r"\\")
        page, places = marked.subn(rf"\g<1>{escaped}\n\g<2>", page)
        assert places == 1, (
            f"docs/wrap.md has no place for the table '{name}': write a section with "
            f"<!-- generated: {name} --> and <!-- end --> on lines of their own"
        )
    return page


def test_the_schema_that_is_published_is_that_of_the_code() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == published(), ANEW


def test_the_tables_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert page == fresh(page), ANEW


# -- what the page shows


def blocks() -> list[str]:
    found: list[str] = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return found


def whole(block: str) -> str:
    """Make a manifest of one, and of operations."""
    if re.search(r"^agent:", block, re.MULTILINE):
        return block
    indented = "".join(f"  {line}\n" for line in block.splitlines())
    return f"agent: shown\nops:\n{indented}"


def uses(block: str) -> str:
    """Say of which kind the operations of a block are."""
    (found,) = set(re.findall(r"^ +(command|http|sql|tcp|program|files):", block, re.MULTILINE))
    return str(found)


@pytest.mark.parametrize("block", [one for one in blocks() if uses(one) in KINDS])
def test_every_manifest_on_the_page_is_one(block: str) -> None:
    manifest.of(document.read(whole(block), "docs/wrap.md", manifest.schema()))


def test_every_kind_is_shown() -> None:
    assert set(KINDS) <= {uses(one) for one in blocks()}


def test_the_first_file_is_short() -> None:
    assert len(blocks()[0].splitlines()) <= 15


if __name__ == "__main__":
    SCHEMA.write_text(published(), encoding="utf-8")
    PAGE.write_text(fresh(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
