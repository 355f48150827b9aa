"""Tables in the cloud: the name that petals annotate with. This version brings no such proxy."""

from __future__ import annotations

from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.errors import ProxyError


class CloudDBProxy(BaseProxy):
    """For annotations. Making one raises ProxyError."""

    kind = "cloud"

    def __init__(self, *_arguments: object, **_named: object) -> None:
        raise ProxyError("this version of PetalBus has no cloud proxy yet")

    async def start(self) -> None:
        """Never called."""

    async def stop(self) -> None:
        """Never called."""
