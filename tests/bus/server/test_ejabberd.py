from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spinal.bus.server.contract import Ports, ServerConfig
from spinal.bus.server.ejabberd import configuration

CONFIG = ServerConfig(
    Path("unused"), "bus.test", Ports(5222, 5347, 5443), components={"d.bus.test": "secret"}
)


def listener(settings: dict[str, Any], module: str) -> dict[str, Any]:
    return next(one for one in settings["listen"] if one["module"] == module)


def test_it_can_be_written_as_json() -> None:
    assert json.loads(json.dumps(configuration(CONFIG, "/b"))) == configuration(CONFIG, "/b")


def test_components_have_their_secret() -> None:
    service = listener(configuration(CONFIG, "/b"), "ejabberd_service")
    assert service["hosts"] == {"d.bus.test": {"password": "secret"}}
    assert service["ip"] == "127.0.0.1"


def test_limits_come_from_the_configuration() -> None:
    settings = configuration(replace(CONFIG, max_stanza=12_345, max_blob=67_890), "/b")
    assert listener(settings, "ejabberd_c2s")["max_stanza_size"] == 12_345
    assert settings["modules"]["mod_http_upload"]["max_size"] == 67_890


@pytest.mark.parametrize(("age", "days"), [(60, 1), (86_400, 1), (86_401, 2)])
def test_blobs_are_kept_for_whole_days_at_least_as_long_as_asked(age: int, days: int) -> None:
    settings = configuration(replace(CONFIG, blob_age=age), "/b")
    assert settings["modules"]["mod_http_upload_quota"] == {"max_days": days}


@pytest.mark.parametrize(
    ("listen", "public", "url"),
    [
        ("127.0.0.1", "", "https://127.0.0.1:5443/upload"),
        ("0.0.0.0", "bus.example", "https://bus.example:5443/upload"),
        ("::1", "", "https://[::1]:5443/upload"),
    ],
)
def test_blobs_are_where_agents_reach_them(listen: str, public: str, url: str) -> None:
    upload = configuration(replace(CONFIG, listen=listen, public_host=public), "/b")["modules"][
        "mod_http_upload"
    ]
    assert (upload["put_url"], upload["get_url"]) == (url, url)


def test_orders_are_taken_on_the_socket_in_the_folder_only() -> None:
    listeners = configuration(CONFIG, "/b")["listen"]
    serving = [one["port"] for one in listeners if "/api" in one.get("request_handlers", {})]
    assert serving == ["unix:/b/admin.sock"]
