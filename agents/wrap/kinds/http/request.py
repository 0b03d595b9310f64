"""A request of a manifest: its URL, headers and body, with places for arguments.

Scheme, host and port have no places, and neither have names: of parameters, headers or fields.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard, cast
from urllib.parse import urlencode

from spinal.bus.blob import UNKNOWN
from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem

from .... import secret
from ....errors import AgentError
from ....secret import Secret
from ...argument import text
from ...kind import Call, Site
from ...template import Template
from . import quoting

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

#: In the order in which they are told.
METHODS: Final = ("get", "post", "put", "patch", "delete", "head")

#: Those without a body.
BODILESS: Final = frozenset({"get", "head"})

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_MEDIA: Final = re.compile(rf"{_TOKEN.pattern}/{_TOKEN.pattern}")
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(#.*)?")

#: Headers that are ours to write, because they say how a message is taken apart.
_OURS: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade"}
    | {"expect", "accept-encoding", "content-encoding", "keep-alive", "proxy-authorization"}
)

#: Names of what is a secret.
_SECRET: Final = re.compile(
    r"(?:.*[-_])?(?:api[-_]?key|auth|token|secret|passw(?:or)?d)", re.IGNORECASE
)

_FIELD: Final[Mapping[str, Json]] = {
    "anyOf": [{"type": ["string", "number", "boolean"]}, secret.SCHEMA]
}

_FIELDS: Final[Mapping[str, Json]] = {"type": "object", "additionalProperties": _FIELD}

_WHERE: Final[Mapping[str, Json]] = {
    "type": "string",
    "minLength": 1,
    "examples": ["http://127.0.0.1:8081/api/zones/{zone}"],
}

#: What stands for a member that is left out.
_NOTHING: Final = object()

#: How it stands in a manifest.
PROPERTIES: Final[Mapping[str, Json]] = {
    **{
        method: {**_WHERE, "description": f"URL that a {method.upper()} goes to."}
        for method in METHODS
    },
    "query": {
        **_FIELDS,
        "description": "Parameters of the URL; one is left out where its argument is "
        "nothing. A list fills several of the same name.",
        "examples": [{"name": "{name}"}],
    },
    "headers": {
        **_FIELDS,
        "description": "Headers; one is left out where its argument is nothing.",
        "examples": [{"X-API-Key": {"env": "API_KEY"}}],
    },
    "auth": {
        "type": "object",
        "properties": {
            "basic": {
                "type": "object",
                "properties": {
                    "user": {"anyOf": [{"type": "string"}, secret.SCHEMA]},
                    "password": secret.SCHEMA,
                },
                "required": ["user", "password"],
                "additionalProperties": False,
                "examples": [{"user": "ann", "password": {"env": "PASSWORD"}}],
            },
            "bearer": secret.SCHEMA,
        },
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
        "description": "Who we are: basic (user, password) or a bearer token.",
        "examples": [{"bearer": {"env": "TOKEN"}}],
    },
    "json": {
        "description": "Body in JSON. A value that is only a placeholder keeps the type of "
        "its argument, and is left out where that is nothing.",
        "examples": [{"name": "{name}"}],
    },
    "form": {
        **_FIELDS,
        "description": "Body as of a form; with a file argument in it, multipart.",
        "examples": [{"name": "{name}"}],
    },
    "text": {"type": "string", "description": "Body of plain text."},
    "xml": {
        "type": "string",
        "description": "Body in XML; arguments are quoted for it.",
        "examples": ["<get><name>{name}</name></get>"],
    },
    "file": {
        "type": "string",
        "description": "Body that is a file argument.",
        "examples": ["{photo}"],
    },
}


@dataclass(frozen=True, slots=True)
class _Whole:
    """An argument that is all of a place, with its type."""

    name: str


#: What fills a value of a query or form: a text, an argument as it is, or a secret.
_Source = Template | _Whole | Secret


@dataclass(frozen=True, slots=True)
class Address:
    """A URL whose path has places; scheme, host and port have none."""

    base: str
    path: tuple[Template, ...] = ()
    query: str = ""

    @property
    def secure(self) -> bool:
        """Whether it is one of HTTPS."""
        return self.base.startswith("https:")

    def fill(self, call: Call, pairs: Sequence[tuple[str, str]]) -> URL:
        """Give the URL of a call; each argument in it keeps to its place."""
        from yarl import URL

        found = self.base + "/".join(quoting.segment(call, part) for part in self.path)
        query = "&".join(filter(None, (self.query, quoting.query(pairs))))
        # Quoted already: to read it again would undo that.
        return URL(f"{found}?{query}" if query else found, encoded=True)


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent: json, form, text, xml or file; nothing without a form."""

    form: str = ""
    content: Any = None


@dataclass(slots=True)
class Ready:
    """A request, filled and ready to be sent."""

    url: URL
    headers: dict[str, str]
    #: Makes the body anew for each time that it is sent.
    body: Callable[[contextlib.ExitStack], Any]
    #: What must be in no word that we pass on.
    secrets: list[str] = field(default_factory=list[str])

    def hide(self, words: str) -> str:
        """Take its secrets out of words that are passed on."""
        for hidden in self.secrets:
            words = words.replace(hidden, "***")
        return words


@dataclass(frozen=True)
class Request:
    """A request with places for arguments."""

    method: str
    address: Address
    query: Mapping[str, _Source] = field(default_factory=dict[str, _Source])
    headers: Mapping[str, Template | Secret] = field(default_factory=dict[str, Any])
    #: ``bearer``, or ``user`` and ``password``.
    auth: Mapping[str, Any] = field(default_factory=dict[str, Any])
    body: Body = field(default_factory=Body)
    accept: str = "*/*"
    #: Bytes that a body may have.
    most: int = 0

    @classmethod
    def of(cls, site: Site, method: str, accept: str, most: int) -> Request:
        """Read it; mistakes are collected."""
        return cls(
            method,
            _address(site, method),
            _fields(site, "query"),
            _headers(site),
            _auth(site),
            _body(site, method),
            accept,
            most,
        )

    def lacks(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Give the secrets that are not here, by where they stand."""
        for key, sources in (("query", self.query), ("headers", self.headers)):
            for name, source in sources.items():
                yield from _lacking(source, key, name)
        if self.body.form == "form":
            for name, source in self.body.content.items():
                yield from _lacking(source, "form", name)
        for name, source in self.auth.items():
            yield from _lacking(source, "auth", *((name,) if name == "bearer" else ("basic", name)))

    async def fill(self, call: Call) -> Ready:
        """Fill it with the arguments of a call.

        Raises:
            CallError: a place cannot hold an argument; by name.
        """
        quoting.unicode(call)
        secrets: list[str] = []

        def hidden(source: Secret) -> str:
            found = source.read()
            # A shorter one would tear up words, and be no secret.
            if len(found) >= 4:
                secrets.append(found)
            return found

        url = self.address.fill(call, list(_pairs(call, self.query, hidden)))
        if len(str(url)) > quoting.MAX_URL:
            names = [name for part in self.address.path for name in part.names]
            names += [name for source in self.query.values() for name in _names(source)]
            raise self._long(call, names, f"the URL would be longer than {quoting.MAX_URL} bytes")
        headers = {"Accept": self.accept}
        kind, body = await self._made(call, hidden)
        if kind:
            headers["Content-Type"] = kind
        for name, source in self.headers.items():
            if isinstance(source, Secret):
                found: str | None = _checked(hidden(source), source)
            else:
                found = quoting.header(call, source)
            if found is not None:
                replaced = {key for key in headers if key.lower() == name.lower()}
                headers = {k: v for k, v in headers.items() if k not in replaced}
                headers[name] = found
        headers.update(self._authorization(hidden))
        return Ready(url, headers, body, secrets)

    def _long(self, call: Call, names: Sequence[str], words: str) -> CallError:
        """Make the refusal of whatever takes the most room."""
        given = [name for name in names if call.args.get(name) is not None]
        if not given:
            return CallError.of(Problem("failed", words))
        return call.bad(max(given, key=lambda name: len(str(call.args[name]))), words)

    def _authorization(self, hidden: Callable[[Secret], str]) -> dict[str, str]:
        if "bearer" in self.auth:
            reference: Secret = self.auth["bearer"]
            return {"Authorization": f"Bearer {_checked(hidden(reference), reference)}"}
        if "user" in self.auth:
            user = self.auth["user"]
            name = hidden(user) if isinstance(user, Secret) else user
            both = f"{name}:{hidden(self.auth['password'])}".encode()
            return {"Authorization": f"Basic {base64.b64encode(both).decode()}"}
        return {}

    async def _made(
        self, call: Call, hidden: Callable[[Secret], str]
    ) -> tuple[str, Callable[[contextlib.ExitStack], Any]]:
        """Give the type of the body, and what makes it."""
        content = self.body.content
        match self.body.form:
            case "json":
                found = _tree(call, content)
                data = b"" if found is _NOTHING else _json(found)
                kind = "application/json"
            case "form" if any(_is_file(source, call) for source in content.values()):
                return "", await self._multipart(call, hidden)
            case "form":
                data = urlencode(list(_pairs(call, content, hidden))).encode()
                kind = "application/x-www-form-urlencoded"
            case "text":
                data = (quoting.filled(call, content) or "").encode()
                kind = "text/plain; charset=utf-8"
            case "xml":
                data = quoting.xml(call, content).encode()
                kind = "application/xml; charset=utf-8"
            case "file" if call.args.get(content) is not None:
                path = await self._file(call, content)
                return _media(call, content), lambda stack: stack.enter_context(path.open("rb"))
            case _:
                return "", lambda stack: None
        if len(data) > self.most:
            names = [name for name, value in call.args.items() if value is not None]
            raise self._long(call, names, f"the body would be longer than {self.most} bytes")
        if not data and self.body.form == "json":
            return "", lambda stack: None
        return kind, lambda stack: io.BytesIO(data)

    async def _multipart(
        self, call: Call, hidden: Callable[[Secret], str]
    ) -> Callable[[contextlib.ExitStack], Any]:
        import aiohttp

        files: dict[str, tuple[Path, str]] = {}
        for name, source in self.body.content.items():
            if _is_file(source, call) and call.args.get(source.name) is not None:
                path = await self._file(call, source.name)
                files[name] = path, _media(call, source.name)
        fields = {name: source for name, source in self.body.content.items() if name not in files}
        pairs = list(_pairs(call, fields, hidden))

        def make(stack: contextlib.ExitStack) -> aiohttp.FormData:
            form = aiohttp.FormData(default_to_multipart=True)
            for name, value in pairs:
                form.add_field(name, value)
            for name, (path, kind) in files.items():
                file = stack.enter_context(path.open("rb"))
                form.add_field(name, file, filename=path.name, content_type=kind)
            return form

        return make

    async def _file(self, call: Call, name: str) -> Path:
        if call.args[name].size > self.most:
            raise call.bad(name, f"larger than {self.most} bytes")
        return await call.path(name)


def _media(call: Call, name: str) -> str:
    """Give the type of a file as its caller says, if it can stand in a header."""
    said: str = call.args[name].media_type
    return said if _MEDIA.fullmatch(said) else UNKNOWN


def _names(source: _Source) -> list[str]:
    match source:
        case Template():
            return source.names
        case _Whole(name):
            return [name]
        case _:
            return []


def _is_file(source: _Source, call: Call) -> TypeGuard[_Whole]:
    return isinstance(source, _Whole) and call.arguments[source.name].type == "file"


def _checked(found: str, source: Secret) -> str:
    if not found.isascii() or not found.isprintable():
        raise AgentError(f"the secret {source} has what no header can hold, such as a line break")
    return found


def _pairs(
    call: Call, sources: Mapping[str, _Source], hidden: Callable[[Secret], str]
) -> Iterator[tuple[str, str]]:
    for name, source in sources.items():
        if isinstance(source, Secret):
            yield name, hidden(source)
        elif isinstance(source, _Whole):
            value = call.args.get(source.name)
            if isinstance(value, list):
                items: list[Json] = value  # pyright: ignore[reportUnknownVariableType]
                yield from ((name, text(item)) for item in items)
        elif (found := quoting.filled(call, source)) is not None:
            yield name, found


def _tree(call: Call, node: Any) -> Any:
    """Fill a JSON body."""
    if isinstance(node, _Whole):
        value = call.args.get(node.name)
        return _NOTHING if value is None else value
    if isinstance(node, Template):
        found = quoting.filled(call, node)
        return _NOTHING if found is None else found
    if isinstance(node, Mapping):
        members = cast("Mapping[str, Any]", node)
        pairs = [(key, _tree(call, inner)) for key, inner in members.items()]
        return {key: inner for key, inner in pairs if inner is not _NOTHING}
    if isinstance(node, list):
        listed: list[Any] = node  # pyright: ignore[reportUnknownVariableType]
        return [inner for item in listed if (inner := _tree(call, item)) is not _NOTHING]
    return node


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _lacking(source: Any, *steps: str) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(source, Secret) and (why := source.missing()):
        yield steps, why


def _address(site: Site, method: str) -> Address:
    from yarl import URL

    said: str = site.value[method]
    where = (site.key, method)
    match = _URL.fullmatch(said)
    if match is None or match[1].lower() not in ("http", "https") or not match[2]:
        scheme = said.partition("://")[0]
        if "{" in scheme or said.startswith("{"):
            why = "scheme and host cannot come from an argument: write them out"
        else:
            why = f"{said[:60]!r} is no URL of http or https: write http://HOST:PORT/PATH"
        site.wrong(why, *where)
        return Address("")
    scheme, authority, path, query, fragment = match.groups()
    if "{" in authority or "}" in authority:
        site.wrong("host and port cannot come from an argument: write them out", *where)
        return Address("")
    if "@" in authority:
        site.wrong("a user or password stands under auth, and not in the URL", *where)
        return Address("")
    if fragment is not None:
        site.wrong("what follows '#' is never sent: leave it out", *where)
    if query and ("{" in query or "}" in query):
        site.wrong("what follows '?' takes no placeholder: write it under query", *where)
        query = ""
    try:
        base = str(URL(f"{scheme.lower()}://{authority}").origin())
    except ValueError as exc:
        site.wrong(f"{authority!r} is no host and port: {exc}", *where)
        return Address("")
    parts = tuple(site.template(part, *where) for part in (path or "/").split("/"))
    for part in parts:
        for name in part.names:
            if _maybe(site, name):
                site.wrong(
                    f"{{{name}}} may be missing, and a path needs it: give it a default, or leave "
                    "optional out",
                    *where,
                )
    return Address(base, parts, quoting.literal(query or ""))


def _maybe(site: Site, name: str) -> bool:
    one = site.arguments.get(name)
    return one is not None and not one.required and one.default is None


def _fields(site: Site, key: str) -> dict[str, _Source]:
    """Read the parameters of a query or form."""
    found: dict[str, _Source] = {}
    for name, said in site.value.get(key, {}).items():
        if "{" in name or "}" in name:
            site.wrong("a name cannot come from an argument: write it out", site.key, key, name)
        elif isinstance(said, Mapping):
            found[name] = _secret(site, said)
        else:
            whole = _whole(site, said)
            kinds = ("array", "file") if key == "form" else ("array",)
            if whole is not None and site.arguments[whole].type in kinds:
                site.used.add(whole)
                found[name] = _Whole(whole)
            else:
                found[name] = site.template(text(said), site.key, key, name)
                _guard(site, found[name], name, key)
    return found


def _guard(site: Site, source: _Source, name: str, key: str) -> None:
    """Find a secret that stands in the manifest itself."""
    if isinstance(source, Template) and not source.names and _SECRET.fullmatch(name):
        site.wrong(
            f"a secret stands here by reference: write {name}: {{env: NAME}} or {{file: PATH}}",
            *(site.key, key, name),
        )


def _secret(site: Site, said: Any) -> Secret:
    return Secret.of(said, site.folder)


def _whole(site: Site, said: Any) -> str | None:
    """Give the argument that is all of a text; none where it is not known, which is told later."""
    if not isinstance(said, str):
        return None
    try:
        name = Template.of(said).whole
    except ValueError:
        return None
    return name if name in site.arguments else None


def _headers(site: Site) -> dict[str, Template | Secret]:
    found: dict[str, Template | Secret] = {}
    for name, said in site.value.get("headers", {}).items():
        where = (site.key, "headers", name)
        if not _TOKEN.fullmatch(name):
            known = "cannot come from an argument: write it out" if "{" in name else "is none"
            site.wrong(f"the name of a header {known}", *where)
        elif name.lower() in _OURS:
            site.wrong("this header is written by us: leave it out", *where)
        elif isinstance(said, Mapping):
            found[name] = _secret(site, said)
        else:
            if name.lower() == "authorization":
                site.wrong(
                    "who we are stands under auth, as in auth: {bearer: {env: TOKEN}}", *where
                )
            template = site.template(text(said), *where)
            fixed = "".join(p for p in template.pieces if isinstance(p, str))
            if not fixed.isascii() or not fixed.isprintable():
                site.wrong("a header holds printable ASCII only", *where)
            found[name] = template
            _guard(site, template, name, "headers")
    if len({name.lower() for name in found}) < len(found):
        site.wrong("a header stands twice, in capitals and small letters", site.key, "headers")
    return found


def _auth(site: Site) -> dict[str, Any]:
    said = site.value.get("auth", {})
    if "bearer" in said:
        return {"bearer": _secret(site, said["bearer"])}
    if "basic" not in said:
        return {}
    user = said["basic"]["user"]
    if isinstance(user, str):
        # RFC 7617, 2: the first colon ends the name.
        if ":" in user or "{" in user:
            why = "cannot come from an argument" if "{" in user else "has no ':' in it"
            site.wrong(f"the name of a user {why}", site.key, "auth", "basic", "user")
    else:
        user = _secret(site, user)
    return {"user": user, "password": _secret(site, said["basic"]["password"])}


def _body(site: Site, method: str) -> Body:
    said = site.value
    forms = [form for form in ("json", "form", "text", "xml", "file") if form in said]
    if not forms:
        return Body()
    form = forms[0]
    where = (site.key, form)
    if len(forms) > 1:
        site.wrong(f"has {' and '.join(forms)}, and a request has one body: keep one", site.key)
    if method in BODILESS:
        site.wrong(f"a {method.upper()} has no body: write query, or another method", *where)
    match form:
        case "json":
            return Body(form, _read_tree(site, said[form], where))
        case "form":
            return Body(form, _fields(site, form))
        case "file":
            return Body(form, _read_file(site, said[form]))
        case _:
            template = site.template(said[form], *where)
            if form == "text" and template.names:
                if said[form].lstrip().startswith("<"):
                    site.wrong(
                        "this is XML: write xml in place of text, which quotes for it", *where
                    )
                elif re.match(r'\s*(\{\{|\[\s*(?:"|\{\{))', said[form]):
                    site.wrong("this is JSON: write json in place of text, as YAML", *where)
            return Body(form, template)


def _read_file(site: Site, said: str) -> str:
    whole = _whole(site, said)
    if whole is None or site.arguments[whole].type != "file":
        site.wrong(
            f'{said[:60]!r} is no file argument: write one alone, as in file: "{{photo}}"',
            *(site.key, "file"),
        )
        return ""
    site.used.add(whole)
    return whole


def _read_tree(site: Site, said: Any, where: tuple[str | int, ...]) -> Any:
    """Read a JSON body."""
    if isinstance(said, str):
        whole = _whole(site, said)
        if whole is not None and site.arguments[whole].type != "file":
            site.used.add(whole)
            return _Whole(whole)
        return site.template(said, *where)
    if isinstance(said, Mapping):
        members = cast("Mapping[str, Any]", said)
        for key in members:
            if re.search(r"\{[A-Za-z_]\w*\}", key):
                site.wrong("a key cannot come from an argument: write it out", *where, key)
        return {key: _read_tree(site, inner, (*where, key)) for key, inner in members.items()}
    if isinstance(said, list):
        listed: list[Any] = said  # pyright: ignore[reportUnknownVariableType]
        return [_read_tree(site, item, (*where, place)) for place, item in enumerate(listed)]
    if isinstance(said, float) and not isfinite(said):
        site.wrong("JSON has no such number", *where)
    return said
