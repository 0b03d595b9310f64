"""A run ends in bounded time with a verdict that can be read, whatever is at the address."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from xml.etree.ElementTree import Element, fromstring

import pytest

from spinal.conform import CHECKS, Ops, Report, Seat, Trial, Verdict, run
from spinal.conform.report import junit, row, summary
from spinal.protocols import Message, Stanza
from spinal.testing import MemoryBus, MemoryConnection, virtual_time

from .stage import Lie, judged, of, stage, write

TARGET = "somebody@memory.test/agent"


class Stranger:
    """Somebody who does one thing with each stanza that comes."""

    def __init__(
        self, connection: MemoryConnection, does: Callable[[MemoryConnection, Stanza], None]
    ):
        self._connection = connection
        self._does = does

    def opened(self) -> None:
        pass

    def closed(self, reason: str) -> None:
        pass

    def asked(self, kind: str, sender: str, id: str, payload: Element) -> bool:
        return False

    def said(self, message: Message) -> None: ...

    def received(self, stanza: Stanza) -> None:
        if stanza.kind == "iq" and stanza.type == "set":
            self._does(self._connection, stanza)


@asynccontextmanager
async def trial_of(
    does: Callable[[MemoryConnection, Stanza], None] | None,
) -> AsyncGenerator[Trial]:
    """A run against somebody who only does this; against nobody if there is none."""
    bus = MemoryBus()

    @asynccontextmanager
    async def sit(who: str, resource: str) -> AsyncGenerator[Seat]:
        async with Seat(bus.connection(f"{who}@memory.test/{resource}")) as seat:
            yield seat

    connection = bus.connection(TARGET)
    if does is not None:
        await connection.open(Stranger(connection, does))
    async with sit("caller", "kit") as caller:
        yield Trial(TARGET, caller, sit)
    await connection.close()


def nothing(connection: MemoryConnection, stanza: Stanza) -> None:
    pass


def garbage(connection: MemoryConnection, stanza: Stanza) -> None:
    connection.send(Stanza("iq", "result", stanza.sender, id=stanza.id, body=b"{]"))


def somebody_elses(connection: MemoryConnection, stanza: Stanza) -> None:
    said = write([{"type": "final", "id": "another-call", "value": 1}])
    connection.send(Stanza("iq", "result", stanza.sender, id=stanza.id, body=said))


def flood(connection: MemoryConnection, stanza: Stanza) -> None:
    line = write([{"type": "log", "id": "x", "text": "drip"}])
    for _ in range(5000):
        connection.send(Stanza("message", "headline", stanza.sender, body=line))


def large(connection: MemoryConnection, stanza: Stanza) -> None:
    line = write([{"type": "log", "id": "x", "text": "x" * 500_000}])
    for _ in range(100):
        connection.send(Stanza("message", "headline", stanza.sender, body=line))


def empty(connection: MemoryConnection, stanza: Stanza) -> None:
    connection.send(Stanza("iq", "result", stanza.sender, id=stanza.id))


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (None, "nobody is connected at that address"),
        (nothing, "final or error for 0-"),
        (garbage, "final or error for 0-"),
        (somebody_elses, "final or error for 0-"),
        (empty, "final or error for 0-"),
        (flood, "floods its peers"),
        (large, "floods its peers"),
    ],
)
def test_who_is_no_agent_fails_the_first_check_soon_and_no_other_is_run(
    does: Callable[[MemoryConnection, Stanza], None] | None, why: str
) -> None:
    @virtual_time
    async def story() -> None:
        async with trial_of(does) as trial:
            report = await run(trial)

        assert not report.passed
        assert report.seconds < 20
        assert report.outcomes[0].verdict is Verdict.FAILED
        assert why in report.outcomes[0].text
        assert {outcome.verdict for outcome in report.outcomes[1:]} == {Verdict.NOT_RUN}
        assert len(report.outcomes) == len(CHECKS)

    story()


@virtual_time
async def test_the_wrong_stanza_is_shown() -> None:
    async with trial_of(garbage) as trial:
        report = await run(trial)

    assert "{]" in report.outcomes[0].got
    assert "/conform/echo" in report.outcomes[0].sent


class Dies(Lie):
    """Says nothing any more, from the first call of a check on."""

    def __init__(self, number: str) -> None:
        self._number = number
        self._dead = False

    def hears(self, stanza: Stanza) -> None:
        self._dead |= f'"{self._number}-'.encode() in (stanza.body or b"")
        if not self._dead:
            self.take(stanza)


@virtual_time
async def test_a_run_ends_with_the_agent_that_dies_in_it() -> None:
    report = await judged(Dies("4.1"))

    assert of(report, "4.1").verdict is Verdict.FAILED
    assert of(report, "4.2").text == "the agent no longer answers since check 4.1"
    assert report.count(Verdict.NOT_RUN) > 20
    assert report.seconds < 60


@virtual_time
async def test_a_run_that_takes_too_long_is_ended() -> None:
    async with stage() as (trial, _):
        report = await run(trial, whole=5.0)

    assert "took more than 5 s" in report.outcomes[-1].text
    assert not report.passed


@virtual_time
async def test_the_reference_agent_passes_every_check() -> None:
    report = await judged()

    assert [o for o in report.outcomes if o.verdict is not Verdict.PASSED] == []
    assert report.passed


class OfTheCore(Lie):
    """Names no feature, and takes no part in what is beyond the core profile."""

    def said(self, event: dict[str, object], stanza: Stanza) -> dict[str, object]:
        return {key: value for key, value in event.items() if key != "features"}


@virtual_time
async def test_what_an_agent_does_not_name_is_not_its_business() -> None:
    report = await judged(OfTheCore())

    features = {check.number for check in CHECKS if check.feature}
    left_out = {o.number for o in report.outcomes if o.verdict is Verdict.NOT_OFFERED}
    assert features <= left_out
    assert report.passed
    assert "feature" in of(report, "6.1").text


@virtual_time
async def test_operations_of_its_own_take_the_place_of_those_of_the_page() -> None:
    async with stage() as (trial, _):
        trial.ops = Ops({"echo": "/conform/echo"}, {"echo": {"value": "{value}"}})
        report = await run(trial)

    assert report.passed
    assert of(report, "2.1").verdict is Verdict.PASSED
    assert of(report, "4.1").verdict is Verdict.NOT_OFFERED


@virtual_time
async def test_a_report_is_json_and_junit() -> None:
    async with trial_of(garbage) as trial:
        report: Report = await run(trial)

    first = row(report.outcomes[0])
    assert first["verdict"] == "failed"
    assert json.loads(json.dumps(first)) == first
    assert summary(report)["not_run"] == len(CHECKS) - 1
    (suite,) = fromstring(junit(report))
    assert suite.get("failures") == "1"
    failure = suite.find("testcase/failure")
    assert failure is not None and "{]" in (failure.text or "")


def test_every_check_has_a_number_a_section_and_a_title_of_its_own() -> None:
    assert len({check.number for check in CHECKS}) == len(CHECKS)
    assert len({check.title for check in CHECKS}) == len(CHECKS)
    assert all(check.section for check in CHECKS)
