"""One package per outside system: an outside event becomes a record, a record an outside effect and a reply."""
