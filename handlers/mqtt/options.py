"""The settings of the MQTT link, each with its unit and the reason for its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from petalbus.handlers.mqtt.words import URGENT


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectOptions:
    """A connection of our own to the broker."""

    host: str = "localhost"
    port: int = 1883
    tls: bool = False
    version: Literal["5", "3.1.1"] = "5"
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    alpn: str | None = None
    """Application protocol, for a broker that shares port 443: ``x-amzn-mqtt-ca``."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    keepalive: int = 20
    """Seconds. A dead link is noticed after one and a half of it at the latest, or earlier by TCP."""
    session_expiry: int = 3600
    """Seconds that the broker keeps what is for us while we are away. AWS IoT keeps it for an hour at most."""
    connect_timeout: float = 10.0
    connect_every: float = 1.05
    """Seconds between two CONNECTs with the same client id at least: AWS IoT takes one a second."""
    retry_first: float = 0.2
    retry_most: float = 30.0
    window: int = 98
    """Unacknowledged messages at a time: AWS IoT bears 100. The broker may announce fewer."""
    write_buffer: int = 256 * 1024
    """Bytes that may wait for a slow network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """A client program on this machine that speaks HTTP with us and MQTT with the broker."""

    host: str = "localhost"
    port: int = 3004
    callback_url: str = "http://localhost:9000/mqtt-callback/callback"
    """Where the client program brings what arrives."""
    enable_callbacks: bool = True
    expected: bool = True
    """Somebody has said that there is such a program; where nobody has, that there is none is no news."""
    secret: str | None = field(default=None, repr=False)
    """Who brings something must know it: it is in the address that is registered. None: only this machine may."""
    request_timeout: float = 30.0
    probe_interval: float = 10.0
    """Seconds between two looks whether the client program is well."""
    probe_timeout: float = 2.0
    subscribe_timeout: float = 5.0
    retry_first: float = 0.2
    retry_most: float = 10.0
    resubscribe: float = 300.0
    """Seconds after which filters are told again: a client program that was restarted between two looks has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressOptions:
    """What may leave, and how fast. AWS IoT's limits of one connection are the defaults."""

    rate: float = 90.0
    """Messages in any second. AWS IoT drops what exceeds 100 without a word; what was delayed arrives closer."""
    bytes_rate: float = 512 * 1024.0
    """Bytes a second."""
    max_payload: int = 128 * 1024
    max_topic: int = 256
    """Bytes."""
    max_levels: int = 8
    """Levels of a topic: seven slashes."""
    held: int = 512
    """Messages that are taken from the outbox and not confirmed yet. More stay in it."""
    newest_first_after: float = 5.0
    """Seconds offline after which responses to the newest commands go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttOptions:
    """The whole link."""

    egress: EgressOptions = field(default_factory=EgressOptions)
    command_edge: str = "command/edge"
    command_plain: str = "command"
    response: str = "response"
    command_web: str = "command/web"
    command_deadline: float = 120.0
    """Seconds from its arrival after which a command that nobody has begun is not begun any more."""
    command_max_age: float | None = 120.0
    """Seconds since its timestamp after which a command is refused: a broker keeps for an hour what was sent while we
    were away. None: timestamps are not looked at. Two clocks are compared; a clock that was never set tells nothing."""
    command_held: float | None = 3600.0
    """Seconds for which a broker may have held a command. What claims to be older was not held: it has a timestamp out
    of an example, or a clock is wrong, and it is not refused for that. None: it is."""
    urgent: frozenset[str] = frozenset(URGENT)
    """Last words of commands that overtake all others. Their timestamps are not looked at."""
    max_incoming: int = 256 * 1024
    """Bytes of a message that is taken in whole; of a larger one the beginning is kept."""

    def is_urgent(self, command: str) -> bool:
        """Whether it is one of the commands that must not wait."""
        return command.rpartition("/")[2] in self.urgent
