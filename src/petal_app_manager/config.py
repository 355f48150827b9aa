"""See `petalbus.petals.config`."""

from petalbus.petals.config import Config as Config
