"""Tickets, accounts and the desk together, over real HTTPS."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from spinal.bus.home import Home
from spinal.bus.loops import loop_factory
from spinal.dispatcher.joining import desk as desks
from spinal.dispatcher.joining.joining import Joining
from spinal.dispatcher.joining.ticket import AGAIN, FORGOTTEN, KIND, JoiningError, Refused
from spinal.dispatcher.store import store_for

from .store import MemoryRecords

NONCE, OTHER = "0123456789abcdef", "fedcba9876543210"
HOUR = 3_600_000

#: First byte of a record of a TLS handshake (RFC 8446, 5.1).
HANDSHAKE = b"\x16"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home.create(tmp_path / "home", environ={})
    # As the server would have made it.
    (found.path / "server" / "ca.pem").write_text("the authority of the bus")
    return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def records() -> MemoryRecords:
    return MemoryRecords()


@pytest.fixture
async def joining(home: Home, records: MemoryRecords, clock: Clock) -> AsyncIterator[Joining]:
    async with Joining(home, records, now=clock) as found:
        yield found


async def ask(
    joining: Joining, method: str, path: str, **options: Any
) -> tuple[int, Any, dict[str, str]]:
    """Ask the desk as a machine does: trusting its authority and nothing else."""
    trust = ssl.create_default_context(cadata=await joining.authority())
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, joining.url + path, ssl=trust, **options) as answer,
    ):
        kind = answer.headers.get("Content-Type", "")
        body = await (answer.json() if "json" in kind else answer.read())
        return answer.status, body, dict(answer.headers)


async def join(joining: Joining, ticket: str, nonce: str = NONCE) -> tuple[int, Any]:
    status, body, _ = await ask(joining, "POST", "/join", json={"ticket": ticket, "nonce": nonce})
    return status, body


async def test_a_ticket_makes_an_account_and_tells_the_machine_all_it_needs(
    joining: Joining, home: Home
) -> None:
    made = await joining.make(
        "web-1",
        files={"worker.py": "pass"},
        packages=["pillow"],
        run=["worker.py"],
        place={"pool": "/web"},
        tags=["new"],
        cost=0.5,
    )
    assert "web-1" not in home.accounts()

    status, told = await join(joining, made.text)

    assert status == 200
    host, port = home.endpoint
    assert told == {
        "address": "web-1@spinal.localhost",
        "password": home.password("web-1"),
        "servers": [f"{host}:{port}"],
        "dispatchers": ["dispatcher.spinal.localhost"],
        "uploads": list(home.uploads),
        "ca": "the authority of the bus",
        "agents": [{"name": "worker.py", "sha256": hashlib.sha256(b"pass").hexdigest()}],
        "packages": ["pillow"],
        "run": ["worker.py"],
        "place": {"pool": "/web", "machine": "/web-1"},
        "tags": ["new"],
        "cost": 0.5,
    }
    assert home.accounts()["web-1"] == "agent"


async def test_whoever_lost_the_answer_gets_it_again_and_nobody_else(
    joining: Joining, clock: Clock
) -> None:
    made = await joining.make("web-1")
    _, first = await join(joining, made.text)

    assert await join(joining, made.text) == (200, first)
    status, body = await join(joining, made.text, OTHER)
    assert (status, body["error"][:28]) == (403, "the ticket of web-1 was used")
    clock.now += AGAIN + 1
    assert (await join(joining, made.text))[0] == 403


async def test_who_comes_after_a_crash_between_taking_and_answering_gets_in(
    joining: Joining, home: Home, records: MemoryRecords, clock: Clock
) -> None:
    made = await joining.make("web-1")
    await joining._take("web-1", made.text.partition("/")[2], NONCE)  # pyright: ignore[reportPrivateUsage]
    assert "web-1" not in home.accounts()

    later = Joining(home, records, now=clock)

    assert (await later.admit(made.text, NONCE))["address"] == "web-1@spinal.localhost"
    with pytest.raises(Refused):
        await later.admit(made.text, OTHER)


@pytest.mark.parametrize("round", range(5))
async def test_of_many_who_come_with_one_ticket_to_two_dispatchers_exactly_one_gets_in(
    home: Home, clock: Clock, round: int
) -> None:
    store, other = store_for(home.store), store_for(home.store)
    await store.open("d1@x/d", 60.0)
    await other.open("d2@x/d", 60.0)
    try:
        async with Joining(home, store, now=clock) as one:
            made = await one.make("web-1")
            two = Joining(home, other, now=clock)
            tries = [(two if n % 2 else one).admit(made.text, f"{n:016}") for n in range(10)]
            ended = await asyncio.gather(*tries, return_exceptions=True)
    finally:
        await store.close()
        await other.close()

    refused = [one for one in ended if isinstance(one, Refused)]
    assert len(refused) == 9, ended


async def test_a_new_ticket_of_a_name_ends_the_one_before(joining: Joining) -> None:
    former, later = await joining.make("web-1"), await joining.make("web-1")

    assert (await join(joining, former.text))[0] == 403
    assert (await join(joining, later.text))[0] == 200


async def test_a_name_that_is_taken_gets_no_ticket_and_its_password_is_not_given(
    joining: Joining, home: Home
) -> None:
    made = await joining.make("web-1")
    home.add_account("web-1", "agent")

    assert (await join(joining, made.text))[0] == 403
    with pytest.raises(JoiningError, match="an account 'web-1' already"):
        await joining.make("web-1")


async def test_a_machine_that_is_dismissed_is_off_the_bus_and_its_ticket_good_for_nothing(
    joining: Joining, home: Home, records: MemoryRecords
) -> None:
    made, unused = await joining.make("web-1"), await joining.make("web-2")
    await join(joining, made.text)

    await joining.dismiss("web-1")
    await joining.dismiss("web-2")
    await joining.dismiss("web-3")

    assert set(home.accounts()) == {"owner"}
    assert not records.kept
    assert (await join(joining, made.text))[0] == 403
    assert (await join(joining, unused.text))[0] == 403
    assert (await joining.make("web-1")).text != made.text


async def test_dismissing_touches_no_account_that_is_no_machines(
    joining: Joining, home: Home
) -> None:
    home.add_account("ann", "caller")

    await joining.dismiss("ann")
    await joining.dismiss("owner")

    assert home.accounts() == {"ann": "caller", "owner": "owner"}


async def test_files_are_given_to_their_machine_alone(joining: Joining, home: Home) -> None:
    text = "print('ä')"
    made = await joining.make("web-1", files={"w.py": text}, run=["w.py"])
    path = f"/agents/{hashlib.sha256(text.encode()).hexdigest()}"
    other = await joining.make("web-2")
    await join(joining, other.text)

    def by(name: str, password: str) -> dict[str, Any]:
        basic = base64.b64encode(f"{name}:{password}".encode()).decode()
        return {"headers": {"Authorization": f"Basic {basic}"}}

    # Not before it has joined.
    assert (await ask(joining, "GET", path, **by("web-1", "")))[0] == 403
    await join(joining, made.text)
    password = home.password("web-1")

    assert (await ask(joining, "GET", path, **by("web-1", password)))[:2] == (200, text.encode())
    for wrong in (
        by("web-1", "wrong"),
        by("web-2", home.password("web-2")),
        by("owner", home.password("owner")),
        by("nobody", ""),
        {},
        {"headers": {"Authorization": "Basic !"}},
        {"headers": {"Authorization": "Bearer x"}},
    ):
        assert (await ask(joining, "GET", path, **wrong))[0] == 403, wrong
    status, _, _ = await ask(joining, "GET", "/agents/" + "0" * 64, **by("web-1", password))
    assert status == 403


async def test_the_wheel_that_is_served_is_the_one_of_the_script(joining: Joining) -> None:
    text = await joining.invite("web-1", {"w.py": "pass"}, cost=0.1)

    status, content, headers = await ask(joining, "GET", "/spinal.whl")
    sha256 = hashlib.sha256(content).hexdigest()
    assert status == 200
    assert "spinal-0.1.0-py3-none-any.whl" in headers["Content-Disposition"]
    assert (await ask(joining, "GET", "/spinal.whl.sha256"))[1].split()[0] == sha256.encode()
    assert f"{joining.url}/wheels/{sha256}" in text
    assert (await ask(joining, "GET", f"/wheels/{sha256}"))[:2] == (200, content)
    for wrong in ("0" * 64, "..", "%2e%2e%2f%2e%2e"):
        assert (await ask(joining, "GET", f"/wheels/{wrong}"))[0] == 404


@pytest.mark.parametrize(
    "options",
    [
        {"data": b""},
        {"data": b"{"},
        {"data": b"[" * 4000},
        {"json": []},
        {"json": {"ticket": 1, "nonce": NONCE}},
        {"json": {"ticket": "web-1/x"}},
        {"json": {"ticket": "x" * 5000, "nonce": NONCE}},
    ],
)
async def test_nonsense_is_refused_in_a_line(joining: Joining, options: dict[str, Any]) -> None:
    status, body, _ = await ask(joining, "POST", "/join", **options)

    assert status in (400, 403, 413)
    assert "\n" not in body["error"]


async def test_a_refusal_is_one_line_of_log_and_no_ticket_is_in_it(joining: Joining) -> None:
    made = await joining.make("web-1")
    wrong = made.text[:-1] + ("a" if made.text[-1] != "a" else "b")

    with structlog.testing.capture_logs() as said:
        await join(joining, wrong)
        await join(joining, made.text)
        await join(joining, made.text, OTHER)

    refused = [one for one in said if one["event"] == "join_refused"]
    assert len(refused) == 2
    for ticket in (wrong, made.text):
        assert ticket.partition("/")[2] not in repr(said)


async def test_who_is_refused_too_often_has_to_wait_even_with_a_good_ticket(
    joining: Joining,
) -> None:
    made = await joining.make("web-1")
    for _ in range(desks.REFUSALS):
        assert (await join(joining, "web-1/wrong"))[0] == 403

    status, body, headers = await ask(
        joining, "POST", "/join", json={"ticket": made.text, "nonce": NONCE}
    )

    assert (status, body) == (429, {"error": "refused too often: wait"})
    assert 0 < int(headers["Retry-After"]) <= desks.PACE + 1


async def hold(joining: Joining, number: int, address: str, tls: bool) -> list[Any]:
    """Open connections and say nothing over them; gives their readers and writers."""
    trust = ssl.create_default_context(cadata=await joining.authority()) if tls else None
    port = int(joining.url.rpartition(":")[2])
    return [
        await asyncio.open_connection("127.0.0.1", port, ssl=trust, local_addr=(address, 0))
        for _ in range(number)
    ]


async def test_who_says_nothing_holds_a_place_for_a_while_only(
    joining: Joining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(desks, "LIFE", 2.0)
    made = await joining.make("web-1")
    held = await hold(joining, 4, "127.0.0.1", tls=True)

    with pytest.raises(aiohttp.ClientError):
        await join(joining, made.text)
    for reader, writer in held:
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    assert (await join(joining, made.text))[0] == 200


async def test_one_address_cannot_take_all_places(
    joining: Joining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "MAX_OF_ONE", 3)
    made = await joining.make("web-1")
    held = await hold(joining, 3, "127.0.0.2", tls=True)
    with pytest.raises(ConnectionError):
        await hold(joining, 1, "127.0.0.2", tls=True)
    assert (await join(joining, made.text))[0] == 200
    for _, writer in held:
        writer.close()


async def test_who_does_not_even_begin_with_tls_takes_a_place_as_well(
    joining: Joining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "MAX_CONNECTIONS", 3)
    held = await hold(joining, 3, "127.0.0.1", tls=False)
    ((reader, writer),) = await hold(joining, 1, "127.0.0.1", tls=False)

    with suppress(ConnectionError):
        assert await reader.read() == b""
    assert not held[0][0].at_eof()
    for _, one in held:
        one.close()
    writer.close()


@pytest.mark.parametrize("factory", [None, loop_factory()], ids=["asyncio", "uvloop"])
def test_what_a_guest_says_before_anybody_listens_is_heard(
    home: Home, factory: Callable[[], asyncio.AbstractEventLoop] | None
) -> None:
    async def main() -> bytes:
        async with Joining(home, MemoryRecords(), now=Clock()) as joining:
            trust = ssl.create_default_context(cadata=await joining.authority())
            words = ssl.MemoryBIO()
            tls = trust.wrap_bio(ssl.MemoryBIO(), words, server_hostname="127.0.0.1")
            with suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            # All of it is there before our loop has a turn.
            with socket.create_connection(
                ("127.0.0.1", int(joining.url.rpartition(":")[2]))
            ) as guest:
                guest.sendall(words.read())
                guest.settimeout(5)
                return await asyncio.to_thread(guest.recv, 1)

    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(main()) == HANDSHAKE


def test_refusals_are_forgotten_one_by_one_and_only_so_many_addresses_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(desks, "MAX_STRANGERS", 2)
    refusals = desks.Refusals(most=3, pace=10.0)
    for _ in range(3):
        assert refusals.wait("a", 100.0) == 0.0
        refusals.count("a", 100.0)

    assert refusals.wait("a", 100.0) == 10.0
    assert refusals.wait("a", 110.0) == 0.0
    assert refusals.wait("b", 100.0) == 0.0
    refusals.count("a", 110.0)
    assert refusals.wait("a", 110.0) == 10.0
    for other in ("b", "c"):
        refusals.count(other, 110.0)
    assert refusals.wait("a", 110.0) == 0.0


async def test_tickets_are_listed_and_forgotten_a_day_after_they_were_of_use(
    joining: Joining, clock: Clock, records: MemoryRecords
) -> None:
    used, _, _ = [await joining.make(name, expires=3600) for name in ("b", "c", "a")]
    await join(joining, used.text)

    assert [one.name for one in await joining.tickets()] == ["a", "b", "c"]
    clock.now += FORGOTTEN + 1
    await joining._forget()  # pyright: ignore[reportPrivateUsage]
    assert set(await records.versions(KIND)) == {"a", "c"}
    clock.now += HOUR
    await joining._forget()  # pyright: ignore[reportPrivateUsage]
    assert not await records.versions(KIND)


async def test_where_a_server_elsewhere_makes_the_accounts_nobody_can_join(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "home", domain="bus.test", server="bus.test:5222", environ={})

    async with Joining(home, MemoryRecords()) as joining:
        with pytest.raises(JoiningError, match="cannot join here: the server at bus") as caught:
            await joining.invite("web-1")

    assert "\n" not in str(caught.value)


async def test_a_home_without_a_port_for_it_gets_one_and_keeps_it(
    home: Home, records: MemoryRecords
) -> None:
    settings = home.path / "home.json"
    settings.write_text(settings.read_text().replace(f": {home.ports.desk}", ": 0"))
    old = Home.find(home.path, {})
    assert old.ports.desk == 0

    async with Joining(old, records) as joining:
        url = joining.url

    assert url == f"https://127.0.0.1:{Home.find(home.path, {}).ports.desk}"
    assert Home.find(home.path, {}).ports.desk not in (0, *_others(home))


def _others(home: Home) -> tuple[int, ...]:
    return home.ports.c2s, home.ports.component, home.ports.upload


async def test_a_desk_whose_port_is_taken_is_said_and_the_bus_goes_on(
    home: Home, records: MemoryRecords
) -> None:
    async with Joining(home, records):
        with structlog.testing.capture_logs() as said:
            async with Joining(home, records) as second:
                with pytest.raises(JoiningError, match=r"desk is closed: .*port"):
                    await second.make("web-1")

    assert [one["event"] for one in said] == ["desk_not_open"]


async def test_the_host_that_machines_use_is_in_the_certificate(
    home: Home, records: MemoryRecords
) -> None:
    async with Joining(home, records, host="bus.example.org") as joining:
        assert joining.url.startswith("https://bus.example.org:")
        made = await joining.make("web-1")
        told = await joining.admit(made.text, NONCE)
        assert told["servers"] == [f"bus.example.org:{home.ports.c2s}"]
        trust = ssl.create_default_context(cadata=await joining.authority())
        _, writer = await asyncio.open_connection(
            "127.0.0.1", home.ports.desk, ssl=trust, server_hostname="bus.example.org"
        )
        writer.close()
        await writer.wait_closed()
