"""A pool file: YAML that says what machines a pool has, and what they may cost.

What may stand in it is :func:`schema`.  :func:`load` finds every mistake with its line and key, and
reads the agents' files that it names; :func:`to_json` is what the dispatcher is sent, and
:func:`of_json` checks that again, by the same schema and the same rules.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from spinal.agents import document
from spinal.agents.document import DURATION, SIZE, BadDocument, Document, Mistake, seconds
from spinal.agents.errors import one_line
from spinal.agents.provider.offer import Exchange
from spinal.agents.provider.settings import PREFIX
from spinal.protocols import Json, LocalProtocolError, duration
from spinal.protocols import path as paths

from ..jobs.cron import next_after
from .spec import (
    Demand,
    Life,
    Money,
    Place,
    PoolSpec,
    Rule,
    Scale,
    Server,
    Size,
    Window,
)

#: Most machines of a pool, and most jobs that are packed at once.
MAX_MACHINES: Final = 1000
MAX_JOBS: Final = 10_000

#: Bytes of memory or disk that are too few for anything: the unit was forgotten.
LEAST_BYTES: Final = 1024**2

#: Most agents' files, and most bytes of all of them.
MAX_AGENTS: Final = 16
MAX_AGENT_BYTES: Final = 128 * 1024

#: What one agent's file may be called where it is sent.
_FILE: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\.py$"

_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?"
_TIME: Final = "(?=[0-9])" + "".join(f"(?:{_NUMBER}{unit})?" for unit in duration.UNITS)
_FOR: Final = rf"(?:\s+for\s+({_TIME}))?"
_COUNT_RULE: Final = rf"^([<>])\s*({_NUMBER}){_FOR}$"
_TIME_RULE: Final = rf"^([<>])\s*({_TIME}){_FOR}$"


def load(path: Path | str, exchange: Exchange | None = None) -> PoolSpec:
    """Read a pool file, and the agents' files that it names.

    Args:
        path: of the file.
        exchange: the home's money, to tell a bound in a currency that it has no rate for.

    Raises:
        BadDocument: it has mistakes; each with its line and what to write.
        AgentError: there is no such file.
    """
    return of(document.load(path, schema()), exchange)


def of(found: Document, exchange: Exchange | None = None) -> PoolSpec:
    """Make what a document says that fits :func:`schema`; reads the agents' files beside it.

    Raises:
        BadDocument: what it says does not go together, or an agent's file is not as it must be.
    """
    return _Reader(found).spec(exchange)


def of_words(value: Json) -> PoolSpec:
    """Make a pool of what was said elsewhere than in a file; paths in it start where we are.

    Raises:
        BadDocument: as for :func:`load`; each mistake with its key.
    """
    found = Document("pool", value, {})
    mistakes = list(document.check(found, schema()))
    if mistakes:
        raise BadDocument(mistakes)
    return of(found)


def to_json(spec: PoolSpec) -> dict[str, Json]:
    """Give a pool as JSON, all defaults filled in, the content of the agents' files in it."""
    server, scale, money, life = spec.server, spec.scale, spec.money, spec.life
    return {
        "pool": spec.pool,
        "server": {
            "cpu": server.cpu,
            "ram": server.ram,
            **_some(disk=server.disk or None),
            "arch": server.arch,
            "image": server.image,
            "region": list(server.region),
        },
        **_some(demand=[{"cpu": d.cpu, "ram": d.ram, "count": d.count} for d in spec.demand]),
        "size": {"min": spec.size.min, "max": spec.size.max, "start": spec.size.start},
        "place": {
            "prefer": spec.place.prefer,
            "spread": spec.place.spread,
            "at_least_vendors": spec.place.at_least_vendors,
        },
        "scale": {
            **_some(
                op=list(scale.ops),
                waiting=scale.waiting and _write(scale.waiting),
                p95=scale.p95 and _write(scale.p95, duration.write),
                remove_when={
                    name: _write(rule, duration.write if name == "p95" else _plain)
                    for name, rule in scale.remove_when.items()
                },
                schedule=[
                    {"cron": w.cron, "zone": w.zone, "for": w.lasting, "size": w.size}
                    for w in scale.schedule
                ],
            ),
            "add": scale.add,
            "cool": scale.cool,
            **_some(
                consolidate=None
                if scale.consolidate is None
                else f"{_plain(round(scale.consolidate * 100, 9))}%"
            ),
        },
        "money": _some(
            max_per_hour=money.max_per_hour,
            max_per_month=money.max_per_month,
            currency=money.currency,
            label=money.label,
        ),
        "life": {
            "ttl": life.ttl,
            "on_down": life.on_down,
            "self_test": list(life.self_test),
            **_some(agents=dict(life.agents)),
            "packages": list(life.packages),
            "join": life.join,
            "drain": life.drain,
            **_some(ends=life.ends),
        },
    }


def of_json(value: Json) -> PoolSpec:
    """Read :func:`to_json` back.

    Raises:
        BadDocument: somebody sent what is no pool; each mistake with its key.
    """
    found = Document("pool", value, {})
    mistakes = list(document.check(found, schema(sent=True)))
    if mistakes:
        raise BadDocument(mistakes)
    return of(found)


def check_money(spec: PoolSpec, exchange: Exchange) -> str | None:
    """Say in one line why a pool's bounds cannot be held in the home's money; none if they can."""
    if not spec.money.currency or exchange.rate(spec.money.currency) is not None:
        return None
    currency = spec.money.currency
    return (
        f"there is no rate from {currency} to {exchange.currency}: give the bounds in "
        f"{exchange.currency}, or write what one {currency} costs into providers.yaml: "
        f"rates: {{{currency}: 0.92}}"
    )


def _some(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value not in (None, "", [], {})}


def _plain(value: float) -> str:
    return f"{value:.12f}".rstrip("0").rstrip(".")


def _write(rule: Rule, bound: Callable[[float], str] = _plain) -> str:
    lasting = f" for {duration.write(rule.lasting)}" if rule.lasting else ""
    return f"{rule.sign} {bound(rule.bound)}{lasting}"


class _Reader:
    """Makes the parts of a pool, and notes what does not go together."""

    def __init__(self, found: Document) -> None:
        self._found = found
        self._mistakes: list[Mistake] = []

    def spec(self, exchange: Exchange | None) -> PoolSpec:
        said: Mapping[str, Any] = document.members(self._found.value)
        for steps in _not_finite(said):
            self._tell(steps, "is no number that can be counted with: write one such as 4")
        self._stop()
        made = PoolSpec(
            pool=said["pool"],
            server=self._server(said["server"]),
            demand=tuple(self._demand(said.get("demand", ()))),
            size=self._size(said),
            place=Place(**said.get("place", {})),
            scale=self._scale(said.get("scale", {})),
            money=Money(**said.get("money", {})),
            life=self._life(said.get("life", {})),
        )
        self._together(made)
        if exchange is not None and (wrong := check_money(made, exchange)):
            self._tell(("money", "currency"), wrong)
        self._stop()
        return made

    def _tell(self, steps: Sequence[str | int], text: str) -> None:
        self._mistakes.append(self._found.mistake(steps, text))

    def _stop(self) -> None:
        if self._mistakes:
            raise BadDocument(self._mistakes)

    # -- parts

    def _server(self, said: Mapping[str, Any]) -> Server:
        region = said.get("region", [])
        sizes = {
            key: self._bytes(said[key], ("server", key)) for key in ("ram", "disk") if key in said
        }
        regions = (region,) if isinstance(region, str) else tuple(region)
        given: dict[str, Any] = {**said, **sizes, "region": regions}
        return Server(**given)

    def _bytes(self, said: Json, steps: Sequence[str | int]) -> int:
        found = document.size(said)
        if found < LEAST_BYTES:
            self._tell(steps, f"{found} bytes are too few: write a unit, such as {steps[-1]}: 8G")
        return found

    def _demand(self, said: Sequence[Mapping[str, Any]]) -> Iterator[Demand]:
        for place, each in enumerate(said):
            count = int(each.get("count", 1))
            ram = self._bytes(each["ram"], ("demand", place, "ram"))
            yield Demand(cpu=each["cpu"], ram=ram, count=count)
        if sum(int(each.get("count", 1)) for each in said) > MAX_JOBS:
            self._tell(("demand",), f"more than {MAX_JOBS} jobs: make several pools of them")

    def _size(self, said: Mapping[str, Any]) -> Size:
        given = {key: int(value) for key, value in said.get("size", {}).items()}
        least = given.get("min", 0)
        start = given.get("start", max(least, min(given.get("max", least), least)))
        jobs = sum(int(each.get("count", 1)) for each in said.get("demand", ()))
        most = given.get("max", max(start, least, min(jobs, MAX_MACHINES), 1))
        if least > most:
            self._tell(("size", "min"), f"{least} is more than max, which is {most}")
        elif not least <= start <= most:
            self._tell(
                ("size", "start"),
                f"{start} is not between min and max, which are {least} and {most}",
            )
        return Size(min=least, max=most, start=start)

    def _scale(self, said: Mapping[str, Any]) -> Scale:
        op = said.get("op", [])
        ops = (op,) if isinstance(op, str) else tuple(op)
        self._operations(ops, ("scale", "op"), alone=isinstance(op, str))
        rules = {
            key: self._rule(key, said[key], ">", "scale", key)
            for key in ("waiting", "p95")
            if key in said
        }
        removing = {
            key: self._rule(key, text, ">" if key == "idle" else "<", "scale", "remove_when", key)
            for key, text in said.get("remove_when", {}).items()
        }
        windows = [
            window
            for place, each in enumerate(said.get("schedule", ()))
            if (window := self._window(each, place)) is not None
        ]
        share = said.get("consolidate")
        if share is not None and not 0 < float(share[:-1]) < 100:
            self._tell(("scale", "consolidate"), f"{share} is no saving: write for example 15%")
        return Scale(
            ops=ops,
            **rules,
            add=int(said.get("add", 1)),
            remove_when=removing,
            cool=self._seconds(said, "cool", 300.0, "scale"),
            schedule=tuple(windows),
            consolidate=None if share is None else float(share[:-1]) / 100,
        )

    def _rule(self, measure: str, text: str, sign: str, *steps: str) -> Rule:
        found = re.match(_TIME_RULE if measure == "p95" else _COUNT_RULE, text)
        assert found is not None, "the schema has seen to it"
        given, bound, lasting = found.groups()
        at_least, at_most = self._parsed(bound, steps), self._parsed(lasting or 0.0, steps)
        if given != sign:
            way = "removed" if "remove_when" in steps else "added"
            self._tell(steps, f"machines are {way} when this is '{sign}' something, not '{given}'")
        elif given == "<" and at_least == 0:
            self._tell(steps, "nothing is less than 0: write a greater number")
        return Rule(sign=given, bound=at_least, lasting=at_most)

    def _window(self, said: Mapping[str, Any], place: int) -> Window | None:
        steps = ("scale", "schedule", place)
        zone = said.get("zone", "UTC")
        try:
            # The zone first, so that a mistake is told where it stands.
            next_after("0 0 1 1 *", zone, 0)
        except ValueError as exc:
            self._tell((*steps, "zone"), str(exc))
            return None
        try:
            next_after(said["cron"], zone, 0)
        except ValueError as exc:
            self._tell((*steps, "cron"), str(exc))
            return None
        lasting = self._seconds(said, "for", 0.0, *steps)
        return Window(cron=said["cron"], zone=zone, lasting=lasting, size=int(said["size"]))

    def _life(self, said: Mapping[str, Any]) -> Life:
        tests = tuple(said.get("self_test", ()))
        self._operations(tests, ("life", "self_test"))
        agents: Any = said.get("agents", ())
        agents = (
            dict(document.members(agents)) if isinstance(agents, Mapping) else self._agents(agents)
        )
        return Life(
            ttl=self._seconds(said, "ttl", Life().ttl, "life"),
            on_down=said.get("on_down", Life().on_down),
            self_test=tests,
            agents=agents,
            packages=tuple(said.get("packages", ())),
            join=self._seconds(said, "join", Life().join, "life"),
            drain=self._seconds(said, "drain", Life().drain, "life"),
            ends=self._seconds(said, "ends", 0.0, "life") or None,
        )

    def _agents(self, files: Sequence[str]) -> dict[str, str]:
        texts: dict[str, str] = {}
        for place, name in enumerate(files):
            steps = ("life", "agents", place)
            path = self._found.folder / name
            if path.name in texts:
                self._tell(steps, f"there are two files named {path.name}: rename one")
            elif not re.match(_FILE, path.name):
                self._tell(
                    steps, f"{path.name!r} is no file of Python: write a path such as worker.py"
                )
            elif (text := self._agent(path, name, steps)) is not None:
                texts[path.name] = text
        size = sum(len(text.encode()) for text in texts.values())
        if size > MAX_AGENT_BYTES:
            self._tell(("life", "agents"), f"the files have more than {MAX_AGENT_BYTES} bytes")
        return texts

    def _agent(self, path: Path, name: str, steps: Sequence[str | int]) -> str | None:
        try:
            with path.open("rb") as file:
                data = file.read(MAX_AGENT_BYTES + 1)
        except OSError as exc:
            self._tell(steps, f"{name}: {exc.strerror}: write a path from the pool file's folder")
            return None
        if len(data) > MAX_AGENT_BYTES:
            self._tell(steps, f"{name}: larger than {MAX_AGENT_BYTES} bytes")
            return None
        try:
            text = data.decode()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                ast.parse(text, name)
        except UnicodeDecodeError as exc:
            self._tell(steps, f"{name}: byte {exc.start} is no UTF-8: save it as UTF-8")
        except SyntaxError as exc:
            self._tell(steps, f"{name}:{exc.lineno}: no Python: {exc.msg}")
        except (ValueError, RecursionError, MemoryError) as exc:
            self._tell(steps, f"{name}: no Python: {one_line(str(exc), 100) or 'nested too deep'}")
        else:
            return text
        return None

    # -- words

    def _seconds(
        self, said: Mapping[str, Any], key: str, default: float, *above: str | int
    ) -> float:
        return self._parsed(said[key], (*above, key)) if key in said else default

    def _parsed(self, value: str | float, steps: Sequence[str | int]) -> float:
        try:
            return seconds(value)
        except ValueError as exc:
            self._tell(steps, str(exc))
            return 0.0

    def _operations(self, ops: Sequence[str], steps: Sequence[str], *, alone: bool = False) -> None:
        for place, op in enumerate(ops):
            where: Sequence[str | int] = steps if alone else (*steps, place)
            try:
                if not paths.parts(op):
                    self._tell(where, "'/' is no operation: write for example /image/resize")
            except LocalProtocolError as exc:
                self._tell(where, f"{exc}: write the whole path, such as /image/resize")
        for op, times in Counter(ops).items():
            if times > 1:
                self._tell(steps, f"{op} stands in it twice: leave one out")

    # -- what goes together

    def _together(self, spec: PoolSpec) -> None:
        scale, size = spec.scale, spec.size
        if f"{spec.pool}-".startswith(PREFIX):
            self._tell(
                ("pool",),
                f"its machines would be called as provider agents are, {PREFIX}...: choose another "
                "name",
            )
        if spec.place.at_least_vendors > size.max:
            self._tell(
                ("place", "at_least_vendors"),
                f"{spec.place.at_least_vendors} vendors need as many machines, and size.max "
                f"is {size.max}",
            )
        rules = ("waiting", "p95", "remove_when")
        said: Mapping[str, Any] = document.members(self._found.value)
        for key in rules:
            if key in said.get("scale", {}) and not scale.ops:
                self._tell(
                    ("scale", key),
                    "whose jobs? write beside it for example op: /image/resize",
                )
        spread = spec.place.spread != "none" or spec.place.at_least_vendors > 1
        if scale.consolidate is not None and (spread or spec.demand):
            self._tell(
                ("scale", "consolidate"),
                "goes with machines that may all be where it is cheapest: leave it out, or leave "
                + ("demand out" if spec.demand else "spread and at_least_vendors out"),
            )
        if spec.demand and scale.ops:
            self._tell(
                ("scale", "op"),
                "goes with equal machines, and this pool packs a demand: keep one of the two",
            )
        for name, adding in (("waiting", scale.waiting), ("p95", scale.p95)):
            removing = scale.remove_when.get(name)
            if adding and removing and adding.sign == ">" and removing.bound > adding.bound:
                self._tell(
                    ("scale", "remove_when", name),
                    f"would remove what '{said['scale'][name]}' adds, on and on: write a bound "
                    "well below that one",
                )
        for place, window in enumerate(scale.schedule):
            if window.size > size.max:
                self._tell(
                    ("scale", "schedule", place, "size"),
                    f"{window.size} is more than size.max, which is {size.max}",
                )
        if scale.add > size.max:
            self._tell(("scale", "add"), f"{scale.add} is more than size.max, which is {size.max}")
        if spec.life.ttl <= spec.life.join and not self._mistakes:
            self._tell(
                ("life", "ttl" if "ttl" in said.get("life", {}) else "join"),
                f"a machine may take {duration.write(spec.life.join)} to join, and its time is "
                f"over after {duration.write(spec.life.ttl)}: write a longer ttl",
            )


def _not_finite(value: Any, steps: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield steps
    if isinstance(value, list):
        for place, each in enumerate(value):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            yield from _not_finite(each, (*steps, place))
    for key, each in document.members(value).items():
        yield from _not_finite(each, (*steps, key))


# -- the schema


def published() -> dict[str, Json]:
    """Give the schema as it is for editors: docs/pool.schema.json."""
    return schema()


def schema(*, sent: bool = False) -> dict[str, Json]:
    """Give the JSON Schema (2020-12) of a pool file; or of what the dispatcher is sent."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Spinal pool",
        "description": "Machines that are rented where they are cheapest; `spinal pool plan FILE`.",
        **_mapping(
            {
                "pool": {
                    "type": "string",
                    "pattern": "^[a-z](-?[a-z0-9]){0,39}$",
                    "patternErrorMessage": "is no name: at most 40 lower-case letters, digits "
                    "and single '-', first a letter",
                    "description": "Its name; its machines are named after it.",
                    "examples": ["web"],
                },
                "server": _SERVER,
                "demand": _DEMAND,
                "size": _SIZES,
                "place": _PLACE,
                "scale": _SCALE,
                "money": _MONEY,
                "life": _mapping({**_LIFE, "agents": _SENT if sent else _AGENTS}),
            },
            "pool",
            "server",
        ),
    }


def _mapping(properties: Mapping[str, Json], *required: str, **more: Json) -> dict[str, Json]:
    return {
        "type": "object",
        **more,
        **({"required": list(required)} if required else {}),
        "properties": dict(properties),
        "additionalProperties": False,
    }


def _whole(least: int, most: int, about: str, example: int) -> dict[str, Json]:
    return {
        "type": "integer",
        "minimum": least,
        "maximum": most,
        "description": about,
        "examples": [example],
    }


def _length(about: str, example: str) -> dict[str, Json]:
    return {**DURATION, "description": about, "examples": [example]}


def _words(about: str, example: str, most: int = 64, **more: Json) -> dict[str, Json]:
    item: dict[str, Json] = {"type": "string", "minLength": 1, "maxLength": 512, **more}
    return {
        "type": "array",
        "items": {**item, "examples": [example]},
        "maxItems": most,
        "description": about,
        "examples": [[example]],
    }


def _either(about: str, example: str, **more: Json) -> dict[str, Json]:
    """One word or a list of them."""
    item: dict[str, Json] = {"type": "string", "minLength": 1, "maxLength": 512, **more}
    return {
        "anyOf": [item, {"type": "array", "items": item, "maxItems": 64}],
        "description": about,
        "examples": [example],
    }


def _rule(about: str, example: str, *, time: bool = False) -> dict[str, Json]:
    what = "a length of time" if time else "a number"
    return {
        "type": "string",
        "maxLength": 100,
        # Editors read patterns as JavaScript does.
        "pattern": _TIME_RULE if time else _COUNT_RULE,
        "patternErrorMessage": f"is no rule: '<' or '>', {what}, and for how long",
        "description": about,
        "examples": [example],
    }


def _money(about: str, example: float) -> dict[str, Json]:
    return {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1e9,
        "description": about,
        "examples": [example],
    }


_CPU: Final[dict[str, Json]] = {
    "type": "number",
    "exclusiveMinimum": 0,
    "maximum": 100_000,
    "description": "Processors.",
    "examples": [4],
}

_RAM: Final[dict[str, Json]] = {**SIZE, "description": "Memory.", "examples": ["8G"]}

_SERVER: Final = _mapping(
    {
        "cpu": _CPU,
        "ram": _RAM,
        "disk": {**SIZE, "description": "Disk.", "examples": ["20G"]},
        "arch": {
            "enum": ["any", "x86_64", "arm64"],
            "default": "any",
            "description": "Kind of processor.",
        },
        "image": {
            "type": "string",
            "pattern": r"^[A-Za-z0-9][A-Za-z0-9._:/+-]{0,199}$",
            "patternErrorMessage": "is no name of an image",
            "default": "debian-12",
            "description": "System that it boots.",
            "examples": ["debian-12"],
        },
        "region": _either(
            "Regions as the vendors write them, their beginnings, or areas such as eu and us; "
            "anywhere if not said.",
            "eu",
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$",
            patternErrorMessage="is no region",
            examples=["eu"],
        ),
    },
    "cpu",
    "ram",
    description="What each machine is at least.",
    examples=[{"cpu": 4, "ram": "8G"}],
)

_DEMAND: Final[dict[str, Json]] = {
    "type": "array",
    "items": _mapping(
        {"cpu": _CPU, "ram": _RAM, "count": _whole(1, MAX_JOBS, "How many of them.", 10)},
        "cpu",
        "ram",
    ),
    "minItems": 1,
    "maxItems": 1000,
    "description": "Mixed work that is packed onto the machines that carry it for least.",
    "examples": [[{"cpu": 0.5, "ram": "1G", "count": 20}]],
}

_SIZES: Final = _mapping(
    {
        "min": _whole(0, MAX_MACHINES, "At least so many machines; 0 if not said.", 2),
        "max": _whole(1, MAX_MACHINES, "At most so many; as many as start if not said.", 12),
        "start": _whole(0, MAX_MACHINES, "So many at first; as many as min if not said.", 3),
    },
    description="How many machines.",
    examples=[{"min": 2, "max": 12}],
)

_PLACE: Final = _mapping(
    {
        "prefer": {
            "enum": ["cheapest"],
            "default": "cheapest",
            "description": "What is taken first.",
        },
        "spread": {
            "enum": ["none", "vendor", "region"],
            "default": "none",
            "description": "What they are spread over evenly.",
        },
        "at_least_vendors": _whole(1, 100, "From at least so many vendors.", 2),
    },
    description="Where they are taken from.",
    examples=[{"spread": "vendor"}],
)

_SCALE: Final = _mapping(
    {
        "op": _either(
            "Operations whose jobs are followed.", "/image/resize", examples=["/image/resize"]
        ),
        "waiting": _rule("Jobs that wait, to add machines.", "> 20 for 30s"),
        "p95": _rule(
            "Time that 95 of 100 jobs take at most, to add machines.", "> 400ms for 3m", time=True
        ),
        "add": _whole(1, MAX_MACHINES, "Machines that are added at once; 1 if not said.", 1),
        "remove_when": _mapping(
            {
                "waiting": _rule("Jobs that wait.", "< 1 for 15m"),
                "p95": _rule(
                    "Time that 95 of 100 jobs take at most.", "< 150ms for 15m", time=True
                ),
                "idle": _rule("Machines that run nothing.", "> 0 for 15m"),
            },
            description="One machine is removed when all of it holds.",
            examples=[{"p95": "< 150ms for 15m"}],
            minProperties=1,
        ),
        "cool": _length("Between two changes; 5m if not said.", "5m"),
        "schedule": {
            "type": "array",
            "items": _mapping(
                {
                    "cron": {
                        "type": "string",
                        "maxLength": 256,
                        "description": "When it begins, as five fields of cron.",
                        "examples": ["0 8 * * mon-fri"],
                    },
                    "zone": {
                        "type": "string",
                        "maxLength": 64,
                        "default": "UTC",
                        "description": "Time zone of it.",
                        "examples": ["Europe/Berlin"],
                    },
                    "for": _length("How long.", "10h"),
                    "size": _whole(0, MAX_MACHINES, "At least so many machines then.", 4),
                },
                "cron",
                "for",
                "size",
            ),
            "maxItems": 64,
            "description": "Times at which there are at least so many machines.",
            "examples": [[{"cron": "0 8 * * mon-fri", "for": "10h", "size": 4}]],
        },
        "consolidate": {
            "type": "string",
            "pattern": rf"^{_NUMBER}%$",
            "patternErrorMessage": "is no share",
            "description": "Replace a machine by a cheaper one if that saves so much.",
            "examples": ["15%"],
        },
    },
    description="When their number changes.",
    examples=[{"op": "/image/resize", "waiting": "> 20 for 30s"}],
)

_MONEY: Final = _mapping(
    {
        "max_per_hour": _money("All machines of the pool together, of an hour.", 0.6),
        "max_per_month": _money("All machines of the pool together, of a month.", 100),
        "currency": {
            "type": "string",
            "pattern": "^[A-Z]{3}$",
            "patternErrorMessage": "is no currency: three capital letters",
            "description": "Of the bounds; the home's if not said.",
            "examples": ["EUR"],
        },
        "label": {
            "type": "string",
            "pattern": "^[a-z0-9][a-z0-9._-]{0,62}$",
            "patternErrorMessage": "is no label: lower-case letters, digits, '-', '_' and '.'",
            "description": "What it is booked under besides the pool's name.",
            "examples": ["shop"],
        },
    },
    description="What may be spent.",
    examples=[{"max_per_hour": 0.6, "currency": "EUR"}],
)

_AGENTS: Final = _words(
    "Files of agents that run on each machine, from this file's folder; the machine agent if not "
    "said.",
    "worker.py",
    MAX_AGENTS,
)

_SENT: Final[dict[str, Json]] = {
    "type": "object",
    "maxProperties": MAX_AGENTS,
    "propertyNames": {"pattern": _FILE, "patternErrorMessage": "is no name of a file of Python"},
    "additionalProperties": {"type": "string", "maxLength": MAX_AGENT_BYTES},
    "description": "Name of an agent's file, and its content.",
}

_LIFE: Final[dict[str, Json]] = {
    "ttl": _length("A machine is replaced or returned after so long; 30d if not said.", "30d"),
    "on_down": {
        "enum": ["destroy", "freeze"],
        "default": "destroy",
        "description": "What `spinal pool down` does: freeze keeps an image of the disk.",
    },
    "self_test": _words(
        "Operations that each machine must answer before it counts.", "/machine/health"
    ),
    "agents": {},
    "packages": _words(
        "What pip installs for them.",
        "pillow>=10",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._, -]*\])?\s*([<>=!~][A-Za-z0-9.,<>=!~*+ -]*)?$",
        patternErrorMessage="is no package: a name, and perhaps versions",
    ),
    "join": _length(
        "A machine that has not joined and passed after so long is returned; 15m if not said.",
        "15m",
    ),
    "drain": _length(
        "A machine that goes may finish its jobs for so long; 10m if not said.", "10m"
    ),
    "ends": _length(
        "The pool itself goes down so long after it was made; never if not said.", "8h"
    ),
}
