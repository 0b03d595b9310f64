"""The text of a unit, and what it does with values that mean something to systemd."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import MISSING

from spinal.agents.errors import AgentError
from spinal.agents.wrap import unit as units
from spinal.agents.wrap.unit import Unit

COMMAND = ("/usr/bin/true", "wrap", "run", "/etc/spinal/units.yaml")

#: As it has to be, so that a change of it is seen.
GOLDEN = """\
# Written by `spinal wrap install`, which writes it anew.
[Unit]
Description=Spinal agent units
Wants=network-online.target
After=network-online.target
# It is started again for ever.
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart=/usr/bin/true wrap run /etc/spinal/units.yaml
# A user of its own, there while it runs; one of this name that exists is taken.
DynamicUser=yes
User=spinal-units
StateDirectory=spinal-wrap-units
Environment="HOME=%S/spinal-wrap-units"
Environment="SPINAL_ADDRESS=units@example.org"
Environment="SPINAL_PASSWORD_FILE=%d/spinal-password"
EnvironmentFile=/etc/spinal/wrap-units.env
LoadCredential=spinal-password:/etc/spinal/units.password
Restart=on-failure
RestartSec=5s
# A manifest or credentials that cannot be used do not mend by themselves.
RestartPreventExitStatus=2
# Only the agent is asked to end: it lets what runs end, and ends it itself.
KillMode=mixed
TimeoutStopSec=45s

# No program may gain rights: sudo and other setuid programs do not work.
NoNewPrivileges=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
# What it writes is its own.
UMask=0077
# It writes to its state folder, its own /tmp and --write folders only.
ProtectSystem=strict
# Files of a call are in /tmp; nobody else sees them.
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
CapabilityBoundingSet=
ProtectHome=yes
ReadWritePaths="/srv/bills"
# Not restricted, because a wrapped program may need it: the network (and the bus does), devices,
# system calls, namespaces, and memory that is both writable and executable (Java, Node).

[Install]
WantedBy=multi-user.target
"""


def unit(**more: Any) -> Unit:
    return replace(Unit("units", COMMAND), **more)


def of_its_own() -> Unit:
    return unit(
        user="spinal-units",
        dynamic=True,
        environment={"SPINAL_ADDRESS": "units@example.org"},
        environment_file="/etc/spinal/wrap-units.env",
        credentials={"spinal-password": "/etc/spinal/units.password"},
        credential_paths={"SPINAL_PASSWORD_FILE": "spinal-password"},
        write=["/srv/bills"],
    )


def setting(one: Unit, key: str) -> str:
    return "\n".join(re.findall(rf"^{key}=(.*)$", one.text(), re.MULTILINE))


def test_a_unit_with_a_user_of_its_own_is_as_it_was() -> None:
    assert of_its_own().text() == GOLDEN
    assert of_its_own().name == "spinal-wrap-units.service"


def test_a_users_own_unit_has_only_what_a_users_manager_can_do() -> None:
    text = unit().text()

    assert "WantedBy=default.target" in text
    assert "NoNewPrivileges=yes" in text
    for key in (
        "User=",
        "ProtectSystem=",
        "PrivateTmp=",
        "CapabilityBoundingSet=",
        "network-online",
    ):
        assert key not in text


def test_root_keeps_its_capabilities_and_others_have_none() -> None:
    assert "CapabilityBoundingSet" not in unit(user="root").text()
    assert "CapabilityBoundingSet=\n" in unit(user="billing").text()
    assert "DynamicUser" not in unit(user="billing").text()


def test_pauses_grow_where_systemd_knows_how() -> None:
    assert setting(unit(systemd=254), "RestartMaxDelaySec") == "2min"
    assert setting(unit(systemd=252), "RestartSec") == "5s"
    assert not setting(unit(systemd=252), "RestartMaxDelaySec")


def test_it_is_given_the_time_that_its_end_takes() -> None:
    from spinal.agents.life import DRAIN, TAKE_WITHIN
    from spinal.agents.process import GRACE

    assert float(setting(unit(), "TimeoutStopSec").removesuffix("s")) > DRAIN + TAKE_WITHIN + GRACE


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/a/b.yaml", "/a/b.yaml"),
        ("/a b.yaml", '"/a b.yaml"'),
        ("/100%/a", '"/100%%/a"'),
        ("/$HOME/a", '"/$$HOME/a"'),
        ('/a"b', '"/a\\"b"'),
        ("/a'b", '"/a\'b"'),
        ("/a\\x20b", '"/a\\\\x20b"'),
        ("/a;b", '"/a;b"'),
    ],
)
def test_a_path_stays_one_word_of_the_command(path: str, written: str) -> None:
    assert setting(unit(command=("/usr/bin/true", path)), "ExecStart") == f"/usr/bin/true {written}"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("a b", '"X=a b"'),
        ("50%", '"X=50%%"'),
        ('"', '"X=\\""'),
        ("$A", '"X=$A"'),
        ("\\n", '"X=\\\\n"'),
    ],
)
def test_a_variable_keeps_its_value(value: str, written: str) -> None:
    assert setting(unit(environment={"X": value}), "Environment") == written


@pytest.mark.parametrize(
    "more",
    [
        {"command": ("/usr/bin/true", "a\nExecStartPost=/bin/evil")},
        {"command": ("/a b/true",)},
        {"command": ("/$a/true",)},
        {"environment": {"X": "a\nUser=root"}},
        {"environment_file": "/a b"},
        {"environment_file": "relative"},
        {"credentials": {"x": "/a\nb"}},
        {"credentials": {"x": "/a:b"}},
        {"user": "a b"},
        {"user": "-x"},
        {"user": "root\nExecStart="},
        {"user": "x", "write": ["/a\nb"]},
    ],
)
def test_what_no_quotes_can_carry_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(AgentError):
        unit(**more).text()


def test_names_of_own_users_are_short_enough_and_differ() -> None:
    assert units.own_user("units") == "spinal-units"
    assert units.own_user("json.tool") == "spinal-json-tool"
    one, two = units.own_user("a" * 40 + "b"), units.own_user("a" * 40 + "c")
    assert len(one) == len(two) == 31
    assert one != two


def test_secrets_are_written_so_that_systemd_reads_them_back() -> None:
    assert units.variables({"A": "x y", "B": 'q"\\$`'}) == 'A="x y"\nB="q\\"\\\\\\$\\`"\n'
    for bad in ({"A": "x\ny"}, {"A B": "x"}, {"": "x"}):
        with pytest.raises(AgentError):
            units.variables(bad)


def test_secrets_of_a_manifest_are_found_by_their_references() -> None:
    said = {
        "ops": {
            "/a": {
                "command": ["x"],
                "env": {"TOKEN": {"env": "A"}, "OTHER": {"credential": "c"}, "env": "no reference"},
            },
            "/b": {
                "http": {"headers": {"K": {"env": "B"}}, "auth": {"bearer": {"credential": "d"}}}
            },
            "/c": {"env": {"credential": "of this name"}},
        }
    }

    assert units.secrets(said, "env") == ["A", "B"]
    assert units.secrets(said, "credential") == ["c", "d"]


@pytest.mark.parametrize(
    "made",
    [
        of_its_own(),
        unit(user="root", reads_homes=True),
        unit(user="daemon", command=("/usr/bin/true", "/a b%c$d\"e'f\\g;h")),
        unit(user="daemon", environment={"X": 'a b%c$d"e\\g'}, write=["/a b%"]),
        unit(),
    ],
    ids=["own user", "root", "odd path", "odd values", "user's own"],
)
def test_systemd_finds_nothing_wrong(made: Unit, tmp_path: Path) -> None:
    # It tells of other units of the machine, too.
    assert made.name not in verified(tmp_path / made.name, made.text())


def test_systemd_would_find_what_is_wrong(tmp_path: Path) -> None:
    text = unit().text().replace("KillMode=", "KillMood=")

    assert "KillMood" in verified(tmp_path / unit().name, text)


def verified(file: Path, text: str) -> str:
    verifier = shutil.which("systemd-analyze")
    if verifier is None:
        pytest.skip(f"{MISSING} systemd-analyze (Debian: systemd)")
    file.write_text(text)
    return subprocess.run(
        [verifier, "verify", "--man=no", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    ).stderr
