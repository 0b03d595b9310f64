from __future__ import annotations

import asyncio
import datetime
import gzip
import ipaddress
import json
import ssl
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.agents.wrap.world import (
    Ops,
    Request,
    Service,
    answer,
    manifest,
    mistakes,
    ops,
    service,
)

from spinal.agents.errors import AgentError, Refused, Retry
from spinal.bus.blob import Blob
from spinal.bus.errors import CallError
from spinal.testing import eventually

OP = """\
agent: web
ops:
  /op:
    args: {name: , id: {type: integer}, maybe: {optional: true}, photo: {type: file}, tags: {type: array}}
    http:
"""


def op(**keys: str) -> str:
    """Write a manifest with an operation that has these keys, the method first."""
    said = (
        keys if {"get", "post", "put", "url"} & set(keys) else {"get": '"http://h/{name}"', **keys}
    )
    return OP + "".join(f"      {key}: {value}\n" for key, value in said.items() if value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (op(get='"http://{name}/x"'),
         "6: ops./op.http.get: host and port cannot come from an argument: write them out"),
        (op(get='"http://h:{id}/x"'), "host and port cannot come from an argument"),
        (op(get='"{name}://h/x"'), "6: ops./op.http.get: scheme and host cannot come from an argument"),
        (op(get='"{name}"'), "scheme and host cannot come from an argument"),
        (op(get="127.0.0.1:80/x"),
         "6: ops./op.http.get: '127.0.0.1:80/x' is no URL of http or https: write http://HOST:PORT/PATH"),
        (op(get="ftp://h/x"), "is no URL of http or https"),
        (op(get="http://h:99999/x"), "6: ops./op.http.get: 'h:99999' is no host and port"),
        (op(get="http://ann:geheim@h/"), "6: ops./op.http.get: a user or password stands under auth"),
        (op(get='"http://h/a#{name}"'), "what follows '#' is never sent: leave it out"),
        (op(get='"http://h/a?b={name}"'),
         "6: ops./op.http.get: what follows '?' takes no placeholder: write it under query"),
        (op(get='"http://h/{nmae}"'), "{nmae} is no argument of this operation (it has name, id,"),
        (op(get='"http://h/{photo}"'), "{photo} is of type file, which cannot be filled in here"),
        (op(get='"http://h/{maybe}"'), "{maybe} may be missing, and a path needs it: give it a default"),
        (op(get='"http://h/{name"'), "a '{' stands alone"),
        (op(get="http://h/a", post="http://h/a"), "5: ops./op.http: has get and post: keep one"),
        (op(url="http://h/a"), "6: ops./op.http.url: is not known here"),
        (OP + "      query: {a: b}\n", "5: ops./op.http: sends nothing; write for example get:"),
        (op(query='{"{name}": x}'), "7: ops./op.http.query.{name}: a name cannot come from an argument"),
        (op(query="{token: abc}"), "7: ops./op.http.query.token: a secret stands here by reference"),
        (op(query="[a]"), "7: ops./op.http.query: a list is not a mapping"),
        (op(headers="{X-API-Key: geheim}"),
         "a secret stands here by reference: write X-API-Key: {env: NAME} or {file: PATH}"),
        (op(headers="{X-API-Key: {env: A, file: b}}"), "7: ops./op.http.headers.X-API-Key"),
        (op(headers='{Authorization: "Bearer x"}'),
         "7: ops./op.http.headers.Authorization: who we are stands under auth"),
        (op(headers='{"X {name}": x}'), "the name of a header cannot come from an argument"),
        (op(headers='{"X Y": x}'), "7: ops./op.http.headers.X Y: the name of a header is none"),
        (op(headers="{Content-Length: 0}"), "this header is written by us: leave it out"),
        (op(headers="{Host: x}"), "7: ops./op.http.headers.Host: this header is written by us"),
        (op(headers='{X-A: "é"}'), "7: ops./op.http.headers.X-A: a header holds printable ASCII only"),
        (op(headers="{X-A: a, x-a: b}"), "7: ops./op.http.headers: a header stands twice"),
        (op(auth="{bearer: geheim}"), "7: ops./op.http.auth.bearer: 'geheim': a secret stands here by"),
        (op(auth="{basic: {user: ann}}"), "7: ops./op.http.auth.basic: 'password' is missing"),
        (op(auth='{basic: {user: "{name}", password: {env: A}}}'),
         "7: ops./op.http.auth.basic.user: the name of a user cannot come from an argument"),
        (op(auth="{digest: {}}"), "7: ops./op.http.auth.digest: is not known here"),
        (op(json="{a: 1}"), "7: ops./op.http.json: a GET has no body: write query, or another method"),
        (op(post="http://h/", json="{a: 1}", form="{a: 1}"), "5: ops./op.http: has json and form"),
        (op(post="http://h/", json='{a: ["{nmae}"]}'), "7: ops./op.http.json.a.0: {nmae} is no argument"),
        (op(post="http://h/", json='{"{name}": 1}'), "a key cannot come from an argument: write it out"),
        (op(post="http://h/", json='{a: "{photo}"}'), "{photo} is of type file"),
        (op(post="http://h/", text='"<a>{name}</a>"'), "7: ops./op.http.text: this is XML: write xml"),
        (op(post="http://h/", text="'{{\"a\": \"{name}\"}}'"), "this is JSON: write json in place"),
        (op(post="http://h/", file='"{name}"'), "7: ops./op.http.file: '{name}' is no file argument"),
        (op(status="{200: ok}"), "7: ops./op.http.status.200: 'ok': write done, refused, retry or error"),
        (op(status="{5XX: error}"),
         "5XX: '5XX' is no status: write a code such as 404, a class such as 4xx, or other"),
        (op(pages="{items: /a}"), "7: ops./op.http.pages: 'next' is missing: write next: /links/next"),
        (op(pages="{next: links}"), "7: ops./op.http.pages.next: 'links': write a JSON pointer"),
        (op(pages="{next: {param: page, from: 1, at: /a}}"), "counts with from and step, or takes"),
        (op(pages="{next: {param: page}}", query="{page: 1}"), "8: ops./op.http.query.page: page is the"),
        (op(post="http://h/", pages="{next: link}"), "7: ops./op.http.pages: go with get, and this is"),
        (op(get="https://h/", tls="{verify: false}"),
         "7: ops./op.http.tls.verify: false: a certificate is always verified: give the one that is"),
        (op(tls="{ca: a.pem}"), "7: ops./op.http.tls: goes with https, and the URL is one of http"),
        (op(get="https://h/", tls="{key: a.pem}"), "has a key and no certificate: add cert"),
        (op(post="http://h/", retries="2"), "7: ops./op.http.retries: this POST must not be sent twice"),
        (op(post="http://h/", redirects="2"), "only a GET or HEAD follows redirects"),
        (op(retries="99"), "7: ops./op.http.retries: 99 must be at most 10"),
        (op(limits="{answer: much}"), "7: ops./op.http.limits.answer: 'much': write a size such as 64K"),
        (op(get="http://h/"), "4: ops./op.args.name: is not used: put {name} somewhere"),
        (op(timeout="5s"), "7: ops./op.http.timeout: is not known here"),
        (OP.replace("    http:", "    output: {blob: image/png, file: a}\n    http:") + "      get: http://h",
         "5: ops./op.output.file: goes with command"),
        (OP.replace("    http:", "    output: {json: /a}\n    http:")
         + "      get: http://h\n      pages: {next: link}",
         "5: ops./op.output: with pages it is a list: leave it out"),
        (OP.replace("    http:", "    exit: {0: done}\n    http:") + "      get: http://h",
         "5: ops./op.exit: goes with command, and this is http"),
    ],
)  # fmt: skip
def test_a_mistake_has_a_line_a_key_and_what_to_write(
    tmp_path: Path, text: str, words: str
) -> None:
    found = mistakes(tmp_path, text)

    assert any(words in one for one in found), found


def test_what_is_missing_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    found = manifest(
        tmp_path,
        """
agent: a
ops:
  /a:
    http:
      get: https://localhost/
      headers: {X-Key: {env: NOT_THERE}}
      auth: {basic: {user: ann, password: {file: none}}}
      tls: {ca: none.pem}
""",
    )

    said = [str(one).partition("manifest.yaml:")[2] for one in found.missing()]

    assert said[0].startswith(
        "7: ops./a.http.headers.X-Key: the secret {env: NOT_THERE} is not set"
    )
    assert said[1].startswith("8: ops./a.http.auth.basic.password: the secret")
    assert said[2].startswith("9: ops./a.http.tls.ca: there is no file")


# -- requests

MANIFEST = """
agent: web
slots: 3
ops:
  /full:
    args:
      name: {default: nobody}
      id: {type: integer}
      exact: {type: boolean, optional: true}
      tags: {type: array, optional: true}
    output: json
    http:
      get: "URL/a%20b/{name}.{id}/ü?fixed=1&b=c%26d"
      query: {id: "{id}", exact: "{exact}", tag: "{tags}", two: 2, key: {env: QUERY_KEY}}
      headers: {X-API-Key: {env: API_KEY}, X-Trace: "call-{id}", X-Exact: "{exact}", accept: text/x}
  /basic: {http: {get: "URL/", auth: {basic: {user: ann, password: {file: password}}}}}
  /bearer: {http: {get: "URL/", auth: {bearer: {file: password}}}}
  /json:
    args:
      id: {type: integer, optional: true}
      price: {type: number, optional: true}
      on: {type: boolean, default: true}
      doc: {type: object, optional: true}
      note: {optional: true}
    http:
      post: "URL/"
      json:
        id: "{id}"
        price: "{price}"
        on: "{on}"
        doc: "{doc}"
        note: "n: {note}"
        fixed: [1, null, "{{id}}", {deep: "{id}"}]
  /whole: {args: {doc: {type: object}}, http: {put: "URL/", json: "{doc}"}}
  /form: {args: {a: , b: {optional: true}}, http: {post: "URL/", form: {a: "{a}", b: "{b}", c: {env: API_KEY}}}}
  /text: {args: {a: }, http: {post: "URL/", text: "a={a}\\n", headers: {Content-Type: text/x}}}
  /upload:
    args: {photo: {type: file}, title: }
    http: {post: "URL/", form: {title: "{title}", photo: "{photo}"}, limits: {body: 1K}}
  /delete: {args: {id: {type: integer}}, output: none, http: {delete: "URL/{id}"}}
  /head: {output: none, http: {head: "URL/"}}
  /pointer: {output: {json: /a/0}, http: {get: "URL/"}}
  /csv: {output: csv, http: {get: "URL/"}}
  /blob: {output: {blob: image/png}, http: {get: "URL/"}}
  /small: {http: {get: "URL/", limits: {answer: 1K}}}
  /status:
    http:
      get: "URL/"
      retries: 0
      status: {404: {refused: no such zone}, 409: refused, 4xx: error, 202: {retry: not yet}, 418: done}
  /retried: {http: {get: "URL/", retries: 2}}
  /never: {http: {post: "URL/"}}
  /safe: {safe: true, http: {post: "URL/", retries: 1}}
  /found: {effects: reads, http: {post: "URL/", retries: 1}}
  /once: {safe: false, http: {put: "URL/"}}
  /moved: {http: {get: "URL/a", redirects: 2}}
  /unmoved: {http: {get: "URL/a"}}
  /next: {http: {get: "URL/1?q=x", pages: {next: /links/next, items: /data, most: 5}}}
  /link: {http: {get: "URL/1", pages: {next: link, most: 5, cut: true}}}
  /counted: {args: {q: }, http: {get: "URL/", query: {q: "{q}"}, pages: {next: {param: page, from: 0}, items: /data}}}
  /cursor: {http: {get: "URL/", pages: {next: {param: cursor, at: /next}, items: /data}}}
"""


@pytest_asyncio.fixture
async def web(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Ops, Service]]:
    monkeypatch.setenv("API_KEY", "geheim-1")
    monkeypatch.setenv("QUERY_KEY", "geheim&2")
    (tmp_path / "password").write_text("pass:wörd")
    async with service() as found, ops(tmp_path, MANIFEST.replace("URL", found.url)) as opened:
        yield opened, found


async def failure(opened: Ops, op: str, **args: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await opened.run(op, **args)
    return caught.value


async def test_each_part_of_a_request_is_where_it_belongs(web: tuple[Ops, Service]) -> None:
    opened, found = web

    assert await opened.run("/full", name="a b", id=7, exact=True, tags=["x", "y z"]) == {}

    request = found.last
    assert request.line == (
        "GET /a%20b/a%20b.7/%C3%BC?fixed=1&b=c%26d&id=7&exact=true&tag=x&tag=y%20z&two=2"
        "&key=geheim%262 HTTP/1.1"
    )
    assert request.header("X-API-Key") == "geheim-1"
    assert request.header("X-Trace") == "call-7" and request.header("X-Exact") == "true"
    assert request.header("Accept") == "text/x" and request.header("User-Agent") == "spinal"
    assert request.header("Cookie") is None

    await opened.run("/full", id=8)
    assert found.last.line.startswith("GET /a%20b/nobody.8/%C3%BC?fixed=1&b=c%26d&id=8&two=2&key=")
    assert found.last.header("X-Exact") is None
    assert found.connections == 1


async def test_who_we_are(web: tuple[Ops, Service], tmp_path: Path) -> None:
    opened, found = web
    await opened.run("/basic")
    assert found.last.header("Authorization") == "Basic YW5uOnBhc3M6d8O2cmQ="
    (tmp_path / "password").write_text("token\n")
    await opened.run("/bearer")
    assert found.last.header("Authorization") == "Bearer token"
    (tmp_path / "password").write_text("a\r\nX-Evil: 1")
    with pytest.raises(AgentError, match="no header can hold"):
        await opened.run("/bearer")


async def test_a_body_of_json_keeps_types_and_leaves_out_what_is_nothing(
    web: tuple[Ops, Service],
) -> None:
    opened, found = web
    await opened.run("/json", id=7, price=1.5, doc={"a": [None]}, note="x")
    assert found.last.header("Content-Type") == "application/json"
    assert json.loads(found.last.body) == {
        "id": 7, "price": 1.5, "on": True, "doc": {"a": [None]}, "note": "n: x",
        "fixed": [1, None, "{id}", {"deep": 7}],
    }  # fmt: skip
    await opened.run("/json")
    assert json.loads(found.last.body) == {"on": True, "fixed": [1, None, "{id}", {}]}
    await opened.run("/whole", doc={"ü": 1})
    assert found.last.body == '{"ü":1}'.encode()


async def test_other_bodies(web: tuple[Ops, Service]) -> None:
    opened, found = web
    await opened.run("/form", a="x y&b=1")
    assert found.last.body == b"a=x+y%26b%3D1&c=geheim-1"
    await opened.run("/text", a="ü")
    assert found.last.body == "a=ü\n".encode() and found.last.header("Content-Type") == "text/x"
    await opened.run("/upload", photo=Blob.of(b"\xff" * 900, "image/png"), title="a")
    _, title, photo, _ = found.last.body.split(found.last.body.split(b"\r\n", 1)[0])
    assert b'name="title"\r\n' in title and title.endswith(b"\r\n\r\na\r\n")
    assert b'name="photo"; filename="photo.png"\r\n' in photo
    assert b"Content-Type: image/png\r\n" in photo and photo.endswith(b"\xff" * 900 + b"\r\n")
    said = await opened.refused("/upload", photo=Blob.of(b"x" * 1025), title="a")
    assert said == "argument 'photo': larger than 1024 bytes"
    await opened.run("/delete", id=3)
    assert found.last.line == "DELETE /3 HTTP/1.1" and found.last.body == b""
    found.respond = lambda request: b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    assert await opened.run("/head") is None


# -- answers


async def test_an_answer_becomes_the_result(web: tuple[Ops, Service]) -> None:
    opened, found = web
    found.respond = lambda request: answer('{"a": [1.5]}')
    assert await opened.run("/pointer") == 1.5
    found.respond = lambda request: answer("a,b\n1,2\n")
    assert await opened.run("/csv") == [{"a": "1", "b": "2"}]
    found.respond = lambda request: answer(b"\x89PNG")
    blob = await opened.run("/blob")
    assert blob.data == b"\x89PNG" and blob.media_type == "image/png"
    found.respond = lambda request: answer("<html>")
    with pytest.raises(AgentError, match=r"is no JSON .* begins with: <html>"):
        await opened.run("/pointer")


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        ("404 Not Found", "{}", Refused, "no such zone"),
        ("409 Conflict", '{"error": "Conflict with\\n existing"}', Refused,
         "Conflict with existing (409 Conflict)"),
        ("409 Conflict", '{"errors": [{"code": 1, "message": "zone exists"}]}', Refused,
         "zone exists (409 Conflict)"),
        ("409 Conflict", "<html><head><title>Oh no</title>", Refused, "Oh no (409 Conflict)"),
        ("409 Conflict", "\n first line \nsecond", Refused, "first line (409 Conflict)"),
        ("409 Conflict", "", Refused, "it answered 409 Conflict"),
        ("409 Conflict", "key geheim-1 is bad", Refused, "key geheim-1 is bad (409 Conflict)"),
        ("400 Bad Request", '{"message": "no"}', CallError, "no (400 Bad Request)"),
        ("500 Oops", "x" * 5000, CallError, "x" * 300 + " (500 Oops)"),
        ("202 Accepted", "", Retry, "not yet"),
        ("429 Too Many", "", Retry, "it answered 429 Too Many"),
        ("302 Found", "", CallError, "it answered 302 Found"),
    ],
)  # fmt: skip
async def test_a_status_means_what_the_manifest_says(
    web: tuple[Ops, Service], status: str, body: str, kind: type[Exception], words: str
) -> None:
    opened, found = web
    found.respond = lambda request: answer(body, status)
    with pytest.raises(kind) as caught:
        await opened.run("/status")
    assert str(caught.value) == words
    found.respond = lambda request: answer("tea", "418 Teapot")
    assert await opened.run("/status") == "tea"


async def test_a_secret_is_in_no_word_of_ours(web: tuple[Ops, Service]) -> None:
    opened, found = web
    found.respond = lambda request: answer('{"error": "geheim-1 is no key"}', "401 Unauthorized")
    error = await failure(opened, "/full", id=1)
    assert str(error) == "*** is no key (401 Unauthorized)"


async def test_retry_after_is_passed_on(web: tuple[Ops, Service]) -> None:
    opened, found = web
    for said, after in (
        ("7", 7.0),
        ("nonsense", None),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0),
        ("9" * 50, None),
    ):
        found.respond = lambda request, said=said: answer("", "429 No", f"Retry-After: {said}")  # type: ignore[misc]
        if after is None:
            with pytest.raises(Retry):
                await opened.run("/status")
            continue
        problem = (await failure(opened, "/status")).problem
        assert (problem.reason, problem.after) == ("busy", after)


async def test_an_answer_is_bounded(web: tuple[Ops, Service]) -> None:
    opened, found = web
    found.respond = lambda request: answer("x" * 1024)
    assert await opened.run("/small") == "x" * 1024
    found.respond = lambda request: answer("x" * 1025)
    problem = (await failure(opened, "/small")).problem
    assert problem.reason == "too-large" and "limits: answer" in problem.text

    # A gigabyte that is a megabyte on its way is not unpacked further than that.
    bomb = gzip.compress(bytes(1 << 24)) * 64
    found.respond = lambda request: answer(bomb, "200 OK", "Content-Encoding: gzip")
    begun = time.process_time()
    assert (await failure(opened, "/small")).problem.reason == "too-large"
    assert time.process_time() - begun < 0.5

    found.respond = lambda request: answer("", length=10**15) + b"x" * 100_000
    assert (await failure(opened, "/small")).problem.reason == "too-large"


async def test_packed_answers_are_unpacked(web: tuple[Ops, Service]) -> None:
    opened, found = web
    packed = gzip.compress(b"one ") + gzip.compress(b"two")
    found.respond = lambda request: answer(packed, "200 OK", "Content-Encoding: gzip")
    assert await opened.run("/small") == "one two"
    found.respond = lambda request: answer(
        zlib.compress(b"three"), "200 OK", "Content-Encoding: deflate"
    )
    assert await opened.run("/small") == "three"
    for data, coding, words in (
        (packed[:-4], "gzip", "cut off"),
        (b"plain", "gzip", "is not gzip"),
        (b"plain", "br", "packed as 'br'"),
    ):
        found.respond = lambda request, d=data, c=coding: answer(  # type: ignore[misc]
            d, "200 OK", f"Content-Encoding: {c}"
        )
        with pytest.raises(AgentError, match=words):
            await opened.run("/small")


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"\x00\xff" * 100,
    ],
)
async def test_what_is_no_http_is_one_line(web: tuple[Ops, Service], garbage: bytes) -> None:
    opened, found = web
    found.respond = lambda request: garbage
    error = await failure(opened, "/never")
    assert error.reason == "failed" and "\n" not in str(error) and len(str(error)) <= 300
    assert "broke off" in str(error)


# -- again


async def test_what_may_be_sent_twice_is_sent_again(web: tuple[Ops, Service]) -> None:
    opened, found = web
    answers = [answer("", "503 Busy"), b"", answer("done")]
    found.respond = lambda request: answers.pop(0)
    assert await opened.run("/retried") == "done"
    assert len(found.requests) == 3

    for op in ("/safe", "/found"):
        answers[:] = [answer("", "502 Bad"), answer("done")]
        assert await opened.run(op) == "done"

    found.requests.clear()
    answers[:] = [answer("", "503 Busy"), answer("done")]
    with pytest.raises(Retry):
        await opened.run("/once")
    found.requests.clear()
    answers[:] = [answer("", "503 Busy"), answer("done")]
    with pytest.raises(Retry):
        await opened.run("/never")
    answers[:] = [b"", answer("done")]
    assert "it may have been done" in str(await failure(opened, "/never"))
    assert len(found.requests) == 2


async def test_nothing_is_sent_again_when_the_time_would_be_up(web: tuple[Ops, Service]) -> None:
    opened, found = web
    found.respond = lambda request: answer("", "503 Busy", "Retry-After: 3600")
    problem = (await failure(opened, "/retried")).problem
    assert (problem.reason, problem.after, len(found.requests)) == ("busy", 3600.0, 1)


async def test_a_connection_that_the_service_closed_loses_no_post(
    web: tuple[Ops, Service],
) -> None:
    opened, found = web
    for _ in range(3):
        await opened.run("/never")
    assert found.connections == 3


async def test_nobody_there_is_worth_another_try(tmp_path: Path) -> None:
    async with service() as found:
        url = found.url
    async with ops(tmp_path, f'agent: a\nops: {{/a: {{http: {{post: "{url}/"}}}}}}') as opened:
        with pytest.raises(Retry, match=f"{url} cannot be reached"):
            await opened.run("/a")


async def test_cancelled_the_request_is_closed(web: tuple[Ops, Service]) -> None:
    opened, found = web

    async def never(request: Request) -> bytes:
        await asyncio.Event().wait()
        return b""

    found.respond = never
    task = asyncio.create_task(opened.run("/retried"))
    await eventually(lambda: len(found.requests) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: found.open == 0)


async def test_no_more_connections_than_slots(web: tuple[Ops, Service]) -> None:
    opened, found = web
    most = 0
    release = asyncio.Event()

    async def wait(request: Request) -> bytes:
        nonlocal most
        most = max(most, found.open)
        await release.wait()
        return answer("done")

    found.respond = wait
    tasks = [asyncio.create_task(opened.run("/retried")) for _ in range(9)]
    await eventually(lambda: len(found.requests) == 3)
    release.set()
    assert await asyncio.gather(*tasks) == ["done"] * 9
    assert most == 3 and found.connections == 3


# -- elsewhere


async def test_redirects_are_followed_on_the_same_host_only(web: tuple[Ops, Service]) -> None:
    opened, found = web
    found.respond = lambda request: (
        answer("here")
        if request.target == "/c?d=%2F"
        else answer("", "302 Found", "Location: /c?d=%2F#x")
    )
    assert await opened.run("/moved") == "here"
    said = str(await failure(opened, "/unmoved"))
    assert said == "it answered 302 and is at /c?d=%2F#x: correct the URL, or allow redirects"

    async with service() as other:
        for place in (f"{other.url}/c", "//evil.example/", "ftp://127.0.0.1/"):
            found.respond = lambda request, p=place: answer("", "302 Found", f"Location: {p}")  # type: ignore[misc]
            with pytest.raises(AgentError, match="its redirect is"):
                await opened.run("/moved")
        assert other.connections == 0

    found.respond = lambda request: answer("", "302 Found", "Location: /again")
    found.requests.clear()
    await failure(opened, "/moved")
    assert len(found.requests) == 3


async def test_pages_by_a_url_in_the_answer(web: tuple[Ops, Service]) -> None:
    opened, found = web
    pages = {
        "/1?q=x": {"data": [1, 2], "links": {"next": "/2?q=x&p=%2F"}},
        "/2?q=x&p=%2F": {"data": [3], "links": {"next": f"{found.url}/3"}},
        "/3": {"data": [4, 5], "links": {"next": None}},
    }
    found.respond = lambda request: answer(json.dumps(pages[request.target]))
    assert await opened.run("/next") == [1, 2, 3, 4, 5]

    pages["/3"] = {"data": [4, 5, 6], "links": {}}
    problem = (await failure(opened, "/next")).problem
    assert (problem.reason, problem.text) == (
        "too-large", "there are more than 5 items (pages: most)",
    )  # fmt: skip
    pages["/3"] = {"data": [], "links": {"next": "/2?q=x&p=%2F"}}
    with pytest.raises(AgentError, match="page 3 names one before it as the next"):
        await opened.run("/next")
    pages["/3"] = {"data": [], "links": {"next": "http://evil.example/"}}
    with pytest.raises(AgentError, match="its next page is at another service"):
        await opened.run("/next")
    pages["/3"] = {"items": []}
    with pytest.raises(AgentError, match="the answer has nothing at /data"):
        await opened.run("/next")


async def test_pages_by_the_header_link(web: tuple[Ops, Service]) -> None:
    opened, found = web
    found.respond = lambda request: answer(
        "[1, 2]", "200 OK", f'Link: </{int(request.target[1:]) + 1}?>; rel="next", </9>; rel=last'
    )
    assert await opened.run("/link") == [1, 2, 1, 2, 1]
    found.respond = lambda request: answer("[1]")
    assert await opened.run("/link") == [1]


async def test_pages_by_a_count_and_by_a_value(web: tuple[Ops, Service]) -> None:
    opened, found = web
    rows = {"/?q=%26&page=0": [1, 2], "/?q=%26&page=1": [3]}
    found.respond = lambda request: answer(json.dumps({"data": rows.get(request.target, [])}))
    assert await opened.run("/counted", q="&") == [1, 2, 3]

    cursors: dict[str, Any] = {
        "/": {"data": [1], "next": "a&b"},
        "/?cursor=a%26b": {"data": [2], "next": 7},
        "/?cursor=7": {"data": [3], "next": ""},
    }
    found.respond = lambda request: answer(json.dumps(cursors[request.target]))
    assert await opened.run("/cursor") == [1, 2, 3]


# -- TLS


def certificate(folder: Path, name: str, host: str) -> tuple[Path, Path]:
    """Make a certificate that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = [x509.DNSName(host)]
    if host[0].isdigit():
        names = [x509.IPAddress(ipaddress.ip_address(host))]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


async def test_a_certificate_is_verified_and_ours_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = certificate(tmp_path, "theirs", "billing.example")
    ours = certificate(tmp_path, "ours", "agent.example")
    monkeypatch.setenv("OUR_KEY", ours[1].read_text())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*theirs)
    context.load_verify_locations(ours[0])
    context.verify_mode = ssl.CERT_REQUIRED
    async with service(context) as found:
        text = """
agent: a
ops:
  /good: {http: {get: "URL/", tls: {ca: theirs.pem, name: billing.example, cert: ours.pem, key: ours.key}}}
  /hidden: {http: {get: "URL/", tls: {ca: theirs.pem, name: billing.example, cert: ours.pem, key: {env: OUR_KEY}}}}
  /stranger: {http: {get: "URL/", tls: {cert: ours.pem, key: ours.key}}}
  /other-name: {http: {get: "URL/", tls: {ca: theirs.pem, cert: ours.pem, key: ours.key}}}
  /nobody: {http: {get: "URL/", retries: 0, tls: {ca: theirs.pem, name: billing.example}}}
"""
        async with ops(tmp_path, text.replace("URL", found.url)) as opened:
            assert await opened.run("/good") == "{}"
            assert await opened.run("/hidden") == "{}"
            for op in ("/stranger", "/other-name"):
                error = await failure(opened, op)
                assert "its certificate is not believed" in str(error), op
            await failure(opened, "/nobody")
        assert len(found.requests) == 2


async def test_a_file_that_is_no_certificate_is_told(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    text = 'agent: a\nops: {/a: {http: {get: "https://localhost/", tls: {ca: ca.pem}}}}'
    with pytest.raises(AgentError, match=r"tls: ca .*ca.pem: .*give a file of PEM certificates"):
        async with ops(tmp_path, text):
            pass
