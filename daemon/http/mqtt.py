"""``/mqtt/...``: publishing and subscribing over HTTP, whichever way leads to the broker. Loads FastAPI.

POST /mqtt/publish -> inbox of the link (mqtt.publish); /mqtt/subscribe -> hash of wanted filters; the rest is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from petalbus.daemon.bus.errors import BusError
from petalbus.daemon.http.errors import BODY, Refused
from petalbus.handlers.mqtt import words
from petalbus.handlers.mqtt.limits import topic_problem
from petalbus.handlers.mqtt.options import EgressOptions
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.payloads import encode_json

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

MAX_BODY: Final = 1 << 20
"""Bytes of a request: a payload of 128 KiB, however it is escaped, and what is around it."""

GetBus = Callable[[], "Bus | None"]
"""Gives a started client of the bus; None while there is none."""

APP: Final = words.HTTP
"""Whose wish a filter is that was subscribed here."""

_PATIENCE: Final = 5.0
"""Seconds that the bus may take."""

_MAX_FILTER: Final = 256
_RETRY: Final = {"Retry-After": "1"}

Topic = Annotated[str, Field(min_length=1, description="topic, or filter with + and #")]


class Publish(BaseModel):
    """A message to be published."""

    topic: Annotated[str, Field(min_length=1, description="topic; no + and #")]
    payload: Annotated[Any, Field(description="any JSON; 128 KiB at most")]
    qos: Annotated[Literal[0, 1], Field(description="quality of service")] = 1
    retain: bool = False


class Subscription(BaseModel):
    """A topic or filter."""

    topic: Topic
    qos: Literal[0, 1] = 1


class _Bounded(APIRoute):
    """A route whose body is small."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]  # FastAPI says Coroutine
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            if (body := request.scope.get(BODY)) is not None:
                body.limit = min(body.limit, MAX_BODY)
            return await handle(request)

        return bounded


def mqtt_router(
    bus: GetBus,
    *,
    configuration: Mapping[str, Any] | None = None,
    machine: Callable[[], str | None] = lambda: None,
    callbacks: Callable[[], bool] | None = None,
    limits: EgressOptions | None = None,
) -> APIRouter:
    """The routes.

    ``configuration`` is shown in the status as it is; ``machine`` tells the machine's id, ``callbacks`` whether
    callbacks are taken.
    """
    router = APIRouter(prefix="/mqtt", tags=["mqtt"], route_class=_Bounded)
    _add_publishing(router, bus, limits or EgressOptions())
    _add_subscribing(router, bus)

    def about_us(told: dict[str, Any]) -> None:
        told["configuration"] = dict(configuration or {})
        told["device_info"]["robot_instance_id"] = machine()
        if callbacks is not None:
            told["connection"]["callback_server"] = told["connection"]["callback_router"] = callbacks()

    _add_reading(router, bus, about_us)
    return router


@asynccontextmanager
async def _open(bus: GetBus) -> AsyncIterator[Bus]:
    client = bus()
    if client is None:
        raise _away("the bus does not run now")
    try:
        async with asyncio.timeout(_PATIENCE):
            yield client
    except TimeoutError:
        raise _away(f"the bus did not answer within {_PATIENCE:g} s") from None
    except RecordInvalid as error:
        raise Refused(422, "invalid_message", str(error)) from None
    except BusError as error:
        raise _away(str(error)) from None


def _add_publishing(router: APIRouter, bus: GetBus, rules: EgressOptions) -> None:
    @router.post("/publish", response_model=None)
    async def publish(message: Publish) -> dict[str, Any]:
        """Have a message published: it is stored when this returns, and leaves when there is a connection."""
        if (problem := topic_problem(message.topic, rules)) is not None:
            raise Refused(422, "invalid_topic", problem)
        async with _open(bus) as client:
            size = len(encode_json(message.payload, under="payload"))
            if size > rules.max_payload:
                text = f"the payload has {size} bytes; {rules.max_payload} are allowed in one MQTT message"
                raise Refused(413, "payload_too_large", text)
            receipt = await client.send(words.APP if message.qos else words.TELEMETRY, words.PUBLISH, dict(message))
        return {"success": True, "status": "stored", "topic": message.topic, "id": receipt.id}


def _add_subscribing(router: APIRouter, bus: GetBus) -> None:
    @router.post("/subscribe", response_model=None)
    async def subscribe(wanted: Subscription) -> dict[str, Any]:
        """Have what arrives on a topic or filter brought here, until it is unsubscribed, also over restarts."""
        _check_filter(wanted.topic)
        field = words.filter_field(APP, wanted.topic)
        async with _open(bus) as client:
            added = await client.call("HSET", words.filters_key(client.keys), field, wanted.qos)
            await client.send(words.COMMANDS, words.FILTERS, {})
        return {"success": True, "topic": wanted.topic, "new": bool(added)}

    @router.post("/unsubscribe", response_model=None)
    async def unsubscribe(unwanted: Subscription) -> dict[str, Any]:
        """End that. What petals have subscribed themselves stays."""
        field = words.filter_field(APP, unwanted.topic)
        async with _open(bus) as client:
            gone = await client.call("HDEL", words.filters_key(client.keys), field)
            if not gone:
                text = f"{unwanted.topic!r} was not subscribed here; GET /mqtt/subscriptions shows what is, and by whom"
                raise Refused(404, "not_subscribed", text)
            await client.send(words.COMMANDS, words.FILTERS, {})
        return {"success": True, "topic": unwanted.topic}


def _add_reading(router: APIRouter, bus: GetBus, about_us: Callable[[dict[str, Any]], None]) -> None:
    @router.get("/subscriptions", response_model=None)
    async def subscriptions() -> dict[str, Any]:
        """Topics and patterns that are subscribed, by whom, and what the link follows by itself."""
        async with _open(bus) as client:
            wanted, link = await _wanted(client), await _link(client)
        names = sorted({*wanted, *_topics(link)})
        return {
            "topics": [name for name in names if not _is_pattern(name)],
            "patterns": [name for name in names if _is_pattern(name)],
            "subscribers": {name: sorted(apps) for name, apps in sorted(wanted.items())},
            "count": len(names),
        }

    @router.get("/status", response_model=None)
    async def status() -> dict[str, Any]:
        """How the link is, where it leads, what is subscribed, who we are."""
        async with _open(bus) as client:
            wanted, link = await _wanted(client), await _link(client)
            takers = await _hash(client, words.handlers_key(client.keys))
        told = _status(wanted, link, takers)
        about_us(told)
        return told


def _status(wanted: Mapping[str, list[str]], link: Mapping[str, str], takers: Mapping[str, str]) -> dict[str, Any]:
    connected = link.get("connected") == "1"
    topics = sorted({*wanted, *_topics(link)})
    handlers = {name: len(apps) for name, apps in sorted(wanted.items())}
    handlers |= {name: len(takers) for name in topics if words.is_command_topic(name)}
    named = {name: value for name, value in link.items() if name not in ("connected", "topics")}
    return {
        "status": "healthy" if connected else "unhealthy",
        "connection": {
            # of the client program only this is known where it is the way: the link is up when it answers
            "ts_client": connected,
            "callback_server": connected,
            "callback_router": connected,
            "connected": connected,
        },
        "configuration": {},
        "subscriptions": {"topics": topics, "handlers": handlers},
        "device_info": {"organization_id": link.get("organization") or None, "robot_instance_id": None},
        "link": named,
    }


def _check_filter(topic: str) -> None:
    """Raises Refused where it is no topic filter."""
    levels = topic.split("/")
    problem = None
    if "\0" in topic:
        problem = "it holds a zero"
    elif len(topic.encode(errors="surrogatepass")) > _MAX_FILTER:
        problem = f"it has more than {_MAX_FILTER} bytes"
    elif "#" in "".join(levels[:-1]) or ("#" in levels[-1] and levels[-1] != "#"):
        problem = "# stands for all levels that follow: it must be the whole last level"
    elif any("+" in level and level != "+" for level in levels):
        problem = "+ stands for one level: it must be a whole one"
    elif "*" in levels:
        problem = "* is no wildcard to a broker: use + for one level, a last # for all that follow"
    elif "None" in levels:
        problem = "a level is 'None': something was not known when it was made"
    if problem is not None:
        raise Refused(422, "invalid_filter", f"{topic[:_MAX_FILTER]!r} is no topic filter: {problem}")


def _is_pattern(name: str) -> bool:
    return any(level in ("+", "#", "*") for level in name.split("/"))


def _topics(link: Mapping[str, str]) -> list[str]:
    return [name for name in link.get("topics", "").split(",") if name]


async def _wanted(client: Bus) -> dict[str, list[str]]:
    """Filters, and the apps that want them."""
    found: dict[str, list[str]] = {}
    for field in await _hash(client, words.filters_key(client.keys)):
        app, _, name = field.partition("|")
        found.setdefault(name, []).append(app)
    return found


async def _link(client: Bus) -> dict[str, str]:
    return await _hash(client, words.link_key(client.keys))


async def _hash(client: Bus, key: str) -> dict[str, str]:
    items = words.hash_items(await client.call("HGETALL", key))
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in items}


def _away(text: str) -> Refused:
    return Refused(503, "bus_unavailable", f"it is not confirmed: {text}; try again", _RETRY)
