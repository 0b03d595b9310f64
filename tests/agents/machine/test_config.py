from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from spinal.agents.document import BadDocument
from spinal.agents.machine import make
from spinal.agents.machine.config import SCHEMA, Config, Limit, Power, Rule, SignalRule
from spinal.agents.shipped import SHIPPED
from spinal.agents.shipped import make as make_shipped

ALL = """\
agent: web7
place: {site: /eu/fra/rack7}
tags: [linux, web]
slots: 4
cost: 0.02
load: {smooth: 30s}
facts: {cloud: on, metadata: "http://127.0.0.1:8080", within: 500ms}
health:
  every: 1m
  disk: {limit: 80, fatal: true, folders: [/, /var]}
  memory: {limit: 70}
  swap: false
  clock: {limit: 2s}
processes:
  arguments: true
  signal: [{name: "worker*", user: app, signals: [TERM, HUP]}]
services: {manager: sysv, change: [nginx], timeout: 2m}
logs: {services: ["*"], files: [/var/log/syslog]}
files: {read: [/srv/app], write: [/srv/app/data], largest: 2M}
disk: {rules: {old: {folder: /var/log, match: "*.gz", older: 30d, keep: 3, deep: true}}}
power: {reboot: true, shutdown: {command: [echo, bye]}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "machine.yaml"


def test_a_file_says_all_there_is_to_say(file: Path) -> None:
    file.write_text(ALL)

    config = Config.load(file)

    assert (config.name, config.place, config.tags) == (
        "web7",
        {"site": "/eu/fra/rack7"},
        ("linux", "web"),
    )
    assert (config.slots, config.cost, config.smooth) == (4, 0.02, 30.0)
    assert (config.facts.cloud, config.facts.within) == ("on", 0.5)
    assert config.health.disk == Limit(80, True) and config.health.folders == ("/", "/var")
    assert config.health.memory == Limit(70) and config.health.swap is None
    assert config.health.clock == Limit(2.0) and config.health.every == 60.0
    assert config.processes.signal == (SignalRule(("TERM", "HUP"), "worker*", "app"),)
    assert config.services.change == ("nginx",) and config.services.timeout == 120.0
    assert config.files.largest == 2 * 1024**2
    assert config.rules == {"old": Rule("/var/log", "*.gz", 30 * 86_400.0, 3, True)}
    assert config.reboot == Power() and config.shutdown == Power(("echo", "bye"))


def test_an_empty_file_is_no_file(file: Path) -> None:
    file.write_text("# nothing yet\n")

    assert Config.load(file) == Config()


def test_without_a_file_it_only_looks() -> None:
    agent = make()

    assert {one.public.effects for one in agent.operations.values()} == {"reads"}
    assert sorted(agent.operations) == [
        "/machine/facts",
        "/machine/health",
        "/machine/packages",
        "/machine/processes",
        "/machine/services/list",
        "/machine/services/show",
    ]


def test_what_is_allowed_is_offered_and_what_changes_the_machine_says_so(file: Path) -> None:
    file.write_text(ALL)

    offered = {path: one.public.effects for path, one in make(file).operations.items()}

    assert {path for path, effects in offered.items() if effects == "deletes"} == {
        "/machine/disk/clean",
        "/machine/files/remove",
        "/machine/process/signal",
        "/machine/reboot",
        "/machine/shutdown",
    }
    assert {path for path, effects in offered.items() if effects == "writes"} == {
        "/machine/files/write",
        *(
            f"/machine/services/{verb}"
            for verb in ["start", "stop", "restart", "enable", "disable"]
        ),
    }


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("agent: M 1", 1, "agent: 'M 1' must be small letters"),
        ("\nplace: eu", 2, "place: not a path: 'eu' must start with '/'"),
        ("slots: 0", 1, "slots: 0 must be at least 1"),
        ("health: {disk: {limit: 180}}", 1, "health.disk.limit: 180 must be at most 100"),
        ("health:\n  swap: true", 2, "health.swap: true: write {limit: NUMBER"),
        ("health: {dsik: false}", 1, "health.dsik: is not known here: did you mean 'disk'?"),
        ("processes: {signal: [{}]}", 1, "does not say which processes"),
        ("processes: {signal: [{name: a, signals: [BOOM]}]}", 1, "'BOOM' is none of 'TERM'"),
        ("files: {read: [srv]}", 1, "files.read.0: 'srv' must be a path from the root"),
        ("files:\n  write: [/srv/../etc]", 2, "files.write.0: '/srv/../etc' must be a path"),
        ("logs: {files: ['../x']}", 1, "logs.files.0: '../x' must be a path"),
        ("disk: {rules: {old: {match: a}}}", 1, "'folder' is missing: write folder: /srv/app"),
        ("disk: {rules: {old: {folder: /a, match: b, older: x}}}", 1, "write a length of time"),
        ("power: {reboot: reboot -f}", 1, "power.reboot: 'reboot -f' is not true or false or"),
        ("power: {reboot: {command: reboot}}", 1, "power.reboot.command: 'reboot' is not a list"),
        ("facts: {metadata: 'file:///etc/shadow'}", 1, "must be an address such as http://"),
        ("services: {manager: upstart}", 1, "services.manager: 'upstart' is none of"),
        ("- a", 1, "a list is not a mapping"),
    ],
)
def test_a_mistake_is_told_with_its_line(file: Path, text: str, line: int, said: str) -> None:
    file.write_text(text)

    with pytest.raises(BadDocument) as caught:
        Config.load(file)

    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert said in str(caught.value)


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_it_comes_with_spinal() -> None:
    assert "machine" in SHIPPED
    assert make_shipped("machine").name == "machine"


PAGE = Path(__file__).parents[3] / "docs" / "machine.md"


def test_the_example_of_the_page_is_one(file: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    file.write_text(example)

    config = Config.load(file)

    # Every key of the schema is shown, and the defaults are what it says.
    properties: Any = SCHEMA["properties"]
    assert set(properties) == {
        line.split(":")[0] for line in example.splitlines() if line[0:1] > " "
    }
    assert (config.slots, config.smooth, config.facts) == (16, 10.0, Config().facts)
    assert config.health.disk == Config().health.disk and config.health.load == Limit(8)


def test_the_page_has_every_operation(file: Path) -> None:
    file.write_text(ALL)
    page = PAGE.read_text()

    for path in make(file).operations:
        folder, _, last = path.rpartition("/")
        assert path in page or (folder in page and f"`{last}`" in page), path
