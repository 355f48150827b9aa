"""See `petalbus.petals.proxies.bucket`."""

from petalbus.petals.proxies.bucket import S3BucketProxy as S3BucketProxy
