from __future__ import annotations

from typing import Any

import pytest

from spinal.agents.provider.machine import Machine, pairs


def machine(**changed: Any) -> Machine:
    usual: dict[str, Any] = {"name": "web-abc234", "id": "1", "region": "fra1", "state": "running"}
    return Machine(**{**usual, **changed})


def test_the_pool_is_that_of_the_tag_or_of_the_name() -> None:
    assert machine(tags={"spinal-pool": "shop"}).pool == "shop"
    assert machine(name="my-web-abc234").pool == "my-web"


def test_a_machine_is_ours_or_anothers_or_nobody_knows() -> None:
    assert machine(tags={"spinal": "a"}).of("a") is True
    assert machine(tags={"spinal": "b"}).of("a") is False
    assert machine().of("a") is None


@pytest.mark.parametrize(
    "words, found",
    [
        (["spinal:a", "spinal-pool:web"], {"spinal": "a", "spinal-pool": "web"}),
        (["spinal=a:b"], {"spinal": "a:b"}),
        (["production"], {}),
        ([], {}),
    ],
)
def test_tags_of_one_word_are_pairs(words: list[str], found: dict[str, str]) -> None:
    assert pairs(words) == found
