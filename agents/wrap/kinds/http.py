"""A request to an HTTP service for each call.

The manifest says where a request goes; an argument fills a segment of its path, a value of its
query, a header or a part of its body, quoted for that place, and never its scheme or host.  There
are no cookies, no proxies from the environment, and no redirects that the manifest did not ask for;
the certificate of a service is always verified.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import random
import re
import ssl
import tempfile
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, TypeGuard, cast
from urllib.parse import urlencode

from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem, values

from ... import secret
from ...document import SIZE, size
from ...errors import AgentError, Retry, one_line
from ...secret import Secret
from .. import outcome, quoting
from ..argument import text
from ..kind import Call, Host, Kind, Site
from ..outcome import Outcome
from ..output import Output, pointed
from ..template import Template

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

#: Bytes of an answer that are taken if the manifest does not say, and of one that becomes a blob.
ANSWER: Final = 1024 * 1024
BLOB_ANSWER: Final = 64 * 1024 * 1024

#: Bytes of a body that are sent if the manifest does not say.
BODY: Final = 64 * 1024 * 1024

#: Seconds until a connection has to be there.
CONNECT: Final = 10.0

#: Requests at once if the manifest has no slots.
CONNECTIONS: Final = 16

#: How often a request is sent again where that is safe; and the first pause before it in seconds,
#: which doubles.
RETRIES: Final = 2
BACKOFF: Final = 0.2

#: Items that are collected from pages if the manifest does not say, and most pages.
ITEMS: Final = 1000
PAGES: Final = 1000

#: Methods that may be sent twice (RFC 9110, 9.2.2), and those without a body.
_IDEMPOTENT: Final = frozenset({"get", "head", "put", "delete"})
_BODILESS: Final = frozenset({"get", "head"})
_METHODS: Final = ("get", "post", "put", "patch", "delete", "head")

#: Statuses of which another try may be the end.
_PASSING: Final = frozenset({502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_STATUS: Final = re.compile(r"[1-5][0-9][0-9]|[1-5]xx|other")
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(#.*)?")

#: Headers that are ours to write, because they say how a message is taken apart.
_OURS: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade"}
    | {"expect", "accept-encoding", "content-encoding", "keep-alive", "proxy-authorization"}
)
_SECRET: Final = re.compile(
    r"(?:.*[-_])?(?:api[-_]?key|auth|token|secret|passw(?:or)?d)", re.IGNORECASE
)

#: Where an answer of JSON says in words what went wrong, in this order.
_WORDS: Final = (
    *(
        "error",
        "message",
        "detail",
        "error_description",
        "errors",
        "title",
        "reason",
        "description",
    ),
)

_OUTCOMES: Final[Mapping[str, Outcome]] = {
    "2xx": Outcome("done"),
    "429": Outcome("retry"),
    "503": Outcome("retry"),
    "other": Outcome("error"),
}

_FIELD: Final[Mapping[str, Json]] = {
    "anyOf": [{"type": ["string", "number", "boolean"]}, secret.SCHEMA]
}
_FIELDS: Final[Mapping[str, Json]] = {"type": "object", "additionalProperties": _FIELD}
_WHERE: Final[Mapping[str, Json]] = {
    "type": "string",
    "minLength": 1,
    "examples": ["http://127.0.0.1:8081/api/zones/{zone}"],
}
_FILE: Final[Mapping[str, Json]] = {"type": "string", "minLength": 1}

#: What stands for a member that is left out.
_NOTHING: Final = object()


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
class Pages:
    """How the next page of an answer is found, and the items of each."""

    #: Pointer to the items in an answer.
    items: str = ""
    #: Pointer to the next URL, or to the value of ``param``.
    at: str | None = None
    #: The header Link says (RFC 8288).
    link: bool = False
    #: Name of the parameter that a count or a value goes to.
    param: str | None = None
    first: int = 1
    step: int = 1
    most: int = ITEMS
    cut: bool = False


@dataclass(frozen=True, slots=True)
class _Tls:
    """What our side shows, and whom it believes."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | Secret | None = None
    #: Name that the certificate has to bear, if not that of the host.
    name: str | None = None

    def context(self) -> ssl.SSLContext:
        """Make the context; reads files.

        Raises:
            AgentError: a file or secret is not what it should be.
        """
        try:
            made = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as exc:
            raise AgentError(f"tls: ca {self.ca}: {exc}: give a file of PEM certificates") from exc
        if self.cert is None:
            return made
        try:
            if not isinstance(self.key, Secret):
                made.load_cert_chain(self.cert, self.key)
                return made
            # OpenSSL reads a key from a file only.
            with tempfile.NamedTemporaryFile("w", prefix="spinal-key-") as file:
                file.write(self.key.read())
                file.flush()
                made.load_cert_chain(self.cert, file.name)
        except (OSError, ssl.SSLError) as exc:
            raise AgentError(f"tls: cert {self.cert} and its key cannot be used: {exc}") from exc
        return made


@dataclass(frozen=True, slots=True)
class _Body:
    """What is sent: one of the forms in ``_BODIES``."""

    form: str = ""
    content: Any = None


@dataclass(slots=True)
class _Request:
    """A request, ready to be sent."""

    url: URL
    headers: dict[str, str]
    #: Makes the body anew for each time that it is sent.
    body: Callable[[contextlib.ExitStack], Any]
    #: What must be in no word that we pass on.
    secrets: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service answered."""

    url: URL
    status: int
    reason: str
    headers: Mapping[str, str]
    #: The next page as the header Link says.
    link: str | None
    data: bytes

    @property
    def after(self) -> float | None:
        """Seconds to wait, if it says (RFC 9110, 10.2.3)."""
        said = self.headers.get("Retry-After", "").strip()
        if said.isascii() and said.isdigit() and len(said) < 10:
            return float(said)
        try:
            return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
        except (ValueError, OverflowError):
            return None

    def words(self, secrets: Sequence[str] = ()) -> str:
        """Give its own words in one line: what its JSON says, or its first line of text."""
        words = _said(self.data[:65_536].decode(errors="replace"))
        for hidden in secrets:
            words = words.replace(hidden, "***")
        status = f"{self.status} {self.reason}".strip()
        return one_line(f"{words} ({status})" if words else f"it answered {status}", 400)


def _said(text: str) -> str:
    if text.lstrip()[:1] in ("{", "["):
        try:
            return _member(values.loads(text.encode()), 4)
        except ValueError:
            pass  # Cut off, or no JSON after all.
    if "<html" in text[:1000].lower():
        title = re.search(r"<title[^>]*>([^<]*)", text, re.IGNORECASE)
        return "" if title is None else title[1].strip()
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:300]


def _member(value: Json, depth: int) -> str:
    if isinstance(value, str):
        return value[:300]
    if isinstance(value, list) and value and depth:
        items: list[Json] = value  # pyright: ignore[reportUnknownVariableType]
        return _member(items[0], depth - 1)
    if isinstance(value, Mapping) and depth:
        members = cast("Mapping[str, Json]", value)
        for key in _WORDS:
            if (found := _member(members.get(key), depth - 1)) != "":
                return found
    return ""


class Http(Kind):
    """Sends a request."""

    SCHEMA: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "properties": {
            **{
                method: {**_WHERE, "description": f"URL that a {method.upper()} goes to."}
                for method in _METHODS
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
            "status": {
                "type": "object",
                "patternProperties": {_STATUS.pattern: outcome.SCHEMA},
                "description": "What each status means: a code, a class such as 4xx, or other. If "
                "not said, 2xx is done, 429 and 503 are retry, and any other is error.",
                "examples": [{"404": "refused", "2xx": "done"}],
            },
            "pages": {
                "type": "object",
                "properties": {
                    "items": {
                        "type": "string",
                        "pattern": "^(/.*)?$",
                        "patternErrorMessage": "is no JSON pointer, which begins with '/'",
                        "description": "JSON pointer to the list in each answer; all of it if not "
                        "said.",
                        "examples": ["/data"],
                    },
                    "next": {
                        "anyOf": [
                            {"type": "string", "pattern": "^(/.*|link)$"},
                            {
                                "type": "object",
                                "properties": {
                                    "param": {"type": "string", "minLength": 1},
                                    "at": {"type": "string", "pattern": "^/"},
                                    "from": {"type": "integer", "minimum": 0},
                                    "step": {"type": "integer", "minimum": 1},
                                },
                                "required": ["param"],
                                "additionalProperties": False,
                            },
                        ],
                        "errorMessage": "write a JSON pointer to the next URL, link for the header "
                        "Link, {param: page, from: 1} to count, or {param: cursor, at: /next}",
                        "description": "Where the next page is: a JSON pointer to its URL, link for "
                        "the header of that name, or a parameter that counts until a page is empty, "
                        "or takes what an answer has at a pointer.",
                        "examples": ["/links/next"],
                    },
                    "most": {
                        "type": "integer",
                        "minimum": 1,
                        "maximum": 20_000,
                        "description": "Items that are collected (1000); more is an error.",
                        "examples": [1000],
                    },
                    "cut": {"type": "boolean", "description": "More is no error: leave them out."},
                },
                "required": ["next"],
                "additionalProperties": False,
                "description": "The result is the list of the items of all pages.",
                "examples": [{"next": "/links/next", "items": "/data"}],
            },
            "tls": {
                "type": "object",
                "properties": {
                    "ca": {**_FILE, "description": "Certificates that we believe, in PEM."},
                    "cert": {**_FILE, "description": "Our certificate, in PEM."},
                    "key": {
                        "anyOf": [_FILE, secret.SCHEMA],
                        "description": "Its key: a file, or a secret.",
                    },
                    "name": {**_FILE, "description": "Name that its certificate bears."},
                    "verify": {
                        "const": True,
                        "errorMessage": "a certificate is always verified: give the one that is to "
                        "be believed in ca, and the name that it bears in name",
                    },
                },
                "additionalProperties": False,
                "description": "A certificate is always verified; for one that nobody signed, it "
                "stands itself in ca.",
                "examples": [{"ca": "/etc/billing/ca.pem"}],
            },
            "retries": {
                "type": "integer",
                "minimum": 0,
                "maximum": 10,
                "description": "How often it is sent again, where that is safe, after a broken "
                "connection, 502, 503 or 504 (2).",
                "examples": [2],
            },
            "redirects": {
                "type": "integer",
                "minimum": 0,
                "maximum": 10,
                "description": "How many are followed, on the same host only (0).",
                "examples": [3],
            },
            "limits": {
                "type": "object",
                "properties": {
                    "answer": {**SIZE, "description": "More is an error (1M; a blob 64M)."},
                    "body": {**SIZE, "description": "More is refused (64M)."},
                },
                "additionalProperties": False,
                "examples": [{"answer": "4M"}],
            },
        },
        "additionalProperties": False,
        "description": "A request: the method with its URL, and what goes with it.",
        "examples": [{"get": "http://127.0.0.1:8081/api/zones/{zone}"}],
    }

    def __init__(
        self,
        method: str,
        address: Address,
        output: Output,
        *,
        query: Mapping[str, _Source] | None = None,
        headers: Mapping[str, Template | Secret] | None = None,
        auth: Mapping[str, Any] | None = None,
        body: _Body | None = None,
        statuses: Mapping[str, Outcome] | None = None,
        pages: Pages | None = None,
        tls: _Tls | None = None,
        retries: int = 0,
        redirects: int = 0,
        limits: Mapping[str, Json] | None = None,
        connections: int = CONNECTIONS,
    ) -> None:
        self.method = method
        self.address = address
        self.pages = pages
        self.result = output.type if pages is None else list[Any]
        self._output = output
        self._query = query or {}
        self._headers = headers or {}
        self._auth = auth or {}
        self._body = body or _Body()
        self._statuses = {**_OUTCOMES, **(statuses or {})}
        self._tls = tls or _Tls()
        self._retries = retries
        self._redirects = redirects
        limits = limits or {}
        default = BLOB_ANSWER if output.form == "blob" else ANSWER
        self._answer = size(limits["answer"]) if "answer" in limits else default
        self._most = size(limits["body"]) if "body" in limits else BODY
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    # -- reading

    @classmethod
    def read(cls, site: Site) -> Http:
        """Read it."""
        said: Mapping[str, Any] = site.value
        methods = [method for method in _METHODS if method in said]
        if len(methods) != 1:
            has = f"has {' and '.join(methods)}: keep one" if methods else "sends nothing"
            site.wrong(f"{has}; write for example get: http://127.0.0.1:8081/status", site.key)
            return cls("get", Address(""), Output())
        (method,) = methods
        address = _address(site, method)
        safe = method in _IDEMPOTENT or bool(site.op.get("safe"))
        if not safe and said.get("retries"):
            site.wrong(
                f"a {method.upper()} must not be sent twice: leave retries out, or write safe: true "
                "in the operation if it does no harm",
                *(site.key, "retries"),
            )
        if method not in _BODILESS and said.get("redirects"):
            site.wrong(
                f"only a GET or HEAD follows redirects, and this is a {method.upper()}: leave it out",
                *(site.key, "redirects"),
            )
        slots = site.op.get("slots") or site.document.value.get("slots") or CONNECTIONS
        return cls(
            method,
            address,
            _output(site),
            query=_fields(site, "query"),
            headers=_headers(site),
            auth=_auth(site),
            body=_body(site, method),
            statuses=_statuses(site),
            pages=_pages(site, method),
            tls=_tls(site, address),
            retries=said.get("retries", RETRIES) if safe else 0,
            redirects=said.get("redirects", 0),
            limits=said.get("limits"),
            connections=slots,
        )

    def lacks(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Say which secrets and files are not here."""
        for key, sources in (("query", self._query), ("headers", self._headers)):
            for name, source in sources.items():
                yield from _lacking(source, "http", key, name)
        if self._body.form == "form":
            for name, source in self._body.content.items():
                yield from _lacking(source, "http", "form", name)
        for name, source in self._auth.items():
            steps = (name,) if name == "bearer" else ("basic", name)
            yield from _lacking(source, "http", "auth", *steps)
        for name in ("ca", "cert", "key"):
            yield from _lacking(getattr(self._tls, name), "http", "tls", name)

    # -- running

    @contextlib.asynccontextmanager
    async def open(self, host: Host) -> AsyncGenerator[None]:
        """Keep connections for a block, at most one for each slot."""
        import aiohttp

        context: Any = True
        if self.address.secure:
            context = await asyncio.to_thread(self._tls.context)
        connector = aiohttp.TCPConnector(
            limit=self._connections,
            ssl=context,
            # One that the service closes at that moment would lose what may not be sent twice.
            force_close=self._retries == 0 and self.method not in _IDEMPOTENT,
        )
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            # The deadline is the operation's own.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT),
            auto_decompress=False,
            headers={"User-Agent": "spinal", "Accept-Encoding": "gzip, deflate"},
        ) as self._session:
            try:
                yield
            finally:
                self._session = None

    async def run(self, call: Call) -> Any:
        """Send the request and map its answer."""
        quoting.unicode(call)
        request = await self._request(call)
        if self.pages is not None:
            return await self._collect(call, request, self.pages)
        answer = await self._answered(call, request, self._answer)
        return self._output.take(answer.data)

    async def _request(self, call: Call) -> _Request:
        secrets: list[str] = []

        def hidden(source: Secret) -> str:
            found = source.read()
            # A shorter one would tear up words, and be no secret.
            if len(found) >= 4:
                secrets.append(found)
            return found

        url = self.address.fill(call, list(_pairs(call, self._query, hidden)))
        if len(str(url)) > quoting.MAX_URL:
            raise self._long(call)
        headers: dict[str, str] = {}
        if self._output.form == "json" or self.pages is not None:
            headers["Accept"] = "application/json"
        kind, body = await self._made(call, hidden)
        if kind:
            headers["Content-Type"] = kind
        for name, source in self._headers.items():
            if isinstance(source, Secret):
                found: str | None = _checked(hidden(source), source)
            else:
                found = quoting.header(call, source)
            if found is not None:
                replaced = {key for key in headers if key.lower() == name.lower()}
                headers = {k: v for k, v in headers.items() if k not in replaced}
                headers[name] = found
        headers.update(self._authorization(hidden))
        return _Request(url, headers, body, secrets)

    def _long(self, call: Call) -> CallError:
        names = [name for part in self.address.path for name in part.names]
        for source in self._query.values():
            if isinstance(source, Template):
                names += source.names
            elif isinstance(source, _Whole):
                names.append(source.name)
        given = [name for name in names if call.args.get(name) is not None]
        if not given:
            words = f"the URL is longer than {quoting.MAX_URL} bytes"
            return CallError.of(Problem("failed", words))
        return call.bad(
            max(given, key=lambda name: len(text(call.args[name]))),
            f"the URL would be longer than {quoting.MAX_URL} bytes",
        )

    def _authorization(self, hidden: Callable[[Secret], str]) -> dict[str, str]:
        if "bearer" in self._auth:
            reference: Secret = self._auth["bearer"]
            return {"Authorization": f"Bearer {_checked(hidden(reference), reference)}"}
        if "user" in self._auth:
            user = self._auth["user"]
            name = hidden(user) if isinstance(user, Secret) else user
            both = f"{name}:{hidden(self._auth['password'])}".encode()
            return {"Authorization": f"Basic {base64.b64encode(both).decode()}"}
        return {}

    async def _made(
        self, call: Call, hidden: Callable[[Secret], str]
    ) -> tuple[str, Callable[[contextlib.ExitStack], Any]]:
        """Give the type of the body, and what makes it."""
        content = self._body.content
        match self._body.form:
            case "json":
                found = _tree(call, content)
                data = b"" if found is _NOTHING else _json(found)
                kind = "application/json"
            case "form" if any(
                isinstance(s, _Whole) and _is_file(s, call) for s in content.values()
            ):
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
                return call.args[content].media_type, lambda stack: stack.enter_context(
                    path.open("rb")
                )
            case _:
                return "", lambda stack: None
        if len(data) > self._most:
            raise CallError.of(
                Problem("bad-arguments", f"the body would be longer than {self._most} bytes")
            )
        return kind if data or self._body.form != "json" else "", lambda stack: data or None

    async def _multipart(
        self, call: Call, hidden: Callable[[Secret], str]
    ) -> Callable[[contextlib.ExitStack], Any]:
        import aiohttp

        files: dict[str, tuple[Path, str]] = {}
        for name, source in self._body.content.items():
            if _is_file(source, call) and call.args.get(source.name) is not None:
                path = await self._file(call, source.name)
                files[name] = path, call.args[source.name].media_type
        fields = {name: source for name, source in self._body.content.items() if name not in files}
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
        if call.args[name].size > self._most:
            raise call.bad(name, f"larger than {self._most} bytes")
        return await call.path(name)

    async def _answered(self, call: Call, request: _Request, most: int) -> Answer:
        """Give an answer that means done.

        Raises:
            Refused, CallError: it means anything else.
        """
        answer = await self._sent(call, request, most)
        for _ in range(self._redirects):
            if answer.status not in _REDIRECTS or "Location" not in answer.headers:
                break
            request.url = _beside(answer.url, answer.headers["Location"], "redirect")
            answer = await self._sent(call, request, most)
        code = str(answer.status)
        for key in (code, f"{code[0]}xx", "other"):
            if key in self._statuses:
                means = self._statuses[key]
                break
        else:
            raise AssertionError("other is among them")
        if means.word == "done":
            return answer
        words = answer.words(request.secrets)
        if answer.status in _REDIRECTS and "Location" in answer.headers:
            to = one_line(answer.headers["Location"], 200)
            words = f"it answered {code} and is at {to}: correct the URL, or allow redirects"
        means.tell(words, answer.after)

    async def _sent(self, call: Call, request: _Request, most: int) -> Answer:
        """Send it, and again where that is safe."""
        import aiohttp

        for tries in itertools.count():
            answer: Answer | None = None
            broken: Exception | None = None
            try:
                answer = await self._once(request, most)
            except (aiohttp.ClientError, OSError) as exc:
                broken = exc
            if answer is not None and answer.status not in _PASSING:
                return answer
            pause = BACKOFF * 2**tries * random.uniform(0.5, 1.0)
            if answer is not None and answer.after is not None:
                pause = max(pause, answer.after)
            over = tries >= self._retries or pause >= call.job.remaining
            if over or isinstance(broken, (aiohttp.ClientSSLError, aiohttp.InvalidURL)):
                if answer is not None:
                    return answer
                assert broken is not None
                self._broken(broken, request)
            await asyncio.sleep(pause)
        raise AssertionError("it has been sent")

    async def _once(self, request: _Request, most: int) -> Answer:
        session = self._session
        if session is None:
            raise AgentError("this operation is not open")
        with contextlib.ExitStack() as stack:
            async with session.request(
                self.method.upper(),
                request.url,
                headers=request.headers,
                data=request.body(stack),
                allow_redirects=False,
                server_hostname=self._tls.name,
            ) as found:
                data = await _bounded(found, most)
                link = found.links.get("next")
                return Answer(
                    found.url,
                    found.status,
                    found.reason or "",
                    found.headers,
                    None if link is None else str(link["url"]),
                    data,
                )

    def _broken(self, exc: Exception, request: _Request) -> NoReturn:
        """Tell that there was no answer."""
        import aiohttp

        where = f"{request.url.scheme}://{request.url.authority}"
        if isinstance(exc, aiohttp.ClientSSLError):
            why = f"{where}: its certificate is not believed: {exc}"
        elif isinstance(exc, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
            why = getattr(exc, "strerror", None) or type(exc).__name__
            # Nothing was sent.
            raise Retry(one_line(f"{where} cannot be reached: {why}", 300)) from exc
        else:
            why = f"{where} broke off: {exc or type(exc).__name__}"
            if self.method not in _BODILESS:
                why += "; it may have been done"
        raise CallError.of(Problem("failed", one_line(why, 300))) from exc

    async def _collect(self, call: Call, request: _Request, pages: Pages) -> list[Json]:
        found: list[Json] = []
        seen: set[str] = set()
        room = self._answer
        base = request.url
        count = pages.first
        if pages.param is not None and pages.at is None:
            request.url = _with(base, pages.param, str(count))
        while len(seen) < PAGES:
            seen.add(str(request.url))
            answer = await self._answered(call, request, room)
            room -= len(answer.data)
            page = _read_page(answer.data)
            listed = _listed(page, pages.items)
            found += listed
            if len(found) > pages.most:
                if pages.cut:
                    return found[: pages.most]
                text = f"there are more than {pages.most} items (pages: most)"
                raise CallError.of(Problem("too-large", text))
            count += pages.step
            following = _following(answer, page, pages, base, count if listed else None)
            if following is None:
                return found
            if str(following) in seen:
                raise AgentError(f"page {len(seen)} names one before it as the next: {following}")
            request.url = following
        raise CallError.of(Problem("too-large", f"there are more than {PAGES} pages"))


# -- of answers


async def _bounded(found: aiohttp.ClientResponse, most: int) -> bytes:
    """Read a body, and no more of it than that, before and after it is unpacked."""
    data = bytearray()
    unpack = _unpacker(found.headers.get("Content-Encoding", "").strip().lower())
    async for chunk in found.content.iter_any():
        data += chunk if unpack is None else unpack(chunk, most + 1 - len(data))
        if len(data) > most:
            text = f"the answer is longer than {most} bytes (limits: answer)"
            raise CallError.of(Problem("too-large", text))
    if unpack is not None:
        unpack(None, 0)
    return bytes(data)


def _unpacker(coding: str) -> Callable[[bytes | None, int], bytes] | None:
    """Give what unpacks a content coding (RFC 9110, 8.4.1), at most so many bytes at a time."""
    if coding in ("", "identity"):
        return None
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise AgentError(f"the answer is packed as {one_line(coding, 40)!r}, which we do not take")
    stream = zlib.decompressobj(wbits=47)
    begun = False

    def unpack(chunk: bytes | None, most: int) -> bytes:
        nonlocal stream, begun
        if chunk is None:
            if begun and not stream.eof:
                raise AgentError("the answer is cut off: its packed data has no end")
            return b""
        found = b""
        while chunk and len(found) < most:
            if stream.eof:
                stream = zlib.decompressobj(wbits=47)
            begun = True
            try:
                found += stream.decompress(chunk, most - len(found))
            except zlib.error as exc:
                raise AgentError(f"the answer is not {coding}, as it says: {exc}") from exc
            chunk = stream.unused_data if stream.eof else stream.unconsumed_tail
        return found

    return unpack


def _read_page(data: bytes) -> Json:
    try:
        return values.loads(data)
    except ValueError as exc:
        begins = one_line(data[:200].decode(errors="replace"), 120) or "nothing"
        raise AgentError(f"the answer is no JSON ({exc}), it begins with: {begins}") from exc


def _listed(page: Json, pointer: str) -> list[Json]:
    items = pointed(page, pointer)
    if not isinstance(items, list):
        raise AgentError(f"the answer has no list at {pointer or 'its top'}")
    found: list[Json] = items  # pyright: ignore[reportUnknownVariableType]
    return found


def _beside(here: URL, there: str, what: str) -> URL:
    """Give a URL that a service names, which has to be its own: our secrets go to no other."""
    from yarl import URL

    try:
        found = here.join(URL(there))
        same = found.origin() == here.origin()
    except ValueError as exc:
        raise AgentError(f"its {what} is no URL: {one_line(there, 200)}") from exc
    if not same:
        raise AgentError(f"its {what} is at another service: {one_line(there, 200)}")
    return found.with_fragment(None)


def _with(url: URL, name: str, value: str) -> URL:
    from yarl import URL

    joint = "&" if url.raw_query_string else "?"
    return URL(f"{url}{joint}{quoting.query([(name, value)])}", encoded=True)


def _following(
    answer: Answer, page: Json, pages: Pages, base: URL, count: int | None
) -> URL | None:
    """Give where the next page is; nothing after the last one."""
    if pages.link:
        return None if answer.link is None else _beside(answer.url, answer.link, "next page")
    if pages.at is None:
        assert pages.param is not None
        return None if count is None else _with(base, pages.param, str(count))
    try:
        said = pointed(page, pages.at)
    except AgentError:
        return None  # The last one has none.
    if said in (None, "", False):
        return None
    if pages.param is not None:
        return _with(base, pages.param, text(said))
    if not isinstance(said, str):
        raise AgentError(f"what the answer has at {pages.at} is no URL")
    return _beside(answer.url, said, "next page")


# -- of requests


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
    if isinstance(source, Secret):
        try:
            source.read()
        except AgentError as exc:
            yield steps, str(exc)
    elif isinstance(source, Path) and not source.is_file():
        yield steps, f"there is no file {source}"


# -- of the manifest


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


def _output(site: Site) -> Output:
    found = Output.of(site)
    if found.more and "file" in found.more:
        site.wrong("goes with command: an answer has no other file", "output", "file")
    return found


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


def _body(site: Site, method: str) -> _Body:
    said = site.value
    forms = [form for form in ("json", "form", "text", "xml", "file") if form in said]
    if not forms:
        return _Body()
    form = forms[0]
    where = (site.key, form)
    if len(forms) > 1:
        site.wrong(f"has {' and '.join(forms)}, and a request has one body: keep one", site.key)
    if method in _BODILESS:
        site.wrong(f"a {method.upper()} has no body: write query, or another method", *where)
    match form:
        case "json":
            return _Body(form, _read_tree(site, said[form], where))
        case "form":
            return _Body(form, _fields(site, form))
        case "file":
            return _Body(form, _read_file(site, said[form]))
        case _:
            template = site.template(said[form], *where)
            if form == "text" and template.names:
                if said[form].lstrip().startswith("<"):
                    site.wrong(
                        "this is XML: write xml in place of text, which quotes for it", *where
                    )
                elif re.match(r'\s*(\{\{|\[\s*(?:"|\{\{))', said[form]):
                    site.wrong("this is JSON: write json in place of text, as YAML", *where)
            return _Body(form, template)


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


def _statuses(site: Site) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for code, said in site.value.get("status", {}).items():
        if not _STATUS.fullmatch(code):
            site.wrong(
                f"{code!r} is no status: write a code such as 404, a class such as 4xx, or other",
                *(site.key, "status", code),
            )
        else:
            found[code] = Outcome.of(said)
    return found


def _pages(site: Site, method: str) -> Pages | None:
    said = site.value.get("pages")
    if said is None:
        return None
    if method != "get":
        site.wrong(f"go with get, and this is {method}", site.key, "pages")
    if site.op.get("output", "json") != "json":
        site.wrong("with pages it is a list: leave it out, and point with pages.items", "output")
    following = said["next"]
    more = {"items": said.get("items", ""), "most": said.get("most", ITEMS)}
    more["cut"] = said.get("cut", False)
    if following == "link":
        return Pages(link=True, **more)
    if isinstance(following, str):
        return Pages(at=following, **more)
    if "at" in following and ("from" in following or "step" in following):
        site.wrong(
            "counts with from and step, or takes what is at a pointer: keep one",
            site.key,
            "pages",
            "next",
        )
    if following["param"] in site.value.get("query", {}):
        site.wrong(
            f"{following['param']} is the parameter of the pages: leave it out here",
            *(site.key, "query", following["param"]),
        )
    return Pages(
        param=following["param"],
        at=following.get("at"),
        first=following.get("from", 1),
        step=following.get("step", 1),
        **more,
    )


def _tls(site: Site, address: Address) -> _Tls:
    said = site.value.get("tls")
    if said is None:
        return _Tls()
    if address.base and not address.secure:
        site.wrong("goes with https, and the URL is one of http", site.key, "tls")
    if "key" in said and "cert" not in said:
        site.wrong("has a key and no certificate: add cert", site.key, "tls")
    key = said.get("key")
    if isinstance(key, Mapping):
        read: Path | Secret | None = _secret(site, key)
    else:
        read = None if key is None else site.folder / key
    return _Tls(
        ca=site.folder / said["ca"] if "ca" in said else None,
        cert=site.folder / said["cert"] if "cert" in said else None,
        key=read,
        name=said.get("name"),
    )
