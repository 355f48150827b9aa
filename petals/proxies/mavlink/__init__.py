"""The vehicle, for petals: proxy ``ext_mavlink``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from petalbus.petals.proxies.mavlink.external import ExternalProxy
from petalbus.petals.proxies.mavlink.link import VehicleError
from petalbus.petals.proxies.mavlink.parameters import ParameterUnavailable, ParamResults, ParamSpec
from petalbus.petals.proxies.mavlink.proxy import MavLinkExternalProxy

if TYPE_CHECKING:
    from petalbus.petals.proxies.context import ProxyContext

__all__ = [
    "ExternalProxy",
    "MavLinkExternalProxy",
    "ParamResults",
    "ParamSpec",
    "ParameterUnavailable",
    "VehicleError",
    "make",
]

# pymavlink decides at its import which protocol its shared names are of; petals import it after us
os.environ.setdefault("MAVLINK20", "1")


def make(context: ProxyContext) -> MavLinkExternalProxy:
    """The proxy for a daemon or a petal's process."""
    return MavLinkExternalProxy(
        endpoint=context.setting("mavlink_endpoint", ""),
        baud=context.setting("mavlink_baud", 115200),
        source_system_id=context.setting("mavlink_source_system", 2),
        source_component_id=context.setting("mavlink_source_component", 140),
        maxlen=context.setting("mavlink_maxlen", 200),
        mavlink_heartbeat_send_frequency=context.setting("mavlink_heartbeat_hz", 5.0),
        root_sd_path=context.setting("root_sd_path", "fs/microsd/log"),
        url=context.url,
        bus=context.bus,
        app=context.app,
        dialect=context.setting("mavlink_dialect", "all"),
    )
