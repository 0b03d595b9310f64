from __future__ import annotations

import os
import pwd
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spinal.agents.deployment import make
from spinal.agents.deployment.config import Limits, Secrets, load, usual_root
from spinal.agents.document import BadDocument
from spinal.agents.errors import AgentError, Refused
from spinal.agents.secret import Secret
from spinal.agents.shipped import make as make_shipped
from spinal.bus.errors import CallError

from .conftest import Machine

WHOLE = """\
root: services
urls: ["https://releases.example.org/", "file:///srv/releases/"]
ca: ca.pem
ports: {first: 30000, last: 30100}
pip: {index: "https://pypi.example.org/simple"}
images: {engine: podman, publish: 0.0.0.0}
user: nobody
secrets: {env: [SHOP_*], files: [secrets], credentials: [shop-token]}
limits: {fetched: 10M, log: 64K, services: 3, memory: 1G}
place: {site: /eu/fra}
tags: [ssd]
slots: 4
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "deployment.yaml"
    file.write_text(text)
    return file


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    found = load(write(tmp_path, WHOLE))
    assert (found.root, found.ca) == (tmp_path / "services", tmp_path / "ca.pem")
    assert (found.ports, found.engine, found.publish) == ((30000, 30100), "podman", "0.0.0.0")
    assert found.user is not None and found.user.uid == pwd.getpwnam("nobody").pw_uid
    assert found.limits == Limits(fetched=10 * 2**20, log=64 * 2**10, services=3, memory=2**30)
    agent = make_shipped("deployment", write(tmp_path, WHOLE))
    assert (agent.name, agent.place, agent.tags, agent.slots) == (
        "deployment", {"site": "/eu/fra"}, ("ssd",), 4
    )  # fmt: skip


def test_everything_has_a_default_that_denies(tmp_path: Path) -> None:
    found = load(write(tmp_path, "{}"))
    assert (found.index, found.engine, found.secrets) == ("", "", Secrets())
    with pytest.raises(Refused):
        found.allowed.url("file:///etc/passwd")
    assert sorted(make().operations) == [
        f"/deployment/{op}"
        for op in ("deploy", "list", "log", "restart", "rollback", "show", "undeploy")
    ]


def test_the_root_is_where_the_system_keeps_state() -> None:
    assert usual_root({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}) == Path("/var/lib/a")
    assert usual_root({"XDG_STATE_HOME": "/x"}) == Path("/x/spinal/deployment")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rot: x", ":1: rot: is not known here: did you mean 'root'?"),
        ("root: x\nurls: [example.org]", ":2: urls: urls: 'example.org' is no beginning"),
        ("ports: {first: 3, last: 2}", ":1: ports: first must not be above last"),
        ("user: no-such-account", ":1: user: there is no account"),
        ("limits: {log: much}", ":1: limits.log: "),
        ("pip: {index: 'http://pypi.example.org'}", ":1: pip.index: "),
        ("place: {site: eu}", ":1: place: "),
        ("- a", "mapping"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadDocument) as caught:
        load(write(tmp_path, text))
    assert says in str(caught.value)


def test_only_listed_secrets_are_given(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "token").write_text("word\n")
    (tmp_path / "other").write_text("other")
    (folder / "out").symlink_to(tmp_path / "other")
    secrets = Secrets(("SHOP_*",), (folder,), ("shop-*",))
    environ = {"SHOP_TOKEN": "t", "HOME": "h", "CREDENTIALS_DIRECTORY": str(folder)}
    assert secrets.read(Secret("env", "SHOP_TOKEN"), environ) == "t"
    assert secrets.read(Secret("file", f"{folder}/token"), environ) == "word"
    for refused in (
        Secret("env", "HOME"),
        Secret("file", str(tmp_path / "other")),
        Secret("file", f"{folder}/out"),
        Secret("file", f"{folder}/../other"),
        Secret("credential", "token"),
    ):
        with pytest.raises(Refused, match="gives no service the secret"):
            secrets.read(refused, environ)
    with pytest.raises(AgentError, match="SHOP_OTHER"):
        secrets.read(Secret("env", "SHOP_OTHER"), environ)


async def test_a_service_gets_its_secret_and_nothing_shows_it(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await machine.stop()
    (tmp_path / "token").write_text("xyzzy\n")
    machine.config = replace(machine.config, secrets=Secrets(files=(tmp_path / "token",)))
    await machine.start()
    env = {"TOKEN": {"file": str(tmp_path / "token")}}
    found = await machine.call("deploy", **machine.spec("one", env=env))
    assert await machine.get(found["port"], "/env/TOKEN") == "xyzzy"
    shown = await machine.call("show", service="shop")
    written = b"".join(one.read_bytes() for one in machine.folder.rglob("*.json"))
    commands = Path(f"/proc/{found['pid']}/cmdline").read_bytes()
    # It may be in the service's own log only.
    out = capsys.readouterr()
    for text in (str(shown), written.decode(), commands.decode(), out.out, out.err):
        assert "xyzzy" not in text


async def test_a_secret_that_is_missing_stops_nothing(machine: Machine, tmp_path: Path) -> None:
    await machine.stop()
    machine.config = replace(machine.config, secrets=Secrets(files=(tmp_path,)))
    await machine.start()
    port = machine.config.ports[1]
    first = await machine.call("deploy", **machine.spec("one", port=port))
    env = {"TOKEN": {"file": str(tmp_path / "token")}}
    with pytest.raises(CallError, match="cannot be read"):
        await machine.call("deploy", **machine.spec("two", port=port, env=env))
    assert (await machine.call("show", service="shop"))["pid"] == first["pid"]


async def test_a_service_runs_as_its_user_within_its_limits(
    machine: Machine, tmp_path: Path
) -> None:
    # Only root may become somebody else.
    root = os.geteuid() == 0
    name = "nobody" if root else pwd.getpwuid(os.geteuid()).pw_name
    user = load(write(tmp_path, f"user: {name}")).user
    await machine.stop()
    if root:
        for path in (tmp_path, *list(tmp_path.parents)[:3]):
            path.chmod(0o755)
    limits = Limits(memory=2**29, open_files=77)
    machine.config = replace(machine.config, user=user, limits=limits)
    await machine.start()
    program = (
        "import os,resource as r,time,pathlib\n"
        "pathlib.Path(os.environ['HOME'],'mine').touch()\n"
        "print(os.getresuid(), os.getresgid(), r.getrlimit(r.RLIMIT_NOFILE), "
        "r.getrlimit(r.RLIMIT_AS), r.getrlimit(r.RLIMIT_CORE), flush=True)\n"
        "open('bin/evil', 'w')\n"
        "raise SystemExit(1)\n"
    )
    spec = machine.spec("one", start=["python3", "-c", program], port=None, health=None)
    with pytest.raises(CallError) as caught:
        await machine.call("deploy", **spec)
    assert user is not None
    uid, gid = user.uid, user.gid
    said = f"({uid}, {uid}, {uid}) ({gid}, {gid}, {gid}) (77, 77) ({2**29}, {2**29}) (0, 0)"
    assert said in str(caught.value)
    if root:  # Else the release is its own.
        assert "Permission denied: 'bin/evil'" in str(caught.value)
    assert (machine.folder / "data" / "mine").stat().st_uid == uid


async def test_two_agents_do_not_share_a_root(machine: Machine) -> None:
    from spinal.agents.deployment.deployment import Deployment

    async def nobody() -> dict[str, Any]:
        return {}

    with pytest.raises(AgentError, match="another deployment agent uses"):
        async with Deployment(machine.config).run(None, lambda: "", nobody):
            pass


async def test_more_services_than_there_may_be_are_refused(machine: Machine) -> None:
    await machine.stop()
    machine.config = replace(machine.config, limits=Limits(services=1))
    await machine.start()
    await machine.call("deploy", **machine.spec("one"))
    with pytest.raises(CallError, match="there are 1 services here already"):
        await machine.call("deploy", **{**machine.spec("two"), "service": "other"})
    await machine.call("deploy", **machine.spec("two"))
