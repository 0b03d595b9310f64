"""From an answer to what a person reads.

Pure.  Short: a message has at most 15 lines, and says how many were left out.  What others wrote
(values, errors, names) is shown without the characters that would let it look like something else:
control characters, and those that turn the direction of writing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from spinal.bus import arguments
from spinal.protocols import Json, Problem, ProtocolError, is_reference, parse_reference

from .alerts import Batch, Gone
from .grammar import COMMANDS, MARK

#: Lines of a message, characters of a line, and characters of the whole.
LINES: Final = 15
WIDTH: Final = 240
TOTAL: Final = 2400
#: Agents that an alert names, and attempts of each of them.
NAMED: Final = 8
ATTEMPTS: Final = 3

#: Control characters but the end of a line and the tab; marks, embeddings and isolates of
#: direction; what is invisible; lone surrogates and what is no character.
MISLEADING: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\ufffe\uffff\U000e0000-\U000e007f]"
)
_JOB_ID: Final = re.compile("[0-9a-hjkmnp-tv-z]{20}")

#: Reason of a problem -> what to do next.
_NEXT: Final[Mapping[str, str]] = {
    "bad-arguments": "see {mark}ops {op}",
    "busy": "try again in a moment",
    "deadline": "try again later",
    "draining": "try again in a moment",
    "expired": "try again later",
    "full": "try again later",
    "no-agent": "see {mark}ops",
    "no-answer": "try again in a moment",
    "not-allowed": "ask an owner of this home",
    "too-large": "send less",
    "unknown-job": "give the id of a call of your own",
    "unknown-op": "see {mark}ops",
    "unreachable": "try again in a moment",
}

Row = Mapping[str, Any]


# -- small things


def clean(text: str) -> str:
    """Replace the characters that mislead, and ends of lines of any sort by that of Unix."""
    return MISLEADING.sub("\N{REPLACEMENT CHARACTER}", re.sub("\r\n?|\u2028|\u2029", "\n", text))


def one_line(text: str, width: int = WIDTH) -> str:
    """Give a text as one line of bounded length."""
    # Before it is cleaned as well, so that a megabyte costs no more than it has to.
    words = " ".join(clean(text[: 8 * width]).split())
    if len(words) <= width and len(text) <= 8 * width:
        return words
    return words[: width - 1].rstrip() + "…"


def cut(text: str, width: int = WIDTH) -> str:
    """Give a text as one line of bounded length, with the spaces that are in it."""
    line = clean(text[: 2 * width]).replace("\n", " ").replace("\t", "    ").rstrip()
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def fit(lines: Iterable[str], more: str = "lines", room: int = LINES, total: int = 0) -> str:
    """Give as many lines as a message takes, and say how many are left out.

    Args:
        lines: one line each, at least those that fit.
        more: what they are.
        room: most of them.
        total: how many there are, where that is more than are given.
    """
    every = [cut(line) for line in lines]
    total = max(total, len(every))
    kept: list[str] = []
    size = 0
    for line in every:
        size += len(line) + 1
        last = len(kept) + 1 == total
        if len(kept) + (not last) >= room or size > TOTAL:
            break
        kept.append(line)
    if len(kept) < total:
        kept.append(f"… and {total - len(kept)} more {more}")
    return "\n".join(kept)


def name(agent: str) -> str:
    """Shorten an agent's address to its name, where that says it all."""
    local, at, rest = agent.partition("@")
    return local if at and rest.endswith("/agent") else agent


def span(seconds: float) -> str:
    """Write a length of time in few characters."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def size(count: int) -> str:
    """Write a number of bytes."""
    number = float(count)
    for unit in ("B", "kB", "MB"):
        if number < 999.5:
            return (
                f"{number:.0f} {unit}" if unit == "B" or number >= 9.95 else f"{number:.1f} {unit}"
            )
        number /= 1000
    return f"{number:.1f} GB"


def _some(words: Sequence[str], total: int, most: int) -> str:
    """List words, and how many others there are."""
    shown = ", ".join(words[:most])
    rest = total - min(len(words), most)
    return f"{shown} and {rest} more" if rest else shown


# -- answers


def help(topic: str = "") -> str:
    """Say what can be asked for."""
    topic = topic.removeprefix(MARK).lower()
    command = COMMANDS.get(topic)
    if command is not None:
        return fit([command.usage, command.about, *_DETAILS.get(topic, ())])
    width = max(len(each.usage) for each in COMMANDS.values())
    lines = [f"{each.usage:{width}}  {each.about}" for each in COMMANDS.values()]
    if topic:
        lines.insert(0, f"There is no command {one_line(topic, 60)!r}.")
    return "\n".join([*lines, f"Here in private the {MARK} may be left out."])


_DETAILS: Final[Mapping[str, Sequence[str]]] = {
    "call": (
        f'{MARK}call /text/shout text="two words"  (quotes keep words together)',
        f"{MARK}call /math/sum numbers:='[1, 2]'  (:= takes JSON)",
        "What takes longer than a second is told when it ends; it goes on if you leave.",
    ),
    "why": ("It takes the id that a call was given.",),
    "ops": (f"{MARK}ops image  lists those with that word; {MARK}ops /image/resize  shows one.",),
}


def ops(rows: Sequence[Row], total: int, word: str = "") -> str:
    """List operations."""
    if not rows:
        return f"No operation has {one_line(word, 60)!r} in it." if word else "Nobody is there."
    return fit(
        (f"{row['op']}  {row['summary']}".rstrip() for row in rows), "operations", total=total
    )


def op(row: Row) -> str:
    """Show one operation: how to call it, and what it does."""
    takes = " ".join(arguments.usages(row["args"]))
    agents, timeout = row["agents"], span(float(row["timeout"]))
    lines = [
        f"{MARK}call {row['op']} {takes}".rstrip(),
        row["summary"],
        *(
            f"{key}: {part['description']}"
            for key, part in row["args"].get("properties", {}).items()
            if part.get("description")
        ),
        f"{row['effects']}, at most {timeout}, offered by {agents} agent{'' if agents == 1 else 's'}",
    ]
    return fit(line for line in lines if line)


def agents(rows: Sequence[Row], total: int, word: str = "") -> str:
    """List agents."""
    if not rows:
        return f"No agent has {one_line(word, 60)!r} in it." if word else "No agent is there."
    return fit(map(_agent, rows), "agents", total=total)


def _agent(row: Row) -> str:
    ops = list(row["ops"])
    offered = _some(ops, len(ops) + row.get("ops_left_out", 0), 4) if ops else "no operations"
    return f"{name(row['agent'])}  {row['state']}  {row['busy']}/{row['slots']}  {offered}"


def started(op: str, id: str) -> str:
    """Say that a call takes longer."""
    return f"{one_line(op)} is running, id {id}. Its result comes here; {MARK}why {id} tells more."


def ended(row: Row) -> str:
    """Say what became of a call."""
    id, took = row["id"], span(row["run"]) if "run" in row else ""
    by = " ".join(filter(None, [took, f"on {name(row['agent'])}" if row.get("agent") else ""]))
    if row["state"] == "done":
        head = one_line(f"done{': ' if by else ''}{by}, id {id}")
        if "value" in row.get("large", ()):
            return f"{head}\nThe result is too large for a chat: spinal job get {id}"
        return "\n".join(filter(None, [head, value(row.get("value"))]))
    if row["state"] == "killed":
        return f"it was cancelled, id {id}"
    said = row.get("problem") or {"reason": "failed", "text": "no reason was given"}
    told = _told(said["reason"], said["text"], row["op"])
    return one_line(f"{told}; {MARK}why {id}" if said["reason"] not in _NEXT else told, 500)


def value(found: Json) -> str:
    """Show the value of an operation."""
    if found is None:
        return ""
    if isinstance(found, str):
        return fit(clean(found[: 64 * 1024]).strip().split("\n"), room=LINES - 1)
    if is_reference(found):
        try:
            blob = parse_reference(found)
        except ProtocolError as exc:
            return one_line(f"a file that cannot be had: {exc}")
        return f"{blob.url}  ({size(blob.size)}, {one_line(blob.media_type, 80)})"
    inside: Any = found
    if isinstance(found, dict) and not any(_nested(one) for one in inside.values()):
        return fit((f"{key}: {_scalar(one)}" for key, one in inside.items()), room=LINES - 1)
    if isinstance(found, list) and all(isinstance(one, str) for one in inside):
        return fit(inside, "items", room=LINES - 1)
    return fit(json.dumps(found, ensure_ascii=False, indent=1).split("\n"), room=LINES - 1)


def _nested(found: Json) -> bool:
    return isinstance(found, (dict, list))


def _scalar(found: Json) -> str:
    return found if isinstance(found, str) else json.dumps(found)


def why(lines: Sequence[str]) -> str:
    """Tell the story of a call: of one that is too long, how it began and how it ended."""
    if len(lines) <= LINES:
        return fit(lines)
    head, tail = lines[:4], lines[-(LINES - 5) :]
    return fit([*head, f"… {len(lines) - len(head) - len(tail)} lines …", *tail])


def problem(said: Problem, op: str = "") -> str:
    """Say in one line what is wrong, and what to do next."""
    return _told(said.reason, said.text, op)


def _told(reason: str, text: str, op: str) -> str:
    words = one_line(text, 400).rstrip(".")
    after = _NEXT.get(reason, "").format(mark=MARK, op=one_line(op, 120)).rstrip()
    # What the text says already need not be said twice.
    said = not after or any(hint in words for hint in (after, "did you mean", "it takes "))
    return f"{reason}: {words}" if said else f"{reason}: {words}; {after}"


# -- alerts


def alert(batch: Batch) -> str:
    """Tell which agents died, and which are back."""
    lines: list[str] = []
    dead = len(batch.gone) + batch.more
    if dead == 1 and batch.gone:
        lines += _one_dead(batch.gone[0])
    elif dead:
        names = [name(one.agent) for one in batch.gone]
        named = f": {_some(names, dead, NAMED)}" if names else ""
        lines.append(f"{dead} agents died{named}.")
        busy = [one for one in batch.gone if one.in_flight]
        if busy:
            calls = sum(one.in_flight for one in busy)
            lines.append(f"{len(busy)} of them were running {calls} calls, such as:")
            lines += [f"{name(one.agent)}: {_running(one)}" for one in busy[:NAMED]]
    if dead:
        lines.append(f"{MARK}agents shows who is there.")
    if len(batch.back) == 1:
        agent, seconds = batch.back[0]
        lines.append(f"Agent {name(agent)} is back after {span(seconds)}.")
    elif batch.back:
        names = [name(agent) for agent, _ in batch.back]
        lines.append(f"{len(names)} agents are back: {_some(names, len(names), NAMED)}.")
    if batch.restless:
        names = [f"{name(agent)} ({count} times)" for agent, count in batch.restless]
        lines.append(f"Coming and going: {_some(names, len(names), NAMED)}.")
    return fit(lines)


def _one_dead(one: Gone) -> list[str]:
    lines = [f"Agent {name(one.agent)} died ({one.why})."]
    if one.in_flight:
        lines.append(f"It was running {_running(one)}.")
    jobs = [each["id"] for each in one.running if _JOB_ID.fullmatch(str(each["id"]))]
    if jobs:
        lines.append(f"{MARK}why {jobs[0]} says what becomes of it.")
    return lines


def _running(one: Gone) -> str:
    words = [
        f"{each['op']} {each['id']}" if _JOB_ID.fullmatch(str(each["id"])) else str(each["op"])
        for each in one.running
    ]
    return _some(words, one.in_flight, ATTEMPTS)
