"""Flight logs in S3 for petals."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        region=getattr(settings, "s3_region", None) or "us-east-1",
        endpoint=getattr(settings, "s3_endpoint", None),
        organization=context.organization,
    )
