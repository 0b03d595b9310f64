"""A shop in PostgreSQL behind a manifest: a real database, started as its README says."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.conftest import MISSING
from tests.examples.wrapped import EXAMPLES, on_the_bus, served, wrap
from tests.postgres import available

from spinal.bus.errors import CallError
from spinal.bus.server import free_ports

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENVIRON = {"SHOP_DB_PASSWORD": "it's geheim"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop() -> AsyncIterator[Path]:
    """Start the database, and give the manifest."""
    if (why := available()) is not None:
        pytest.skip(f"{MISSING} {why}")
    # It does not run as root, and another user sees none of pytest's folders.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="spinal-shop-") as name:
        folder = Path(name)
        for file in (EXAMPLES / "postgresql").iterdir():
            shutil.copy(file, folder)
        if user is not None:
            shutil.chown(folder, user)
        port = free_ports().c2s
        manifest = folder / "shop.yaml"
        manifest.write_text(manifest.read_text().replace("5433", str(port)))
        start = ("sh", "start.sh", "data", str(port))
        async with served(*start, folder=folder, port=port, environ=ENVIRON, user=user):
            yield manifest


async def test_the_manifest_as_it_ships_has_no_mistakes() -> None:
    manifest = str(EXAMPLES / "postgresql/shop.yaml")
    said = await wrap("check", manifest, environ=ENVIRON)
    assert said.code == 0 and "agent shop, 4 operations, no mistakes" in said.out, said.err
    said = await wrap("check", manifest, environ={"SHOP_DB_PASSWORD": ""})
    assert said.code == 2
    assert "shop.yaml:13: ops./shop/customers.sql.password: the secret" in said.err


async def test_one_operation_runs_without_a_bus(shop: Path) -> None:
    async def run(*argv: str, environ: dict[str, str] = ENVIRON) -> tuple[int, str]:
        said = await wrap("test", str(shop), "--op", *argv, environ=environ)
        return said.code, said.out + said.err

    code, said = await run("/shop/customers", "name=love")
    assert code == 0
    assert json.loads(said) == [{"id": 1, "name": "Ada Lovelace", "since": "1998-12-10"}]
    code, said = await run("/shop/stock", "article=TX-2")
    assert (code, said.strip()) == (0, "3")
    code, said = await run("/shop/stock", "article=TX-1", environ={"SHOP_DB_PASSWORD": "geheim2"})
    assert code == 4 and "password authentication failed" in said and "geheim2" not in said


async def test_it_is_an_agent_that_reads_and_writes(shop: Path) -> None:
    async with on_the_bus(shop, ENVIRON) as running:
        call = running.client.call
        assert [row["id"] for row in await call("/shop/customers")] == [1, 2, 3]
        assert [row["id"] for row in await call("/shop/customers", after=1, name="O'B")] == [3]
        assert await call("/shop/customers", name="'; drop table customers; --") == []
        assert await call("/shop/orders", customer=1) == [
            {"id": 1, "at": "2024-02-03T10:00:00Z", "total": "44.85"},
            {"id": 2, "at": "2024-03-04T11:30:00Z", "total": "21.00"},
        ]
        with pytest.raises(CallError, match="no orders"):
            await call("/shop/orders", customer=2)

        before = await call("/shop/stock", article="TX-1")
        assert await call("/shop/take", article="TX-1", amount=2) == before - 2
        with pytest.raises(CallError, match="stock_amount_check") as refused:
            await call("/shop/take", article="TX-1", amount=500)
        assert refused.value.reason == "refused"
        with pytest.raises(CallError) as bad:
            await call("/shop/take", article="TX-1' or '1'='1", amount=1)
        assert bad.value.problem.argument == "article"
        assert await call("/shop/stock", article="TX-1") == before - 2
        assert len(await call("/shop/customers")) == 3
