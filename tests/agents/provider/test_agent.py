from __future__ import annotations

from tests.clouds.cloud import Clouds

from .conftest import Start, account

REFUSED: tuple[tuple[str, dict[str, str]], ...] = (
    ("/create", {"name": "web-b", "type": "t", "region": "r", "image": "i"}),
    ("/destroy", {"name": "web-aaaaaa"}),
    ("/freeze", {"name": "web-aaaaaa", "label": "mine"}),
)


async def test_only_the_owner_rents_and_returns(start: Start, clouds: Clouds) -> None:
    cloud = clouds["linode"]
    async with start(account(cloud)) as world:
        assert (await world.create("web-aaaaaa"))["outcome"] == "created"
    for somebody in ("web-1@memory.test/worker", "ann@memory.test/a"):
        async with start(account(cloud), caller=somebody) as world:
            assert await world.names() == ["web-aaaaaa"]
            for op, args in REFUSED:
                problem = await world.problem(op, **args)
                assert "only owner@memory.test and the dispatcher rent" in problem
    assert len(cloud.living()) == 1 and len(cloud.state()["machines"]) == 1
