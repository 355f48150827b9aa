"""The ASGI app of one petal: its routes, websockets and files. The same in the daemon and in a process of its own."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from petalbus.daemon.http import json
from petalbus.daemon.http.answers import App, Message, Receive, Scope, Send, refuse, request_id
from petalbus.daemon.http.errors import BODY, Body, Refused, answer_errors
from petalbus.daemon.http.files import NoFolder, static_app
from petalbus.daemon.http.handlers import Runner, TolerantJSONResponse, shapeless
from petalbus.daemon.http.options import HttpOptions
from petalbus.daemon.http.schema import petal_schema
from petalbus.petals.actions import RouteAction, route_actions
from petalbus.petals.exits import contained

_OWN_OPTIONS: Final = ("timeout", "max_body", "response_model")
_FRAMEWORK: Final = ("starlette.", "fastapi.", "petalbus.daemon.http.")
_DISCONNECTS: Final = ("ClientGone", "ClientDisconnected", "ClientDisconnect", "WebSocketDisconnect")

log: Final = logging.getLogger(__name__)


def petal_app(petal: object, *, options: HttpOptions | None = None) -> PetalApp:
    """Build the app of a started petal. Takes milliseconds a route: call it in a thread."""
    return PetalApp(petal, options or HttpOptions())


class _Route(APIRoute):
    """A route that may allow a larger body than the others."""

    body_limit: int | None = None

    def get_route_handler(self) -> Callable[[Request], Any]:
        """The framework's handler, with the limit set before it reads anything."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if self.body_limit is not None and BODY in request.scope:
                request.scope[BODY].limit = self.body_limit
            response: Response = await handler(request)
            return response

        return handle


class PetalApp:
    """Takes whole paths, ``/petals/<name>...`` and ``/static/<name>...``."""

    def __init__(self, petal: object, options: HttpOptions) -> None:
        self.name = str(getattr(petal, "name", ""))
        self.problems: list[str] = []
        """What is wrong with single routes; the others work."""
        self._options = options
        self._prefix = f"/petals/{self.name}"
        self._static_prefix = f"/static/{self.name}"
        self._runner = Runner(timeout=options.handler_timeout, threads=options.petal_threads)
        self._open = 0
        self._counts = {"busy": 0, "failed": 0, "client_errors": 0}
        self._schema: dict[str, Any] | None = None
        self._schema_guard = threading.Lock()
        self.app = self._framework(petal)
        self._static = self._files(petal)
        self.routes = _ordered(route_actions(petal))
        for action in self.routes:
            self._add(action)
        self.app.middleware_stack = self.app.build_middleware_stack()  # now, not on the loop with the first request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or serve one websocket."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http":
            if self._open >= self._options.petal_requests:
                self._counts["busy"] += 1
                text = f"petal {self.name!r} is working on {self._open} requests, and takes no more"
                retry = [(b"retry-after", b"1")]
                await refuse(scope, send, 503, "too_many_requests", text, headers=retry, petal=self.name)
                return
            self._open += 1
            try:
                await self._request(scope, receive, send)
            finally:
                self._open -= 1

    def openapi(self) -> Mapping[str, Any]:
        """Its description, made once. Takes a while: call it in a thread."""
        with self._schema_guard:
            if self._schema is None:
                self._schema = petal_schema(self.app, self.name)
            return self._schema

    def statistics(self) -> dict[str, Any]:
        """Counters, and what is wrong with single routes."""
        return {
            **self._counts,
            "timeouts": self._runner.timeouts,
            "in_threads": self._runner.in_threads,
            "routes": len(self.routes),
            "problems": list(self.problems),
        }

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == f"{self._prefix}/.openapi":
            described = await asyncio.to_thread(self.openapi)
            await Response(await json.encode_large(described), media_type="application/json")(scope, receive, send)
            return
        app, scope = self._inside(scope)
        if BODY not in scope:  # in a process of its own there is no guard before us
            body = scope[BODY] = Body(scope, receive, limit=self._options.body_limit)
            receive = body.receive

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start" and 400 <= message["status"] < 500:
                self._counts["client_errors"] += 1
            await send(message)

        try:
            with contained():  # websockets and streams; what handlers raise was answered inside
                await app(scope, receive, counted)
        except Exception as error:  # noqa: BLE001  # a petal's code raises whatever it likes
            if type(error).__name__ in _DISCONNECTS:
                return
            # the answer is sent, or can only be cut off: the log has the rest
            self._failed(scope, error)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        app, scope = self._inside(scope)
        accepted = closed = False

        async def watched(message: Message) -> None:
            nonlocal accepted, closed
            accepted = accepted or message["type"] == "websocket.accept"
            closed = closed or message["type"] == "websocket.close"
            await send(message)

        try:
            with contained():
                await app(scope, receive, watched)
        except Exception as error:  # noqa: BLE001  # as above
            if type(error).__name__ in _DISCONNECTS or isinstance(error, OSError):
                return
            self._failed(scope, error)
            if not accepted:
                await refuse(scope, send, 500, "handler_failed", "Internal Server Error", petal=self.name)
            elif not closed:
                await send({"type": "websocket.close", "code": 1011, "reason": "the petal's handler failed"})

    def _inside(self, scope: Scope) -> tuple[App, Scope]:
        path = scope["path"]
        if path.startswith(self._static_prefix) and self._static is not None:
            return self._static, {**scope, "root_path": scope.get("root_path", "") + self._static_prefix}
        return self.app, {**scope, "root_path": scope.get("root_path", "") + self._prefix}

    def _failed(self, scope: Scope, error: Exception) -> None:
        self._counts["failed"] += 1
        what = scope.get("method", "websocket")
        where = error.__traceback__
        while where is not None and where.tb_frame.f_globals.get("__name__", "").startswith(_FRAMEWORK):
            where = where.tb_next  # twenty frames that are the same every time
        shown = error.with_traceback(where or error.__traceback__)
        log.error(
            "petal %s: %s %s failed (request %s)", self.name, what, scope["path"], request_id(scope), exc_info=shown
        )

    def _framework(self, petal: object) -> FastAPI:
        app = FastAPI(
            title=self.name,
            version=str(getattr(petal, "version", "0")),
            description=inspect.getdoc(type(petal)) or "",
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            default_response_class=TolerantJSONResponse,
        )
        app.router.route_class = _Route
        answer_errors(app, petal=self.name)
        return app

    def _files(self, petal: object) -> App | None:
        try:
            files: Any = static_app(petal, root=self._options.root)
        except NoFolder as error:
            self._problem(str(error))
            return None
        return files  # type: ignore[no-any-return]  # StaticFiles is an ASGI app

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        log.error("petal %s: %s", self.name, text)

    def _add(self, action: RouteAction) -> None:
        if action.protocol not in ("http", "websocket"):
            self._problem(f"{action.path}: protocol {action.protocol!r} is unknown and ignored")
            return
        where = f"{action.method or 'websocket'} {action.path}"
        try:
            if action.protocol == "websocket":
                self._add_websocket(action)
            else:
                self._add_http(action)
        except Exception as error:  # noqa: BLE001  # whatever the framework says of one route: the others stand
            text = f"{where} cannot be served: {type(error).__name__}: {error}"
            self._problem(text)
            if action.protocol == "http" and action.method is not None:
                self.app.add_api_route(
                    action.path, _broken(text), methods=[action.method], description=text, name=_name(action)
                )

    def _add_http(self, action: RouteAction) -> None:
        known = inspect.signature(self.app.add_api_route).parameters
        unknown = [name for name in action.options if name not in known and name not in _OWN_OPTIONS]
        if unknown:
            self._problem(f"{action.method} {action.path}: options {', '.join(unknown)} are unknown and ignored")
        given = {name: value for name, value in action.options.items() if name in known}
        annotated, annotation = _returned(action.function)
        if "response_model" not in given and (not annotated or shapeless(annotation)):
            given["response_model"] = None
        given.setdefault("name", _name(action))
        given.setdefault("tags", [self.name])
        modelled = given.get("response_model", annotation) is not None
        endpoint = self._runner.endpoint(action.function, modelled=modelled, timeout=action.options.get("timeout"))
        methods = [str(action.method)]
        try:
            self.app.add_api_route(action.path, endpoint, methods=methods, **given)
        except Exception:
            if "response_model" in action.options or not annotated:
                raise
            # a return annotation that is no model: it is a note for readers, as in `-> dict | Response`
            plain = self._runner.endpoint(action.function, modelled=False, timeout=action.options.get("timeout"))
            self.app.add_api_route(action.path, plain, methods=methods, **{**given, "response_model": None})
        route = self.app.router.routes[-1]
        if isinstance(route, _Route):
            route.body_limit = action.options.get("max_body") or (
                self._options.upload_limit if _takes_files(action.function) else None
            )

    def _add_websocket(self, action: RouteAction) -> None:
        dependencies = action.options.get("dependencies")
        self.app.router.add_api_websocket_route(
            action.path, action.function, name=_name(action), dependencies=dependencies
        )


def _broken(text: str) -> Callable[[], Any]:
    async def broken() -> None:
        raise Refused(500, "route_unusable", text)

    return broken


def _name(action: RouteAction) -> str:
    given = action.options.get("name")
    function = action.function
    return str(given or getattr(function, "__name__", None) or type(function).__name__)


def _returned(function: Callable[..., Any]) -> tuple[bool, Any]:
    """Whether a function says what it returns, and what."""
    annotation = inspect.signature(function).return_annotation
    if isinstance(annotation, str):
        try:
            annotation = typing.get_type_hints(inspect.unwrap(function)).get("return", annotation)
        except Exception:  # noqa: BLE001  # names that exist for type checkers alone
            return True, annotation
    return annotation is not inspect.Signature.empty, annotation


def _takes_files(function: Callable[..., Any]) -> bool:
    try:
        hints = typing.get_type_hints(inspect.unwrap(function), include_extras=False)
    except Exception:  # noqa: BLE001  # names that exist for type checkers alone
        hints = dict(getattr(function, "__annotations__", {}))
    return any(_is_file(hint) for name, hint in hints.items() if name != "return")


def _is_file(hint: Any) -> bool:
    if isinstance(hint, type):
        return issubclass(hint, UploadFile)
    return any(_is_file(argument) for argument in typing.get_args(hint))


def _ordered(actions: list[RouteAction]) -> list[RouteAction]:
    """Fixed words of a path before parameters, so that ``/items/latest`` is not taken for an item's id."""

    def key(action: RouteAction) -> list[int]:
        return [2 if ":path}" in part else 1 if "{" in part else 0 for part in action.path.split("/")]

    return sorted(actions, key=key)
