"""docs/protocol.md, taken apart for the tests: its sections, tables and worked stanzas."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"

_XML = re.compile(r"```xml\n(.*?)```", re.DOTALL)
#: A bar that ends a cell: none in a code span.
_BAR = re.compile(r"\|(?=(?:[^`]*`[^`]*`)*[^`]*$)")


def sections(page: str) -> Mapping[str, str]:
    """Give the text of every section, with its tables and without its subsections, by title."""
    chunks = re.split(r"^##+ (.*)$", page, flags=re.MULTILINE)
    return dict(zip(chunks[1::2], chunks[2::2], strict=True))


def tables(text: str) -> list[list[list[str]]]:
    """Give the tables of a text: rows of cells, the head first, without the line below it."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in _BAR.split(line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [[table[0], *table[2:]] for table in found if table]


def table(text: str, head: str) -> list[list[str]]:
    """Give the rows of the one table whose first column has this head."""
    (found,) = [table for table in tables(text) if table[0][0] == head]
    return found[1:]


def words(cell: str) -> Sequence[str]:
    """Give what stands in code spans."""
    return re.findall(r"`([^`]*)`", cell)


def blocks(text: str) -> list[str]:
    """Give the XML blocks of a text."""
    return _XML.findall(text)


def stanzas(text: str) -> Iterator[Element]:
    """Give the stanzas in the XML blocks of a text."""
    for block in blocks(text):
        yield from fromstring(f"<stream xmlns='jabber:client'>{block}</stream>")
