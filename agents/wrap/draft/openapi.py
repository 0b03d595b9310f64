"""From the document of an HTTP service to operations: OpenAPI 3.0 and 3.1, and Swagger 2.0.

References are followed within the document and nowhere else, to a bounded depth; a document that
refers to other files has to be bundled first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from spinal.protocols import Json

from ... import document
from ...errors import AgentError, one_line
from ..argument import NAME, Argument
from .write import Draft, Op, agent_name, short

#: Operations that one draft holds, and how many of its properties a body is taken apart into.
MAX_OPS: Final = 300
MAX_PROPERTIES: Final = 25

#: References in a row, and schemas within schemas.
MAX_DEPTH: Final = 16

#: Characters of what is said of an argument or a status.
ABOUT: Final = 100

_METHODS: Final[Mapping[str, str]] = {
    "get": "reads",
    "head": "reads",
    "post": "writes",
    "put": "writes",
    "patch": "writes",
    "delete": "deletes",
}
#: What an operation is called that the document gives no name: of one thing, and of all.
_VERBS: Final[Mapping[str, tuple[str, str]]] = {
    "get": ("show", "list"),
    "head": ("probe", "probe"),
    "post": ("act", "create"),
    "put": ("replace", "replace"),
    "patch": ("change", "change"),
    "delete": ("delete", "delete"),
}
_VERB_WORDS: Final = [
    "get",
    "list",
    "show",
    "find",
    "search",
    "create",
    "add",
    "post",
    "put",
    "update",
    "replace",
    "patch",
    "change",
    "delete",
    "remove",
    "upload",
    "download",
    "set",
    "read",
    "modify",
    "edit",
    "head",
    "fetch",
    "query",
    "place",
    "logout",
    "login",
]

Node = Mapping[str, Any]


@dataclass
class _Source:
    """A document, and what is known of where it is."""

    root: Node
    agent: str
    server: str
    needs: dict[str, None] = field(default_factory=dict[str, None])

    @property
    def swagger(self) -> bool:
        """Whether it is of version 2."""
        return "swagger" in self.root

    def at(self, node: Any) -> Node:
        """Give what stands there, with references followed."""
        for _ in range(MAX_DEPTH):
            found = _mapping(node)
            if not isinstance(found.get("$ref"), str):
                return found
            node = self._pointed(found["$ref"])
        return {}

    def _pointed(self, ref: str) -> Any:
        if not ref.startswith("#/"):
            raise AgentError(
                f"the document refers to {one_line(ref, 100)!r}, which is outside of it: bundle it into one file first"
            )
        node: Any = self.root
        for step in ref[2:].split("/"):
            key = step.replace("~1", "/").replace("~0", "~").replace("%7B", "{").replace("%7D", "}")
            items = _list(node)
            if items:
                node = items[int(key)] if key.isdigit() and int(key) < len(items) else None
            else:
                node = _mapping(node).get(key)
        if node is None:
            raise AgentError(f"the document refers to {one_line(ref, 100)}, and there is nothing")
        return node

    def schema(self, node: Any, depth: int = 0) -> dict[str, Any]:
        """Give a schema with its parts put together: ``allOf``, and what may be null."""
        found = dict(self.at(node))
        if depth > MAX_DEPTH:
            return {}
        for part in _list(found.pop("allOf", None)):
            inner = self.schema(part, depth + 1)
            properties = {**inner.get("properties", {}), **found.get("properties", {})}
            required = [*_list(inner.get("required")), *_list(found.get("required"))]
            found = {**inner, **found}
            if properties:
                found["properties"] = properties
            if required:
                found["required"] = required
        for key in ("anyOf", "oneOf"):
            branches = [self.at(one) for one in _list(found.get(key))]
            other = [one for one in branches if one.get("type") != "null"]
            if len(other) == 1:
                about: dict[str, Any] = {
                    name: found[name] for name in ("description", "default") if name in found
                }
                return {**self.schema(other[0], depth + 1), **about}
        kind = found.get("type")
        if isinstance(kind, list):
            kinds: list[Any] = [one for one in kind if one != "null"]  # pyright: ignore
            found["type"] = kinds[0] if len(kinds) == 1 else None
        if found.get("type") is None and "properties" in found:
            found["type"] = "object"
        return found


def draft(
    data: bytes,
    where: str,
    *,
    base: str | None = None,
    server: str | None = None,
    only: Sequence[str] = (),
) -> Draft:
    """Make a draft of a service's document.

    Args:
        data: the document, JSON or YAML.
        where: its path or URL, for errors and the head of the draft.
        base: its URL, if it was fetched.
        server: where the service is, if the document does not say or says something else.
        only: the operations that are wanted, as ``GET /pets`` or ``/pets``; all if none are said.

    Raises:
        AgentError: it cannot be read, or does not say enough; the text says what to do.
    """
    root = _read(data, where)
    version = str(root.get("openapi", root.get("swagger", "")))
    if not re.match(r"[23]\.[01]", version):
        has = (
            f"is of version {one_line(version, 20)}"
            if version
            else "says neither openapi nor swagger"
        )
        raise AgentError(f"{where} {has}: OpenAPI 3.0, 3.1 and Swagger 2.0 can be read")
    info = _mapping(root.get("info"))
    title = str(info.get("title") or "")
    source = _Source(root, "", "")
    source.server = _server(source, base, server, where)
    agent = agent_name(
        re.sub(r"(?i)\b(swagger|openapi|open api|rest|http|api|service|[0-9.]+)\b", " ", title)
    )
    source.agent = (
        agent if agent != "agent" else agent_name(urlsplit(source.server).hostname or "service")
    )
    found = list(_operations(source, only))
    if not found:
        wanted = f" that is {' or '.join(only)}" if only else ""
        raise AgentError(f"{where} has no operation{wanted}")
    remarks = [f"The service: {one_line(title, 80)}."] if title else []
    if len(found) > MAX_OPS:
        remarks.append(
            f"It has {len(found)} operations; these are the first {MAX_OPS}. Choose with --only."
        )
        found = found[:MAX_OPS]
    paths = _paths(found, source.agent)
    ops = [_Maker(source, one, path).make() for one, path in zip(found, paths, strict=True)]
    return Draft(source.agent, where, ops, remarks, list(source.needs))


def _read(data: bytes, where: str) -> Node:
    try:
        text = data.decode("utf-8-sig")
        if text.lstrip().startswith("{"):
            found: Any = json.loads(text)
        else:
            found = document.read(text, where).value
    except (UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise AgentError(f"{where} is neither JSON nor YAML in UTF-8: {exc}") from exc
    except RecursionError as exc:
        raise AgentError(f"{where} is too deep to be read") from exc
    if not isinstance(found, Mapping):
        raise AgentError(f"{where} is no OpenAPI document: it holds no mapping")
    return found  # pyright: ignore[reportUnknownVariableType] - of Any


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType] - of Any


def _mapping(value: Any) -> Node:
    return value if isinstance(value, Mapping) else {}  # pyright: ignore[reportUnknownVariableType] - of Any


def _server(source: _Source, base: str | None, given: str | None, where: str) -> str:
    root = source.root
    if given is None and source.swagger:
        host = str(root.get("host") or (urlsplit(base).netloc if base else ""))
        schemes = [str(one) for one in _list(root.get("schemes"))]
        scheme = "https" if "https" in schemes or not schemes else schemes[0]
        if not schemes and base:
            scheme = urlsplit(base).scheme
        given = f"{scheme}://{host}{root.get('basePath') or ''}" if host else None
    elif given is None:
        first = _mapping(next(iter(_list(root.get("servers"))), {"url": "/"}))
        url = str(first.get("url", "/"))
        for name, variable in _mapping(first.get("variables")).items():
            url = url.replace("{" + name + "}", str(_mapping(variable).get("default", "")))
        given = urljoin(base, url) if base else url
    if given is None or not re.match(r"https?://[^/{}\s]+[^{}\s]*$", given):
        raise AgentError(
            f"{where} does not say where the service is: give --server http://127.0.0.1:8080"
        )
    return given.rstrip("/")


# -- which operations, and what they are called


@dataclass(frozen=True)
class _Operation:
    method: str
    path: str
    said: Node
    #: What is said of the path.
    item: Node


def _operations(source: _Source, only: Sequence[str]) -> Iterator[_Operation]:
    wanted = [_wanted(one) for one in only]
    for path, item in _mapping(source.root.get("paths")).items():
        if not path.startswith("/"):
            continue
        item = source.at(item)
        for method in _METHODS:
            said = item.get(method)
            if not _mapping(said):
                continue
            if wanted and not any(path == p and m in ("", method) for m, p in wanted):
                continue
            yield _Operation(method, path, said, item)


def _wanted(said: str) -> tuple[str, str]:
    method, space, path = said.strip().partition(" ")
    if not space:
        method, path = "", method
    if (method and method.lower() not in _METHODS) or not path.strip().startswith("/"):
        raise AgentError(f"--only {said!r}: write a method and a path, as in 'GET /pets'")
    return method.lower(), path.strip()


def _words(name: str) -> list[str]:
    """Take a name apart: ``listPetsByTag``, ``list_pets``."""
    found = re.sub(r"([a-z0-9])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3 \2\4", name)
    return [word for word in re.split(r"[^a-z0-9]+", found.lower()) if word]


def _same(one: str, two: str) -> bool:
    return _stem(one) == _stem(two)


def _stem(word: str) -> str:
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + instead
    return word


def _paths(found: Sequence[_Operation], agent: str) -> list[str]:
    """Name operations: by what they are about and what they do, as short as they stay apart."""
    names = [_names(one, agent) for one in found]
    used: set[str] = set()
    chosen: list[str] = []
    shortest = [forms[0] for forms in names]
    for forms in names:
        free = [form for form in forms if form not in used]
        if free and free[0] == forms[0] and shortest.count(forms[0]) > 1 and len(free) > 1:
            # The others of that name would look like its kin: all say more.
            free = free[1:]
        path = next(iter(free), "")
        number = 2
        while not path or path in used:
            path, number = f"{forms[-1]}-{number}", number + 1
        used.add(path)
        chosen.append(path)
    return chosen


def _names(one: _Operation, agent: str) -> list[str]:
    """Give its names, shortest first."""
    static = [part for part in one.path.split("/") if part and "{" not in part]
    static = [part for part in static if not re.fullmatch(r"api|v[0-9.]+|rest", part)]
    tags = [str(tag) for tag in _list(one.said.get("tags"))]
    group = agent_name("-".join(_words(tags[0])) if tags else static[0] if static else agent)
    if group in ("default", "agent"):
        group = agent_name(static[0]) if static else agent
    identity = str(one.said.get("operationId") or "")
    # FastAPI adds path and method to its names.
    identity = identity.removesuffix(re.sub(r"\W", "_", one.path) + f"_{one.method}")
    if not identity:
        whole = not one.path.rstrip("/").endswith("}")
        verb = _VERBS[one.method][whole]
        rest = [agent_name(part) for part in static if not _same(agent_name(part), group)]
        more = [agent_name("-".join(_words(part))) for part in one.path.split("/") if "{" in part]
        return [
            "/".join(["", group, *rest[-2:], verb]),
            "/".join(["", group, *rest, verb]),
            "/".join(["", group, *rest, *more, verb]),
        ]
    words = _words(identity)
    about = set(_words(group))
    less = [word for word in words if not any(_same(word, other) for other in about)] or words
    short = less
    for place, word in enumerate(less):
        if word == "by" and place:
            short = less[:place]
            break
    if short[0] not in _VERB_WORDS and len(short) > 1 and short[-1] in _VERB_WORDS:
        short = [short[-1], *short[:-1]]
    return [f"/{group}/{'-'.join(form)}" for form in (short, less, words)]


# -- one operation


class _Maker:
    """Makes one operation."""

    def __init__(self, source: _Source, one: _Operation, path: str) -> None:
        self._source = source
        self._one = one
        self._op = Op(path, {})
        self._args: dict[str, dict[str, Any]] = {}
        self._http: dict[str, Json] = {}
        self._url = source.server + one.path

    def make(self) -> Op:
        """Give it."""
        source, said = self._source, self._one.said
        self._http[self._one.method] = ""
        for parameter in self._parameters():
            self._parameter(parameter)
        for left in re.findall(r"\{([^{}]*)\}", self._one.path):
            if "{" + left + "}" in self._url and left not in self._args:
                # Used in the path and described nowhere.
                self._url = self._url.replace(
                    "{" + left + "}", "{" + self._argument(left, {"type": "string"}, True) + "}"
                )
        self._http[self._one.method] = self._url
        if not source.swagger:
            self._body(source.at(said.get("requestBody")))
        self._security()
        status = self._status()
        if status:
            self._http["status"] = status
        keys = self._op.keys
        about = str(said.get("summary") or said.get("description") or "")
        about = short(about, ABOUT)

    if about:
        found["summary"] = about
    return _fitting(name, found, required)


def _fitting(name: str, said: dict[str, Any], required: bool) -> dict[str, Any]:
    """Leave out what does not go together, such as a pattern that is none in Python."""
    for _ in range(8):
        try:
            Argument.of(name, said)
        except ValueError as exc:
            key = str(exc).partition(" ")[0].rstrip(":")
            if key not in said:
                break
            del said[key]
            if key == "default" and not required:
                said["optional"] = True
            continue
        return said
    return {"optional": True} if not required else {}


def _whole(pattern: str) -> str:
    """Make a pattern that all of a text has to match of one that is searched in it."""
    start, end = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[start : len(pattern) - end]
    if "|" in inner and not (start and end):
        return f".*(?:{pattern}).*"
    return ("" if start else ".*") + inner + ("" if end else ".*")
