"""The id window: the append script on every real server against a few lines of Python that say what it must do."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry

from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.bus.scripts import load

from support.servers import RealServer

WINDOW = 4
IDS = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h", "!before", "before"])
BATCH = st.lists(IDS, min_size=1, max_size=5)
_examples = itertools.count()

REAL = settings(
    max_examples=50,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the connection is shared on purpose, keys are not
)


@dataclass
class Window:
    """What the script must do: two generations, the older one forgotten as a whole when the newer one is full."""

    current: dict[str, bytes] = field(default_factory=dict)
    previous: dict[str, bytes] = field(default_factory=dict)
    mark: int = 0  # the field that says "there is a previous one" takes the room of one id

    def rotate(self) -> None:
        if len(self.current) + self.mark >= WINDOW:
            self.current, self.previous, self.mark = {}, self.current, 1

    def known(self, message_id: str) -> bytes | None:
        return self.current.get(message_id, self.previous.get(message_id))


@pytest.fixture
def link(redis_server: RealServer) -> Iterator[redis.Redis]:
    """One synchronous connection."""
    options = {"retry": Retry(NoBackoff(), 0), "socket_timeout": 10.0, "protocol": 2, "driver_info": None}
    with redis.Redis(unix_socket_path=redis_server.socket_path, **options) as client:
        yield client


def append(link: redis.Redis, keys: Keys, ids: list[str], *, window: int = WINDOW, limit: int = 1000) -> list[bytes]:
    """One call of the script, as the outbox makes it; every record has one field item pair, its id."""
    script = load("append")
    args: list[str | bytes | int] = [window, limit, len(ids)]
    for one in ids:
        args += [one, "|2|app|source", 2, "id", one]
    stream = keys.inbox("app", 2)
    answer = link.execute_command("EVAL", script.text, 3, stream, keys.ids, keys.ids_before, *args)
    assert isinstance(answer, list)
    return answer


@REAL
@given(batches=st.lists(BATCH, max_size=25))
def test_an_id_is_stored_once_while_the_window_remembers_it(link: redis.Redis, batches: list[list[str]]) -> None:
    """I2: a repetition gets the first one's stream id, however batches and rotations fall; nothing else is refused."""
    keys = Keys(f"w{next(_examples)}")
    window, stored = Window(), 0
    for batch in batches:
        window.rotate()  # the script looks at the size once a call
        answers = append(link, keys, batch)
        assert len(answers) == len(batch)
        for message_id, answer in zip(batch, answers, strict=True):
            known = window.known(message_id)
            if known is not None:
                assert answer == b"q" + known + b"|2|app|source"
            else:
                assert answer[:1].isdigit(), f"{message_id!r} is new to the window, and got {answer!r}"
                window.current[message_id] = answer
                stored += 1
    assert link.xlen(keys.inbox("app", 2)) == stored
    link.delete(keys.inbox("app", 2), keys.ids, keys.ids_before)


def test_the_window_keeps_at_least_what_it_promises_and_at_most_two_generations(link: redis.Redis) -> None:
    """I2: the last ids are always known, as many as a generation holds; memory is bounded by two generations
    and one batch.
    """
    keys = Keys(f"w{next(_examples)}")
    for number in range(100):
        append(link, keys, [f"n{number}"])
        first = max(0, number - WINDOW + 2)
        answers = append(link, keys, [f"n{one}" for one in range(first, number + 1)])
        assert all(answer.startswith(b"q") for answer in answers)
        assert link.hlen(keys.ids) + link.hlen(keys.ids_before) <= 2 * (WINDOW + 2)


def test_a_repetition_is_answered_although_the_queue_is_full(link: redis.Redis) -> None:
    """I2: the answer to a stored record was lost; meanwhile the inbox filled up. It is a duplicate, not refused."""
    keys = Keys(f"w{next(_examples)}")
    (first,) = append(link, keys, ["a"], limit=2)
    append(link, keys, ["b"], limit=2)
    assert append(link, keys, ["a"], limit=2) == [b"q" + first + b"|2|app|source"]


def test_a_stream_id_is_never_reused_and_always_grows(link: redis.Redis) -> None:
    """I3: ids grow in the order of the batch, also within one millisecond."""
    keys = Keys(f"w{next(_examples)}")
    answers = append(link, keys, [f"n{number}" for number in range(100)], window=1000)
    order = [tuple(map(int, answer.split(b"-"))) for answer in answers]
    assert order == sorted(set(order))
