"""The settings of the vehicle's link and of the simulated vehicle."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

STREAMS = (
    "GLOBAL_POSITION_INT=4, EXTENDED_SYS_STATE=1, ATTITUDE=4, SYS_STATUS=1, GPS_RAW_INT=1, BATTERY_STATUS=1, "
    "VFR_HUD=2, HOME_POSITION=0.5"
)
"""What flight procedures, petals and the dashboard look at; some 600 bytes a second."""


class VehicleSettings(BaseModel):
    """Part of the daemon's settings."""

    mavlink_endpoint: Annotated[
        str | None, Field(description="MAVLink endpoints of a real vehicle, with commas: udpin:0.0.0.0:14550")
    ] = None
    mavlink_signing_key: Annotated[
        str | None, Field(min_length=1, description="MAVLink 2 signing: a passphrase, or 64 hexadecimal digits")
    ] = None
    mavlink_accept_unsigned: Annotated[
        bool, Field(description="with a signing key: take in unsigned messages, too")
    ] = False
    mavlink_source_system: Annotated[int, Field(ge=1, le=255, description="our MAVLink system id")] = 2
    mavlink_source_component: Annotated[int, Field(ge=1, le=255, description="our MAVLink component id")] = 140
    mavlink_target_system: Annotated[
        int | None, Field(ge=1, le=255, description="the vehicle's system id; the first autopilot heard when not given")
    ] = None
    mavlink_dialect: Annotated[str, Field(min_length=1, description="pymavlink dialect")] = "all"
    mavlink_heartbeat_hz: Annotated[float, Field(gt=0, le=50, description="heartbeats that we send, a second")] = 5.0
    mavlink_rates: Annotated[
        str,
        Field(
            pattern=r"^(\s*\w+\s*=\s*\d{1,4}(\.\d+)?\s*([,;]|$))*$",
            description="records a second of a message at most: ATTITUDE=10, RAW_IMU=0; all of the others",
        ),
    ] = ""
    mavlink_streams: Annotated[
        str,
        Field(
            pattern=r"^\s*(?i:off)\s*$|^(\s*\w+\s*=\s*\d{1,3}(\.\d+)?\s*([,;]|$))*$",
            description="messages a second that a vehicle is asked for which does not send them; off: nothing",
        ),
    ] = STREAMS
    mavlink_operators: Annotated[str, Field(description="apps that may test single motors, with commas")] = ""
    mavlink_max_altitude: Annotated[
        float, Field(gt=0, le=10_000, description="highest takeoff altitude that is accepted (m)")
    ] = 500.0

    sim_enabled: Annotated[bool, Field(description="start a simulated vehicle and connect it")] = False
    sim_autopilot: Annotated[Literal["px4", "ardupilot"], Field(description="whose ways the simulated vehicle has")] = (
        "px4"
    )
