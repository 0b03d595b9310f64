"""Wheels and images.  No engine with a daemon runs here: see the two tests about that."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spinal.agents.deployment.command import PATH
from spinal.agents.deployment.config import Limits, User
from spinal.agents.deployment.kinds import pip_argv
from spinal.bus.errors import CallError
from spinal.protocols import Log

from .conftest import Machine, service_archive, zipped

DIGEST = "sha256:" + "ab" * 32
IMAGE = f"registry.example.org:5000/team/shop@{DIGEST}"


async def problem_of(work: Any) -> tuple[str, str]:
    with pytest.raises(CallError) as caught:
        await work
    return caught.value.reason, str(caught.value)


# -- wheels

MODULE = """\
import http.server, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"wheel {os.getpid()}".encode())
    def log_message(self, *_):
        pass

def main():
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def wheel(requires: str = "") -> bytes:
    """Make a wheel with a program, by the binary distribution format."""
    info = "tinyshop-1.0.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        "tinyshop.py": MODULE,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tinyshop\nVersion: 1.0\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntinyshop = tinyshop:main\n",
    }
    lines: list[str] = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
        lines.append(f"{name},sha256={digest.rstrip('=')},{len(text.encode())}\n")
    return zipped({**files, f"{info}/RECORD": "".join(lines) + f"{info}/RECORD,,\n"})


async def test_a_wheel_runs_in_an_environment_of_its_own(machine: Machine) -> None:
    release = machine.shelf.put("tinyshop-1.0-py3-none-any.whl", wheel())
    spec = machine.spec("one", release=release, start=["tinyshop", "{port}"])
    call = machine.ask("deploy", **spec)
    steps = [item.text async for item in call if isinstance(item, Log)]
    found = await call.result()
    assert steps == [
        "fetch", "hash is right", "make an environment", "install", "start", "healthy", "switched"
    ]  # fmt: skip
    assert await machine.get(found["port"]) == "wheel"
    argv = Path(f"/proc/{found['pid']}/cmdline").read_bytes().split(b"\0")
    assert argv[0].decode().startswith(str(machine.folder / "releases" / found["release"]))


async def test_a_wheel_that_needs_more_is_refused_without_an_index(machine: Machine) -> None:
    release = machine.shelf.put("tinyshop-1.0-py3-none-any.whl", wheel("no-such-thing-at-all"))
    spec = machine.spec("one", release=release, start=["tinyshop", "{port}"])
    reason, text = await problem_of(machine.call("deploy", **spec))
    assert reason == "failed" and "no-such-thing-at-all" in text
    assert not machine.folder.exists()


async def test_what_is_no_wheel_is_refused_before_anything_is_made(machine: Machine) -> None:
    release = machine.shelf.put("tinyshop-1.0-py3-none-any.whl", b"no wheel")
    spec = machine.spec("one", release=release, start=["tinyshop", "{port}"])
    reason, text = await problem_of(machine.call("deploy", **spec))
    assert reason == "refused" and "is no wheel" in text


def test_pip_never_builds_and_asks_an_index_only_if_told(tmp_path: Path) -> None:
    offline = pip_argv(tmp_path, tmp_path / "a.whl", "")
    assert "--no-index" in offline and "--index-url" not in offline
    online = pip_argv(tmp_path, tmp_path / "a.whl", "https://pypi.example.org/simple")
    assert "--no-index" not in online
    assert online[online.index("--index-url") + 1] == "https://pypi.example.org/simple"
    for argv in (offline, online):
        assert argv[argv.index("--only-binary") + 1] == ":all:"
        assert argv[-2:] == ["--", str(tmp_path / "a.whl")]


# -- images

#: In place of docker and its daemon: notes what it is asked, and runs a server for `run`.
ENGINE = """\
#!{python}
import json, os, sys
argv = sys.argv[1:]
with open({record!r}, "a") as record:
    variables = ""
    if "--env-file" in argv:
        with open(argv[argv.index("--env-file") + 1]) as file:
            variables = file.read()
    print(json.dumps([argv, variables, dict(os.environ)]), file=record)
if argv[0] == "run":
    port = argv[argv.index("--publish") + 1].split(":")[1]
    os.execv({python!r}, [{python!r}, "-m", "http.server", "--bind", "127.0.0.1", port])
"""


class Engine:
    def __init__(self, folder: Path) -> None:
        self.record = folder / "record"
        self.path = folder / "engine"
        text = ENGINE.format(python=sys.executable, record=str(self.record))
        self.path.write_text(text)
        self.path.chmod(0o755)

    @property
    def asked(self) -> list[list[str]]:
        """What it was asked."""
        return [json.loads(line)[0] for line in self.record.read_text().splitlines()]

    def run(self) -> tuple[list[str], str, dict[str, str]]:
        """The first ``run``: its arguments, the file of variables, and the environment."""
        lines = map(json.loads, self.record.read_text().splitlines())
        argv, variables, environ = next(line for line in lines if line[0][0] == "run")
        return argv, variables, environ


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


def image_spec(machine: Machine, **more: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"release": {"url": IMAGE}, "start": ["--port", "{port}", "{data}"]}
    return dict(machine.spec("one", **{**usual, **more}))


async def test_an_image_is_pulled_run_watched_and_removed(machine: Machine, engine: Engine) -> None:
    user = User(1234, 1235, (), "shop", "/nonexistent")
    await machine.stop()
    machine.config = replace(
        machine.config, engine=str(engine.path), user=user, limits=Limits(memory=2**28)
    )
    await machine.start()
    env = {"MODE": "a b 'c' \"d\" $e", "LD_PRELOAD": "/evil.so", "WHERE": "{data}:{port}"}
    found = await machine.call("deploy", **image_spec(machine, env=env))
    port = found["port"]
    name = f"spinal-shop-{found['release']}"
    folder = machine.folder.resolve()
    argv, variables, environ = engine.run()
    assert argv == [
        "run", "--rm", "--name", name, "--pull", "never", "--init",
        "--security-opt", "no-new-privileges", "--volume", f"{folder}/data:/data",
        "--env-file", f"{folder}/releases/{found['release']}/.env",
        "--publish", f"127.0.0.1:{port}:{port}", "--user", "1234:1235",
        "--memory", str(2**28), IMAGE, "--port", str(port), "/data",
    ]  # fmt: skip
    assert variables.splitlines() == [
        "LD_PRELOAD=/evil.so",
        "MODE=a b 'c' \"d\" $e",
        f"WHERE=/data:{port}",
    ]
    assert "LD_PRELOAD" not in environ and environ["PATH"] == PATH
    assert found["release"] == f"1-{'ab' * 6}"
    await machine.call("undeploy", service="shop")
    assert [one[0] for one in engine.asked] == ["pull", "rm", "run", "rm"]
    assert engine.asked[0] == ["pull", "--quiet", IMAGE]
    assert engine.asked[-1] == ["rm", "--force", name]


async def test_the_check_of_an_image_runs_in_its_container(
    machine: Machine, engine: Engine
) -> None:
    await machine.stop()
    machine.config = replace(machine.config, engine=str(engine.path))
    await machine.start()
    health = {"run": ["check", "{port}"], "every": "5s"}
    found = await machine.call("deploy", **image_spec(machine, health=health))
    assert ["exec", f"spinal-shop-{found['release']}", "check", str(found["port"])] in engine.asked


async def test_a_variable_of_two_lines_is_refused(machine: Machine, engine: Engine) -> None:
    await machine.stop()
    machine.config = replace(machine.config, engine=str(engine.path))
    await machine.start()
    spec = image_spec(machine, env={"MODE": "one\nTWO=2"})
    reason, text = await problem_of(machine.call("deploy", **spec))
    assert reason == "refused" and "env.MODE" in text


@pytest.mark.parametrize(
    ("engine_name", "says"),
    [("", "its file names no engine"), ("no-such-engine", "this machine has no 'no-such-engine'")],
)
async def test_without_an_engine_images_are_refused(
    machine: Machine, engine_name: str, says: str
) -> None:
    await machine.stop()
    machine.config = replace(machine.config, engine=engine_name)
    await machine.start()
    reason, text = await problem_of(machine.call("deploy", **image_spec(machine)))
    assert reason == "refused" and says in text


async def test_the_real_client_of_docker_says_that_its_daemon_is_missing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("docker") is None:
        pytest.skip("MISSING: the docker client")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    await machine.stop()
    machine.config = replace(machine.config, engine="docker")
    await machine.start()
    reason, text = await problem_of(machine.call("deploy", **image_spec(machine)))
    assert reason == "failed" and "docker daemon" in text.lower()
    assert not machine.folder.exists()


async def test_the_real_client_of_docker_knows_every_option_of_ours(
    machine: Machine, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("MISSING: the docker client")
    await machine.stop()
    machine.config = replace(
        machine.config,
        engine=str(engine.path),
        limits=Limits(memory=2**28),
        user=User(1, 1, (), "x", "/"),
    )
    await machine.start()
    await machine.call("deploy", **image_spec(machine))
    argv, _, _ = engine.run()
    from spinal.agents.process import run

    done = await run(
        [docker, *argv],
        env={"DOCKER_HOST": "unix:///nonexistent/docker.sock", "PATH": os.environ["PATH"]},
        timeout=30,
    )
    words = done.stderr.decode().lower()
    assert "docker daemon" in words and "unknown" not in words, words


def test_a_program_of_a_release_is_executable_by_whoever_runs_it(tmp_path: Path) -> None:
    from spinal.agents.deployment.unpack import Bounds, unpack

    archive = tmp_path / "archive"
    archive.write_bytes(service_archive("one"))
    unpack(archive, "a.tar.gz", tmp_path / "out", Bounds(10**6, 10), lambda: None)
    assert stat.S_IMODE((tmp_path / "out/bin/shop").stat().st_mode) == 0o755
