"""The pace of a home: read from providers.yaml, and what it changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from spinal.agents.document import BadDocument
from spinal.agents.provider.pace import Pace
from spinal.agents.provider.settings import Providers
from spinal.dispatcher.pools.launches import Launches

ACCOUNTS = (
    "accounts:\n  ocean: {driver: digitalocean, token: {env: T}, currency: EUR, timeout: 4s}\n"
)
KEY = "ocean", "fra1", "small"


def read(folder: Path, text: str) -> Pace:
    path = folder / "providers.yaml"
    path.write_text(ACCOUNTS + text)
    return Providers.load(path).pace


def test_what_is_not_said_is_as_usual(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Pace()
    assert Providers().pace == Pace()


def test_what_is_said_holds(tmp_path: Path) -> None:
    text = "pace: {order: 2m, look: 500ms, rest: 20, settle: 5s, unseen: 2, away: 8s, pauses: 0.1}"
    wanted = Pace(order=120, look=0.5, rest=20, settle=5, unseen=2, away=8, pauses=0.1)
    assert read(tmp_path, text) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pace: {setle: 5s}", ":3: .*setle"),
        ("pace: {look: soon}", ":3: .*look.*length of time"),
        ("pace: {unseen: 0}", ":3: .*unseen"),
        ("pace: {order: 5s}", r":2: .*timeout.*order: 12s"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadDocument, match=said):
        read(tmp_path, text)


def test_pauses_after_refusals_follow_it() -> None:
    usual, quick = Launches(), Launches(pauses=0.1)
    for kind in ("capacity", "quota", "auth", "transient"):
        one = usual.refused(KEY, kind, "", 0).block(KEY, 1)
        other = quick.refused(KEY, kind, "", 0).block(KEY, 1)
        assert one is not None and other is not None
        assert other.until == one.until / 10


def test_what_a_vendor_asks_for_is_not_made_shorter() -> None:
    block = Launches(pauses=0.1).refused(KEY, "rate", "", 0, after=7.0).block(KEY, 1)
    assert block is not None and block.until == 7000
