"""The service file, and the arguments that come out of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from spinal.agents.deployment.spec import Spec, load, read
from spinal.agents.document import BadDocument
from spinal.agents.errors import Refused
from spinal.agents.secret import Secret

SHA = "a" * 64

WHOLE = f"""\
service: shop
release: {{url: "https://example.org/shop-1.2.tar.gz", sha256: "{SHA}"}}
start: [bin/shop, --port, "{{port}}"]
port: auto
env: {{MODE: production, TOKEN: {{file: /etc/shop/token}}, DEBUG: false, LIMIT: 3}}
health: {{http: "http://127.0.0.1:{{port}}/", every: 2s, within: 30s, fail_after: 3}}
keep: 3
restart: {{backoff: 1s, most: 60s}}
place: {{site: /eu}}
tags: [ssd]
policy: least-loaded
"""


def test_a_file_gives_what_is_deployed_and_where(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(WHOLE)
    found = load(file)
    assert found.name == "shop"
    assert found.want == {"place": {"site": "/eu"}, "tags": ["ssd"], "policy": "least-loaded"}
    assert set(found.arguments) == {
        "service", "release", "start", "port", "env", "health", "keep", "restart"
    }  # fmt: skip
    spec = Spec.of(found.arguments)
    assert spec.release.kind == "archive"
    assert dict(spec.env) == {
        "MODE": "production",
        "TOKEN": Secret("file", "/etc/shop/token"),
        "DEBUG": "false",
        "LIMIT": "3",
    }
    assert (spec.health.how, spec.health.every, spec.health.within) == ("http", 2.0, 30.0)


def test_defaults_are_those_of_the_page() -> None:
    short = f'service: shop\nrelease: {{url: "https://x/shop.zip", sha256: "{SHA}"}}\nstart: [a]\n'
    found = read(short)
    assert found.want == {}
    spec = Spec.of(found.arguments)
    assert (spec.port, spec.keep, spec.health.how) == (None, 3, "alive")
    assert (spec.restart.backoff, spec.restart.most) == (1.0, 60.0)
    with_port = Spec.of({**found.arguments, "port": 80})
    assert (with_port.health.how, with_port.health.what) == ("tcp", ("{port}",))


def test_two_ways_to_write_the_same_are_equal() -> None:
    arguments = read(WHOLE).arguments
    other = {**arguments, "restart": {"most": "1m", "backoff": 1}}
    assert Spec.of(arguments) == Spec.of(other)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("https://x/a-1.0.tgz?token=1", "archive"),
        ("https://x/shop-1.0-py3-none-any.whl", "wheel"),
        (f"registry.example:5000/team/shop@sha256:{SHA}", "image"),
    ],
)
def test_the_kind_is_guessed_from_the_url(url: str, kind: str) -> None:
    found = read(f'service: a\nrelease: {{url: "{url}", sha256: "{SHA}"}}\nstart: [a]\n')
    assert found.arguments["release"]["kind"] == kind


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("service: shop", "service: Shop", ":1: service: 'Shop' must be a name"),
        ("service: shop", "service: ../x", ":1: service:"),
        ("service: shop", "servce: shop", "did you mean 'service'"),
        (SHA, "abc", ":2: release.sha256: 'abc' must be the SHA-256"),
        (f', sha256: "{SHA}"', "", ":2: release: 'sha256' is missing"),
        ("shop-1.2.tar.gz", "shop", ":2: release.url:"),
        ("https://example.org/shop-1.2.tar.gz", "shop@sha256:1", "NAME@sha256:DIGEST"),
        ("[bin/shop, --port", "[bin/shop, --prot, '{prot}'", ":3: start.2: {prot} is no"),
        ("port: auto", "port: any", ":4: port: 'any': write a port"),
        ("port: auto", "keep: 2", "stands twice"),
        ("port: auto\n", "", "there is no port to put here"),
        ("{file: /etc/shop/token}", "{fil: x}", ":4: env.TOKEN"),
        ("http://127.0.0.1:{port}/", "http://169.254.169.254/", "must be a URL of this machine"),
        ("every: 2s", "every: soon", "a length of time"),
        ("every: 2s", "tcp: '{port}'", "says http and tcp"),
        ("keep: 3", "keep: 0", "must be at least 1"),
        ("place: {site: /eu}", "place: {site: eu}", ":9: place:"),
        ("policy: least-loaded", "policy: least-load", "did you mean least-loaded"),
        ('start: [bin/shop, --port, "{port}"]\n', "", "'start' is missing"),
        ("start: [", 'start: ["a\\0", ', "NUL"),
    ],
)
def test_a_mistake_is_told_with_its_line(old: str, new: str, said: str) -> None:
    text = WHOLE.replace(old, new, 1)
    assert text != WHOLE
    with pytest.raises(BadDocument) as caught:
        read(text)
    first = str(caught.value)
    assert said.replace(":4: env", ":5: env") in first


def test_bad_arguments_are_refused_by_name() -> None:
    arguments = read(WHOLE).arguments
    with pytest.raises(Refused, match=r"service: '\.\./etc' must be a name"):
        Spec.of({**arguments, "service": "../etc"})
    with pytest.raises(Refused, match="place"):
        Spec.of({**arguments, "place": "/eu"})
    with pytest.raises(Refused, match="env"):
        Spec.of({**arguments, "env": {"A=B": "x"}})
