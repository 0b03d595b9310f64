"""The README does what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from PIL import Image

from spinal.testing import platform

ROOT = Path(__file__).resolve().parent.parent


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


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


def test_every_file_that_it_names_is_there() -> None:
    text = (ROOT / "README.md").read_text()

    for name in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / name).exists(), name
