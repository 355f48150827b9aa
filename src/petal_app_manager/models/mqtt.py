"""See `petalbus.petals.models.mqtt`."""

from petalbus.petals.models.mqtt import MQTTMessage as MQTTMessage
