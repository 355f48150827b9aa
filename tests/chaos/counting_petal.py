"""A petal whose every effect can be counted: a line in a file, written before anything else can happen."""

from __future__ import annotations

import os
from typing import Any

from petalbus.petals.base import Petal
from petalbus.petals.decorators import mqtt_action

EFFECTS = "PETALBUS_TEST_EFFECTS"


class CountingPetal(Petal):
    """``counting/count`` writes its messageId down and answers."""

    name = "counting"
    version = "1.0.0"

    @mqtt_action("count")
    async def count(self, topic: str, message: dict[str, Any]) -> None:
        """One effect."""
        file = os.open(os.environ[EFFECTS], os.O_WRONLY | os.O_APPEND)
        os.write(file, f"{message['messageId']}\n".encode())
        os.close(file)
        mqtt: Any = self.get_proxy("mqtt")
        await mqtt.send_command_response(message["messageId"], {"success": True, "n": message["data"]["n"]})
