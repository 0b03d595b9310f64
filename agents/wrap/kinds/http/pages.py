"""Answers that come in pages: where the items of one are, and where the next one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from spinal.protocols import Json, values

from ....errors import AgentError, one_line
from ...argument import text
from ...kind import Site
from ...output import pointed
from . import quoting
from .answer import Answer, beside

if TYPE_CHECKING:
    from yarl import URL

#: Items that are collected from pages if the manifest does not say, and most pages.
ITEMS: Final = 1000

PAGES: Final = 1000

#: How they stand in a manifest.
SCHEMA: Final[Mapping[str, Json]] = {
    "type": "object",
    "properties": {
        "items": {
            "type": "string",
            "pattern": "^(/.*)?$",
            "patternErrorMessage": "is no JSON pointer, which begins with '/'",
            "description": "JSON pointer to the list in each answer; all of it if not said.",
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
}


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

    @classmethod
    def of(cls, site: Site, method: str) -> Pages | None:
        """Read it; none where the manifest has none."""
        said = site.value.get("pages")
        if said is None:
            return None
        if method != "get":
            site.wrong(f"go with get, and this is {method}", site.key, "pages")
        if site.op.get("output", "json") != "json":
            site.wrong(
                "with pages it is a list: leave it out, and point with pages.items", "output"
            )
        following = said["next"]
        more = {"items": said.get("items", ""), "most": said.get("most", ITEMS)}
        more["cut"] = said.get("cut", False)
        if following == "link":
            return cls(link=True, **more)
        if isinstance(following, str):
            return cls(at=following, **more)
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
        return cls(
            param=following["param"],
            at=following.get("at"),
            first=following.get("from", 1),
            step=following.get("step", 1),
            **more,
        )

    def following(self, answer: Answer, page: Json, base: URL, count: int | None) -> URL | None:
        """Give where the next page is; nothing after the last one."""
        if self.link:
            return None if answer.link is None else beside(answer.url, answer.link, "next page")
        if self.at is None:
            assert self.param is not None
            return None if count is None else with_parameter(base, self.param, str(count))
        try:
            said = pointed(page, self.at)
        except AgentError:
            return None  # The last one has none.
        if said in (None, "", False):
            return None
        if self.param is not None:
            return with_parameter(base, self.param, text(said))
        if not isinstance(said, str):
            raise AgentError(f"what the answer has at {self.at} is no URL")
        return beside(answer.url, said, "next page")


def with_parameter(url: URL, name: str, value: str) -> URL:
    """Add a parameter to the query of a URL."""
    from yarl import URL

    joint = "&" if url.raw_query_string else "?"
    return URL(f"{url}{joint}{quoting.query([(name, value)])}", encoded=True)


def read(data: bytes) -> Json:
    """Read a page.

    Raises:
        AgentError: it is no JSON.
    """
    try:
        return values.loads(data)
    except ValueError as exc:
        begins = one_line(data[:200].decode(errors="replace"), 120) or "nothing"
        raise AgentError(f"the answer is no JSON ({exc}), it begins with: {begins}") from exc


def listed(page: Json, pointer: str) -> list[Json]:
    """Give the items of a page.

    Raises:
        AgentError: there is no list.
    """
    items = pointed(page, pointer)
    if not isinstance(items, list):
        raise AgentError(f"the answer has no list at {pointer or 'its top'}")
    found: list[Json] = items  # pyright: ignore[reportUnknownVariableType]
    return found
