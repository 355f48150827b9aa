"""See `petalbus.petals.proxies.cloud`."""

from petalbus.petals.proxies.cloud import CloudDBProxy as CloudDBProxy
