#!/usr/bin/env bash
# Send a command and wait for its reply: command.sh APP JSON [SECONDS]. Prints the reply's data; fails if it is an error.
. "$(dirname "$0")/bus.sh"

recipient=$1 data=$2 seconds=${3:-5}
id=$(new_id)

# 1. Where the replies end now: only later ones can be ours.
last=$(bus XREVRANGE "$QUEUE:replies" + - COUNT 1 | head -n 1)
last=${last:-0-0}

# 2. The command. "timeout": it must not start later than that. "wants_reply": answer also when there is nothing to say.
add id "$id" type command recipient "$recipient" priority 3 wants_reply 1 timeout "$seconds" data "$data"

# 3. Replies to anything this app asked come in one stream. "accepted" and "progress" may come before the final one.
kind=
take() {
    last=$2
    if [[ ${F[reply_to]:-} == "$id" ]]; then
        kind=${F[kind]} reply=${F[data]}
        [[ $kind != progress && $kind != accepted ]] || echo "$kind: $reply" >&2
    fi
}
end=$((SECONDS + seconds + 1))
while [[ $kind != @(result|error|cancelled) ]]; do
    if ((SECONDS >= end)); then
        echo "no reply from $recipient within $seconds s" >&2
        exit 2
    fi
    answer=$(bus XREAD COUNT 1 BLOCK 1000 STREAMS "$QUEUE:replies" "$last")
    each_entry take "$answer"
done
echo "$reply"
[[ $kind == result ]]
