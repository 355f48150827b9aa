"""The base class of petals.

A petal is made without arguments and lives in this order: ``inject_proxies``, ``startup`` (plain or async; on the
loop's thread, with the loop running), routes and record handlers read from the instance, ``_loop`` set, MQTT set up
once the organisation is known, ``async_startup``; at its end ``async_shutdown``, then ``shutdown``.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from petalbus.handlers.mqtt.words import refusal
from petalbus.petals.actions import mqtt_actions
from petalbus.petals.exits import contained
from petalbus.petals.heavy import run_heavy

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.petals.proxies.base import BaseProxy

_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

MqttHandler = Callable[[str, dict[str, Any]], Awaitable[Any]]


class Petal:
    """Inherit from it, give ``name`` and ``version``, and write methods. No other import is needed."""

    name: str = ""
    """How it is called on the bus and in addresses; made of the class's name where a petal gives none."""
    version: str = "0.0.0"
    use_mqtt_proxy: ClassVar[bool] = False
    """True: MQTT is set up for this petal (``_setup_mqtt_topics``), as if ``mqtt`` were one of its proxies."""
    static_dir: str | None = None
    """Folder of files served at ``/static/<name>``, beside the petal's module or absolute."""
    template_dir: str | None = None
    """Folder of Jinja2 templates, given to ``inject_templates`` as ``default``."""

    # What the runtime sets. Class-level defaults, because a petal's own __init__ may not call ours.
    _proxies: Mapping[str, BaseProxy] = {}  # replaced, never changed
    _loop: asyncio.AbstractEventLoop | None = None
    _bus: Bus | None = None
    _mqtt_command_handlers: dict[str, MqttHandler] | None = None
    _mqtt_cpu_heavy_commands: dict[str, bool] | None = None
    _mqtt_actions_id: str | None = None
    templates: Mapping[str, Any] = {}  # replaced, never changed

    def __init__(self) -> None:
        self._proxies = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.name:
            cls.name = _WORDS.sub("-", cls.__name__).lower()

    @property
    def logger(self) -> logging.Logger:
        """A logger with this petal's name."""
        return self.__dict__.get("_own_logger") or logging.getLogger(f"petal.{self.name}")

    @logger.setter
    def logger(self, logger: logging.Logger) -> None:
        self.__dict__["_own_logger"] = logger

    @property
    def bus(self) -> Bus:
        """This petal's own client of the bus, as the app of its name. Raises RuntimeError before it is started."""
        if self._bus is None:
            raise RuntimeError(f"petal {self.name!r} has no bus yet: it is there from startup() on")
        return self._bus

    def startup(self) -> Any:
        """Override it, plain or async: proxies are there, the loop runs, tasks may be made."""

    async def async_startup(self) -> None:
        """Override it: the last step of starting."""

    async def async_shutdown(self) -> None:
        """Override it: the first step of stopping; proxies still work."""

    def shutdown(self) -> Any:
        """Override it, plain or async: the last step of stopping."""

    def get_required_proxies(self) -> list[str]:
        """Names of the proxies without which it must not be started (``redis``, ``ext_mavlink``, ``db``, ...)."""
        return []

    def get_optional_proxies(self) -> list[str]:
        """Names of the proxies that it uses when they are there."""
        return []

    def get_proxy(self, name: str) -> Any:
        """A proxy by name, or None while it is not available. Typed Any: the caller knows which class it asked for."""
        proxy = self._proxies.get(name)
        return proxy if proxy is not None and getattr(proxy, "is_ready", True) else None

    def inject_proxies(self, proxies: Mapping[str, BaseProxy]) -> None:
        """Called by the runtime before ``startup``. The mapping is live: a proxy that appears later is found in it."""
        self._proxies = proxies

    def inject_templates(self, templates: Mapping[str, Any]) -> None:
        """Called by the runtime when there is a ``template_dir``."""
        self.templates = templates

    def _collect_mqtt_actions(self) -> tuple[dict[str, MqttHandler], dict[str, bool]]:
        """Handlers by full command (``<name>/<command>``), and which of them are ``cpu_heavy``."""
        actions = {f"{self.name}/{action.command}": action for action in mqtt_actions(self)}
        return (
            {command: action.function for command, action in actions.items()},
            {command: action.cpu_heavy for command, action in actions.items()},
        )

    def has_mqtt_actions(self) -> bool:
        """True when a method or attribute handles an MQTT command."""
        return bool(mqtt_actions(self))

    async def _setup_mqtt_actions(self) -> str | None:
        """Register the commands with the MQTT proxy. Returns the registration's id; None when there are none."""
        mqtt: Any = self._proxies.get("mqtt")
        handlers, heavy = self._collect_mqtt_actions()
        if mqtt is None or not handlers:
            return None
        self._mqtt_command_handlers, self._mqtt_cpu_heavy_commands = handlers, heavy
        self._mqtt_actions_id = mqtt.register_handler(self._mqtt_master_command_handler)
        return self._mqtt_actions_id

    async def _mqtt_master_command_handler(self, topic: str, message: dict[str, Any]) -> None:
        """Run the handler of a command that is this petal's; leave every other command alone.

        The acknowledgement goes out before the handler runs. A command of ours that nobody handles, and a handler that
        raises, are answered in both error shapes when an answer is waited for.
        """
        mqtt: Any = self._proxies.get("mqtt")
        handlers = self._mqtt_command_handlers
        command = str(message.get("command", ""))
        if mqtt is None or handlers is None or not command.startswith(f"{self.name}/"):
            return
        if getattr(mqtt, "organization_id", None) is None:
            self.logger.warning("command %s is ignored: the organisation is not known yet", command)
            return
        message_id = str(message.get("messageId", "unknown"))
        handler = handlers.get(command)
        if handler is None:
            self.logger.warning("command %s is unknown", command)
            if message.get("waitResponse", False):
                text = f"Unknown command: {command}"
                told = refusal(text, "UNKNOWN_COMMAND", available_commands=sorted(handlers))
                await mqtt.send_command_response(message_id=message_id, response_data=told)
            return
        if message.get("waitAck", False):
            await mqtt.send_command_ack(message_id=message_id, service=self.name)
        try:
            with contained():
                if (self._mqtt_cpu_heavy_commands or {}).get(command, False):
                    await run_heavy(handler, topic, message)
                else:
                    await handler(topic, message)
        except Exception as error:
            self.logger.exception("the handler of command %s failed", command)
            if message.get("waitResponse", False):
                told = refusal(f"{type(error).__name__}: {error}", "HANDLER_ERROR")
                await mqtt.send_command_response(message_id=message_id, response_data=told)
