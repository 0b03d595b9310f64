"""How jobs look: rows of tables, facts, and lines about what happens.

Pure: a job is the row that the dispatcher gives (docs/protocol.md), the time is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from .common import size, text

Row = Mapping[str, Any]

FINAL: Final = frozenset({"done", "error", "killed"})

#: Headings of a list of jobs.
HEADINGS: Final = (
    "id",
    "op",
    "state",
    "labels",
    "agent",
    "age",
    "wait/run",
    "tries",
    "note",
)
#: Those that a narrow terminal can do without, the least important first.
SPARE: Final = ("tries", "labels", "wait/run", "agent")
#: Space at both edges and between two columns, and what the last one gets at least.
EDGES: Final = 2
GAP: Final = 2
NOTE: Final = 20
#: Longest operation, label and agent that a terminal shows whole.
_CAPS: Final = {"op": 32, "labels": 20, "agent": 20}

#: Nothing in it.
NONE: Final = "-"


# Small words.


def moment(stamp: str) -> datetime:
    """Read a time as the dispatcher writes it."""
    return datetime.fromisoformat(stamp)


def span(seconds: float) -> str:
    """Write a duration in few characters: 120ms, 1.2s, 42s, 3m12s, 2h05m, 3d04h."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for unit, worth, part, below in (("m", 60, "s", 3600), ("h", 3600, "m", 86_400)):
        if whole < worth:
            break
        if whole < below:
            return f"{whole // worth}{unit}{whole % worth * 60 // worth:02}{part}"
    return f"{whole}s" if whole < 60 else f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"


def age(stamp: str, now: datetime) -> str:
    """Say how long ago that was, in one unit."""
    seconds = max(0.0, (now - moment(stamp)).total_seconds())
    for unit, worth in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * worth:
            return f"{seconds // worth:.0f}{unit}"
    return f"{seconds:.0f}s"


def clock(stamp: str, now: datetime) -> str:
    """Write a time for people here: with the day if that is not today."""
    local, today = moment(stamp).astimezone(), now.astimezone().date()
    return f"{local:%H:%M:%S}" if local.date() == today else f"{local:%Y-%m-%d %H:%M:%S}"


def name(agent: str) -> str:
    """Shorten an agent's address to its name, where that says it all."""
    local, at, rest = agent.partition("@")
    return local if at and rest.endswith("/agent") else agent


def one_line(words: str) -> str:
    """Make one line of a text."""
    return " ".join(words.split())


def share(progress: Row) -> str:
    """Write how far a job is: ``3/10 halfway``."""
    done, total = progress.get("done"), progress.get("total")
    words: list[str] = []
    if done is not None:
        words.append(f"{done:g}/{total:g}" if total else f"{done:g}")
    if progress.get("note"):
        words.append(one_line(progress["note"]))
    return " ".join(words)


def note(job: Row, now: datetime) -> str:
    """Say in a few words what there is to say about a job: why it waits, how far it is, its end."""
    if problem := job.get("problem"):
        return f"{problem['reason']}: {one_line(problem['text'])}"
    if job["state"] in FINAL:
        return ""
    if progress := share(job.get("progress", {})):
        return progress
    if children := job.get("children"):
        return ", ".join(f"{count} {state}" for state, count in children.items() if count)
    if job.get("held"):
        before = job.get("after", ())
        return f"after {before[0]}" if len(before) == 1 else f"after {len(before)} jobs"
    if "due" in job:
        return f"until {clock(job['due'], now)}"
    if job.get("offered") is False:
        return "nobody offers it now"
    return ""


# Lists.


def cells(job: Row, now: datetime) -> tuple[str, ...]:
    """Give a job as a row under :data:`HEADINGS`."""
    took = [span(job[part]) if part in job else NONE for part in ("wait", "run")]
    return (
        job["id"],
        job["op"],
        job["state"],
        " ".join(job.get("labels", ())) or NONE,
        job.get("agent") or NONE,
        age(job["created"], now),
        "/".join(took),
        str(job.get("attempt") or 0),
        note(job, now) or NONE,
    )


def fitted(
    rows: Sequence[Sequence[str]], headings: Sequence[str], width: int, spare: Sequence[str]
) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Give rows and headings of a table that is no wider than a terminal.

    Columns with nothing in them go first, then those that can be spared; the last one is cut to
    what is left.  Long operations, labels and agents are cut too.
    """
    shown = {
        heading: [_capped(heading, row[index]) for row in rows]
        for index, heading in enumerate(headings)
    }
    last = headings[-1]
    for heading in (*spare, last):
        # Of tries, one is no news.
        if all(cell in (NONE, f"{NONE}/{NONE}", "0", "1") for cell in shown[heading]):
            del shown[heading]

    def room() -> int:
        others = [heading for heading in shown if heading != last]
        return width - EDGES - sum(max(map(len, (h, *shown[h]))) + GAP for h in others)

    wanted = min(NOTE, max(map(len, (last, *shown[last])))) if last in shown else -GAP
    for heading in spare:
        if room() >= wanted:
            break
        shown.pop(heading, None)
    if last in shown:
        shown[last] = [cut(cell, max(room(), 8)) for cell in shown[last]]
    return list(zip(*shown.values(), strict=True)), tuple(shown)


def _capped(heading: str, cell: str) -> str:
    if heading == "agent":
        cell = name(cell)
    return cut(cell, _CAPS[heading]) if heading in _CAPS else cell


def cut(words: str, width: int) -> str:
    """Cut a text to a width, and show that it was cut."""
    return words if len(words) <= width else words[: width - 1] + "…"


# One job.


def facts(job: Row, now: datetime) -> Iterator[tuple[str, str]]:
    """Give what is known of a job as names and values, in order; a value may have several lines."""
    for label, read in _FACTS.items():
        found = read(job, now)
        if found:
            yield label, found


def _stamp(member: str) -> Callable[[Row, datetime], str]:
    def read(job: Row, now: datetime) -> str:
        if member not in job:
            return ""
        stamp = moment(job[member])
        far = abs((now - stamp).total_seconds())
        when = f"{span(far)} ago" if stamp <= now else f"in {span(far)}"
        return f"{stamp.astimezone():%Y-%m-%d %H:%M:%S} ({when})"

    return read


def _plain(member: str) -> Callable[[Row, datetime], str]:
    def read(job: Row, _: datetime) -> str:
        found = job.get(member)
        return "" if found is None or found == [] else _word(found)

    return read


def _span(member: str) -> Callable[[Row, datetime], str]:
    return lambda job, _: span(job[member]) if member in job else ""


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        words: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
        return " ".join(map(str, words))
    return str(value)


def _state(job: Row, now: datetime) -> str:
    said = note(job, now)
    return f"{job['state']} ({said})" if said and "problem" not in job else str(job["state"])


def _problem(job: Row, _: datetime) -> str:
    problem = job.get("problem")
    return f"{problem['reason']}: {problem['text']}" if problem else ""


def _before(job: Row, _: datetime) -> str:
    before: Sequence[str] = job.get("after", ())
    return f"{' '.join(before)} ({job.get('when', 'done')})" if before else ""


def _arguments(job: Row, _: datetime) -> str:
    args: Mapping[str, Any] = job.get("args", {})
    return "\n".join(f"{key} = {_value(value)}" for key, value in args.items())


def _value(value: Any) -> str:
    written = text(value)
    if isinstance(value, (dict, list)):
        written = json.dumps(json.loads(written), ensure_ascii=False)
    return cut(written, 2000)


def _result(job: Row, _: datetime) -> str:
    return _value(job["value"]) if job.get("value") is not None else ""


def _children(job: Row, _: datetime) -> str:
    counts: Mapping[str, int] = job.get("children", {})
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def _attempts(job: Row, now: datetime) -> str:
    return "\n".join(attempt(one, now) for one in job.get("attempts", ()))


def attempt(one: Row, now: datetime) -> str:
    """Write one attempt as a line."""
    words = [f"{one['number']}  {clock(one['began'], now)}  {one['agent']}"]
    if "ended" in one:
        took = (moment(one["ended"]) - moment(one["began"])).total_seconds()
        end = one.get("end") or "ended"
        words.append(f"{end} after {span(max(took, 0.0))}")
        if one.get("text"):
            words[-1] += f": {one_line(one['text'])}"
        if one.get("uncounted"):
            words.append("(not counted)")
    else:
        words.append("runs")
    return "  ".join(words)


_FACTS: Final[Mapping[str, Callable[[Row, datetime], str]]] = {
    "job": _plain("id"),
    "operation": _plain("op"),
    "state": _state,
    "problem": _problem,
    "progress": lambda job, _: share(job.get("progress", {})),
    "agent": _plain("agent"),
    "caller": _plain("caller"),
    "labels": _plain("labels"),
    "key": _plain("key"),
    "priority": lambda job, _: str(job["priority"]) if job.get("priority") else "",
    "kind": _plain("kind"),
    "children": _children,
    "parent": _plain("parent"),
    "position": _plain("position"),
    "origin": _plain("origin"),
    "after": _before,
    "created": _stamp("created"),
    "due": _stamp("due"),
    "started": _stamp("started"),
    "ended": _stamp("ended"),
    "gives up": lambda job, now: "" if "ended" in job else _stamp("ends")(job, now),
    "waited": _span("wait"),
    "ran": _span("run"),
    "CPU": _span("cpu"),
    "memory": lambda job, _: size(job["memory"]) if "memory" in job else "",
    "cost": lambda job, _: f"{job['cost']:.6f}" if "cost" in job else "",
    "attempts": _attempts,
    "arguments": _arguments,
    "value": _result,
}


# What happens.


def change(job: Row, now: datetime) -> str:
    """Write what became of a job as one line."""
    words = [f"{now.astimezone():%H:%M:%S}", job["id"], job["op"], *_happened(job, now)]
    return "  ".join(words)


def step(job: Row, now: datetime) -> str:
    """Write what became of a job as one line that leaves out which job that is."""
    return "  ".join([f"{now.astimezone():%H:%M:%S}", *_happened(job, now)])


def _happened(job: Row, now: datetime) -> Iterator[str]:
    yield job["state"]
    if job["state"] not in FINAL and job.get("agent"):
        number = job.get("attempt") or 1
        yield f"at {job['agent']}" + (f" (attempt {number})" if number > 1 else "")
    elif job["state"] in FINAL and "run" in job:
        yield f"ran {span(job['run'])}"
    if said := note(job, now):
        yield said


def log_line(line: Row, now: datetime) -> str:
    """Write a line of a job's log."""
    level = line.get("level", "info")
    words = [clock(line["at"], now)] if "at" in line else []
    if level != "info":
        words.append(f"{level}:")
    return " ".join([*words, line["text"]])


def utc_now() -> datetime:
    """Give the time."""
    return datetime.now(UTC)
