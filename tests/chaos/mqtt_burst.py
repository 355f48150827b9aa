"""Many commands at once to one petal over a real broker: from the command's publication to its response, per command.

    PYTHONPATH=src:tests python -m chaos.mqtt_burst --commands 200

The clock is the cloud's own: publish called, response received.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from chaos.mqtt_storm import DEVICE, Storm, until, until_connected
from petalbus.daemon.bus.client import Bus

from support.cloud import Cloud


async def burst(commands: int) -> list[float]:
    """Milliseconds of each command, in a fresh daemon. Raises TimeoutError when one is not answered."""
    with tempfile.TemporaryDirectory(prefix="pb-burst-", dir="/tmp") as name:
        storm = Storm(Path(name), seed=0, forget=False, careful=False)
        storm.broker.start()
        cloud = Cloud(storm.broker.port, f"{DEVICE}/response")
        try:
            cloud.start()
            await storm.start_daemon()
            await until((storm.data / "bus.sock").exists, 20, "the bus is there")
            async with Bus(f"unix://{storm.data}/bus.sock", app="burst", bus="petalbus") as bus:
                await until_connected(bus)
            await one_by_one(cloud)
            begun = {}
            for number in range(commands):
                name_of_it = f"b{number}"
                message = {
                    "messageId": name_of_it,
                    "command": "counting/count",
                    "waitResponse": True,
                    "data": {"n": number},
                }
                begun[name_of_it] = time.monotonic()
                cloud.publish_at_once(f"{DEVICE}/command/edge", message)
            await until(lambda: len(cloud.times) >= commands + 1, 30, f"{commands} responses")
            return [1e3 * (cloud.times[name] - start) for name, start in begun.items()]
        finally:
            cloud.stop()
            await storm.stop()


async def one_by_one(cloud: Cloud) -> None:
    """The petal runs: it has answered once."""
    message = {"messageId": "first", "command": "counting/count", "waitResponse": True, "data": {"n": 0}}
    cloud.publish_at_once(f"{DEVICE}/command/edge", message)
    await until(lambda: "first" in cloud.times, 30, "the petal answers")


def main() -> None:
    """Print the distribution."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", type=int, default=200)
    took = sorted(asyncio.run(burst(parser.parse_args().commands)))
    quantiles = statistics.quantiles(took, n=100)
    sys.stdout.write(
        f"{len(took)} commands at once: response after p50 {quantiles[49]:.1f} ms, p90 {quantiles[89]:.1f} ms, "
        f"worst {took[-1]:.1f} ms\n"
    )


if __name__ == "__main__":
    main()
