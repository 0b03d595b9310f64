"""A thousand hostile arguments in every place of a request."""

from __future__ import annotations

import email.parser
import email.policy
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import parse_qsl, unquote
from xml.etree import ElementTree

import pytest
import pytest_asyncio
from tests.agents.wrap import hostile
from tests.agents.wrap.world import Ops, Request, Service, ops, service

from spinal.bus.blob import Blob
from spinal.bus.errors import CallError

MANIFEST = """
agent: web
slots: 4
ops:
  /path: {args: {value: , other: {}}, http: {get: "URL/a/{value}/b/{other}?fixed=1"}}
  /part: {args: {value: }, http: {get: "URL/a/x{value}y/b"}}
  /query:
    args: {value: , other: {}}
    http: {get: "URL/a?fixed=1", query: {v: "{value}", o: "{other}", both: "{other}-{value}"}}
  /header:
    args: {value: , other: {}}
    http: {get: "URL/a", headers: {X-Value: "{value}", X-Other: "{other}"}}
  /part-of-header:
    args: {value: , other: {}}
    http: {get: "URL/a", headers: {X-Value: 'v="{value}", o="{other}"'}}
  /json:
    args: {value: , other: {}}
    http: {post: "URL/a", json: {v: "{value}", in: ["{other}-{value}"], o: "{other}"}}
  /form: {args: {value: , other: {}}, http: {post: "URL/a", form: {v: "{value}", o: "{other}"}}}
  /text: {args: {value: }, http: {post: "URL/a", text: "[{value}]"}}
  /xml:
    args: {value: , other: {}}
    http: {post: "URL/a", xml: '<a o="{other}" v="{value}"><b>{value}</b></a>'}
  /several:
    args: {value: {type: array}, doc: {type: object}}
    http: {put: "URL/a", query: {v: "{value}", o: other}, json: {v: "{value}", d: "{doc}", o: other}}
  /file: {args: {value: {type: file}}, http: {post: "URL/a", file: "{value}"}}
  /multipart:
    args: {value: {type: file}, other: {}}
    http: {post: "URL/a", form: {v: "{value}", o: "{other}"}}
"""

OTHER = "other"


@pytest_asyncio.fixture
async def web(tmp_path: Path) -> AsyncIterator[tuple[Ops, Service]]:
    async with service() as found, ops(tmp_path, MANIFEST.replace("URL", found.url)) as opened:
        yield opened, found


def _path(request: Request) -> str:
    path, _, query = request.target.partition("?")
    assert query == "fixed=1"
    empty, a, value, b, other = path.split("/")
    assert (empty, a, b, other) == ("", "a", "b", OTHER)
    return unquote(value, errors="strict")


def _part(request: Request) -> str:
    empty, a, value, b = request.target.split("/")
    assert (empty, a, b) == ("", "a", "b")
    return unquote(value, errors="strict")[1:-1]


def _query(request: Request) -> str:
    path, _, query = request.target.partition("?")
    assert path == "/a"
    pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict")
    value = pairs[1][1]
    assert pairs == [("fixed", "1"), ("v", value), ("o", OTHER), ("both", f"{OTHER}-{value}")]
    return value


def _header(request: Request) -> str:
    assert request.header("X-Other") == OTHER
    return request.header("X-Value") or ""


def _part_of_header(request: Request) -> str:
    value = request.header("X-Value") or ""
    assert value.startswith('v="') and value.endswith(f'", o="{OTHER}"')
    assert value.count('"') == 4
    return value[3 : -len(f'", o="{OTHER}"')]


def _json(request: Request) -> str:
    found = json.loads(request.body)
    value: str = found["v"]
    assert found == {"v": value, "in": [f"{OTHER}-{value}"], "o": OTHER}
    return value


def _form(request: Request) -> str:
    pairs = parse_qsl(request.body.decode("ascii"), keep_blank_values=True, errors="strict")
    assert len(pairs) == 2 and pairs[0][0] == "v" and pairs[1] == ("o", OTHER)
    return pairs[0][1]


def _text(request: Request) -> str:
    return request.body.decode()[1:-1]


def _xml(request: Request) -> str:
    root = ElementTree.fromstring(request.body)
    (child,) = root
    assert root.tag == "a" and child.tag == "b" and not len(child) and root.attrib["o"] == OTHER
    assert root.text is None and (child.text or "") == root.attrib["v"]
    return root.attrib["v"]


#: Operation -> what reads the value back out of the bytes that came, and its method and headers.
READ: dict[str, Callable[[Request], str]] = {
    "/path": _path,
    "/part": _part,
    "/query": _query,
    "/header": _header,
    "/part-of-header": _part_of_header,
    "/json": _json,
    "/form": _form,
    "/text": _text,
    "/xml": _xml,
}

#: Fewest that arrive; the others are refused by name.
PASSED = {
    "/path": 550,
    "/part": 550,
    "/query": 970,
    "/header": 600,
    "/part-of-header": 350,
    "/json": 990,
    "/form": 990,
    "/text": 990,
    "/xml": 800,
}

#: Headers that a request may have, whatever the arguments are.
HEADERS = {"host", "accept", "accept-encoding", "user-agent", "content-type", "content-length"} | {
    "connection"
}


@pytest.mark.parametrize("op", READ)
async def test_each_arrives_as_it_is_or_is_refused_by_name(
    web: tuple[Ops, Service], op: str
) -> None:
    opened, found = web
    passed = 0
    for value in hostile.texts():
        found.requests.clear()
        args = (
            {"value": value, "other": OTHER} if op not in ("/part", "/text") else {"value": value}
        )
        try:
            await opened.run(op, **args)
        except CallError as exc:
            assert exc.problem.reason == "bad-arguments", hostile.shown(value)
            assert exc.problem.argument == "value", hostile.shown(value)
            assert "\n" not in exc.problem.text and len(exc.problem.text) < 400
            assert not found.requests
            continue
        (request,) = found.requests
        assert READ[op](request) == value, hostile.shown(value)
        names = {name for name, _ in request.headers}
        assert names <= HEADERS | {"x-value", "x-other"}, hostile.shown(value)
        assert len(names) == len(request.headers)
        passed += 1
    assert passed >= PASSED[op], passed


async def test_each_arrives_in_a_list_and_as_the_name_of_a_member(
    web: tuple[Ops, Service],
) -> None:
    opened, found = web
    passed = 0
    for value in hostile.texts():
        found.requests.clear()
        try:
            await opened.run("/several", value=["a", value, "b"], doc={value: [value]})
        except CallError as exc:
            assert exc.problem.argument in ("value", "doc"), hostile.shown(value)
            assert not found.requests
            continue
        (request,) = found.requests
        query = request.target.partition("?")[2]
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict")
        assert pairs == [("v", "a"), ("v", value), ("v", "b"), ("o", OTHER)], hostile.shown(value)
        assert json.loads(request.body) == {
            "v": ["a", value, "b"],
            "d": {value: [value]},
            "o": OTHER,
        }
        passed += 1
    assert passed >= 950, passed


@pytest.mark.parametrize("op", ["/file", "/multipart"])
async def test_each_content_of_a_file_arrives_as_it_is(web: tuple[Ops, Service], op: str) -> None:
    opened, found = web
    for data in hostile.binaries():
        found.requests.clear()
        other = {} if op == "/file" else {"other": OTHER}
        await opened.run(op, value=Blob.of(data, "image/png"), **other)
        (request,) = found.requests
        kind = request.header("Content-Type") or ""
        if op == "/file":
            assert (kind, request.body) == ("image/png", data), hostile.shown(data)
            continue
        head = f"Content-Type: {kind}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head)
        boundary = message.get_boundary()
        assert boundary is not None
        parts = request.body.split(f"--{boundary}".encode())
        assert len(parts) == 4 and parts[0] == b"" and parts[-1] == b"--\r\n"
        assert parts[1].partition(b"\r\n\r\n")[2] == b"other\r\n"
        assert parts[2].partition(b"\r\n\r\n")[2] == data + b"\r\n", hostile.shown(data)


async def test_the_type_of_a_file_is_a_type_or_none(web: tuple[Ops, Service]) -> None:
    opened, found = web
    for kind in hostile.texts():
        if len(kind) > 1000:
            continue
        await opened.run("/file", value=Blob.of(b"x", kind or "/"))
        assert found.last.header("Content-Type") in (kind, "application/octet-stream")
        assert {name for name, _ in found.last.headers} <= HEADERS, hostile.shown(kind)


async def test_words_of_a_refusal_say_what_to_write(web: tuple[Ops, Service]) -> None:
    opened, _ = web
    for op, value, words in (
        ("/path", "..", "part of the path would be"),
        ("/path", "a/../b", "it has a '/'"),
        ("/path", "", "the part of the path would be ''"),
        ("/path", "a\0", "NUL"),
        ("/path", "\ud800", "lone surrogate"),
        ("/query", "x" * 9000, "longer than 8000 bytes"),
        ("/header", "a\r\nX: y", r"'\r', which no header can hold"),
        ("/header", "é", "which no header can hold"),
        ("/header", " a", "begin or end with a space"),
        ("/header", "x" * 9000, "longer than the 8000 bytes of a header"),
        ("/part-of-header", '"', "would end its place"),
        ("/xml", "\x01", "which XML cannot hold"),
    ):
        found = await opened.refused(op, value=value, other=OTHER)
        assert found.startswith("argument 'value': ") and words in found, found
