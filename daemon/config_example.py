"""A settings file to begin with: every setting, what it means, and its default."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from petalbus.daemon.config import FILE_NAME, NAMES, NOT_IN_FILE, TABLES, Settings

_EXAMPLES: Final[dict[str, Any]] = {
    "redis": "redis://user:password@host:6379",
    "server": "/usr/bin/redis-server",
    "ingest_telemetry_rate": 1000.0,
    "mavlink_endpoint": "udpin:0.0.0.0:14550",
    "mavlink_signing_key": "a long passphrase",
    "mavlink_target_system": 1,
    "petals_file": "/opt/petals/proxies.yaml",
    "petals_root": "/opt/petals",
    "petals_handler_timeout": 30.0,
    "localdb_file": "/var/lib/petalbus/local.db",
    "localdb_url": "http://localhost:3000",
    "machine_id": "drone-001",
    "access_token_url": "http://localhost:3001/session-manager/access-token",
    "session_token_url": "http://localhost:3001/session-manager/session-token",
    "cloud_endpoint": "https://cloud.example",
    "cloud_outbox_mb": 128,
    "s3_bucket_name": "flight-logs",
    "s3_endpoint": "https://s3.example",
    "s3_key_template": "{prefix}/{machine}/{stamp}_{name}",
    "mqtt_url": "mqtts://broker.example:8883",
    "mqtt_client_id": "Instance-drone-001",
    "mqtt_username": "drone-001",
    "mqtt_password": "secret",
    "mqtt_ca": "/etc/petalbus/ca.pem",
    "mqtt_cert": "/etc/petalbus/device.pem",
    "mqtt_key": "/etc/petalbus/device.key",
    "mqtt_alpn": "x-amzn-mqtt-ca",
    "mqtt_callback_port": 3005,
    "mqtt_callback_secret": "a long secret",
    "mqtt_command_max_age": 900.0,
}


def example() -> str:
    """A settings file with every setting, its meaning and its default, all commented out."""
    lines = [
        f"# Settings of a PetalBus: keep what you need at <data>/{FILE_NAME}.",
        "# Each line shows the default, or an example where nothing is the default.",
    ]
    table = ""
    for name, field in ((name, Settings.model_fields[name]) for name in NAMES):
        if name in NOT_IN_FILE:
            continue
        head, _, tail = name.partition("_")
        inside = tail if head in TABLES else name
        if inside != name and head != table:
            table = head
            lines += ["", f"[{table}]"]
        value = _EXAMPLES[name] if field.default is None else field.default
        lines += ["", f"# {field.description}", f"# {inside} = {_toml(value)}"]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    value = str(value) if isinstance(value, Path) else value
    return f'"{value}"' if isinstance(value, str) else str(value)
