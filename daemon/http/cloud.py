"""``/cloud/...``: tables in the cloud over HTTP, as the cloud proxy has them. Loads FastAPI."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from petalbus.daemon.http.errors import BODY, Refused

if TYPE_CHECKING:
    from petalbus.petals.proxies.cloud import CloudDBProxy

GetProxy = Callable[[], "CloudDBProxy | None"]
"""Gives a started proxy; None while there is none."""

MAX_BODY: Final = 1 << 20
"""Bytes of a request."""

_RETRY: Final = {"Retry-After": "5"}

Name = Annotated[str, Field(min_length=1, max_length=1024)]


class Key(BaseModel):
    """Which item."""

    table_name: Name
    key_name: Annotated[str, Field(min_length=1, max_length=1024, description="the member that is the key")]
    key_value: Annotated[str, Field(min_length=1, max_length=1024, description="its value")]


class SetItem(Key):
    """An item to be written whole."""

    item_data: Annotated[dict[str, Any], Field(description="its members")]


class UpdateItem(Key):
    """Members of an item to be changed."""

    updates: Annotated[dict[str, Any], Field(description="the members")]


class Filter(BaseModel):
    """An item's member must equal it."""

    filter_key_name: Name
    filter_key_value: str | int | float | bool


class ScanTable(BaseModel):
    """A table, and what its items must equal."""

    table_name: Name
    filters: list[Filter] | dict[str, str | int | float | bool] | None = None


class _Bounded(APIRoute):
    """A route whose body is small."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]  # FastAPI says Coroutine
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            if (body := request.scope.get(BODY)) is not None:
                body.limit = min(body.limit, MAX_BODY)
            return await handle(request)

        return bounded


def cloud_router(
    provider: GetProxy, *, absent: Callable[[], str] = lambda: "the cloud proxy does not run now"
) -> APIRouter:
    """The routes. An answer is the proxy's; its status is that of an error, 202 for a write that waits, else 200."""
    router = APIRouter(prefix="/cloud", tags=["cloud"], route_class=_Bounded)

    def proxy() -> CloudDBProxy:
        found = provider()
        if found is None:
            raise Refused(503, "cloud_unavailable", absent(), _RETRY)
        return found

    @router.post("/scan-table", response_model=None)
    async def scan_table(wanted: ScanTable) -> Response:
        """This machine's items of a table that equal all filters."""
        filters = wanted.filters
        given = [one.model_dump() for one in filters] if isinstance(filters, list) else filters
        return _answer(await proxy().scan_table(wanted.table_name, given))

    @router.post("/get-item", response_model=None)
    async def get_item(wanted: Key) -> Response:
        """One item; 404 when there is none."""
        return _answer(await proxy().get_item(wanted.table_name, wanted.key_name, wanted.key_value))

    @router.post("/set-item", response_model=None)
    async def set_item(wanted: SetItem) -> Response:
        """Write an item whole."""
        told = await proxy().set_item(wanted.table_name, wanted.key_name, wanted.key_value, wanted.item_data)
        return _answer(told)

    @router.post("/update-item", response_model=None)
    async def update_item(wanted: UpdateItem) -> Response:
        """Change members of an item."""
        key = {wanted.key_name: wanted.key_value}
        return _answer(await proxy().update_item(wanted.table_name, key, wanted.updates))

    @router.delete("/delete-item", response_model=None)
    async def delete_item(wanted: Key) -> Response:
        """Mark an item as deleted."""
        return _answer(await proxy().delete_item(wanted.table_name, wanted.key_name, wanted.key_value))

    return router


def _answer(told: dict[str, Any]) -> Response:
    if "error" in told:
        status = int(told.get("status", 500))
        return JSONResponse(_jsonable(told), status if 400 <= status < 600 else 500, _RETRY if status == 503 else None)
    return JSONResponse(_jsonable(told), 202 if told.get("queued") else 200)


def _jsonable(value: Any) -> Any:
    """What JSON has no words for becomes text, a number that is no number null; sets become lists."""
    if isinstance(value, dict):
        return {_text(str(name)): _jsonable(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, int | float | bool):
        return value
    return value.hex() if isinstance(value, bytes) else _text(str(value))


def _text(text: str) -> str:
    """One that UTF-8 can say: half a character is shown as its number."""
    return text.encode("utf-8", "backslashreplace").decode()
