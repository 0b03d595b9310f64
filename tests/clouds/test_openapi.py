"""What the simulated vendors answer, against the vendors' own OpenAPI documents."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest

from .digitalocean import DigitalOcean
from .linode import Linode
from .rest import Rest
from .vendor import TOKEN, Settings
from .wire import TRUTH, Ask, Request

FOLDER: Final = Path(__file__).parent / "openapi"


class Checked:
    """A vendor, asked without a network, whose answers are held against its document."""

    def __init__(self, vendor: Rest, documents: Path = FOLDER) -> None:
        self._vendor = vendor
        path = documents / f"{vendor.name}.json"
        self.document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.seen: set[str] = set()

    async def ask(self, answer: str, path: str = "", body: Any = None) -> Any:
        """Ask for an answer as the document names it; AssertionError if another comes."""
        method, named, status = answer.split()
        data = b"" if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {TOKEN}"}
        request = Request(method, path or named, {}, headers, data, path or named)
        reply = await self._vendor.answer(request, self._vendor.read(request), TRUTH)
        assert reply.status == int(status), reply.body
        value = json.loads(reply.body)
        self.check(answer, value)
        return value

    def refuse(self, answer: str, kind: str) -> None:
        """Hold an error of the vendor against the document."""
        refusal = self._vendor.refusals[kind]
        reply = self._vendor.refuse(refusal, Ask("other"), {})
        assert answer.split()[2] in (str(reply.status), "default")
        self.check(answer, json.loads(reply.body))

    @property
    def refusals(self) -> Iterable[str]:
        """The kinds of error that the vendor has."""
        return self._vendor.refusals

    def check(self, answer: str, value: Any) -> None:
        """Hold a value against the document; AssertionError names what is wrong."""
        schema = {**self.document["answers"][answer], "definitions": self.document["definitions"]}
        validator: Any = jsonschema.Draft4Validator(schema)
        found = validator.iter_errors(value)
        wrong = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]
        assert not wrong, wrong
        self.seen.add(answer)


async def test_digitalocean_answers_as_its_document_says() -> None:
    ocean = Checked(DigitalOcean(Settings(boot=0)))
    order = {
        "name": "web-1",
        "region": "fra1",
        "size": "s-2vcpu-4gb",
        "image": "debian-12-x64",
        "tags": ["spinal"],
    }
    made = await ocean.ask("POST /v2/droplets 202", body=order)
    id = made["droplet"]["id"]
    assert (await ocean.ask("GET /v2/droplets 200"))["meta"]["total"] == 1
    await ocean.ask("GET /v2/droplets/{droplet_id} 200", f"/v2/droplets/{id}")
    await ocean.ask(
        "POST /v2/droplets/{droplet_id}/actions 201",
        f"/v2/droplets/{id}/actions",
        {"type": "snapshot", "name": "frozen"},
    )
    images = await ocean.ask("GET /v2/images 200")
    frozen = images["images"][-1]["id"]
    await ocean.ask("GET /v2/images/{image_id} 200", f"/v2/images/{frozen}")
    await ocean.ask("GET /v2/sizes 200")
    await ocean.ask("GET /v2/regions 200")
    await ocean.ask("GET /v2/account 200")
    await ocean.ask("GET /v2/droplets/{droplet_id} 404", "/v2/droplets/1")
    ocean.refuse("GET /v2/droplets 401", "auth")
    ocean.refuse("GET /v2/droplets 429", "rate")
    ocean.refuse("GET /v2/droplets 500", "server")
    assert ocean.seen == set(ocean.document["answers"])


async def test_linode_answers_as_its_document_says() -> None:
    linode = Checked(Linode(Settings(boot=0)))
    order = {
        "label": "web-1",
        "region": "eu-central",
        "type": "g6-standard-2",
        "image": "linode/debian12",
        "root_pass": "correct horse battery",
        "tags": ["spinal"],
    }
    made = await linode.ask("POST /v4/linode/instances 200", body=order)
    path = f"/v4/linode/instances/{made['id']}"
    assert (await linode.ask("GET /v4/linode/instances 200"))["results"] == 1
    await linode.ask("GET /v4/linode/instances/{linodeId} 200", path)
    await linode.ask("GET /v4/linode/types 200")
    await linode.ask("DELETE /v4/linode/instances/{linodeId} 200", path)
    for kind in linode.refusals:
        linode.refuse("GET /v4/linode/instances default", kind)
    assert linode.seen == set(linode.document["answers"])


async def test_a_linode_that_does_not_run_yet_is_as_the_document_says() -> None:
    linode = Checked(Linode(Settings(boot=1000)))
    order = {"label": "web-1", "region": "us-east", "type": "g6-nanode-1"}
    made = await linode.ask("POST /v4/linode/instances 200", body=order)
    assert made["status"] == "provisioning"


async def test_a_key_that_is_in_no_document_is_caught() -> None:
    linode = Checked(Linode())
    types = await linode.ask("GET /v4/linode/types 200")
    types["data"][0]["cores"] = 2
    with pytest.raises(AssertionError, match="cores"):
        linode.check("GET /v4/linode/types 200", types)


async def test_a_droplet_that_does_not_run_yet_is_as_the_document_says() -> None:
    ocean = Checked(DigitalOcean(Settings(boot=1000)))
    order = {"name": "a", "region": "fra1", "size": "c-2", "image": "debian-12-x64"}
    made = await ocean.ask("POST /v2/droplets 202", body=order)
    assert made["droplet"]["status"] == "new"


@pytest.mark.parametrize(
    ("key", "value"), [("memory", None), ("price_hourly", "0.03"), ("regions", "fra1")]
)
async def test_an_answer_that_is_broken_is_caught(key: str, value: Any) -> None:
    ocean = Checked(DigitalOcean())
    sizes = await ocean.ask("GET /v2/sizes 200")
    size = sizes["sizes"][0]
    if value is None:
        del size[key]
    else:
        size[key] = value
    with pytest.raises(AssertionError, match=key):
        ocean.check("GET /v2/sizes 200", sizes)
