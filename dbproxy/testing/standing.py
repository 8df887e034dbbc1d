"""A server of ours as a process: it says where it listens, stands until it is told to end, and fails in one line."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING

import trio

from dbproxy.errors import DbproxyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping


async def stand(ready: Mapping[str, object], *, until_eof: bool) -> None:
    """Print ``ready`` as one line of JSON, and return at SIGINT or SIGTERM, or at the end of standard input."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:  # before anybody can know that we stand
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        async with trio.open_nursery() as nursery:
            if until_eof:
                nursery.start_soon(_until_eof, nursery.cancel_scope)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break


def run_server(name: str, serve: Callable[[], Awaitable[None]]) -> int:
    """Run it; the exit code: 0 after a clean stop, 1 with one line on stderr."""
    failure: BaseException | None = None
    try:
        trio.run(serve)
    except* (DbproxyError, OSError) as failures:
        failure = failures
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
    if failure is None:
        return 0
    sys.stderr.write(f"{name}: {failure}\n")
    return 1


async def _until_eof(scope: trio.CancelScope) -> None:
    await trio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
    scope.cancel()
