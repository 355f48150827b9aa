"""ROS bags whose recording was cut short: they are stored, and whoever gets them is told that they have no index."""

from __future__ import annotations

import struct

import pytest

from petalbus.handlers.bucket.files import check_file
from petalbus.petals.proxies.bucket import S3BucketProxy

from .conftest import MACHINE, World


def bag(index_pos: int, size: int = 9000) -> bytes:
    """A bag as ``rosbag record`` writes it: the magic, then a first record that is filled up to 4096 bytes."""
    members = (("chunk_count", "<I", 1), ("conn_count", "<I", 2), ("index_pos", "<Q", index_pos), ("op", "<B", 3))
    texts = [name.encode() + b"=" + struct.pack(form, value) for name, form, value in members]
    head = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    filling = 4096 - 8 - len(head)
    made = b"#ROSBAG V2.0\n" + struct.pack("<I", len(head)) + head + struct.pack("<I", filling) + b" " * filling
    return made + bytes(size - len(made))


@pytest.mark.parametrize(
    ("content", "indexed"),
    [
        (bag(8000), True),
        (bag(0), False),
        (bag(9000), False),  # its end is missing, and with it the index
        (bag(1 << 60), False),
        (bag(8000)[:60], None),
        (bag(8000)[:15], None),
        (b"#ROSBAG V1.2\n" + bytes(100), None),
        (b"#ROSBAG V2.0\n" + b"\xff" * 100, None),
        (b"#ROSBAG V2.0\n" + struct.pack("<II", 14, 10) + b"index_pos=" + bytes(40), None),
    ],
)
async def test_what_is_told(world: World, content: bytes, indexed: bool | None) -> None:
    """S-249, S-262: whatever is in it, a file that begins as a bag is one."""
    path = world.folder / "a.bag"
    path.write_bytes(content)
    assert check_file(path).indexed is indexed


async def test_an_unindexed_bag(world: World) -> None:
    """S-249, S-262: the result, the proxy's answer and the object's metadata say so; a whole one and a ULog do not."""
    await world.start()
    proxy = S3BucketProxy(
        world.tokens.url, "logs", endpoint=world.s3.url, machine_id=MACHINE, url=world.server.url, bus=world.bus_name
    )
    alone = S3BucketProxy(world.tokens.url, "logs", endpoint=world.s3.url, machine_id=MACHINE)
    for index, indexed in ((0, False), (8000, True)):
        path = world.folder / "a.bag"
        path.write_bytes(bag(index))
        told = await world.result(await world.send(path), path)
        assert told["indexed"] is indexed
        assert world.stored(told["s3_key"]) == bag(index)
        for one in (proxy, alone):
            await one.start()
            told = await one.upload_file(path, custom_s3_key=f"m1/{index}.bag")
            assert told["indexed"] is indexed
            metadata = (await one.head_object(told["s3_key"]))["metadata"]
            assert metadata.get("indexed") == (None if indexed else "false")
            await one.stop()
    path = world.log()
    assert "indexed" not in await world.result(await world.send(path), path)
