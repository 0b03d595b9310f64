"""The example of a program that is kept running, with Debian's Perl."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio
from tests.processes import gone

from spinal.agents.wrap import load
from spinal.bus.errors import CallError
from spinal.testing import Platform, eventually

from .conftest import EXAMPLES

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not shutil.which("perl"), reason="MISSING: perl (apt install perl)"),
]

MANIFEST = EXAMPLES / "perl" / "perl.yaml"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def perl(running: Platform) -> AsyncIterator[Platform]:
    await running.agent(MANIFEST, "--slots", "4")
    yield running


async def test_the_example_has_no_mistakes_and_all_that_it_needs() -> None:
    assert list(load(MANIFEST).missing()) == []


async def test_one_operation_can_be_tried_without_a_bus(running: Platform) -> None:
    trial = await running.spinal(
        *("wrap", "test", str(MANIFEST), "--op", "/date/read", "text=24.12.2026")
    )
    assert await trial.wait() == 0, trial.errors
    assert trial.lines == ["2026-12-24T00:00:00"]


async def test_a_ledger_is_printed_as_ever(perl: Platform) -> None:
    rows = [
        {"account": "4711", "text": "paper, and whatever is written on", "debit": 12.5},
        {"account": "4712", "text": 'Zürich; $(date) "x"', "credit": 3},
    ]
    page = await perl.client.call("/ledger/print", title="November", rows=rows)

    assert page.splitlines() == [
        "November",
        "account  text                              debit     credit    balance",
        "-------- ---------------------------- ---------- ---------- ----------",
        "4711     paper, and whatever is            12.50       0.00      12.50",
        "         written on",
        '4712     Zürich; $(date) "x"                0.00       3.00       9.50',
    ]


async def test_what_it_does_not_like_is_refused_in_its_own_words(perl: Platform) -> None:
    for op, arguments, words in (
        ("/ledger/print", {"title": "x", "rows": [{"text": "x"}]}, "^entry without an account$"),
        ("/date/read", {"text": "tomorrow"}, "^Error parsing time$"),
    ):
        with pytest.raises(CallError, match=words) as caught:
            await perl.client.call(op, **arguments)
        assert caught.value.reason == "refused"


async def test_perl_ends_with_an_agent_that_is_killed(running: Platform) -> None:
    agent = await running.agent(MANIFEST, "--name", "perl-2")
    client = running.client.options(to="perl-2")
    await client.call("/text/wrap", text="x")
    children = psutil.Process(agent.pid).children(recursive=True)
    (perl,) = (child for child in children if child.name() == "perl")
    agent.kill()
    await agent.wait()
    await eventually(lambda: gone(perl))


async def test_many_calls_share_one_process(perl: Platform) -> None:
    texts = [f"word {number} " * 10 for number in range(50)]
    found = await asyncio.gather(
        *(perl.client.call("/text/wrap", text=text, columns=20) for text in texts)
    )
    for text, lines in zip(texts, found, strict=True):
        assert lines.split() == text.split()
        assert max(map(len, lines.splitlines())) <= 20
