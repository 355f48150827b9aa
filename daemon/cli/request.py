"""`petalbus request`: send a record and wait for the reply."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any

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
from petalbus.daemon.cli.exits import Refused

if TYPE_CHECKING:
    from petalbus.schemas.record import Record


def request(
    recipient: App,
    record_type: Annotated[str, typer.Argument(metavar="TYPE", help="The record's type, such as command.")],
    payload: Payload,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="How long to wait; then it must not run.")
    ] = 5.0,
    priority: PriorityName = None,
    message_id: MessageId = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="KEY", help="Records of one key are handled in order.")
    ] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Send a record to APP and print its replies up to the result."""
    value, level = parse_json(payload), priority_of(priority)

    def show(reply: Record) -> None:
        if json:
            from petalbus.daemon.cli.showing import as_object

            say_json(as_object(reply))
        else:
            kind = str(reply.kind)
            say(f"{kind} from {reply.source}: {_text(reply.data)}")

    async def work() -> None:
        from petalbus.daemon.bus.errors import ReplyError, RequestCancelled

        async with client(data) as bus:
            try:
                reply = await bus.request(
                    recipient,
                    record_type,
                    value,
                    timeout=timeout,
                    priority=level,
                    id=message_id,
                    key=key,
                    on_progress=show,
                )
            except (ReplyError, RequestCancelled) as error:
                if json:
                    show(error.record)
                code = error.error_code.lower() if isinstance(error, ReplyError) else error.code
                raise Refused(str(error), code=code) from None
        show(reply)

    run(work())


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes: {value[:64].hex()}{'...' if len(value) > 64 else ''}"
    return jsonlib.dumps(value, ensure_ascii=False)
