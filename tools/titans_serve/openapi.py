"""The OpenAPI document, made of the structs that requests are read with, so that it says what is true."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any

import msgspec

from titans_format.names import PLAIN_PATTERN
from titans_serve import wire

_BODIES = {
    ("post", "/v1/chat/completions"): wire.ChatRequest,
    ("post", "/v1/completions"): wire.CompletionRequest,
    ("post", "/v1/responses"): wire.ResponseRequest,
    ("post", "/v1/memories"): wire.CreateMemory,
    ("post", "/v1/memories/{id}/feed"): wire.TellMemory,
    ("post", "/v1/memories/{id}/fork"): wire.ForkMemory,
    ("post", "/v1/memories/{id}/marks"): wire.MarkMemory,
    ("post", "/v1/memories/{id}/rewind"): wire.MarkMemory,
}
_OTHERS = (
    ("get", "/health"), ("get", "/health/live"), ("get", "/health/ready"), ("get", "/metrics"), ("get", "/v1/models"),
    ("get", "/v1/models/{id}"), ("get", "/v1/memories"), ("delete", "/v1/memories"), ("get", "/v1/memories/{id}"),
    ("delete", "/v1/memories/{id}"), ("get", "/v1/memories/{id}/state"), ("get", "/v1/memories/{id}/journal"),
    ("put", "/v1/memories/{id}/state"),
    ("delete", "/v1/responses/{id}"),
)  # fmt: skip
_ERRORS = (400, 401, 404, 408, 409, 413, 422, 429, 500, 503, 504)


@cache
def document() -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    schemas, components = msgspec.json.schema_components(_BODIES.values(), ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), schema in zip(_BODIES, schemas, strict=True):
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths.setdefault(path, {})[method] = _operation(path) | {"requestBody": body}
    for method, path in _OTHERS:
        paths.setdefault(path, {})[method] = _operation(path)
    upload = {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
    paths["/v1/memories/{id}/state"]["put"]["requestBody"] = upload
    return {
        "openapi": "3.1.0",
        "info": {"title": "titans serve", "version": metadata.version("titans-deploy")},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def _operation(path: str) -> dict[str, Any]:
    responses: dict[str, Any] = {str(status): {"description": "refused"} for status in _ERRORS}
    responses |= {"200": {"description": "done"}, "201": {"description": "made"}}
    operation: dict[str, Any] = {"responses": responses}
    if "{id}" in path:
        schema = {"type": "string"}
        if "/models/" not in path:
            schema["pattern"] = PLAIN_PATTERN
        operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": schema}]
    return operation
