"""A request to an HTTP service for each call.

The manifest says where a request goes; an argument fills a segment of its path, a value of its
query, a header or a part of its body, quoted for that place, and never its scheme or host.  There
are no cookies, no proxies from the environment, and no redirects that the manifest did not ask for;
the certificate of a service is always verified.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem

from ....document import SIZE, size
from ....errors import AgentError, Retry, one_line
from ... import outcome
from ...kind import Call, Host, Kind, Site
from ...outcome import Outcome
from ...output import Output
from . import pages as paging
from . import quoting, tls
from .answer import Answer, beside, bounded
from .pages import PAGES, Pages, listed, read, with_parameter
from .request import BODILESS, METHODS, PROPERTIES, Address, Ready, Request
from .tls import Tls

if TYPE_CHECKING:
    import aiohttp

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

#: Methods that may be sent twice (RFC 9110, 9.2.2).
_IDEMPOTENT: Final = frozenset({"get", "head", "put", "delete"})

#: Statuses of which another try may be the end.
_PASSING: Final = frozenset({502, 503, 504})

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

_STATUS: Final = re.compile(r"[1-5][0-9][0-9]|[1-5]xx|other")

_OUTCOMES: Final[Mapping[str, Outcome]] = {
    "2xx": Outcome("done"),
    "429": Outcome("retry"),
    "503": Outcome("retry"),
    "other": Outcome("error"),
}


class Http(Kind):
    """Sends a request."""

    SCHEMA: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "properties": {
            **PROPERTIES,
            "status": {
                "type": "object",
                "patternProperties": {_STATUS.pattern: outcome.SCHEMA},
                "description": "What each status means: a code, a class such as 4xx, or other. If "
                "not said, 2xx is done, 429 and 503 are retry, and any other is error.",
                "examples": [{"404": "refused", "2xx": "done"}],
            },
            "pages": paging.SCHEMA,
            "tls": tls.SCHEMA,
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
        request: Request,
        output: Output,
        *,
        statuses: Mapping[str, Outcome] | None = None,
        pages: Pages | None = None,
        tls: Tls | None = None,
        repeatable: bool = False,
        retries: int = 0,
        redirects: int = 0,
        answer: int = ANSWER,
        connections: int = CONNECTIONS,
    ) -> None:
        self.request = request
        self.pages = pages
        self.result = output.type if pages is None else list[Any]
        self._output = output
        self._statuses = {**_OUTCOMES, **(statuses or {})}
        self._tls = tls or Tls()
        self._repeatable = repeatable
        self._retries = retries
        self._redirects = redirects
        self._answer = answer
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def read(cls, site: Site) -> Http:
        """Read it."""
        said: Mapping[str, Any] = site.value
        methods = [method for method in METHODS if method in said]
        if len(methods) != 1:
            has = f"has {' and '.join(methods)}: keep one" if methods else "sends nothing"
            site.wrong(f"{has}; write for example get: http://127.0.0.1:8081/status", site.key)
            return cls(Request("get", Address("")), Output())
        (method,) = methods
        # What the manifest says goes before what the method says.
        by_itself = method in _IDEMPOTENT or site.op.get("effects") == "reads"
        repeatable: bool = site.op.get("safe", by_itself)
        if not repeatable and said.get("retries"):
            site.wrong(
                f"this {method.upper()} must not be sent twice: leave retries out, or write safe: true "
                "in the operation if it does no harm",
                *(site.key, "retries"),
            )
        if method not in BODILESS and said.get("redirects"):
            site.wrong(
                f"only a GET or HEAD follows redirects, and this is a {method.upper()}: leave it out",
                *(site.key, "redirects"),
            )
        output = Output.of(site)
        if output.more and "file" in output.more:
            site.wrong("goes with command: an answer has no other file", "output", "file")
        pages = Pages.of(site, method)
        limits: Mapping[str, Any] = said.get("limits", {})
        default = BLOB_ANSWER if output.form == "blob" else ANSWER
        request = Request.of(
            site,
            method,
            "application/json" if pages is not None or output.form == "json" else "*/*",
            size(limits["body"]) if "body" in limits else BODY,
        )
        return cls(
            request,
            output,
            statuses=_statuses(site),
            pages=pages,
            tls=Tls.of(site, request.address.secure) if "tls" in said else None,
            repeatable=repeatable,
            retries=said.get("retries", RETRIES) if repeatable else 0,
            redirects=said.get("redirects", 0),
            answer=size(limits["answer"]) if "answer" in limits else default,
            connections=site.op.get("slots") or site.document.value.get("slots") or CONNECTIONS,
        )

    def lacks(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Say which secrets and files are not here."""
        for steps, words in self.request.lacks():
            yield ("http", *steps), words
        for name, words in self._tls.lacks():
            yield ("http", "tls", name), words

    @contextlib.asynccontextmanager
    async def open(self, host: Host) -> AsyncGenerator[None]:
        """Keep connections for a block, at most one for each slot."""
        import aiohttp

        context: Any = True
        if self.request.address.secure:
            context = await asyncio.to_thread(self._tls.context)
        connector = aiohttp.TCPConnector(
            limit=self._connections,
            ssl=context,
            # One that the service closes at that moment would lose what may not be sent twice.
            force_close=not self._repeatable,
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
        request = await self.request.fill(call)
        if self.pages is not None:
            return await self._collect(call, request, self.pages)
        answer = await self._answered(call, request, self._answer)
        return self._output.take(answer.data)

    async def _answered(self, call: Call, request: Ready, most: int) -> Answer:
        """Give an answer that means done.

        Raises:
            Refused, CallError: it means anything else.
        """
        answer = await self._sent(call, request, most)
        for _ in range(self._redirects):
            if answer.status not in _REDIRECTS or "Location" not in answer.headers:
                break
            request.url = beside(answer.url, answer.headers["Location"], "redirect")
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
        words = request.hide(answer.words())
        if answer.status in _REDIRECTS and "Location" in answer.headers:
            to = request.hide(one_line(answer.headers["Location"], 200))
            words = f"it answered {code} and is at {to}: correct the URL, or allow redirects"
        means.tell(words, answer.after)

    async def _sent(self, call: Call, request: Ready, most: int) -> Answer:
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

    async def _once(self, request: Ready, most: int) -> Answer:
        session = self._session
        if session is None:
            raise AgentError("this operation is not open")
        with contextlib.ExitStack() as stack:
            async with session.request(
                self.request.method.upper(),
                request.url,
                headers=request.headers,
                data=request.body(stack),
                allow_redirects=False,
                server_hostname=self._tls.name,
            ) as found:
                data = await bounded(found, most)
                link = _link(found) if self.pages is not None and self.pages.link else None
                return Answer(
                    found.url, found.status, found.reason or "", found.headers, data, link
                )

    def _broken(self, exc: Exception, request: Ready) -> NoReturn:
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
            # The others have the whole URL in their words.
            said = exc.message if isinstance(exc, aiohttp.ClientResponseError) else str(exc)
            why = f"{where} broke off: {request.hide(said) or type(exc).__name__}"
            if self.request.method not in BODILESS:
                why += "; it may have been done"
        raise CallError.of(Problem("failed", one_line(why, 300))) from exc

    async def _collect(self, call: Call, request: Ready, pages: Pages) -> list[Json]:
        found: list[Json] = []
        seen: set[str] = set()
        room = self._answer
        base = request.url
        count = pages.first
        if pages.param is not None and pages.at is None:
            request.url = with_parameter(base, pages.param, str(count))
        while len(seen) < PAGES:
            seen.add(str(request.url))
            answer = await self._answered(call, request, room)
            room -= len(answer.data)
            page = read(answer.data)
            items = listed(page, pages.items)
            found += items
            if len(found) > pages.most:
                if pages.cut:
                    return found[: pages.most]
                text = f"there are more than {pages.most} items (pages: most)"
                raise CallError.of(Problem("too-large", text))
            count += pages.step
            following = pages.following(answer, page, base, count if items else None)
            if following is None:
                return found
            if len(str(following)) > quoting.MAX_URL:
                raise AgentError(f"the URL of page {len(seen) + 1} is too long")
            if str(following) in seen:
                raise AgentError(f"page {len(seen)} names one before it as the next")
            request.url = following
        raise CallError.of(Problem("too-large", f"there are more than {PAGES} pages"))


def _link(found: aiohttp.ClientResponse) -> str | None:
    """Give the next page as the header Link says (RFC 8288)."""
    try:
        link = found.links.get("next")
    except ValueError as exc:
        raise AgentError("its header Link holds no URL") from exc
    return None if link is None else str(link["url"])


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
