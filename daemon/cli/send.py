"""`petalbus send`: put a record into an application's inbox."""

from __future__ import annotations

from typing import Annotated

import typer

from petalbus.daemon.cli.common import (
    App,
    Data,
    Json,
    MessageId,
    Payload,
    PriorityName,
    client,
    parse_json,
    priority_of,
    run,
    say,
    say_json,
)


def send(
    recipient: App,
    record_type: Annotated[str, typer.Argument(metavar="TYPE", help="The record's type, such as command.")],
    payload: Payload,
    priority: PriorityName = None,
    message_id: MessageId = None,
    deadline: Annotated[
        float | None, typer.Option("--deadline", metavar="SECONDS", help="After so long it must not run any more.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="KEY", help="Records of one key are handled in order.")
    ] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Send a record to APP and print its receipt: it is stored, nobody needs to be there to take it."""
    value, level = parse_json(payload), priority_of(priority)

    async def work() -> None:
        async with client(data) as bus:
            receipt = await bus.send(
                recipient, record_type, value, priority=level, id=message_id, deadline=deadline, key=key
            )
        if json:
            say_json(receipt._asdict())
        else:
            say(f"{'already stored' if receipt.duplicate else 'stored'} {receipt.id} at {receipt.stream_id}")

    run(work())
