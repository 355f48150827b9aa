"""The plain keys: names without the bus's prefix, as programs use them that know nothing of the bus.

They lie in other slots of a cluster than the bus's own keys, and each in its own: no script touches two of them,
except a queue and the marker that is made to share its slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MIRRORED: Final = "petalbus"
"""The field of a status hash, and the value of an online key, that the bus wrote and nobody else."""

BROADCAST: Final = "channel:broadcast"
CHANNEL: Final = "channel:"
STATUS: Final = "status:"


def inbox(app: str) -> str:
    """The sorted set of messages to an application."""
    return f"queue:{app}:inbox"


def outbox(app: str) -> str:
    """The sorted set of messages from an application, for people who look."""
    return f"queue:{app}:outbox"


def handed(app: str) -> str:
    """What the bus has put into an application's inbox lately. The braces give it the inbox's slot."""
    return "{" + inbox(app) + "}:handed"


def message(message_id: str) -> str:
    """The hash of one message: where it stands, from whom, to whom."""
    return f"message:{message_id}"


def channel(app: str) -> str:
    """Where an application hears that something lies in its inbox."""
    return CHANNEL + app


def status(app: str) -> str:
    """The hash in which an application announces itself."""
    return STATUS + app


def online(app: str) -> str:
    """A key that exists while an application is there."""
    return f"app:{app}:online"


def is_mirror(announced: Mapping[str, str]) -> bool:
    """Whether the bus wrote this status last: another writer changes ``last_seen`` and not our copy of it."""
    copy = announced.get(MIRRORED)
    return copy is not None and copy == announced.get("last_seen")
