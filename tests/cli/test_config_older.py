"""Settings by the names of existing installations, and from a .env file."""

from __future__ import annotations

from pathlib import Path

import pytest

from petalbus.daemon.config import ConfigError, load


def loaded(tmp_path: Path, **words: str) -> dict[str, tuple[object, str]]:
    made = load({"data": str(tmp_path)}, environment=words)
    return {name: (value, origin) for name, value, origin in made.shown()}


def test_the_documented_variables_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-004, S-082, C-11: no petal configures anything; where each value came from can be seen."""
    monkeypatch.chdir(tmp_path)
    told = loaded(
        tmp_path,
        PETAL_REDIS_HOST="redis.local",
        PETAL_REDIS_PORT="6380",
        PETAL_MAVLINK_ENDPOINT="udp:127.0.0.1:14551",
        PETAL_LOG_LEVEL="DEBUG",
        PETAL_LOCAL_DB_HOST="db.local",
        S3_BUCKET_NAME="logs",
    )
    assert told["redis"] == ("redis://redis.local:6380", "environment PETAL_REDIS_HOST")
    assert told["mavlink_endpoint"] == ("udp:127.0.0.1:14551", "environment PETAL_MAVLINK_ENDPOINT")
    assert told["log_level"] == ("debug", "environment PETAL_LOG_LEVEL")
    assert told["localdb_url"] == ("http://db.local:3000", "environment PETAL_LOCAL_DB_HOST")
    assert told["s3_bucket_name"] == ("logs", "environment S3_BUCKET_NAME")
    assert told["http_port"] == (9000, "default")


def test_a_socket_goes_before_a_host_and_a_password_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = loaded(tmp_path, PETAL_REDIS_HOST="x", PETAL_REDIS_UNIX_SOCKET_PATH="/var/run/redis/redis-server.sock")
    assert told["redis"][0] == "unix:///var/run/redis/redis-server.sock"
    secret = loaded(tmp_path, PETAL_REDIS_HOST="x", PETAL_REDIS_PASSWORD="p@ss")["redis"][0]
    assert "p%40ss" not in str(secret)
    with pytest.raises(ConfigError, match="PETAL_REDIS_DB=3"):
        loaded(tmp_path, PETAL_REDIS_HOST="x", PETAL_REDIS_DB="3")


def test_our_own_names_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = {"PETALBUS_S3_BUCKET_NAME": "ours", "PETAL_S3_BUCKET_NAME": "older", "S3_BUCKET_NAME": "oldest"}
    assert loaded(tmp_path, **words)["s3_bucket_name"] == ("ours", "environment PETALBUS_S3_BUCKET_NAME")
    del words["PETALBUS_S3_BUCKET_NAME"]
    assert loaded(tmp_path, **words)["s3_bucket_name"][0] == "older"


def test_names_that_could_be_anybodys_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = loaded(tmp_path, REDIS_HOST="somebody", LOG_LEVEL="debug", MACHINE_ID="x")
    assert {told[name][1] for name in ("redis", "log_level", "machine_id")} == {"default"}


def test_the_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-004: here, or in the data directory, or where it is named; the environment goes before it, the file behind."""
    data, here, other = tmp_path / "data", tmp_path / "here", tmp_path / "other.env"
    data.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    (data / ".env").write_text("PETAL_S3_BUCKET_NAME=of-the-data\n# a comment\nPETALBUS_HTTP_PORT='9001'\n")
    (data / "petalbus.toml").write_text('[s3]\nbucket_name = "of-the-file"\n[http]\nhost = "127.0.0.2"\n')
    told = loaded(data)
    assert told["s3_bucket_name"] == ("of-the-data", f"file {data / '.env'} (PETAL_S3_BUCKET_NAME)")
    assert told["http_port"] == (9001, f"file {data / '.env'} (PETALBUS_HTTP_PORT)")
    assert told["http_host"][0] == "127.0.0.2"
    (here / ".env").write_text("export PETAL_S3_BUCKET_NAME=of-here\n")
    assert loaded(data)["s3_bucket_name"][0] == "of-here"
    assert loaded(data, PETAL_S3_BUCKET_NAME="of-the-environment")["s3_bucket_name"][0] == "of-the-environment"
    other.write_text("S3_BUCKET_NAME=of-another\n")
    assert loaded(data, PETALBUS_ENV_FILE=str(other))["s3_bucket_name"][0] == "of-another"
    with pytest.raises(ConfigError, match="PETALBUS_ENV_FILE"):
        loaded(data, PETALBUS_ENV_FILE=str(tmp_path / "none"))
