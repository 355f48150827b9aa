# Where the bus is, and what the other scripts share. Nothing but redis-cli (7.0 or later) and bash is needed.
#   PETALBUS_SOCKET   the server's socket (default: the one of `petalbus up` without --data)
#   PETALBUS_BUS      the bus's name
#   PETALBUS_USER     ACL user, if the server wants one; its password in REDISCLI_AUTH
set -euo pipefail

SOCKET=${PETALBUS_SOCKET:-${XDG_STATE_HOME:-$HOME/.local/state}/petalbus/bus.sock}
BUS="{${PETALBUS_BUS:-petalbus}}"
APP=HEAR_FC
QUEUE="$BUS:queue:$APP"

# One command. -e: an error reply is a failure, not just a text.
bus() {
    redis-cli -s "$SOCKET" ${PETALBUS_USER:+--user "$PETALBUS_USER"} --no-auth-warning --raw -e "$@"
}

# An id that nobody uses twice. It is the deduplication key: to repeat a message, send it with the same id.
new_id() {
    printf '%s-%s-%s' "$APP" "$(date +%s%N)" "$RANDOM$RANDOM"
}

# Append a raw record: add name value name value ... (the stream id of the raw record goes nowhere: the bus gives a new one)
add() {
    bus XADD "$BUS:ingest" '*' source "$APP" "$@" >/dev/null
}

# Take the answer of XREAD or XREADGROUP apart and call, for each entry: FUNCTION STREAM ENTRY, with the record's fields in F.
# (A value is one line here: JSON as PetalBus writes it is.)
declare -A F
each_entry() { # FUNCTION ANSWER
    local function=$1 stream= entry= name value
    F=()
    while IFS= read -r name; do
        if [[ $name == "$BUS:"* || $name =~ ^[0-9]+-[0-9]+$ ]]; then
            if [[ -n $entry ]]; then "$function" "$stream" "$entry"; fi
            entry= F=()
            if [[ $name == "$BUS:"* ]]; then stream=$name; else entry=$name; fi
        elif [[ -n $name ]]; then
            IFS= read -r value || true
            F[$name]=$value
        fi
    done <<<"$2"
    if [[ -n $entry ]]; then "$function" "$stream" "$entry"; fi
}
