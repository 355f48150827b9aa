"""Whose a command is, and that whoever waits for a response gets one: on a real bus, with petals played by clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import orjson
import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import HandlerError
from petalbus.daemon.bus.options import BusOptions
from petalbus.handlers.mqtt import dispatch, waiting, words
from petalbus.handlers.mqtt.dispatch import CommandDispatch
from petalbus.handlers.mqtt.ingress import Ingress
from petalbus.handlers.mqtt.options import MqttOptions
from petalbus.handlers.mqtt.transport import Incoming
from petalbus.schemas.record import Record

from support.servers import RealServer

DEVICE = "org/ORG1/device/Instance-m1"


class Desk:
    """The dispatch of commands; what it answers for petals is in ``answers``."""

    def __init__(self, server: RealServer, bus_name: str, link: Bus) -> None:
        self.server = server
        self.bus_name = bus_name
        self.link = link
        self.installed: frozenset[str] | None = frozenset({"here"})
        self.answers: list[tuple[str, dict[str, Any]]] = []
        self.acknowledged: list[str] = []
        self.restarted: list[Mapping[str, Any]] = []
        self.names: list[str | None] = []
        """Of the answers: what each is recognised by, where that is not the messageId."""
        self.urgent: frozenset[str] = MqttOptions().urgent
        self.ingress = Ingress(link, MqttOptions(), respond=self.respond)

    async def respond(self, device: str, message_id: str, data: dict[str, Any], *, name: str | None = None) -> None:
        assert device == DEVICE
        self.answers.append((message_id, data))
        self.names.append(name)

    async def acknowledge(self, device: str, message_id: str) -> None:
        assert device == DEVICE
        self.acknowledged.append(message_id)

    async def restart(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self.restarted.append(message)
        return {"status": "restarting"}

    async def fail(self, _message: Mapping[str, Any]) -> dict[str, Any]:
        raise OSError("no such thing")

    def dispatch(self, *, deadline: float = 5.0) -> CommandDispatch:
        return CommandDispatch(
            self.link,
            respond=self.respond,
            acknowledge=self.acknowledge,
            installed=lambda: self.installed,
            built_in={"restart": self.restart, "fail": self.fail},
            deadline=deadline,
            urgent=MqttOptions(urgent=self.urgent).is_urgent,
        )

    def incoming(self, message: Mapping[str, Any]) -> Incoming:
        return Incoming(f"{DEVICE}/command", orjson.dumps(message))

    async def command(self, command: str, message_id: str, *, end: str = "command/edge", **more: Any) -> None:
        message = {"command": command, "messageId": message_id, "waitResponse": True, **more}
        await self.ingress.received(Incoming(f"{DEVICE}/{end}", orjson.dumps(message)))

    async def answer(self, message_id: str) -> dict[str, Any]:
        async with asyncio.timeout(8):
            while True:
                for name, data in self.answers:
                    if name == message_id:
                        return data
                await asyncio.sleep(0.005)

    @contextlib.asynccontextmanager
    async def running(self, *, deadline: float = 5.0) -> AsyncIterator[CommandDispatch]:
        made = self.dispatch(deadline=deadline)
        made.register()
        task = asyncio.create_task(made.run(), name="dispatch")
        try:
            yield made
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            for kind in (dispatch.UNDECIDED, dispatch.BUILT_IN):
                self.link.off(kind)

    @contextlib.asynccontextmanager
    async def petal(
        self, name: str, handle: Callable[[Record], Any], *, commands: list[str] | None = None
    ) -> AsyncIterator[Bus]:
        """A client that takes commands; ``commands`` None: any."""
        async with Bus(self.server.url, app=name, bus=self.bus_name, options=BusOptions(stop_grace=0.2)) as bus:
            bus.on(words.COMMAND, redelivery="report", concurrency=16)(handle)
            await bus.listen()
            await bus.call("HSET", words.handlers_key(bus.keys), name, orjson.dumps(commands))
            yield bus


@pytest.fixture
async def desk(server: RealServer, bus_name: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr(waiting, "_LOOK_S", 0.05)
    monkeypatch.setattr(waiting, "_GRACE_S", 0.05)
    monkeypatch.setattr(dispatch, "_LOADING_LOOK_S", 0.01)
    async with Bus(server.url, app=words.APP, bus=bus_name, options=BusOptions(stop_grace=0.2)) as link:
        await link.listen()
        yield Desk(server, bus_name, link)


class Taker:
    """What a petal got."""

    def __init__(self) -> None:
        self.got: list[str] = []

    async def __call__(self, record: Record) -> None:
        self.got.append(record.data["payload"]["messageId"])

    async def handle(self, record: Record) -> None:
        await self(record)


async def test_a_command_goes_to_whoever_says_that_it_is_his(desk: Desk) -> None:
    """S-201, S-210: by the whole name first, then by the petal's; nobody else gets it."""
    first, second = Taker(), Taker()
    async with (
        desk.petal("here", first.handle, commands=["here/go"]),
        desk.petal("other", second.handle, commands=["x/y"]),
        desk.running(),
    ):
        await desk.command("here/go", "1")
        await desk.command("x/y", "2")
        await desk.command("here/unknown", "3")
        async with asyncio.timeout(5):
            while not (len(first.got) == 2 and second.got):
                await asyncio.sleep(0.005)
    assert (sorted(first.got), second.got) == (["1", "3"], ["2"])


async def test_nobody_s_command_is_answered_at_once(desk: Desk) -> None:
    """S-228, C-13: in both shapes, with the commands that there are."""
    taker = Taker()
    async with desk.petal("here", taker.handle, commands=["here/go"]), desk.running():
        await desk.command("elsewhere/go", "1")
        told = await desk.answer("1")
    assert (told["success"], told["status"], told["error_code"]) == (False, "error", "UNKNOWN_COMMAND")
    assert told["available_commands"] == ["fail", "here/go", "restart"]
    assert not taker.got


async def test_without_wait_response_nobody_is_answered(desk: Desk) -> None:
    """S-243."""
    async with desk.running():
        await desk.command("elsewhere/go", "1", waitResponse=False)
        await desk.command("elsewhere/go", "2")
        await desk.answer("2")
    assert [name for name, _ in desk.answers] == ["2"]


async def test_a_command_waits_while_petals_are_being_loaded(desk: Desk) -> None:
    """Whose it is can only be said when they are there; until then nothing is refused, and others are not held up."""
    desk.installed = None
    taker = Taker()
    async with desk.running():
        await desk.command("late/go", "1")
        async with desk.petal("here", taker.handle, commands=["here/go"]):
            await desk.command("here/go", "2")
            async with asyncio.timeout(5):
                while taker.got != ["2"]:
                    await asyncio.sleep(0.005)
        assert not desk.answers
        desk.installed = frozenset({"late"})
        late = Taker()
        async with asyncio.timeout(5):
            while (await desk.link.status("1@late")).value != "pending":
                await asyncio.sleep(0.005)
        async with desk.petal("late", late.handle, commands=["late/go"]):
            async with asyncio.timeout(5):
                while late.got != ["1"]:
                    await asyncio.sleep(0.005)


async def test_a_petal_that_never_comes_is_answered_for_at_the_deadline(desk: Desk) -> None:
    """The command is not run later."""
    async with desk.running(deadline=0.3):
        await desk.command("here/go", "1")
        told = await desk.answer("1")
        assert told["error_code"] == "DEADLINE_EXPIRED"
        late = Taker()
        async with desk.petal("here", late.handle, commands=["here/go"]):
            async with asyncio.timeout(5):
                while not (await desk.link.status("1@here")).final:
                    await asyncio.sleep(0.005)
        assert not late.got


async def test_a_petal_that_fails_is_answered_for(desk: Desk) -> None:
    """S-231, C-13: with what it raised."""

    async def breaks(_record: Record) -> None:
        raise HandlerError("no camera here", error_code="NO_CAMERA")

    async with desk.petal("here", breaks, commands=["here/go"]), desk.running():
        await desk.command("here/go", "1")
        told = await desk.answer("1")
    assert (told["success"], told["error"], told["error_code"]) == (False, "no camera here", "NO_CAMERA")


async def test_a_petal_that_has_answered_is_not_answered_for(desk: Desk) -> None:
    """It raised after its response was stored: one response is enough."""

    async with desk.running() as running:

        async def answers_and_breaks(record: Record) -> None:
            running.waiting.answered(record.data["payload"]["messageId"])
            raise OSError("after that")

        async with desk.petal("here", answers_and_breaks, commands=["here/go"]):
            await desk.command("here/go", "1")
            await desk.command("nobody/go", "2")
            await desk.answer("2")
            await asyncio.sleep(0.3)
    assert [name for name, _ in desk.answers] == ["2"]
    assert len(running.waiting) == 0


async def test_masters_that_leave_a_command_alone_leave_it_without_an_answer(desk: Desk) -> None:
    """Petals that take any command look at it; when none has answered by the deadline, that is said.

    Not earlier, and not that it is unknown: one of them may be at work on it.
    """
    one, two = Taker(), Taker()
    async with desk.petal("here", one.handle), desk.petal("there", two.handle), desk.running(deadline=0.4) as running:
        await desk.command("flight-log/fetch", "1")
        await desk.command("flight-log/slow", "2")
        while "2" not in two.got:
            await asyncio.sleep(0.005)
        running.waiting.acknowledged("2")
        told = await desk.answer("1")
        assert told["error_code"] == "NO_ANSWER"
        await asyncio.sleep(0.3)
    assert [name for name, _ in desk.answers] == ["1"], "one has taken the other on, and answers it by itself"
    assert (one.got, two.got) == (["1", "2"], ["1", "2"])


async def test_a_petal_that_died_in_a_command_is_answered_for(desk: Desk) -> None:
    """Nobody takes the work over, and nothing can be known of it."""
    begun = asyncio.Event()

    async def never(_record: Record) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with desk.running(deadline=0.3):
        async with desk.petal("here", never, commands=["here/go"]):
            await desk.command("here/go", "1")
            await begun.wait()
        # closed with its work in hand: it is left to a successor, of which there is none
        told = await desk.answer("1")
    assert told["error_code"] == "OUTCOME_UNKNOWN"


@pytest.mark.parametrize("command", ["restart", "late/go", "here/go"])
async def test_one_command_that_cannot_be_stored_harms_no_other(desk: Desk, command: str) -> None:
    """I8: nested as deeply as a payload may be, or longer than a record; it is kept and answered, once."""
    desk.installed = None if command == "late/go" else desk.installed
    deep: Any = 0
    for _ in range(59):
        deep = {"d": deep}
    taker = Taker()
    async with desk.petal("here", taker.handle, commands=["here/go", "here/ok"]), desk.running():
        await desk.command(command, "deep", data=deep)
        await desk.command("here/ok", "ok")
        async with asyncio.timeout(5):
            while "ok" not in taker.got:
                await asyncio.sleep(0.005)


async def test_what_was_undecided_at_a_restart_is_decided_after_it(desk: Desk) -> None:
    """Petals were being loaded when the daemon was restarted: the command is no dead letter."""
    desk.installed = None
    async with desk.running(deadline=30):
        await desk.command("late/go", "1")
        async with asyncio.timeout(5):
            while (await desk.link.status(f"1@{dispatch.UNDECIDED}")).value == "unknown":
                await asyncio.sleep(0.005)
    desk.installed = frozenset()
    async with desk.running(deadline=30):
        assert (await desk.answer("1"))["error_code"] == "UNKNOWN_COMMAND"


async def test_a_command_that_came_twice_runs_once(desk: Desk) -> None:
    """S-211, I2: also when the dispatch was started anew in between."""
    taker = Taker()
    async with desk.petal("here", taker.handle, commands=["here/go"]):
        for _ in range(2):
            async with desk.running():
                await desk.command("here/go", "1", end="command")
                await desk.command("here/go", "last")
                async with asyncio.timeout(5):
                    while "last" not in taker.got:
                        await asyncio.sleep(0.005)
    assert taker.got == ["1", "last"]
    assert desk.ingress.duplicates == 2


async def test_a_built_in_command_is_acknowledged_and_answered_once(desk: Desk) -> None:
    """S-185, S-187: `restart` must not run again after the restart that it made."""
    async with desk.running():
        await desk.command("restart", "1", waitAck=True)
        assert (await desk.answer("1")) == {"status": "restarting"}
        await desk.command("fail", "2")
        told = await desk.answer("2")
        assert (told["error_code"], "no such thing" in told["error"]) == ("HANDLER_ERROR", True)
    async with desk.running():
        await desk.command("nobody/x", "3")
        await desk.answer("3")
    assert (len(desk.restarted), desk.acknowledged) == (1, ["1"])


async def test_who_waited_before_a_restart_is_answered_after_it(desk: Desk) -> None:
    """What is known of a command stands in the store, not in the process."""
    async with desk.running(deadline=60):
        await desk.command("here/go", "1")
        async with asyncio.timeout(5):
            while not await desk.link.call("HLEN", words.waiting_key(desk.link.keys)):
                await asyncio.sleep(0.005)

    async def breaks(_record: Record) -> None:
        raise HandlerError("it broke", error_code="BROKE")

    async with desk.running(deadline=60), desk.petal("here", breaks, commands=["here/go"]):
        assert (await desk.answer("1"))["error_code"] == "BROKE"
        async with asyncio.timeout(5):
            while await desk.link.call("HLEN", words.waiting_key(desk.link.keys)):
                await asyncio.sleep(0.005)


async def test_a_slow_petal_delays_no_other(desk: Desk) -> None:
    """S-210, C-15: 20 commands of a petal that stands still, then one of another's."""
    gate, quick = asyncio.Event(), Taker()

    async def slow(_record: Record) -> None:
        await gate.wait()

    async with (
        desk.petal("slow", slow, commands=["slow/go"]),
        desk.petal("here", quick.handle, commands=["here/go"]),
        desk.running(),
    ):
        for number in range(20):
            await desk.command("slow/go", f"s{number}")
        await desk.command("here/go", "1")
        async with asyncio.timeout(5):
            while quick.got != ["1"]:
                await asyncio.sleep(0.005)
        gate.set()
