from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from spinal.bus.server.contract import Ports, ServerConfig
from spinal.bus.server.prosody import configuration, lua

CONFIG = ServerConfig(
    Path("unused"), "bus.test", Ports(5222, 5347, 5443), components={"d.bus.test": "secret"}
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (0, "0"),
        ("plain", '"plain"'),
        ([], "{  }"),
        (["a", 1], '{ "a"; 1 }'),
        ({"k": False}, '{ ["k"] = false }'),
        ('"\\\n\x00ü', '"\\034\\092\\010\\000\\195\\188"'),
    ],
)
def test_values_are_written_as_lua(value: object, text: str) -> None:
    assert lua(value) == text  # type: ignore[arg-type]


@pytest.mark.skipif(shutil.which("lua5.4") is None, reason="MISSING: lua5.4: run `make test-deps`")
def test_lua_reads_back_any_text() -> None:
    text = "".join(map(chr, range(256))) + '"]]\\0"; os.exit(1) -- '
    answer = subprocess.run(
        ["lua5.4", "-e", f"io.write({lua(text)})"], capture_output=True, check=True
    )
    assert answer.stdout.decode() == text


def test_components_have_their_secret() -> None:
    assert 'Component "d.bus.test"\n  component_secret = "secret"\n' in configuration(CONFIG, "/b")


def test_limits_come_from_the_configuration() -> None:
    text = configuration(replace(CONFIG, max_stanza=12_345, max_blob=67_890, blob_age=60), "/b")
    assert "c2s_stanza_size_limit = 12345\n" in text
    assert "http_file_share_size_limit = 67890\n" in text
    assert "http_file_share_expires_after = 60\n" in text


@pytest.mark.parametrize(
    ("listen", "public", "url"),
    [
        ("127.0.0.1", "", "https://127.0.0.1:5443/"),
        ("0.0.0.0", "bus.example", "https://bus.example:5443/"),
        ("::1", "", "https://[::1]:5443/"),
    ],
)
def test_blobs_are_where_agents_reach_them(listen: str, public: str, url: str) -> None:
    text = configuration(replace(CONFIG, listen=listen, public_host=public), "/b")
    assert f'http_external_url = "{url}"\n' in text


def test_all_addresses_are_listened_on_in_both_families() -> None:
    assert 'interfaces = { "0.0.0.0"; "::" }' in configuration(replace(CONFIG, listen="::"), "/b")
