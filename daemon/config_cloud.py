"""The settings of the tables in the cloud."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field


def _joined(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


Tables = Annotated[str, BeforeValidator(_joined)]
"""Names of tables in one text, with commas between them; a list in the settings file."""

Policy = Literal["last-writer", "refuse"]


class CloudSettings(BaseModel):
    """Part of the daemon's settings."""

    cloud_endpoint: Annotated[
        str | None, Field(description="URL of the cloud's tables: of the service, or of a DynamoDB that is not AWS's")
    ] = None
    cloud_backend: Annotated[
        Literal["http", "dynamodb"], Field(description="what keeps the tables: the cloud's HTTP service, or DynamoDB")
    ] = "http"
    cloud_region: Annotated[str, Field(min_length=1, description="DynamoDB's region")] = "us-east-1"
    cloud_table_prefix: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9_.-]*$", description="before the name of each table in DynamoDB")
    ] = ""
    cloud_policy: Annotated[
        Policy, Field(description="an item that somebody else has written: the later write wins, or ours is refused")
    ] = "last-writer"
    cloud_refuse_tables: Annotated[
        Tables, Field(description="tables whose policy is refuse, with commas, where the others' is last-writer")
    ] = ""
    cloud_last_writer_tables: Annotated[
        Tables, Field(description="tables whose policy is last-writer, with commas, where the others' is refuse")
    ] = ""
    cloud_sync_tables: Annotated[
        Tables, Field(description="tables of the local database whose items are carried to the cloud, with commas")
    ] = ""
    cloud_write_wait: Annotated[
        float, Field(gt=0, le=60, description="how long a petal's write waits for the cloud before it is queued (s)")
    ] = 5.0
    cloud_outbox_mb: Annotated[
        int | None, Field(ge=1, le=1 << 20, description="writes that may wait for the cloud (MiB)")
    ] = None


def names(text: str) -> frozenset[str]:
    """The names in such a text."""
    return frozenset(name.strip() for name in text.split(",") if name.strip())
