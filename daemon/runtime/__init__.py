"""What `petalbus up` runs: everything of one bus, started and stopped in order.

daemon      the order of things: lock, server, bus, services, handlers, simulated vehicle, and back
supervisor  keeps each part running, and ends it
parts       the parts there are: the services, the MAVLink handler, the simulated vehicle
answers     what the daemon itself answers on the bus: ping, status_request
report      events for the terminal or for a program, and the log
"""

from petalbus.daemon.runtime.daemon import Daemon, run
from petalbus.daemon.runtime.report import Report

__all__ = ["Daemon", "Report", "run"]
