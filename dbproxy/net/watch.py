"""Notices that a peer hung up while nobody is reading from it.

An agent that is told to stop just closes its socket, often before the first byte of the answer. Nobody reads from the
client then, and a reader task per connection would cost memory and a wake-up per request. So one poll object for the
whole process watches only for hang-ups, and one task waits for that object itself.

Invariants
- ``add`` and ``remove`` never block. A callback runs at most once per ``add``, in the watching task;
  it must not block.
- A socket is removed before it is closed, so that its number cannot mean another connection.
- Where the platform has neither epoll nor kqueue nothing is noticed early; a failing write still is.
"""

from __future__ import annotations

import select
import sys
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable


class HangupWatch:
    """Calls back when a socket's peer closed its sending side or the connection broke."""

    def __init__(self) -> None:
        self._callbacks: dict[int, Callable[[], None]] = {}
        if sys.platform == "linux":
            self._epoll = select.epoll()
        elif hasattr(select, "kqueue"):
            self._kqueue = select.kqueue()

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        """Watch ``fd``; ``callback`` is called when its peer hangs up."""
        if sys.platform == "linux":
            try:
                self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLONESHOT)
            except OSError:
                return
        elif hasattr(select, "kqueue"):
            self._change(fd, select.KQ_EV_ADD | select.KQ_EV_CLEAR)
        self._callbacks[fd] = callback

    def remove(self, fd: int, callback: Callable[[], None] | None = None) -> None:
        """Stop watching ``fd``; harmless if it is not watched, or no longer for ``callback`` where one is given."""
        known = self._callbacks.get(fd)
        if known is None or (callback is not None and known != callback):
            return
        del self._callbacks[fd]
        if sys.platform == "linux":
            try:
                self._epoll.unregister(fd)
            except (OSError, ValueError):
                pass
        elif hasattr(select, "kqueue"):
            self._change(fd, select.KQ_EV_DELETE)

    def __len__(self) -> int:
        return len(self._callbacks)

    def _change(self, fd: int, flags: int) -> None:
        if sys.platform != "linux" and hasattr(select, "kqueue"):
            try:
                self._kqueue.control([select.kevent(fd, select.KQ_FILTER_READ, flags)], 0, 0)
            except OSError:
                pass

    def _gone(self) -> list[int]:
        """The sockets whose peers hung up since the last call."""
        if sys.platform == "linux":
            return [fd for fd, _ in self._epoll.poll(0)]
        else:
            events = self._kqueue.control([], 256, 0) if hasattr(select, "kqueue") else []
            return [event.ident for event in events if event.flags & select.KQ_EV_EOF]

    def _fileno(self) -> int | None:
        if sys.platform == "linux":
            return self._epoll.fileno()
        else:
            return self._kqueue.fileno() if hasattr(select, "kqueue") else None

    async def run(self) -> None:
        """Watch until cancelled."""
        fd = self._fileno()
        if fd is None:
            await trio.sleep_forever()
        try:
            while True:
                await trio.lowlevel.wait_readable(fd)
                for gone in self._gone():
                    callback = self._callbacks.get(gone)
                    if callback is not None:
                        callback()
        finally:
            trio.lowlevel.notify_closing(fd)
            if sys.platform == "linux":
                self._epoll.close()
            elif hasattr(select, "kqueue"):
                self._kqueue.close()
