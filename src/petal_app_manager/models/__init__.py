"""See `petalbus.petals.models`."""

from petalbus.petals.models.mqtt import MQTTMessage as MQTTMessage
