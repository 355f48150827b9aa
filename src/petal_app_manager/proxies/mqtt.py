"""See `petalbus.petals.proxies.mqtt`."""

from petalbus.petals.proxies.mqtt import MQTTProxy as MQTTProxy
