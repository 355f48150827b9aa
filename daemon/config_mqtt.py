"""The settings of the link to the MQTT broker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from petalbus.handlers.mqtt.words import URGENT


class MqttSettings(BaseModel):
    """Part of the daemon's settings."""

    mqtt_transport: Annotated[
        Literal["auto", "direct", "client", "off"],
        Field(description="the way to the broker: itself, or a client program; auto: itself where mqtt_url is set"),
    ] = "auto"
    mqtt_url: Annotated[
        str | None,
        Field(pattern=r"^mqtts?://[^/?#]+$", description="broker: mqtt://host:1883, or mqtts://host:8883 with TLS"),
    ] = None
    mqtt_version: Annotated[Literal["5", "3.1.1"], Field(description="version of MQTT")] = "5"
    mqtt_client_id: Annotated[
        str | None, Field(min_length=1, description="client id; the thing's name, or the device's, when not given")
    ] = None
    mqtt_username: Annotated[str | None, Field(description="user name for the broker")] = None
    mqtt_password: Annotated[str | None, Field(description="password for the broker")] = None
    mqtt_ca: Annotated[Path | None, Field(description="file of the authorities that may sign the broker's name")] = None
    mqtt_cert: Annotated[Path | None, Field(description="file of our own certificate, for the broker")] = None
    mqtt_key: Annotated[Path | None, Field(description="file of our certificate's key")] = None
    mqtt_alpn: Annotated[
        str | None, Field(description="application protocol of TLS; x-amzn-mqtt-ca on port 443 when not given")
    ] = None
    mqtt_keepalive: Annotated[int, Field(ge=5, le=1200, description="seconds between signs of life")] = 20
    mqtt_session: Annotated[
        int, Field(ge=0, le=604_800, description="how long the broker keeps messages for us while we are away (s)")
    ] = 3600
    mqtt_device: Annotated[
        str,
        Field(pattern=r"^[^/+#]+$", description="this device's name in topics; {machine_id} is put in"),
    ] = "Instance-{machine_id}"
    mqtt_client_host: Annotated[str, Field(min_length=1, description="host of the client program")] = "localhost"
    mqtt_client_port: Annotated[int, Field(ge=1, le=65535, description="its port")] = 3004
    mqtt_client_timeout: Annotated[float, Field(gt=0, le=300, description="how long it may take to answer (s)")] = 30.0
    mqtt_probe_interval: Annotated[
        float, Field(gt=0, le=3600, description="seconds between two looks whether it is well")
    ] = 10.0
    mqtt_probe_timeout: Annotated[float, Field(gt=0, le=60, description="how long such a look may take (s)")] = 2.0
    mqtt_callback_host: Annotated[str, Field(min_length=1, description="how the client program reaches us")] = (
        "localhost"
    )
    mqtt_callback_port: Annotated[
        int | None, Field(ge=1, le=65535, description="port of our callbacks; that of HTTP when not given")
    ] = None
    mqtt_callback_secret: Annotated[
        str | None, Field(min_length=8, description="what callbacks must bear; without it they come from this machine")
    ] = None
    mqtt_callbacks: Annotated[bool, Field(description="take what the client program brings")] = True
    mqtt_rate: Annotated[float, Field(gt=0, le=100_000, description="messages a second to the broker at most")] = 90.0
    mqtt_bytes_rate: Annotated[float, Field(gt=0, description="bytes a second to the broker at most")] = 524_288.0
    mqtt_max_payload: Annotated[
        int, Field(ge=1, le=1 << 20, description="bytes of a message to the broker at most")
    ] = 131_072
    mqtt_max_levels: Annotated[int, Field(ge=1, le=128, description="levels of a topic at most")] = 8
    mqtt_command_deadline: Annotated[
        float, Field(gt=0, le=86_400, description="a command that nobody has begun for so long is not begun (s)")
    ] = 120.0
    mqtt_command_max_age: Annotated[
        float | None,
        Field(ge=0, description="commands older by their timestamp are refused (s); 0: none, not given: after 120 s"),
    ] = None
    mqtt_urgent_commands: Annotated[
        str, Field(pattern=r"^[^/]*$", description="last words of commands that overtake all others, with commas")
    ] = ",".join(URGENT)
    mqtt_command_edge_topic: Annotated[str, Field(min_length=1, description="commands arrive here")] = "command/edge"
    mqtt_command_topic: Annotated[str, Field(min_length=1, description="commands arrive here, too")] = "command"
    mqtt_response_topic: Annotated[str, Field(min_length=1, description="responses leave here")] = "response"
    mqtt_command_web_topic: Annotated[
        str, Field(min_length=1, description="messages for the web client leave here")
    ] = "command/web"
