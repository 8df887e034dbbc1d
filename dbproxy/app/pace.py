"""When work beside the event loop is done: behind the requests, which it shares the interpreter with.

Owns such a thread's waiting for a moment in which nothing passes through the loop. Imports nothing of dbproxy.
Invariants: what somebody waits for is begun at once; what waited for `PATIENCE` is begun however busy the loop is, in
short slices, the more often the more waits; a request calls nothing here but `Pace.hurry`, and counts a beat.

A lower priority for the thread would be simpler and was measured: on a machine whose cores are all in use it holds up
the loop for tens of milliseconds, since the thread is put aside while it holds the interpreter.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds without anything passing after which the loop counts as quiet.
QUIET = 0.002
#: Seconds that a job waits at most for such a moment, and how old one may grow before none waits for anything.
PATIENCE, OLDEST = 0.25, 1.25
#: Seconds of work in one go, and how long that may become while every look between finds the loop quiet. It is short,
#: since work that keeps the only core busy makes the loop look quiet.
SLICE, LONG_SLICE = 0.001, 0.008
#: How many times as long as the slice the pause behind it is when the loop was not quiet.
REST = 19.0


class Pace:
    """For one thread with a queue. ``beats`` is counted up by the event loop with all that passes."""

    __slots__ = ("_began", "_end", "_hurried", "_hurry_to", "_length", "_rested", "_seen", "_tired", "beats")

    def __init__(self) -> None:
        self.beats = 0
        self._hurried = threading.Event()
        self._hurry_to = 0
        self._length = SLICE
        self._began = 0.0  # when the slice began that disturbs the loop, 0.0 in one that does not
        self._end = 0.0  # when the slice is over
        self._rested = 0.0  # the end of the last slice that disturbed the loop
        self._tired = 0.0  # the pause behind it
        self._seen = -1  # the beats at which the loop was quiet

    def hurry(self, number: int) -> None:
        """Somebody waits for the job of this number: it and all before it go at once. From any thread."""
        self._hurry_to = max(self._hurry_to, number)
        self._hurried.set()

    def ready(self, number: int) -> bool:
        """May the job of this number begin without waiting?"""
        if number <= self._hurry_to:
            return True
        return (self._began > 0.0 or self.beats == self._seen) and time.monotonic() < self._end

    def wait(self, number: int, since: float, crowd: Callable[[], float]) -> None:
        """Wait for the moment to begin a job, which was queued at ``since`` on the monotonic clock.

        ``crowd`` is how much waits, as a part of what may at most: the more and the longer, the shorter the pauses.
        """
        self._began = 0.0
        while (room := 1.0 - max(crowd(), (time.monotonic() - since - PATIENCE) / (OLDEST - PATIENCE))) > 0.0:
            self._hurried.clear()
            if number <= self._hurry_to:
                return
            beats = self.beats
            if self._hurried.wait(QUIET):
                continue
            now = time.monotonic()
            if self.beats == beats:
                self._length = min(2 * self._length, LONG_SLICE) if beats == self._seen else SLICE
                self._seen, self._end = beats, now + self._length
                return
            if now >= since + PATIENCE * room and now >= self._rested + self._tired * room:
                self._began, self._end = now, now + SLICE
                return

    def done(self) -> None:
        """A job is done."""
        if self._began:
            self._rested = time.monotonic()
            self._tired = REST * (self._rested - self._began)
