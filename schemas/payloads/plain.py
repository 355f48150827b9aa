"""Validators that check a plain value against a payload model without building the model.

What is checked is a dict and what is wanted afterwards is the same dict, so the model instance would be made only to be
thrown away: measured, that is half of the time. The models stay the one place where the members are declared.
"""

from __future__ import annotations

from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Required, Union, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from typing_extensions import TypedDict  # pydantic brings it; on 3.11 it does not take typing's own

from petalbus.schemas.payloads.models import Payload


def plain_validator(model: type[Payload]) -> Callable[[Any], Any]:
    """A function that raises pydantic's ValidationError where the model would; what it returns is a copy."""
    return TypeAdapter(_as_typed_dict(model)).validator.validate_python


def _as_typed_dict(model: type[Payload]) -> Any:
    members = {name: _member(field) for name, field in model.model_fields.items()}
    make: Any = TypedDict  # the type checker takes only literals; this one is made at run time
    form = make(model.__name__, members, total=False)
    form.__pydantic_config__ = model.model_config
    return form


def _member(field: FieldInfo) -> Any:
    annotation = _translate(field.annotation)
    for rule in field.metadata:
        annotation = Annotated[annotation, rule]
    return Required[annotation] if field.is_required() else annotation


def _translate(annotation: Any) -> Any:
    """Replace models by their plain form wherever they stand in a union."""
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(_translate(member) for member in get_args(annotation))]  # noqa: UP007  # made at run time
    if isinstance(annotation, type) and issubclass(annotation, Payload):
        return _as_typed_dict(annotation)
    return annotation
