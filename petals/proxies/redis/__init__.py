"""RedisProxy: keys, channels, and messages between applications."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petalbus.petals.proxies.redis.proxy import RedisProxy
from petalbus.schemas.convert.communication import CommunicationMessage, MessagePriority, MessageStatus

if TYPE_CHECKING:
    from petalbus.petals.proxies.context import ProxyContext

__all__ = ["CommunicationMessage", "MessagePriority", "MessageStatus", "RedisProxy", "make"]


def make(context: ProxyContext) -> RedisProxy:
    """The proxy of one process of petals."""
    return RedisProxy(url=context.url, bus=context.bus, app_id=context.app)
