"""Drafts of real programs and of a real service, and calls through them."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from .conftest import Outcome, Spinal, spinal_here

#: Programs that every Debian has, because its packages need them.
PROGRAMS = (
    *(
        "base64",
        "cut",
        "date",
        "env",
        "factor",
        "find",
        "grep",
        "gzip",
        "perl",
        "sed",
        "seq",
        "sha256sum",
    ),
    *("sort", "tar", "tr", "wc", "xargs"),
)


@pytest.fixture
def here(place: Path) -> Spinal:
    return spinal_here(place)


def drafted(here: Spinal, file: Path, *words: str) -> Outcome:
    done = here("wrap", "init", str(file), *words)
    assert done.code == 0, done.err
    checked = here("wrap", "check", str(file))
    assert checked.code == 0, checked.err
    return done


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_draft_of_a_program_passes_the_check(
    here: Spinal, tmp_path: Path, program: str
) -> None:
    done = drafted(here, tmp_path / "x.yaml", "--program", program)

    assert f"agent {program}" in done.err
    assert "LOOK" in done.err


@pytest.mark.parametrize(
    ("program", "call", "says"),
    [
        ("factor", ["number=12"], "12: 2 2 3"),
        ("base64", ["file@=text", "wrap=0"], "YgphCg=="),
        ("wc", ["file@=text", "lines=true"], "2 "),
        ("sort", ["file@=text"], "a\nb"),
        ("cut", ["file@=text", "characters=1"], "b\na"),
        ("date", ["date=@86400", "utc=true", "iso_8601=date"], "1970-01-02"),
        ("seq", ["last=3", "separator=,"], "1,2,3"),
        ("sha256sum", ["file@=text"], "aea8a04c2f293417e499bf5de2def8ebb1ed40264d128a67180ea56fbe4600ff"),
        ("'python3 -m json.tool'", ["infile@=json", "compact=true"], '{"a":1}'),
    ],
)  # fmt: skip
def test_a_call_through_the_draft_of_a_program_works(
    here: Spinal, tmp_path: Path, program: str, call: list[str], says: str
) -> None:
    (tmp_path / "text").write_text("b\na\n")
    (tmp_path / "json").write_text('{"a": 1}')
    file = tmp_path / "x.yaml"
    drafted(here, file, "--program", program.strip("'"))

    done = here("wrap", "test", str(file), *(word.replace("@=", f"@={tmp_path}/") for word in call))

    assert done.code == 0, done.err
    assert says in done.out


@pytest.mark.parametrize(
    ("program", "argument"),
    [("tr", "string1"), ("seq", "last"), ("date", "format"), ("grep", "patterns")],
)
def test_no_value_is_taken_for_an_option_by_a_program_that_was_drafted(
    here: Spinal, tmp_path: Path, program: str, argument: str
) -> None:
    file = tmp_path / "x.yaml"
    drafted(here, file, "--program", program)

    done = here("wrap", "test", str(file), f"{argument}=--version")

    assert done.code != 0
    assert "GNU" not in done.out + done.err


def test_sub_commands_become_operations(here: Spinal, tmp_path: Path) -> None:
    tool = script(
        tmp_path / "tool",
        'case "$1" in\n'
        'list) echo "usage: tool list [--all]"; echo "  --all  hidden ones, too";;\n'
        'remove) echo "usage: tool remove [--] NAME";;\n'
        '*) echo "usage: tool COMMAND"; echo "Commands:"; echo "  list    show them"; echo "  remove  take one away";;\n'
        "esac",
    )
    whole = here("wrap", "init", str(tmp_path / "all.yaml"), "--program", str(tool))
    drafted(here, tmp_path / "x.yaml", "--program", str(tool), "--sub", "list", "--sub", "remove")

    shown = here("wrap", "show", str(tmp_path / "x.yaml"), "--json").json

    assert "tool has commands: list, remove" in whole.err
    assert {path: op["effects"] for path, op in shown.items()} == {
        "/tool/list": "reads",
        "/tool/remove": "deletes",
    }


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_program_is_asked_for_help_only_as_it_advises(here: Spinal, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    knows_h = script(
        tmp_path / "old",
        f'echo "$*" >> {asked}\n[ "$1" = -h ] && echo "usage: old [-v] FILE" && exit\n'
        'echo "old: unknown option" >&2; exit 1',
    )
    mute = script(tmp_path / "mute", f'echo "mute $*" >> {asked}; echo "not here" >&2')

    found = here("wrap", "init", "-", "--program", str(knows_h))
    nothing = here("wrap", "init", "-", "--program", str(mute))

    assert found.code == 0 and "{file}" in found.out
    assert nothing.code == 2 and "--help-option" in nothing.line
    assert "(it says: not here)" in nothing.line
    assert asked.read_text().splitlines() == ["--help", "-h", "mute --help"]


def test_a_program_is_found_from_where_we_are(
    here: Spinal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = script(tmp_path / "tool", 'echo "usage: tool NAME"')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    drafted(here, tmp_path / "elsewhere/x.yaml", "--program", "./tool")

    assert f"{tool}" in (tmp_path / "elsewhere/x.yaml").read_text()


def test_a_program_that_hangs_or_floods_is_ended(
    here: Spinal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spinal.cli.init.HELP_WITHIN", 0.5)
    hangs = script(tmp_path / "hangs", 'trap "" TERM\ncat\nexec tail -f /dev/null')
    floods = script(tmp_path / "floods", "yes 'usage: floods [--x]'")

    for tool in (hangs, floods):
        done = here("wrap", "init", "-", "--program", str(tool))
        assert "still running after 0.5 s, and was ended" in done.err
        assert done.code == 2


def test_help_is_printed_in_an_empty_folder_without_our_secrets(
    here: Spinal, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    tool = script(tmp_path / "tool", f'{{ ls; env; cat; }} > {seen}\necho "usage: tool NAME"')

    here("wrap", "init", "-", "--program", str(tool), SECRET_TOKEN="hidden")

    assert "hidden" not in seen.read_text()
    assert seen.read_text().splitlines()[0].partition("=")[1] == "=", "no file, but the variables"


def test_a_file_that_exists_stays(here: Spinal, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("mine")

    refused = here("wrap", "init", str(file))
    assert refused.code == 2 and "--force" in refused.line
    assert file.read_text() == "mine"

    assert here("wrap", "init", str(file), "--force").code == 0
    assert file.read_text().startswith("# yaml-language-server")


def test_without_a_source_there_is_a_short_example(here: Spinal, tmp_path: Path) -> None:
    done = here("wrap", "init", str(tmp_path / "bills.yaml"), "--json")

    assert done.json == {
        "file": str(tmp_path / "bills.yaml"),
        "agent": "bills",
        "ops": ["/units/convert"],
        "needs": [],
    }
    assert len((tmp_path / "bills.yaml").read_text().splitlines()) <= 20


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--program", "units", "--openapi", "x"], "not both"),
        (["--sub", "x"], "go with --program"),
        (["--server", "http://x"], "go with --openapi"),
        (["--program", "no-such-program"], "is not here"),
        (["--program", "'"], "--program"),
        (["--openapi", "no-such-file.json"], "cannot be read"),
        (["--openapi", "http://127.0.0.1:9/openapi.json"], "cannot be fetched"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(here: Spinal, words: list[str], says: str) -> None:
    done = here("wrap", "init", "-", *words)

    assert done.code == 2
    assert says in done.line


# -- a service

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "FastAPI", "version": "0.1.0"},
    "paths": {
        "/items/{item_id}": {
            "get": {
                "summary": "Read Item",
                "operationId": "read_item_items__item_id__get",
                "parameters": [
                    {
                        "name": "item_id",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string"},
                    },
                    {
                        "name": "q",
                        "in": "query",
                        "schema": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    },
                ],
                "responses": {
                    "200": {"description": "ok", "content": {"application/json": {"schema": {}}}},
                    "404": {"description": "There is no such item"},
                },
            }
        },
        "/items": {
            "post": {
                "summary": "Create Item",
                "operationId": "create_item_items_post",
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "price": {"type": "number"},
                                },
                            }
                        }
                    },
                },
                "responses": {
                    "200": {"description": "ok", "content": {"application/json": {"schema": {}}}}
                },
            }
        },
    },
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/openapi.json":
            self.answer(200, DOCUMENT)
        elif url.path == "/items/none":
            self.answer(404, {"detail": "Not Found"})
        else:
            self.answer(200, {"path": url.path, "q": parse_qs(url.query)})

    def do_POST(self) -> None:
        self.answer(200, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_service_is_called_through_the_draft_of_its_document(
    here: Spinal, tmp_path: Path, service: str
) -> None:
    file = tmp_path / "x.yaml"
    drafted(here, file, "--openapi", f"{service}/openapi.json", "--agent", "shop")

    def call(op: str, *words: str) -> Outcome:
        return here("wrap", "test", str(file), "--op", op, *words, "--json")

    assert call("/items/read", "item_id=a b?c", "q=x&y").json["value"] == {
        "path": "/items/a%20b%3Fc",
        "q": {"q": ["x&y"]},
    }
    assert call("/items/create", "name=lamp", "price=2.5").json["value"] == {
        "name": "lamp",
        "price": 2.5,
    }
    assert call("/items/create", "name=lamp").json["value"] == {"name": "lamp"}
    assert "There is no such item" in call("/items/read", "item_id=none").err


def test_a_document_may_be_a_file_and_only_a_part_of_it_wanted(
    here: Spinal, tmp_path: Path
) -> None:
    source = tmp_path / "openapi.json"
    source.write_text(json.dumps(DOCUMENT))
    words = ("--openapi", str(source), "--server", "http://127.0.0.1:9", "--only", "POST /items")

    drafted(here, tmp_path / "x.yaml", *words)

    assert list(here("wrap", "show", str(tmp_path / "x.yaml"), "--json").json) == ["/items/create"]


def test_variables_that_a_draft_needs_are_named(here: Spinal, tmp_path: Path) -> None:
    said: dict[str, Any] = {
        **DOCUMENT,
        "security": [{"token": []}],
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }
    source = tmp_path / "openapi.json"
    source.write_text(json.dumps(said))
    file = tmp_path / "x.yaml"

    done = here(
        "wrap", "init", str(file), "--openapi", str(source), "--server", "http://127.0.0.1:9"
    )
    without = here("wrap", "check", str(file))

    assert "it needs the variable FASTAPI_TOKEN" in done.err
    assert without.code == 2 and "(and in one more)" in without.err
    assert here("wrap", "check", str(file), FASTAPI_TOKEN="x").code == 0
