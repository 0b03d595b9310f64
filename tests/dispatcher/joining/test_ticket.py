from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.dispatcher.joining import ticket
from spinal.dispatcher.joining.ticket import AGAIN, JoiningError, Refused, Ticket, taken
from spinal.dispatcher.store.contract import Record

NONCE, OTHER = "0123456789abcdef", "fedcba9876543210"


def a_ticket(**changes: Any) -> Ticket:
    said: dict[str, Any] = {"name": "web-1", "secret": "", "created": 0, "expires": 1000}
    return Ticket(**{**said, **changes})


def test_a_ticket_names_its_machine_and_has_160_bits_of_chance() -> None:
    made = [ticket.fresh(a_ticket()) for _ in range(100)]

    names, secrets = zip(*(ticket.split(text) for _, text in made), strict=True)

    assert set(names) == {"web-1"}
    assert len(set(secrets)) == 100
    assert all(len(secret) == 32 and secret.islower() for secret in secrets)
    assert not any(secret in repr(kept) for (kept, _), secret in zip(made, secrets, strict=True))


def test_who_comes_first_has_it_and_may_ask_again_for_a_while() -> None:
    kept, text = ticket.fresh(a_ticket())
    _, secret = ticket.split(text)

    mine = taken(kept, secret, NONCE, 999)

    assert mine.used == 999
    assert NONCE not in repr(mine)
    # Also when the ticket itself would have expired.
    assert taken(mine, secret, NONCE, 999 + AGAIN) is mine
    with pytest.raises(Refused, match="used already"):
        taken(mine, secret, OTHER, 1000)
    with pytest.raises(Refused, match="used already"):
        taken(mine, secret, NONCE, 1000 + AGAIN)


def test_the_wrong_secret_no_ticket_and_one_that_has_expired_are_refused() -> None:
    kept, text = ticket.fresh(a_ticket())
    _, secret = ticket.split(text)

    for known, shown in ((kept, secret[:-1] + "x"), (None, secret), (kept, "")):
        with pytest.raises(Refused, match="not known"):
            taken(known, shown, NONCE, 0)
    with pytest.raises(Refused, match="expired"):
        taken(kept, secret, NONCE, 1000)
    with pytest.raises(Refused, match="nonce"):
        taken(kept, secret, "short", 0)


@pytest.mark.parametrize(
    "text", ["", "web-1", "web-1/", "/abc", "Web/abc", "a/b/c", "a/" + "b" * 200, "a/é", "a/b c"]
)
def test_what_is_no_ticket_is_told_so(text: str) -> None:
    with pytest.raises(Refused, match="NAME/SECRET"):
        ticket.split(text)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "No Name"}, "cannot be a name"),
        ({"name": "provider-ec2"}, "the name of a provider agent: choose one"),
        ({"files": {"../x.py": ""}, "run": ("machine",)}, "cannot be the name"),
        ({"files": {"x.sh": ""}, "run": ("x.sh",)}, "cannot be the name"),
        ({"files": {".py": ""}}, "cannot be the name"),
        ({"files": {"-x.py": ""}}, "begins with '-'"),
        ({"files": {"x.py": "a" * ticket.MAX_BYTES + "b"}}, "bytes together"),
        ({"packages": ("--index-url=http://evil",)}, "no package"),
        ({"packages": ("",)}, "no package"),
        ({"packages": ("a\nb",)}, "no package"),
        ({"run": ()}, "nothing to run"),
        ({"run": ("x.py",)}, "no file of the ticket"),
        ({"files": {"x.py": "", "x.yaml": ""}, "run": ("x.py", "x.yaml")}, "one name"),
        ({"files": {"machine.py": ""}, "run": ("machine", "machine.py")}, "one name"),
    ],
)
def test_what_cannot_be_asked_of_a_ticket_is_said_when_it_is_made(
    wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(JoiningError, match=said) as caught:
        ticket.fresh(a_ticket(**wrong))

    assert "\n" not in str(caught.value)


NAMES = st.text("abc-_0", min_size=1, max_size=8)


@given(
    st.builds(
        Ticket,
        name=NAMES,
        secret=NAMES,
        created=st.integers(0, 2**50),
        expires=st.integers(0, 2**50),
        files=st.dictionaries(NAMES, st.text(max_size=8), max_size=3),
        packages=st.lists(NAMES, max_size=3).map(tuple),
        run=st.lists(NAMES, max_size=3).map(tuple),
        place=st.dictionaries(NAMES, NAMES, max_size=3),
        tags=st.lists(NAMES, max_size=3).map(tuple),
        cost=st.none() | st.floats(0, 1e6),
        used=st.none() | st.integers(0, 2**50),
        nonce=NAMES,
        version=st.integers(0, 100),
    )
)
def test_a_ticket_comes_back_from_its_record_as_it_was(one: Ticket) -> None:
    record = ticket.written(one)
    on_disk = json.loads(json.dumps(record.body))

    assert ticket.read(Record(record.kind, record.name, record.version, on_disk)) == one


def test_a_file_is_found_by_its_hash() -> None:
    one = a_ticket(files={"a.py": "one", "b.py": "zwei ä"})

    assert one.file(ticket.digest("zwei ä")) == "zwei ä".encode()
    assert one.file(ticket.digest("three")) is None


def test_a_ticket_is_forgotten_a_day_after_it_was_of_any_use() -> None:
    one = a_ticket()
    day = ticket.FORGOTTEN

    assert [one.over(at) for at in (1000 + day, 1001 + day)] == [False, True]
    assert not replace(one, used=5000).over(1001 + day)
    assert [replace(one, used=5000).state(0), one.state(999), one.state(1000)] == [
        "used",
        "open",
        "expired",
    ]
