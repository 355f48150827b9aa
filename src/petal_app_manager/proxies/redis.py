"""See `petalbus.petals.proxies.redis`."""

from petalbus.petals.proxies.redis import CommunicationMessage as CommunicationMessage
from petalbus.petals.proxies.redis import MessagePriority as MessagePriority
from petalbus.petals.proxies.redis import MessageStatus as MessageStatus
from petalbus.petals.proxies.redis import RedisProxy as RedisProxy
