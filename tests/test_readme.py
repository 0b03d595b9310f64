"""The README does what it says."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

from PIL import Image

from spinal.testing import platform

ROOT = Path(__file__).resolve().parent.parent


def block(language: str, number: int = 0) -> str:
    found: list[str] = re.findall(
        rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    return found[number]


async def test_its_worker_and_its_call_work(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(block("python"))
    call = next(line for line in block("sh").splitlines() if line.startswith("spinal call"))
    argv = [
        word.replace("=examples/", f"={ROOT}/examples/").replace(
            "small.jpg", str(tmp_path / "small.jpg")
        )
        for word in shlex.split(call)
    ]

    async with platform() as here:
        await here.agent(worker)
        ended = await here.spinal(*argv[1:])
        status = await ended.wait()

    assert status == 0, ended.errors
    with Image.open(tmp_path / "small.jpg") as image:
        assert image.size == (320, 212)


async def test_its_lines_about_jobs_work_as_they_stand(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(block("python"))
    command = tmp_path / "bin" / "spinal"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m spinal "$@"\n')
    command.chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = f"set -eux\ncd {tmp_path}\n{block('sh', 1)}"

    async with platform() as here:
        await here.agent(worker)
        environ = {**here.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
        ended = await here.start("sh", "-c", script, environ=environ)
        status = await ended.wait()

    assert status == 0, ended.errors
    photos = sorted(path.stem for path in (ROOT / "examples/images/photos").glob("c*.png"))
    assert sorted(path.stem for path in (tmp_path / "small").iterdir()) == photos
    with Image.open(tmp_path / "small.jpg") as image:
        assert image.size == (320, 212)


def test_every_file_that_it_names_is_there() -> None:
    text = (ROOT / "README.md").read_text()

    for name in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / name).exists(), name
