#!/usr/bin/env bash
# Be online: count up a heartbeat twice a second, until stopped. One redis-cli does all of it.
. "$(dirname "$0")/bus.sh"

trap 'bus HDEL "$BUS:beats" "$APP|main" >/dev/null' EXIT # goodbye: offline within three seconds
trap 'exit 0' TERM INT

while :; do
    echo "HINCRBY $BUS:beats $APP|main 1"
    sleep 0.5
done | bus >/dev/null &
wait $!
