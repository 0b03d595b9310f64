import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
from tests.processes import alive

from spinal.bus.errors import BusError, LoginRefused
from spinal.bus.server import ServerError
from spinal.cli import supervisor
from spinal.cli.supervisor import LOOP, STEADY, Backoff, ChildProcess, Platform, keep, told
from spinal.protocols import SpinalError
from spinal.testing import eventually

#: A child that does what its argument says.
CHILD = """
import asyncio, os, signal, sys, time
from spinal.dispatcher.supervised import die_with_parent, supervised
from spinal.bus.errors import LoginRefused
how, descriptor = sys.argv[1], int(sys.argv[3])

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with supervised(descriptor, stop) as supervisor:
        if how == "refused":
            supervisor.failed(LoginRefused("wrong\\npassword"))
            return
        if how == "broken":
            sys.exit(3)
        supervisor.ready()
        if how == "hang":
            time.sleep(600)
        if how == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        await stop.wait()

die_with_parent(os.getppid())
asyncio.run(main())
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.fixture
async def make() -> AsyncIterator[Callable[[str], ChildProcess]]:
    made: list[ChildProcess] = []

    def make(how: str) -> ChildProcess:
        child = ChildProcess("child", [sys.executable, "-c", CHILD, how], environment())
        made.append(child)
        return child

    yield make
    for child in made:
        await child.stop()


class TestChild:
    async def test_it_is_started_when_it_is_ready(
        self, make: Callable[[str], ChildProcess]
    ) -> None:
        child = make("good")
        await child.start()
        assert child.pid is not None
        os.kill(child.pid, 0)
        pid = child.pid
        await child.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    async def test_it_says_in_its_own_words_why_it_cannot(
        self, make: Callable[[str], ChildProcess]
    ) -> None:
        child = make("refused")
        with pytest.raises(LoginRefused, match=r"^wrong password$"):
            await child.start()
        assert child.pid is None

    async def test_one_that_ends_at_once_is_reported(
        self, make: Callable[[str], ChildProcess]
    ) -> None:
        with pytest.raises(BusError, match=r"ended at start \(it ended with status 3\)"):
            await make("broken").start()

    async def test_its_death_is_noticed(self, make: Callable[[str], ChildProcess]) -> None:
        child = make("good")
        await child.start()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        assert await child.ended() == "it was killed by SIGKILL"

    async def test_a_hang_is_noticed_and_ended_by_force(
        self, make: Callable[[str], ChildProcess], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(supervisor, "SILENCE", 1.5)
        child = make("hang")
        await child.start()
        pid = child.pid
        assert pid is not None
        assert "it hung" in await child.ended()
        async with asyncio.timeout(2):
            await child.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    async def test_a_beating_child_is_left_alone(
        self, make: Callable[[str], ChildProcess], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(supervisor, "SILENCE", 1.5)
        child = make("good")
        await child.start()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await child.ended()

    async def test_one_that_will_not_stop_is_ended_by_force(
        self, make: Callable[[str], ChildProcess], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(supervisor, "STOP_WITHIN", 0.2)
        child = make("stubborn")
        await child.start()
        async with asyncio.timeout(5):
            await child.stop()
        assert child.pid is None

    async def test_it_ends_when_its_supervisor_is_gone(self, tmp_path: Path) -> None:
        code = (
            "import asyncio, sys\n"
            "from spinal.cli.supervisor import ChildProcess\n"
            "async def main():\n"
            "    child = ChildProcess('child', [sys.executable, '-c', sys.argv[1], sys.argv[2]],"
            " dict(__import__('os').environ))\n"
            "    await child.start()\n"
            "    print(child.pid, flush=True)\n"
            "    await asyncio.sleep(600)\n"
            "asyncio.run(main())"
        )
        for how in ("good", "hang"):
            parent = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-c", code, CHILD, how),
                stdout=asyncio.subprocess.PIPE,
                env=environment(),
            )
            assert parent.stdout is not None
            pid = int(await parent.stdout.readline())
            parent.kill()
            await parent.wait()
            async with asyncio.timeout(10):
                while alive(pid):
                    await asyncio.sleep(0.02)


class FakePart:
    """A part that lives as told: each entry is why one life ends, or an error at its start."""

    name = "part"

    def __init__(self, *lives: str | SpinalError) -> None:
        self.lives = list(lives)
        self.starts = 0
        self.stops = 0

    async def start(self) -> None:
        self.starts += 1
        if isinstance(self.lives[0], SpinalError):
            raise self.lives.pop(0)  # type: ignore[misc]

    async def ended(self) -> str:
        if not self.lives or self.lives[0] == "for ever":
            await asyncio.Event().wait()
        return str(self.lives.pop(0))

    async def stop(self) -> None:
        self.stops += 1


class TestKeeping:
    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supervisor, "Backoff", lambda: Backoff(first=0.0))

    async def follow(self, part: FakePart, count: int) -> list[str]:
        """Keep the part until so many things were reported."""
        heard: list[str] = []
        enough = asyncio.Event()

        def report(event: str, detail: Mapping[str, object]) -> None:
            assert detail["part"] == "part"
            heard.append(event)
            if len(heard) == count:
                enough.set()

        task = asyncio.create_task(keep(part, report))
        async with asyncio.timeout(5):
            await enough.wait()
        task.cancel()
        await asyncio.wait([task])
        return heard

    async def test_what_dies_is_started_again(self) -> None:
        part = FakePart("crash", "crash", "for ever")
        assert await self.follow(part, 4) == ["died", "restarted"] * 2
        assert part.stops == 2

    async def test_what_cannot_start_is_tried_again(self) -> None:
        part = FakePart("crash", ServerError("port taken"), ServerError("port taken"), "for ever")
        assert await self.follow(part, 2) == ["died", "restarted"]
        assert part.starts == 3

    async def test_a_crash_loop_is_called_one(self) -> None:
        part = FakePart(*(["crash"] * LOOP), "for ever")
        heard = await self.follow(part, 2 * LOOP)
        assert heard[-2:] == ["died", "crash-loop"]

    async def test_parts_start_in_order_and_stop_in_reverse(self) -> None:
        order: list[str] = []

        class Noted(FakePart):
            def __init__(self, name: str, *lives: str | SpinalError) -> None:
                super().__init__(*lives)
                self.name = name

            async def start(self) -> None:
                await super().start()
                order.append(f"+{self.name}")

            async def stop(self) -> None:
                order.append(f"-{self.name}")

        third = Noted("c", ServerError("no"))
        platform = Platform([Noted("a", "x"), Noted("b", "x"), third], lambda event, detail: None)
        with pytest.raises(ServerError, match="no"):
            await platform.start()
        await platform.stop()
        assert order == ["+a", "+b", "-b", "-a"]


class FakeOthers:
    """Other parts, as somebody says that they are to be."""

    def __init__(self, **made_by: object) -> None:
        self.said: Mapping[str, object] = made_by
        self.seen: list[str] = []

    def wanted(self) -> Mapping[str, object]:
        return self.said

    def make(self, name: str) -> "OtherPart":
        return OtherPart(name, self.said[name], self.seen)

    async def over(self, name: str, made_by: object) -> None:
        self.seen.append(f"!{name}{made_by}")


class OtherPart(FakePart):
    def __init__(self, name: str, made_by: object, seen: list[str]) -> None:
        super().__init__("for ever")
        self.name = name
        self._seen = seen
        self._made_by = made_by

    async def start(self) -> None:
        self._seen.append(f"+{self.name}{self._made_by}")

    async def stop(self) -> None:
        self._seen.append(f"-{self.name}{self._made_by}")


class TestOthers:
    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supervisor, "LOOK_EVERY", 0.01)

    async def test_they_are_what_is_wanted_now(self) -> None:
        others = FakeOthers(a=1, b=1, c=1)
        platform = Platform([], lambda event, detail: None, others)
        watching = asyncio.create_task(platform.watch())
        await eventually(lambda: sorted(others.seen) == ["+a1", "+b1", "+c1"])

        others.seen.clear()
        others.said = {"a": 1, "b": 2, "d": 1}
        await eventually(lambda: len(others.seen) == 5)
        assert sorted(others.seen[:2]) == ["-b1", "-c1"]
        assert others.seen[2] == "!c1"
        assert sorted(others.seen[3:]) == ["+b2", "+d1"]

        others.seen.clear()
        watching.cancel()
        await asyncio.wait([watching])
        await platform.stop()
        assert sorted(others.seen[:3]) == ["-a1", "-b2", "-d1"]
        assert sorted(others.seen[3:]) == ["!a1", "!b2", "!d1"]

    async def test_what_they_left_in_a_former_life_is_cleaned_up_if_the_platform_is_ours(
        self,
    ) -> None:
        others = FakeOthers(a=1)
        ours = Platform([FakePart("for ever")], lambda event, detail: None, others)
        await ours.start()
        await ours.stop()
        assert others.seen == ["!a1"]

        others.seen.clear()
        taken = FakePart(ServerError("port taken"))
        theirs = Platform([taken], lambda event, detail: None, others)
        with pytest.raises(ServerError):
            await theirs.start()
        await theirs.stop()
        assert others.seen == []

    async def test_what_stands_there_for_a_moment_changes_nothing(self) -> None:
        others = FakeOthers(a=1)
        half_written = FakeOthers()
        looks = 0

        def wanted() -> Mapping[str, object]:
            nonlocal looks
            looks += 1
            return half_written.said if looks == 3 else others.said

        others.wanted = wanted  # type: ignore[method-assign]
        platform = Platform([], lambda event, detail: None, others)
        watching = asyncio.create_task(platform.watch())
        await eventually(lambda: looks > 6)
        assert others.seen == ["+a1"]
        watching.cancel()
        await asyncio.wait([watching])
        await platform.stop()


class TestBackoff:
    def test_pauses_double_up_to_a_bound_and_are_jittered(self) -> None:
        longest = Backoff(dice=lambda low, high: high)
        shortest = Backoff(dice=lambda low, high: low)
        assert [longest.after(0) for _ in range(8)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
        assert [shortest.after(0) for _ in range(3)] == [0.1, 0.2, 0.4]

    def test_a_long_life_makes_it_quick_again(self) -> None:
        backoff = Backoff(dice=lambda low, high: high)
        for _ in range(LOOP):
            backoff.after(0)
        assert backoff.looping
        assert backoff.after(STEADY) == 0.2
        assert not backoff.looping


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "it ended with status 0"),
        (-9, "it was killed by SIGKILL"),
        (-63, "it was killed by signal 63"),
    ],
)
def test_an_end_is_told_in_words(status: int, text: str) -> None:
    assert told(status) == text
