"""Fixtures of pytest: clouds that start once per test file, and are empty for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.conftest import MISSING

from . import Clouds
from .upstream import missing

#: Marks tests that need moto or mimic.
needs_clouds = pytest.mark.skipif(missing() is not None, reason=f"{MISSING} {missing()}")


@pytest.fixture(scope="module")
def running_clouds() -> Iterator[Clouds]:
    with Clouds() as clouds:
        yield clouds


@pytest.fixture
def clouds(running_clouds: Clouds) -> Clouds:
    for cloud in running_clouds:
        cloud.reset()
    return running_clouds
