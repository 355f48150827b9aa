"""Messages to the vehicle, ready to be sent with ``send`` or ``send_and_wait``."""

from __future__ import annotations

import struct
from typing import Any, Final

from petalbus.handlers.mavlink.params.values import ParamEncoding, ParamType, encode_value
from petalbus.petals.proxies.mavlink.link import VehicleLink

_REQUEST_MESSAGE: Final = 512
_REBOOT: Final = 246
_STORAGE_FORMAT: Final = 526
_ACTUATOR_TEST: Final = 310
_SYSTEM_TIME: Final = 2
_FIRST_MOTOR: Final = 1100
_SHELL_CHUNK: Final = 70
_RESPOND: Final = 2
_EXCLUSIVE: Final = 4
_AFTER_VALUE: Final = struct.Struct("<BB16sB")


class Builders(VehicleLink):
    """The ``build_*`` helpers. Each raises RuntimeError ("MAVLink connection not established") without a vehicle."""

    def build_req_msg_long(self, message_id: int | str) -> Any:
        """COMMAND_LONG that asks for one message by its number (MAV_CMD_REQUEST_MESSAGE)."""
        return self._command(_REQUEST_MESSAGE, float(message_id))

    def build_request_message_command(self) -> Any:
        """COMMAND_LONG that asks for SYSTEM_TIME."""
        return self._command(_REQUEST_MESSAGE, float(_SYSTEM_TIME))

    def build_req_msg_log_request(self, message_id: int | str) -> Any:  # noqa: ARG002  # petals pass it; it says nothing
        """LOG_REQUEST_LIST for all logs."""
        return self._encoder().log_request_list_encode(*self._target(), 0, 0xFFFF)

    def build_req_msg_log_data(self, log_id: int, ofs: int = 0, count: int = 0xFFFFFFFF) -> Any:
        """LOG_REQUEST_DATA: ``count`` bytes of a log from ``ofs`` on; by default all of it."""
        return self._encoder().log_request_data_encode(*self._target(), log_id, ofs, count)

    def build_param_request_read(self, name: str, index: int = -1) -> Any:
        """PARAM_REQUEST_READ by name, or by position where ``index`` is not -1."""
        return self._encoder().param_request_read_encode(*self._target(), name.encode("ascii"), index)

    def build_param_request_list(self) -> Any:
        """PARAM_REQUEST_LIST."""
        return self._encoder().param_request_list_encode(*self._target())

    def build_param_set(self, name: str, value: Any, param_type: int) -> Any:
        """PARAM_SET as this vehicle sends integers: PX4's bytes, or ArduPilot's float. Not known: PX4's way.

        Raises ValueError when the value does not fit the type, or the type cannot travel (64 bits).
        """
        encoding = ParamEncoding(self._seen.encoding or ParamEncoding.BYTEWISE)
        raw = encode_value(value, param_type, encoding)
        as_float: float = struct.unpack("<f", raw)[0]
        message = self._encoder().param_set_encode(
            *self._target(), name.encode("ascii"), as_float, ParamType(param_type).value
        )
        message.unpacker = _ValueBytes(raw)
        return message

    def build_reboot_command(
        self,
        reboot_autopilot: bool = True,
        reboot_onboard_computer: bool = False,
        target_component: int | None = None,
    ) -> Any:
        """COMMAND_LONG that reboots the autopilot, the onboard computer, or both."""
        chosen = float(reboot_autopilot), float(reboot_onboard_computer)
        return self._command(_REBOOT, *chosen, component=target_component)

    def build_format_storage_command(self, storage_id: int = 0) -> Any:
        """COMMAND_LONG that formats a storage (MAV_CMD_STORAGE_FORMAT). 0 is the first one, as 1 is."""
        return self._command(_STORAGE_FORMAT, *format_params(storage_id))

    def build_motor_value_command(self, motor_idx: int, motor_value: float, timeout: float) -> Any:
        """COMMAND_LONG that turns one motor (MAV_CMD_ACTUATOR_TEST): **propellers off**.

        ``motor_idx`` counts from 1, ``motor_value`` is 0 to 1 (NaN: off), ``timeout`` seconds until it stops.
        """
        return self._command(_ACTUATOR_TEST, motor_value, timeout, 0.0, 0.0, float(_FIRST_MOTOR + motor_idx))

    def build_shell_serial_control_msgs(
        self, text: str, device: int = 10, respond: bool = True, exclusive: bool = True
    ) -> list[Any]:
        """SERIAL_CONTROL messages that type ``text`` into PX4's shell (device 10), 70 bytes each."""
        flags = (_RESPOND if respond else 0) | (_EXCLUSIVE if exclusive else 0)
        data = text.encode()
        chunks = [data[start : start + _SHELL_CHUNK] for start in range(0, len(data), _SHELL_CHUNK)]
        encode = self._encoder().serial_control_encode
        return [encode(device, flags, 0, 0, len(chunk), list(chunk.ljust(_SHELL_CHUNK, b"\0"))) for chunk in chunks]

    def _encoder(self) -> Any:
        self._require_connected()
        return self.master.mav

    def _target(self) -> tuple[int, int]:
        return self.target_system, self.target_component

    def _command(self, number: int, *params: float, component: int | None = None) -> Any:
        filled = [*params, *([0.0] * 7)][:7]
        to = self.target_system, self.target_component if component is None else component
        return self._encoder().command_long_encode(*to, number, 0, *filled)


def format_params(storage_id: int) -> tuple[float, float]:
    """The parameters of MAV_CMD_STORAGE_FORMAT: which storage (they count from 1), and yes."""
    if not 0 <= storage_id <= 255:
        raise ValueError(f"storage {storage_id}: storages are 0 (the first one) to 255")
    return float(storage_id or 1), 1.0


class _ValueBytes:
    """Packs PARAM_SET with the value's own four bytes: as a Python float some of them would change on their way."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def pack(self, _value: float, *rest: Any) -> bytes:
        return self._raw + _AFTER_VALUE.pack(*rest)
