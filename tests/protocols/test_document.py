"""docs/protocol.md says what the code does.

``PYTHONPATH=src python -m tests.protocols.test_document`` writes the generated tables anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from xml.etree.ElementTree import Element, fromstring

import pytest

from spinal.agents import Agent
from spinal.agents.group import PATIENCE as GROUP
from spinal.agents.life import DRAIN, HEARTBEAT, PAUSE, TAKE_WITHIN, Life
from spinal.bus import Client, commands
from spinal.bus.calls import PATIENCE
from spinal.bus.link import ACK_DELAY, INSIST, RESEND
from spinal.bus.requests import ANSWER_WINDOW, BATCH_WINDOW, KEEP, LATE_BY, MAX_PAUSE
from spinal.bus.requests import Request as REQUEST
from spinal.bus.session import GRACE
from spinal.bus.visible import FEATURES as _NAMES
from spinal.dispatcher import Dispatcher
from spinal.dispatcher.agent import (
    LEASE,
    LOAD_STEP,
    MAX_PREFETCH,
    PREFETCH,
    REPORT_AGE,
    SUSPECT_AFTER,
)
from spinal.dispatcher.broker import MARGIN, MAX_MARGIN
from spinal.dispatcher.catalogue import OWN
from spinal.dispatcher.jobs.job import DEADLINE, Job, JobState, Try
from spinal.dispatcher.jobs.operations import JOB_OPERATIONS
from spinal.dispatcher.jobs.rows import row
from spinal.dispatcher.jobs.submission import _READS as _SUBMISSION  # pyright: ignore[reportPrivateUsage]
from spinal.dispatcher.listing import MAX_ROWS
from spinal.dispatcher.many import MARGIN as ALL_PART
from spinal.dispatcher.many import MAX_MARGIN as ALL_MARGIN
from spinal.dispatcher.many import MAX_TARGETS, RUNNERS
from spinal.dispatcher.placing.operations import POLICIES as DEPLOYED
from spinal.dispatcher.placing.operations import SERVICE_OPERATIONS, placement_row
from spinal.dispatcher.placing.operations import row as service_row
from spinal.dispatcher.placing.placer import MAX_ARGUMENTS
from spinal.dispatcher.placing.service import MAX_HISTORY, Placement, Service
from spinal.dispatcher.placing.service import State as ServiceState
from spinal.dispatcher.policies import POLICY_KEYS
from spinal.dispatcher.queue import AGEING, MAX_BYTES, MAX_WAITING, TOP
from spinal.dispatcher.resolver import RULES
from spinal.dispatcher.retry import MOST_LOST, MOVE_AFTER, forgotten_for
from spinal.dispatcher.roles import RIGHTS, Right
from spinal.dispatcher.service import DESCRIBE_PAUSE, DESCRIBE_TIMEOUT, DESCRIBE_TRIES, SETTLE
from spinal.dispatcher.tap import HOLD, RENEW
from spinal.protocols import (
    BOUNCES,
    EVENTS,
    FEATURES,
    LIMITS,
    NS,
    POLICIES,
    REASONS,
    TRANSITIONS,
    VERSION,
    Ack,
    Advertisement,
    CallEvent,
    Cancel,
    Capabilities,
    Codec,
    Describe,
    Description,
    Event,
    Exchange,
    Json,
    Operation,
    Problem,
    RemoteProtocolError,
    RetryPolicy,
    Speaker,
    Stanza,
    State,
    Want,
    discovery,
)
from spinal.protocols.capabilities import MAX_OPERATIONS
from spinal.protocols.discovery import Info, Item
from spinal.protocols.events import AGENT_STATES, MAX_LEFT
from spinal.protocols.forms import MAX_FIELDS, MAX_OPTIONS, Form, result
from spinal.protocols.path import MAX_PARTS, MAX_PATH
from spinal.protocols.retry import USUAL
from spinal.testing import MemoryBus, eventually, virtual_time

from .page import PAGE, sections, table, words

CALLER_SAYS = frozenset({"op", "cancel", "ack"})


#: What is told in a default.
CANCEL = Cancel("c1").left / 1000
TIMEOUT = Operation("/a").timeout


# -- the generated tables


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _exchange() -> str:
    """Give the transitions as a matrix: who says what, and where it leads from each state."""
    said = dict.fromkeys(key for rows in TRANSITIONS.values() for key in rows)
    rows = (
        [
            f"{speaker.value} says `{event}`",
            *(
                f"`{after.value}`" if (after := TRANSITIONS[state].get((speaker, event))) else "-"
                for state in State
            ),
        ]
        for speaker, event in sorted(said, key=lambda key: key[0] is Speaker.AGENT)
    )
    return _table(["In state", *(f"`{state.value}`" for state in State)], rows)


def _reasons() -> str:
    rows = (
        [
            f"`{reason}`",
            m.type,
            m.condition,
            m.ran.value,
            m.again.value,
            m.text,
        ]
        for reason, m in REASONS.items()
    )
    return _table(["Reason", "Type", "Condition", "Ran", "Again", "Text"], rows)


def _bounces() -> str:
    rows = ([condition, f"`{reason}`"] for condition, reason in BOUNCES.items())
    return _table(["Condition", "Read as"], rows)


def _span(seconds: float) -> str:
    """Write a time as the page does."""
    for unit, name in ((86_400, "days"), (60, "minutes")):
        if seconds > unit and seconds % unit == 0:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"


_FIRST = REQUEST.pause
AGAIN = f"{_FIRST:g} s, then {2 * _FIRST:g}, {4 * _FIRST:g}, ... at most {_span(MAX_PAUSE)}"

#: What happens when, and the section that says so.
TIMES: Sequence[tuple[str, str, str]] = (
    ("the longest `left`", _span(MAX_LEFT / 1000), "5 op"),
    ("an agent answers the stanza of one op, after at most", _span(ANSWER_WINDOW), "6.2"),
    ("and that of a batch, after its first answer", _span(BATCH_WINDOW), "6.8"),
    ("a caller says an op again whose stanza is not answered, after", _span(RESEND), "6.6"),
    ("an id is remembered after the deadline of its op, for", _span(LATE_BY), "3"),
    ("a final is acknowledged, within", _span(1.0), "6.2"),
    ("an ack or a cancel that is not answered is said again, for", _span(INSIST), "6.6"),
    (
        "a kept final is said again, after pauses of",
        AGAIN,
        "6.6",
    ),
    ("and is dropped after the deadline of its call, after", _span(KEEP), "6.6"),
    ("an unknown id that is cancelled without `left` is remembered for", _span(CANCEL), "5 cancel"),
    ("items of a group that are ready wait for the others, for", _span(GROUP), "6.9"),
    ("a caller that is gone has its calls cancelled, after", _span(GRACE), "7"),
    (
        "a call whose agent is gone is lost, after",
        f"{_span(PATIENCE)}, or as its caller likes",
        "7",
    ),
    ("a final for a dispatcher that is gone goes to another one, after", _span(GRACE), "6.6"),
    ("an agent advertises at least every", f"{_span(HEARTBEAT)}, and a tenth more or less", "7"),
    ("and no sooner again than after", _span(PAUSE), "7"),
    ("an agent that shuts down gives what runs", _span(DRAIN), "7"),
    ("and then the acknowledgements", _span(TAKE_WITHIN), "7"),
    ("an agent that has said nothing is suspect, after", _span(SUSPECT_AFTER), "16.5"),
    ("and forgotten, with its attempts, after", _span(LEASE), "16.5"),
    ("an attempt that was sent before an advertisement is in it, if by", _span(REPORT_AGE), "6.6"),
    ("an attempt that may run twice is lost, its agent gone for", _span(MOVE_AFTER), "16.2"),
    (
        "one that may not, and that its agent does not hold, after",
        _span(forgotten_for(may_rerun=False, lease=LEASE)),
        "16.2",
    ),
    ("a dispatcher waits for what it does not know yet, after its start", _span(SETTLE), "16.4"),
    ("a description is asked of another agent, after", _span(DESCRIBE_TIMEOUT), "16.5"),
    ("and again of all, after", _span(DESCRIBE_PAUSE), "16.5"),
    ("a call that waits rises by one level, every", _span(AGEING), "16.4"),
    ("and hears before its deadline that nobody was free, by", _span(MAX_MARGIN), "16.4"),
    ("`all` answers before its deadline, by", _span(ALL_MARGIN), "16.3"),
    ("short calls wait at an agent, as much work as", _span(PREFETCH), "16.3"),
    ("a dispatcher with a tap says `mirror`, every", _span(RENEW), "16.1"),
    ("an operation has, if its description does not say", _span(TIMEOUT), "8"),
    ("a job has, if its caller does not say", _span(DEADLINE), "15.2"),
    (
        "a job is tried again, if nobody says, after pauses of up to",
        f"{RetryPolicy().backoff:g} s, doubled each time, at most {_span(RetryPolicy().most)}",
        "15.3",
    ),
)


def _times() -> str:
    rows = ([what, time, section.partition(" ")[0]] for what, time, section in TIMES)
    return _table(["What", "Time", "Section"], rows)


def test_every_time_is_in_the_section_that_it_is_said_to_be_of() -> None:
    # In the tables of section 15, numbers are seconds, and in that of `op` milliseconds.
    plain = {"366 days": "31622400000", "60 minutes": "`3600`", "1 s": "once a second"}
    for what, time, section in TIMES:
        title = section.partition(" ")[2] or section
        (text,) = [
            text
            for name, text in sections(PAGE.read_text()).items()
            if name == title or name.split(" ")[0].rstrip(".") == title
        ]
        for number, unit in re.findall(r"([\d.]+) (ms|s|minutes|days)\b", time):
            said = f"{number} {unit}"
            forms = (said, plain.get(said, said), f"`{number}`", f"`{number}.0`", f"`{number}000`")
            found = "|".join(map(re.escape, forms))
            assert re.search(rf"(?<![\d.])(?:{found})", text), (what, said, section)


def test_acknowledgements_wait_for_no_longer_than_they_may() -> None:
    assert ACK_DELAY < 1.0


GENERATED = {"exchange": _exchange, "reasons": _reasons, "bounces": _bounces, "times": _times}


def fresh(page: str) -> str:
    """Give the page with its generated tables as they should be."""
    for name, make in GENERATED.items():
        start, end = f"<!-- generated: {name} -->\n", "\n<!-- end -->"
        head, found, rest = page.partition(start)
        _, closed, tail = rest.partition(end)
        assert found and closed, f"docs/protocol.md has no place for the table '{name}'"
        page = head + start + make() + end + tail
    return page


def test_the_generated_tables_are_those_of_the_code() -> None:
    page = PAGE.read_text()

    assert page == fresh(page), "run PYTHONPATH=src python -m tests.protocols.test_document"


# -- the worked stanzas


def _stanzas(text: str) -> Iterator[Element]:
    for block in re.findall(r"```xml\n(.*?)```", text, re.DOTALL):
        yield from fromstring(f"<stream xmlns='jabber:client'>{block}</stream>")


def _sections() -> Mapping[str, list[Stanza]]:
    chunks = re.split(r"^##+ (.*)$", PAGE.read_text(), flags=re.MULTILINE)
    found = {
        title: [Codec.decode(element) for element in _stanzas(text)]
        for title, text in zip(chunks[1::2], chunks[2::2], strict=True)
    }
    return {title: stanzas for title, stanzas in found.items() if stanzas}


SECTIONS = _sections()


def _events(stanzas: Sequence[Stanza]) -> Iterator[Event]:
    for stanza in stanzas:
        if stanza.body is not None:
            yield from Codec().read(stanza.body)


@pytest.mark.parametrize("title", SECTIONS)
def test_every_worked_stanza_is_read_and_nothing_in_it_is_unknown(title: str) -> None:
    for stanza in SECTIONS[title]:
        assert stanza.kind in ("iq", "message", "presence")
        assert (stanza.problem is not None) == (stanza.type == "error")
        assert stanza.problem is None or stanza.problem.reason in REASONS
        if stanza.body is not None:
            events = Codec().read(stanza.body)
            raw: list[Mapping[str, Json]] = json.loads(stanza.body)
            assert len(events) == len(raw) > 0
            for event, members in zip(events, raw, strict=True):
                must: list[str] = list(members.get("must", ()))
                assert set(members) <= {"type", *event.reads, *must}


@pytest.mark.parametrize("title", SECTIONS)
def test_every_worked_conversation_keeps_to_the_table(title: str) -> None:
    ends: dict[tuple[str, int], tuple[Exchange, Exchange]] = {}
    for event in _events(SECTIONS[title]):
        if not isinstance(event, CallEvent):
            continue
        caller, agent = ends.setdefault(
            event.exchange, (Exchange(Speaker.CALLER), Exchange(Speaker.AGENT))
        )
        if caller.state is State.NEW and event.type in ("cancel", "cancelled"):
            # Overtook its op: makes no exchange.
            continue
        speaker, hearer = (caller, agent) if event.type in CALLER_SAYS else (agent, caller)
        speaker.say(event.type)
        hearer.hear(event.type)


def test_every_iq_result_with_events_answers_ops_of_its_iq_and_every_op_is_answered() -> None:
    for stanzas in SECTIONS.values():
        asked = {s.id: s for s in stanzas if s.kind == "iq" and s.type == "set"}
        for answer in stanzas:
            if answer.type == "result" and answer.id in asked and answer.body is not None:
                ids = {e.id for e in _events([asked[answer.id]]) if isinstance(e, CallEvent)}
                told = {e.id for e in _events([answer]) if isinstance(e, CallEvent)}
                acked = {e.id for e in _events([asked[answer.id]]) if isinstance(e, Ack)}
                assert told == ids - acked


def test_the_worked_descriptions_have_the_hashes_that_were_advertised() -> None:
    events = [event for stanzas in SECTIONS.values() for event in _events(stanzas)]
    advertised = {e.hash for e in events if isinstance(e, Advertisement)}
    asked = {e.hash for e in events if isinstance(e, Describe)}
    told = [e for e in events if isinstance(e, Description)]

    found = [Capabilities.parse(one.text, one.hash) for one in told]

    assert asked == {one.hash for one in told} == advertised
    assert [[*one.operations] for one in found] == [["/echo"], ["/image/resize"]]
    assert all(operation.safe for one in found for operation in one.operations.values())


# -- the tables of members


def _rows(text: str) -> list[list[str]]:
    """Give the cells of the first table in a text, without its head."""
    table = text[text.index("\n|") + 1 :].partition("\n\n")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def _default(value: object) -> str:
    if value is MISSING:
        return "required"
    if isinstance(value, tuple):
        return "`[]`"
    return f"`{json.dumps(value)}`"


def _members(cls: type[Event | Operation | Want]) -> dict[str, str]:
    return {
        field.name: _default(
            field.default_factory() if field.default_factory is not MISSING else field.default
        )
        for field in fields(cls)
    }


def _nulls(shown: Mapping[str, str]) -> dict[str, str]:
    return {name: "`null`" if default == "absent" else default for name, default in shown.items()}


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_has_a_table_with_its_members_and_defaults(name: str) -> None:
    (text,) = re.findall(rf"^### {name}$(.*?)^##", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    shown = {cells[0].strip("`"): cells[2] for cells in _rows(text)}

    expected = _members(EVENTS[name])

    assert _nulls(shown) == expected
    assert list(shown) == list(EVENTS[name].reads), "in the order of the code"


def test_the_members_of_want_are_those_of_the_code() -> None:
    (text,) = re.findall(r"^\| Member of `want`.*?\n\n", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    shown = {cells[0].strip("`"): cells[2] for cells in _rows("\n" + text)}

    assert shown == _members(Want)


def test_the_members_of_an_operation_are_those_of_the_code() -> None:
    (text,) = re.findall(
        r"An operation has these members:(.*?)^###", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    shown = {cells[0].strip("`"): cells[2] for cells in _rows(text)}

    assert {"path": "required", **_nulls(shown)} == _members(Operation)


def test_the_features_are_those_of_the_code() -> None:
    (text,) = re.findall(
        r"a peer that has said nothing has none(.*?)^##", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )

    assert {cells[0].strip("`") for cells in _rows(text)} == FEATURES


def test_the_limits_are_those_of_the_code() -> None:
    (text,) = re.findall(r"^## 11. Limits$(.*?)^##", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    shown = [int(cells[1]) for cells in _rows(text)]

    assert shown == [
        LIMITS.stanza,
        LIMITS.receive,
        LIMITS.inline,
        LIMITS.depth,
        LIMITS.events,
        LIMITS.members,
        MAX_OPERATIONS,
        MAX_PARTS,
        MAX_PATH,
    ]


# -- jobs


def _section(title: str) -> str:
    (text,) = re.findall(
        rf"^### 15\.\d {title}$(.*?)(?:^##|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return str(text)


def _words(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]*)`", cell))


def test_the_operations_for_jobs_are_those_of_the_dispatcher_with_their_arguments() -> None:
    shown = {cells[0].strip("`"): _words(cells[1]) for cells in _rows(_section("Operations"))}
    shown["/spinal/dead/list"] |= shown["/spinal/jobs/list"]

    assert list(shown) == list(JOB_OPERATIONS)
    for path, operation in JOB_OPERATIONS.items():
        assert set(operation.reads) <= shown[path], path


def test_the_arguments_of_a_submission_are_those_that_the_dispatcher_reads() -> None:
    rows = _rows(_section("Submission"))

    assert {word for cells in rows for word in _words(cells[0])} == set(_SUBMISSION)


def test_the_members_of_a_retry_policy_are_those_of_the_code() -> None:
    shown = {cells[0].strip("`"): cells[2] for cells in _rows(_section("Retries"))}

    assert list(shown) == list(RetryPolicy.MEMBERS)
    assert shown == {
        "count": "required",
        "backoff": f"`{RetryPolicy().backoff:g}`",
        "most": f"`{RetryPolicy().most:g}`",
        "on": f"`{json.dumps(sorted(USUAL))}`",
        "elsewhere": "`false`",
    }


def test_the_members_of_a_job_are_those_that_the_dispatcher_gives() -> None:
    found: set[str] = set()
    for state in (JobState.WAITING, JobState.DONE):
        job = Job(
            id="1",
            caller="ann@example.org",
            op="/a",
            created=1,
            args={"a": 1},
            key="k",
            labels=["x"],
            after=["2"],
            kind="map",
            parent="3",
            position=0,
            origin="retry:4",
            state=state,
            due=1,
            held=True,
            ends=1,
            attempt=1,
            tries=[Try(number=1, agent="a", epoch=1, began=1)],
            started=1,
            ended=1,
            agent="a",
            value=1,
            problem=Problem("failed"),
            ran=1,
            cpu=1,
            memory=1,
            cost=1.0,
            looked=True,
        )
        counts = {JobState.DONE: 1}
        found |= set(row(job, whole=True, progress={"done": 1}, children=counts, offered=False))
    shown = {word for cells in _rows(_section("A job on the wire")) for word in _words(cells[0])}

    assert shown == found | {"large"}


def test_the_operations_for_services_are_those_of_the_dispatcher_with_their_arguments() -> None:
    text = _section("Services")
    shown = {cells[0].strip("`"): _words(cells[1]) for cells in table(text, "Operation")}

    assert list(shown) == list(SERVICE_OPERATIONS)
    for path, operation in SERVICE_OPERATIONS.items():
        assert set(operation.reads) <= shown[path], path
    assert f"at most {MAX_ARGUMENTS // 1024} KiB" in text
    assert f"its last {MAX_HISTORY} placements" in text
    (policies,) = re.findall(r"`policy` \(([^)]*)\)", text)
    assert _words(policies) == set(DEPLOYED)


def test_the_members_of_a_service_are_those_that_the_dispatcher_gives() -> None:
    rows = table(_section("Services"), "Member")
    placement = Placement(
        generation=1, job="1", began=1, why="w", agent="a", ended=2, problem="no room"
    )
    service = Service(
        name="shop",
        caller="ann@example.org",
        want={"place": {"site": "/eu"}, "tags": ["ssd"], "policy": "cheapest"},
        created=1,
        since=1,
        state=ServiceState.UNPLACED,
        agent="a",
        running=1,
        result={"port": 1},
        left={"b": 1},
        due=1,
        history=(placement,),
    )
    shown = {word for cells in rows for word in _words(cells[0])}

    assert shown == {*service_row(service, "why not"), "history", "why", "arguments"}
    (history,) = [cells[1] for cells in rows if cells[0] == "`history`"]
    assert _words(history) == set(placement_row(placement))
    (states,) = [cells[1] for cells in rows if cells[0].startswith("`name`")]
    assert _words(states) - {"state"} == {state.value for state in ServiceState}


# -- dispatchers


def _shown(number: str, head: str) -> dict[str, list[str]]:
    """Give the rows of a table of section 16 by their first cell."""
    (found,) = [text for title, text in sections(PAGE.read_text()).items() if title[:4] == number]
    return {cells[0].strip("`"): cells[1:] for cells in table(found, head)}


def test_the_operations_of_a_dispatcher_are_those_of_the_code_with_their_arguments() -> None:
    shown = _shown("16.1", "Operation")

    assert list(shown) == list(OWN)
    for path, (arguments, _) in shown.items():
        said = {word for word in words(arguments) if word not in ("want", "window")}
        assert said == set(OWN[path].reads), path


@virtual_time
async def test_what_a_dispatcher_answers_has_the_members_that_the_page_names() -> None:
    shown = {path: set(words(gives)) for path, (_, gives) in _shown("16.1", "Operation").items()}
    bus = MemoryBus("example.org")
    address = "dispatcher@example.org/a"
    roles = {"ann@example.org": "owner", "thumbs@example.org": "agent"}
    agent = Agent("thumbs", slots=1, place="/eu")

    @agent.op("/count", effects="reads", retry=3)
    async def count() -> int:
        return 3

    async with (
        Dispatcher(bus.connection(address), roles=roles, accounts=lambda: roles) as dispatcher,
        Life(agent, bus.connection("thumbs@example.org/1"), dispatchers=[address]),
        Client(connection=bus.connection("ann@example.org/desk"), dispatchers=[address]) as ann,
    ):
        await eventually(lambda: dispatcher.registry.count("/count"))
        agents = await ann.ask_dispatcher("/spinal/agents")
        ops = await ann.ask_dispatcher("/spinal/ops")
        op = await ann.ask_dispatcher("/spinal/op", op="/count")
        far = await ann.ask_dispatcher("/spinal/resolve", op="/count", place={"site": "/us"})
        near = await ann.ask_dispatcher("/spinal/resolve", op="/count")
        status = await ann.ask_dispatcher("/spinal/status")
        accounts = await ann.ask_dispatcher("/spinal/accounts")

    for path, page in (("/spinal/agents", agents), ("/spinal/ops", ops)):
        assert sorted(page) == ["items", "more", "total"]
        assert '{"items", "more", "total"}' in shown[path]
    assert shown["/spinal/agents"] == {
        *agents["items"][0],
        '{"items", "more", "total"}',
        "held",
        "ops_left_out",
    }
    assert sorted(accounts) == ["items", "more", "total"]
    assert shown["/spinal/accounts"] == {*accounts["items"][0], '{"items", "more", "total"}'}
    assert ops["items"] == [op]
    assert shown["/spinal/op"] == {*op, "left_out"}
    assert shown["/spinal/resolve"] == {*near, *near["candidates"][0], *far["rejected"][0]}
    assert shown["/spinal/status"] == set(status)


def test_the_rules_by_which_an_agent_is_chosen_are_those_of_the_code() -> None:
    shown = _shown("16.3", "Rule")

    assert [(name, cells[1] == "yes") for name, cells in shown.items()] == [
        (rule.name, rule.later) for rule in RULES
    ]


def test_the_policies_are_those_of_the_code() -> None:
    assert list(_shown("16.3", "Policy")) == list(POLICY_KEYS) == list(POLICIES)


def test_the_numbers_of_a_dispatcher_are_those_of_the_code() -> None:
    text = "".join(text for name, text in sections(PAGE.read_text()).items() if name[:3] == "16.")

    for said in (
        f"At most {MAX_WAITING} calls wait, with at most {MAX_BYTES // 2**20} MiB",
        f"up to {TOP}.",
        f"fewer than {MOST_LOST} agents were lost",
        f"more than {MAX_TARGETS} are `too-large`",
        f"steps of {LOAD_STEP:g},",
        f"at most {MAX_PREFETCH}.",
        f"at most {MAX_ROWS};",
        f"`seconds` {HOLD:g} to every agent",
    ):
        assert said in text, said
    assert RUNNERS == 3 and "the first three at once" in text
    assert DESCRIBE_TRIES == 3 and "after three have not" in text
    assert MARGIN == 1 / 20 and "a twentieth of its time" in text
    assert ALL_PART == 1 / 10 and "a tenth of its time before" in text


def test_the_rights_of_the_roles_are_those_of_the_code() -> None:
    rights = (Right.CALL, Right.ADVERTISE, Right.WATCH, Right.WATCH, Right.RELAY)

    assert _shown("16.6", "Role") == {
        role: ["yes" if right in has else "no" for right in rights] for role, has in RIGHTS.items()
    }


# -- what ordinary tools see


(_TOOLS,) = re.findall(
    r"^## 17. What ordinary tools see$(.*?)^##", PAGE.read_text(), re.MULTILINE | re.DOTALL
)
_SHOWN = [stanza for stanza in _stanzas(_TOOLS)]


def _child(kind: str, id: str, name: str) -> Element:
    (found,) = (
        child
        for stanza in _SHOWN
        if (stanza.get("type"), stanza.get("id")) == (kind, id)
        for child in stanza
        if child.tag.endswith(f"}}{name}")
    )
    return found


def _told(element: Element) -> object:
    """Give an element without the space between what is in it."""
    text = "" if len(element) else element.text or ""
    return (element.tag, element.attrib, text, [_told(child) for child in element])


def _described() -> Capabilities:
    (text,) = re.findall(r"```json\n(.*?)\n```", _TOOLS, re.DOTALL)
    return Capabilities.parse(text, Capabilities(text, {}).hash)


def test_what_the_worked_agent_says_of_itself_is_what_the_code_says() -> None:
    described = _described()
    (caps,) = (child for stanza in _SHOWN for child in stanza if child.tag.endswith("}c"))
    form = {
        "hash": described.hash,
        "version": VERSION,
        "features": ["batch", "cancel", "finals", "holds", "stream"],
    }
    info = Info("client", "bot", "thumbs", _NAMES, form)

    node = f"{NS}#{caps.get('ver')}"
    assert _told(_child("result", "p1", "query")) == _told(info.element(node))
    assert _child("get", "p1", "query").get("node") == node
    assert _told(fromstring(discovery.caps(info.ver))) == _told(caps)


def test_the_worked_list_and_form_are_those_of_the_description() -> None:
    described = _described()

    def item(path: str) -> Item:
        return Item("thumbs@example.org/1", path, described.operations[path].summary)

    listed = discovery.items(_child("get", "p2", "query"), sorted(described.operations), item)
    form = Form.of(described.operations["/image/find"])
    assert form is not None and Form.of(described.operations["/image/resize"]) is None
    assert _told(_child("result", "p2", "query")) == _told(listed)
    assert _told(_child("result", "p3", "command")[-1]) == _told(form.element())


def test_the_worked_submission_is_read_as_the_page_says() -> None:
    form = Form.of(_described().operations["/image/find"])
    assert form is not None
    (said,) = re.findall(r"The operation was run with `(.*?)`", _TOOLS)
    filled = _child("set", "p4", "command")[0]

    assert form.read(filled) == json.loads(said)
    note, done = _child("result", "p4", "command")
    assert _told(done) == _told(result(json.loads(note.text or "")))
    filled.remove(filled[0])
    with pytest.raises(RemoteProtocolError) as refused:
        form.read(filled)
    assert Codec.decode(_SHOWN[-1]).problem == replace(refused.value.problem, argument=None)


def test_the_limits_of_forms_and_commands_are_those_of_the_code() -> None:
    for said in (
        f"at most {discovery.ROOM} bytes of items",
        f"one line of at most {discovery.MAX_NAME} characters",
        f"at most {MAX_FIELDS} fields, a field at most {MAX_OPTIONS} options",
        f"what is submitted at most {LIMITS.inline} bytes",
        f"gives the command {commands.MAX_SECONDS:g} s",
        f"{commands.MAX_EACH} commands run at once for one account and {commands.MAX_RUNNING} for",
        f"`sessionid` of more than {commands.MAX_SESSION} characters",
    ):
        assert said in _TOOLS


def test_words_that_the_page_lists_are_those_of_the_code() -> None:
    page = PAGE.read_text()

    assert f"Version {VERSION}, namespace `{NS}`" in page
    assert f"| `policy` | one of {', '.join(f'`{p}`' for p in POLICIES)} |" in page
    assert f"one of {', '.join(f'`{state}`' for state in AGENT_STATES)} |" in page
    assert f"int, 0 to {MAX_LEFT} |" in page


if __name__ == "__main__":
    PAGE.write_text(fresh(PAGE.read_text()))
