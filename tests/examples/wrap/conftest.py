from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from spinal.testing import Platform, platform

EXAMPLES = Path(__file__).parents[3] / "examples" / "wrap"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[Platform]:
    """A platform of a module's own, without agents."""
    async with platform() as found:
        yield found
