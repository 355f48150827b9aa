"""Rebooting the autopilot and formatting its storage, answered in the shapes that petals know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from petalbus.petals.proxies.errors import ProxyNotReady
from petalbus.petals.proxies.mavlink.builders import format_params
from petalbus.petals.proxies.mavlink.link import VehicleError, VehicleLink

if TYPE_CHECKING:
    from petalbus.petals.models.mavlink import FormatStorageResponse, RebootAutopilotResponse

_STORAGE_FORMAT: Final = 526
_ACCEPTED: Final = 0

_REFUSALS: Final = {
    1: "FAIL_ACK_TEMPORARILY_REJECTED",
    2: "FAIL_ACK_DENIED",
    3: "FAIL_ACK_UNSUPPORTED",
    4: "FAIL_ACK_FAILED",
    5: "FAIL_ACK_IN_PROGRESS",
    6: "FAIL_ACK_CANCELLED",
}
"""MAV_RESULT -> the end of a status code."""


class Upkeep(VehicleLink):
    """What is done to the autopilot itself."""

    async def reboot_autopilot(
        self, reboot_onboard_computer: bool = False, timeout: float = 3.0
    ) -> RebootAutopilotResponse:
        """Reboot; the vehicle's acknowledgement decides, and where none comes within ``timeout`` seconds its heartbeats
        (they must stop and come back, which takes up to 35 s more). The command leaves once.

        Raises RuntimeError ("MAVLink connection not established") without a vehicle.
        """
        seen = await self._reboot(
            {"onboard_computer": reboot_onboard_computer, "confirm": False, "ack_timeout": timeout}, timeout + 37.0
        )
        if seen["ack_result"] == _ACCEPTED:
            return _rebooted("OK_ACK_ACCEPTED", "the autopilot accepted the reboot", _ACCEPTED)
        return _judged(seen, confirmed="OK_REBOOT_CONFIRMED_NO_ACK")

    async def reboot_autopilot_confirmed(
        self,
        reboot_onboard_computer: bool = False,
        ack_timeout: float = 3.0,
        hb_drop_window_s: float = 5.0,
        hb_drop_gap_s: float = 1.5,
        hb_return_window_s: float = 30.0,
        hb_poll_interval_s: float = 0.05,  # noqa: ARG002  # nothing polls here
        sitl_mode: bool = False,
        max_send_attempts: int = 3,
        retry_delay_s: float = 0.5,
    ) -> RebootAutopilotResponse:
        """Reboot, and wait until the autopilot's heartbeats have stopped and come back. Times are seconds.

        Without an acknowledgement the command is sent again, ``max_send_attempts`` times in all, but only while the
        heartbeats go on: an autopilot that fell silent is rebooting already. ``sitl_mode``: go on after a denial,
        because somebody restarts the simulation by hand.
        """
        wanted = {
            "onboard_computer": reboot_onboard_computer,
            "ack_timeout": ack_timeout,
            "attempts": max_send_attempts,
            "retry_delay": retry_delay_s,
            "drop_window": hb_drop_window_s,
            "drop_gap": hb_drop_gap_s,
            "return_window": hb_return_window_s,
            "accept_denied": sitl_mode,
        }
        asking = max_send_attempts * (ack_timeout + retry_delay_s + hb_drop_gap_s)
        seen = await self._reboot(wanted, asking + hb_drop_window_s + hb_return_window_s + 2.0)
        accepted = seen["ack_result"] == _ACCEPTED
        confirmed = "OK_ACK_ACCEPTED_HB_CONFIRMED" if accepted or sitl_mode else "OK_HB_CONFIRMED_NO_ACK"
        if seen["ack_result"] is None:
            confirmed = "OK_HB_CONFIRMED_NO_ACK"
        return _judged(seen, confirmed=confirmed)

    async def format_sd_card(self, storage_id: int = 0, timeout: float = 10.0) -> FormatStorageResponse:
        """Format the autopilot's storage (0: its first one) with MAV_CMD_STORAGE_FORMAT; everything on it is lost.

        ``timeout``: seconds to wait for the acknowledgement. Parameters are not touched.
        """
        data = {"command": _STORAGE_FORMAT, "params": [*format_params(storage_id)], "timeout": timeout}
        try:
            answer = await self._ask("mavlink.command", data, timeout=timeout + 120.0)
        except ProxyNotReady as error:
            return _formatted("FAIL_NOT_CONNECTED", str(error), None)
        except VehicleError as error:
            if error.error_code != "OUTCOME_UNKNOWN":
                raise
            return _formatted("FAIL_TIMEOUT", f"no acknowledgement came within {timeout:g} s: {error}", None)
        result = answer["result_code"]
        if result == _ACCEPTED:
            return _formatted("OK_ACK_ACCEPTED", "the autopilot accepted to format the storage", result)
        code = _REFUSALS.get(result, "FAIL_ACK_UNKNOWN")
        return _formatted(code, f"the autopilot refused to format the storage: {answer['result']}", result)

    async def _reboot(self, wanted: dict[str, Any], timeout: float) -> dict[str, Any]:
        try:
            return await self._ask("mavlink.reboot", wanted, timeout=timeout)
        except VehicleError as error:
            if error.error_code != "OUTCOME_UNKNOWN":
                raise
            return {"ack_result": None, "ack_name": None, "sends": None, "dropped": None, "returned": None}


def _judged(seen: dict[str, Any], *, confirmed: str) -> RebootAutopilotResponse:
    """The answer to what was seen, where an acknowledgement alone is not enough."""
    ack, said = seen["ack_result"], seen["ack_name"] or "no acknowledgement"
    if seen["returned"]:
        return _rebooted(confirmed, f"the autopilot's heartbeats stopped and came back ({said})", ack)
    if seen["dropped"]:
        text = f"the autopilot's heartbeats stopped and did not come back in the time allowed ({said})"
        return _rebooted("FAIL_REBOOT_NOT_CONFIRMED_HB_NO_RETURN", text, ack)
    if seen["dropped"] is not None:
        text = f"the autopilot's heartbeats went on ({said}): it did not reboot"
        return _rebooted("FAIL_REBOOT_NOT_CONFIRMED_NO_HB_DROP", text, ack)
    if ack is None:
        return _rebooted("FAIL_NO_HEARTBEAT_TRACKING", "the outcome is unknown: whoever watched it ended", None)
    return _rebooted(_REFUSALS.get(ack, "FAIL_ACK_UNKNOWN"), f"the autopilot refused to reboot: {said}", ack)


def _rebooted(code: str, reason: str, ack: int | None) -> RebootAutopilotResponse:
    from petalbus.petals.models.mavlink import (  # noqa: PLC0415  # pydantic, only once somebody reboots
        RebootAutopilotResponse as Response,
    )
    from petalbus.petals.models.mavlink import RebootStatusCode  # noqa: PLC0415  # as above

    return Response(success=code.startswith("OK"), status_code=RebootStatusCode(code), reason=reason, ack_result=ack)


def _formatted(code: str, reason: str, ack: int | None) -> FormatStorageResponse:
    from petalbus.petals.models.mavlink import (  # noqa: PLC0415  # as above
        FormatStorageResponse as Response,
    )
    from petalbus.petals.models.mavlink import FormatStorageStatusCode  # noqa: PLC0415  # as above

    return Response(
        success=code.startswith("OK"), status_code=FormatStorageStatusCode(code), reason=reason, ack_result=ack
    )
