"""The proxy's connections: a client of the bus, the vehicle's state, and its frames while somebody wants them."""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from petalbus.petals.proxies.errors import ProxyError, ProxyNotReady
from petalbus.petals.proxies.mavlink.external import ExternalProxy
from petalbus.petals.proxies.mavlink.frames import FrameReader
from petalbus.petals.proxies.mavlink.master import Master
from petalbus.petals.proxies.mavlink.outgoing import MAX_BURST, Outgoing
from petalbus.petals.proxies.mavlink.seen import LOST_AFTER_S, VehicleSeen

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.tail import Entries, Tail
    from petalbus.handlers.mavlink.wire.dialect import Dialect
    from petalbus.schemas.record import Record

log = logging.getLogger(__name__)

NOT_CONNECTED: Final = "MAVLink connection not established"

_RX: Final = "mavlink.rx"
_STATE: Final = "vehicle.state"
_REST_S: Final = 0.005
_MOST_STATES: Final = 34
_LINGER_S: Final = 10.0
_RETRY_S: Final = 1.0
_STATUS_S: Final = 1.0
_REQUEST_MARGIN_S: Final = 3.0


class VehicleError(ProxyError):
    """The MAVLink handler answered with an error. ``error_code`` is its own, ``detail`` what it says about it."""

    code = "vehicle_error"

    def __init__(self, error_code: str, detail: dict[str, Any]) -> None:
        self.error_code = error_code
        self.detail = detail
        super().__init__(f"{error_code}: {detail.get('message', '')}")


OnProgress = Callable[["Record"], None]


class VehicleLink(ExternalProxy, ABC):
    """What the operations are built on. It talks to the vehicle only through the bus, so any process may have one."""

    kind = "vehicle"

    def __init__(
        self,
        maxlen: int,
        *,
        source: tuple[int, int],
        url: str | None,
        bus: str | None,
        app: str,
        dialect: str,
    ) -> None:
        super().__init__(maxlen)
        self.source_system_id, self.source_component_id = source
        self.master = Master(self)
        """pymavlink's way to send: ``master.mav.heartbeat_send(...)``, ``master.target_system``."""
        self._place = url, bus
        self._app = app
        self._dialect_name = dialect
        self._dialect: Dialect | None = None
        self._packing = threading.Lock()
        self._bus: Bus | None = None
        self._up = asyncio.Event()
        self._outgoing = Outgoing(self._own_bus)
        self._seen = VehicleSeen()
        self._state_tail: Tail | None = None
        self._frames: Tail | None = None
        self._reader: FrameReader | None = None
        self._opening: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._judge: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin; the vehicle, and the bus, may come later."""
        if self._tasks or self._bus is not None:
            return
        self._set_ready(False, NOT_CONNECTED)
        self._spawn(self._connect(), "mavlink.connect")
        self._handlers_changed()

    async def stop(self) -> None:
        """End the handlers and give back the connections. May be called twice; ``start`` begins again."""
        self._set_ready(False, "stopped")
        for timer in (self._judge, self._linger):
            if timer is not None:
                timer.cancel()
        self._judge = self._linger = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._outgoing.close()
        await self._close_frames()
        await self._handlers.close()
        if self._state_tail is not None:
            await self._state_tail.aclose()
            self._state_tail = None
        self._up.clear()
        if self._bus is not None:
            await self._bus.close()
            self._bus = None
        self._seen = VehicleSeen()

    async def _connect(self) -> None:
        """Open the client, as often as it takes. Once open it comes back by itself."""
        from petalbus.daemon.bus.errors import BusError, BusUnavailable  # noqa: PLC0415  # with the client
        from petalbus.daemon.bus.tail import Tail as Reader  # noqa: PLC0415  # as above

        told = ""
        while self._bus is None:
            try:
                bus = self._make_bus()
                await bus.start()
                self._bus = bus
            except (BusError, OSError) as error:
                if str(error) != told:
                    told = str(error)
                    log.warning("the vehicle proxy has no bus yet: %s", error)
                await asyncio.sleep(_RETRY_S)
        self._up.set()
        self._state_tail = Reader(self._bus, _STATE, on_entries=self._on_state, newest=True)
        try:
            await self._state_tail.open()
        except BusUnavailable as error:
            log.warning("the vehicle's state cannot be read yet: %s", error)  # it goes on trying

    def _make_bus(self) -> Bus:
        from petalbus.daemon.bus.options import BusOptions  # noqa: PLC0415  # only who starts a proxy needs them
        from petalbus.daemon.connect import connect  # noqa: PLC0415  # as above

        url, name = self._place
        return connect(url, app=self._app, bus=name, options=BusOptions(presence=False))

    async def _own_bus(self) -> Bus:
        """The open client. Raises ProxyNotReady when there is none."""
        if self._bus is None:
            raise ProxyNotReady(f"{NOT_CONNECTED}: the bus is not there")
        return self._bus

    # -- the vehicle --------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """True while the vehicle is heard."""
        return self.is_ready

    @property
    def target_system(self) -> int:
        """The vehicle's MAVLink system id; 1 while none was heard."""
        return self._seen.system

    @property
    def target_component(self) -> int:
        """The component that flies: the autopilot, 1."""
        return 1

    def _on_state(self, entries: Entries) -> None:
        old = self._state_tail is not None and self._state_tail.entries == len(entries)
        for _, fields in entries[-_MOST_STATES:]:  # where there are several vehicles, the last may be about another one
            self._seen.take(fields, now=self._now(), old=old)
        if self._dialect is None and self._seen.heard_at is not None and self._opening is None:
            self._opening = self._spawn(self._open(), "mavlink.open")
        self._judge_connection()

    def _judge_connection(self) -> None:
        """Ready while a heartbeat came within the last ten seconds; looks again when that would end."""
        if self._judge is not None:
            self._judge.cancel()
            self._judge = None
        silent = self._seen.silent_for(self._now())
        if silent >= LOST_AFTER_S:
            self._set_ready(False, NOT_CONNECTED)
            return
        if self._dialect is not None:
            self._set_ready(True)
        self._judge = asyncio.get_running_loop().call_later(LOST_AFTER_S - silent, self._judge_connection)

    def _require_connected(self) -> None:
        if not self.is_ready:
            raise ProxyNotReady(NOT_CONNECTED)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    # -- frames in ----------------------------------------------------------------------------------------------------

    def _handlers_changed(self) -> None:
        if self._loop is None:
            return
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if not self._handlers:
            if self._frames is not None:
                self._linger = self._loop.call_later(_LINGER_S, self._close_unused)
        elif self._frames is None and self._opening is None:
            self._opening = self._spawn(self._open(), "mavlink.open")

    async def _frames_open(self) -> None:
        """Wait until what arrives from now on is seen."""
        while self._frames is None or self._opening is not None:
            if self._opening is None:
                self._opening = self._spawn(self._open(), "mavlink.open")
            await asyncio.shield(self._opening)

    async def _open(self) -> None:
        """Load the dialect and, where somebody waits for frames, read the topic."""
        try:
            if self._dialect is None:
                self._dialect = await asyncio.to_thread(self._load_dialect)
                self._handlers.know(self._dialect.ids)
                self._judge_connection()
            if self._handlers and self._frames is None:
                await self._up.wait()
                await self._read_frames(self._dialect)
        finally:
            self._opening = None
        if self._handlers and self._frames is None:
            self._handlers_changed()  # somebody came while the dialect was loaded for another reason

    async def _read_frames(self, dialect: Dialect) -> None:
        from petalbus.daemon.bus.errors import BusUnavailable  # noqa: PLC0415  # with the client
        from petalbus.daemon.bus.tail import Tail as Reader  # noqa: PLC0415  # as above

        assert self._bus is not None
        self._reader = FrameReader(self._handlers, dialect)
        self._frames = Reader(self._bus, _RX, on_entries=self._reader.take, rest=_REST_S)
        try:
            await self._frames.open()
        except BusUnavailable as error:
            log.warning("the vehicle's frames cannot be read yet: %s", error)  # it goes on trying

    def _close_unused(self) -> None:
        self._linger = None
        if not self._handlers:
            self._spawn(self._close_frames(), "mavlink.close")

    async def _close_frames(self) -> None:
        frames, self._frames = self._frames, None
        if frames is not None:
            await frames.aclose()

    def _load_dialect(self) -> Dialect:
        from petalbus.handlers.mavlink.wire.dialect import load_dialect  # noqa: PLC0415  # half a second, and much memory

        return load_dialect(self._dialect_name)

    @property
    def dialect(self) -> Dialect:
        """The link's dialect. Loaded here and now when the vehicle was not heard yet. Raises DialectError."""
        if self._dialect is None:
            self._dialect = self._load_dialect()
            self._call_at_home(self._handlers.know, self._dialect.ids)
        return self._dialect

    # -- frames out ---------------------------------------------------------------------------------------------------

    def send(self, key: str, msg: Any, burst_count: int | None = None, burst_interval: float | None = None) -> None:
        """Queue a message to the vehicle and return at once. Any thread may call it.

        ``key`` is ``mav``; other keys mean the same. ``msg``: a pymavlink message, or the bytes of a frame. It leaves
        under the link's identity and sequence number. ``burst_count`` times (1000 at most), ``burst_interval`` seconds
        apart. What cannot be packed or sent is logged and counted.
        """
        if self._loop is None:
            self._outgoing.complain(1, "the proxy is not started")
            return
        count = max(1, min(burst_count or 1, MAX_BURST))
        try:
            frame = msg if isinstance(msg, bytes) else self._pack(msg)
        except Exception as error:  # noqa: BLE001  # whatever pymavlink raises for fields that do not fit
            self._outgoing.complain(count, f"{type(msg).__name__} for {key!r} cannot be packed: {error}")
            return
        if count > 1 and burst_interval is not None and burst_interval > 0:
            self._call_at_home(self._outgoing.burst, frame, count, burst_interval)
        else:
            self._outgoing.put(frame, count)
            self._call_at_home(self._outgoing.flush)

    def _pack(self, message: Any) -> bytes:
        with self._packing:
            return bytes(message.pack(self.master.packer))

    # -- requests -----------------------------------------------------------------------------------------------------

    async def _ask(
        self, record_type: str, data: dict[str, Any], *, timeout: float, on_progress: OnProgress | None = None
    ) -> dict[str, Any]:
        """Ask the MAVLink handler; ``timeout`` is what its own work may take, in seconds.

        Raises ProxyNotReady (a RuntimeError) when there is no vehicle, no handler or no bus, VehicleError (another one)
        when the handler answers with an error.
        """
        from petalbus.daemon.bus.errors import (  # noqa: PLC0415  # as above
            BusError,
            OutcomeUnknown,
            ReplyError,
            RequestTimeout,
        )
        from petalbus.schemas.stamps import new_id  # noqa: PLC0415  # as above

        self._require_connected()
        bus = await self._own_bus()
        request_id = new_id()
        try:
            reply = await bus.request(
                "vehicle",
                record_type,
                data,
                timeout=timeout + _REQUEST_MARGIN_S,
                id=request_id,
                key=request_id,  # it waits for no other operation of this program
                on_progress=on_progress,
            )
        except ReplyError as error:
            if error.error_code == "VEHICLE_NOT_CONNECTED":
                raise ProxyNotReady(NOT_CONNECTED) from error
            raise VehicleError(error.error_code, error.detail) from error
        except (RequestTimeout, OutcomeUnknown) as error:
            never_began = await _never_began(bus, request_id)
            if isinstance(error, RequestTimeout):  # nobody waits for it any more, so it must not be done much later
                self._spawn(bus.cancel(request_id), "mavlink.cancel")
            if never_began:
                raise ProxyNotReady(f"{NOT_CONNECTED}: {error}") from error
            detail = {"message": f"no answer came, and it may have been done: {error}"}
            raise VehicleError("OUTCOME_UNKNOWN", detail) from error
        except BusError as error:
            raise ProxyNotReady(f"{NOT_CONNECTED}: {error}") from error
        except asyncio.CancelledError:
            self._spawn(bus.cancel(request_id), "mavlink.cancel")
            raise
        told: dict[str, Any] = reply.data
        return told

    def _spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed: %s", task.get_name(), error, exc_info=error)


async def _never_began(bus: Bus, request_id: str) -> bool:
    """Whether a request that was not answered was not begun either. Where that cannot be found out it may have been."""
    from petalbus.daemon.bus.errors import BusError  # noqa: PLC0415  # as above
    from petalbus.schemas.vocabulary import Status  # noqa: PLC0415  # as above

    try:
        async with asyncio.timeout(_STATUS_S):
            return await bus.status(request_id) in (Status.PENDING, Status.TIMEOUT)
    except (BusError, TimeoutError):
        return False
