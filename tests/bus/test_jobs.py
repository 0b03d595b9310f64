"""Jobs as a client holds them.

The dispatchers here are :class:`Desk`, which answers the operations for jobs as docs/protocol.md
says and does the work itself, so that it can fall silent, stop and come back to order.  The real
dispatcher stands behind the same client in tests/integration and tests/scenarios.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from itertools import count
from typing import Any

import pytest

from spinal.bus import (
    BadCall,
    BusError,
    CallError,
    Client,
    Job,
    JobUpdate,
    NoAgent,
    NotAllowed,
    NotEnded,
    OperationFailed,
    Unreached,
)
from spinal.bus.call import Item
from spinal.bus.session import Request, Session
from spinal.protocols import Json, Log, Problem, Progress
from spinal.testing import Faults, MemoryBus, eventually, virtual_time

ONE, TWO = "one.memory.test", "two.memory.test"
ANN = "ann@memory.test/desk"
FINAL = ("done", "error", "killed")

Row = dict[str, Any]


class Store:
    """Where the jobs of all desks are, and who does them."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.logs: dict[str, list[Row]] = {}
        self.changed = asyncio.Condition()
        self.ran: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.submissions: list[Mapping[str, Any]] = []
        self._numbers = count(1)

    def add(self, said: Mapping[str, Any]) -> Row:
        self.submissions.append(said)
        for row in self.rows.values():
            if said.get("key") is not None and row["key"] == said["key"]:
                return row
        row = {
            "id": f"j{next(self._numbers):04}",
            "op": said["op"],
            "state": "processing" if said.get("kind") else "queued",
            **{k: said[k] for k in ("key", "labels", "parent", "position", "kind") if k in said},
            "args": said.get("args", {}),
        }
        self.rows[row["id"]] = row
        self.logs[row["id"]] = []
        return row

    async def change(self, row: Row, **changes: Any) -> None:
        async with self.changed:
            if row["state"] not in FINAL:
                row.update(changes)
            self.changed.notify_all()

    async def say(self, row: Row, text: str) -> None:
        async with self.changed:
            lines = self.logs[row["id"]]
            lines.append({"seq": len(lines) + 1, "at": "t", "level": "info", "text": text})
            self.changed.notify_all()

    async def work(self, row: Row) -> None:
        """Do a job: ``/square`` after ``wait`` seconds, ``/fail``; another one never ends."""
        self.ran[row["key"]] += 1
        await self.change(row, state="processing", agent="w@memory.test/agent", attempt=1)
        await asyncio.sleep(row["args"].get("wait", 0))
        if row["op"] == "/square":
            await self.change(row, state="done", value=row["args"]["n"] ** 2, run=0.5)
        elif row["op"] == "/echo":
            await self.change(row, state="done", value=row["args"]["text"])
        elif row["op"] == "/fail":
            problem = Problem(row["args"].get("reason", "failed"), "as asked").to_json()
            await self.change(row, state="error", problem=problem)

    def children(self, id: str) -> list[Row]:
        found = [row for row in self.rows.values() if row.get("parent") == id]
        return sorted(found, key=lambda row: row["position"])

    def told(self, row: Row, *parts: str) -> Row:
        found = {k: v for k, v in row.items() if k not in {"args", "value"} - set(parts)}
        if counts := Counter(child["state"] for child in self.children(row["id"])):
            found["children"] = dict(counts)
        large = [part for part in parts if isinstance(found.get(part), str)]
        for part in large:
            del found[part]
        return {**found, "large": large} if large else found


class Desk:
    """A dispatcher: one life after the other at one address, over a store that outlives them."""

    def __init__(self, bus: MemoryBus, address: str, store: Store) -> None:
        self.bus = bus
        self.address = address
        self.store = store
        self.lives = count(1)
        self.session: Session | None = None
        #: Is called before an operation is answered, and may raise or wait.
        self.before: Callable[[Request], Any] = lambda request: None
        #: Answers that are lost after the work was done: the dispatcher dies of them.
        self.deaf = asyncio.Event()

    async def start(self) -> None:
        self.session = Session(
            self.bus.connection(self.address),
            self.handle,
            role="dispatcher",
            epoch=next(self.lives),
        )
        await self.session.__aenter__()

    async def stop(self) -> None:
        if self.session is not None:
            session, self.session = self.session, None
            await session.close()

    async def handle(self, request: Request) -> Json:
        what = request.op.op.removeprefix("/spinal/jobs/")
        self.store.asked[what] += 1
        found = self.before(request)
        if asyncio.iscoroutine(found):
            await found
        args: Row = dict(request.op.args)
        if what == "submit":
            return await self.submit(args)
        if what == "map":
            return await self.map(args, request)
        if what == "submit-all":
            return self.submit_all(args["jobs"])
        if what == "list":
            return self.page(self.listed(args), args["limit"])
        if not what.startswith("/"):
            row = self.store.rows.get(args["id"])
            if row is None:
                raise CallError.of(Problem("unknown-job", f"there is no job {args['id']}"))
            answer: Json = await getattr(self, what)(row, args, request)
            return answer
        return {"desk": self.address, **args}

    async def submit(self, said: Row) -> Row:
        row = self.begun(said)
        await self.over(row, said.get("wait", 0.0))
        return self.store.told(row, "value")

    def begun(self, said: Row) -> Row:
        before = len(self.store.rows)
        row = self.store.add(said)
        if len(self.store.rows) > before and not said.get("kind"):
            self.tasks.append(asyncio.create_task(self.store.work(row)))
        return row

    async def map(self, said: Row, request: Request) -> Row:
        """Tell of those that end together in one piece."""
        common = {name: said[name] for name in said.keys() - {"inputs", "wait"}}
        live = {
            position: self.begun(
                {**common, "key": f"{said['key']}/{position}", "position": position, "args": args}
            )
            for position, args in said["inputs"]
        }

        def ended() -> list[Row]:
            return [row for row in live.values() if row["state"] in FINAL]

        with suppress(TimeoutError):
            async with asyncio.timeout(said["wait"]):
                while live:
                    async with self.store.changed:
                        await self.store.changed.wait_for(ended)
                    rows = ended()[:50]
                    await request.data([self.store.told(row, "value") for row in rows])
                    for row in rows:
                        del live[row["position"]]
        return {"jobs": [{"position": at, "id": row["id"]} for at, row in live.items()]}

    tasks: list[asyncio.Task[None]]

    def submit_all(self, jobs: list[Row]) -> Row:
        if any(job.get("after") == [job["name"]] for job in jobs):
            name = jobs[0]["name"]
            raise CallError.of(Problem("bad-arguments", f"{name} -> {name}"))
        return {"jobs": [{"name": j["name"], "id": self.store.add(j)["id"]} for j in jobs]}

    async def over(self, row: Row, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds), self.store.changed:
                await self.store.changed.wait_for(lambda: row["state"] in FINAL)
        except TimeoutError:
            pass

    def listed(self, args: Row) -> list[Row]:
        label = str(args.get("label", "*"))
        rows = [
            self.store.told(row)
            for id, row in reversed(self.store.rows.items())
            if id < args.get("before", "z")
            and ("parent" not in args or row.get("parent") == args["parent"])
            and ("state" not in args or row["state"] in args["state"])
            and (label == "*" or label in row.get("labels", ()))
        ]
        return rows

    @staticmethod
    def page(rows: list[Row], limit: int) -> Row:
        limit = min(limit, 7)
        return {"items": rows[:limit], "more": len(rows) > limit}

    async def get(self, row: Row, args: Row, request: Request) -> Row:
        return self.store.told(row, "args", "value")

    async def part(self, row: Row, args: Row, request: Request) -> Json:
        return row[args["part"]]

    async def wait(self, row: Row, args: Row, request: Request) -> Row:
        await self.over(row, args["seconds"])
        return self.store.told(row, "value")

    async def watch(self, row: Row, args: Row, request: Request) -> Row:
        """Tell the state, then what is new from now on."""
        seen, last = len(self.store.logs[row["id"]]), None
        while True:
            async with self.store.changed:
                state, lines = row["state"], self.store.logs[row["id"]]
                new, seen = lines[seen:], len(lines)
            if state != last:
                last = state
                await request.data(self.store.told(row))
            for line in new:
                await request.data({"log": line})
            if state in FINAL:
                return self.store.told(row, "value")
            await request.data({"progress": {"done": seen, "total": 9}})
            async with self.store.changed:
                if (row["state"], len(lines)) == (state, seen):
                    await self.store.changed.wait()

    async def log(self, row: Row, args: Row, request: Request) -> Row:
        lines = [line for line in self.store.logs[row["id"]] if line["seq"] > args["after"]]
        return {**self.page(lines, args["limit"]), "dropped": 3}

    async def children(self, row: Row, args: Row, request: Request) -> Row:
        rows = [
            self.store.told(child, "args", "value")
            for child in self.store.children(row["id"])
            if child["position"] > args["after"]
        ]
        return self.page(rows, args["limit"])

    async def close(self, row: Row, args: Row, request: Request) -> Row:
        await self.store.change(row, state="done")
        return self.store.told(row)

    async def cancel(self, row: Row, args: Row, request: Request) -> Row:
        for each in (row, *self.store.children(row["id"])):
            problem = Problem("cancelled").to_json()
            await self.store.change(each, state="killed", problem=problem)
        return self.store.told(row)

    async def retry(self, row: Row, args: Row, request: Request) -> Row:
        again = {"op": row["op"], "args": row["args"], "key": f"again {next(self.lives)}"}
        return await self.submit(again)

    async def why(self, row: Row, args: Row, request: Request) -> Row:
        return {"id": row["id"], "lines": ["it was there"]}


class Site:
    """A bus with desks, a store, and a client."""

    def __init__(self, *addresses: str) -> None:
        self.bus = MemoryBus()
        self.store = Store()
        self.desks = [Desk(self.bus, address, self.store) for address in addresses]
        self.tasks: list[asyncio.Task[None]] = []
        for desk in self.desks:
            desk.tasks = self.tasks

    @property
    def desk(self) -> Desk:
        return self.desks[0]


@asynccontextmanager
async def site(*addresses: str) -> AsyncGenerator[tuple[Site, Client]]:
    addresses = addresses or (ONE,)
    here = Site(*addresses)
    for desk in here.desks:
        await desk.start()
    try:
        async with Client(connection=here.bus.connection(ANN), dispatchers=addresses) as client:
            yield here, client
    finally:
        for desk in here.desks:
            await desk.stop()
        for task in here.tasks:
            task.cancel()
        await asyncio.gather(*here.tasks, return_exceptions=True)


def once(*errors: str) -> Callable[[Request], None]:
    """Refuse the next requests with these reasons."""
    left = list(errors)

    def before(request: Request) -> None:
        if left:
            raise CallError.of(Problem(left.pop(0)))

    return before


# One job.


@virtual_time
async def test_a_job_gives_its_value() -> None:
    async with site() as (here, client):
        job = await client.options(label="sums", priority=2).submit("/square", n=4, wait=100)
        assert here.store.rows[job.id]["state"] in ("queued", "processing")
        assert await job.result() == 16
        (said,) = here.store.submissions
        assert said["labels"] == ["sums"] and said["priority"] == 2 and said["key"]
        # It is kept, and found by its id.
        assert await client.job(job.id).result() == 16
        assert (await client.job(job.id).info())["args"] == {"n": 4, "wait": 100}


@virtual_time
async def test_a_handle_asks_nobody_before_it_is_used() -> None:
    client = Client(connection=MemoryBus().connection(ANN))
    job = client.job("j0001")
    assert job.id == "j0001" and not job.row and "not asked" in repr(job)
    with pytest.raises(BusError, match="async with"):
        await job.info()
    for wrong in ("", "two words", "x" * 200):
        with pytest.raises(ValueError, match="no id"):
            client.job(wrong)


@virtual_time
async def test_an_unknown_id_is_an_error_whatever_is_asked() -> None:
    async with site() as (_, client):
        job = client.job("never")
        for ask in (job.info, job.wait, job.result, job.cancel, job.log, job.retry, job.why):
            with pytest.raises(OperationFailed, match="no job never") as caught:
                await ask()
            assert caught.value.reason == "unknown-job"
        with pytest.raises(OperationFailed):
            [update async for update in job.watch()]
        with pytest.raises(OperationFailed):
            [row async for row in job.children()]


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("failed", OperationFailed),
        ("dependency", OperationFailed),
        ("bad-arguments", BadCall),
        ("no-agent", NoAgent),
        ("lost", Unreached),
        ("deadline", Unreached),
        ("not-allowed", NotAllowed),
    ],
)
def test_a_job_that_did_not_end_well_raises_as_a_call_would(
    reason: str, kind: type[CallError]
) -> None:
    @virtual_time
    async def story() -> None:
        async with site() as (_, client):
            job = await client.submit("/fail", reason=reason)
            with pytest.raises(kind, match="as asked") as caught:
                await job.result()
            assert type(caught.value) is kind
            assert caught.value.reason == reason
            assert caught.value.agent == "w@memory.test/agent"

    story()


@virtual_time
async def test_a_cancelled_job_raises_that_it_was_cancelled() -> None:
    async with site() as (_, client):
        job = await client.submit("/never")
        waiting = asyncio.ensure_future(job.result())
        assert await client.job(job.id).cancel() == "killed"
        with pytest.raises(OperationFailed) as caught:
            await waiting
        assert caught.value.reason == "cancelled"
        done = await client.submit("/square", n=1)
        await done.result()
        assert await done.cancel() == "done"


@virtual_time
async def test_a_wait_with_a_time_out_leaves_the_job_going() -> None:
    async with site() as (_, client):
        loop = asyncio.get_running_loop()
        job = await client.submit("/square", n=3, wait=90)
        began = loop.time()
        with pytest.raises(NotEnded, match=rf"{job.id} has not ended within 30s: .*processing"):
            await job.result("30s")
        assert loop.time() - began == pytest.approx(30, abs=1)
        assert (await job.wait(0))["state"] == "processing"
        assert (await job.wait(70))["state"] == "done"
        assert await job.result(0) == 9


@virtual_time
async def test_a_value_that_is_too_large_for_a_row_is_asked_for() -> None:
    async with site() as (here, client):
        job = await client.submit("/never", text="long")
        await here.store.change(here.store.rows[job.id], state="done", value="a long text")
        assert await job.result() == "a long text"
        assert await client.job(job.id).result() == "a long text"
        (final,) = [u.row async for u in client.job(job.id).watch() if u.row is not None]
        assert final["value"] == "a long text" and "large" not in final


@virtual_time
async def test_a_retry_is_a_new_job_and_why_is_told() -> None:
    async with site() as (here, client):
        job = await client.submit("/fail")
        await job.wait()
        again = await job.retry()
        assert again.id != job.id
        assert await again.why() == ["it was there"]
        # Each time makes a job, so what may have been done is not asked for again.
        here.desk.before = once("no-answer")
        with pytest.raises(Unreached):
            await job.retry()
        here.desk.before = once("busy", "draining")
        with pytest.raises(Unreached):
            await job.retry()
        here.desk.before = once("draining")
        await job.retry()


# Submissions.


@virtual_time
async def test_a_submission_of_unknown_outcome_is_repeated_under_its_key() -> None:
    async with site() as (here, client):

        def lose_the_answer(request: Request) -> None:
            here.desk.before = lambda request: None
            here.store.add(request.op.args)
            raise CallError.of(Problem("no-answer"))

        here.desk.before = lose_the_answer
        job = await client.submit("/square", n=2)
        assert len(here.store.rows) == 1
        first, second = here.store.submissions
        assert first["key"] == second["key"]
        assert list(here.store.rows) == [job.id]
        # Two submissions without a key are two jobs, with a key they are one.
        assert (await client.submit("/square", n=2)).id != job.id
        keyed = client.options(key="two")
        assert (await keyed.submit("/square", n=2)).id == (await keyed.submit("/square", n=2)).id


@virtual_time
async def test_a_submission_that_nobody_answers_says_with_which_key_to_ask_again() -> None:
    async with site() as (here, client):
        here.desk.before = lambda request: asyncio.Event().wait()
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(Unreached, match=r"may be there: .*key='mine' gives the same one"):
            await client.options(key="mine", timeout=25).submit("/square", n=2)
        assert 20 <= loop.time() - began <= 26
        # One that was refused, or that nobody can have heard, is simply not there.
        here.desk.before = once("full")
        with pytest.raises(Unreached) as caught:
            await client.submit("/square", n=2)
        assert "key=" not in str(caught.value)
        await here.desk.stop()
        with pytest.raises(Unreached) as caught:
            await client.options(timeout=30).submit("/square", n=2)
        assert "key=" not in str(caught.value)


@virtual_time
async def test_options_of_jobs_are_refused_for_calls() -> None:
    async with site() as (here, client):
        stray: list[dict[str, Any]] = [{"delay": 5}, {"label": "a"}, {"after": "j1"}, {"retry": 3}]
        for options in stray:
            (name,) = options
            with pytest.raises(ValueError, match=f"^{name}s?: .*durable=True"):
                await client.options(**options).call("/square", n=2)
        durable = client.options(durable=True)
        with pytest.raises(ValueError, match=r"no stream .*job.watch"):
            [piece async for piece in durable.stream("/square", n=2)]
        with pytest.raises(ValueError, match="durable"):
            await durable.start("/square", {"n": 2})
        assert not here.store.asked


@virtual_time
async def test_several_jobs_are_submitted_together_and_may_name_each_other() -> None:
    async with site() as (here, client):
        plan = {
            "fetch": client.options(priority=1).planned("/fetch", url="x"),
            "scale": client.options(after="fetch").planned("/scale"),
        }
        here.desk.before = once("no-answer")
        jobs = await client.submit_all(plan)
        assert list(jobs) == ["fetch", "scale"]
        fetch, scale = here.store.submissions
        assert (fetch["name"], fetch["args"], fetch["priority"]) == ("fetch", {"url": "x"}, 1)
        assert scale["after"] == ["fetch"] and fetch["key"] != scale["key"]
        assert (await jobs["scale"].info())["op"] == "/scale"
        with pytest.raises(BadCall, match="a -> a"):
            await client.submit_all({"a": client.options(after="a").planned("/x")})
        assert await client.submit_all({}) == {}


@virtual_time
async def test_jobs_are_listed_in_pages_by_what_is_known_of_them() -> None:
    async with site() as (_, client):
        web = client.options(label="web")
        made = [(await web.submit("/square", n=n)).id for n in range(20)]
        other = await client.submit("/never")
        assert [row["id"] async for row in client.jobs(label="web")] == made[::-1]
        assert [row["id"] async for row in client.jobs(limit=1)] == [other.id]
        assert [row["id"] async for row in client.jobs(label="web", limit=9)] == made[:10:-1]
        assert [r["id"] async for r in client.jobs(state=["processing"])] == [other.id]
        assert [r async for r in client.jobs(parent=other)] == []


# Restarts, and several dispatchers.


@virtual_time
async def test_a_result_survives_a_restart_of_the_dispatcher() -> None:
    async with site() as (here, client):
        job = await client.submit("/square", n=5, wait=200)
        waiting = asyncio.ensure_future(job.result())
        for seconds in (1, 45):
            await asyncio.sleep(10)
            await here.desk.stop()
            await asyncio.sleep(seconds)
            assert not waiting.done()
            await here.desk.start()
        assert await waiting == 25
        assert here.store.ran.total() == 1


@virtual_time
async def test_without_a_time_out_dispatchers_are_tried_for_an_hour_or_the_jobs_own_time() -> None:
    async with site() as (here, client):
        loop = asyncio.get_running_loop()
        job = await client.submit("/never")
        await here.desk.stop()
        began = loop.time()
        with pytest.raises(Unreached):
            await job.result()
        assert 3500 < loop.time() - began < 3700
        with pytest.raises(Unreached):
            await job.result(10)
        assert loop.time() - began < 3720


@virtual_time
async def test_another_dispatcher_is_asked_when_one_is_away() -> None:
    async with site(ONE, TWO) as (here, client):
        loop = asyncio.get_running_loop()
        job = await client.submit("/square", n=5, wait=60)
        waiting = asyncio.ensure_future(job.result())
        await eventually(lambda: here.store.asked["wait"] == 1)
        await here.desk.stop()
        assert await waiting == 25
        began = loop.time()
        assert await (await client.submit("/square", n=6)).result() == 36
        # It has been found out already which one is there.
        assert loop.time() - began < 1


@pytest.mark.parametrize("reason", ["draining", "busy", "lost", "no-answer", "expired"])
def test_another_dispatcher_is_asked_when_one_cannot_say(reason: str) -> None:
    @virtual_time
    async def story() -> None:
        async with site(ONE, TWO) as (here, client):
            here.desk.before = once(*[reason] * 100)
            job = await client.submit("/square", n=5)
            assert await job.result() == 25
            assert len({said["key"] for said in here.store.submissions}) == 1

    story()


@virtual_time
async def test_a_dispatcher_that_hangs_is_not_waited_for() -> None:
    async with site(ONE, TWO) as (here, client):
        loop = asyncio.get_running_loop()
        here.desk.before = lambda request: asyncio.Event().wait()
        began = loop.time()
        assert await (await client.submit("/square", n=5)).result() == 25
        assert loop.time() - began < 15


@virtual_time
async def test_a_plain_call_goes_elsewhere_only_if_nobody_took_it() -> None:
    async with site(ONE, TWO) as (here, client):
        here.desk.before = once("draining")
        assert (await client.call("/any", n=1))["desk"] == TWO
        # The one that answered is asked first from now on.
        assert (await client.call("/any", n=1))["desk"] == TWO
        here.desks[1].before = once("lost")
        with pytest.raises(Unreached):
            await client.call("/any", n=1)
        await here.desks[1].stop()
        assert (await client.call("/any", n=1))["desk"] == ONE
        (mapped,) = [m async for m in client.map("/any", [{"n": 2}])]
        assert mapped.value["desk"] == ONE
        await here.desk.stop()
        with pytest.raises(Unreached):
            await client.call("/any", n=1)


@virtual_time
async def test_a_dispatcher_that_was_added_later_is_learned_of() -> None:
    async with site() as (here, client):
        assert here.desk.session is not None
        later = Desk(here.bus, TWO, here.store)
        later.tasks = here.tasks
        await later.start()
        here.desk.session.dispatchers = [ONE, TWO]
        here.desk.session.send_presence(ANN, here.desk.session.hello())
        await eventually(lambda: TWO in client.line.dispatchers)
        await here.desk.stop()
        assert await (await client.submit("/square", n=5)).result() == 25
        await later.stop()


@virtual_time
async def test_lost_and_doubled_stanzas_change_nothing() -> None:
    async with site(ONE, TWO) as (here, client):
        here.bus.faults = Faults(drop=0.1, duplicate=0.1)
        jobs = [await client.submit("/square", n=n, wait=n) for n in range(20)]
        assert await asyncio.gather(*(job.result() for job in jobs)) == [n**2 for n in range(20)]
        assert set(here.store.ran.values()) == {1} and here.store.ran.total() == 20


@virtual_time
async def test_closing_the_client_ends_the_waits() -> None:
    async with site() as (here, client):
        job = await client.submit("/never")
        waits = [asyncio.ensure_future(job.result()), asyncio.ensure_future(updates(job))]
        await eventually(lambda: here.store.asked["wait"] and here.store.asked["watch"])
        await client.close()
        for wait in waits:
            with pytest.raises(CallError, match="closed"):
                await wait


# News.


async def updates(job: Job) -> list[JobUpdate]:
    return [update async for update in job.watch()]


def lines(found: list[JobUpdate]) -> list[str]:
    return [update.log.text for update in found if update.log is not None]


def states(found: list[JobUpdate]) -> list[str]:
    return [update.state for update in found if update.row is not None]


@virtual_time
async def test_a_watch_tells_states_progress_and_every_line() -> None:
    async with site() as (here, client):
        job = await client.submit("/square", n=4, wait=50)
        row = here.store.rows[job.id]
        await here.store.say(row, "before anybody watched")
        watching = asyncio.ensure_future(updates(job))
        await eventually(lambda: here.store.asked["watch"])
        for number in range(20):
            await here.store.say(row, f"line {number}")
        found = await watching
        assert states(found) == ["processing", "done"]
        assert lines(found) == ["before anybody watched", *(f"line {n}" for n in range(20))]
        assert any(u.progress is not None and u.progress.total == 9 for u in found)
        assert found[-1].row is not None and found[-1].row["value"] == 16
        assert await job.result() == 16
        kept = await job.log()
        assert len(kept) == 21 and kept.dropped == 3
        assert [line.text for line in await job.log(after=20)] == ["line 19"]


@virtual_time
async def test_a_watch_goes_on_after_a_restart_without_repeating_itself() -> None:
    async with site() as (here, client):
        job = await client.submit("/square", n=4, wait=400)
        row = here.store.rows[job.id]
        watching = asyncio.ensure_future(updates(job))
        await eventually(lambda: here.store.asked["watch"])
        await here.store.say(row, "one")
        await here.store.say(row, "two")
        await here.desk.stop()
        await here.store.say(row, "while nobody told")
        await asyncio.sleep(30)
        await here.desk.start()
        await eventually(lambda: here.store.asked["watch"] > 1, 30)
        await here.store.say(row, "three")
        # Longer than a slice, with nothing said: whether it is there is found out all the same.
        found = await watching
        assert here.store.asked["watch"] > 3
        assert lines(found) == ["one", "two", "while nobody told", "three"]
        assert states(found) == ["processing", "done"]


@virtual_time
async def test_leaving_a_watch_leaves_the_job() -> None:
    async with site() as (_, client):
        job = await client.submit("/square", n=4, wait=5)
        async with aclosing(job.watch()) as watch:
            async for _ in watch:
                break
        assert await job.result() == 16


# Durable calls and maps.


@virtual_time
async def test_a_durable_call_is_a_job_that_is_waited_for() -> None:
    async with site() as (here, client):
        durable = client.options(durable=True, label="mine")
        assert await durable.call("/square", n=3) == 9
        # One that ends at once takes one request.
        assert here.store.asked == Counter(submit=1)
        assert await durable.call("/square", n=4, wait=300) == 16
        with pytest.raises(OperationFailed, match="as asked"):
            await durable.call("/fail")
        with pytest.raises(NotEnded, match="within 5s"):
            await durable.options(timeout=5).call("/never")
        assert len([row async for row in client.jobs(label="mine")]) == 4


@virtual_time
async def test_a_durable_call_that_is_cancelled_leaves_its_job() -> None:
    async with site() as (here, client):
        call = asyncio.ensure_future(
            client.options(durable=True, key="k").call("/square", n=3, wait=9)
        )
        await eventually(lambda: here.store.rows)
        call.cancel()
        await asyncio.wait([call])
        assert await client.options(durable=True, key="k").call("/square", n=3) == 9
        assert here.store.ran == {"k": 1}


@virtual_time
async def test_a_durable_call_tells_its_news() -> None:
    async with site() as (here, client):
        news: list[Item] = []
        durable = client.options(durable=True, news=news.append)
        call = asyncio.ensure_future(durable.call("/square", n=3, wait=30))
        await eventually(lambda: here.store.asked["watch"])
        await here.store.say(here.store.rows["j0001"], "half of it")
        assert await call == 9
        assert [item.text for item in news if isinstance(item, Log)] == ["half of it"]
        assert any(isinstance(item, Progress) for item in news)
        with pytest.raises(NotEnded):
            await durable.options(timeout=5).call("/never")


def inputs(number: int, taken: list[int] | None = None, **more: Any) -> Iterator[dict[str, Any]]:
    for n in range(number):
        if taken is not None:
            taken.append(n)
        yield {"n": n, **more}


@pytest.mark.parametrize("ordered", [True, False])
def test_a_durable_map_is_a_job_with_children(ordered: bool) -> None:
    @virtual_time
    async def story() -> None:
        async with site() as (here, client):
            durable = client.options(durable=True, label="album", priority=3, key="k", deadline=60)
            found = [
                mapped
                async for mapped in durable.map("/square", inputs(50), window=8, ordered=ordered)
            ]
            assert {m.index: m.value for m in found} == {n: n**2 for n in range(50)}
            assert not ordered or [m.index for m in found] == list(range(50))
            parent, *children = here.store.submissions
            assert parent == {
                "op": "/square", "kind": "map", "key": "k", "labels": ["album"], "deadline": 60.0,
            }  # fmt: skip
            (whole,) = [row async for row in client.jobs(label="album")]
            assert whole["state"] == "done" and whole["children"] == {"done": 50}
            for number, child in enumerate(children):
                assert child["key"] == f"k/{number}" and child["position"] == number
                assert child["parent"] == whole["id"] and child["priority"] == 3
                assert "labels" not in child and "deadline" not in child
            one = found[7]
            assert one.agent == "w@memory.test/agent" and one.ran == 0.5 and one.job is not None
            assert (await client.job(one.job).info())["position"] == one.index

    story()


@virtual_time
async def test_a_map_takes_inputs_as_there_is_room_and_tells_failures_apart() -> None:
    async with site() as (here, client):
        taken: list[int] = []
        begun = await client.options(durable=True).start_map(
            "/fail", inputs(100, taken, wait=10), window=4, ordered=True
        )
        assert not taken and begun.id in here.store.rows
        async with aclosing(aiter(begun)) as found:
            first = await anext(found)
            assert first.error is not None and "as asked" in str(first.error)
            assert first.job is not None
            assert len(taken) == 4
            await anext(found)
            assert len(taken) == 5
        with pytest.raises(BusError, match="have been taken"):
            await anext(aiter(begun))


@virtual_time
async def test_leaving_a_map_cancels_its_job_and_its_children() -> None:
    async with site() as (here, client):
        durable = client.options(durable=True, key="left")
        async for _ in durable.map("/square", inputs(100, wait=5), window=4):
            break
        await eventually(lambda: here.store.rows["j0001"]["state"] == "killed")
        assert len(here.store.rows) < 10
        assert {row["state"] for row in here.store.rows.values()} == {"killed", "done"}
        with pytest.raises(OperationFailed, match="another key"):
            await durable.start_map("/square", inputs(3))


@virtual_time
async def test_a_map_whose_caller_died_is_gone_on_with_by_its_key() -> None:
    async with site() as (here, client):
        dead = Client(connection=here.bus.connection("bob@memory.test/x"), dispatchers=[ONE])
        async with dead:
            begun = await dead.options(durable=True, key="k").start_map(
                "/square", inputs(40, wait=1), window=5, ordered=True
            )
            found = aiter(begun)
            early = [await anext(found) for _ in range(12)]
            # It dies: no word of it reaches anybody.
            here.bus.faults = Faults(drop=1.0)
        await found.aclose()
        here.bus.faults = Faults()
        known = len(here.store.rows) - 1
        assert known >= 12
        before = len(here.store.submissions)
        durable = client.options(durable=True, key="k")
        again = [m async for m in durable.map("/square", inputs(40, wait=1), ordered=True)]
        assert [m.value for m in again] == [n**2 for n in range(40)]
        assert again[3].job == early[3].job
        assert set(here.store.ran.values()) == {1} and here.store.ran.total() == 40
        # Those that were there are not even submitted.
        assert len(here.store.submissions) == before + 1 + 40 - known


@virtual_time
async def test_a_map_survives_a_restart_and_a_full_store() -> None:
    async with site() as (here, client):
        durable = client.options(durable=True)
        mapping = asyncio.ensure_future(_collected(durable, 60))
        await eventually(lambda: len(here.store.rows) > 10)
        await here.desk.stop()
        await asyncio.sleep(5)
        here.desk.before = once(*["full"] * 20)
        await here.desk.start()
        assert await mapping == [n**2 for n in range(60)]
        assert set(here.store.ran.values()) == {1}


async def _collected(client: Client, number: int) -> list[Any]:
    mapped = client.map("/square", inputs(number, wait=2), window=8, ordered=True)
    return [m.value async for m in mapped]


@virtual_time
async def test_inputs_travel_together_and_one_that_cannot_travel_fails_alone() -> None:
    async with site() as (here, client):
        odd: list[dict[str, Any]] = [
            {"n": 1},
            {"n": float("nan")},
            {"n": 2, "pad": "x" * 40_000},
            {"n": 3},
        ]
        found = {m.index: m async for m in client.options(durable=True).map("/square", odd)}
        assert [found[0].value, found[3].value] == [1, 9]
        assert [getattr(found[n].error, "reason", "") for n in (1, 2)] == [
            "bad-arguments",
            "too-large",
        ]

        here.store.asked.clear()
        many = [m async for m in client.options(durable=True).map("/square", inputs(400))]
        assert len(many) == 400 and here.store.asked["map"] <= 4


@virtual_time
async def test_a_batch_that_is_refused_for_one_of_its_inputs_is_submitted_one_by_one() -> None:
    async with site() as (here, client):

        def before(request: Request) -> None:
            if request.op.op.endswith("map") and len(request.op.args["inputs"]) > 1:
                raise CallError.of(Problem("bad-arguments", "one of them is odd"))

        here.desk.before = before
        found = [m async for m in client.options(durable=True).map("/square", inputs(20))]
        assert {m.index: m.value for m in found} == {n: n**2 for n in range(20)}


@virtual_time
async def test_inputs_that_are_not_done_in_time_go_on_and_say_so() -> None:
    async with site() as (_, client):
        durable = client.options(durable=True, timeout=15)
        slow = [{"n": n, "wait": 60 if n == 3 else 0} for n in range(5)]
        found = {m.index: m async for m in durable.map("/square", slow)}
        assert {m.index: m.value for m in found.values() if m.error is None} == {
            n: n**2 for n in (0, 1, 2, 4)
        }
        late = found[3]
        assert isinstance(late.error, NotEnded) and late.job is not None
        assert "within 15s" in str(late.error) and late.job in str(late.error)


@virtual_time
async def test_a_result_of_an_input_that_is_too_large_for_a_piece_is_asked_for() -> None:
    async with site() as (here, client):
        # In this store texts are too large.
        durable = client.options(durable=True)
        begun = await durable.start_map("/echo", [{"text": "long"}])
        (mapped,) = [m async for m in begun]
        assert mapped.value == "long" and here.store.asked["part"] == 1


@virtual_time
async def test_what_an_input_raises_ends_the_map() -> None:
    def failing() -> Iterator[dict[str, Any]]:
        yield {"n": 1}
        raise RuntimeError("no more")

    async with site() as (here, client):
        with pytest.raises(RuntimeError, match="no more"):
            _ = [m async for m in client.options(durable=True).map("/square", failing())]
        await eventually(lambda: here.store.rows["j0001"]["state"] == "killed")


@virtual_time
async def test_a_map_that_cannot_be_closed_has_given_its_answers_all_the_same() -> None:
    async with site() as (here, client):
        begun = await client.options(durable=True).start_map("/square", inputs(3))

        def before(request: Request) -> None:
            if request.op.op.endswith("close"):
                raise CallError.of(Problem("failed"))

        here.desk.before = before
        assert len([mapped async for mapped in begun]) == 3
