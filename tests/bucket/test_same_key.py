"""Two machines that store under one free key at the same time."""

from __future__ import annotations

import pytest

from petalbus.daemon.bus.errors import ReplyError
from petalbus.handlers.bucket.errors import Denied, WrongBytes
from petalbus.handlers.bucket.files import check_file
from petalbus.handlers.bucket.transfer import options_of, put

from .conftest import World
from .wire import Exchange, answer, lose_answer

KEY = "flights/2026/log.ulg"


async def test_who_comes_second_is_refused(world: World, small_parts: int) -> None:
    """S-258, S-271: what another machine stored while our parts went is neither replaced nor deleted."""
    await world.start()
    ours, theirs = world.log(4 * small_parts, "a.ulg"), check_file(world.log(300, "b.ulg"))
    async with world.store(endpoint=world.s3.url) as other:

        async def meanwhile(exchange: Exchange) -> bytes:
            await put(other, theirs, KEY, options_of(theirs, "m2"))
            return await exchange.forward()

        world.wire.rule("PUT", "partNumber=3", meanwhile)
        with pytest.raises(ReplyError) as refused:
            await world.result(await world.send(ours, s3_key=KEY), ours, s3_key=KEY)
        assert "another machine" in str(refused.value.detail)
        assert world.stored(KEY) == theirs.path.read_bytes()
    await world.settled()


async def test_what_another_machine_put_there_is_not_deleted(world: World) -> None:
    """S-258: also not when it came between our storing and our looking; our own wrong object is."""
    ours, theirs = check_file(world.log(name="a.ulg")), check_file(world.log(300, "b.ulg"))
    async with world.store() as store, world.store(endpoint=world.s3.url) as other:
        client = await other._connected()

        async def replaced(exchange: Exchange) -> bytes:
            told = await exchange.forward()
            await client.put_object(Bucket="logs", Key=KEY, Body=theirs.path.read_bytes(), Metadata=metadata)
            return told

        options = options_of(ours, "m1")
        this = {"upload-timestamp": options["Metadata"]["upload-timestamp"]}
        metadata: dict[str, str] = {}
        cases: list[tuple[str, dict[str, str], type[Exception], bool]] = [
            ("m2", {}, Denied, True),
            ("m1", {}, WrongBytes, True),
            ("m1", this, WrongBytes, False),
        ]
        for machine, more, error, left in cases:
            metadata = {**options_of(theirs, machine)["Metadata"], **more}
            world.wire.rule("PUT", KEY, replaced)
            with pytest.raises(error):
                await put(store, ours, KEY, options)
            assert (world.s3.files / KEY).exists() is left
            await other.delete(KEY)


async def test_only_where_nothing_is(world: World) -> None:
    """S-258: the store is asked for that; one that cannot is asked without; a lost answer is no other machine."""
    log = check_file(world.log())
    asked: list[bool] = []

    async def heard(exchange: Exchange) -> bytes:
        asked.append(b"\r\nif-none-match: *\r\n" in exchange.head.lower())
        return await exchange.forward()

    for act, wanted in (
        (answer(501, "NotImplemented"), [False, False]),
        (answer(400, "InvalidArgument"), [False, False]),
        (lose_answer, [True, True]),
        (answer(412, "PreconditionFailed"), [True, True]),
    ):
        asked.clear()
        async with world.store(attempts=2) as store:
            world.wire.rule("PUT", KEY, act)
            for _ in wanted:
                world.wire.rule("PUT", KEY, heard)
                assert await put(store, log, KEY, options_of(log, "m1")) == log.size
                assert world.stored(KEY) == log.path.read_bytes()
                await store.delete(KEY)
            world.wire.rule("PUT", "own.ulg", heard)
            await put(store, log, "m1/own.ulg", options_of(log, "m1"))
        assert asked == [*wanted, False]
