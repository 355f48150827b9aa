"""The petal itself: topic ``mavlink.rx`` in, the state out over the bus and HTTP, presence and alerts."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError
from petalbus.petals.base import Petal
from petalbus.petals.decorators import http_action, on
from petalbus.petals.vehicle_status.alerts import Alerts, Change, Limits

if TYPE_CHECKING:
    from petalbus.petals.vehicle_status.state import VehicleState
    from petalbus.schemas.record import Record

FRAMES: Final = "mavlink.rx"
ALERTS: Final = "alerts"
PRESENCE: Final = "vehicle.presence"

_MAX_WAITING: Final = 200
_AGAIN_S: Final = 1.0


class VehicleStatusPetal(Petal):
    """Knows how the vehicle is: position, attitude, battery, mode, GPS, link. Tells it, and warns.

    ``limits`` says where alerts begin and end: a subclass may set others.
    """

    name = "vehicle-status"
    version = "1.0.0"
    limits: ClassVar[Limits] = Limits()

    def __init__(self) -> None:
        super().__init__()
        self.alerts = Alerts(self.limits, self._alert)
        self.changes = 0
        self.invalid = 0
        """Records of the topic that were no MAVLink frames."""
        self.dropped = 0
        """Alerts that could not be published, the bus being away for too long."""
        self._state: VehicleState | None = None
        self._present = False
        self._waiting: deque[tuple[str, str, dict[str, Any]]] = deque()
        self._told = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def async_startup(self) -> None:
        """Follow the frames from now on."""
        self._tasks = [
            asyncio.create_task(self._follow(), name="vehicle-status.follow"),
            asyncio.create_task(self._tell(), name="vehicle-status.tell"),
        ]

    async def async_shutdown(self) -> None:
        """Follow no more."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for topic, record_type, data in self._waiting:
            self.logger.warning("not published before the end: %s to topic %s: %s", record_type, topic, data)

    @on("status_request", redelivery="rerun", concurrency=None)
    async def status_request(self, record: Record) -> dict[str, Any]:
        """Answer with the state, or the named ``fields`` of it."""
        data = record.data
        fields = data.get("fields") if isinstance(data, dict) else None
        status = self.status()
        return status if fields is None else {name: status.get(name) for name in fields}

    @http_action("GET", "/status", summary="The vehicle's latest telemetry")
    async def show_status(self) -> dict[str, Any]:
        """The same over HTTP."""
        return self.status()

    def status(self) -> dict[str, Any]:
        """Everything that is known of the vehicle now. Before its first heartbeat ``connected`` is false."""
        if self._state is None:
            return {"vehicle": None, "connected": False, "alerts": []}
        snapshot = self._state.snapshot(self._now(), lost_after=self.limits.link_after)
        return {**snapshot, "alerts": self.alerts.active}

    # -- frames in ----------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            try:
                await self._skip_history()
                async with self.bus.subscribe(FRAMES) as frames:
                    async for record in frames:
                        await self._take(record)
            except (BusError, ServerError) as error:
                self.logger.warning("the vehicle cannot be followed: %s; trying again", error)
            except Exception:
                self.logger.exception("the vehicle cannot be followed; trying again")
            await asyncio.sleep(_AGAIN_S)

    async def _skip_history(self) -> None:
        """What the vehicle said while we were away is of no interest: only how it is now."""
        keys = self.bus.keys
        with suppress(ServerError):  # the first time there is no group, and nothing to skip
            await self.bus.call("XGROUP", "SETID", keys.topic(FRAMES), self.bus.app, "$")

    async def _take(self, record: Record) -> None:
        from petalbus.handlers.mavlink.decode import frame_of  # noqa: PLC0415  # loaded with the first frame

        if record.mono is None or record.boot_id != self.bus.clock.boot_id:
            return  # from before a reboot, or its age cannot be known: nothing that is the case now
        try:
            frame = frame_of(record)
        except (TypeError, ValueError) as error:
            self.invalid += 1
            self.logger.warning("record %s of topic %s is ignored: %s", record.id, FRAMES, error)
            return
        if self._state is None:
            self._state = await asyncio.to_thread(_new_state, self)
        self._state.take(frame, record.mono / 1e9)

    def on_sample(self, msgid: int, fields: dict[str, Any], now: float) -> None:
        """Called by the state with what alerts are made of."""
        from petalbus.petals.vehicle_status import names, state  # noqa: PLC0415  # loaded by now

        if msgid == state.HEARTBEAT:
            self.alerts.heartbeat(now)
            self._watch_silence()
        elif msgid == state.GPS_RAW_INT:
            self.alerts.gps(fields["fix_type"], names.fix(fields["fix_type"]), now)
        elif (percent := state.charge_of(fields)) is not None:
            self.alerts.battery(percent, now)

    def _now(self) -> float:
        """Seconds on the boot clock that records are stamped with."""
        return self.bus.clock.now_ns() / 1e9

    # -- the link -----------------------------------------------------------------------------------------------------

    def _watch_silence(self) -> None:
        """One timer, for the moment at which the next heartbeat would be too late."""
        self._set_presence()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.limits.link_after, self._look)

    def _look(self) -> None:
        self._timer = None
        silence = self._state.silence(self._now()) if self._state is not None else None
        if silence is None:
            return
        left = self.limits.link_after - silence
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(max(left, 0.05), self._look)
            return
        self.alerts.silence(silence)
        self._set_presence()

    def _set_presence(self) -> None:
        assert self._state is not None
        silence = self._state.silence(self._now())
        present = silence is not None and silence < self.limits.link_after and "link_lost" not in self.alerts.active
        if present is self._present:
            return
        self._present = present
        told = {"vehicle": self._state.system, "present": present, "state": "online" if present else "offline"}
        self._put("broadcast", PRESENCE, told)

    # -- records out --------------------------------------------------------------------------------------------------

    def _alert(self, change: Change) -> None:
        self.changes += 1
        details = {
            "alert": change.alert,
            "active": change.active,
            "change": self.changes,
            "vehicle": self._state.system if self._state is not None else None,
            **change.details,
        }
        self.logger.log(30 if change.active else 20, "%s", change.message)
        self._put(ALERTS, "alert", {"severity": change.severity, "message": change.message, "details": details})

    def _put(self, topic: str, record_type: str, data: dict[str, Any]) -> None:
        self._waiting.append((topic, record_type, data))
        if len(self._waiting) > _MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self._told.set()

    async def _tell(self) -> None:
        """Publish in order. What cannot be stored waits. After a lost answer it may come twice: ``change`` tells."""
        while True:
            await self._told.wait()
            self._told.clear()
            while self._waiting:
                topic, record_type, data = self._waiting[0]
                try:
                    await self.bus.publish(topic, record_type, data)
                except (BusError, ServerError) as error:
                    self.logger.warning("%s waits to be published: %s", record_type, error)
                    await asyncio.sleep(_AGAIN_S)
                    continue
                if self._waiting and self._waiting[0][2] is data:
                    self._waiting.popleft()


def _new_state(petal: VehicleStatusPetal) -> VehicleState:
    """In a thread: it imports the dialect."""
    from petalbus.handlers.mavlink.wire.dialect import load_dialect  # noqa: PLC0415  # the same
    from petalbus.petals.vehicle_status.state import VehicleState  # noqa: PLC0415  # the same

    return VehicleState(load_dialect(), petal.on_sample)
