"""Drafts from documents of services.

The documents here are made for these tests, in the forms that OpenAPI, Swagger and FastAPI give
theirs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import pytest

from spinal.agents import document
from spinal.agents.errors import AgentError
from spinal.agents.wrap import manifest
from spinal.agents.wrap.draft import openapi, write
from spinal.agents.wrap.draft.write import Draft

SHOP: dict[str, Any] = {
    "openapi": "3.0.3",
    "info": {"title": "Shop API", "version": "1"},
    "servers": [{"url": "https://{host}/v1", "variables": {"host": {"default": "shop.example"}}}],
    "security": [{"key": []}],
    "paths": {
        "/items": {
            "get": {
                "operationId": "listItems",
                "tags": ["items"],
                "summary": "List all items.",
                "parameters": [
                    {"name": "limit", "in": "query", "schema": {"type": "integer", "maximum": 100, "default": 20}},
                    {"name": "tags", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
                    {"name": "X-Trace", "in": "header", "schema": {"type": "string", "pattern": "^[a-f0-9]{32}$"}},
                    {"name": "session", "in": "cookie", "schema": {"type": "string"}},
                ],
                "responses": {"200": {"description": "ok", "content": {"application/json": {}}}},
            },
            "post": {
                "operationId": "createItem",
                "tags": ["items"],
                "requestBody": {"$ref": "#/components/requestBodies/Item"},
                "responses": {
                    "201": {"description": "made", "content": {"application/json": {}}},
                    "409": {"description": "There is one."},
                    "429": {"description": "slowly"},
                },
            },
        },
        "/items/{itemId}": {
            "parameters": [{"name": "itemId", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}],
            "get": {
                "operationId": "getItemById",
                "tags": ["items"],
                "responses": {"200": {"description": "ok", "content": {"application/json": {}}}, "404": {"description": "No such item."}},
            },
            "delete": {
                "operationId": "deleteItem",
                "tags": ["items"],
                "security": [],
                "responses": {"204": {"description": "gone"}},
            },
        },
        "/items/{itemId}/photo": {
            "parameters": [{"name": "itemId", "in": "path", "required": True, "schema": {"type": "string"}}],
            "put": {
                "tags": ["items"],
                "requestBody": {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
                "responses": {"200": {"description": "ok"}},
            },
            "get": {
                "tags": ["items"],
                "responses": {"200": {"description": "ok", "content": {"image/png": {}}}},
            },
        },
    },
    "components": {
        "requestBodies": {
            "Item": {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/New"}}}}
        },
        "schemas": {
            "Named": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 40}}},
            "New": {
                "allOf": [
                    {"$ref": "#/components/schemas/Named"},
                    {
                        "type": "object",
                        "required": ["kind"],
                        "properties": {
                            "id": {"type": "integer", "readOnly": True},
                            "kind": {"type": "string", "enum": ["book", "film"]},
                            "price": {"type": "number", "minimum": 0},
                            "parts": {"type": "array", "items": {"$ref": "#/components/schemas/New"}},
                        },
                    },
                ]
            },
        },
        "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}},
    },
}  # fmt: skip

#: As FastAPI writes its own.
FAST: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "FastAPI", "version": "0.1.0"},
    "paths": {
        "/items/{item_id}": {
            "get": {
                "summary": "Read Item",
                "operationId": "read_item_items__item_id__get",
                "parameters": [
                    {"name": "item_id", "in": "path", "required": True, "schema": {"type": "integer", "exclusiveMinimum": 0, "title": "Item Id"}},
                    {"name": "q", "in": "query", "required": False, "schema": {"anyOf": [{"type": "string", "maxLength": 50}, {"type": "null"}], "title": "Q"}},
                ],
                "responses": {
                    "200": {"description": "Successful Response", "content": {"application/json": {"schema": {}}}},
                    "422": {"description": "Validation Error"},
                },
            }
        },
        "/upload": {
            "post": {
                "summary": "Upload",
                "operationId": "upload_upload_post",
                "requestBody": {
                    "required": True,
                    "content": {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/Body"}}},
                },
                "responses": {"200": {"description": "ok", "content": {"application/json": {"schema": {}}}}},
            }
        },
    },
    "components": {
        "schemas": {
            "Body": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "string", "contentMediaType": "application/octet-stream"},
                    "note": {"type": ["string", "null"]},
                },
            }
        }
    },
}  # fmt: skip

OLD: dict[str, Any] = {
    "swagger": "2.0",
    "info": {"title": "Zones", "version": "1"},
    "host": "127.0.0.1:8081",
    "basePath": "/api/v1",
    "schemes": ["http"],
    "securityDefinitions": {"who": {"type": "basic"}},
    "security": [{"who": []}],
    "paths": {
        "/zones/{zone}": {
            "parameters": [{"name": "zone", "in": "path", "type": "string", "required": True, "pattern": "[a-z.]+"}],
            "get": {"responses": {"200": {"description": "ok", "schema": {"type": "object"}}}},
            "patch": {
                "parameters": [{"name": "new", "in": "body", "required": True, "schema": {"$ref": "#/definitions/Zone"}}],
                "responses": {"204": {"description": "done"}},
            },
        },
        "/zones": {
            "post": {
                "parameters": [
                    {"name": "name", "in": "formData", "type": "string", "required": True},
                    {"name": "masters", "in": "query", "type": "array", "items": {"type": "string"}},
                ],
                "responses": {"201": {"description": "made"}},
            },
        },
    },
    "definitions": {"Zone": {"type": "object", "properties": {"ttl": {"type": "integer", "minimum": 1}}}},
}  # fmt: skip


def draft(said: Mapping[str, Any], **more: Any) -> Draft:
    return openapi.draft(json.dumps(said).encode(), "openapi.json", **more)


def ops(said: Mapping[str, Any], **more: Any) -> dict[str, dict[str, Any]]:
    return {op.path: op.keys for op in draft(said, **more).ops}


@pytest.mark.parametrize("said", [SHOP, OLD], ids=["3.0", "2.0"])
def test_a_draft_is_a_manifest(said: dict[str, Any]) -> None:
    text = write.write(draft(said))

    found = manifest.of(document.read(text, "draft.yaml", manifest.schema()))

    assert len(found.ops) == len(ops(said))


def test_a_draft_of_fastapi_is_a_manifest() -> None:
    text = write.write(draft(FAST, server="http://127.0.0.1:8000"))

    assert list(manifest.of(document.read(text, "draft.yaml", manifest.schema())).ops) == [
        "/items/read",
        "/upload/upload",
    ]


def test_operations_are_called_by_what_they_are_about_and_do() -> None:
    assert list(ops(SHOP)) == [
        "/items/list",
        "/items/create",
        "/items/get",
        "/items/delete",
        "/items/photo/list",
        "/items/photo/replace",
    ]


def test_parameters_become_typed_arguments_in_their_places() -> None:
    found = ops(SHOP)["/items/list"]

    assert found["args"] == {
        "limit": {"type": "integer", "maximum": 100, "default": 20},
        "tags": {"type": "array", "optional": True},
        "X_Trace": {"pattern": "[a-f0-9]{32}", "optional": True},
    }
    assert found["http"] == {
        "get": "https://shop.example/v1/items",
        "query": {"limit": "{limit}", "tags": "{tags}"},
        "headers": {"X-Trace": "{X_Trace}", "X-API-Key": {"env": "SHOP_KEY"}},
    }


def test_a_body_is_taken_apart_into_arguments() -> None:
    found = ops(SHOP)["/items/create"]

    assert found["args"] == {
        "name": {"min_length": 1, "max_length": 40},
        "kind": {"enum": ["book", "film"]},
        "price": {"type": "number", "minimum": 0, "optional": True},
        "parts": {"type": "array", "optional": True},
    }
    assert found["http"]["json"] == {
        one: f"{{{one}}}" for one in ("name", "kind", "price", "parts")
    }


def test_effects_and_what_comes_back_are_told_by_method_and_answer() -> None:
    found = ops(SHOP)

    assert [(one["effects"], one["output"]) for one in found.values()] == [
        ("reads", "json"),
        ("writes", "json"),
        ("reads", "json"),
        ("deletes", "none"),
        ("reads", {"blob": "image/png"}),
        ("writes", "text"),
    ]


def test_answers_that_mean_no_are_refusals_in_the_words_of_the_document() -> None:
    found = ops(SHOP)

    assert found["/items/create"]["http"]["status"] == {
        "409": {"refused": "There is one"},
        "429": "retry",
    }
    assert found["/items/get"]["http"]["status"] == {"404": {"refused": "No such item"}}


def test_secrets_are_named_and_never_written() -> None:
    assert draft(SHOP).needs == ["SHOP_KEY"]
    assert "auth" not in ops(SHOP)["/items/delete"]["http"], "it says that nobody has to log in"
    assert ops(OLD)["/zones/show"]["http"]["auth"] == {
        "basic": {"user": "USER", "password": {"env": "ZONES_PASSWORD"}}
    }


def test_a_file_is_a_body_or_a_part_of_a_form() -> None:
    found = ops(SHOP)["/items/photo/replace"]
    form = ops(FAST, server="http://127.0.0.1:1")["/upload/upload"]

    assert found["args"]["body"] == {"type": "file", "optional": True}
    assert found["http"]["file"] == "{body}"
    assert found["http"]["headers"]["Content-Type"] == "image/png"
    assert form["http"]["form"] == {"file": "{file}", "note": "{note}"}
    assert form["args"]["file"] == {"type": "file"}


def test_what_may_be_null_is_what_it_is_else() -> None:
    found = ops(FAST, server="http://127.0.0.1:1")["/items/read"]

    assert found["args"] == {
        "item_id": {"type": "integer", "minimum": 1},
        "q": {"max_length": 50, "optional": True},
    }


def test_swagger_says_host_path_and_types_elsewhere() -> None:
    found = ops(OLD)

    assert found["/zones/change"]["http"] == {
        "patch": "http://127.0.0.1:8081/api/v1/zones/{zone}",
        "json": {"ttl": "{ttl}"},
        "auth": {"basic": {"user": "USER", "password": {"env": "ZONES_PASSWORD"}}},
    }
    assert found["/zones/change"]["args"]["zone"] == {"pattern": ".*[a-z.]+.*"}
    assert found["/zones/create"]["http"]["form"] == {"name": "{name}"}
    # Its lists are written with commas, if nothing else is said.
    assert found["/zones/create"]["args"]["masters"] == {"optional": True}


def test_yaml_is_read_as_well() -> None:
    text = f"{write.flow(OLD)}\n".encode()

    assert [op.path for op in openapi.draft(b"# zones\n" + text, "x.yaml").ops] == list(ops(OLD))


def test_only_what_is_wanted_is_drafted() -> None:
    assert list(ops(SHOP, only=["GET /items"])) == ["/items/list"]
    assert list(ops(SHOP, only=["/items/{itemId}"])) == ["/items/get", "/items/delete"]
    with pytest.raises(AgentError, match="no operation that is /nothing"):
        draft(SHOP, only=["/nothing"])
    with pytest.raises(AgentError, match="write a method and a path"):
        draft(SHOP, only=["FETCH /items"])


def test_the_server_may_be_given_or_is_where_the_document_is() -> None:
    assert (
        ops(SHOP, server="http://127.0.0.1:9/x/")["/items/list"]["http"]["get"]
        == "http://127.0.0.1:9/x/items"
    )
    found = ops(FAST, base="http://127.0.0.1:8000/openapi.json")
    assert found["/items/read"]["http"]["get"] == "http://127.0.0.1:8000/items/{item_id}"
    with pytest.raises(AgentError, match="give --server"):
        draft(FAST)


def changed(said: dict[str, Any], *steps: str, to: Any) -> dict[str, Any]:
    found = copy.deepcopy(said)
    node = found
    for step in steps[:-1]:
        node = node[step]
    node[steps[-1]] = to
    return found


@pytest.mark.parametrize(
    "ref", ["other.json#/x", "https://evil.example/x.json", "file:///etc/passwd", "/etc/passwd"]
)
def test_references_lead_nowhere_else(ref: str) -> None:
    said = changed(SHOP, "components", "schemas", "New", to={"$ref": ref})

    with pytest.raises(AgentError, match="bundle it into one file"):
        draft(said)


def test_references_in_a_circle_end() -> None:
    said = changed(SHOP, "components", "schemas", "New", to={"$ref": "#/components/schemas/New"})
    wide = changed(
        SHOP,
        "components",
        "schemas",
        "New",
        to={"allOf": [{"$ref": "#/components/schemas/New"}] * 2},
    )

    assert ops(said)["/items/create"]["http"]["json"] == "{body}"
    assert ops(wide)["/items/create"]["http"]["json"] == "{body}"


def test_a_parameter_that_is_our_secret_is_not_the_callers() -> None:
    parameters = [{"name": "x-api-key", "in": "header", "schema": {"type": "string"}}]

    found = ops(changed(SHOP, "paths", "/items", "get", "parameters", to=parameters))["/items/list"]

    assert "args" not in found
    assert found["http"]["headers"] == {"X-API-Key": {"env": "SHOP_KEY"}}


@pytest.mark.parametrize(
    "text",
    ["a\nagent: evil", "a\u2028agent: evil", "a\x85b", "a\x07b", "a\ud800b", "a\0b", '"q', "}{", "{{a}}", "{a", "#x", "\u202e"],
)  # fmt: skip
def test_no_word_of_a_document_becomes_more_than_a_word(text: str) -> None:
    said = copy.deepcopy(SHOP)
    get = said["paths"]["/items"]["get"]
    said["info"]["title"] = get["summary"] = get["operationId"] = text
    get["tags"] = [text]
    get["responses"]["404"] = {"description": text}
    get["parameters"] = [
        {
            "name": text,
            "in": "query",
            "description": text,
            "schema": {"default": text, "enum": [text]},
        },
        {"name": text, "in": "header", "schema": {}},
        {"name": f"{text}2", "in": "query", "schema": {"type": "object"}},
    ]
    said["paths"][f"/x{text}"] = {
        "get": {"operationId": text, "responses": {text: {"description": text}}}
    }
    said["components"]["securitySchemes"]["key"]["name"] = text

    written = write.write(draft(said))
    found = manifest.of(document.read(written, "draft.yaml", manifest.schema()))

    assert found.name != "evil"
    assert len(found.ops) in (6, 7)


def test_entangled_parts_take_no_time() -> None:
    # 20 levels of 20 parts each: nobody could take them one by one.
    levels = {
        f"L{level}": {"allOf": [{"$ref": f"#/components/schemas/L{level + 1}"}] * 20}
        for level in range(20)
    }
    last = {"L20": {"type": "object", "properties": {"deep": {"type": "string"}}}}
    said = changed(SHOP, "components", "schemas", to={"New": levels["L0"], **levels, **last})

    assert ops(said)["/items/create"]["args"] == {"deep": {"optional": True}}


def test_a_reference_to_nothing_is_told() -> None:
    with pytest.raises(AgentError, match=r"#/components/schemas/Gone, and there is nothing"):
        draft(
            changed(SHOP, "components", "schemas", "New", to={"$ref": "#/components/schemas/Gone"})
        )


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "neither JSON nor YAML"),
        (b"\xff\xfe", "neither JSON nor YAML"),
        (b"[]", "no OpenAPI document"),
        (b"{}", "says neither openapi nor swagger"),
        (b'{"openapi": "4.0.0"}', "version 4.0.0"),
        (b'{"swagger": "1.2"}', "version 1.2"),
        (b'{"openapi": "3.0.0", "servers": [{"url": "http://x"}]}', "has no operation"),
        (b'{"openapi": "3.0.0", "paths": 3, "servers": [{"url": "http://x"}]}', "has no operation"),
        (b"[" * 100_000, "deeper than"),
        (b"{" + b'"a":{' * 100_000, "too deep|neither JSON"),
    ],
)
def test_what_is_no_document_is_told_in_one_line(data: bytes, says: str) -> None:
    with pytest.raises(AgentError, match=says):
        openapi.draft(data, "x.json")


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        ({"type": "string", "pattern": "(?<=a"}, {}),
        ({"type": "string", "pattern": r"^\d+$"}, {"pattern": r"\d+"}),
        ({"type": "string", "pattern": "a|b"}, {"pattern": ".*(?:a|b).*"}),
        ({"type": "string", "minLength": 9, "maxLength": 3}, {"max_length": 3}),
        ({"type": "integer", "enum": [1, 2]}, {"type": "integer", "enum": [1, 2]}),
        ({"type": "number", "enum": [1.5]}, {"type": "number"}),
        ({"type": "null"}, {}),
        ({"const": "x"}, {"enum": ["x"]}),
        ({}, {}),
    ],
)
def test_what_a_manifest_cannot_say_is_left_out(
    schema: dict[str, Any], wanted: dict[str, Any]
) -> None:
    path = "/items/{itemId}"
    parameters = [{"name": "itemId", "in": "path", "required": True, "schema": schema}]

    found = ops(changed(SHOP, "paths", path, "parameters", to=parameters))["/items/get"]["args"]

    assert found["itemId"] == wanted


def test_names_that_no_argument_can_have_are_changed() -> None:
    said = changed(
        SHOP,
        *("paths", "/items", "get", "parameters"),
        to=[
            {"name": one, "in": "query", "schema": {}}
            for one in ("filter[name]", "$top", "2nd", "tmp", "filter.name")
        ],
    )
    found = ops(said)["/items/list"]

    assert found["http"]["query"] == {
        "filter[name]": "{filter_name}",
        "$top": "{top}",
        "2nd": "{a_2nd}",
        "tmp": "{tmp_2}",
        "filter.name": "{filter_name_2}",
    }
