"""See `petalbus.petals.proxies.localdb`."""

from petalbus.petals.proxies.localdb import LocalDBProxy as LocalDBProxy
