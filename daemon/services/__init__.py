"""What a bus does for itself while it runs: adopting raw records, retention, presence, the deduplication window's age."""

from petalbus.daemon.services.ingest import Ingest, IngestOptions
from petalbus.daemon.services.janitor import Janitor, JanitorOptions

__all__ = ["Ingest", "IngestOptions", "Janitor", "JanitorOptions"]
