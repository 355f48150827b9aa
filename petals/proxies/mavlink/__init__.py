"""The vehicle, for petals: proxy ``ext_mavlink``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from petalbus.petals.proxies.mavlink.external import ExternalProxy
from petalbus.petals.proxies.mavlink.parameters import ParameterUnavailable, ParamResults, ParamSpec
from petalbus.petals.proxies.mavlink.proxy import MavLinkExternalProxy

__all__ = ["ExternalProxy", "MavLinkExternalProxy", "ParamResults", "ParamSpec", "ParameterUnavailable", "make"]

# pymavlink decides at its import which protocol its shared names are of; petals import it after us
os.environ.setdefault("MAVLINK20", "1")


def make(context: Any) -> MavLinkExternalProxy:
    """The proxy for a daemon or a petal's process. ``context``: ``url``, ``bus``, ``app`` and ``settings``."""
    settings = context.settings

    def setting(name: str, default: Any) -> Any:
        value = settings.get(name) if isinstance(settings, Mapping) else getattr(settings, name, None)
        return default if value is None else value

    return MavLinkExternalProxy(
        endpoint=setting("mavlink_endpoint", ""),
        baud=setting("mavlink_baud", 115200),
        source_system_id=setting("mavlink_source_system", 2),
        source_component_id=setting("mavlink_source_component", 140),
        maxlen=setting("mavlink_maxlen", 200),
        mavlink_heartbeat_send_frequency=setting("mavlink_heartbeat_hz", 5.0),
        root_sd_path=setting("root_sd_path", "fs/microsd/log"),
        url=context.url,
        bus=context.bus,
        app=context.app,
        dialect=setting("mavlink_dialect", "all"),
    )
