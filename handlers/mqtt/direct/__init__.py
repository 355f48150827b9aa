"""The direct way to the broker: an MQTT connection of our own.

DirectTransport (transport) keeps a connection up; Inbox has what came in, Window what goes out, Filters what is wanted;
Connection (connection) is one connection, whose packets gmqtt's tables make (packets), and which ends once, for ever.
"""

from petalbus.handlers.mqtt.direct.transport import DirectTransport

__all__ = ["DirectTransport"]
