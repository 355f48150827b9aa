"""See `petalbus.petals.decorators`."""

from petalbus.petals.decorators import http_action as http_action
from petalbus.petals.decorators import mqtt_action as mqtt_action
from petalbus.petals.decorators import on as on
from petalbus.petals.decorators import websocket_action as websocket_action
