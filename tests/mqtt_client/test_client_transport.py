"""The transport over the client program's HTTP API: absent, gone, slow, refusing, forgetting."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mqtt_client.conftest import BASE, FILTERS, IDENTITY, Link, RunLink, outgoing, until
from petalbus.handlers.mqtt.client.api import publication
from petalbus.handlers.mqtt.client.callbacks import Callbacks
from petalbus.handlers.mqtt.client.refusals import Refusals
from petalbus.handlers.mqtt.options import ClientOptions
from petalbus.handlers.mqtt.transport import Identity, LinkLost, Outgoing, Phase, PublishRefused

from support.ts_client import TsClient


def numbers(client: TsClient, end: str = "response") -> list[int]:
    """What was published to a topic, each once, in the order of its first time."""
    told = [body["payload"]["n"] for body in client.published if body["topic"] == f"{BASE}/{end}"]
    return list(dict.fromkeys(told))


async def test_it_subscribes_and_publishes(client: TsClient, run_link: RunLink) -> None:
    """S-160, S-162, S-163: filters with our address for callbacks; messages as the documented bodies; success is 0."""
    link = await run_link(callback_url="http://localhost:9000/mqtt-callback/callback")
    await link.connected()
    assert client.subscriptions == dict.fromkeys(FILTERS, "http://localhost:9000/mqtt-callback/callback")
    await link.send(outgoing(1))
    body = client.published[0]
    assert body == {
        "topic": f"{BASE}/response",
        "payload": {"n": 1, "deviceId": "Instance-m1"},
        "qos": 1,
        "callbackUrl": "http://localhost:9000/mqtt-callback/callback",
    }
    told = link.transport.describe()
    assert told["published"] == 1
    assert told["round_trip_ms"] > 0
    assert (told["in_flight"], told["reconnects"]) == (0, 0)


async def test_absent_at_boot(client: TsClient, run_link: RunLink) -> None:
    """Nobody listens: a clear state, no message is taken, few attempts; it is connected soon after it comes."""
    await client.stop()
    link = await run_link()
    await until(lambda: link.taker.states)
    state = link.taker.states[-1]
    assert (state.phase, state.problem) == (Phase.WAITING, "client_absent")
    assert "nothing listens" in state.reason
    assert "started?" in state.reason
    with pytest.raises(LinkLost):
        await link.transport.submit(outgoing(0))
    sending = asyncio.create_task(link.send(*map(outgoing, range(5))))
    await asyncio.sleep(0.3)
    assert len(link.taker.states) == 1, "a state that stays is told once"
    await client.start()
    await asyncio.wait_for(sending, 10)
    assert numbers(client) == [0, 1, 2, 3, 4]


async def test_gone_for_a_while(client: TsClient, run_link: RunLink) -> None:
    """It is killed in the middle of 300 messages and stays away: each arrives, the order of each topic is kept."""
    link = await run_link()
    await link.connected()
    client.dies_after = 100
    ends = ("response", "command/web", "telemetry")
    sending = asyncio.create_task(link.send(*(outgoing(n, ends[n % 3]) for n in range(300))))
    await until(lambda: link.transport.state.problem == "client_absent")
    await asyncio.sleep(0.5)
    assert not client.subscriptions
    await client.start()
    await asyncio.wait_for(sending, 20)
    for place, end in enumerate(ends):
        assert numbers(client, end) == list(range(place, 300, 3))
    assert client.subscriptions.keys() == FILTERS.keys()
    assert link.transport.describe()["reconnects"] == 1
    # what had not been answered came twice: its sender cannot know better, its messageId tells
    assert 300 <= len(client.published) <= 308


async def test_one_failed_probe(client: TsClient, run_link: RunLink) -> None:
    """One failed probe: every filter is told again, what is being published goes on, nothing is lost."""
    link = await run_link()
    await link.connected()
    subscribed = client.count("/subscribe")
    client.delay = 0.002
    sending = asyncio.create_task(link.send(*map(outgoing, range(150))))
    client.failing_probes = 1
    await until(lambda: any(state.problem == "client_unhealthy" for state in link.taker.states))
    assert next(state.code for state in link.taker.states if state.problem == "client_unhealthy") == 503
    await asyncio.wait_for(sending, 10)
    assert numbers(client) == list(range(150))
    assert client.count("/subscribe") == subscribed + 3


@pytest.mark.parametrize("answer", [(500, {"error": "broker offline"}), (200, {"success": False}), (200, b"oops")])
async def test_what_was_not_done_is_done_later(client: TsClient, run_link: RunLink, answer: tuple[int, Any]) -> None:
    """500, success false, nonsense: no success is told, nothing is lost, the attempts get further apart."""
    link = await run_link(retry_first=0.05, retry_most=0.4)
    await link.connected()
    client.judge = lambda _body: answer
    sending = asyncio.create_task(link.send(*map(outgoing, range(20))))
    await until(lambda: link.transport.state.problem == "publish_failed")
    assert link.transport.state.code == answer[0]
    began = client.count("/publish")
    await asyncio.sleep(1.2)
    assert client.count("/publish") - began <= 6, "no busy loop"
    assert not sending.done()
    client.judge = lambda _body: None
    await asyncio.wait_for(sending, 10)
    assert numbers(client) == list(range(20))


async def test_a_message_that_is_refused(client: TsClient, run_link: RunLink) -> None:
    """400: never again, with the code and the text; the link stays, and the next one passes. 404 is no refusal."""
    link = await run_link()
    await link.connected()
    client.judge = lambda body: (400, {"error": "topic not allowed"}) if body["topic"].endswith("secret") else None
    with pytest.raises(PublishRefused, match="topic not allowed") as refused:
        await link.transport.submit(outgoing(1, "secret"))
    assert refused.value.code == 400
    await link.send(outgoing(2))
    assert link.transport.state.connected
    client.judge = lambda _body: (404, {"error": "Cannot POST /publish"})
    with pytest.raises(LinkLost, match="Cannot POST"):
        await link.transport.submit(outgoing(3))


async def test_slow_answers(client: TsClient, run_link: RunLink) -> None:
    """A topic's messages wait for each other, topics do not, and no more are on their way than were agreed."""
    link = await run_link()
    await link.connected()
    client.delay = 0.02
    began = time.monotonic()
    await link.send(*(outgoing(n, f"t{n % 20}") for n in range(100)))
    took = time.monotonic() - began
    assert all(numbers(client, f"t{place}") == list(range(place, 100, 20)) for place in range(20))
    assert client.most_at_once == 8
    assert took < 100 * 0.02


async def test_a_publication_without_an_answer(client: TsClient, run_link: RunLink) -> None:
    """It hangs: within the time allowed the link is looked at again, and the message comes again."""
    link = await run_link(request_timeout=0.2)
    await link.connected()
    client.delay = 5.0
    with pytest.raises(LinkLost, match="no answer to POST /publish within"):
        await link.transport.submit(outgoing(1))
    client.delay = 0.0
    await asyncio.wait_for(link.send(outgoing(1)), 10)
    assert numbers(client) == [1]


async def test_a_restart_between_two_probes_is_noticed(client: TsClient, run_link: RunLink) -> None:
    """Started again at once, it has forgotten everything: it is told again although no probe and no message failed."""
    link = await run_link(probe_interval=60)
    await link.connected()
    await asyncio.sleep(0.05)
    await client.restart()
    await until(lambda: client.subscriptions.keys() == FILTERS.keys())
    assert link.transport.describe()["reconnects"] <= 1


async def test_filters_are_told_again_now_and_then(client: TsClient, run_link: RunLink) -> None:
    """Whatever it forgot, it is told every now and then; that is no new connection."""
    link = await run_link(resubscribe=0.2, probe_interval=60)
    await link.connected()
    client.subscriptions.clear()
    await until(lambda: client.subscriptions.keys() == FILTERS.keys())
    assert link.transport.describe()["reconnects"] == 0


async def test_wishes_are_followed(client: TsClient, run_link: RunLink) -> None:
    """S-171: another organisation: its filters are in place before the old ones go; the state is told again."""
    link = await run_link()
    await link.connected()
    told = len(link.taker.states)
    new = {name.replace("ORG1", "ORG2"): 1 for name in FILTERS}
    link.transport.want(new, Identity("ORG2", "Instance-m1"))
    await until(lambda: client.subscriptions.keys() == new.keys() and len(link.taker.states) > told)
    paths = [(path, body["topic"]) for path, body in client.calls if path in ("/subscribe", "/unsubscribe")][3:]
    assert [path for path, _ in paths] == ["/subscribe"] * 3 + ["/unsubscribe"] * 3
    assert link.taker.states[-1].connected
    link.transport.want({}, Identity())
    await until(lambda: not client.subscriptions)


async def test_before_we_know_which_device_this_is_nothing_is_taken(client: TsClient, run_link: RunLink) -> None:
    """S-164: a stop would be nobody's: it is to come again."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"topic": "a/b", "payload": {}}'

    link = await run_link()
    await link.connected()
    link.transport.want({}, Identity("ORG1", None, "thing"))
    take = link.transport.callbacks.take
    reply = await take(pieces(), peer="127.0.0.1", secret=None)
    assert (reply.status, reply.body["error"]) == (503, "no_identity")
    link.transport.want(FILTERS, IDENTITY)
    assert (await take(pieces(), peer="127.0.0.1", secret=None)).status == 200


async def test_a_filter_that_is_refused(client: TsClient, run_link: RunLink) -> None:
    """The others work; the state says which, why and with which code; it is tried again until it is taken."""
    name = f"{BASE}/command"
    client.refused_filters[name] = (403, {"success": False, "error": "policy"})
    link = await run_link()
    await link.connected()
    state = link.transport.state
    assert (state.problem, state.code) == ("subscription_refused", 403)
    assert name in state.reason
    assert "policy" in state.reason
    await link.send(outgoing(1))
    client.refused_filters.clear()
    await until(lambda: name in client.subscriptions and link.transport.state.problem is None)


async def test_all_filters_refused_is_no_connection(client: TsClient, run_link: RunLink) -> None:
    """It answers, and is not connected to the broker itself: we are not, either."""
    client.refused_filters = dict.fromkeys(FILTERS, (500, {"success": False, "error": "not connected"}))
    link = await run_link()
    await until(lambda: link.transport.state.problem == "subscriptions_refused")
    assert not link.transport.state.connected
    client.refused_filters = {}
    await link.connected()


async def test_stopping_unsubscribes(client: TsClient, run_link: RunLink) -> None:
    """S-199: at the end no filter stays, nothing is taken any more, and what was on its way is not confirmed."""
    callbacks = Callbacks(ClientOptions())
    link = await run_link(callbacks=callbacks)
    await link.connected()
    client.delay = 5.0
    future = link.transport.submit(outgoing(1))
    await until(lambda: client.at_once)
    link.running.cancel()
    await asyncio.wait([link.running], timeout=5)
    assert isinstance(future.exception(), LinkLost)
    assert not client.subscriptions
    assert callbacks.receiver is None
    assert link.transport.state.phase is Phase.OFF


async def test_without_callbacks(client: TsClient, run_link: RunLink) -> None:
    """S-166: with callbacks switched off nothing is subscribed, and publishing works."""
    link = await run_link(enable_callbacks=False)
    await link.connected()
    await link.send(outgoing(1))
    assert client.count("/subscribe") == 0
    assert client.published[0]["callbackUrl"] is None


async def test_the_secret_is_in_the_address(client: TsClient, run_link: RunLink) -> None:
    """The client program needs to know nothing of the secret: it calls the address that it was given."""
    link = await run_link(secret="a b&c", callback_url="http://localhost:9000/callback")
    await link.connected()
    assert set(client.subscriptions.values()) == {"http://localhost:9000/callback?secret=a%20b%26c"}
    assert "a b&c" not in repr(link.transport._options)


async def test_a_message_that_never_passes_does_not_stop_the_others(client: TsClient, run_link: RunLink) -> None:
    """One that is answered 500 again and again while others pass is given up, with the reason; the others arrive."""
    link = await run_link()
    await link.connected()
    client.judge = lambda body: (500, {"error": "too odd"}) if body["topic"].endswith("odd") else None
    passed = asyncio.create_task(link.send(*(outgoing(n, f"t{n % 4}") for n in range(60))))
    with pytest.raises(PublishRefused, match="too odd"):
        await asyncio.wait_for(_forever(link, outgoing(1, "odd")), 10)
    await asyncio.wait_for(passed, 10)


async def _forever(link: Link, message: Outgoing) -> None:
    number = 0
    while True:
        number += 1
        others = asyncio.create_task(link.send(outgoing(number, "other")))
        await link.transport.room()
        try:
            await link.transport.submit(message)
        except LinkLost:
            await others


def test_nothing_is_given_up_while_nothing_passes() -> None:
    """The broker is away for long: the same answers, and no message is given up."""
    refusals = Refusals()
    for _ in range(50):
        refusals.refused("a", "500", 500)
        refusals.refused("b", "500", 500)
    for number in range(3):
        refusals.done(f"other {number}")
    with pytest.raises(PublishRefused, match="51 times"):
        refusals.refused("a", "500", 500)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b'{"a": 1.50, "deviceId": "x"}', b'{"a": 1.50, "deviceId": "x"}'),
        (b'{"a":1}', b'{"a":1,"deviceId":"Instance-m1"}'),
        (b"[1,2]", b"[1,2]"),
        (b"null", b"null"),
        (b"plain text", b'"plain text"'),
        (b"", b'""'),
    ],
)
def test_payloads(raw: bytes, told: bytes) -> None:
    """JSON goes as JSON, as it was written; an object without deviceId gets ours; the rest as text."""
    body = publication(Outgoing("1", "t", raw), "Instance-m1", None)
    assert body == b'{"topic":"t","payload":%b,"qos":1,"callbackUrl":null}' % told
    with pytest.raises(PublishRefused, match="neither"):
        publication(Outgoing("1", "t", b"\xff\x00"), "Instance-m1", None)


def test_nothing_heavy_is_loaded_where_no_client_program_is() -> None:
    """S-159: a daemon without one stays small: no HTTP library is loaded before somebody listens."""
    script = (
        "import asyncio, sys\n"
        "from petalbus.handlers.mqtt.client.transport import ClientTransport\n"
        "from petalbus.handlers.mqtt.options import ClientOptions\n"
        "class Taker:\n"
        "    def link_changed(self, state): print(state.problem, state.connected, flush=True)\n"
        "async def main():\n"
        "    transport = ClientTransport(ClientOptions(host='127.0.0.1', port=1, retry_first=0.01))\n"
        "    try:\n"
        "        await asyncio.wait_for(transport.run(Taker()), 0.3)\n"
        "    except TimeoutError: pass\n"
        "asyncio.run(main())\n"
        "print([name for name in ('httpx', 'h11', 'fastapi', 'starlette', 'uvicorn') if name in sys.modules])\n"
    )
    words = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    start = [sys.executable, "-c", script]
    done = subprocess.run(start, capture_output=True, text=True, timeout=30, check=False, env=words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "client_absent False"
    assert done.stdout.split("\n")[-2] == "[]"


async def test_identity_may_be_unknown(client: TsClient, run_link: RunLink) -> None:
    """Nothing is wanted before the organisation is known; the link is up, and follows when it is."""
    link = await run_link(filters={})
    await link.connected()
    assert client.count("/subscribe") == 0
    link.transport.want(FILTERS, IDENTITY)
    await until(lambda: client.subscriptions.keys() == FILTERS.keys())
