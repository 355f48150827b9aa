"""Tables in the cloud, for petals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petalbus.petals.proxies.cloud.outbox import MOST_MB
from petalbus.petals.proxies.cloud.proxy import WAIT_S, CloudDBProxy

if TYPE_CHECKING:
    from petalbus.petals.proxies.context import ProxyContext

__all__ = ["CloudDBProxy", "make"]


def _outbox_mb(context: ProxyContext) -> int:
    """As set, else a quarter of the embedded server's memory."""
    memory = context.setting("memory_mb")
    return int(context.setting("cloud_outbox_mb") or (max(1, memory // 4) if memory else MOST_MB))


def make(context: ProxyContext) -> CloudDBProxy:
    """The proxy of one process of petals."""
    return CloudDBProxy(
        context.setting("access_token_url", ""),
        context.setting("cloud_endpoint", ""),
        context.setting("session_token_url"),
        context.setting("s3_bucket_name"),
        machine_id=context.setting("machine_id"),
        organization=context.organization,
        backend=context.setting("cloud_backend", "http"),
        region=context.setting("cloud_region", "us-east-1"),
        table_prefix=context.setting("cloud_table_prefix", ""),
        wait=context.setting("cloud_write_wait", WAIT_S),
        outbox_mb=_outbox_mb(context),
        url=context.url,
        bus=context.bus,
        app_id=f"{context.app}.cloud",
    )
