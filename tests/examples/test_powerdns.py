"""PowerDNS behind a manifest: a real name server, asked by HTTP and looked at by DNS."""

from __future__ import annotations

import json
import shutil
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from tests.conftest import MISSING
from tests.examples.wrapped import EXAMPLES, on_the_bus, served, wrap

from spinal.bus.errors import CallError
from spinal.bus.server import free_ports

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "geheim-0123456789"
ENVIRON = {"PDNS_KEY": KEY}


@dataclass
class PowerDns:
    manifest: Path
    port: int

    def address(self, name: str) -> str | None:
        """Ask for the first address of a name (RFC 1035)."""
        labels = b"".join(struct.pack("B", len(part)) + part.encode() for part in name.split("."))
        question = struct.pack(">6H", 7, 0, 1, 0, 0, 0) + labels + struct.pack(">B2H", 0, 1, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(10)
            asking.sendto(question, ("127.0.0.1", self.port))
            answer = asking.recv(4096)
        return socket.inet_ntoa(answer[-4:]) if struct.unpack(">H", answer[6:8])[0] else None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dns(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PowerDns]:
    schema = Path("/usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql")
    if not (Path("/usr/sbin/pdns_server").exists() and schema.exists() and shutil.which("sqlite3")):
        pytest.skip(
            f"{MISSING} PowerDNS is not installed "
            "(Debian: apt install pdns-server pdns-backend-sqlite3 sqlite3)"
        )
    folder = tmp_path_factory.mktemp("powerdns")
    ports = free_ports()
    api, asked = ports.c2s, ports.upload
    manifest = folder / "dns.yaml"
    manifest.write_text((EXAMPLES / "powerdns/dns.yaml").read_text().replace("8081", str(api)))
    start = ("sh", str(EXAMPLES / "powerdns/start.sh"), "data", str(api), str(asked))
    async with served(*start, folder=folder, port=api, environ=ENVIRON):
        yield PowerDns(manifest, asked)


async def test_the_manifest_as_it_ships_has_no_mistakes() -> None:
    said = await wrap("check", str(EXAMPLES / "powerdns/dns.yaml"), environ=ENVIRON)
    assert said.code == 0 and "agent dns, 6 operations, no mistakes" in said.out, said.err
    said = await wrap("check", str(EXAMPLES / "powerdns/dns.yaml"), environ={"PDNS_KEY": ""})
    assert said.code == 2
    assert "dns.yaml:10: ops./dns/zones.http.headers.X-API-Key: the secret {env: PDNS_KEY}" in said.err


async def test_one_operation_runs_without_a_bus(dns: PowerDns) -> None:
    async def run(*argv: str, key: str = KEY) -> tuple[int, str]:
        said = await wrap("test", str(dns.manifest), "--op", *argv, environ={"PDNS_KEY": key})
        return said.code, said.out + said.err

    code, said = await run("/dns/zone/create", "zone=test.example.")
    assert code == 0 and said.strip().isdigit()
    assert await run("/dns/zone/create", "zone=test.example.") == (
        1, "spinal: there is such a zone\n",
    )  # fmt: skip
    code, said = await run("/dns/zones")
    assert [zone["name"] for zone in json.loads(said)] == ["test.example."]
    code, said = await run("/dns/zones", key="geheim-9876543210")
    assert code == 1 and "401" in said and "geheim" not in said
    assert (await run("/dns/zone/delete", "zone=test.example."))[0] == 0


async def test_it_is_an_agent_whose_records_are_served(dns: PowerDns) -> None:
    async with on_the_bus(dns.manifest, ENVIRON) as running:
        call = running.client.call
        await call("/dns/zone/create", zone="example.org.")
        record = {"zone": "example.org.", "name": "www.example.org.", "type": "A"}
        await call("/dns/record/set", **record, content="192.0.2.7")
        assert dns.address("www.example.org") == "192.0.2.7"
        await call("/dns/record/set", **record, content="192.0.2.8", ttl=60)

        shown = await call("/dns/zone/show", zone="example.org.")
        found = next(one for one in shown if one["name"] == "www.example.org.")
        assert found["ttl"] == 60 and found["records"][0]["content"] == "192.0.2.8"
        assert [one["name"] for one in await call("/dns/search", **{"for": "www"})] == [
            "www.example.org."
        ]

        with pytest.raises(CallError) as refused:
            await call("/dns/record/set", **record, content="no'address\"}]")
        assert refused.value.reason == "refused" and "422" in str(refused.value)
        for zone in ("../../config", "example.org/../other.", "a\r\nX-API-Key: b"):
            with pytest.raises(CallError) as bad:
                await call("/dns/zone/show", zone=zone)
            assert bad.value.problem.argument == "zone"
        with pytest.raises(CallError, match="no such zone"):
            await call("/dns/zone/show", zone="other.example.")

        await call("/dns/zone/delete", zone="example.org.")
        assert await call("/dns/zones") == []
        assert dns.address("www.example.org") is None
