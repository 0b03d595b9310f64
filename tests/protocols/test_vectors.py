"""protocols/vectors says what the code does, and covers what the page has tables of.

``test_order.py`` plays order.json and dispatchers.json.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import orjson
import pytest
from jsonschema import Draft202012Validator

from spinal.agents import Blob
from spinal.agents.schema import KEYWORDS, Signature
from spinal.bus.errors import BadCall
from spinal.protocols import (
    BOUNCES,
    EVENTS,
    LIMITS,
    REASONS,
    TRANSITIONS,
    BlobRef,
    Capabilities,
    Codec,
    Event,
    Json,
    LocalProtocolError,
    Operation,
    Problem,
    ProtocolError,
    RemoteProtocolError,
    Want,
    is_reference,
    parse_reference,
    values,
)
from spinal.protocols import path as paths
from spinal.protocols.capabilities import MAX_OPERATIONS
from spinal.protocols.errors import CONDITIONS
from spinal.protocols.path import MAX_PARTS, MAX_PATH

from . import offered
from .page import PAGE, sections
from .vectors import FOLDER, Case, cases, each, text_of

FILES = sorted(file.name for file in FOLDER.glob("*.json"))
CODECS = [Codec(), Codec(orjson.dumps, orjson.loads)]
EACH_CODEC = pytest.mark.parametrize("codec", CODECS, ids=["json", "orjson"])


def _meaning(one: Event | Want | Problem | Operation) -> dict[str, Json]:
    """Give every member with its value."""
    found: dict[str, Json] = {"type": one.type} if isinstance(one, Event) else {}
    for field in fields(one):
        value = getattr(one, field.name)
        if isinstance(value, Want | Problem):
            value = _meaning(value)
        found[field.name] = json.loads(json.dumps(value))
    return found


# -- codec.json


@EACH_CODEC
@each("codec.json")
def test_a_text_means_these_events(case: Case, codec: Codec) -> None:
    if "xml" in case:
        body = Codec.decode(fromstring(case["xml"])).body
        if body is None:
            assert case["events"] is None
            return
    else:
        body = text_of(case["text"]).encode()

    events = codec.read(body)

    if "count" in case:
        assert len(events) == case["count"]
        return
    assert [_meaning(event) for event in events] == case["events"]
    written = [codec.write_event(event) for event in events]
    assert codec.read(codec.join(written)) == events
    if "written" in case:
        assert [json.loads(one) for one in written] == case["written"]


@EACH_CODEC
@each("malformed.json")
def test_a_text_is_refused_for_one_of_these_reasons(case: Case, codec: Codec) -> None:
    body = bytes.fromhex(case["bytes"]) if "bytes" in case else text_of(case["text"]).encode()

    with pytest.raises(RemoteProtocolError) as refused:
        codec.read(body)

    assert refused.value.problem.reason in case["reasons"]


@each("malformed.json")
def test_what_is_said_to_be_no_json_is_none(case: Case) -> None:
    body = bytes.fromhex(case["bytes"]) if "bytes" in case else text_of(case["text"]).encode()
    if "000 levels" in case["name"] or "10000 arrays" in case["name"]:
        return  # Too deep for a parser that calls itself.
    try:
        json.loads(body.decode(), parse_constant=_no_constant)
    except ValueError:
        assert not case.get("json", True)
    else:
        assert case.get("json", True)


def _no_constant(name: str) -> None:
    raise ValueError(name)


# -- paths.json


def _is_path(text: str) -> bool:
    try:
        paths.parts(text)
    except LocalProtocolError:
        return False
    return True


@each("paths.json", "path")
def test_a_path_is_one_or_not(case: Case) -> None:
    assert _is_path(text_of(case["path"])) == case["valid"]


@each("paths.json", "ancestor")
def test_a_path_is_above_another_or_not(case: Case) -> None:
    assert paths.is_ancestor(case["ancestor"], case["path"]) == case["is"]


@each("paths.json", "pattern")
def test_a_pattern_is_one_or_not(case: Case) -> None:
    if case["valid"]:
        paths.selects(case["pattern"], "/a")
    else:
        with pytest.raises(LocalProtocolError):
            paths.selects(case["pattern"], "/a")


@each("paths.json", "selects")
def test_a_pattern_selects_a_path_or_not(case: Case) -> None:
    assert paths.selects(case["pattern"], case["path"]) == case["selects"]


@each("paths.json", "places")
def test_places_match_or_not(case: Case) -> None:
    assert paths.places_match(case["wanted"], case["offered"]) == case["match"]


@each("paths.json", "tags")
def test_tags_match_or_not(case: Case) -> None:
    assert (set(case["wanted"]) <= set(case["offered"])) == case["match"]


# -- hashes.json


@each("hashes.json")
def test_a_description_is_believed_by_its_hash(case: Case) -> None:
    text = text_of(case["text"])
    if case.get("refused"):
        with pytest.raises(RemoteProtocolError):
            Capabilities.parse(text, case["hash"])
        return

    found = Capabilities.parse(text, case["hash"])

    assert found.hash == case["hash"]
    if "number" in case:
        assert len(found.operations) == case["number"]
    else:
        assert {path: _without_path(op) for path, op in found.operations.items()} == case[
            "operations"
        ]


def _without_path(operation: Operation) -> dict[str, Json]:
    members = _meaning(operation)
    del members["path"]
    return members


# -- errors.json


@each("errors.json", "reason")
def test_what_follows_from_a_reason(case: Case) -> None:
    meaning = Problem(case["reason"]).meaning

    assert (meaning.type, meaning.condition, meaning.ran.value, meaning.again.value) == (
        case["type"],
        case["condition"],
        case["ran"],
        case["again"],
    )
    assert Problem(case["reason"]).text == case["text"]


@each("errors.json", "stanza")
def test_how_an_error_stanza_is_read(case: Case) -> None:
    found = Codec.decode(fromstring(case["xml"])).problem

    assert found is not None
    assert (found.reason, found.type, found.condition, found.text) == (
        case["reason"],
        case["type"],
        case["condition"],
        case["text"],
    )


# -- values.json


@pytest.mark.parametrize(
    ("dumps", "loads"),
    [(values.dumps, values.loads), (orjson.dumps, orjson.loads)],
    ids=["json", "orjson"],
)
@each("values.json")
def test_a_value_is_passed_on_or_refused(
    case: Case, dumps: values.Dumps, loads: values.Loads
) -> None:
    text = text_of(case["text"]).encode()
    if case.get("refused"):
        with pytest.raises(ProtocolError):
            values.check(values.read(text, loads=loads))
        return

    found = values.read(text, loads=loads)
    values.check(found)

    assert values.read(values.write(found, dumps), loads=loads) == found
    if "same" in case:
        same = json.loads(case["same"])
        assert found == same
        assert type(found) is type(same)


# -- schemas.json


def _blob(ref: BlobRef) -> Blob:
    return Blob(b"", ref.media_type, ref=ref)


@each("schemas.json")
def test_arguments_fit_a_schema_or_are_refused_with_the_name_of_one(case: Case) -> None:
    signature = Signature.of(getattr(offered, case["name"]))

    assert signature.args == case["schema"]
    for args in case["fits"]:
        assert set(signature.convert(args, _blob)) == set(args)
    for refused in case["refused"]:
        with pytest.raises(BadCall) as caught:
            signature.convert(refused["args"], _blob)
        assert caught.value.problem.argument == refused["argument"], refused


@each("schemas.json")
def test_an_ordinary_validator_says_the_same(case: Case) -> None:
    make: Any = Draft202012Validator
    checker: Any = make.FORMAT_CHECKER
    make.check_schema(case["schema"])
    validator = make(case["schema"], format_checker=checker)
    formats = {member.get("format") for member in case["schema"]["properties"].values()}

    def fits(args: Mapping[str, Json]) -> bool:
        return bool(validator.is_valid(args)) and all(
            is_reference(value) and _is_blob(value) for value in args.values() if "blob" in formats
        )

    for args in case["fits"]:
        assert fits(args), args
    # Ordinary validators know few formats, and need other packages for some that they know.
    if not formats - {None, "blob"}:
        for refused in case["refused"]:
            assert not fits(refused["args"]), refused


def _is_blob(value: Json) -> bool:
    try:
        parse_reference(value)
    except RemoteProtocolError:
        return False
    return True


# -- what they cover


def test_every_case_has_a_name_of_its_own_and_a_section_of_the_page() -> None:
    titles = {title.split(" ")[0].rstrip(".") for title in sections(PAGE.read_text())}
    for file in FILES:
        names = [case["name"] for case in cases(file)]
        assert len(names) == len(set(names)), file
        for case in cases(file):
            number, *event = case["section"].split(" ")
            assert number in titles, case["name"]
            assert set(event) <= {*EVENTS}, case["name"]


def test_every_file_is_described_and_is_small() -> None:
    readme = (FOLDER / "README.md").read_text()

    assert len(readme.splitlines()) < 90
    for file in FILES:
        assert f"`{file}`" in readme
        assert (FOLDER / file).stat().st_size < 100_000


def test_every_event_type_and_each_of_its_members_is_read() -> None:
    events = [event for case in cases("codec.json") for event in case.get("events") or ()]
    for name, kind in EVENTS.items():
        ours = [event for event in events if event["type"] == name]
        defaults = {**dict.fromkeys(kind.reads), **_defaults(kind)}
        for member in kind.reads:
            assert any(event[member] != defaults[member] for event in ours), (name, member)


def _needed(kind: type[Event]) -> dict[str, Json]:
    """Give the members that an event must have."""
    return {
        field.name: _NEEDED[field.name]
        for field in fields(kind)
        if field.default is MISSING and field.default_factory is MISSING
    }


def _defaults(kind: type[Event]) -> dict[str, Json]:
    needed = _needed(kind)
    made = _meaning(kind.parse(needed))
    return {name: value for name, value in made.items() if name not in needed}


_NEEDED: Mapping[str, Json] = {
    "id": "a",
    "op": "/a",
    "left": 1,
    "seq": 0,
    "text": "",
    "state": "late",
    "hash": "",
    "epoch": 0,
    "seconds": 0,
    "what": "",
    "problem": {"reason": "failed"},
}


def test_every_event_type_is_refused_without_each_member_that_it_must_have() -> None:
    names = {case["name"] for case in cases("malformed.json")}
    needed = {f"'{name}' without '{m}'" for name, kind in EVENTS.items() for m in _needed(kind)}

    assert needed == {name for name in names if name.startswith("'") and "' without '" in name}


def test_every_reason_and_every_condition_of_a_server_is_there() -> None:
    errors = cases("errors.json")
    reasons = {case["reason"] for case in errors if case["kind"] == "reason"}
    servers = {
        case["name"].removeprefix("a server says "): case["reason"]
        for case in errors
        if case["kind"] == "stanza" and case["section"] == "9.3"
    }

    assert reasons == {*REASONS, "dance"}
    for condition in CONDITIONS:
        assert servers[condition] == BOUNCES.get(condition, "unreachable")


@pytest.mark.parametrize(
    ("limit", "good", "bad"),
    [
        (LIMITS.receive, "1048576 bytes", "1048577 bytes"),
        (LIMITS.depth, "32 levels in an event", "33 levels in an event"),
        (LIMITS.events, "1000 events", "1001 events"),
        (LIMITS.members, "20000 members in a value", "20001 members in a value"),
        (MAX_OPERATIONS, "2000 operations", "2001 operations"),
        (MAX_PARTS, "path of 32 parts", "path of 33 parts"),
        (MAX_PATH, "path of 512 bytes", "path of 513 bytes"),
    ],
)
def test_every_limit_of_a_receiver_is_tried_at_it_and_above_it(
    limit: int, good: str, bad: str
) -> None:
    names = {case["name"] for file in FILES for case in cases(file)}

    assert str(limit) in good
    assert str(limit + 1) in bad
    assert {good, bad} <= names


def test_the_limits_of_a_sender_are_tried() -> None:
    names = {case["name"] for case in cases("order.json")}

    assert f"a result of {LIMITS.inline} bytes" in names
    assert "a result that is too large to travel inline" in names
    assert "answers keep to what their reader takes in one stanza" in names


def test_every_row_of_the_table_of_states_is_walked() -> None:
    walked: set[tuple[str, str, str]] = set()
    for case in cases("order.json"):
        if case["kind"] == "table":
            state = "new"
            other = {"caller": "agent", "agent": "caller"}[case["end"]]
            for how, event, after in case["steps"]:
                walked.add((state, case["end"] if how == "say" else other, event))
                state = state if after is None else after
    rows = {
        (state.value, speaker.value, event)
        for state, found in TRANSITIONS.items()
        for speaker, event in found
    }

    assert rows <= walked


def test_the_schemas_use_every_keyword_of_the_page() -> None:
    used: set[str] = set()

    def collect(schema: Mapping[str, Any]) -> None:
        used.update(schema)
        inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
        inner += [schema[name] for name in ("items", "additionalProperties") if schema.get(name)]
        for one in inner:
            collect(one)

    for case in cases("schemas.json"):
        collect(case["schema"])

    assert KEYWORDS - used <= {"description"}


# -- another language


def test_they_can_be_read_outside_python() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("MISSING: node")
    script = Path(__file__).with_name("vectors.mjs")

    ended = subprocess.run(
        [node, str(script), str(FOLDER), str(FOLDER.parent / "schemas" / "events.json")],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 failed" in ended.stdout
