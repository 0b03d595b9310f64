from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from spinal.agents.errors import Refused
from spinal.agents.machine.config import Rule
from spinal.agents.machine.disk import Disk

from .conftest import Start, World

DAY = 86_400


def make(path: Path, days: float, text: str = "old") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    when = time.time() - days * DAY
    os.utime(path, (when, when))
    return path


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    for days in (1, 10, 20, 30, 40):
        make(folder / f"{days}.gz", days, "x" * days)
    make(folder / "40.txt", 40)
    make(folder / "deep" / "50.gz", 50)
    return folder


@pytest.fixture
async def world(start: Start, logs: Path) -> AsyncGenerator[World]:
    async with start(
        f"""\
disk:
  rules:
    aged: {{folder: {logs}, match: "*.gz", older: 15d}}
    kept: {{folder: {logs}, match: "*.gz", keep: 2}}
    deep: {{folder: {logs}, match: "*.gz", older: 25d, keep: 1, deep: true}}
    gone: {{folder: {logs}/none, match: "*"}}
"""
    ) as world:
        yield world


def names(plan: Any) -> list[str]:
    return [Path(one["path"]).name for one in plan["files"]]


class TestPlan:
    @pytest.mark.parametrize(
        ("rule", "found"),
        [
            ("aged", ["40.gz", "30.gz", "20.gz"]),
            ("kept", ["40.gz", "30.gz", "20.gz"]),
            ("deep", ["50.gz", "40.gz", "30.gz"]),
        ],
    )
    async def test_it_names_every_file(self, world: World, rule: str, found: list[str]) -> None:
        plan = await world.ask("/disk/plan", rule=rule)
        assert names(plan) == found and plan["count"] == len(found) and plan["all"] is None
        assert plan["bytes"] == sum(one["size"] for one in plan["files"]) > 0

    async def test_it_changes_nothing(self, world: World, logs: Path) -> None:
        before = sorted(logs.rglob("*"))
        await world.ask("/disk/plan", rule="aged")
        assert sorted(logs.rglob("*")) == before

    async def test_the_rules_are_told(self, world: World, logs: Path) -> None:
        rules = await world.ask("/disk/rules")
        assert [*rules] == ["aged", "kept", "deep", "gone"]
        assert rules["aged"]["folder"] == str(logs) and rules["aged"]["older"] == 15 * DAY

    async def test_a_long_one_is_a_blob_as_well(self, world: World, logs: Path) -> None:
        for number in range(1000):
            make(logs / f"many-{number:04}.gz", 100)
        plan = await world.ask("/disk/plan", rule="aged")
        lines = world.content(plan["all"]).splitlines()
        assert plan["count"] == len(lines) == 1003 > len(plan["files"]) > 50
        assert json.loads(lines[0]) == plan["files"][0]

    async def test_links_and_odd_files_are_not_in_it(
        self, world: World, logs: Path, tmp_path: Path
    ) -> None:
        secret = make(tmp_path / "secret" / "x.gz", 100)
        (logs / "link.gz").symlink_to(secret)
        (logs / "linked").symlink_to(secret.parent)
        os.mkfifo(logs / "pipe.gz")
        (logs / "folder.gz").mkdir()
        assert names(await world.ask("/disk/plan", rule="deep")) == ["50.gz", "40.gz", "30.gz"]

    async def test_another_file_system_is_not_entered(self) -> None:
        """/dev has file systems below it; whatever is on another one than /dev itself is not met."""
        device = os.stat("/dev").st_dev
        other = [one for one in Path("/dev").iterdir() if one.is_dir()]
        if not any(one.stat().st_dev != device for one in other):
            pytest.skip("MISSING: a file system mounted below /dev")
        marker = Path("/dev/shm") / f"spinal-test-{os.getpid()}.gz"
        marker.touch()
        try:
            plan = Disk({"x": Rule("/dev", "*.gz", deep=True)}).plan("x")
        finally:
            marker.unlink()
        assert str(marker) not in [one.path for one in plan.files]

    async def test_a_folder_that_is_not_there_is_refused(self, world: World) -> None:
        reason, said = await world.problem("/disk/plan", rule="gone")
        assert reason == "refused" and "is not there" in said

    async def test_a_folder_that_became_a_link_is_refused(
        self, world: World, logs: Path, tmp_path: Path
    ) -> None:
        logs.rename(tmp_path / "moved")
        logs.symlink_to(tmp_path / "moved")
        reason, said = await world.problem("/disk/plan", rule="aged")
        assert reason == "refused" and "links are not followed" in said


class TestClean:
    async def test_it_deletes_exactly_the_plan(self, world: World, logs: Path) -> None:
        before = {one for one in logs.rglob("*") if one.is_file()}
        plan = await world.ask("/disk/plan", rule="deep")
        done = await world.ask("/disk/clean", rule="deep", plan=plan["plan"])
        assert done == {"rule": "deep", "count": 3, "bytes": plan["bytes"], "left": []}
        gone = before - {one for one in logs.rglob("*") if one.is_file()}
        assert gone == {Path(one["path"]) for one in plan["files"]}

    async def test_the_second_time_the_plan_is_void(self, world: World) -> None:
        plan = await world.ask("/disk/plan", rule="aged")
        await world.ask("/disk/clean", rule="aged", plan=plan["plan"])
        reason, said = await world.problem("/disk/clean", rule="aged", plan=plan["plan"])
        assert reason == "refused" and "is not what was planned" in said

    @pytest.mark.parametrize("change", ["more", "less", "written", "touched", "replaced", "moved"])
    async def test_if_anything_has_changed_nothing_is_deleted(
        self, world: World, logs: Path, change: str
    ) -> None:
        plan = await world.ask("/disk/plan", rule="aged")
        one = logs / "30.gz"
        when = one.stat().st_mtime
        match change:
            case "more":
                make(logs / "35.gz", 35)
            case "less":
                one.unlink()
            case "written":
                one.write_text("y" * 30)
                os.utime(one, (when, when))
            case "touched":
                make(one, 31, "x" * 30)
            case "replaced":
                make(logs / "new", 30, "x" * 30).rename(one)
                os.utime(one, (when, when))
            case _:
                one.rename(logs / "33.gz")
        left = sorted(logs.rglob("*"))
        reason, said = await world.problem("/disk/clean", rule="aged", plan=plan["plan"])
        assert reason == "refused" and "make another plan" in said
        assert sorted(logs.rglob("*")) == left

    async def test_what_does_not_concern_the_rule_may_change(
        self, world: World, logs: Path
    ) -> None:
        plan = await world.ask("/disk/plan", rule="aged")
        make(logs / "new.gz", 0)
        make(logs / "40.txt", 41)
        assert (await world.ask("/disk/clean", rule="aged", plan=plan["plan"]))["count"] == 3

    async def test_a_plan_is_for_its_rule(self, world: World) -> None:
        plan = await world.ask("/disk/plan", rule="aged")
        assert (await world.problem("/disk/clean", rule="kept", plan=plan["plan"]))[0] == "refused"

    @pytest.mark.parametrize(
        "plan", ["", "x", "0-" + "0" * 64, "-1-" + "0" * 64, "9" * 19 + "-" + "0" * 64, "1\n", "*"]
    )
    async def test_what_is_no_plan_is_refused(self, world: World, logs: Path, plan: str) -> None:
        before = sorted(logs.rglob("*"))
        assert (await world.problem("/disk/clean", rule="aged", plan=plan))[0] == "refused"
        assert sorted(logs.rglob("*")) == before

    def test_it_is_good_for_an_hour_and_not_for_the_future(self, logs: Path) -> None:
        now = time.time_ns()
        disk = Disk({"aged": Rule(str(logs), "*.gz", 15 * DAY)}, lambda: now)
        plan = disk.plan("aged").plan
        now += 3601 * 10**9
        with pytest.raises(Refused, match="not of the last 1h"):
            disk.clean("aged", plan)
        now -= 2 * 3601 * 10**9
        with pytest.raises(Refused, match="not of the last 1h"):
            disk.clean("aged", plan)
        now += 3601 * 10**9
        assert disk.clean("aged", plan).count == 3

    def test_what_grows_old_in_between_is_not_in_the_plan(self, logs: Path) -> None:
        now = time.time_ns()
        disk = Disk({"aged": Rule(str(logs), "*.gz", 10 * DAY + 60)}, lambda: now)
        plan = disk.plan("aged")
        now += 1800 * 10**9
        assert disk.plan("aged").count == plan.count + 1
        assert disk.clean("aged", plan.plan).count == plan.count
        assert (logs / "10.gz").exists()

    def test_it_can_be_stopped_and_says_what_is_left(self, logs: Path) -> None:
        disk = Disk({"aged": Rule(str(logs), "*.gz", 15 * DAY)})
        turns = iter([False, True, True])
        done = disk.clean("aged", disk.plan("aged").plan, lambda: next(turns))
        assert done.count == 1
        assert done.left == [f"{logs}/30.gz: stopped", f"{logs}/20.gz: stopped"]

    @pytest.mark.parametrize("rule", ["", "none", "../x", "\0", "aged\n", "-rf", "x" * 200])
    async def test_a_rule_that_is_not_there_is_refused_by_name(
        self, world: World, rule: str
    ) -> None:
        for op, more in (("plan", {}), ("clean", {"plan": "x"})):
            reason, said = await world.problem(f"/disk/{op}", rule=rule, **more)
            assert reason == "refused" and "there is no rule" in said


async def test_without_rules_nothing_is_offered(start: Start) -> None:
    async with start("{}") as world:
        for op in ("rules", "plan", "clean"):
            assert (await world.problem(f"/disk/{op}"))[0] == "unknown-op"
