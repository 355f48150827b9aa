"""Our own tables, as migrations of the name ``petalbus``. A released step is never changed; new ones follow."""

from __future__ import annotations

from typing import Final

STEPS: Final = (
    """
    CREATE TABLE petalbus_items (
        table_name TEXT NOT NULL,
        key_name TEXT NOT NULL,
        key_value TEXT NOT NULL,
        body TEXT NOT NULL,
        deleted INTEGER NOT NULL DEFAULT 0,
        UNIQUE (table_name, key_name, key_value)
    );

    CREATE TABLE petalbus_sync (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL,
        operation TEXT NOT NULL,
        body TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        parked INTEGER NOT NULL DEFAULT 0,
        error TEXT
    );
    CREATE INDEX petalbus_sync_turn ON petalbus_sync (parked, attempts, seq);
    CREATE INDEX petalbus_sync_key ON petalbus_sync (key, parked, seq);

    CREATE TABLE petalbus_facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO petalbus_facts VALUES ('sync_changes', 0), ('sync_bytes', 0), ('health', 0);

    CREATE TRIGGER petalbus_sync_more AFTER INSERT ON petalbus_sync BEGIN
        UPDATE petalbus_facts SET value = value + 1 WHERE name = 'sync_changes';
        UPDATE petalbus_facts SET value = value + length(new.body) WHERE name = 'sync_bytes';
    END;
    CREATE TRIGGER petalbus_sync_less AFTER DELETE ON petalbus_sync BEGIN
        UPDATE petalbus_facts SET value = value - 1 WHERE name = 'sync_changes';
        UPDATE petalbus_facts SET value = value - length(old.body) WHERE name = 'sync_bytes';
    END;
    """,
    """
    ALTER TABLE petalbus_sync ADD COLUMN made INTEGER NOT NULL DEFAULT 0;
    UPDATE petalbus_sync SET made = CAST(strftime('%s', 'now') AS INTEGER) * 1000000 + seq;
    INSERT INTO petalbus_facts SELECT 'sync_made', COALESCE(MAX(made), 0) FROM petalbus_sync;
    """,
    """
    ALTER TABLE petalbus_sync ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
    """,
)
