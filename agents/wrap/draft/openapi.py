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
from ..argument import Argument
from .write import Draft, Op, agent_name, short

#: Operations that one draft holds, and how many of its properties a body is taken apart into.
MAX_OPS: Final = 300
MAX_PROPERTIES: Final = 25

#: References in a row.
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

#: A path that a URL can have, with its parameters; and the name of a header (RFC 9110, 5.1).
_PATH: Final = re.compile(r"(?:[!$-;=@-_a-z|~]|\{[^{}\s]{1,100}\})+")
_BRACES: Final = re.compile(r"[{}]")
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

Node = Mapping[str, Any]


@dataclass
class _Source:
    """A document, and what is known of where it is."""

    root: Node
    agent: str
    server: str
    needs: dict[str, None] = field(default_factory=dict[str, None])
    #: Those that were put together, by the identity of what the document says.
    _schemas: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])

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

    def schema(self, node: Any) -> dict[str, Any]:
        """Give a schema with its parts put together: ``allOf``, and what may be null."""
        found = self.at(node)
        if not found:
            return {}
        # Each is put together once, and one that is a part of itself has nothing to add: so a
        # document cannot make this take long.
        if id(found) not in self._schemas:
            self._schemas[id(found)] = {}
            self._schemas[id(found)] = self._together(dict(found))
        return self._schemas[id(found)]

    def _together(self, found: dict[str, Any]) -> dict[str, Any]:
        for part in _list(found.pop("allOf", None)):
            inner = self.schema(part)
            properties = {**inner.get("properties", {}), **found.get("properties", {})}
            required = [*_list(inner.get("required")), *_list(found.get("required"))]
            found = {**inner, **found}
            if properties:
                found["properties"] = properties
            if required:
                found["required"] = list(dict.fromkeys(map(str, required)))
        for key in ("anyOf", "oneOf"):
            branches = [self.at(one) for one in _list(found.get(key))]
            other = [one for one in branches if one.get("type") != "null"]
            if len(other) == 1:
                about: dict[str, Any] = {
                    name: found[name] for name in ("description", "default") if name in found
                }
                return {**self.schema(other[0]), **about}
        kinds = [one for one in _list(found.get("type")) if one != "null"]
        if kinds:
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
        if not path.startswith("/") or not _PATH.fullmatch(path):
            continue
        item = source.at(item)
        for method in _METHODS:
            said = _mapping(item.get(method))
            if not said:
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
    if not _words(identity):
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
        # First, so that no parameter stands for what is a secret of ours.
        self._security()
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
        status = self._status()
        if status:
            self._http["status"] = status
        keys = self._op.keys
        about = str(said.get("summary") or said.get("description") or "")
        about = short(about, 4 * ABOUT)
        keys["summary"] = f"{about}." if about else f"{self._one.method.upper()} {self._one.path}."
        if said.get("deprecated") is True:
            keys["summary"] = f"{keys['summary']} Deprecated."
        if self._args:
            keys["args"] = {name: dict(one) for name, one in self._args.items()}
        keys["http"] = self._http
        keys["output"] = self._output()
        keys["timeout"] = "30s"
        keys["effects"] = _METHODS[self._one.method]
        if self._one.method == "post":
            self._op.notes["effects",] = "reads, if it only asks; spends, if it costs"
        return self._op

    def _parameters(self) -> Iterator[Node]:
        found: dict[tuple[str, str], Node] = {}
        for said in (
            *_list(self._one.item.get("parameters")),
            *_list(self._one.said.get("parameters")),
        ):
            one = self._source.at(said)
            found[str(one.get("name")), str(one.get("in"))] = one
        # Paths first, as they have to be given.
        yield from sorted(found.values(), key=lambda one: one.get("in") != "path")

    def _argument(self, name: str, schema: Node, required: bool, about: str = "") -> str:
        """Add an argument and give its name."""
        found = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")[:60] or "value"
        if found[0].isdigit():
            found = f"a_{found}"
        unique, number = found, 2
        while unique in self._args or unique == "tmp":
            unique, number = f"{found}_{number}", number + 1
        self._args[unique] = _said(
            unique, schema, required, about or str(schema.get("description") or "")
        )
        return unique

    def _parameter(self, said: Node) -> None:
        where, name = str(said.get("in")), str(said.get("name", ""))
        about = str(said.get("description") or "")
        required = said.get("required") is True or where == "path"
        if where == "body":
            self._json(said.get("schema"), required)
            return
        if where == "cookie" or (
            where == "header" and name.lower() in ("accept", "content-type", "authorization")
        ):
            return
        if where in ("query", "header"):
            taken: Any = self._http.get("query" if where == "query" else "headers", {})
            if name.lower() in map(str.lower, taken):
                return
        if (where == "header" and not _HEADER.fullmatch(name)) or (
            where != "path" and _BRACES.search(name)
        ):
            self._op.left.append(f"{name}: its name cannot stand in a {where}")
            return
        content = next(iter(_mapping(said.get("content")).values()), None)
        raw: Any = said.get("schema") or _mapping(content).get("schema")
        if raw is None and self._source.swagger:
            raw = said
        schema = self._source.schema(raw)
        several = schema.get("type") == "array"
        # A list fills several parameters of one name, and nothing else.
        multi = where in ("query", "formData") and (
            said.get("collectionFormat") == "multi"
            if self._source.swagger
            else said.get("explode", True) is True and said.get("style", "form") == "form"
        )
        if several and not multi:
            schema = self._source.schema(schema.get("items"))
            if schema.get("type") not in ("array", "object"):
                schema = {"type": "string"}
        if schema.get("type") == "object" or (schema.get("type") == "array" and not multi):
            self._op.left.append(f"{name}: a list or mapping in a {where} is no single value")
            return
        made = self._argument(name, schema, required, about)
        filled = "{" + made + "}"
        if several and not multi:
            self._op.notes["args", made] = "it takes several, with commas between them"
        if where == "path":
            self._url = self._url.replace("{" + name + "}", filled)
        elif where in ("query", "header", "formData"):
            key = {"query": "query", "header": "headers", "formData": "form"}[where]
            part: dict[str, Json] = self._http.setdefault(key, {})
            part[name] = filled

    def _body(self, said: Node) -> None:
        content = _mapping(said.get("content"))
        if not content:
            return
        required = said.get("required") is True
        for media, one in content.items():
            if re.match(r"application/(?:.+\+)?json\b", media):
                self._json(_mapping(one).get("schema"), required)
                return
        for media, one in content.items():
            schema = self._source.schema(_mapping(one).get("schema"))
            if media.startswith(("application/x-www-form-urlencoded", "multipart/form-data")):
                self._form(schema)
                return
            if media.startswith("multipart/"):
                self._op.left.append(f"the body, which is {media}")
                continue
            if media.startswith("text/"):
                self._http["text"] = (
                    "{" + self._argument("body", {"type": "string"}, required) + "}"
                )
            else:
                self._http["file"] = "{" + self._argument("body", {"type": "file"}, required) + "}"
                headers: dict[str, Json] = self._http.setdefault("headers", {})
                if "*" not in media:
                    headers["Content-Type"] = media
            return

    def _form(self, schema: Node) -> None:
        required = _list(schema.get("required"))
        form: dict[str, Json] = self._http.setdefault("form", {})
        for name, said in list(_mapping(schema.get("properties")).items())[:MAX_PROPERTIES]:
            one = self._source.schema(said)
            if one.get("type") == "object" or _BRACES.search(name):
                self._op.left.append(f"{name}: a mapping in a form is no single value")
                continue
            form[name] = "{" + self._argument(name, one, name in required) + "}"

    def _json(self, said: Any, required: bool) -> None:
        schema = self._source.schema(said)
        properties = _mapping(schema.get("properties"))
        needed = _list(schema.get("required"))
        wanted = {
            name: self._source.schema(one)
            for name, one in properties.items()
            if self._source.schema(one).get("readOnly") is not True
        }
        if (
            not wanted
            or len(wanted) > MAX_PROPERTIES
            or any(map(_BRACES.search, wanted))
            or schema.get("type") not in ("object", None)
        ):
            kind = schema if schema.get("type") in _TYPES else {"type": "object"}
            self._http["json"] = "{" + self._argument("body", kind, required) + "}"
            return
        body: dict[str, Json] = {}
        for name, one in wanted.items():
            body[name] = "{" + self._argument(name, one, required and name in needed) + "}"
        self._http["json"] = body

    # -- who asks

    def _security(self) -> None:
        root = self._source.root
        said = self._one.said.get("security", root.get("security"))
        alternatives = [_mapping(one) for one in _list(said)]
        if not alternatives or any(not one for one in alternatives):
            return
        schemes = _mapping(
            root.get("securityDefinitions")
            if self._source.swagger
            else _mapping(root.get("components")).get("securitySchemes")
        )
        for name in alternatives[0]:
            self._scheme(name, self._source.at(schemes.get(name)))

    def _scheme(self, name: str, said: Node) -> None:
        kind, way = said.get("type"), str(said.get("scheme", "")).lower()
        named = (said.get("in") == "query" and not _BRACES.search(str(said.get("name")))) or (
            said.get("in") == "header" and _HEADER.fullmatch(str(said.get("name")))
        )
        if kind == "apiKey" and named:
            key = "headers" if said["in"] == "header" else "query"
            part: dict[str, Json] = self._http.setdefault(key, {})
            part[str(said.get("name"))] = self._secret("KEY")
        elif kind == "basic" or (kind == "http" and way == "basic"):
            self._http["auth"] = {"basic": {"user": "USER", "password": self._secret("PASSWORD")}}
            self._op.notes["http", "auth"] = "as whom?"
        elif kind in ("oauth2", "openIdConnect") or (kind == "http" and way == "bearer"):
            self._http["auth"] = {"bearer": self._secret("TOKEN")}
        else:
            self._op.left.append(f"{name}: a way to log in that is not known here")

    def _secret(self, what: str) -> dict[str, Json]:
        name = re.sub(r"[^A-Z0-9]+", "_", self._source.agent.upper()).strip("_") + f"_{what}"
        if name[0].isdigit():
            name = f"API_{name}"
        self._source.needs[name] = None
        return {"env": name}

    # -- what comes back

    def _status(self) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for code, said in _mapping(self._one.said.get("responses")).items():
            code = str(code)
            about = one_line(str(self._source.at(said).get("description") or ""), ABOUT).rstrip(
                ". "
            )
            if code in ("429", "503"):
                found[code] = "retry"
            elif re.fullmatch(r"4[0-9][0-9]", code) and code not in ("401", "403", "407", "408"):
                found[code] = {"refused": about} if about else "refused"
        return dict(list(found.items())[:8])

    def _output(self) -> Json:
        responses = _mapping(self._one.said.get("responses"))
        good = [code for code in map(str, responses) if re.fullmatch(r"2..", code)]
        said = self._source.at(
            next(
                (one for code, one in responses.items() if good and str(code) == good[0]),
                responses.get("default"),
            )
        )
        if self._one.method == "head" or (good and good[0] in ("204", "205")):
            return "none"
        if self._source.swagger:
            media = [
                str(one)
                for one in _list(self._one.said.get("produces", self._source.root.get("produces")))
            ] or ["application/json"]
            schema = self._source.schema(said.get("schema"))
            if not schema:
                return "text"
            if schema.get("type") == "file":
                return "blob"
        else:
            media = list(_mapping(said.get("content")))
            if not media:
                return "text"
        if any("json" in one or one == "*/*" for one in media):
            return "json"
        if any(one.startswith("text/") or "xml" in one for one in media):
            return "text"
        return {"blob": media[0]} if re.fullmatch(r"[a-z]+/[A-Za-z0-9.+-]+", media[0]) else "blob"


_TYPES: Final = ("string", "integer", "number", "boolean", "array", "object", "file")


def _said(name: str, schema: Node, required: bool, about: str) -> dict[str, Any]:
    """Say what an argument may be, as far as a manifest can."""
    kind = schema.get("type")
    kind = kind if kind in _TYPES else "string"
    if kind == "string" and (schema.get("format") == "binary" or "contentMediaType" in schema):
        kind = "file"
    found: dict[str, Any] = {} if kind == "string" else {"type": kind}
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    wanted = int if kind == "integer" else str
    if isinstance(choices, list) and kind in ("string", "integer"):
        listed: list[Any] = [one for one in choices if type(one) is wanted]  # pyright: ignore
        if listed:
            found["enum"] = list(dict.fromkeys(listed))
    if "enum" not in found and kind == "string":
        if isinstance(schema.get("pattern"), str):
            found["pattern"] = _whole(schema["pattern"])
        for key, ours in (("minLength", "min_length"), ("maxLength", "max_length")):
            if type(schema.get(key)) is int and schema[key] > 0:
                found[ours] = schema[key]
    if "enum" not in found and kind in ("integer", "number"):
        for key in ("minimum", "maximum"):
            if type(schema.get(key)) in (int, float):
                found[key] = schema[key]
        if kind == "integer":
            for key, ours, step in (
                ("exclusiveMinimum", "minimum", 1),
                ("exclusiveMaximum", "maximum", -1),
            ):
                if type(schema.get(key)) is int:
                    found[ours] = schema[key] + step
    default = schema.get("default")
    if not required and isinstance(default, (str, int, float, bool)) and kind != "file":
        found["default"] = default
    elif not required:
        found["optional"] = True
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
