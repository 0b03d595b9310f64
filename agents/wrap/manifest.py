"""A manifest: the YAML file that makes an agent of something that exists.

What may stand in it is :func:`schema`, put together from what each kind says of itself.  Reading it
does no I/O but reading the file, and finds every mistake at once; :func:`missing` looks at this
machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from spinal.bus.blob import Blob
from spinal.bus.errors import CallError
from spinal.protocols import REASONS, Json, LocalProtocolError
from spinal.protocols import path as paths

from .. import document
from ..agent import Agent
from ..document import DURATION, BadDocument, Document, Mistake, seconds
from ..errors import EndWith
from ..life import Life
from ..operation import Operation
from . import argument, gauge, health, output, rights
from .argument import Argument
from .kind import Call, Host, Kind, Site
from .kinds import KINDS

#: Operations that one agent may offer.
MAX_OPS: Final = 1000


@dataclass(frozen=True)
class Op:
    """One operation of a manifest."""

    path: str
    kind: Kind
    operation: Operation
    arguments: Mapping[str, Argument]
    #: Where it stands in the document.
    steps: tuple[str | int, ...]


@dataclass(frozen=True)
class Manifest:
    """What a manifest says."""

    document: Document
    name: str
    ops: Mapping[str, Op]
    place: Mapping[str, str] = field(default_factory=dict[str, str])
    tags: Sequence[str] = ()
    slots: int | None = None
    cost: float | None = None
    health: health.Health | None = None
    load: gauge.Gauge | None = None

    def missing(self) -> Iterator[Mistake]:
        """Give what is not on this machine: programs, secrets, files."""
        for op in self.ops.values():
            for steps, text in op.kind.lacks():
                yield self.document.mistake((*op.steps, *steps), text)
        for part in (self.health, self.load):
            if part is not None:
                for steps, text in part.lacks():
                    yield self.document.mistake(steps, text)

    def agent(self) -> Agent:
        """Make the agent."""
        made = Agent(
            self.name,
            place=self.place,
            tags=self.tags,
            slots=self.slots,
            cost=self.cost,
            load=None if self.load is None else self.load.measured,
            lifespan=self._life,
        )
        for op in self.ops.values():
            made.add(op.operation)
        return made

    @contextlib.asynccontextmanager
    async def open(self, host: Host) -> AsyncGenerator[None]:
        """Have the kinds open for a block, as they are while the agent lives."""
        async with contextlib.AsyncExitStack() as stack:
            for op in self.ops.values():
                await stack.enter_async_context(op.kind.open(host))
            yield

    @contextlib.asynccontextmanager
    async def _life(self, life: Life) -> AsyncGenerator[None]:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.open(Host(life.guard, _Bus(life))))
            for part in (self.health, self.load):
                if part is not None:
                    await stack.enter_async_context(part.watch(life))
            yield


@dataclass(frozen=True)
class _Bus:
    """The bus in the name of the agent itself."""

    life: Life

    async def upload(self, source: Path, media_type: str) -> Blob:
        return await self.life.bus.upload(source, media_type)

    async def submit(
        self, op: str, args: Mapping[str, Any], key: str, labels: Sequence[str] = ()
    ) -> str:
        bus = self.life.bus.options(key=key, labels=labels or None)
        return (await bus.submit(op, **args)).id


def load(path: Path | str) -> Manifest:
    """Read a manifest.

    Raises:
        BadDocument: it has mistakes; each with its line and what to write.
        AgentError: there is no such file.
    """
    return of(document.load(path, schema()))


def of(found: Document) -> Manifest:
    """Make the manifest of a document that fits :func:`schema`.

    Raises:
        BadDocument: what it says does not go together.
    """
    mistakes: list[Mistake] = []
    said: Mapping[str, Any] = found.value
    try:
        place = paths.check_places(said.get("place", {}))
    except LocalProtocolError as exc:
        mistakes.append(found.mistake(("place",), f"{exc}: write for example {{site: /eu/fra}}"))
        place = {}
    rule = rights.Rights.of(said.get("rights"))
    ops = {path: _op(found, path, op, rule, mistakes) for path, op in said["ops"].items()}
    checks = loads = None
    if "health" in said:
        checks = health.Health.of(found, ("health",), mistakes)
    if isinstance(said.get("load"), Mapping):
        loads = gauge.Gauge.of(found, ("load",), mistakes)
    if mistakes:
        raise BadDocument(mistakes)
    return Manifest(
        found,
        said["agent"],
        {path: op for path, op in ops.items() if op is not None},
        place,
        tuple(said.get("tags", ())),
        said.get("slots"),
        said.get("cost"),
        checks,
        loads,
    )


def _op(
    found: Document,
    path: str,
    said: Mapping[str, Json],
    rule: rights.Rights,
    mistakes: list[Mistake],
) -> Op | None:
    before = len(mistakes)
    steps = ("ops", path)

    def wrong(text: str, *more: str | int) -> None:
        mistakes.append(found.mistake((*steps, *more), text))

    try:
        if not paths.parts(path):
            wrong("'/' is no operation: write for example /units/convert")
    except LocalProtocolError as exc:
        wrong(f"{exc}: write a path such as /units/convert")
    kinds = [key for key in KINDS if key in said]
    if len(kinds) != 1:
        has = f"has {' and '.join(kinds)}: keep one" if kinds else "does nothing"
        wrong(f"{has}; an operation has one of {', '.join(KINDS)}")
        return None
    kind = KINDS[kinds[0]]
    for key in said:
        owners = [name for name, one in KINDS.items() if key in one.BESIDE]
        if owners and kinds[0] not in owners:
            wrong(f"goes with {' or '.join(owners)}, and this is {kinds[0]}", key)
    arguments: dict[str, Argument] = {}
    taken: Mapping[str, Any] = said.get("args") or {}
    for name, about in taken.items():
        if name == "tmp":
            wrong("is the folder of a call: give the argument another name", "args", name)
            return None
        try:
            arguments[name] = Argument.of(name, about)
        except ValueError as exc:
            key = str(exc).partition(" ")[0].rstrip(":")
            wrong(str(exc).removeprefix(f"{key}: "), "args", name, key)
    if len(arguments) < len(taken):
        # Their uses would only repeat what has been said.
        return None
    site = Site(found, steps, said, kinds[0], arguments, mistakes)
    made = kind.read(site)
    if len(mistakes) == before:
        for name in arguments:
            if name not in site.used:
                wrong("is not used: put {" + name + "} somewhere, or leave it out", "args", name)
    if len(mistakes) > before:
        return None
    allowed = rights.Rights.of(said.get("rights")) or rule
    retry: Any = said.get("retry")
    if isinstance(retry, Mapping):
        given = document.members(retry)
        pauses = {key: seconds(given[key]) for key in ("backoff", "most") if key in given}
        retry = {**given, **pauses}
    try:
        operation = Operation.of(
            function(made, arguments, allowed),
            path,
            timeout=said.get("timeout", "60s"),
            effects=said.get("effects", "writes"),
            safe=said.get("safe"),
            slots=said.get("slots"),
            retry=retry,
            signature=argument.signature(path, arguments, made.result),
            summary=said.get("summary", ""),
        )
    except (ValueError, TypeError) as exc:
        wrong(str(exc).partition("(): ")[2] or str(exc))
        return None
    return Op(path, made, operation, arguments, steps)


def function(
    kind: Kind, arguments: Mapping[str, Argument], allowed: rights.Rights
) -> Callable[..., Awaitable[Any]]:
    """Make what runs an operation: takes the job and the arguments, all by name."""

    async def run(**given: Any) -> Any:
        job = given.pop(argument.JOB)
        args = {name: given.get(name, one.default) for name, one in arguments.items()}
        try:
            allowed.check(job.caller)
            for name, one in arguments.items():
                one.check(args[name])
            with Call(job, args, arguments).running() as call:
                return await kind.run(call)
        except CallError as exc:
            # A kind calls nobody else: it is our own word.
            raise EndWith(exc.problem) from exc

    return run


# -- the schema


def schema() -> dict[str, Json]:
    """Give the JSON Schema of a manifest (2020-12)."""
    beside = {key: part for kind in KINDS.values() for key, part in kind.BESIDE.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Spinal manifest",
        "description": "Makes an agent of something that exists; `spinal wrap run FILE`.",
        "type": "object",
        "required": ["agent", "ops"],
        "properties": {
            "agent": {
                "type": "string",
                "pattern": "^[a-z0-9][a-z0-9._-]{0,62}$",
                "patternErrorMessage": "is no name: lower-case letters, digits, '-', '_' and '.'",
                "description": "Its name on the bus.",
                "examples": ["units"],
            },
            "place": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "object", "additionalProperties": {"type": "string"}},
                ],
                "description": "Where it is: keys and paths.",
                "examples": [{"site": "/eu/fra/rack7"}],
            },
            "tags": {
                "type": "array",
                "items": {"type": "string", "minLength": 1, "maxLength": 128},
                "description": "Words that callers may ask for.",
                "examples": [["gnu"]],
            },
            "slots": {
                "type": "integer",
                "minimum": 1,
                "maximum": 100_000,
                "description": "Calls that run at once; the number of processors if not said.",
                "examples": [4],
            },
            "cost": {"type": "number", "minimum": 0, "description": "Price of an hour."},
            "load": gauge.SCHEMA,
            "health": health.SCHEMA,
            "rights": rights.SCHEMA,
            "ops": {
                "type": "object",
                "minProperties": 1,
                "maxProperties": MAX_OPS,
                "additionalProperties": _op_schema(beside),
                "description": "What it offers, by path.",
                "examples": [
                    {"/units/convert": {"args": {"from": {}}, "command": ["units", "-t", "{from}"]}}
                ],
            },
        },
        "additionalProperties": False,
    }


def _op_schema(beside: Mapping[str, Json]) -> dict[str, Json]:
    return {
        "type": "object",
        "properties": {
            "summary": {
                "type": "string",
                "maxLength": 4000,
                "description": "What it is for; the help that callers see.",
            },
            "args": {
                "type": ["object", "null"],
                "propertyNames": argument.NAMES,
                "additionalProperties": argument.SCHEMA,
                "description": "What it takes, by name.",
                "examples": [{"from": {"type": "string", "max_length": 80}}],
            },
            "output": output.SCHEMA,
            "timeout": {**DURATION, "description": "Longest run (60s)."},
            "effects": {
                "enum": ["reads", "writes", "deletes", "spends"],
                "default": "writes",
                "description": "What it does to the world.",
            },
            "safe": {
                "type": "boolean",
                "description": "May run twice without harm; what only reads is if not said.",
            },
            "slots": {
                "type": "integer",
                "minimum": 1,
                "description": "How many run at once, if fewer than the agent's slots.",
                "examples": [1],
            },
            "retry": {
                "anyOf": [
                    {"type": "integer", "minimum": 0, "maximum": 100},
                    {
                        "type": "object",
                        "properties": {
                            "count": {"type": "integer", "minimum": 0, "maximum": 100},
                            "backoff": {**DURATION, "description": "Before the second try (1s)."},
                            "most": {**DURATION, "description": "Longest pause (60s)."},
                            "on": {
                                "type": "array",
                                "items": {"enum": sorted(set(REASONS) - {"cancelled"})},
                                "description": "Reasons that are tried again.",
                            },
                            "elsewhere": {
                                "type": "boolean",
                                "description": "At another agent, while there is one.",
                            },
                        },
                        "required": ["count"],
                        "additionalProperties": False,
                    },
                ],
                "description": "How often a job that failed is tried again: a number, or count, "
                "backoff, most, on and elsewhere.",
                "examples": [3],
            },
            "rights": rights.SCHEMA,
            **beside,
            **{key: kind.SCHEMA for key, kind in KINDS.items()},
        },
        "additionalProperties": False,
    }


def published() -> dict[str, Json]:
    """Give the schema for editors: it also says that an operation has one kind."""
    found = schema()
    ops = found["properties"]["ops"]
    ops["additionalProperties"]["oneOf"] = [{"required": [key]} for key in KINDS]
    return found
