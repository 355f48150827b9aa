#!/usr/bin/env bash
# Be online: count up a heartbeat twice a second, until stopped.
. "$(dirname "$0")/bus.sh"

trap 'bus HDEL "$BUS:beats" "$APP|main" >/dev/null' EXIT # goodbye: offline within three seconds
trap 'exit 0' TERM INT

while :; do
    bus HINCRBY "$BUS:beats" "$APP|main" 1 >/dev/null || true # no bus now: it will come back
    sleep 0.5
done
