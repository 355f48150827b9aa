"""The MQTT proxy: the API that petals use, on the bus. The link to the broker is somebody else's work.

What is published here is a record in the link's inbox first: true means that it is stored, also while there is no
connection. Commands come through the inboxes of the petals (``commands``), other topics through ``topics``.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Final

from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.mqtt import words
from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.mqtt.arguments import publication, response
from petalbus.petals.proxies.mqtt.commands import Commands, Handler
from petalbus.petals.proxies.mqtt.confirmed import confirmed
from petalbus.petals.proxies.mqtt.connected import Connected
from petalbus.petals.proxies.mqtt.link import Link
from petalbus.petals.proxies.mqtt.topics import Callback, Topics
from petalbus.petals.proxies.mqtt.wishes import Wishes
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.payloads import encode_json
from petalbus.schemas.vocabulary import Priority

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

log = logging.getLogger("MQTTProxy")

_STOP_S: Final = 2.0


class MQTTProxy(BaseProxy):
    """MQTT for petals. ``organization`` tells the organisation and the machine (an OrganizationManager).

    The arguments that describe a client program and its callbacks are the link's business; they are kept for those who
    pass them. ``debug`` shows what is sent and received.
    """

    kind: ClassVar[str] = "mqtt"

    def __init__(  # noqa: PLR0913  # petals' own signature
        self,
        ts_client_host: str = "localhost",
        ts_client_port: int = 3004,
        callback_host: str = "localhost",
        callback_port: int = 3005,
        enable_callbacks: bool = True,
        debug: bool = False,
        request_timeout: int = 30,
        max_seen_message_ids: int = 1000,
        command_edge_topic: str = words.COMMAND_EDGE,
        response_topic: str = words.RESPONSE,
        test_topic: str = words.COMMAND_PLAIN,
        command_web_topic: str = words.COMMAND_WEB,
        *,
        local_db_proxy: Any = None,
        url: str | None = None,
        bus: str | None = None,
        app_id: str = "petal-app-manager.mqtt",
        organization: Any = None,
    ) -> None:
        super().__init__()
        self.client = (ts_client_host, ts_client_port)
        self.callbacks = (callback_host, callback_port, enable_callbacks)
        self.request_timeout = request_timeout
        self.max_seen_message_ids = max_seen_message_ids
        self.command_edge_topic = command_edge_topic
        self.response_topic = response_topic
        self.test_topic = test_topic
        self.command_web_topic = command_web_topic
        self.app_id = app_id
        self._where = (url, bus)
        self._organization = organization if organization is not None else local_db_proxy
        self._bus: Bus | None = None
        self._bus_turn = asyncio.Lock()
        self._commands = Commands(self._own_bus, may_run=lambda: self.organization_id is not None)
        self._topics = Topics()
        self._leaving: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._wishes = Wishes(self._own_bus)
        self._link = Link(self._own_bus)
        self._following: list[asyncio.Task[None]] = []
        self.is_connected = Connected(lambda: self._link.up, self._ask_link)
        self.published = 0
        if debug:
            log.setLevel(logging.DEBUG)

    async def start(self) -> None:
        """Connect to the bus. Raises BusUnavailable when it is not there."""
        await self._own_bus()
        await self._link.ask()
        if not self._following:
            for name, work in (("link", self._link.follow()), ("wishes", self._wishes.keep())):
                self._following.append(asyncio.create_task(work, name=f"mqtt-{name}"))
        self._set_ready(True)
        self._commands.join_all()
        if self._topics.patterns:
            self._read()

    async def stop(self) -> None:
        """Forget handlers and callbacks, and leave the bus. What was published stays stored."""
        self._set_ready(False, "stopped")
        await self._commands.stop()
        ending = [*self._following, *([self._reading] if self._reading is not None else [])]
        self._following, self._reading = [], None
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        self._link.forget()
        await self._topics.stop()
        if self._bus is not None:
            try:
                async with asyncio.timeout(_STOP_S):
                    await self._wishes.take_back()
            except (BusError, TimeoutError) as error:
                log.info("wanted topics are not taken back, the link will notice: %s", error)
        bus, self._bus = self._bus, None
        if bus is not None:
            await bus.close()

    # -- who we are ---------------------------------------------------------------------------------------------------

    @property
    def organization_id(self) -> str | None:
        """The organisation, None while it is not known."""
        return self._get_organization_id()

    @property
    def device_id(self) -> str | None:
        """What this device is called in topics, None while the machine id is not known."""
        machine = self._get_machine_id()
        return f"Instance-{machine}" if machine else None

    def _get_organization_id(self) -> str | None:
        return getattr(self._organization, "organization_id", None)

    def _get_machine_id(self) -> str | None:
        return getattr(self._organization, "machine_id", None)

    def _get_base_topic(self) -> str | None:
        organization, device = self.organization_id, self.device_id
        return words.base_topic(organization, device) if organization and device else None

    # -- commands -----------------------------------------------------------------------------------------------------

    def register_handler(self, handler: Handler, cpu_heavy: bool = False) -> str:
        """Offer commands to ``async handler(topic, message)``; the registration's id. Any thread may call it.

        Raises TypeError when the handler is not async.
        """
        name = self._commands.add(handler, cpu_heavy=cpu_heavy)
        if self.is_ready:
            self._call_at_home(self._commands.join, name)
        return name

    def unregister_handler(self, subscription_id: str) -> bool:
        """End a registration; False when there is none of that id. On the proxy's loop."""
        return self._commands.remove(subscription_id)

    def forget(self, owner: object) -> int:
        """End all registrations of a petal; how many there were. On the proxy's loop."""
        gone, unused = self._topics.remove_of(owner)
        for topic in unused:
            task = asyncio.get_running_loop().create_task(self._wishes.remove(topic), name=f"mqtt-leave-{topic}")
            self._leaving.add(task)
            task.add_done_callback(self._left)
        return gone + self._commands.remove_of(owner)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a topic that nobody wants any more is still subscribed: %s", error)

    async def send_command_ack(self, message_id: str, service: str, ack_type: str = "service-received") -> bool:
        """Tell the sender of a command that a petal has it. True when the acknowledgement is stored."""
        payload = {
            "messageId": message_id,
            "phase": "ack",
            "ackType": ack_type,
            "service": service,
            "timestamp": words.stamp(),
            "deviceId": self.device_id,
        }
        whose = self._commands.organization_of(message_id)
        return await self._store(None, words.ACK, payload, 1, priority=Priority.HIGH, organization=whose)

    async def send_command_response(self, *given: Any, **named: Any) -> bool:
        """Answer a command: ``(message_id, response_data)``, or ``(response_topic, message_id, response_data)``.

        ``response_data`` goes out as it is, beside messageId, phase, timestamp and deviceId. True when it is stored.
        Raises TypeError when the arguments make no sense.
        """
        topic, message_id, data = response(given, named)
        head = {"messageId": message_id, "phase": "result", "timestamp": words.stamp()}
        payload = {**head, **data, "deviceId": self.device_id}
        whose = self._commands.organization_of(message_id)
        return await self._store(topic, self.response_topic, payload, 1, priority=Priority.HIGH, organization=whose)

    # -- messages -----------------------------------------------------------------------------------------------------

    async def publish_message(self, *given: Any, **named: Any) -> bool:
        """Publish ``(payload, qos=1)`` to the web client's topic, or ``(topic, payload, qos=1)``. True when stored.

        Raises TypeError when the arguments make no sense.
        """
        topic, payload, qos = publication(given, named)
        return await self._store(topic, self.command_web_topic, payload, qos)

    async def publish(self, topic: str, message: Any, qos: int = 0, retain: bool = False) -> bool:
        """Publish a message (JSON, or text as it is) to a topic. True when it is stored."""
        return await self._store(topic, None, message, qos, retain=retain)

    async def publish_confirmed(
        self, topic: str, message: Any, *, timeout: float = 10.0, retain: bool = False, id: str | None = None
    ) -> int:
        """``publish`` with quality of service 1, and wait for the broker's receipt: its reason code (below 128).

        Raises PublishRefused with the broker's reason code, NotConfirmed after ``timeout`` seconds (the message stays
        stored and goes out later; the same ``id`` again waits on), RecordInvalid, and BusError when it is not stored.
        """
        data = self._message(topic, None, message, 1, retain=retain)
        code = await confirmed(await self._own_bus(), data, timeout=timeout, message_id=id)
        self.published += 1
        return code

    async def subscribe(self, topic: str, callback: Callback, qos: int = 0) -> str:
        """Call ``async callback(topic, message)`` for what arrives on a topic or filter; the subscription's id.

        Raises TypeError when the callback is not async, and BusUnavailable.
        """
        name = self._topics.add(topic, callback)
        await self._wishes.add(topic, qos)
        self._read()
        return name

    async def subscribe_to_topic(self, topic: str, callback: Callback) -> str:
        """``subscribe`` with quality of service 1."""
        return await self.subscribe(topic, callback, 1)

    def subscribe_pattern(self, pattern: str, callback: Callback) -> str:
        """Call back for every topic that fits a pattern (``*`` for one level), among what arrives anyway."""
        name = self._topics.add(pattern, callback)
        if self.is_ready:
            self._call_at_home(self._read)
        return name

    async def unsubscribe(self, topic: str) -> bool:
        """End all callbacks of a topic or pattern; False when there are none."""
        listeners = self._topics.remove(topic)
        for listener in listeners:
            listener.end()
        await self._wishes.remove(topic)
        return bool(listeners)

    unsubscribe_from_topic = unsubscribe

    def get_subscriptions(self) -> Subscriptions:
        """Topics and patterns with their number of callbacks; may be awaited, too."""
        return Subscriptions(self._topics.patterns)

    async def disconnect(self) -> None:
        """``stop``."""
        await self.stop()

    async def health_check(self) -> dict[str, Any]:
        """State of the link, subscriptions, who we are, and how many messages wait to be sent."""
        told = await super().health_check()
        await self._ask_link()
        connection, link = self._link.connection, self._link.describe()
        subscriptions = {"topics": sorted(self._topics.patterns), "handlers": self._commands.count}
        device = {"organization_id": self.organization_id, "robot_instance_id": self._get_machine_id()}
        return {**told, "connection": connection, "link": link, "subscriptions": subscriptions, "device_info": device}

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _own_bus(self) -> Bus:
        from petalbus.daemon.bus.options import BusOptions  # noqa: PLC0415  # only where a client is made
        from petalbus.daemon.connect import connect  # noqa: PLC0415  # the same

        async with self._bus_turn:
            if self._bus is None:
                url, name = self._where
                options = BusOptions(workers=words.COMMANDS_AT_ONCE)  # it handles commands, and nothing else
                bus = connect(url, app=self.app_id, bus=name, options=options)
                await bus.start()
                self._bus = bus
            return self._bus

    async def _store(
        self,
        topic: str | None,
        suffix: str | None,
        payload: Any,
        qos: int,
        *,
        retain: bool = False,
        priority: Priority = Priority.NORMAL,
        organization: str | None = None,
    ) -> bool:
        """Put a message into the link's inbox; False when the bus does not take it. Raises as ``_message``.

        ``organization``: whose it is, where that is not ours of now.
        """
        data = self._message(topic, suffix, payload, qos, retain=retain)
        if topic is None and organization is not None:
            data["organization"] = organization
        try:
            bus = await self._own_bus()
            kind = words.PUBLISH if topic is not None or "organization" in data else words.LATER
            if kind == words.LATER:
                priority = Priority.LOW
            await bus.send(words.APP if qos else words.TELEMETRY, kind, data, priority=priority)
        except BusError as error:
            log.warning("an MQTT message for %s is not stored: %s", topic or suffix, error)
            return False
        self.published += 1
        log.debug("stored for %s: %s", topic or suffix, payload)
        return True

    def _message(
        self, topic: str | None, suffix: str | None, payload: Any, qos: int, *, retain: bool
    ) -> dict[str, Any]:
        """A message as the link takes it. Below our own topic only the end is told: the link knows the rest.

        What is stored while the organisation is unknown goes out under the one that becomes known. Raises ValueError
        and RecordInvalid.
        """
        if qos not in (0, 1):
            raise ValueError(f"quality of service {qos!r} is not offered; use 0 or 1")
        size = len(encode_json(payload, under="payload"))
        if size > words.MAX_PAYLOAD_BYTES:
            text = f"has {size} bytes as JSON"
            raise RecordInvalid("payload", text, limit=f"at most {words.MAX_PAYLOAD_BYTES} bytes in one MQTT message")
        data: dict[str, Any] = {"topic": topic} if topic is not None else {"suffix": suffix}
        if topic is None and (organization := self.organization_id):
            data["organization"] = organization  # it stays meant for this one, whoever we are when it leaves
        return data | {"payload": payload, "qos": qos, "retain": retain}

    def _read(self) -> None:
        if self._reading is None:
            self._reading = asyncio.create_task(self._deliver(), name="mqtt-topics")

    async def _deliver(self) -> None:
        bus = await self._own_bus()
        async for record in bus.subscribe(words.TOPIC):
            if isinstance(record.data, dict) and isinstance(record.data.get("topic"), str):
                self._topics.deliver(record.data["topic"], record.data.get("payload"))  # type: ignore[arg-type]  # any JSON: as it came

    async def _ask_link(self) -> bool:
        return await self._link.ask()


class Subscriptions(dict[str, int]):
    """Topics and patterns with their number of callbacks. Awaiting it gives it."""

    def __await__(self) -> Any:
        return self._itself().__await__()

    async def _itself(self) -> Subscriptions:
        return self
