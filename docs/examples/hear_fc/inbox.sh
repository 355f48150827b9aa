#!/usr/bin/env bash
# Serve the inbox: read in order of priority, answer, acknowledge. inbox.sh [MESSAGES]: end after so many.
. "$(dirname "$0")/bus.sh"

left=${1:--1}
inboxes=("$QUEUE:inbox:4" "$QUEUE:inbox:3" "$QUEUE:inbox:2" "$QUEUE:inbox:1") # CRITICAL first, LOW last

for inbox in "${inboxes[@]}"; do
    bus XGROUP CREATE "$inbox" inbox 0 MKSTREAM >/dev/null 2>&1 || true # it exists already
done

reply() { # KIND DATA
    # The id is made from the message's: a repetition after a crash is the same reply, and is stored once.
    add id "$1_${F[id]}" type "${F[type]}_response" recipient "${F[source]}" reply_to "${F[id]}" kind "$1" data "$2"
}

boot_clock() { # nanoseconds since the machine was started
    local seconds
    read -r seconds _ </proc/uptime
    printf '%s0000000' "${seconds/./}"
}

handle() {
    local stream=$1 entry=$2
    echo "$entry priority ${stream##*:} ${F[type]} from ${F[source]}: ${F[data]}"
    if [[ -n ${F[deadline]:-} ]] && (($(boot_clock) >= ${F[deadline]})); then
        reply error '{"status":"error","error_code":"DEADLINE_EXPIRED","message":"it came too late and was not run"}'
    else
        case ${F[type]} in
            command | emergency_command)
                reply accepted '{"status":"accepted"}'
                # ... do it here ...
                reply result '{"status":"success"}' ;; # the final reply also acknowledges the message
            status_request | ping)
                reply result '{"status":"success","battery":85}' ;;
            *)
                bus XACK "$stream" inbox "$entry" >/dev/null ;; # nothing to say: acknowledge it ourselves
        esac
    fi
    left=$((left - 1))
}

# After a start: what was read before and not answered comes first, once more. Then what is new.
answer=$(bus XREADGROUP GROUP inbox main STREAMS "${inboxes[@]}" 0 0 0 0)
each_entry handle "$answer"
while ((left != 0)); do
    # COUNT 1: at most one message of each level is in our hands, the most urgent first.
    answer=$(bus XREADGROUP GROUP inbox main COUNT 1 BLOCK 1000 STREAMS "${inboxes[@]}" '>' '>' '>' '>')
    each_entry handle "$answer"
done
