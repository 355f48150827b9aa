"""``Config``: what existing petals read of the installation. Each name is looked up when it is read.

``Config.NAME`` is the environment's ``PETAL_NAME``, else the default that installations have always had.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar, Final

_DEFAULTS: Final[dict[str, Any]] = {
    "LOG_LEVEL": "INFO",
    "LOG_TO_FILE": True,
    "LOG_DIR": "logs",
    "ACCESS_TOKEN_URL": "",
    "SESSION_TOKEN_URL": "",
    "S3_BUCKET_NAME": "",
    "CLOUD_ENDPOINT": "",
    "LOCAL_DB_HOST": "localhost",
    "LOCAL_DB_PORT": 3000,
    "REDIS_HOST": "localhost",
    "REDIS_PORT": 6379,
    "REDIS_DB": 0,
    "REDIS_UNIX_SOCKET_PATH": "",
    "REDIS_HEALTH_MESSAGE_RATE": 3.0,
    "TS_CLIENT_HOST": "localhost",
    "TS_CLIENT_PORT": 3004,
    "CALLBACK_HOST": "localhost",
    "CALLBACK_PORT": 9000,
    "ENABLE_CALLBACKS": True,
    "COMMAND_EDGE_TOPIC": "command/edge",
    "RESPONSE_TOPIC": "response",
    "TEST_TOPIC": "command",
    "COMMAND_WEB_TOPIC": "command/web",
    "MAVLINK_ENDPOINT": "udp:127.0.0.1:14551",
    "MAVLINK_BAUD": 115200,
    "MAVLINK_SOURCE_SYSTEM_ID": 2,
    "MAVLINK_SOURCE_COMPONENT_ID": 140,
    "MAVLINK_MAXLEN": 200,
    "MAVLINK_HEARTBEAT_SEND_FREQUENCY": 5.0,
    "ROOT_SD_PATH": "fs/microsd/log",
    "SIMULATION_MODE": False,
}
_TRUE: Final = frozenset(("1", "true", "yes", "on"))


def read(name: str, default: Any) -> Any:
    """``PETAL_<name>`` as what the default is. Raises ValueError that names the variable when it is none."""
    text = os.environ.get(f"PETAL_{name}")
    if not text:
        return default
    if isinstance(default, bool):
        return text.strip().lower() in _TRUE
    try:
        return type(default)(text)
    except ValueError:
        raise ValueError(f"PETAL_{name}={text!r} is no {type(default).__name__}") from None


class _Names(type):
    """Looks names of a class up where they are read."""

    names: dict[str, tuple[str, Any]]

    def __getattr__(cls, name: str) -> Any:
        known = cls.__dict__.get("names", {})
        if name not in known:
            raise AttributeError(f"{cls.__name__} has no {name!r}; it has {', '.join(sorted(known))}")
        return read(*known[name])


class Config(metaclass=_Names):
    """The installation's settings, by the names that existing petals know."""

    names: ClassVar[dict[str, tuple[str, Any]]] = {name: (name, default) for name, default in _DEFAULTS.items()}

    class PetalUserJourneyCoordinatorConfig(metaclass=_Names):
        """Of the petal of that name."""

        names: ClassVar[dict[str, tuple[str, Any]]] = {"DEBUG_SQUARE_TEST": ("DEBUG_SQUARE_TEST", False)}

    class RebootConfig(metaclass=_Names):
        """How a reboot of the autopilot is confirmed. Times in seconds."""

        names: ClassVar[dict[str, tuple[str, Any]]] = {
            "SITL_MODE": ("REBOOT_SITL_MODE", False),
            "ACK_TIMEOUT": ("REBOOT_ACK_TIMEOUT", 3.0),
            "HEARTBEAT_DROP_WINDOW_S": ("REBOOT_HB_DROP_WINDOW", 5.0),
            "HEARTBEAT_DROP_GAP_S": ("REBOOT_HB_DROP_GAP", 1.5),
            "HEARTBEAT_RETURN_WINDOW_S": ("REBOOT_HB_RETURN_WINDOW", 30.0),
            "HEARTBEAT_POLL_INTERVAL_S": ("REBOOT_HB_POLL_INTERVAL", 0.05),
        }
