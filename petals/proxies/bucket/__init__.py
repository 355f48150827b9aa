"""Flight logs in S3 for petals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petalbus.handlers.bucket.names import TEMPLATE
from petalbus.handlers.bucket.store import ENCRYPTION
from petalbus.petals.proxies.bucket.proxy import S3BucketProxy

if TYPE_CHECKING:
    from petalbus.petals.proxies.context import ProxyContext

__all__ = ["S3BucketProxy", "make"]


def make(context: ProxyContext) -> S3BucketProxy:
    """The proxy of one process of petals."""
    settings = context.settings
    return S3BucketProxy(
        getattr(settings, "session_token_url", None) or "",
        getattr(settings, "s3_bucket_name", None) or "",
        getattr(settings, "s3_upload_prefix", None) or "flight_logs/",
        region=getattr(settings, "s3_region", None) or "us-east-1",
        endpoint=getattr(settings, "s3_endpoint", None),
        key_template=getattr(settings, "s3_key_template", None) or TEMPLATE,
        encryption=getattr(settings, "s3_encryption", None) or ENCRYPTION,
        documented_magic=bool(getattr(settings, "s3_documented_magic", False)),
        organization=context.organization,
        url=context.url,
        bus=context.bus,
        app_id=f"{context.app}.bucket",
    )
