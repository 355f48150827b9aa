"""What the vehicle proxy's operations answer: whether it worked, a code for programs, a reason for people."""

from __future__ import annotations

from enum import Enum

from pydantic import BaseModel, Field


class FormatStorageStatusCode(str, Enum):  # noqa: UP042  # its text is the value in old and new Python versions alike
    """How formatting the autopilot's storage went."""

    OK_ACK_ACCEPTED = "OK_ACK_ACCEPTED"
    FAIL_ACK_DENIED = "FAIL_ACK_DENIED"
    FAIL_ACK_TEMPORARILY_REJECTED = "FAIL_ACK_TEMPORARILY_REJECTED"
    FAIL_ACK_UNSUPPORTED = "FAIL_ACK_UNSUPPORTED"
    FAIL_ACK_FAILED = "FAIL_ACK_FAILED"
    FAIL_ACK_IN_PROGRESS = "FAIL_ACK_IN_PROGRESS"
    FAIL_ACK_CANCELLED = "FAIL_ACK_CANCELLED"
    FAIL_NO_ACK_MATCH = "FAIL_NO_ACK_MATCH"
    FAIL_TIMEOUT = "FAIL_TIMEOUT"
    FAIL_ACK_UNKNOWN = "FAIL_ACK_UNKNOWN"
    FAIL_NOT_CONNECTED = "FAIL_NOT_CONNECTED"


class RebootStatusCode(str, Enum):  # noqa: UP042  # as above
    """How a reboot went, and by what that is known."""

    OK_ACK_ACCEPTED = "OK_ACK_ACCEPTED"
    OK_REBOOT_CONFIRMED_NO_ACK = "OK_REBOOT_CONFIRMED_NO_ACK"
    OK_ACK_ACCEPTED_HB_CONFIRMED = "OK_ACK_ACCEPTED_HB_CONFIRMED"
    OK_HB_CONFIRMED_NO_ACK = "OK_HB_CONFIRMED_NO_ACK"
    FAIL_ACK_DENIED = "FAIL_ACK_DENIED"
    FAIL_ACK_TEMPORARILY_REJECTED = "FAIL_ACK_TEMPORARILY_REJECTED"
    FAIL_ACK_UNSUPPORTED = "FAIL_ACK_UNSUPPORTED"
    FAIL_ACK_FAILED = "FAIL_ACK_FAILED"
    FAIL_ACK_IN_PROGRESS = "FAIL_ACK_IN_PROGRESS"
    FAIL_ACK_CANCELLED = "FAIL_ACK_CANCELLED"
    FAIL_NO_ACK_MATCH = "FAIL_NO_ACK_MATCH"
    FAIL_NO_HEARTBEAT_TRACKING = "FAIL_NO_HEARTBEAT_TRACKING"
    FAIL_REBOOT_NOT_CONFIRMED_NO_HB_DROP = "FAIL_REBOOT_NOT_CONFIRMED_NO_HB_DROP"
    FAIL_REBOOT_NOT_CONFIRMED_HB_NO_RETURN = "FAIL_REBOOT_NOT_CONFIRMED_HB_NO_RETURN"
    FAIL_ACK_UNKNOWN = "FAIL_ACK_UNKNOWN"


class FormatStorageResponse(BaseModel):
    """Answer of ``format_sd_card``."""

    success: bool = Field(description="the autopilot accepted to format")
    status_code: FormatStorageStatusCode = Field(description="the outcome, for programs")
    reason: str = Field(description="the outcome, for people")
    ack_result: int | None = Field(default=None, description="MAV_RESULT of the acknowledgement, where one came")


class RebootAutopilotResponse(BaseModel):
    """Answer of ``reboot_autopilot`` and ``reboot_autopilot_confirmed``."""

    success: bool = Field(description="the reboot was accepted, or seen to happen")
    status_code: RebootStatusCode = Field(description="the outcome, for programs")
    reason: str = Field(description="the outcome, for people")
    ack_result: int | None = Field(default=None, description="MAV_RESULT of the acknowledgement, where one came")


class ULogInfo(BaseModel):
    """A log file on the vehicle."""

    index: int
    """Its place in the list, from 0."""
    remote_path: str
    size_bytes: int
    utc: int
    """When it ended, seconds since 1970; 0 where that is not known."""
