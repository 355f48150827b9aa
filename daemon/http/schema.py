"""One OpenAPI description of everything that answers here, made of the core's and each petal's own."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, APIWebSocketRoute

_REF: Final = "#/components/schemas/"
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]")

log: Final = logging.getLogger(__name__)


def petal_schema(app: FastAPI, name: str) -> dict[str, Any]:
    """The description of a petal's app, its paths with ``/petals/<name>`` before them, its names with the petal's.

    A route that cannot be described is listed without details and does not keep the others from it.
    """
    described: dict[str, Any] = {"title": app.title, "version": app.version, "description": app.description or None}
    try:
        schema = get_openapi(**described, routes=app.routes)
    except Exception as error:  # noqa: BLE001  # a model that has no JSON form: whatever pydantic raises then
        log.warning("petal %s: its routes are described one by one: %s", name, error)
        schema = _one_by_one(app, described)
    schema["x-websockets"] = [
        {"path": f"/petals/{name}{route.path}", "name": route.name, "description": route.endpoint.__doc__ or ""}
        for route in app.routes
        if isinstance(route, APIWebSocketRoute)
    ]
    return _own_names(schema, name)


def merged(core: Mapping[str, Any], petals: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All of them in one."""
    whole: dict[str, Any] = copy.deepcopy(dict(core))
    whole.setdefault("paths", {})
    components = whole.setdefault("components", {})
    whole["x-websockets"] = list(whole.get("x-websockets", []))
    for schema in petals:
        whole["paths"] |= schema.get("paths", {})
        whole["x-websockets"] += schema.get("x-websockets", [])
        for kind, members in schema.get("components", {}).items():
            components.setdefault(kind, {}).update(members)
    return whole


def _one_by_one(app: FastAPI, described: Mapping[str, Any]) -> dict[str, Any]:
    whole = get_openapi(**described, routes=[])
    for route in app.routes:
        if not isinstance(route, APIRoute) or not route.include_in_schema:
            continue
        try:
            one = get_openapi(**described, routes=[route])
        except Exception as error:  # noqa: BLE001  # as above: this is the one
            operation = {
                "summary": route.name,
                "description": f"It cannot be described: {error}",
                "operationId": route.unique_id,
                "tags": route.tags,
                "responses": {"200": {"description": "Successful Response"}},
            }
            one = {"paths": {route.path_format: {method.lower(): operation for method in sorted(route.methods or ())}}}
        for path, operations in one.get("paths", {}).items():
            whole.setdefault("paths", {}).setdefault(path, {}).update(operations)
        for kind, members in one.get("components", {}).items():
            whole.setdefault("components", {}).setdefault(kind, {}).update(members)
    return whole


def _own_names(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """Two petals may have models and functions of the same name."""
    prefix = _NOT_IN_NAMES.sub("_", name)
    schema = _renamed(schema, prefix)
    schema["paths"] = {f"/petals/{name}{path}": operations for path, operations in schema.get("paths", {}).items()}
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "operationId" in operation:
                operation["operationId"] = f"{prefix}_{operation['operationId']}"
    for kind, members in schema.get("components", {}).items():
        if kind == "schemas":
            schema["components"][kind] = {f"{prefix}.{model}": shape for model, shape in members.items()}
    return schema


def _renamed(value: Any, prefix: str) -> Any:
    if isinstance(value, dict):
        return {
            key: f"{_REF}{prefix}.{member[len(_REF) :]}"
            if key == "$ref" and isinstance(member, str) and member.startswith(_REF)
            else _renamed(member, prefix)
            for key, member in value.items()
        }
    return [_renamed(member, prefix) for member in value] if isinstance(value, list) else value
