"""The cloud's end, as another program sees the broker: Eclipse paho, with a session that the broker keeps."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import orjson
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion


class Cloud:
    """Publishes with quality of service 1, and keeps all that it gets. Its callbacks run in paho's thread."""

    def __init__(self, port: int, *filters: str, name: str = "cloud") -> None:
        self.got: list[tuple[str, Any]] = []
        self.times: dict[str, float] = {}
        """When the first message about a command came (monotonic seconds)."""
        self.confirmed = 0
        self._filters = filters
        self._guard = threading.Lock()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=name, clean_session=False, protocol=paho.MQTTv311
        )
        self._client.max_queued_messages_set(0)
        self._client.max_inflight_messages_set(1000)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._connected
        self._client.on_message = self._message
        self._outbox: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        self._stopping = False
        self._news = threading.Condition()
        self._acknowledged = 0
        self._client.on_publish = self._published
        self._sender = threading.Thread(target=self._publish_all, name="cloud", daemon=True)
        self._ready = threading.Event()
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._port = port

    def start(self) -> None:
        """Connect, and wait until the filters are in place."""
        self._client.connect_async("127.0.0.1", self._port, keepalive=10)
        self._client.loop_start()
        assert self._ready.wait(10), "the broker has not confirmed the subscription"
        self._sender.start()

    def stop(self) -> None:
        """Leave; the session stays."""
        with self._news:
            self._stopping = True
            self._news.notify_all()
        self._outbox.put(None)
        if self._sender.is_alive():
            self._sender.join(5)
        self._client.disconnect()
        self._client.loop_stop()

    def publish_at_once(self, topic: str, message: Any) -> None:
        """Without waiting for earlier ones."""
        self._client.publish(topic, orjson.dumps(message), qos=1)

    def publish(self, topic: str, message: Any) -> None:
        """Sent after what was published before; sent again after a broken connection until the broker has it."""
        self._outbox.put((topic, orjson.dumps(message)))

    def _publish_all(self) -> None:
        # one at a time: with several under way paho lets some overtake others when the connection breaks
        while (one := self._outbox.get()) is not None:
            with self._news:
                self._client.publish(*one, qos=1)  # one that finds no connection goes out with the next
                self._news.wait_for(lambda: self._stopping or self._acknowledged > self.confirmed)
                self.confirmed += 1

    def messages(self, topic: str) -> list[Any]:
        """What came on a topic so far."""
        with self._guard:
            return [message for name, message in self.got if name == topic]

    def _connected(self, client: paho.Client, *_: Any) -> None:
        for name in self._filters:
            client.subscribe(name, qos=1)

    def _message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        body = orjson.loads(message.payload)
        with self._guard:
            self.got.append((message.topic, body))
            self.times.setdefault(str(body.get("messageId")), time.monotonic())

    def _published(self, *_: Any) -> None:
        with self._news:
            self._acknowledged += 1
            self._news.notify_all()

    def wait_confirmed(self, count: int, *, seconds: float) -> None:
        """Until the broker has confirmed so many."""
        until = time.monotonic() + seconds
        while self.confirmed < count:
            assert time.monotonic() < until, f"{self.confirmed} of {count} are confirmed"
            time.sleep(0.01)
