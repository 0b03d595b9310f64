"""The examples that run a program for each call, on the programs themselves."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from PIL import Image
from tests.needs import needs

from spinal.agents.wrap import load
from spinal.bus.errors import BadCall, CallError
from spinal.testing import Platform

from .conftest import EXAMPLES

PHOTOS = EXAMPLES.parent / "images" / "photos"
NAMES = ["units", "bc", "imagemagick"]

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    needs("units", "bc", "convert", "identify", "prlimit"),
]


def manifest(name: str) -> Path:
    return EXAMPLES / name / f"{name}.yaml"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agents(running: Platform) -> AsyncIterator[Platform]:
    for name in NAMES:
        await running.agent(manifest(name))
    yield running


@pytest.mark.parametrize("name", NAMES)
async def test_an_example_has_no_mistakes_and_all_that_it_needs(name: str) -> None:
    assert list(load(manifest(name)).missing()) == []


async def test_the_first_manifest_has_at_most_15_lines() -> None:
    assert len(manifest("units").read_text().splitlines()) <= 15


async def test_units_are_converted(agents: Platform) -> None:
    assert await agents.client.call("/units/convert", **{"from": "3 feet"}, to="cm") == "91.44"


async def test_a_unit_that_is_unknown_is_refused_in_its_own_words(agents: Platform) -> None:
    with pytest.raises(CallError, match="Unknown unit 'smiles'") as caught:
        await agents.client.call("/units/convert", **{"from": "3 smiles"})

    assert caught.value.reason == "refused"


async def test_an_argument_that_is_an_option_is_refused_by_name(agents: Platform) -> None:
    with pytest.raises(BadCall, match="'from': it begins with '-'"):
        await agents.client.call("/units/convert", **{"from": "--file=/etc/passwd"})


async def test_bc_calculates_to_any_number_of_digits(agents: Platform) -> None:
    digits = await agents.client.call("/calculate", expression="4*a(1)", digits=200)

    assert digits.startswith("3.14159265358979323846")
    assert len(digits) == 202


async def test_what_bc_does_not_understand_is_refused(agents: Platform) -> None:
    with pytest.raises(CallError, match="syntax error") as caught:
        await agents.client.call("/calculate", expression="4*)a(1)")

    assert caught.value.reason == "refused"


async def test_photographs_are_scaled_and_measured(agents: Platform) -> None:
    photo = PHOTOS / "chelsea.png"
    small = await agents.client.call("/photo/thumbnail", photo=photo, width=100, grey=True)
    size = await agents.client.call("/photo/size", photo=photo)

    with Image.open(io.BytesIO(await small.read())) as image:
        assert (image.format, image.width, image.mode) == ("JPEG", 100, "L")
    assert size == {"width": 451, "height": 300}


async def test_a_photograph_that_is_none_is_refused(agents: Platform, tmp_path: Path) -> None:
    (tmp_path / "junk.png").write_bytes(b"no photo")
    with pytest.raises(CallError) as caught:
        await agents.client.call("/photo/thumbnail", photo=tmp_path / "junk.png")

    assert caught.value.reason == "refused"
