"""The addresses at which the client program brings messages, for whichever server serves them. Loads FastAPI."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from petalbus.handlers.mqtt.client.callbacks import Callbacks

SECRET_HEADER: Final = "X-PetalBus-Secret"  # noqa: S105  # a header's name
_EXAMPLE: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["topic", "payload"],
                    "properties": {
                        "topic": {"type": "string"},
                        "payload": {},
                        "timestamp": {"type": "string"},
                        "qos": {"type": "integer", "minimum": 0, "maximum": 2},
                    },
                }
            }
        },
    }
}


def callback_router(callbacks: Callbacks) -> APIRouter:
    """Both sets of addresses: ``/callback...`` and ``/mqtt-callback/...``."""
    router = APIRouter(tags=["mqtt callbacks"])

    async def callback(request: Request) -> JSONResponse:
        """Take a message from the client program: 200 only when it is stored; 503 asks to bring it again."""
        secret = request.headers.get(SECRET_HEADER) or request.query_params.get("secret")
        peer = request.client.host if request.client is not None else None
        try:
            reply = await callbacks.take(request.stream(), peer=peer, secret=secret)
        except ClientDisconnect:  # nobody is there to be answered
            return JSONResponse({"status": "error"}, 400)
        return JSONResponse(reply.body, reply.status, headers=dict(reply.headers))

    async def health() -> dict[str, Any]:
        """Whether what is brought would be taken."""
        return callbacks.health()

    async def stats() -> dict[str, Any]:
        """Counts of subscriptions and handlers."""
        return callbacks.stats()

    for path, name in (("/callback", "older"), ("/mqtt-callback/callback", "main")):
        router.add_api_route(
            path,
            callback,
            methods=["POST"],
            response_model=None,
            openapi_extra=_EXAMPLE,
            operation_id=f"mqtt_callback_{name}",
        )
    router.add_api_route("/callback/health", health, methods=["GET"], operation_id="mqtt_callback_health_older")
    router.add_api_route("/mqtt-callback/health", health, methods=["GET"], operation_id="mqtt_callback_health")
    router.add_api_route("/mqtt-callback/stats", stats, methods=["GET"], operation_id="mqtt_callback_stats")
    return router
