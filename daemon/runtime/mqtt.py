"""The MQTT link as a part of the daemon: which way to the broker, who we are, and the commands of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import structlog

from petalbus.daemon.http.options import HttpOptions
from petalbus.daemon.paths import DataPaths
from petalbus.daemon.runtime.supervisor import Kept

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.config import Settings
    from petalbus.daemon.http.part import HttpPart
    from petalbus.daemon.runtime.parts import Connect
    from petalbus.handlers.mqtt.client.callbacks import Callbacks
    from petalbus.handlers.mqtt.options import ClientOptions, DirectOptions, MqttOptions
    from petalbus.handlers.mqtt.transport import Identity, Transport
    from petalbus.petals.organization import OrganizationManager

_AWS_PORT: Final = 443
_AWS_ALPN: Final = "x-amzn-mqtt-ca"
_MAX_AGE_S: Final = 120.0
_HELD_S: Final = 3600.0
"""Seconds for which AWS IoT keeps the messages of a session, unless another time was asked for."""
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}

_CLIENT: Final = {"mqtt_client_host", "mqtt_client_port", "mqtt_callback_host", "mqtt_callback_port"}

log: Final = structlog.get_logger(__name__)

BuiltIn = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]


class Who:
    """Who we are to the broker: from the file that provisioning writes, and the settings."""

    def __init__(self, manager: OrganizationManager, settings: Settings) -> None:
        self._manager = manager
        self._settings = settings
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Read the file, and begin to watch it."""
        await self._manager.start()
        self._manager.register_callback(self._tell)

    async def stop(self) -> None:
        """Watch it no more."""
        await self._manager.stop()

    def identity(self) -> Identity:
        """See WhoWeAre."""
        from petalbus.handlers.mqtt.transport import Identity  # noqa: PLC0415  # loaded by the part

        info = self._manager.organization_info
        device = None
        if info.machine_id:
            device = self._settings.mqtt_device.replace("{machine_id}", info.machine_id)
        return Identity(info.organization_id, device, self._settings.mqtt_client_id or info.thing_name)

    @property
    def machine_id(self) -> str | None:
        """This machine's id."""
        return self._manager.machine_id

    async def changed(self) -> None:
        """See WhoWeAre."""
        await self._changed.wait()
        self._changed.clear()

    def _tell(self, _organization: str | None) -> None:
        self._changed.set()


def transport_of(settings: Settings) -> str:
    """``direct``, ``client`` or ``off``."""
    if settings.mqtt_transport == "auto":
        return "direct" if settings.mqtt_url else "client"
    return settings.mqtt_transport


def direct_options(settings: Settings) -> DirectOptions:
    """Raises ValueError where no broker is named."""
    from petalbus.handlers.mqtt.options import DirectOptions  # noqa: PLC0415  # loaded by the part

    if settings.mqtt_url is None:
        raise ValueError(
            "mqtt_transport is direct, and mqtt_url names no broker: set it to mqtt://host or mqtts://host"
        )
    parts = urlsplit(settings.mqtt_url)
    tls = parts.scheme == "mqtts"
    port = parts.port or _PORTS[parts.scheme]
    return DirectOptions(
        host=parts.hostname or "localhost",
        port=port,
        tls=tls,
        version=settings.mqtt_version,
        ca=settings.mqtt_ca,
        cert=settings.mqtt_cert,
        key=settings.mqtt_key,
        alpn=settings.mqtt_alpn or (_AWS_ALPN if tls and port == _AWS_PORT else None),
        username=settings.mqtt_username or _plain(parts.username),
        password=settings.mqtt_password or _plain(parts.password),
        keepalive=settings.mqtt_keepalive,
        session_expiry=settings.mqtt_session,
    )


def _plain(word: str | None) -> str | None:
    return None if word is None else unquote(word)


def client_options(settings: Settings) -> ClientOptions:
    """Of the client program that speaks HTTP with us."""
    from petalbus.handlers.mqtt.options import ClientOptions  # noqa: PLC0415  # loaded by the part

    port = settings.mqtt_callback_port or settings.http_port
    return ClientOptions(
        host=settings.mqtt_client_host,
        port=settings.mqtt_client_port,
        callback_url=f"http://{settings.mqtt_callback_host}:{port}/mqtt-callback/callback",
        enable_callbacks=settings.mqtt_callbacks,
        request_timeout=settings.mqtt_client_timeout,
        expected=settings.mqtt_transport == "client" or bool(_CLIENT & settings.model_fields_set),
        probe_interval=settings.mqtt_probe_interval,
        probe_timeout=settings.mqtt_probe_timeout,
        secret=settings.mqtt_callback_secret,
    )


def mqtt_options(settings: Settings) -> MqttOptions:
    """What does not depend on the way to the broker."""
    from petalbus.handlers.mqtt.options import EgressOptions, MqttOptions  # noqa: PLC0415  # loaded by the part

    age = settings.mqtt_command_max_age
    return MqttOptions(
        egress=EgressOptions(
            rate=settings.mqtt_rate,
            bytes_rate=settings.mqtt_bytes_rate,
            max_payload=settings.mqtt_max_payload,
            max_levels=settings.mqtt_max_levels,
        ),
        command_edge=settings.mqtt_command_edge_topic,
        command_plain=settings.mqtt_command_topic,
        response=settings.mqtt_response_topic,
        command_web=settings.mqtt_command_web_topic,
        command_deadline=settings.mqtt_command_deadline,
        command_max_age=_MAX_AGE_S if age is None else age or None,
        # where it was said that two clocks may be compared every age counts
        command_held=max(settings.mqtt_session, _HELD_S) if age is None else None,
        urgent=frozenset(word.strip() for word in settings.mqtt_urgent_commands.split(",") if word.strip()),
    )


class MqttLink:
    """The part, and what it puts into HTTP. Made before HTTP is built.

    ``ready``: nothing is held up any more by loading it. ``installed``: names of the petals that there are.
    """

    def __init__(
        self,
        connect: Connect,
        settings: Settings,
        *,
        ready: asyncio.Event,
        installed: Callable[[], Collection[str] | None],
        built_in: Mapping[str, BuiltIn],
    ) -> None:
        self._connect = connect
        self._settings = settings
        self._ready = ready
        self._installed = installed
        self._built_in = built_in
        self._bus: Bus | None = None
        self._who: Who | None = None
        self._callbacks: Callbacks | None = None

    def include_in(self, http: HttpPart) -> None:
        """Add the routes ``/mqtt/*``, and where a client program brings messages those that it calls."""
        settings = self._settings
        if transport_of(settings) == "client":
            from petalbus.handlers.mqtt.client.callbacks import Callbacks  # noqa: PLC0415  # only where they are taken

            self._callbacks = Callbacks(client_options(settings))
            http.include(self._callback_router)
        http.include(self._router)

    def _callback_router(self) -> Any:
        module = import_module("petalbus.handlers.mqtt.client.callback_routes")
        return module.callback_router(self._callbacks)

    def _router(self) -> Any:
        settings = self._settings
        options = client_options(settings)
        callbacks = self._callbacks
        return import_module("petalbus.daemon.http.mqtt").mqtt_router(
            lambda: self._bus,
            configuration={
                "ts_client_host": options.host,
                "ts_client_port": options.port,
                "callback_host": settings.mqtt_callback_host,
                "callback_port": settings.mqtt_callback_port or settings.http_port,
                "enable_callbacks": settings.mqtt_callbacks,
                "transport": transport_of(settings),
            },
            machine=lambda: self._who.machine_id if self._who is not None else None,
            callbacks=None if callbacks is None else lambda: callbacks.receiver is not None,
            limits=mqtt_options(settings).egress,
        )

    async def run(self, kept: Kept) -> None:
        """The part itself: the MQTT handler, on clients of the bus of its own."""
        await self._ready.wait()
        settings = self._settings
        module = await asyncio.to_thread(_Loaded)
        manager = module.OrganizationManager(
            settings.organization_file, data=DataPaths.of(settings.data).root, machine_id=settings.machine_id
        )
        async with AsyncExitStack() as stack:
            self._who = who = Who(manager, settings)
            await who.start()
            stack.push_async_callback(who.stop)
            handler = module.MqttHandler(
                self._connect,
                await self._transport(),
                who=who,
                options=mqtt_options(settings),
                installed=self._installed,
                built_in=self._built_in,
            )
            await stack.enter_async_context(handler)
            await self._open_callback_port(stack)
            self._bus = handler.bus
            stack.callback(setattr, self, "_bus", None)
            if self._callbacks is not None:
                self._callbacks.handlers = lambda: handler.dispatch.takers
            kept.up(handler.statistics)
            await handler.run()

    async def _transport(self) -> Transport:
        kind = transport_of(self._settings)
        if kind == "off":
            made: Transport = import_module("petalbus.handlers.mqtt.off").OffTransport()
        elif kind == "direct":
            module = await asyncio.to_thread(import_module, "petalbus.handlers.mqtt.direct.transport")
            options = direct_options(self._settings)
            kept = import_module("petalbus.handlers.mqtt.direct.kept")
            broker = f"{options.host}:{options.port}"
            made = module.DirectTransport(options, kept=kept.KeptFilters(lambda: self._bus, broker))
        else:
            module = await asyncio.to_thread(import_module, "petalbus.handlers.mqtt.client.transport")
            made = module.ClientTransport(client_options(self._settings), self._callbacks)
        return made

    async def _open_callback_port(self, stack: AsyncExitStack) -> None:
        """A port of their own for the callbacks, where one is set. Raises OSError when it is taken."""
        settings = self._settings
        port = settings.mqtt_callback_port
        if self._callbacks is None or port in (None, settings.http_port):
            return
        module = await asyncio.to_thread(import_module, "petalbus.daemon.http.callback_port")
        host = settings.mqtt_callback_host
        opened = module.CallbackPort(host, port, self._callback_router, options=HttpOptions.of(settings), names=(host,))
        await opened.start()
        stack.push_async_callback(opened.stop)
        log.info("MQTT callbacks are taken", address=opened.url)


class _Loaded:
    """What the part needs, imported."""

    def __init__(self) -> None:
        self.MqttHandler = import_module("petalbus.handlers.mqtt.handler").MqttHandler
        self.OrganizationManager = import_module("petalbus.petals.organization").OrganizationManager
