"""The vehicle's parameters. The work is done by the MAVLink handler, beside the link: one record asks for all of it."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final

from petalbus.handlers.mavlink.params.values import MAX_NAME, ParamEncoding, ParamType, decode_value
from petalbus.handlers.mavlink.requests.wanted import MAX_NAMES, param_type
from petalbus.petals.proxies.mavlink.link import VehicleError, VehicleLink

ParamSpec = Any
"""A number, a tuple ``(value, type)``, or a dict ``{"value": ..., "type": ...}``."""

_SINGLE_RESEND_S: Final = 0.5
_SHORT_TYPES: Final = frozenset(kind.value for kind in ParamType)


class ParameterUnavailable(TimeoutError):
    """A parameter was not read or not set. ``code`` says why, for programs; ``error`` is the vehicle's own number.

    It is a TimeoutError because an autopilot that does not know a name says so rarely: mostly it just does not answer.
    """

    def __init__(self, name: str, refusal: Mapping[str, Any]) -> None:
        self.name = name
        self.code = str(refusal["code"])
        self.error: int | None = refusal.get("error")
        super().__init__(f"parameter {name}: {refusal['reason']}")


class ParamResults(dict[str, dict[str, Any]]):
    """Confirmed parameters by name. ``refused`` tells of each other one why: ``{"code", "reason", "error"}``."""

    def __init__(self, confirmed: Mapping[str, dict[str, Any]], refused: Mapping[str, dict[str, Any]]) -> None:
        super().__init__(confirmed)
        self.refused = dict(refused)


class Parameters(VehicleLink):
    """Reading and setting. Without a vehicle each raises RuntimeError ("MAVLink connection not established").

    A parameter is told as ``{"name", "value", "raw", "type", "count", "index"}``: ``value`` is its number, ``raw`` the
    float that MAVLink carries it in, ``type`` its MAV_PARAM_TYPE, ``index`` its position (65535: not told).
    """

    async def get_param(self, name: str, timeout: float = 3.0) -> dict[str, Any]:
        """Read one. Raises ParameterUnavailable, a TimeoutError."""
        retries = max(0, math.ceil(timeout / _SINGLE_RESEND_S) - 1)
        results = await self.get_params_bulk_lossy(
            [name], timeout_total=timeout, max_retries=retries, resend_interval=_SINGLE_RESEND_S
        )
        return _only(results, _name(name))

    async def set_param(
        self, name: str, value: Any, ptype: int | str | None = None, timeout: float = 3.0
    ) -> dict[str, Any]:
        """Set one, and make sure. Raises ParameterUnavailable, a TimeoutError; ValueError for what cannot be set."""
        retries = max(0, math.ceil(timeout / _SINGLE_RESEND_S) - 1)
        results = await self.set_params_bulk_lossy(
            {name: (value, ptype)}, timeout_total=timeout, max_retries=retries, resend_interval=_SINGLE_RESEND_S
        )
        return _only(results, _name(name))

    async def get_all_params(self, timeout: float = 10.0) -> dict[str, dict[str, Any]]:
        """Read all. Raises TimeoutError when some are missing after ``timeout`` seconds."""
        try:
            answer = await self._ask("mavlink.param.list", {"timeout": timeout}, timeout=timeout)
        except VehicleError as error:
            if error.error_code != "PARAMS_INCOMPLETE":
                raise
            raise TimeoutError(str(error)) from error
        return _results(answer)

    async def get_params_bulk_lossy(
        self,
        names: Iterable[str],
        *,
        timeout_total: float = 6.0,
        max_retries: int = 3,
        max_in_flight: int = 10,
        resend_interval: float = 0.7,
        inter_send_delay: float = 0.01,
    ) -> ParamResults:
        """Read many. Names that the result lacks were not confirmed; its ``refused`` says why. Times are seconds.

        ``max_in_flight`` are asked for at once, one more each ``inter_send_delay``. What is not answered is asked again
        after ``resend_interval``, sooner once the round trip is known, and given up after ``max_retries`` further
        intervals.
        """
        wanted = list(dict.fromkeys(map(_name, names)))
        if not wanted:
            self._require_connected()
            return ParamResults({}, {})
        limits = _limits(timeout_total, max_retries, max_in_flight, resend_interval, inter_send_delay)
        _check_number(len(wanted))
        return _results(await self._ask("mavlink.param.get", {"names": wanted, **limits}, timeout=timeout_total))

    async def set_params_bulk_lossy(
        self,
        params_to_set: Mapping[str, ParamSpec],
        *,
        timeout_total: float = 8.0,
        max_retries: int = 3,
        max_in_flight: int = 8,
        resend_interval: float = 0.8,
        inter_send_delay: float = 0.01,
        verify_ack_value: bool = True,
    ) -> ParamResults:
        """Set many; the arguments are those of ``get_params_bulk_lossy``. Raises ValueError for what cannot be set.

        A value without a type is set as the type that the parameter has (where the vehicle does not tell: an int as
        INT32, a float as REAL32). ``verify_ack_value``: the value that the vehicle answers with must be this one.
        """
        wanted = [_wanted(name, spec) for name, spec in params_to_set.items()]
        if not wanted:
            self._require_connected()
            return ParamResults({}, {})
        limits = _limits(timeout_total, max_retries, max_in_flight, resend_interval, inter_send_delay)
        _check_number(len(wanted))
        data = {"params": wanted, "verify": bool(verify_ack_value), **limits}
        return _results(await self._ask("mavlink.param.set", data, timeout=timeout_total))


def _limits(timeout: float, retries: int, in_flight: int, resend: float, spacing: float) -> dict[str, Any]:
    return {
        "timeout": float(timeout),
        "max_retries": int(retries),
        "max_in_flight": int(in_flight),
        "resend_interval": float(resend),
        "inter_send_delay": float(spacing),
    }


def _check_number(number: int) -> None:
    if number > MAX_NAMES:
        raise ValueError(f"{number} parameters in one call; at most {MAX_NAMES}")


def _name(name: str | bytes) -> str:
    text = name.decode("ascii") if isinstance(name, bytes) else name
    text = text.rstrip("\0")
    if not 0 < len(text) <= MAX_NAME or not text.isascii():
        raise ValueError(f"parameter name {name!r}: names have 1 to {MAX_NAME} ASCII characters")
    return text


def _wanted(name: str, spec: ParamSpec) -> dict[str, Any]:
    """One of the three forms, as the record holds it."""
    kind: Any = None
    value: Any = spec
    if isinstance(spec, Mapping):
        if "value" not in spec:
            raise ValueError(f"parameter {name}: a dict must have a 'value', this one has {sorted(spec)}")
        value, kind = spec["value"], spec.get("type")
    elif isinstance(spec, tuple | list):
        if len(spec) != 2:
            raise ValueError(f"parameter {name}: a tuple is (value, type), this one has {len(spec)} members")
        value, kind = spec
    if isinstance(value, bool):
        value = int(value)
    if not isinstance(value, int | float):
        try:
            value = value.item()  # numpy's numbers
        except AttributeError:
            raise ValueError(f"parameter {name}: {value!r} is no number") from None
    if not math.isfinite(value):
        raise ValueError(f"parameter {name}: {value} cannot be set")
    try:
        return {"name": _name(name), "value": value, "type": param_type(kind)}
    except ValueError as error:
        raise ValueError(f"parameter {name}: {error}") from None


def _results(answer: Mapping[str, Any]) -> ParamResults:
    encoding = ParamEncoding(answer["encoding"] or ParamEncoding.BYTEWISE)  # without one there are only floats
    confirmed: dict[str, dict[str, Any]] = {}
    for name, (raw_hex, kind, total, position) in answer["values"].items():
        raw = bytes.fromhex(raw_hex)
        as_float: float = struct.unpack("<f", raw)[0]
        value: float = as_float
        if kind in _SHORT_TYPES:
            value = decode_value(raw, kind, encoding)
        confirmed[name] = {
            "name": name,
            "value": value,
            "raw": as_float,
            "type": kind,
            "count": total,
            "index": position,
        }
    return ParamResults(confirmed, answer["refused"])


def _only(results: ParamResults, name: str) -> dict[str, Any]:
    found = results.get(name)
    if found is None:
        raise ParameterUnavailable(name, results.refused[name])
    return found
