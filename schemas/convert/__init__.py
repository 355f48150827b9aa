"""Conversions between records and the messages of other systems, without loss in either direction.

``communication`` is the ``CommunicationMessage`` of the two-way communication document, ``mqtt`` the envelope of the
cloud and the web client, ``cloudevents`` CloudEvents 1.0. Each module has ``to_record`` and ``from_record``.
"""

from petalbus.schemas.convert import cloudevents, communication, mqtt
from petalbus.schemas.convert.communication import CommunicationMessage, MessagePriority, MessageStatus
from petalbus.schemas.convert.mqtt import Envelope

__all__ = [
    "communication",
    "mqtt",
    "cloudevents",
    "CommunicationMessage",
    "MessagePriority",
    "MessageStatus",
    "Envelope",
]
