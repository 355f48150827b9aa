"""A petal that brings each flight log of a PX4 vehicle, and a row about it, to the cloud; the link may come days later.

It needs a vehicle, a bucket and tables in the cloud (settings mavlink_endpoint, s3_bucket_name, session_token_url,
cloud_endpoint, access_token_url). What it does may be cut off anywhere and is simply done again: a file that is there
is not fetched again, an upload and a row that have the same name are the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

from petalbus.petals import Petal

FOLDER = Path(os.environ.get("FLIGHT_RECORDER_FOLDER", "/var/lib/flight-recorder"))
TABLE = "flight-logs"
ARMED = 128  # MAV_MODE_FLAG_SAFETY_ARMED
AGAIN_SECONDS = 2.0


def digest_of(file: Path) -> str:
    """SHA-256, in little memory: logs are large."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class FlightRecorder(Petal):
    """Looks for logs when it starts, and whenever the vehicle has been disarmed."""

    name = "flight-recorder"
    version = "1.0"

    def __init__(self) -> None:
        super().__init__()
        self.armed = True  # nobody knows yet: then as if it flew
        self.landed = asyncio.Event()

    def get_required_proxies(self) -> list[str]:
        """Neither has to reach the cloud for that."""
        return ["db", "ext_mavlink", "ftp_mavlink", "bucket"]

    async def async_startup(self) -> None:
        """Follow the vehicle."""
        await asyncio.to_thread(FOLDER.mkdir, parents=True, exist_ok=True)
        self.get_proxy("ext_mavlink").register_handler("HEARTBEAT", self.heartbeat)
        self.collecting = asyncio.create_task(self.collect(), name="flight-recorder")

    async def async_shutdown(self) -> None:
        """Leave off where it is."""
        self.collecting.cancel()
        await asyncio.gather(self.collecting, return_exceptions=True)

    async def heartbeat(self, message: Any) -> None:
        """Notice that it was disarmed; while it is armed its log is not complete."""
        if message.get_srcComponent() == 1:
            was_armed, self.armed = self.armed, bool(message.base_mode & ARMED)
            if was_armed and not self.armed:
                self.landed.set()

    async def collect(self) -> None:
        """After each flight bring what is new; what fails, such as the link to the vehicle, is tried again."""
        while True:
            await self.landed.wait()
            self.landed.clear()
            try:
                await self.keep_all()
            except Exception:
                self.logger.exception("the logs are looked for again")
                self.landed.set()
            await asyncio.sleep(AGAIN_SECONDS)

    async def keep_all(self) -> None:
        """Look once. A flight that begins meanwhile is left for the next look."""
        ftp = self.get_proxy("ftp_mavlink")
        if ftp is None:
            raise RuntimeError("the vehicle is away")
        for log in reversed(await ftp.list_ulogs()):  # the oldest first
            if self.armed:
                return
            await self.keep(ftp, log)

    async def keep(self, ftp: Any, log: Any) -> None:
        """The file first, then the order to upload it, then the row: what is cut off between begins again here."""
        db, bucket = self.get_proxy("db"), self.get_proxy("bucket")
        name = log.remote_path.strip("/").replace("/", "_")
        if "data" in await db.get_item(TABLE, "id", name):
            return
        file = FOLDER / name
        if not file.exists():  # it appears when it is complete
            await ftp.download_ulog(log.remote_path, file, threading.Event())
        key = f"{db.machine_id}/flight-logs/{name}"
        await bucket.upload_later(file, custom_s3_key=key, upload_id=f"flight-log-{db.machine_id}-{name}")
        digest = await asyncio.to_thread(digest_of, file)
        row = {"s3_key": key, "bytes": log.size_bytes, "utc": log.utc, "sha256": digest}
        told = await db.set_item(TABLE, "id", name, row, sync=True)
        if "error" in told:
            raise RuntimeError(f"the row of {name} was not written: {told['error']}")
        self.logger.info("%s: %d bytes", name, log.size_bytes)
