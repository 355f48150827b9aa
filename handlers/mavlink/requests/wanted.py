"""What the ``mavlink.*`` request records may ask for, checked before anything is sent.

Everything is bounded; an unknown member is refused rather than ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from petalbus.handlers.mavlink.errors import OrderInvalid
from petalbus.handlers.mavlink.flight.commands import Command
from petalbus.handlers.mavlink.flight.reboot import RebootWanted
from petalbus.handlers.mavlink.flight.steps import FORCE, Cmd
from petalbus.handlers.mavlink.params.transfer import Item, Limits
from petalbus.handlers.mavlink.params.values import MAX_NAME, ParamType

MAX_NAMES: Final = 4096
MAX_SECONDS: Final = 600.0
_PATIENCE_S: Final = 1.0

Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=r"^[\x21-\x7e]+$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Wanted(BaseModel):
    """Base of the payloads. ``system``: which vehicle; None: the primary one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    system: Annotated[int, Field(ge=1, le=255)] | None = None


class SendCommand(Wanted):
    """``mavlink.command``: one COMMAND_LONG. ``params``: up to seven numbers, null for NaN ("as it is")."""

    command: Annotated[int, Field(ge=0, le=65535)]
    params: Annotated[list[float | None], Field(max_length=7)] = []
    component: Annotated[int, Field(ge=1, le=255)] = 1
    timeout: Annotated[float, Field(gt=0, le=120)] = 3.0

    def order(self) -> Command:
        """As the command client takes it. It leaves once."""
        params = [float("nan") if value is None else value for value in self.params]
        if self.stops:
            return Command(self.command, params, urgent=True, answer=self.timeout)
        return Command(self.command, params, answer=self.timeout, patience=_PATIENCE_S if self.comes_down else None)

    @property
    def comes_down(self) -> bool:
        """Whether it ends the flight: then it waits for no other one, or (for one of its kind) a second at most."""
        if self.command == Cmd.COMPONENT_ARM_DISARM:
            return not self.params or self.params[0] == 0.0
        return self.command in (Cmd.NAV_LAND, Cmd.NAV_RETURN_TO_LAUNCH, Cmd.DO_FLIGHTTERMINATION)

    @property
    def stops(self) -> bool:
        """Whether it cuts the motors: then it leaves at once, also beside one of its kind that is under way."""
        if self.command == Cmd.DO_FLIGHTTERMINATION:
            return True
        return self.command == Cmd.COMPONENT_ARM_DISARM and self.params[:2] == [0.0, FORCE]


class RebootVehicle(Wanted):
    """``mavlink.reboot``; see RebootWanted."""

    onboard_computer: bool = False
    confirm: bool = True
    ack_timeout: Annotated[float, Field(gt=0, le=60)] = 3.0
    attempts: Annotated[int, Field(ge=1, le=10)] = 1
    retry_delay: Seconds = 0.5
    drop_window: Seconds = 5.0
    drop_gap: Annotated[float, Field(gt=0, le=60)] = 1.5
    return_window: Seconds = 30.0
    accept_denied: bool = False

    def order(self) -> RebootWanted:
        """As the reboot procedure takes it."""
        given = self.model_dump(exclude={"ack_timeout", "system"})
        return RebootWanted(answer=self.ack_timeout, **given)


class ParamsWanted(Wanted):
    """What reading and setting have in common."""

    timeout: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 6.0
    max_retries: Annotated[int, Field(ge=0, le=1000)] = 3
    max_in_flight: Annotated[int, Field(ge=1, le=256)] = 10
    resend_interval: Annotated[float, Field(ge=0.02, le=60)] = 0.7
    inter_send_delay: Annotated[float, Field(ge=0, le=10)] = 0.0

    def limits(self, *, verify: bool = True) -> Limits:
        """As the transfer takes them."""
        return Limits(
            window=self.max_in_flight,
            resend=self.resend_interval,
            retries=self.max_retries,
            spacing=self.inter_send_delay,
            verify=verify,
        )


class ReadParams(ParamsWanted):
    """``mavlink.param.get``."""

    names: Annotated[list[Name], Field(min_length=1, max_length=MAX_NAMES)]


class ParamToSet(Wanted):
    """One parameter. ``type``: a MAV_PARAM_TYPE by number or by name (``INT32``); null: the one it has."""

    name: Name
    value: int | Finite
    type: int | str | None = None

    def item(self) -> Item:
        """As the transfer takes it. Raises ValueError for a type that there is not."""
        return Item(self.name, value=self.value, kind=param_type(self.type))


class WriteParams(ParamsWanted):
    """``mavlink.param.set``."""

    params: Annotated[list[ParamToSet], Field(min_length=1, max_length=MAX_NAMES)]
    verify: bool = True


class ListParams(Wanted):
    """``mavlink.param.list``."""

    operation: Literal["list"] = "list"
    timeout: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 10.0


AnyWanted = TypeVar("AnyWanted", bound=Wanted)


def read_wanted(model: type[AnyWanted], payload: Any) -> AnyWanted:
    """Read a payload; raises OrderInvalid with the first thing that is wrong."""
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "data"
        raise OrderInvalid(place, first["msg"].lower(), limit="see the vehicle proxy's documentation") from None


def param_type(given: int | str | None) -> int | None:
    """A MAV_PARAM_TYPE from its number or its name, with or without prefix. Raises ValueError."""
    if given is None:
        return None
    if isinstance(given, str):
        name = given.strip().upper().removeprefix("MAV_PARAM_TYPE_")
        if name not in ParamType.__members__:
            raise ValueError(f"{given!r} is no parameter type that can travel; it is one of {', '.join(_TYPES)}")
        return ParamType[name].value
    if given not in _TYPES.values():
        raise ValueError(f"parameter type {given} cannot travel in four bytes; it is one of {_TYPES}")
    return given


_TYPES: Final = {kind.name: kind.value for kind in ParamType}
