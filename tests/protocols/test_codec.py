from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from xml.etree.ElementTree import Element, fromstring

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.protocols import (
    BOUNCES,
    CANCEL_STATES,
    MAX_INTEGER,
    NS,
    POLICIES,
    REASONS,
    Accepted,
    Ack,
    Advertisement,
    Cancel,
    Cancelled,
    Codec,
    Data,
    Describe,
    Description,
    Error,
    Event,
    Final,
    Hello,
    Json,
    Limits,
    LocalProtocolError,
    Log,
    Mirror,
    Op,
    Problem,
    Progress,
    RemoteProtocolError,
    Seen,
    Stanza,
    Want,
)
from spinal.protocols.codec import STANZA_ERRORS
from spinal.protocols.errors import CONDITIONS, TYPES

CODECS = [Codec(), Codec(orjson.dumps, orjson.loads)]
EACH = pytest.mark.parametrize("codec", CODECS, ids=["json", "orjson"])

TEXT = st.text(
    st.sampled_from("a&<>]'\"\\\n\r\t\x00\ufffe\uffff\u2028é😀")
    | st.characters(exclude_categories=["Cs"]),
    max_size=8,
)
#: Text that XML can hold.
PLAIN = st.text(
    st.sampled_from("a&<>'\"\n\r\t\u2028é😀@/ ")
    | st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc", "Cn"]),
    max_size=12,
)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.integers(0, MAX_INTEGER)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ID = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=10)
ATTEMPT = st.integers(1, 10**6)
PATH = st.lists(st.text("ab1é", min_size=1), max_size=3).map(lambda found: "/" + "/".join(found))
PLACES = st.dictionaries(TEXT, PATH, max_size=2)
WORDS = st.lists(TEXT, max_size=3).map(tuple)
PROBLEM = st.builds(
    Problem,
    st.sampled_from(sorted(REASONS)) | TEXT,
    TEXT,
    st.none() | TEXT,
    st.none() | st.floats(0, 1e9),
    st.sampled_from(sorted(TYPES)),
    st.sampled_from(sorted(CONDITIONS)),
)
WANT = st.builds(Want, st.sampled_from(POLICIES), PLACES, WORDS, TEXT, st.booleans())
MAYBE_TEXT, MAYBE_COUNT = st.none() | TEXT, st.none() | COUNT
EVENT: st.SearchStrategy[Event] = st.one_of(
    st.builds(
        Op,
        ID,
        ATTEMPT,
        op=PATH,
        left=st.integers(0, 10**9),
        args=st.dictionaries(TEXT, VALUE, max_size=3),
        epoch=MAYBE_COUNT,
        key=MAYBE_TEXT,
        caller=MAYBE_TEXT,
        grant=MAYBE_TEXT,
        trace=MAYBE_TEXT,
        window=st.integers(0, 10_000),
        must=WORDS,
        want=st.none() | WANT,
    ),
    st.builds(Accepted, ID, ATTEMPT),
    st.builds(Progress, ID, ATTEMPT, done=st.none() | NUMBER, total=st.none() | NUMBER, note=TEXT),
    st.builds(Data, ID, ATTEMPT, seq=COUNT, value=VALUE),
    st.builds(Log, ID, ATTEMPT, text=TEXT, level=TEXT),
    st.builds(
        Final,
        ID,
        ATTEMPT,
        value=VALUE,
        problem=st.none() | PROBLEM,
        agent=MAYBE_TEXT,
        ran=MAYBE_COUNT,
        again=st.booleans(),
    ),
    st.builds(Error, ID, ATTEMPT, problem=PROBLEM),
    st.builds(Ack, ID, ATTEMPT),
    st.builds(Cancel, ID, ATTEMPT, left=st.integers(0, 10**9)),
    st.builds(Cancelled, ID, ATTEMPT, state=st.sampled_from(CANCEL_STATES)),
    st.builds(
        Hello,
        TEXT,
        st.sampled_from(["agent", "caller", "dispatcher"]),
        WORDS,
        st.integers(4096, MAX_INTEGER),
        WORDS,
        MAYBE_COUNT,
    ),
    st.builds(
        Advertisement,
        hash=TEXT,
        epoch=COUNT,
        state=st.sampled_from(["available", "draining", "unhealthy"]),
        slots=st.integers(0, 1_000_000),
        busy=st.integers(0, 1_000_000),
        load=st.floats(0, 1e9),
        cost=st.none() | st.floats(0, 1e9),
        place=PLACES,
        tags=WORDS,
        holds=st.lists(st.tuples(ID, ATTEMPT), max_size=3).map(tuple),
        features=WORDS,
    ),
    st.builds(Describe, TEXT),
    st.builds(Description, TEXT, TEXT),
    st.builds(Mirror, st.floats(0, 1e9)),
    st.builds(Seen, TEXT, ID, TEXT, TEXT, TEXT, TEXT, MAYBE_COUNT),
)
EVENTS = st.lists(EVENT, max_size=4)
OP = Op("c1", op="/echo", left=1000, args={"x": 1})


def over_the_wire(stanza: Stanza) -> Stanza:
    """Write a stanza and read what a real XML parser makes of it."""
    return Codec.decode(fromstring(Codec.encode(stanza, stanza.sender)))


# -- events


@EACH
@given(events=EVENTS)
def test_events_survive_the_way_to_xml_and_back(codec: Codec, events: list[Event]) -> None:
    body = codec.write(events)
    came = over_the_wire(Stanza("iq", "set", "w@example.org/1", id="1", body=body))

    assert came.body == body
    for reader in CODECS:
        assert reader.read(body) == events


@given(EVENT)
def test_both_json_libraries_write_what_means_the_same(event: Event) -> None:
    ours, theirs = (codec.write_event(event) for codec in CODECS)

    assert orjson.loads(ours) == orjson.loads(theirs)


@EACH
@given(events=EVENTS, data=st.data())
def test_mutated_bytes_raise_nothing_but_a_remote_error(
    codec: Codec, events: list[Event], data: st.DataObject
) -> None:
    body = bytearray(codec.write(events))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body)))
        until = data.draw(st.integers(at, min(len(body), at + 4)))
        body[at:until] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b'"', b"[", b"]", b"{}", b"null", b",", b"-1"])
        )

    _read_or_refuse(codec, bytes(body))


@EACH
@given(
    members=st.dictionaries(
        st.sampled_from(["type", "id", "attempt", "op", "left", "args", "value", "problem", "seq"])
        | TEXT,
        VALUE | st.sampled_from(["op", "final", "data", "error", "/a"]),
    ),
    more=st.lists(VALUE, max_size=2),
)
def test_any_json_raises_nothing_but_a_remote_error(
    codec: Codec, members: dict[str, Json], more: list[Json]
) -> None:
    _read_or_refuse(codec, orjson.dumps([members, *more]))


@given(
    st.binary(max_size=20) | st.text('[]{}":,0123456789eE+-.tfn \\u', max_size=20).map(str.encode)
)
def test_both_libraries_refuse_the_same_bytes(body: bytes) -> None:
    assert _read_or_refuse(CODECS[0], body) == _read_or_refuse(CODECS[1], body)


def _read_or_refuse(codec: Codec, body: bytes) -> Sequence[Event] | None:
    try:
        return codec.read(body)
    except RemoteProtocolError as exc:
        assert exc.problem.text and exc.problem.reason in REASONS
        return None


@EACH
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"null",
        b'"op"',
        b"[1]",
        b"[null]",
        b"[[]]",
        b"[{}]",
        b'[{"type":null}]',
        b'[{"type":[]}]',
        b'[{"type":{}}]',
        b'[{"type":1}]',
        b'[{"type":"op"}]',
        b'[{"type":"ack","id":"c1"},{"type":"ack","id":""}]',
        b'[{"type":"final","id":"c1","value":9007199254740992}]',
        b'[{"type":"final","id":"c1","value":1e999}]',
        b'[{"type":"final","id":"c1","value":123456789012345678901234}]',
        b'[{"type":"future","x":[NaN]}]',
        b"[" + b"[" * 40 + b"]" * 40 + b"]",
    ],
)
def test_a_body_that_is_wrong_in_one_place_gives_nothing(codec: Codec, body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        codec.read(body)


@EACH
def test_unknown_events_are_left_out_and_unknown_members_ignored(codec: Codec) -> None:
    body = (
        b'[{"type":"dance","id":7},{"type":"ack","id":"c1","colour":{"deep":[1]},"attempt":null}]'
    )

    assert codec.read(body) == [Ack("c1")]
    assert codec.read(b"[]") == []


@EACH
def test_what_is_not_i_json_is_not_written(codec: Codec) -> None:
    for bad in (float("nan"), 2**53, "\ud800", {1: 2}, object(), b"x"):
        with pytest.raises(LocalProtocolError, match="value"):
            codec.write_event(Final("c1", value=bad))


def test_limits_hold_in_both_directions() -> None:
    small = Codec(limits=Limits(receive=300, events=2, members=10, depth=3))
    acks = [Ack("c1")] * 3
    long = Final("c1", value="x" * 300)

    with pytest.raises(LocalProtocolError, match="3 events"):
        small.write(acks)
    with pytest.raises(RemoteProtocolError, match="more than 2 events"):
        small.read(Codec().write(acks))
    with pytest.raises(LocalProtocolError, match="send a blob"):
        small.write([long])
    with pytest.raises(RemoteProtocolError, match="300 bytes"):
        small.read(Codec().write([long]))
    for value in ([1] * 20, [[[[1]]]]):
        with pytest.raises(LocalProtocolError):
            small.write([Final("c1", value=value)])
        with pytest.raises(RemoteProtocolError):
            small.read(Codec().write([Final("c1", value=value)]))


# -- stanzas


@given(
    st.builds(
        Stanza,
        st.sampled_from(["iq", "message", "presence"]),
        st.sampled_from(["", "set", "result", "headline", "unavailable"]),
        PLAIN,
        PLAIN,
        PLAIN,
        st.none() | EVENTS.map(CODECS[0].write),
    )
)
def test_a_stanza_survives_with_quotes_and_newlines_in_its_attributes(stanza: Stanza) -> None:
    assert over_the_wire(stanza) == stanza


@pytest.mark.parametrize("bad", ["\x00", "a\x1f", "\ud800", "\ufffe", "\uffff"])
def test_an_attribute_that_xml_cannot_hold_is_refused(bad: str) -> None:
    with pytest.raises(LocalProtocolError, match="XML attribute"):
        Codec.encode(Stanza("iq", "set", to=bad))


@given(PROBLEM, PLAIN.filter(lambda text: "\r" not in text))
def test_an_error_stanza_carries_type_condition_text_and_reason(
    problem: Problem, text: str
) -> None:
    problem = replace(problem, argument=None, after=None, text=text or "?", reason="busy")
    stanza = Stanza("iq", "error", "ann@example.org/x", "w@example.org/1", "7", None, problem)

    assert over_the_wire(stanza) == stanza


@given(TEXT, st.text(max_size=5), st.text(max_size=9))
def test_nothing_in_a_problem_can_break_the_xml(reason: str, text: str, word: str) -> None:
    problem = Problem(reason, text, type=word, condition=f"gone/><{word}")
    written = Codec.encode(Stanza("iq", "error", problem=problem))
    (error,) = fromstring(written)

    assert error.get("type") in TYPES
    assert {child.tag for child in error} == {
        f"{{{STANZA_ERRORS}}}{problem.meaning.condition}",
        f"{{{STANZA_ERRORS}}}text",
        f"{{{NS}}}reason",
    }


def _error(inner: str, attributes: str = "type='cancel'", kind: str = "error") -> Element:
    return fromstring(
        f"<iq xmlns='jabber:client' type='{kind}' from='w@example.org/1' id='7'>"
        f"<error {attributes}>{inner}</error></iq>"
    )


@pytest.mark.parametrize("condition", sorted(CONDITIONS))
def test_a_bounce_of_a_server_means_that_nothing_was_delivered(condition: str) -> None:
    found = Codec.decode(_error(f"<{condition} xmlns='{STANZA_ERRORS}'/>")).problem

    assert found is not None
    assert found.reason == BOUNCES.get(condition, "unreachable")
    assert (found.type, found.condition) == ("cancel", condition)
    assert found.text


@pytest.mark.parametrize(
    "inner",
    [
        "",
        "<gone/>",
        "<gone xmlns='urn:other'/><text xmlns='urn:other'>x</text>",
        f"<text xmlns='{STANZA_ERRORS}'/>",
        f"<unheard-of xmlns='{STANZA_ERRORS}'/>",
        f"<reason xmlns='{NS}'/>",
    ],
)
def test_an_error_without_a_known_condition_is_unreachable(inner: str) -> None:
    for attributes in ("", "type='fatal'"):
        assert Codec.decode(_error(inner, attributes)).problem == Problem("unreachable")


def test_an_error_stanza_without_an_error_is_unreachable() -> None:
    assert Codec.decode(Element("iq", type="error")).problem == Problem("unreachable")


def test_a_bounce_may_bring_our_own_body_back() -> None:
    body = CODECS[0].write([OP])
    problem = Problem("unreachable")
    stanza = Stanza("iq", "error", body=body, problem=problem)

    assert over_the_wire(stanza) == stanza


def test_an_error_element_in_another_stanza_is_none_of_ours() -> None:
    assert Codec.decode(_error("<gone/>", kind="set")).problem is None


@pytest.mark.parametrize("namespace", ["jabber:client", "jabber:server", "jabber:component:accept"])
def test_a_stanza_is_read_in_every_stream_namespace_beside_strangers(namespace: str) -> None:
    element = fromstring(
        f"<message xmlns='{namespace}' type='headline'><x xmlns='urn:spinal:2'>[2]</x><body/>"
        f"<x xmlns='{NS}'>[1]</x><x xmlns='{NS}'>[3]</x></message>"
    )

    assert Codec.decode(element) == Stanza("message", "headline", body=b"[1]")


def test_an_empty_element_has_an_empty_body_and_no_element_none() -> None:
    assert Codec.decode(fromstring(f"<iq><x xmlns='{NS}'/></iq>")).body == b""
    assert Codec.decode(fromstring("<iq><y/></iq>")).body is None
    assert Codec.encode(Stanza("presence", "")) == b"<presence/>"


def test_only_who_says_so_stamps_a_sender() -> None:
    stanza = Stanza("iq", "get", sender="ann@example.org/x")

    assert b"from" not in Codec.encode(stanza)
    assert b"from='a@b'" in Codec.encode(stanza, "a@b")
