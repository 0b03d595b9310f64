"""The drivers of libcloud, as they are, against each of the five clouds."""

from __future__ import annotations

from .cloud import Clouds
from .fixtures import needs_clouds

pytestmark = needs_clouds


def test_all_answer(clouds: Clouds) -> None:
    for cloud in clouds:
        assert cloud.connect().list_sizes()
        assert cloud.connect().list_nodes() == []
