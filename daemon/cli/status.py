"""`petalbus status`: where a message stands."""

from __future__ import annotations

from typing import Annotated

import typer

from petalbus.daemon.cli.common import Data, Json, client, run, say, say_json
from petalbus.daemon.cli.exits import Refused


def status(
    message_id: Annotated[str, typer.Argument(metavar="ID", help="A message id, as the receipt of `send` says it.")],
    data: Data = None,
    json: Json = False,
) -> None:
    """Print where a message stands: pending, delivered, processing, completed, failed, timeout or cancelled."""

    async def work() -> None:
        async with client(data) as bus:
            known = await bus.messages.known(message_id)
            stands = await bus.status(message_id)
        if known is None:
            raise Refused(f"no message {message_id!r} is known here (any more)", code="unknown_message")
        if json:
            say_json(
                {
                    "id": message_id,
                    "status": str(stands),
                    "recipient": known.recipient or None,
                    "source": known.source,
                    "priority": int(known.priority) if known.priority else None,
                    "stream_id": known.entry,
                    "reply_stream_id": known.reply or None,
                }
            )
        else:
            to = f" to {known.recipient}" if known.recipient else ""
            say(f"{stands}: from {known.source}{to}, entry {known.entry}")

    run(work())
