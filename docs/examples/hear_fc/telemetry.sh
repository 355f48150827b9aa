#!/usr/bin/env bash
# Send one sample to the topic "telemetry": telemetry.sh [BATTERY_PERCENT] [ALTITUDE_M]
. "$(dirname "$0")/bus.sh"

add id "$(new_id)" type telemetry data "{\"battery_level\":${1:-85},\"altitude\":${2:-50.5},\"system_status\":\"normal\"}"
