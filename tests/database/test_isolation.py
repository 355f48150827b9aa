"""A machine writes its own items only, where no daemon writes for it, too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from petalbus.handlers.database.dynamo import DynamoTables
from petalbus.handlers.database.errors import Denied
from petalbus.handlers.database.values import from_members
from petalbus.handlers.database.writes import BY, SEQ, Operation, Write
from petalbus.petals.proxies.cloud import CloudDBProxy
from petalbus.petals.proxies.localdb import LocalDBProxy

from .conftest import MACHINE, TABLE
from .http_end import CloudService, Relay

THEIRS = {"id": "theirs", "robot_instance_id": "m2", "x": 1}


@pytest.fixture
async def direct(cloud: CloudService) -> AsyncIterator[CloudDBProxy]:
    """A proxy without a bus."""
    made = CloudDBProxy(f"{cloud.url}/token", cloud.url, machine_id=MACHINE)
    await made.start()
    yield made
    await made.stop()


async def test_without_a_daemon(cloud: CloudService, direct: CloudDBProxy) -> None:
    """S-050, S-051, S-053, I4: another machine's item is answered with 403 and stays; ours are written unmarked."""
    cloud.tables[TABLE] = {"theirs": dict(THEIRS)}
    assert (await direct.put_item(TABLE, {"id": "theirs", "x": 2}))["status"] == 403
    assert (await direct.update_item(TABLE, "theirs", {"x": 2}))["status"] == 403
    assert (await direct.delete_item(TABLE, "theirs"))["status"] == 403
    mine = [{"id": str(n), SEQ: 2**62, BY: "x"} for n in range(3)]
    told = await direct.batch_write(TABLE, [*mine, {"id": "theirs", "x": 2}])
    assert (told["data"]["written"], told["data"]["failed"][0]["id"]) == (["0", "1", "2"], "theirs")
    assert cloud.tables[TABLE]["theirs"] == THEIRS
    assert not any({SEQ, BY} & set(row) for row in cloud.tables[TABLE].values())
    await cloud.shut()
    asked = cloud.requests
    told = await direct.batch_write(TABLE, [{"id": str(n)} for n in range(20)])
    assert (len(told["data"]["failed"]), cloud.requests) == (20, asked)


async def test_without_a_daemon_in_dynamo(dynamo: DynamoTables, relay: Relay) -> None:
    """S-053, I4: the same; one item that cannot be written fails alone; the cloud away, the rest is not tried."""
    client = await dynamo._connected()
    name = f"{dynamo.prefix}{TABLE}"
    theirs = {"id": {"S": "theirs"}, "robot_instance_id": {"S": "m2"}, "x": {"N": "1"}}
    await client.put_item(TableName=name, Item=theirs)
    rows: list[dict[str, Any]] = [{"id": str(n), SEQ: 2**62, BY: "x"} for n in range(30)]
    wrong = [{"id": "theirs", "x": 2}, {"id": "bad", "x": 10**5000}, {"id": "large", "x": "x" * 500_000}]
    failed = await dynamo.write_many(MACHINE, TABLE, "id", [*rows, *wrong])
    assert set(failed) == {"theirs", "bad", "large"}
    assert "another machine" in failed["theirs"]
    found = {one["id"]["S"]: one for one in (await client.scan(TableName=name))["Items"]}
    assert found.pop("theirs") == theirs
    assert sorted(found) == sorted(str(n) for n in range(30))
    assert [from_members(one)["robot_instance_id"] for one in found.values()] == [MACHINE] * 30
    assert not any({SEQ, BY} & set(row) for row in found.values())
    for operation in Operation:
        order = Write(machine=MACHINE, table=TABLE, key="id", value="theirs", operation=operation, data={"x": 3})
        with pytest.raises(Denied):
            await dynamo.write(order, None)
    await relay.shut()
    failed = await dynamo.write_many(MACHINE, TABLE, "id", rows)
    assert len(failed) == 30
    assert all("cannot be reached" in reason for reason in failed.values())


class Trusting(CloudService):
    """Does not ask who we are, as a LocalDB service."""

    async def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes] | None:
        """See HttpEnd."""
        return await super().answer(path, {**headers, "authorization": f"Bearer {self.valid}"}, body)


async def test_a_localdb_service_with_another_machines_item() -> None:
    """S-052, I4: it is not marked as deleted, and does not become ours."""
    async with Trusting() as service:
        service.tables[TABLE] = {"theirs": dict(THEIRS), "free": {"id": "free"}}
        proxy = LocalDBProxy(url=service.url, machine_id=MACHINE)
        await proxy.start()
        told = await proxy.delete_item(TABLE, "id", "theirs")
        assert (told["status"], told["error_code"]) == (403, "access_denied")
        assert service.tables[TABLE]["theirs"] == THEIRS
        assert (await proxy.delete_item(TABLE, "id", "free"))["success"]
        await service.shut()
        await proxy.stop()
