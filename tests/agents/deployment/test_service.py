"""Services on a machine: real processes, real HTTP, and an agent with one or more lives."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from spinal.agents.deployment import elsewhere
from spinal.agents.deployment.config import Limits
from spinal.bus.errors import CallError
from spinal.protocols import Data, Log, Progress
from spinal.testing import eventually

from .conftest import DISPATCHER, Machine, running_under, tar_of


async def problem_of(work: Any) -> tuple[str, str]:
    with pytest.raises(CallError) as caught:
        await work
    return caught.value.reason, str(caught.value)


async def test_a_service_is_deployed_and_answers(machine: Machine) -> None:
    call = machine.ask("deploy", **machine.spec("one", generation=1))
    heard = [item async for item in call]
    found = await call.result()
    steps = [item.text for item in heard if isinstance(item, Log)]
    assert steps == ["fetch", "hash is right", "unpack", "start", "healthy", "switched"]
    assert any(isinstance(item, Progress) for item in heard)
    assert await machine.get(found["port"]) == "one"
    assert (found["state"], found["generation"], found["changed"]) == ("running", 1, True)
    assert psutil.Process(found["pid"]).is_running()
    assert (machine.folder / "current" / "README").read_text() == "read"
    assert [row["service"] for row in (await machine.call("list"))["items"]] == ["shop"]


async def test_the_same_again_does_nothing_and_takes_a_newer_generation(machine: Machine) -> None:
    spec = machine.spec("one")
    first = await machine.call("deploy", **spec, generation=1)
    again = await machine.call("deploy", **spec, generation=1)
    newer = await machine.call("deploy", **spec, generation=4)
    assert not again["changed"] and not newer["changed"]
    assert first["pid"] == again["pid"] == newer["pid"]
    assert newer["generation"] == 4
    reason, text = await problem_of(machine.call("deploy", **spec, generation=3))
    assert reason == "refused" and "generation 4" in text
    reason, _ = await problem_of(machine.call("deploy", **machine.spec("two"), generation=3))
    assert reason == "refused"


async def test_an_upgrade_answers_all_the_time(machine: Machine) -> None:
    first = await machine.call("deploy", **machine.spec("one"))
    asked: list[str] = []
    done = asyncio.Event()

    async def ask() -> None:
        while not done.is_set():
            asked.append(await machine.word())

    asking = asyncio.create_task(ask())
    await eventually(lambda: len(asked) > 2)
    second = await machine.call("deploy", **machine.spec("two"))
    assert first["port"] != second["port"]
    await eventually(lambda: asked[-1] == "two")
    done.set()
    await asking
    assert not psutil.pid_exists(first["pid"])
    assert set(asked) <= {"one", "two", ""} and asked.count("") <= 1


async def test_with_a_port_of_its_own_the_old_one_is_stopped_first(machine: Machine) -> None:
    port = machine.config.ports[1]
    first = await machine.call("deploy", **machine.spec("one", port=port))
    call = machine.ask("deploy", **machine.spec("two", port=port))
    steps = [item.text async for item in call if isinstance(item, Log)]
    second = await call.result()
    assert "stop the old one" in steps
    assert first["port"] == second["port"] == port
    assert await machine.word() == "two"


@pytest.mark.parametrize("port", ["auto", "fixed"])
@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("dies", "it ended at once: exit code 3; its last words: .*cannot find the config"),
        (
            "sick",
            "it was not well within 1s: .* answers 500 Internal Server Error; its last words: .*starts two sick",
        ),
    ],
)
async def test_a_failed_upgrade_leaves_the_old_one(
    machine: Machine, port: str, mode: str, says: str
) -> None:
    how: dict[str, Any] = {"port": "auto" if port == "auto" else machine.config.ports[1]}
    first = await machine.call("deploy", **machine.spec("one", **how), generation=1)
    health = {"http": "http://127.0.0.1:{port}/", "within": "1s", "every": "100ms"}
    bad = machine.spec("two", env={"MODE": mode}, **how)
    if mode == "sick":
        bad["health"] = health
    reason, text = await problem_of(machine.call("deploy", **bad, generation=2))
    assert reason == "failed"
    assert re.search(says, text), text

    async def answers() -> bool:
        return bool(await machine.word() == "one")

    await eventually(answers)
    shown = await machine.call("show", service="shop")
    assert shown["release"] == first["release"] and shown["generation"] == 1
    assert [one["release"] for one in shown["releases"]] == [first["release"]]
    assert os.listdir(machine.folder / "releases") == [first["release"]]
    assert running_under(machine.folder) == [shown["pid"]]
    if port == "auto":
        assert shown["pid"] == first["pid"]


async def test_a_first_deploy_that_fails_leaves_nothing(machine: Machine) -> None:
    bad = machine.spec("one", env={"MODE": "dies"})
    await problem_of(machine.call("deploy", **bad))
    assert (await machine.call("list"))["items"] == []
    assert not machine.folder.exists()
    assert running_under(machine.config.root) == []


async def test_rolling_back_runs_an_earlier_release_as_it_was_deployed(machine: Machine) -> None:
    first = await machine.call("deploy", **machine.spec("one", env={"WORD": "first"}))
    await machine.call("deploy", **machine.spec("two"))
    third = await machine.call("deploy", **machine.spec("three", env={"WORD": "third"}))
    assert await machine.get(third["port"], "/env/WORD") == "third"
    back = await machine.call("rollback", service="shop", to=first["release"])
    assert (await machine.word(), back["release"]) == ("one", first["release"])
    assert await machine.get(back["port"], "/env/WORD") == "first"
    reason, text = await problem_of(machine.call("rollback", service="shop"))
    assert reason == "refused" and "no release before" in text
    reason, text = await problem_of(machine.call("rollback", service="shop", to="../../etc"))
    assert reason == "refused" and "there are 1-" in text
    await machine.call("rollback", service="shop", to=third["release"])
    back = await machine.call("rollback", service="shop")
    assert await machine.word() == "two"


async def test_only_the_last_releases_are_kept(machine: Machine) -> None:
    for word in ("one", "two", "three", "four"):
        await machine.call("deploy", **machine.spec(word, keep=2))
    shown = await machine.call("show", service="shop")
    numbers = [one["release"].partition("-")[0] for one in shown["releases"]]
    assert numbers == ["3", "4"]
    assert sorted(os.listdir(machine.folder / "releases")) == [
        one["release"] for one in shown["releases"]
    ]
    assert len(os.listdir(machine.folder / "logs")) == 2


async def test_undeploying_ends_it_and_keeps_its_data_unless_told_otherwise(
    machine: Machine,
) -> None:
    await machine.call("deploy", **machine.spec("one"))
    (machine.folder / "data" / "orders").write_text("17")
    done = await machine.call("undeploy", service="shop")
    assert done["undeployed"]
    assert running_under(machine.config.root) == []
    assert (await machine.call("list"))["items"] == []
    assert (machine.folder / "data" / "orders").read_text() == "17"
    assert not (machine.folder / "releases").exists()
    await machine.call("deploy", **machine.spec("two"))
    assert (machine.folder / "data" / "orders").read_text() == "17"
    await machine.call("undeploy", service="shop", purge=True)
    assert not machine.folder.exists()
    again = await machine.call("undeploy", service="shop")
    assert not again["undeployed"]


async def test_undeploying_below_a_generation_spares_newer_ones_and_bars_older_ones(
    machine: Machine,
) -> None:
    spec = machine.spec("one")
    await machine.call("deploy", **spec, generation=3)
    spared = await machine.call("undeploy", service="shop", below=3)
    assert not spared["undeployed"] and await machine.word() == "one"
    done = await machine.call("undeploy", service="shop", below=5)
    assert done == {"service": "shop", "undeployed": True, "generation": 4}
    reason, _ = await problem_of(machine.call("deploy", **spec, generation=3))
    assert reason == "refused"
    await machine.stop()
    await machine.start()
    reason, _ = await problem_of(machine.call("deploy", **spec, generation=3))
    assert reason == "refused"
    await machine.call("deploy", **spec, generation=5)
    assert await machine.word() == "one"


async def test_one_that_ignores_sigterm_is_killed_with_its_children(machine: Machine) -> None:
    await machine.call("deploy", **machine.spec("one", env={"MODE": "stubborn"}))
    await eventually(lambda: len(running_under(machine.folder)) == 2)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await machine.call("undeploy", service="shop")
    assert loop.time() - began < 8
    assert running_under(machine.config.root) == []


async def test_one_that_crashes_is_started_again_and_it_is_told_why(machine: Machine) -> None:
    first = await machine.call("deploy", **machine.spec("one"))
    os.kill(first["pid"], signal.SIGKILL)

    async def back() -> Any:
        shown = await machine.call("show", service="shop")
        return shown if shown["state"] == "running" and shown["pid"] != first["pid"] else None

    shown = await eventually(back)
    assert await machine.word() == "one"
    assert shown["port"] == first["port"]
    assert [one["why"].partition(";")[0] for one in shown["restarted"]] == ["it ended: signal 9"]
    assert shown["restarts"] == 1


async def test_one_that_is_not_well_is_started_again(machine: Machine) -> None:
    health = {"http": "http://127.0.0.1:{port}/", "every": "100ms", "fail_after": 2}
    first = await machine.call("deploy", **machine.spec("one", health=health))
    sick = machine.folder / "data" / "sick"
    sick.touch()

    async def restarted() -> Any:
        shown = await machine.call("show", service="shop")
        return shown if shown["pid"] not in (None, first["pid"]) else None

    shown = await eventually(restarted)
    assert "not well 2 times" in shown["restarted"][0]["why"]
    assert "answers 500" in shown["restarted"][0]["why"]
    sick.unlink()

    async def well() -> bool:
        return bool((await machine.call("show", service="shop"))["state"] == "running")

    await eventually(well, 30)


async def test_one_that_keeps_failing_says_so_and_stays_in_back_off(machine: Machine) -> None:
    flag = machine.folder / "data" / "broken"
    program = (
        "import os,sys,time\nif os.path.exists(sys.argv[1]): sys.exit('broken')\ntime.sleep(99)"
    )
    spec = machine.spec(
        "one", start=["python3", "-c", program, "{data}/broken"], port=None, health=None
    )
    first = await machine.call("deploy", **spec)
    flag.touch()
    os.kill(first["pid"], signal.SIGKILL)

    async def failing() -> Any:
        shown = await machine.call("show", service="shop")
        return shown if shown["restarts"] >= 4 else None

    shown = await eventually(failing)
    assert shown["state"] in ("backing off", "starting")
    assert "its last words: broken" in shown["restarted"][-1]["why"]
    assert shown["failures"] >= 4
    # The same again tries once more, and tells how that went.
    reason, text = await problem_of(machine.call("deploy", **spec))
    assert reason == "failed" and "broken" in text
    flag.unlink()

    async def well() -> bool:
        return bool((await machine.call("show", service="shop"))["state"] == "running")

    await eventually(well)


async def test_a_release_that_was_damaged_is_made_anew(machine: Machine) -> None:
    first = await machine.call("deploy", **machine.spec("one"))
    program = machine.folder / "releases" / first["release"] / "bin" / "shop"
    program.write_text("#!/bin/sh\necho damaged; exit 1\n")
    os.kill(first["pid"], signal.SIGKILL)

    async def repaired() -> Any:
        shown = await machine.call("show", service="shop")
        return shown if shown["renewed"] and shown["state"] == "running" else None

    shown = await eventually(repaired)
    assert await machine.word() == "one"
    assert "its last words: damaged" in shown["restarted"][1]["why"]
    assert os.listdir(machine.folder / "releases") == [first["release"]]


async def test_a_damaged_release_that_cannot_be_had_again_stays_and_it_is_told(
    machine: Machine,
) -> None:
    first = await machine.call("deploy", **machine.spec("one"))
    program = machine.folder / "releases" / first["release"] / "bin" / "shop"
    program.write_text("#!/bin/sh\nexit 1\n")
    machine.shelf.files.clear()
    for file in (machine.config.root / "cache").iterdir():
        file.unlink()
    os.kill(first["pid"], signal.SIGKILL)

    async def failing() -> Any:
        shown = await machine.call("show", service="shop")
        return shown if shown["restarts"] >= 7 else None

    shown = await eventually(failing)
    told = [one["why"] for one in shown["restarted"] if "made anew" in one["why"]]
    assert len(told) == 1 and "404" in told[0]
    assert program.read_text() == "#!/bin/sh\nexit 1\n"


async def test_restarting_gives_it_a_new_process(machine: Machine) -> None:
    first = await machine.call("deploy", **machine.spec("one"))
    second = await machine.call("restart", service="shop")
    assert first["pid"] != second["pid"] and await machine.word() == "one"
    assert first["release"] == second["release"]
    reason, text = await problem_of(machine.call("restart", service="other"))
    assert reason == "refused" and "no service 'other'" in text


async def test_a_cancelled_deploy_is_taken_back(machine: Machine) -> None:
    first = await machine.call("deploy", **machine.spec("one"))
    sick = machine.spec("two", env={"MODE": "sick"})
    call = machine.ask("deploy", **sick)
    await eventually(lambda: len(running_under(machine.folder)) == 2)
    assert await call.cancel() in ("cancelled", "late")
    await eventually(lambda: running_under(machine.folder) == [first["pid"]])
    await eventually(lambda: os.listdir(machine.folder / "releases") == [first["release"]])
    assert await machine.word() == "one"


async def test_a_deploy_that_is_cancelled_while_it_fetches_leaves_nothing(machine: Machine) -> None:
    began = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        found = web.StreamResponse()
        await found.prepare(request)
        await found.write(b"begins")
        began.set()
        await asyncio.Event().wait()
        return found

    spec = machine.spec("one")
    machine.shelf.odd["shop-one.tar.gz"] = slow
    call = machine.ask("deploy", **spec)
    await began.wait()
    await call.cancel()
    assert (await problem_of(call.result()))[0] == "cancelled"
    await eventually(lambda: not machine.folder.exists())
    assert os.listdir(machine.config.root / "cache") == []


async def test_changes_of_one_service_come_one_at_a_time(machine: Machine) -> None:
    words = ["a", "b", "c", "d"]
    calls = [machine.ask("deploy", **machine.spec(word)) for word in words]
    ends = [await call.result() for call in calls]
    assert [end["release"].partition("-")[0] for end in ends] == ["1", "2", "3", "4"]
    assert await machine.word() == "d"
    assert running_under(machine.folder) == [ends[-1]["pid"]]


async def test_services_do_not_wait_for_one_another(machine: Machine) -> None:
    names = [f"shop-{n}" for n in range(4)]
    specs = [{**machine.spec(name), "service": name} for name in names]
    ends = await asyncio.gather(*(machine.call("deploy", **spec) for spec in specs))
    assert len({end["port"] for end in ends}) == 4
    assert [row["service"] for row in (await machine.call("list"))["items"]] == names
    assert [await machine.get(end["port"]) for end in ends] == names


@pytest.mark.parametrize("port", ["auto", "fixed"])
async def test_a_switch_that_the_disk_does_not_take_is_taken_back(
    machine: Machine, port: str
) -> None:
    how = {"port": "auto" if port == "auto" else machine.config.ports[1]}
    first = await machine.call("deploy", **machine.spec("one", **how), generation=1)
    current = machine.folder / "current"
    current.unlink()
    # A folder is in the way of the link.
    (current / "x").mkdir(parents=True)
    reason, text = await problem_of(
        machine.call("deploy", **machine.spec("two", **how), generation=2)
    )
    assert reason == "failed" and "cannot switch" in text

    async def answers() -> bool:
        return await machine.word() == "one"

    await eventually(answers)
    state = json.loads((machine.folder / "state.json").read_text())
    assert (state["current"], state["generation"]) == (first["release"], 1)
    assert os.listdir(machine.folder / "releases") == [first["release"]]
    assert len(running_under(machine.folder)) == 1
    (current / "x").rmdir()
    current.rmdir()
    await machine.call("deploy", **machine.spec("three", **how), generation=3)
    assert await machine.word() == "three"


# -- lives


async def test_the_next_life_goes_on(machine: Machine) -> None:
    spec = machine.spec("one", generation=7)
    first = await machine.call("deploy", **spec)
    await machine.stop()
    assert running_under(machine.config.root) == []
    await machine.start()

    async def runs() -> Any:
        (row,) = (await machine.call("list"))["items"]
        return row if row["state"] == "running" else None

    row = await eventually(runs)
    assert (row["release"], row["generation"], row["port"]) == (first["release"], 7, first["port"])
    assert await machine.word() == "one"
    assert not (await machine.call("deploy", **spec))["changed"]


async def test_what_a_dispatcher_has_placed_elsewhere_stays_down(machine: Machine) -> None:
    await machine.call("deploy", **machine.spec("one"), generation=7)
    await machine.stop()
    machine.rows = [
        {"name": "shop", "state": "placed", "generation": 8, "running": 8, "agent": "b@x/agent"}
    ]
    await machine.start()

    async def told() -> Any:
        (row,) = (await machine.call("list"))["items"]
        return row if row["state"] == "superseded" else None

    row = await eventually(told)
    assert row["why"] == "generation 8 runs at b@x/agent" and row["pid"] is None
    await machine.call("undeploy", service="shop", below=8)
    assert (await machine.call("list"))["items"] == []


async def test_without_a_dispatcher_it_is_started_all_the_same(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await machine.call("deploy", **machine.spec("one"), generation=7)
    await machine.stop()
    monkeypatch.setattr(elsewhere, "WITHIN", 0.3)
    machine.rows = None
    await machine.start()

    async def answers() -> bool:
        return bool(await machine.word() == "one")

    await eventually(answers)


async def test_a_port_that_was_taken_meanwhile_is_replaced_by_another(machine: Machine) -> None:
    first = await machine.call("deploy", **machine.spec("one"))
    await machine.stop()
    with socket.create_server(("127.0.0.1", first["port"])):
        await machine.start()

        async def answers() -> Any:
            (row,) = (await machine.call("list"))["items"]
            return row if row["state"] == "running" else None

        row = await eventually(answers)
        assert row["port"] != first["port"]
        assert await machine.get(row["port"]) == "one"


async def test_a_port_of_its_own_that_somebody_has_is_named(machine: Machine) -> None:
    port = machine.config.ports[1]
    with socket.create_server(("127.0.0.1", port)):
        reason, text = await problem_of(machine.call("deploy", **machine.spec("one", port=port)))
    assert reason == "failed" and f"port {port} is taken by another program" in text


async def test_what_a_life_left_half_way_is_finished_by_the_next(machine: Machine) -> None:
    first = await machine.call("deploy", **machine.spec("one"))
    await machine.stop()
    # As if it had been killed while it unpacked, made a release anew, and set the link.
    (machine.folder / "releases" / "2-0123456789ab").mkdir()
    release = machine.folder / "releases" / first["release"]
    release.rename(release.with_name(f"{release.name}.old"))
    (release / "bin").mkdir(parents=True)
    (machine.folder / "current").unlink()
    (machine.config.root / "cache" / ".half").touch()
    await machine.start()

    async def whole() -> bool:
        return (machine.folder / "current").exists() and bool(await machine.word() == "one")

    await eventually(whole)
    assert os.listdir(machine.folder / "releases") == [first["release"]]
    assert not (machine.config.root / "cache" / ".half").exists()


async def test_a_broken_state_does_not_keep_other_services_down(machine: Machine) -> None:
    await machine.call("deploy", **machine.spec("one"))
    await machine.call("deploy", **{**machine.spec("two"), "service": "other"})
    await machine.stop()
    (machine.folder / "state.json").write_text("{")
    await machine.start()

    async def other() -> bool:
        return [
            (row["service"], row["state"]) for row in (await machine.call("list"))["items"]
        ] == [("other", "running")]

    await eventually(other)
    second = await machine.call("deploy", **machine.spec("three"))
    assert second["release"].startswith("2-")


# -- what is refused


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"service": "../etc"}, "service: '../etc' must be a name"),
        ({"service": "a/b"}, "must be a name"),
        ({"service": "Shop"}, "must be a name"),
        ({"service": ""}, "must be a name"),
        ({"start": []}, "'start' is missing"),
        ({"start": ["a", "b\0c"]}, "NUL"),
        ({"start": ["{home}"]}, "{home} is no placeholder"),
        ({"port": "any"}, "port"),
        ({"port": 70000}, "port"),
        ({"env": {"A=B": "c"}}, "env"),
        ({"env": {"TOKEN": {"file": "/etc/shadow"}}}, "gives no service the secret"),
        ({"env": {"TOKEN": {"env": "HOME"}}}, "gives no service the secret"),
        ({"health": {"http": "http://example.org/"}}, "must be a URL of this machine"),
        ({"keep": 1000}, "keep"),
    ],
)
async def test_hostile_arguments_are_refused_by_name(
    machine: Machine, more: dict[str, Any], says: str
) -> None:
    reason, text = await problem_of(machine.call("deploy", **machine.spec("one", **more)))
    assert reason == "refused" and says in text, text
    assert (await machine.call("list"))["items"] == []
    assert os.listdir(machine.config.root / "services") == []


@pytest.mark.parametrize("url", ["file:///etc/passwd.zip", "http://example.org/a.zip"])
async def test_a_url_that_is_not_allowed_is_refused(machine: Machine, url: str) -> None:
    release = {"url": url, "sha256": "0" * 64}
    reason, text = await problem_of(machine.call("deploy", **machine.spec("one", release=release)))
    assert reason == "refused" and "does not fetch from" in text


async def test_a_wrong_hash_and_a_hostile_archive_are_refused(machine: Machine) -> None:
    spec = machine.spec("one")
    wrong = {**spec["release"], "sha256": "0" * 64}
    reason, text = await problem_of(machine.call("deploy", **{**spec, "release": wrong}))
    assert reason == "refused" and "has the SHA-256" in text
    evil = tar_of(({"name": "../../../evil"}, b"x"))
    release = machine.shelf.put("evil.tar.gz", evil)
    reason, text = await problem_of(machine.call("deploy", **{**spec, "release": release}))
    assert reason == "refused" and "outside" in text
    assert not machine.folder.exists()


async def test_arguments_reach_the_program_as_they_are(machine: Machine) -> None:
    nasty = [
        "; touch /tmp/x",
        "$(id)",
        "`id`",
        "-rf",
        "a b",
        "'\"",
        "\n",
        "--",
        "{}",
        "$HOME",
        "é☃",
    ]
    program = "import json,sys,time\nprint(json.dumps(sys.argv[1:]), flush=True)\ntime.sleep(99)"
    spec = machine.spec("one", start=["python3", "-c", program, *nasty], port=None, health=None)
    await machine.call("deploy", **spec)
    found = await machine.call("log", service="shop")
    assert json.loads(found["lines"][0]) == nasty


async def test_a_service_sees_nothing_of_the_agents_environment(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPINAL_PASSWORD", "secret")
    program = "import json,os,time\nprint(json.dumps(dict(os.environ)), flush=True)\ntime.sleep(99)"
    spec = machine.spec("one", start=["python3", "-c", program], port=None, health=None)
    await machine.call("deploy", **spec, env={"MODE": "x", "WHERE": "{data}"})
    (line,) = (await machine.call("log", service="shop"))["lines"]
    found = json.loads(line)
    found.pop("LC_CTYPE", None)
    assert set(found) == {"PATH", "HOME", "LANG", "MODE", "WHERE"}
    assert found["WHERE"] == found["HOME"] == str(machine.folder / "data")


# -- logs


async def test_the_last_lines_of_a_log_are_given(machine: Machine) -> None:
    found = await machine.call("deploy", **machine.spec("one"))
    for number in range(5):
        await machine.get(found["port"], f"/{number}")

    async def written() -> Any:
        log = await machine.call("log", service="shop", lines=2)
        return log if log["lines"][-1:] == ["asked for /4"] else None

    log = await eventually(written)
    assert len(log["lines"]) == 2
    reason, text = await problem_of(machine.call("log", service="shop", release="../x"))
    assert reason == "refused" and "no release" in text


async def test_a_log_is_followed_as_data(machine: Machine) -> None:
    found = await machine.call("deploy", **machine.spec("one"))
    call = machine.ask("log", service="shop", lines=1, follow=True)
    lines: list[str] = []
    asked = False
    async for item in call:
        lines += getattr(item, "value", [])
        if not asked:
            asked = True
            await machine.get(found["port"], "/new")
        if "asked for /new" in lines:
            break
    assert "asked for /new" in lines


async def test_a_service_that_floods_its_log_holds_nobody_up(machine: Machine) -> None:
    await machine.stop()
    machine.config = replace(machine.config, limits=Limits(log=200_000))
    await machine.start()
    spec = machine.spec("one", start=["yes", "<&" * 100], port=None, health=None)
    await machine.call("deploy", **spec)
    loop = asyncio.get_running_loop()
    slowest = 0.0
    for _ in range(50):
        began = loop.time()
        found = await machine.call("log", service="shop", lines=1000)
        slowest = max(slowest, loop.time() - began)
        assert found["cut"] and set(found["lines"][1:-1]) == {"<&" * 100}
    assert slowest < 2

    def sizes() -> list[int] | None:
        try:
            found = [one.stat().st_size for one in (machine.folder / "logs").iterdir()]
        except FileNotFoundError:
            return None  # It was rotated just then.
        return found if len(found) == 2 else None

    assert max(await eventually(sizes)) <= 200_000
    call = machine.ask("log", service="shop", follow=True)
    pieces = 0
    async for item in call:
        pieces += isinstance(item, Data)
        if pieces == 20:
            break
    await machine.call("undeploy", service="shop")


async def test_who_follows_does_not_keep_the_agent_from_ending(machine: Machine) -> None:
    await machine.call("deploy", **machine.spec("one"))
    call = machine.ask("log", service="shop", follow=True)
    life = machine.life
    assert life is not None
    # The result is awaited at once, which reads what comes.
    ending = asyncio.ensure_future(call.result())
    await eventually(lambda: life.slots.busy == 1)
    assert await life.drain(grace=10)
    assert (await ending)["lines"] == []


async def test_a_machine_is_the_fuller_the_more_services_it_has(machine: Machine) -> None:
    assert machine.life is not None
    await machine.call("deploy", **machine.spec("one"))
    await eventually(lambda: machine.life and machine.life.advertisement(DISPATCHER).load == 0.01)


async def test_many_services_are_listed_in_pages(machine: Machine) -> None:
    program = "import time; time.sleep(99)"
    names = [f"a-rather-long-name-of-a-service-that-is-here-{n:02}" for n in range(8)]
    for name in names:
        spec = machine.spec("one", start=["python3", "-c", program], port=None, health=None)
        await machine.call("deploy", **{**spec, "service": name})
    found: list[str] = []
    page: dict[str, Any] = {"more": True}
    while page["more"]:
        page = await machine.call("list", offset=len(found))
        found += [row["service"] for row in page["items"]]
    assert found == names and page["total"] == 8
    assert (await machine.call("list", offset=100))["items"] == []


NASTY = [
    "; touch /tmp/spinal-was-here", "$(touch /tmp/spinal-was-here)", "`id`", "| id", "&& id", "> /tmp/x",
    "'", '"', "'; id; '", '"; id; "', "\\", "\n", "\r\n", "\t", " ", "", "-", "--", "-rf", "--help",
    "-c", "*", "?", "~", "$HOME", "${PATH}", "%s", "{}", "{0}", "{{port}}", "{ port }", "\x7f", "\x1b[2J",
    "é", "☃", "\U0001f4a9", "\u202e", "../../etc/passwd", "/etc/passwd", "a=b", "@file", "#", "!", "^",
    "x" * 4000,
]  # fmt: skip


async def test_a_thousand_hostile_arguments_and_variables_are_passed_as_they_are(
    machine: Machine,
) -> None:
    program = (
        "import json,os,sys,time\n"
        "with open(sys.argv[1], 'w') as f: json.dump([sys.argv[2:], dict(os.environ)], f)\n"
        "time.sleep(99)"
    )
    # Each one before, after and between others.
    words = [*NASTY, *(f"{one[:100]}{two[:100]}" for one in NASTY for two in NASTY)][:1000]
    assert len(words) == 1000
    for first in range(0, 1000, 200):
        given = [one.replace("{", "<") if "{port}" in one else one for one in words[first:][:200]]
        env = {f"V{number}": word for number, word in enumerate(given)}
        start = ["python3", "-c", program, "{data}/seen", *given]
        spec = machine.spec("one", start=start, port=None, health=None, env=env)
        await machine.call("deploy", **spec)
        seen, environ = json.loads((machine.folder / "data/seen").read_text())
        assert seen == given
        assert {name: environ[name] for name in env} == env
    assert not Path("/tmp/spinal-was-here").exists()
