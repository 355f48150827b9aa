"""See `petalbus.petals.proxies`."""

from petalbus.petals.proxies.base import BaseProxy as BaseProxy
from petalbus.petals.proxies.bucket import S3BucketProxy as S3BucketProxy
from petalbus.petals.proxies.cloud import CloudDBProxy as CloudDBProxy
from petalbus.petals.proxies.localdb import LocalDBProxy as LocalDBProxy
from petalbus.petals.proxies.mavftp import MavLinkFTPProxy as MavLinkFTPProxy
from petalbus.petals.proxies.mavlink import MavLinkExternalProxy as MavLinkExternalProxy
from petalbus.petals.proxies.mqtt import MQTTProxy as MQTTProxy
from petalbus.petals.proxies.redis import RedisProxy as RedisProxy
