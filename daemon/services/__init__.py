"""What a bus does for itself while it runs: it adopts raw records, trims, keeps presence and ids, and bridges."""

from petalbus.daemon.services.ingest import Ingest, IngestOptions
from petalbus.daemon.services.janitor import Janitor, JanitorOptions
from petalbus.daemon.services.plain import PlainKeys, PlainOptions
from petalbus.daemon.services.pubsub import PubSubBridge

__all__ = ["Ingest", "IngestOptions", "Janitor", "JanitorOptions", "PlainKeys", "PlainOptions", "PubSubBridge"]
