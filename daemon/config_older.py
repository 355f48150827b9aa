"""The names of settings in existing installations, and the ``.env`` file.

``PETAL_REDIS_HOST`` and the like mean settings of ours. Some are also taken without the prefix, as one document of the
specification has them; never others, which could be anybody's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

PREFIX: Final = "PETAL_"
FILE_VARIABLE: Final = "PETALBUS_ENV_FILE"
FILE_NAME: Final = ".env"

SAME: Final[Mapping[str, str]] = {
    "LOG_LEVEL": "log_level",
    "MACHINE_ID": "machine_id",
    "ACCESS_TOKEN_URL": "access_token_url",
    "SESSION_TOKEN_URL": "session_token_url",
    "S3_BUCKET_NAME": "s3_bucket_name",
    "S3_ENDPOINT": "s3_endpoint",
    "AWS_REGION": "s3_region",
    "CLOUD_ENDPOINT": "cloud_endpoint",
    "MAVLINK_ENDPOINT": "mavlink_endpoint",
    "MAVLINK_SOURCE_SYSTEM_ID": "mavlink_source_system",
    "MAVLINK_SOURCE_COMPONENT_ID": "mavlink_source_component",
    "MAVLINK_HEARTBEAT_SEND_FREQUENCY": "mavlink_heartbeat_hz",
    "TS_CLIENT_HOST": "mqtt_client_host",
    "TS_CLIENT_PORT": "mqtt_client_port",
    "CALLBACK_HOST": "mqtt_callback_host",
    "CALLBACK_PORT": "mqtt_callback_port",
    "ENABLE_CALLBACKS": "mqtt_callbacks",
    "COMMAND_EDGE_TOPIC": "mqtt_command_edge_topic",
    "TEST_TOPIC": "mqtt_command_topic",
    "RESPONSE_TOPIC": "mqtt_response_topic",
    "COMMAND_WEB_TOPIC": "mqtt_command_web_topic",
    "MQTT_HEALTH_CHECK_INTERVAL": "mqtt_probe_interval",
    "MQTT_HEALTH_PROBE_TIMEOUT": "mqtt_probe_timeout",
}
"""What means one setting of ours, as it is."""

WITHOUT_PREFIX: Final = frozenset(
    {
        "SESSION_TOKEN_URL",
        "S3_BUCKET_NAME",
        "AWS_REGION",
        "TS_CLIENT_HOST",
        "TS_CLIENT_PORT",
        "CALLBACK_HOST",
        "CALLBACK_PORT",
        "ENABLE_CALLBACKS",
    }
)
REDIS: Final = ("REDIS_UNIX_SOCKET_PATH", "REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD")
LOCAL_DB: Final = ("LOCAL_DB_HOST", "LOCAL_DB_PORT")


class Older(NamedTuple):
    """A setting that an older name gives. ``variable``: that name."""

    name: str
    value: str
    variable: str


def read_older(words: Mapping[str, str]) -> Iterator[Older]:
    """The settings that variables of older names give. Raises ValueError that names the variable."""
    given = {name: words[PREFIX + name] for name in (*SAME, *REDIS, *LOCAL_DB) if words.get(PREFIX + name)}
    for name, setting in SAME.items():
        if name in given:
            value = given[name].lower() if setting == "log_level" else given[name]
            yield Older(setting, value, PREFIX + name)
        elif name in WITHOUT_PREFIX and words.get(name):
            yield Older(setting, words[name], name)
    redis = [name for name in REDIS[:3] if name in given]
    if redis:
        yield Older("redis", _redis_url(given), PREFIX + redis[0])
    if any(name in given for name in LOCAL_DB):
        host, port = given.get("LOCAL_DB_HOST", "localhost"), given.get("LOCAL_DB_PORT", "3000")
        yield Older("localdb_url", f"http://{host}:{port}", PREFIX + LOCAL_DB[0])


def env_file(words: Mapping[str, str], data: Path, here: Path) -> Path | None:
    """The ``.env`` file that counts: the one named, else the one here, else the data directory's; None: there is none.

    Raises ValueError when the one named is not there.
    """
    named = words.get(FILE_VARIABLE)
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise ValueError(f"{FILE_VARIABLE}: there is no file {path}")
        return path
    return next((path for path in (here / FILE_NAME, data / FILE_NAME) if path.is_file()), None)


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of a ``.env`` file. Raises OSError or UnicodeDecodeError."""
    from dotenv import dotenv_values  # noqa: PLC0415  # comes with pydantic-settings; only who has such a file needs it

    return {name: value for name, value in dotenv_values(path, interpolate=False).items() if value}


def _redis_url(given: Mapping[str, str]) -> str:
    if given.get("REDIS_DB", "0") != "0":
        raise ValueError(f"{PREFIX}REDIS_DB={given['REDIS_DB']}: the bus lives in database 0 of its server")
    if path := given.get("REDIS_UNIX_SOCKET_PATH"):
        return f"unix://{path}"
    secret = f":{quote(given['REDIS_PASSWORD'], safe='')}@" if "REDIS_PASSWORD" in given else ""
    return f"redis://{secret}{given.get('REDIS_HOST', 'localhost')}:{given.get('REDIS_PORT', '6379')}"
