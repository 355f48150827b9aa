"""Tables in the cloud, for petals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petalbus.petals.proxies.cloud.proxy import CloudDBProxy

if TYPE_CHECKING:
    from petalbus.petals.proxies.context import ProxyContext

__all__ = ["CloudDBProxy", "make"]


def make(context: ProxyContext) -> CloudDBProxy:
    """The proxy of one process of petals."""
    return CloudDBProxy(
        context.setting("access_token_url", ""),
        context.setting("cloud_endpoint", ""),
        context.setting("session_token_url"),
        context.setting("s3_bucket_name"),
        machine_id=context.setting("machine_id"),
        organization=context.organization,
    )
