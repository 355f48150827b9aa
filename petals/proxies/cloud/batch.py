"""Writing several items at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from petalbus.handlers.database.errors import TableError
from petalbus.petals.proxies.cloud.items import CloudError, CloudItems
from petalbus.petals.proxies.errors import ProxyError, error_result

Result = dict[str, Any]
AT_ONCE: Final = 32


def failed(error: ProxyError) -> Result:
    """An error as a call answers it."""
    return error_result(str(error), getattr(error, "status", 503), error_code=error.code)


async def write_all(
    store: CloudItems,
    machine: str,
    table: str,
    items: Sequence[dict[str, Any]],
    put: Callable[[dict[str, Any]], Awaitable[Result]],
) -> tuple[dict[str, Result], bool]:
    """Errors by id, and whether some of the others wait for the cloud.

    Through the bus each is a write of its own (``put``), so those of one key stay in order; else they go in batches.
    """
    try:
        if not await store.hands_over():
            reasons = await store.write_many(machine, table, items)
            return {name: error_result(reason, 502) for name, reason in reasons.items()}, False
    except (ProxyError, TableError) as error:
        told = failed(CloudError(error) if isinstance(error, TableError) else error)
        return {one["id"]: told for one in items}, False
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(item: dict[str, Any]) -> Result:
        async with slots:
            return await put(item)

    answers = await asyncio.gather(*map(one, items))
    bad = {item["id"]: answer for item, answer in zip(items, answers, strict=True) if "error" in answer}
    return bad, any(answer.get("queued") for answer in answers)


def summary(written: list[str], refused: list[Result], *, queued: bool) -> Result:
    """What ``batch_write`` answers."""
    told: Result = {"data": {"written": written, "failed": refused}, "success": not refused}
    if queued:
        told["queued"] = True
    if refused:
        told |= error_result(f"{len(refused)} of {len(written) + len(refused)} items were not written", 502)
    return told
