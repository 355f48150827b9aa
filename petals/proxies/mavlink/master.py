"""``proxy.master``: the part of pymavlink's connection object that petals use, on top of the proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petalbus.petals.proxies.mavlink.link import VehicleLink


class Master:
    """``mav`` packs and sends, ``target_system`` and ``target_component`` say to whom. There is no ``recv_match``:
    use handlers.
    """

    def __init__(self, proxy: VehicleLink) -> None:
        self._proxy = proxy
        self._mav: Any = None
        self._packer: Any = None

    @property
    def mav(self) -> Any:
        """A MAVLink object of the link's dialect: ``*_encode`` makes messages, ``*_send`` sends them by the proxy."""
        if self._mav is None:
            self._mav = self._make(_Wire(self._proxy))
        return self._mav

    @property
    def packer(self) -> Any:
        """The one that the proxy packs with, under its own lock."""
        if self._packer is None:
            self._packer = self._make(None)
        return self._packer

    @property
    def target_system(self) -> int:
        """The vehicle's system id."""
        return self._proxy.target_system

    @property
    def target_component(self) -> int:
        """The autopilot's component id."""
        return self._proxy.target_component

    @property
    def source_system(self) -> int:
        """Our system id."""
        return self._proxy.source_system_id

    @property
    def source_component(self) -> int:
        """Our component id."""
        return self._proxy.source_component_id

    def _make(self, file: Any) -> Any:
        module = self._proxy.dialect.module
        return module.MAVLink(file, srcSystem=self.source_system, srcComponent=self.source_component)


class _Wire:
    """What pymavlink writes its frames to."""

    def __init__(self, proxy: VehicleLink) -> None:
        self._proxy = proxy

    def write(self, data: bytes) -> int:
        """Send one frame."""
        self._proxy.send("mav", bytes(data))
        return len(data)
