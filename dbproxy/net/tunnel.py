"""Blind two-way relay between two connected sockets.

Owns: moving bytes that nobody reads (pass-through CONNECT, upgraded connections), with half-close, backpressure and
honest endings. Must never import anything of dbproxy: it knows sockets, not protocols.

Invariants:
- Bytes leave in the order and number in which they came, or the receiver sees a broken connection; a cut stream never
  ends like a complete one.
- At most one pipe load (or one receive buffer) per direction is held: a peer that stops reading stops the other from
  writing, for as long as it likes.
- ``relay`` owns both sockets: whichever way it ends, cancellation included, both are closed and no pipe is left behind.

On Linux the bytes move through a pipe with splice(2) and never enter this process: cheaper per megabyte than a C
proxy that copies (performance facts, section 4). A pipe is empty between two rounds, so it belongs to nobody: tunnels
borrow one per round from a small stock, and ten thousand idle tunnels hold none.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final, Literal

import trio

if sys.platform == "linux":
    import fcntl
    import termios

CHUNK: Final = 256 * 1024  # one round's most: also how long (some 50 us) the loop works for one tunnel at a stretch
COPIED_CHUNK: Final = 64 * 1024  # above that malloc asks the kernel for fresh pages every time
WATCH_SECONDS: Final = (
    2.0  # how often a connection that nobody reads from at the moment is asked whether it still lives
)
IDLE_PIPES: Final = 4  # kept for the next rounds; only blocked rounds hold a pipe beyond their own turn

_PIPE_SIZE: Final = CHUNK
_FLAGS: Final = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)
_NO_SPLICE: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})
_ABORT: Final = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)

Socket = trio.socket.SocketType | socket.socket
Ending = Literal["closed", "reset_by_a", "reset_by_b", "idle"]


@dataclass(frozen=True, slots=True)
class TunnelStats:
    """What a finished tunnel moved, in bytes, and how it ended.

    ``closed``: both sides sent their end. ``reset_by_a``, ``reset_by_b``: that side broke off, the other was broken
    off in turn. ``idle``: the idle limit passed. ``spliced``: the bytes did not pass through this process.
    """

    bytes_a_to_b: int
    bytes_b_to_a: int
    how: Ending
    spliced: bool


async def relay(
    a: Socket,
    b: Socket,
    *,
    preface_to_b: bytes = b"",
    idle_timeout: float | None = None,
    splice: bool = True,
) -> TunnelStats:
    """Move bytes both ways until both sides ended or one broke off; then both sockets are closed.

    ``a`` is the client's side, ``b`` the server's: a dead client ends the tunnel at once, a dead server only after the
    client has what came before.

    ``preface_to_b`` goes to ``b`` before anything that ``a`` sends: bytes that were read behind a CONNECT head.
    ``idle_timeout``: seconds without a byte in either direction after which the tunnel is cut; None means never,
    because minutes of silence and a client stopped by Ctrl-Z are normal. ``splice=False`` forces the portable path.
    Raises nothing for what peers do; cancellation passes through after both sockets are closed. The caller's objects
    must not be used afterwards.
    """
    return await _Tunnel(_taken(a), _taken(b), idle_timeout, splice).run(preface_to_b)


def _taken(sock: Socket) -> socket.socket:
    """The standard library's socket, so that the pumps can call it without a scheduling point per call."""
    if not isinstance(sock, socket.socket):
        sock = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    sock.setblocking(False)
    return sock


def _close(sock: socket.socket, *, cut: bool) -> None:
    """``cut``: so that the peer sees a reset instead of a clean end, where the transport knows resets."""
    if cut:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        except OSError:
            pass  # already dead: a plain close says what can be said
    trio.lowlevel.notify_closing(sock)
    sock.close()


class _Side:
    """One socket of a tunnel and what is known about it."""

    __slots__ = ("broken", "ended", "fd", "name", "received", "sock")

    def __init__(self, name: Literal["a", "b"], sock: socket.socket) -> None:
        self.name = name
        self.sock = sock
        self.fd = sock.fileno()
        self.received = 0  # bytes that came from here and were handed on
        self.ended = False  # it was told the end of what the other side sent
        self.broken = False  # the connection failed: its own fault, whichever call noticed


class _Broken(Exception):
    """A socket call failed on ``side``."""

    def __init__(self, side: _Side) -> None:
        self.side = side


class _Tunnel:
    def __init__(self, a: socket.socket, b: socket.socket, idle_timeout: float | None, splice: bool) -> None:
        self.a = _Side("a", a)
        self.b = _Side("b", b)
        self.idle_timeout = idle_timeout
        self.splice = splice and _PIPES.usable
        self.spliced = False
        self.running = 2
        self.scope = trio.CancelScope()

    async def run(self, preface: bytes) -> TunnelStats:
        try:
            self._count(self.a, 0)
            with self.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, self.a, self.b, preface)
                    nursery.start_soon(self._pump, self.b, self.a, b"")
        finally:
            for side in (self.a, self.b):
                # A peer that was told its end may still be reading what the kernel holds for it: no reset there.
                _close(side.sock, cut=not (side.ended or side.broken))
        return TunnelStats(self.a.received, self.b.received, self._ending(), self.spliced)

    def _ending(self) -> Ending:
        if self.a.broken:
            return "reset_by_a"
        if self.b.broken:
            return "reset_by_b"
        return "idle" if self.running else "closed"

    def _count(self, source: _Side, moved: int) -> None:
        source.received += moved
        if self.idle_timeout is not None:
            self.scope.deadline = trio.current_time() + self.idle_timeout

    async def _pump(self, source: _Side, sink: _Side, preface: bytes) -> None:
        """One direction, to its end. A failed source cuts the tunnel; a failed sink only ends this direction:
        what it said before it died is still on the way in the other one, which finds the failure at its end.
        """
        try:
            if preface:
                await self._send(source, sink, preface)
                self._count(source, len(preface))
            await self._move_all(source, sink)
            if source.broken:  # a reset that a write noticed looks like an end to the read that comes after it
                await self._let_client_finish(sink)
            else:
                sink.ended = True
                self._shut(sink)
        except _Broken as failure:
            failure.side.broken = True
            if failure.side is source:
                await self._let_client_finish(sink)
                self.scope.cancel()
        self.running -= 1
        if self.running == 0:
            self.scope.cancel()  # nothing is left to watch
        elif not sink.broken:
            await self._watch(source)

    @staticmethod
    def _shut(sink: _Side) -> None:
        try:
            sink.sock.shutdown(socket.SHUT_WR)
        except OSError as failure:
            raise _Broken(sink) from failure

    async def _move_all(self, source: _Side, sink: _Side) -> None:
        """Every byte of ``source`` to ``sink`` until the source's end."""
        more = False  # the round before was a full one: ask again without waiting
        while True:
            if more:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(source.fd)
            pipe = _PIPES.borrow() if self.splice else None
            try:
                if pipe is None:
                    moved = await self._round_copied(source, sink)
                else:
                    moved = await self._round_spliced(source, sink, pipe)
            except BlockingIOError:
                more = False
                continue
            if not moved:
                return
            self._count(source, moved)
            more = moved >= COPIED_CHUNK

    async def _round_copied(self, source: _Side, sink: _Side) -> int:
        """Receive once and send it all: the bytes moved, 0 at the end. Raises BlockingIOError if nothing was there."""
        try:
            data = source.sock.recv(COPIED_CHUNK)
        except BlockingIOError:
            raise
        except OSError as failure:
            raise _Broken(source) from failure
        if data:
            await self._send(source, sink, data)
        return len(data)

    async def _round_spliced(self, source: _Side, sink: _Side, pipe: _Pipe) -> int:
        """The same through a pipe, which goes back to the stock only when it is empty."""
        try:
            moved = os.splice(source.fd, pipe.into, CHUNK, flags=_FLAGS)
        except OSError as failure:
            _PIPES.give_back(pipe)
            if isinstance(failure, BlockingIOError):
                raise
            if failure.errno in _NO_SPLICE:
                self.splice = False  # a kernel, sandbox or kind of socket without it
                return await self._round_copied(source, sink)
            raise _Broken(source) from failure
        left = moved
        try:
            while left:
                try:
                    left -= os.splice(pipe.out, sink.fd, left, flags=_FLAGS)
                except BlockingIOError:
                    await self._wait_writable(source, sink)
                except OSError as failure:
                    if failure.errno not in _NO_SPLICE:
                        raise _Broken(sink) from failure
                    self.splice = False
                    data = os.read(pipe.out, left)
                    await self._send(source, sink, data)
                    left -= len(data)
        finally:
            if left:
                pipe.close()  # somebody's bytes are in it
            else:
                _PIPES.give_back(pipe)
        if moved and self.splice:
            self.spliced = True
        return moved

    async def _send(self, source: _Side, sink: _Side, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[sink.sock.send(view) :]
            except BlockingIOError:
                await self._wait_writable(source, sink)
            except OSError as failure:
                raise _Broken(sink) from failure

    async def _wait_writable(self, source: _Side, sink: _Side) -> None:
        """Wait for room, however long. Nobody reads ``source`` meanwhile, so its death is looked for by hand; but what
        a dead server said before is still the client's.
        """
        while source is self.a:
            with trio.move_on_after(WATCH_SECONDS):
                await trio.lowlevel.wait_writable(sink.fd)
                return
            _check(source)
        await trio.lowlevel.wait_writable(sink.fd)

    async def _let_client_finish(self, sink: _Side) -> None:
        """Before a dead server's client is reset, wait until its kernel has all that was written: a reset drops the
        rest. A stopped client is waited for, a dead one is not. Where the kernel does not tell, nothing is waited for.
        """
        delay = 0.002
        while sys.platform == "linux" and sink is self.a:
            try:
                unsent = fcntl.ioctl(sink.fd, termios.TIOCOUTQ, bytes(4))
                _check(sink)
            except (OSError, _Broken):
                return
            if not any(unsent):
                return
            await trio.sleep(delay)
            delay = min(2 * delay, WATCH_SECONDS)

    async def _watch(self, source: _Side) -> None:
        """``source`` has sent its end and is only written to: see that it still lives, until the tunnel ends.

        Nothing is reported for such a socket while there is nothing to write: its reset shows as a pending error.
        """
        try:
            while True:
                await trio.sleep(WATCH_SECONDS)
                _check(source)
        except _Broken:
            source.broken = True
            self.scope.cancel()


def _check(side: _Side) -> None:
    if side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise _Broken(side)


@dataclass(frozen=True, slots=True)
class _Pipe:
    out: int
    into: int

    def close(self) -> None:
        os.close(self.out)
        os.close(self.into)


class _PipeStock:
    """Empty pipes for the next rounds."""

    def __init__(self) -> None:
        self.usable = sys.platform == "linux" and hasattr(os, "splice")
        self._empty: list[_Pipe] = []

    def borrow(self) -> _Pipe | None:
        """An empty pipe, or None when there are no file descriptors for one: the round is copied then."""
        if self._empty:
            return self._empty.pop()
        try:
            pipe = _Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return None
        try:
            fcntl.fcntl(pipe.into, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        except OSError:
            pass  # over the user's share of pipe memory: the default size works as well
        return pipe

    def give_back(self, pipe: _Pipe) -> None:
        if len(self._empty) < IDLE_PIPES:
            self._empty.append(pipe)
        else:
            pipe.close()


_PIPES: Final = _PipeStock()
