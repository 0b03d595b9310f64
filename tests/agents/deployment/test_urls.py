from __future__ import annotations

from pathlib import Path

import pytest

from spinal.agents.deployment.urls import Allowed
from spinal.agents.errors import AgentError, Refused


@pytest.mark.parametrize(
    "url", ["https://example.org/a.zip", "http://127.0.0.1:8000/a.zip", "http://[::1]/a.zip"]
)
def test_tls_and_this_machine_are_allowed_if_nothing_is_said(url: str) -> None:
    assert str(Allowed().url(url)) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.zip",
        "http://127.0.0.1.example.org/a.zip",
        "http://169.254.169.254/a.zip",
        "file:///etc/passwd",
        "ftp://example.org/a.zip",
        "https://user:word@example.org/a.zip",
        "http://127.0.0.1@example.org/a.zip",
        "http://127.0.0.1\\@example.org/a.zip",
        "a.zip",
        "//example.org/a.zip",
        "http://[::1/a.zip",
    ],
)
def test_others_are_not(url: str) -> None:
    with pytest.raises(Refused):
        Allowed().url(url)


@pytest.mark.parametrize(
    ("url", "may"),
    [
        ("https://example.org/shop/a.zip", True),
        ("https://example.org:8443/shop/a.zip", True),
        ("https://example.org/shop", True),
        ("https://example.org/shopping/a.zip", False),
        ("https://example.org/other/a.zip", False),
        ("https://example.org/shop/../other/a.zip", False),
        ("https://example.org/shop/%2e%2e/other/a.zip", False),
        ("https://example.org/shop%2f..%2fother/a.zip", False),
        ("https://example.org.evil.example/shop/a.zip", False),
        ("http://example.org/shop/a.zip", False),
    ],
)
def test_a_beginning_is_compared_part_by_part(url: str, may: bool) -> None:
    allowed = Allowed(["https://example.org/shop/"])
    if may:
        assert allowed.url(url)
    else:
        with pytest.raises(Refused, match=r"only from https://example\.org/shop/"):
            allowed.url(url)


def test_a_file_must_stay_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "releases"
    folder.mkdir()
    (folder / "a.zip").write_text("x")
    (tmp_path / "b.zip").write_text("x")
    (folder / "b.zip").symlink_to(tmp_path / "b.zip")
    allowed = Allowed([f"file://{folder}/"])
    assert allowed.file(allowed.url(f"file://{folder}/a.zip")) == folder / "a.zip"
    with pytest.raises(Refused, match="leads to"):
        allowed.file(allowed.url(f"file://{folder}/b.zip"))
    with pytest.raises(Refused, match="no file"):
        allowed.file(allowed.url(f"file://{folder}/c.zip"))
    with pytest.raises(Refused):
        allowed.url(f"file://{folder}/../b.zip")


@pytest.mark.parametrize("prefix", ["example.org", "ftp://example.org/", "https:example", ""])
def test_a_bad_beginning_is_told(prefix: str) -> None:
    with pytest.raises(AgentError, match="urls"):
        Allowed([prefix])
