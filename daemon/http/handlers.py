"""Runs the methods of a petal for its routes: plain ones in threads, async ones on the loop, each within its time."""

from __future__ import annotations

import asyncio
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from petalbus.daemon.http import json
from petalbus.daemon.http.errors import Refused
from petalbus.daemon.runtime.own_thread import in_own_thread
from petalbus.petals.exits import contained


class Encoded(str):
    """A value that is JSON already: a text to the framework, which leaves it alone."""

    __slots__ = ("body",)
    body: bytes

    @classmethod
    def of(cls, body: bytes) -> Encoded:
        """Wrap it."""
        made = cls()
        made.body = body
        return made


class TolerantJSONResponse(JSONResponse):
    """JSON in which NaN is null, and so on: see ``petalbus.daemon.http.json``."""

    def render(self, content: Any) -> bytes:
        """The bytes of the content."""
        return content.body if isinstance(content, Encoded) else json.encode(content)


class Runner:
    """Runs the handlers of one petal."""

    def __init__(self, *, timeout: float, threads: int) -> None:
        self.timeouts = 0
        self.in_threads = 0
        self._timeout = timeout
        self._most_threads = threads
        self._threads: asyncio.Semaphore | None = None

    def endpoint(self, function: Callable[..., Any], *, modelled: bool, timeout: float | None) -> Callable[..., Any]:
        """What the framework calls. ``modelled``: the framework checks and encodes the result by a model of its own."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            return function  # the framework streams what it yields
        seconds = self._timeout if timeout is None else timeout
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004  # it is the method that may be a coroutine function
        )

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            try:
                async with asyncio.timeout(seconds) as within:
                    with contained():
                        if is_async:
                            result = await function(*args, **kwargs)
                        else:
                            result = await self._in_thread(functools.partial(function, *args, **kwargs))
            except TimeoutError:
                if not within.expired():
                    raise  # the handler's own
                self.timeouts += 1
                text = f"the handler did not answer within {seconds:g} s"
                raise Refused(504, "handler_timeout", text) from None
            if isinstance(result, Response):
                return result
            if modelled:
                return result if isinstance(result, BaseModel) else json.native(result)
            return Encoded.of(await json.encode_large(result))

        return call

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        """Run it in a thread, which goes on when nobody waits for it any more, and counts until it ends."""
        if self._threads is None:
            self._threads = asyncio.Semaphore(self._most_threads)
        await self._threads.acquire()
        self.in_threads += 1
        return await in_own_thread(call, name="petal-http", ended=self._thread_ended)

    def _thread_ended(self) -> None:
        assert self._threads is not None
        self._threads.release()
        self.in_threads -= 1


def shapeless(annotation: Any) -> bool:
    """True when a return annotation says nothing that a model could check: Any, dict, list of dict, and the like."""
    if annotation in (None, Any, object, dict, list, tuple, inspect.Parameter.empty, type(None)):
        return True
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is dict:
        return arguments[0] in (str, Any) and shapeless(arguments[1])
    if origin in (list, typing.Union, types.UnionType):
        return all(shapeless(argument) for argument in arguments)
    return False
