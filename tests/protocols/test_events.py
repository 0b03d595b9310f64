"""One table per class of event, read in both directions: value, wire form."""

from __future__ import annotations

from dataclasses import MISSING, fields

import pytest

from spinal.protocols import (
    EVENTS,
    FEATURES,
    Accepted,
    Ack,
    Advertisement,
    CallEvent,
    Cancel,
    Cancelled,
    Data,
    Describe,
    Description,
    Error,
    Event,
    Final,
    Hello,
    Json,
    Log,
    Mirror,
    Op,
    Problem,
    Progress,
    RemoteProtocolError,
    Seen,
    Want,
    values,
)

BUSY: dict[str, Json] = {
    "reason": "busy",
    "type": "wait",
    "condition": "resource-constraint",
    "text": "the agent has no free slot",
}

#: For each class the shortest form and one with everything in it.
TABLE: list[tuple[Event, dict[str, Json]]] = [
    (
        Op("c1", op="/image/resize", left=60_000),
        {"type": "op", "id": "c1", "op": "/image/resize", "left": 60_000},
    ),
    (
        Op(
            "c1",
            2,
            op="/image/resize",
            left=0,
            args={"width": 640},
            epoch=3,
            key="k",
            caller="ann@example.org/desk",
            grant="g",
            trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            window=8,
            must=("want", "stream"),
            want=Want("sticky", {"site": "/eu"}, ("gpu",), "ann", True),
        ),
        {
            "type": "op",
            "id": "c1",
            "attempt": 2,
            "op": "/image/resize",
            "left": 0,
            "args": {"width": 640},
            "epoch": 3,
            "key": "k",
            "caller": "ann@example.org/desk",
            "grant": "g",
            "trace": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "window": 8,
            "must": ["want", "stream"],
            "want": {
                "policy": "sticky",
                "place": {"site": "/eu"},
                "tags": ["gpu"],
                "sticky": "ann",
                "rerun": True,
            },
        },
    ),
    (
        Op("c1", op="/a", left=1, want=Want()),
        {"type": "op", "id": "c1", "op": "/a", "left": 1, "want": {}},
    ),
    (
        Op("c1", op="/a", left=1, each=({"x": 1}, {}), must=("group",)),
        {
            "type": "op",
            "id": "c1",
            "op": "/a",
            "left": 1,
            "each": [{"x": 1}, {}],
            "must": ["group"],
        },
    ),
    (Accepted("c1"), {"type": "accepted", "id": "c1"}),
    (
        Accepted("c1", 2, seq=57),
        {"type": "accepted", "id": "c1", "attempt": 2, "seq": 57},
    ),
    (Progress("c1"), {"type": "progress", "id": "c1"}),
    (
        Progress("c1", done=0.0, total=2.5, note="half"),
        {"type": "progress", "id": "c1", "done": 0.0, "total": 2.5, "note": "half"},
    ),
    (Data("c1", seq=0), {"type": "data", "id": "c1", "seq": 0}),
    (Data("c1", seq=1, value=[0]), {"type": "data", "id": "c1", "seq": 1, "value": [0]}),
    (Log("c1", text=""), {"type": "log", "id": "c1", "text": ""}),
    (
        Log("c1", text="disk full", level="warning"),
        {"type": "log", "id": "c1", "text": "disk full", "level": "warning"},
    ),
    (Final("c1"), {"type": "final", "id": "c1"}),
    (Final("c1", value=False), {"type": "final", "id": "c1", "value": False}),
    (
        Final("c1", value=0, agent="w@example.org/1", ran=12, cpu=9, memory=4096, again=True),
        {
            "type": "final",
            "id": "c1",
            "value": 0,
            "agent": "w@example.org/1",
            "ran": 12,
            "cpu": 9,
            "memory": 4096,
            "again": True,
        },
    ),
    (Final("c1", problem=Problem("busy")), {"type": "final", "id": "c1", "problem": BUSY}),
    (Error("c1", problem=Problem("busy")), {"type": "error", "id": "c1", "problem": BUSY}),
    (
        Error("c1", problem=Problem("x", "no", "size", 2.0, "modify", "gone")),
        {
            "type": "error",
            "id": "c1",
            "problem": {
                "reason": "x",
                "type": "modify",
                "condition": "gone",
                "text": "no",
                "argument": "size",
                "after": 2.0,
            },
        },
    ),
    (Ack("c1"), {"type": "ack", "id": "c1"}),
    (
        Ack("c1", also=(("c2", 1), ("c3", 4))),
        {"type": "ack", "id": "c1", "also": [["c2", 1], ["c3", 4]]},
    ),
    (Cancel("c1"), {"type": "cancel", "id": "c1"}),
    (Cancel("c1", 2, left=5), {"type": "cancel", "id": "c1", "attempt": 2, "left": 5}),
    (
        Cancel("c1", of=(0, 7)),
        {"type": "cancel", "id": "c1", "of": [0, 7]},
    ),
    (Cancelled("c1", state="late"), {"type": "cancelled", "id": "c1", "state": "late"}),
    (Hello(), {"type": "hello"}),
    (
        Hello("1.1", "dispatcher", ("batch",), 4096, ("d@example.org/1",), 7),
        {
            "type": "hello",
            "version": "1.1",
            "role": "dispatcher",
            "features": ["batch"],
            "stanza": 4096,
            "dispatchers": ["d@example.org/1"],
            "epoch": 7,
        },
    ),
    (
        Advertisement(hash="00", epoch=1),
        {"type": "advertisement", "hash": "00", "epoch": 1},
    ),
    (
        Advertisement(
            hash="00",
            epoch=1,
            state="draining",
            slots=4,
            busy=2,
            load=0.5,
            cost=0.1,
            place={"site": "/eu"},
            tags=("gpu",),
            holds=(("c1", 1),),
            more=True,
            features=("holds",),
            stanza=4096,
        ),
        {
            "type": "advertisement",
            "hash": "00",
            "epoch": 1,
            "state": "draining",
            "slots": 4,
            "busy": 2,
            "load": 0.5,
            "cost": 0.1,
            "place": {"site": "/eu"},
            "tags": ["gpu"],
            "holds": [["c1", 1]],
            "more": True,
            "features": ["holds"],
            "stanza": 4096,
        },
    ),
    (Describe("00"), {"type": "describe", "hash": "00"}),
    (Description("00", "{}"), {"type": "description", "hash": "00", "text": "{}"}),
    (Mirror(60.0), {"type": "mirror", "seconds": 60.0}),
    (Seen("final", "c1"), {"type": "seen", "what": "final", "id": "c1"}),
    (
        Seen("final", "c1", "ann@example.org/x", "w@example.org/1", "/a", "done", 3),
        {
            "type": "seen",
            "what": "final",
            "id": "c1",
            "caller": "ann@example.org/x",
            "agent": "w@example.org/1",
            "op": "/a",
            "state": "done",
            "ran": 3,
        },
    ),
]


@pytest.mark.parametrize(("event", "wire"), TABLE, ids=lambda x: repr(x)[:50])
def test_an_event_and_its_wire_form_are_the_same_thing(event: Event, wire: dict[str, Json]) -> None:
    assert values.loads(values.dumps(event.to_json())) == wire
    assert type(event).parse(wire) == event


def test_the_table_has_every_class_in_its_shortest_and_its_longest_form() -> None:
    shown = {cls: [wire for event, wire in TABLE if type(event) is cls] for cls in EVENTS.values()}

    for cls, forms in shown.items():
        members = {name for wire in forms for name in wire} - {"type"}
        assert members >= set(cls.reads) - {"attempt"}, cls
        needed = {f.name for f in fields(cls) if f.default is f.default_factory is MISSING}
        assert any(set(wire) - {"type"} == needed for wire in forms), cls


def test_every_member_has_a_reader_and_every_reader_a_member() -> None:
    for name, cls in EVENTS.items():
        assert cls.type == name
        assert {field.name for field in fields(cls)} == set(cls.reads)


REQUIRED = [
    (cls, field.name)
    for cls in EVENTS.values()
    for field in fields(cls)
    if field.default is field.default_factory is MISSING
]


@pytest.mark.parametrize(("cls", "name"), REQUIRED, ids=str)
def test_a_missing_member_is_named(cls: type[Event], name: str) -> None:
    wire = next(wire for event, wire in TABLE if type(event) is cls)

    for broken in ({k: v for k, v in wire.items() if k != name}, {**wire, name: None}):
        with pytest.raises(RemoteProtocolError, match=f"lacks '{name}'") as caught:
            cls.parse(broken)
        assert caught.value.problem.argument == name


@pytest.mark.parametrize(("event", "wire"), TABLE, ids=lambda x: repr(x)[:50])
def test_a_member_of_the_wrong_kind_is_named(event: Event, wire: dict[str, Json]) -> None:
    for name in set(wire) - {"type", "value"}:
        with pytest.raises(RemoteProtocolError) as caught:
            type(event).parse({**wire, name: object()})
        assert caught.value.problem.argument == name


@pytest.mark.parametrize(("event", "wire"), TABLE, ids=lambda x: repr(x)[:50])
def test_unknown_members_are_ignored(event: Event, wire: dict[str, Json]) -> None:
    assert type(event).parse({**wire, "colour": {"deep": [1]}, "x": None}) == event


def test_an_event_of_a_call_names_its_exchange() -> None:
    for cls in EVENTS.values():
        of_a_call = "attempt" in cls.reads
        assert issubclass(cls, CallEvent) == of_a_call
    assert Ack("c1", 3).exchange == ("c1", 3)


def test_what_must_be_understood_is_a_member_or_a_feature() -> None:
    assert Op("c1", op="/a", left=1).missing() is None
    assert Op("c1", op="/a", left=1, must=("key", "stream", "place-of-birth")).missing() == (
        "place-of-birth"
    )
    assert Op("c1", op="/a", left=1, must=("stream",)).missing(frozenset()) == "stream"
    assert not FEATURES & set(Op.reads)


def test_each_is_understood_by_who_has_groups() -> None:
    op = Op("c1", op="/a", left=1, must=("each",))

    assert op.missing(frozenset({"group"})) is None
    assert op.missing(frozenset({"stream"})) == "each"


def test_holds_of_another_form_are_ignored() -> None:
    raw: dict[str, Json] = {
        "hash": "00",
        "epoch": 1,
        "holds": [["c1", 1], ["c2"], [3, 1], ["c4", "1"], ["c5", True]],
    }

    assert Advertisement.parse(raw).held == {("c1", 1)}
