"""Take the schemas of a few answers out of a vendor's OpenAPI document, into one small JSON file.

``python -m tests.clouds.openapi.extract DOCUMENT OUT --source WORDS "GET /v2/droplets 200" ...``

Only what validates is kept; what several answers share stands once, under ``definitions``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

#: Words of a schema that say nothing about what is valid.
IDLE: Final = frozenset(
    {"description", "example", "examples", "title", "default", "readOnly", "deprecated", "format"}
)


@cache
def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


class Extract:
    """The schemas that were found, and what they refer to."""

    def __init__(self, document: Path) -> None:
        self._document = document.resolve()
        self.definitions: dict[str, Any] = {}

    def answer(self, wanted: str) -> Any:
        """Give the schema of an answer, named by method, path and status."""
        method, path, status = wanted.split()
        at, node = self._follow(self._document, _load(self._document)["paths"][path])
        at, node = self._follow(at, node[method.lower()])
        at, node = self._follow(at, node["responses"][status])
        return self._schema(at, node["content"]["application/json"]["schema"])

    def _follow(self, at: Path, node: Any) -> tuple[Path, Any]:
        while "$ref" in node:
            at, node = self._target(at, node["$ref"])
        return at, node

    def _target(self, at: Path, reference: str) -> tuple[Path, Any]:
        file, _, pointer = reference.partition("#")
        at = (at.parent / file).resolve() if file else at
        node = _load(at)
        for part in filter(None, pointer.split("/")):
            node = node[part.replace("~1", "/").replace("~0", "~")]
        return at, node

    def _schema(self, at: Path, node: Any) -> Any:
        if isinstance(node, list):
            items: list[Any] = node  # pyright: ignore[reportUnknownVariableType] - of Any
            return [self._schema(at, item) for item in items]
        if isinstance(node, dict):
            one: dict[str, Any] = node  # pyright: ignore[reportUnknownVariableType] - of Any
            return self._object(at, one)
        return node

    def _object(self, at: Path, node: Mapping[str, Any]) -> dict[str, Any]:
        if "$ref" in node:
            return {"$ref": f"#/definitions/{self._define(at, node['$ref'])}"}
        found = {key: value for key, value in node.items() if self._counts(key)}
        nullable = found.pop("nullable", False)
        for key, value in found.items():
            if key in ("properties", "patternProperties"):
                found[key] = {name: self._schema(at, inner) for name, inner in value.items()}
            elif key not in ("required", "enum", "const"):
                found[key] = self._schema(at, value)
        if not nullable:
            return found
        if "enum" in found:
            found["enum"] = [*found["enum"], None]
        if isinstance(found.get("type"), str):
            return {**found, "type": [found["type"], "null"]}
        return {"anyOf": [found, {"type": "null"}]}

    def _define(self, at: Path, reference: str) -> str:
        target, node = self._target(at, reference)
        pointer = reference.partition("#")[2].replace("/", ".")
        name = f"{target.parent.name}.{target.stem}{pointer}"
        if name not in self.definitions:
            self.definitions[name] = {}  # It may refer to itself.
            self.definitions[name] = self._schema(target, node)
        return name

    @staticmethod
    def _counts(key: str) -> bool:
        return key not in IDLE and not key.startswith("x-")


def main(arguments: Sequence[str]) -> int:
    """Run the program; gives its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("document", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", required=True, help="where it is from, its date and licence")
    parser.add_argument("answer", nargs="+")
    options = parser.parse_args(arguments)
    extract = Extract(options.document)
    answers = {wanted: extract.answer(wanted) for wanted in options.answer}
    value = {"source": options.source, "answers": answers, "definitions": extract.definitions}
    options.out.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
