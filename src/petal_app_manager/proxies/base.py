"""See `petalbus.petals.proxies.base`."""

from petalbus.petals.proxies.base import BaseProxy as BaseProxy
