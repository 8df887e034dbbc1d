"""Pins outlive this process, and are shared with one that is just being replaced.

Owns when the file is read and written. Imports trio and its own package. Invariants: nothing here is waited for by a
request but the first one of an agent that is not known here; a disk that fails is said, and pins hold in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from dbproxy.api import read_document, stamp_of, write_document

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dbproxy.api import Emit
    from dbproxy_subagent_routing.pins import Pin, Pins, Place


class Keeper:
    """The pins and their file. ``clock`` gives Unix seconds, ``life`` for how long a pin is kept without use."""

    def __init__(
        self, pins: Pins, file: Path, emit: Emit, *, clock: Callable[[], float], life: Callable[[], float]
    ) -> None:
        self.pins = pins
        self._file = file
        self._emit = emit
        self._clock = clock
        self._life = life
        self._stamp: tuple[int, int] | None = None
        self._saving = trio.Lock()
        self._new = trio.Event()

    async def load(self) -> None:
        """Take over what is in the file, if it is another than at the last look."""
        stamp = await trio.to_thread.run_sync(stamp_of, self._file)
        if stamp is not None and stamp != self._stamp:
            self.pins.take(await trio.to_thread.run_sync(read_document, self._file), self._clock(), self._life())
        self._stamp = stamp

    async def save(self) -> None:
        """Write down what changed. What another process wrote meanwhile is taken over first."""
        async with self._saving:
            if not self.pins.changed:
                return
            await self.load()
            self.pins.changed = False
            try:
                await trio.to_thread.run_sync(write_document, self._file, self.pins.to_json())
            except OSError as error:
                self._emit("route_not_kept", level="warning", reason=str(error))
            self._stamp = await trio.to_thread.run_sync(stamp_of, self._file)

    def put(self, pin: Pin) -> None:
        """Hold a thread, and write that down soon."""
        self.pins.put(pin)
        self._new.set()

    async def find(self, place: Place | None) -> Pin | None:
        """The pin of an agent's thread; a worker that is being replaced may have made it a moment ago."""
        pin = self.pins.get(place, self._clock())
        if pin is None and place is not None and not self.pins.passed(place):
            await self.load()
            pin = self.pins.get(place, self._clock())
        return pin

    async def wait(self, seconds: float) -> None:
        """Return when there is something to write, or after so long."""
        with trio.move_on_after(seconds):
            await self._new.wait()
        self._new = trio.Event()
