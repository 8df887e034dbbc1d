"""When work beside the event loop is done: behind the requests, which it shares the interpreter with.

Owns such a thread's waiting for a moment in which nothing passes through the loop. Imports nothing of dbproxy.
Invariants: what somebody waits for is begun at once; what waited for `PATIENCE` is begun however busy the loop is, in
short slices; nothing here is called by a request but `Pace.hurry` and counting a beat.

A lower priority for the thread would be simpler and was measured: on a machine whose cores are all in use it holds up
the loop for tens of milliseconds, since the thread is put aside while it holds the interpreter.
"""

from __future__ import annotations

import threading
import time

#: Seconds without anything passing after which the loop counts as quiet.
QUIET = 0.002
#: Seconds that a job waits at most for such a moment.
PATIENCE = 0.5
#: Seconds of work in one go, and how long that may become while every look between finds the loop quiet. It is short,
#: since work that keeps the only core busy makes the loop look quiet.
SLICE, LONG_SLICE = 0.001, 0.008
#: How many times as long as the slice the pause behind it is when the loop was not quiet.
REST = 19.0


class Pace:
    """For one thread with a queue. ``beats`` is counted up by the event loop with all that passes."""

    __slots__ = ("_began", "_end", "_hurried", "_hurry_to", "_length", "_rest_until", "_seen", "beats")

    def __init__(self) -> None:
        self.beats = 0
        self._hurried = threading.Event()
        self._hurry_to = 0
        self._length = SLICE
        self._began = 0.0  # when the slice began that disturbs the loop, 0.0 in one that does not
        self._end = 0.0  # when the slice is over
        self._rest_until = 0.0
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

    def wait(self, number: int, since: float) -> None:
        """Wait for the moment to begin a job, which was queued at ``since`` on the monotonic clock."""
        self._began = 0.0
        while True:
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
            if now >= since + PATIENCE and now >= self._rest_until:
                self._began, self._end = now, now + SLICE
                return

    def done(self) -> None:
        """A job is done."""
        if self._began:
            now = time.monotonic()
            self._rest_until = now + REST * (now - self._began)
