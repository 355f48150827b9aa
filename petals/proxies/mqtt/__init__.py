"""MQTT for petals: commands in, responses and messages out, carried by the bus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petalbus.petals.proxies.mqtt.confirmed import NotConfirmed, PublishRefused
from petalbus.petals.proxies.mqtt.proxy import MQTTProxy

if TYPE_CHECKING:
    from petalbus.petals.proxies.context import ProxyContext

__all__ = ["MQTTProxy", "NotConfirmed", "PublishRefused", "make"]


def make(context: ProxyContext) -> MQTTProxy:
    """The proxy of one process of petals."""
    return MQTTProxy(url=context.url, bus=context.bus, app_id=f"{context.app}.mqtt", organization=context.organization)
