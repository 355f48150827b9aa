"""What a bus does for itself while it runs: it adopts raw records, trims, keeps presence and the id window."""

from petalbus.daemon.services.ingest import Ingest, IngestOptions
from petalbus.daemon.services.janitor import Janitor, JanitorOptions

__all__ = ["Ingest", "IngestOptions", "Janitor", "JanitorOptions"]
