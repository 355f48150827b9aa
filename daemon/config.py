"""The settings of a bus: what they are, where each one came from, and a message that says which one is wrong.

    command line  >  environment PETALBUS_<NAME>  >  .env  >  <data>/petalbus.toml (or --config FILE)  >  default

One name everywhere: ``mavlink_endpoint`` is ``PETALBUS_MAVLINK_ENDPOINT`` in the environment and ``--set
mavlink_endpoint=...`` on the command line; in the file it may also be written as ``endpoint`` in a table ``[mavlink]``.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from petalbus.daemon.bus.url import parse
from petalbus.daemon.config_cloud import CloudSettings
from petalbus.daemon.config_mqtt import MqttSettings
from petalbus.daemon.config_older import FILE_VARIABLE, env_file, read_env_file, read_older
from petalbus.daemon.config_vehicle import VehicleSettings
from petalbus.daemon.paths import DataPaths
from petalbus.daemon.server.config import MIN_MEMORY_MB
from petalbus.daemon.server.probe import without_password
from petalbus.schemas.vocabulary import APP_PATTERN

PREFIX: Final = "PETALBUS_"
FILE_NAME: Final = "petalbus.toml"
NOT_IN_FILE: Final = ("data", "config")
TABLES: Final = ("keep", "ingest", "http", "petals", "bridge", "localdb", "cloud", "s3", "mqtt", "mavlink", "sim")
_SECRET: Final = frozenset({"mqtt_password", "mqtt_callback_secret", "mavlink_signing_key"})
_ADDRESSES: Final = frozenset(
    {"redis", "mqtt_url", "cloud_endpoint", "access_token_url", "session_token_url", "localdb_url", "s3_endpoint"}
)
"""URLs, in which a password may stand."""

_NOT_SETTINGS: Final = frozenset({"PETALBUS_TRACEBACK", FILE_VARIABLE})

LogLevel = Literal["debug", "info", "warning", "error"]


def _joined(value: Any) -> Any:
    """A list in the settings file means the same as a text with commas."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


Names = Annotated[str, BeforeValidator(_joined)]
"""Several names in one text, with commas between them."""


class ConfigError(ValueError):
    """A setting is wrong; the message names the setting, where it was given, and what would be right."""

    code = "config"


class Settings(VehicleSettings, MqttSettings, CloudSettings, BaseSettings):
    """Everything that can be set. Times are seconds, sizes are named by their unit."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, validate_default=True)

    data: Annotated[Path, Field(description="data directory: the bus's files, and how tools find it")]
    config: Annotated[Path | None, Field(description=f"settings file; <data>/{FILE_NAME} when none is named")] = None
    bus: Annotated[str, Field(pattern=APP_PATTERN, description="name of the bus: the prefix of all keys")] = "petalbus"
    redis: Annotated[
        str | None, Field(description="URL of an existing server, to use it in place of the embedded one")
    ] = None
    server: Annotated[
        str | None, Field(description="program to run as the embedded server; the first one found when none is named")
    ] = None
    memory_mb: Annotated[
        int, Field(ge=MIN_MEMORY_MB, le=1 << 20, description="memory ceiling of the embedded server (MiB)")
    ] = 512
    fsync: Annotated[
        Literal["everysec", "always"],
        Field(description="when the embedded server's file reaches the disk: a power cut loses up to 2 s, or nothing"),
    ] = "everysec"
    log_level: Annotated[LogLevel, Field(description="least severe log line that is shown")] = "info"
    stop_timeout: Annotated[
        float, Field(gt=0, le=300, description="how long each part may take to stop before it is left behind (s)")
    ] = 10.0

    organization_file: Annotated[Path, Field(description="file that tells organisation and thing")] = Path(
        "/opt/droneleaf/certs/perm/thing-parameters.json"
    )
    machine_id: Annotated[str | None, Field(description="this machine's id; found by itself when not given")] = None
    access_token_url: Annotated[str | None, Field(description="service that gives out tokens for the cloud")] = None
    session_token_url: Annotated[str | None, Field(description="service that gives out credentials for buckets")] = None
    credentials_cache: Annotated[
        bool, Field(description="keep a bucket's credentials in the data directory until they end, for a start offline")
    ] = True

    keep_topics: Annotated[int, Field(ge=0, description="entries of each topic that stay when all have read them")] = (
        100_000
    )
    keep_inboxes: Annotated[int, Field(ge=0, description="settled records that stay in each inbox")] = 20_000
    keep_replies: Annotated[int, Field(ge=1, description="replies that stay for each application")] = 10_000
    keep_dead: Annotated[int, Field(ge=1, description="dead letters that stay for each application")] = 10_000
    keep_for: Annotated[
        float, Field(gt=0, description="after so long away a subscriber does not hold history back any more (s)")
    ] = 3600.0

    ingest_telemetry_rate: Annotated[
        float | None,
        Field(gt=0, description="raw telemetry records a second that one program may send; no limit when not given"),
    ] = None

    http_enabled: Annotated[bool, Field(description="serve HTTP: petals' routes, health, documentation")] = True
    http_host: Annotated[
        str,
        Field(min_length=1, description="interface of the HTTP server; nobody is asked who he is, so keep loopback"),
    ] = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535, description="port of the HTTP server; 0: any free one")] = 9000
    http_allowed_hosts: Annotated[
        str, Field(description="further names by which the HTTP server may be called: drone.lan, *.field.example")
    ] = ""
    http_allowed_origins: Annotated[
        str, Field(description="web pages of other servers that may use it: https://ground.example")
    ] = ""

    petals_enabled: Annotated[
        Names, Field(description="petals that run, with commas; all found when none is named")
    ] = ""
    petals_disabled: Annotated[Names, Field(description="petals that do not run, with commas")] = ""
    petals_paths: Annotated[Names, Field(description="further petals as module:Class, with commas")] = ""
    petals_isolation: Annotated[
        Literal["daemon", "process"], Field(description="where petals run: in the daemon, or each in a process")
    ] = "daemon"
    petals_isolated: Annotated[Names, Field(description="petals that run in a process each, with commas")] = ""
    petals_file: Annotated[Path | None, Field(description="proxies.yaml; <data>/proxies.yaml when none is named")] = (
        None
    )
    petals_root: Annotated[Path | None, Field(description="folder that holds static/<petal> of existing petals")] = None
    petals_handler_timeout: Annotated[
        float | None, Field(gt=0, description="how long a petal's handler may run where it says nothing (s)")
    ] = None
    petals_concurrency: Annotated[
        int, Field(ge=1, le=256, description="handlers of one petal at a time, beside its MQTT commands")
    ] = 4
    petals_queue: Annotated[int, Field(ge=1, le=10_000, description="records of a level that a petal reads ahead")] = 64
    petals_restarts: Annotated[
        int, Field(ge=0, le=1000, description="restarts of a petal within five minutes before it is given up")
    ] = 5

    bridge_channels: Annotated[
        Names, Field(description="patterns of pub/sub channels that are recorded, with commas; none when empty")
    ] = "*"
    bridge_plain_keys: Annotated[
        bool, Field(description="serve programs that use queue:<app>:inbox, status:<app> and channel:<app>")
    ] = True

    localdb_file: Annotated[
        Path | None, Field(description="the local database; <data>/local.db when none is named")
    ] = None
    localdb_url: Annotated[
        str | None, Field(description="an existing LocalDB service, in place of the file's items")
    ] = None
    s3_bucket_name: Annotated[str | None, Field(description="bucket for flight logs")] = None
    s3_region: Annotated[str, Field(description="its region")] = "us-east-1"
    s3_endpoint: Annotated[str | None, Field(description="URL of an S3 store that is not AWS's")] = None
    s3_upload_prefix: Annotated[str, Field(description="what stands before the machine in keys")] = "flight_logs/"
    s3_key_template: Annotated[str | None, Field(description="how keys of logs are made")] = None
    s3_documented_magic: Annotated[bool, Field(description="take logs that begin with ULogData, too")] = False
    s3_encryption: Annotated[
        Literal["AES256", "aws:kms", "none"],
        Field(description="how the store is asked to encrypt logs; none: as it likes"),
    ] = "AES256"

    @field_validator(
        "petals_file", "petals_root", "localdb_file", "organization_file", "mqtt_ca", "mqtt_cert", "mqtt_key"
    )
    @classmethod
    def _expanded(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser()

    @field_validator("data", "config")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return None if path is None else Path(os.path.realpath(path.expanduser()))

    @field_validator("redis")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        if url is not None:
            parse(url)
        return url

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # pydantic's signature
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # pydantic's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # pydantic's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what ``load`` has merged: it reads the sources one by one, to know where each setting came from."""
        return (init_settings,)


_OWN_TABLES: Final[tuple[type[BaseModel], ...]] = (VehicleSettings, MqttSettings, CloudSettings)
NAMES: Final = tuple(
    sorted(
        Settings.model_fields,
        key=lambda name: next((place for place, part in enumerate(_OWN_TABLES, 1) if name in part.model_fields), 0),
    )
)
"""The settings of the vehicle, the MQTT link and the cloud come last: they have tables of their own in the file."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, where each came from, and what looks like a mistake but is none for certain."""

    settings: Settings
    origins: Mapping[str, str]
    warnings: tuple[str, ...]

    def shown(self) -> Iterator[tuple[str, Any, str]]:
        """Name, value (passwords hidden) and origin of each setting."""
        for name in NAMES:
            value = getattr(self.settings, name)
            value = _shown(name, value)
            yield name, str(value) if isinstance(value, Path) else value, self.origins[name]


def load(given: Mapping[str, Any], *, environment: Mapping[str, str] | None = None) -> Loaded:
    """Read all sources. ``given``: the command line's, by setting name; None means not given.

    Raises ConfigError, and DataDirectoryError when no data directory is named and there is no home directory.
    """
    words = dict(os.environ if environment is None else environment)
    line = {name: value for name, value in given.items() if value is not None}
    for name in line:
        if name not in NAMES:
            raise ConfigError(f"command line: {_unknown(name)}")
    values: dict[str, Any] = {}
    origins = dict.fromkeys(NAMES, "default")
    _take(values, origins, line, lambda _name: "command line")
    _take_words(values, origins, words, "environment {}")
    if "data" not in values:
        values["data"] = DataPaths.of().root
    _take_env_file(values, origins, words)
    path = Path(values.get("config") or Path(values["data"], FILE_NAME)).expanduser()
    _take(values, origins, _from_file(path, must_exist="config" in values), lambda _name: f"file {path}")
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise ConfigError(_explained(error, values, origins)) from None
    return Loaded(settings, origins, tuple(_suspicious(words)))


def parse_assignments(assignments: list[str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` texts; raises ConfigError."""
    values = {}
    for text in assignments:
        name, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"command line: --set {text!r} is not NAME=VALUE")
        if name not in NAMES:
            raise ConfigError(f"command line: --set: {_unknown(name)}")
        values[name] = value
    return values


def _take(
    values: dict[str, Any], origins: dict[str, str], more: Mapping[str, Any], origin: Callable[[str], str]
) -> None:
    """Add what was not given by a stronger source."""
    for name, value in more.items():
        if name not in values:
            values[name] = value
            origins[name] = origin(name)


def _take_words(values: dict[str, Any], origins: dict[str, str], words: Mapping[str, str], origin: str) -> None:
    """Our names first, then those of existing installations."""
    _take(values, origins, _from_environment(words), lambda name: origin.format(PREFIX + name.upper()))
    try:
        for older in read_older(words):
            _take(values, origins, {older.name: older.value}, lambda _name, said=older: origin.format(said.variable))  # type: ignore[misc]  # bound at once
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _take_env_file(values: dict[str, Any], origins: dict[str, str], words: Mapping[str, str]) -> None:
    try:
        path = env_file(words, Path(values["data"]), Path.cwd())
        if path is not None:
            _take_words(values, origins, read_env_file(path), f"file {path} ({{}})")
    except (OSError, ValueError) as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f".env file: {error}") from None


def _from_environment(words: Mapping[str, str]) -> dict[str, Any]:
    source = EnvSettingsSource(Settings, env_ignore_empty=True)
    source.env_vars = {name.lower(): value for name, value in words.items() if value}
    return source()


def _from_file(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if must_exist:
            raise ConfigError(f"settings file {path}: there is no such file") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"settings file {path} is not TOML: {error}") from None
    values = dict(_flat(content))
    for name in values:
        if name in NOT_IN_FILE:
            instead = f"use --{name} or {PREFIX}{name.upper()}"
            raise ConfigError(f"settings file {path}: {name!r} cannot be set here; {instead}")
        if name not in NAMES:
            raise ConfigError(f"settings file {path}: {_unknown(name)}")
    return values


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A table is nothing but the beginning of its settings' names."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}_")
        else:
            yield prefix + name, value


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, NAMES, n=1)
    advice = f"did you mean {near[0]!r}?" if near else "`petalbus config show` lists them all"
    return f"there is no setting {name!r}; {advice}"


def _suspicious(words: Mapping[str, str]) -> Iterator[str]:
    """Variables that look like settings: a misspelt one would otherwise be ignored without a word."""
    for word in sorted(words):
        name = word.removeprefix(PREFIX).lower()
        if word.startswith(PREFIX) and name not in NAMES and word not in _NOT_SETTINGS:
            yield f"environment variable {word} is ignored: {_unknown(name)}"


def _shown(name: str, value: Any) -> Any:
    """A value as people and logs may see it."""
    if name in _ADDRESSES and value is not None:
        try:
            parts = urlsplit(str(value))
            return without_password(str(value)) if parts.query or "@" in parts.netloc else value
        except ValueError:  # it is none: what in it is a password cannot be said
            return "***"
    return "***" if name in _SECRET and value is not None else value


def _explained(error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    value = values.get(name)
    shown = _shown(name, value)
    problem = first["msg"].removeprefix("Value error, ").replace(repr(value), repr(shown))
    origin = origins.get(name, "sources")
    return f"setting {name} = {shown!r} (from the {origin}): {problem[0].lower()}{problem[1:]}"
