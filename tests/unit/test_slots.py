"""Every key of a bus lies in one slot of a Redis Cluster: scripts and reads of several keys work there."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from petalbus.daemon.bus import channels
from petalbus.daemon.bus.keys import Keys
from petalbus.schemas.vocabulary import APP_PATTERN

NAMES = st.from_regex(re.compile(APP_PATTERN[:-1] + r"\Z"))


@given(bus=NAMES, app=NAMES, topic=NAMES)
def test_all_keys_of_a_bus_carry_its_hash_tag(bus: str, app: str, topic: str) -> None:
    """S-148: the part of a key between the first braces decides its slot (Redis Cluster specification)."""
    keys = Keys(bus)
    plain = [value for name, value in vars(keys).items() if isinstance(value, str) and name != "bus"]
    made = [*keys.inboxes(app).values(), keys.replies(app), keys.control(app), keys.dead(app), keys.status(app)]
    made += [keys.topic(topic), keys.form(topic), channels.marks(keys), channels.bridges(keys)]
    made += [channels.description(keys)]
    assert {key[key.index("{") + 1 : key.index("}")] for key in (*plain, *made)} == {bus}
