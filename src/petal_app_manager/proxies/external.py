"""See `petalbus.petals.proxies.mavlink`."""

from petalbus.petals.proxies.mavftp import MavLinkFTPProxy as MavLinkFTPProxy
from petalbus.petals.proxies.mavftp import ProgressCB as ProgressCB
from petalbus.petals.proxies.mavftp import ULogInfo as ULogInfo
from petalbus.petals.proxies.mavlink import ExternalProxy as ExternalProxy
from petalbus.petals.proxies.mavlink import MavLinkExternalProxy as MavLinkExternalProxy
