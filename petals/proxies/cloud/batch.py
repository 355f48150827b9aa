"""Writing several items at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from petalbus.handlers.database.errors import TableError
from petalbus.petals.proxies.cloud.items import CloudError, CloudItems
from petalbus.petals.proxies.errors import ProxyError, error_result
from petalbus.petals.proxies.localdb.items import failed

Result = dict[str, Any]
AT_ONCE: Final = 32


async def write_all(
    store: CloudItems,
    machine: str,
    table: str,
    items: Sequence[dict[str, Any]],
    put: Callable[[dict[str, Any]], Awaitable[Result]],
) -> dict[str, Result]:
    """Answers by id: errors, and those that wait for the cloud or were superseded.

    Through the bus each is a write of its own (``put``), so those of one key stay in order; else they go in batches.
    """
    try:
        if not store.hands_over:
            reasons = await store.write_many(machine, table, items)
            return {name: error_result(reason, 502) for name, reason in reasons.items()}
    except (ProxyError, TableError) as error:
        told = failed(CloudError(error) if isinstance(error, TableError) else error)
        return {one["id"]: told for one in items}
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(item: dict[str, Any]) -> Result:
        async with slots:
            return await put(item)

    answers = await asyncio.gather(*map(one, items))
    return {item["id"]: answer for item, answer in zip(items, answers, strict=True)}


def summary(names: list[str], answers: dict[str, Result], refused: list[Result]) -> Result:
    """What ``batch_write`` answers. ``names``: of the items that could be written; ``refused``: the others."""
    bad = {name: answer for name, answer in answers.items() if "error" in answer}
    refused = [*refused, *({**answer, "id": name} for name, answer in bad.items())]
    written = [name for name in names if name not in bad]
    told: Result = {"data": {"written": written, "failed": refused}, "success": not refused}
    if any(answer.get("queued") for answer in answers.values()):
        told["queued"] = True
    if left_out := [name for name, answer in answers.items() if answer.get("superseded")]:
        told["superseded"] = left_out
    if refused:
        told |= error_result(f"{len(refused)} of {len(written) + len(refused)} items were not written", 502)
    return told
