"""See `petalbus.petals.models.mavlink`."""

from petalbus.petals.models.mavlink import FormatStorageResponse as FormatStorageResponse
from petalbus.petals.models.mavlink import FormatStorageStatusCode as FormatStorageStatusCode
from petalbus.petals.models.mavlink import RebootAutopilotResponse as RebootAutopilotResponse
from petalbus.petals.models.mavlink import RebootStatusCode as RebootStatusCode
