"""See `petalbus.petals.base`."""

from petalbus.petals.base import Petal as Petal
