"""Topic filters: after every connect, eight at a time, new ones before old ones go, and refused ones are told."""

from __future__ import annotations

from itertools import pairwise

from petalbus.handlers.mqtt.transport import Identity, Phase

from support.mqtt_link import link, until
from support.odd_broker import OddBroker

ME = Identity(device="device-1", client_id="drone-1")


async def test_eight_at_a_time_after_every_connect(odd: OddBroker) -> None:
    """S-196: also when the broker says that it remembers the session; retained messages come once then."""
    names = [f"f/{n}" for n in range(20)]
    odd.session_present = True
    async with link(odd.port, names) as running:
        await running.connected()
        assert [len(batch) for batch in odd.subscribes] == [8, 8, 4]
        odd.drop()
        await until(lambda: len(odd.subscribes) == 6, lambda: f"{odd.subscribes}")
        await running.connected()
        assert [name for batch in odd.subscribes[3:] for name in batch] == names
        assert odd.options == [1] * 20 + [0x11] * 20
        odd.session_present = False
        odd.drop()
        await until(lambda: len(odd.subscribes) == 9, lambda: f"{odd.subscribes}")
        assert set(odd.options[40:]) == {1}


async def test_new_ones_come_before_old_ones_go(odd: OddBroker) -> None:
    """A changed organisation: no moment without any; the same wish again does nothing."""
    async with link(odd.port, ["org/a/x", "both"]) as running:
        await running.connected()
        running.transport.want({"org/b/x": 1, "both": 1}, ME)
        await until(lambda: odd.unsubscribes, lambda: "the old one goes")
        assert odd.subscribes == [["org/a/x", "both"], ["org/b/x"]]
        assert odd.unsubscribes == [["org/a/x"]]
        assert odd.order == ["subscribe", "subscribe", "unsubscribe"]
        running.transport.want({"org/b/x": 1, "both": 1}, ME)
        running.transport.want({"org/b/x": 0, "both": 1}, ME)
        await until(lambda: len(odd.subscribes) == 3, lambda: f"{odd.subscribes}")
        assert odd.subscribes[2] == ["org/b/x"], "another quality of service is asked for"
        assert running.transport.describe()["filters"] == {"org/b/x": 0, "both": 1}


async def test_wishes_made_while_offline_are_followed_after_it(odd: OddBroker) -> None:
    """The organisation changes while there is no connection: its old filters are given up in the kept session."""
    odd.session_present = True
    async with link(odd.port, ["org/a/x"]) as running:
        await running.connected()
        odd.connack_codes = [0x88]
        odd.drop()
        await running.problem("server-busy")
        running.transport.want({"org/b/x": 1}, ME)
        await until(lambda: odd.unsubscribes == [["org/a/x"]], lambda: f"{odd.unsubscribes}")
        assert odd.subscribes == [["org/a/x"], ["org/b/x"]]


async def test_a_refused_filter_is_told_and_the_others_work(odd: OddBroker) -> None:
    """SUBACK with a reason code of 0x80 or more: connected, with a problem; gone when it is not wanted any more."""
    odd.suback = lambda name: 0x87 if name == "no" else 1
    async with link(odd.port, ["yes", "no"]) as running:
        state = await running.problem("filter-refused", Phase.CONNECTED)
        assert "no (0x87)" in state.reason
        assert running.transport.describe()["filters_refused"] == {"no": 0x87}
        odd.deliver("yes", b"1", 1)
        await until(lambda: running.store.payloads == [b"1"], lambda: "it works")
        running.transport.want({"yes": 1}, ME)
        await until(lambda: running.transport.state.problem is None, lambda: f"{running.transport.state}")


async def test_a_filter_that_ends_the_connection_is_found(odd: OddBroker) -> None:
    """A broker that ends the connection instead of refusing: one by one, then without that one."""
    odd.close_on = {"f/3"}
    async with link(odd.port, [f"f/{n}" for n in range(6)]) as running:
        state = await running.problem("filter-refused", Phase.CONNECTED)
        assert "f/3 (0x87)" in state.reason
        assert len(odd.greetings) <= 5
        assert set(running.transport.describe()["filters"]) == {"f/0", "f/1", "f/2", "f/4", "f/5"}


async def test_more_than_fifty_is_a_clear_state(odd: OddBroker) -> None:
    """The first fifty work and the rest is named. A change with all places taken frees only what it must first."""
    async with link(odd.port, [f"f/{n}" for n in range(53)]) as running:
        state = await running.problem("too-many-filters", Phase.CONNECTED)
        assert "left out: f/50, f/51, f/52" in state.reason
        assert sum(map(len, odd.subscribes)) == 50
        odd.order.clear()
        running.transport.want({f"f/{n}": 1 for n in range(2, 52)}, ME)
        await until(lambda: running.transport.state.problem is None, lambda: f"{running.transport.state}")
        assert odd.order == ["unsubscribe", "subscribe"]
        assert odd.unsubscribes == [["f/0", "f/1"]]


async def test_what_is_no_filter_never_leaves(odd: OddBroker) -> None:
    """A topic with None in it, or a wildcard where none may be, would end the connection: it is refused here."""
    wrong = ["org/None/device/1/command", "a/#/b", "a+/b", "", "a\0b"]
    async with link(odd.port, [*wrong, "org/+/x/#"]) as running:
        await running.problem("filter-refused", Phase.CONNECTED)
        assert odd.subscribes == [["org/+/x/#"]]
        assert set(running.transport.describe()["filters_refused"]) == set(wrong)


async def test_a_broker_that_does_not_answer_a_subscribe_is_left_by_its_silence(odd: OddBroker) -> None:
    """Never connected, then: nothing is told to be connected before the filters are in place."""
    async with link(odd.port, ["a"], keepalive=1) as running:
        await running.connected()
        odd.silent = True
        running.transport.want({"a": 1, "b": 1}, ME)
        await running.problem("timeout")
        odd.silent = False
        await until(lambda: odd.subscribes[-1] == ["a", "b"], lambda: f"{odd.subscribes}")
        await running.connected()
        phases = [one.phase for one in running.store.states]
        assert all(pair != (Phase.WAITING, Phase.CONNECTED) for pair in pairwise(phases))
