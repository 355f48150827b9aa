"""Which tables the settings mean. The handlers' rooms do not know each other: they are brought together here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from petalbus.handlers.database import checks

if TYPE_CHECKING:
    from petalbus.handlers.database.dynamo import Signing
    from petalbus.handlers.database.tables import Tables

_TOKEN_SECONDS: Final = 10.0
_NEEDED: Final = {"http": ("cloud_endpoint", "access_token_url"), "dynamodb": ("session_token_url",)}


def missing(told: Mapping[str, Any]) -> list[str]:
    """Names of the settings that the back end (``cloud_backend``) needs and has not."""
    return [name for name in _NEEDED[told["cloud_backend"]] if not told.get(name)]


def make_check(told: Mapping[str, Any]) -> checks.Check:
    """What can be known of a write to these tables beforehand. ``told``: as ``make_tables``."""
    if told["cloud_backend"] == "http":
        return checks.http
    return checks.dynamodb(told.get("cloud_table_prefix") or "")


def make_tables(told: Mapping[str, Any], addresses: Mapping[str, str] | None = None) -> Tables:
    """The tables. ``told``: settings by name; ``addresses``: other paths of the HTTP service's calls."""
    if told["cloud_backend"] == "http":
        from petalbus.handlers.database.service import Addresses, HttpTables  # noqa: PLC0415  # only the one that is used

        where = Addresses(told["cloud_endpoint"], **(addresses or {}))
        return HttpTables(where, told["access_token_url"], timeout=told["timeout"])
    from petalbus.handlers.database.dynamo import DynamoTables  # noqa: PLC0415  # only the one that is used

    def credentials() -> Signing:
        from petalbus.handlers.bucket.credentials import Credentials  # noqa: PLC0415  # with the library, which is large

        made: Signing = Credentials(told["session_token_url"], timeout=_TOKEN_SECONDS)
        return made

    return DynamoTables(
        credentials,
        region=told["cloud_region"],
        endpoint=told.get("cloud_endpoint") or None,
        prefix=told.get("cloud_table_prefix") or "",
        timeout=told["timeout"],
    )
