"""Typed payloads for handlers: a record's data as a pydantic model, or an answer that says what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from petalbus.daemon.bus.errors import HandlerError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from petalbus.schemas.record import Record

    M = TypeVar("M", bound=BaseModel)
else:
    M = TypeVar("M")


def parse(record: Record, model: type[M]) -> M:
    """The record's payload as ``model``.

    Raises HandlerError, so that the sender is answered with ``PAYLOAD_INVALID``, the ``field`` and what is wrong.
    """
    from pydantic import ValidationError  # noqa: PLC0415  # this module stays quick to import

    try:
        return model.model_validate(record.data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "data"
        problem = "is missing" if first["type"] == "missing" else first["msg"][0].lower() + first["msg"][1:]
        text = f"{record.type}: field {field!r} {problem}"
        raise HandlerError(text, error_code="PAYLOAD_INVALID", data={"field": field, "problem": problem}) from None
