"""Files on the vehicle, for petals: proxy ``ftp_mavlink``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petalbus.petals.models.mavlink import ULogInfo
from petalbus.petals.proxies.errors import ProxyError
from petalbus.petals.proxies.mavftp.proxy import MavLinkFTPProxy, ProgressCB
from petalbus.petals.proxies.mavlink.proxy import MavLinkExternalProxy

if TYPE_CHECKING:
    from petalbus.petals.proxies.context import ProxyContext

__all__ = ["MavLinkFTPProxy", "ProgressCB", "ULogInfo", "make"]


def make(context: ProxyContext) -> MavLinkFTPProxy:
    """The proxy for a daemon or a petal's process. Raises ProxyError where the vehicle's proxy is not enabled."""
    vehicle = context.others.get("ext_mavlink")
    if not isinstance(vehicle, MavLinkExternalProxy):
        raise ProxyError("it goes through the proxy ext_mavlink, which is not there; enable that, too")
    return MavLinkFTPProxy(vehicle)
