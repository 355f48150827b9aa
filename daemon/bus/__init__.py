"""The bus core: append once, lease, commit once, on Redis Streams."""
