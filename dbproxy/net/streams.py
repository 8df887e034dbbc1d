"""Byte streams over non-blocking sockets: plain, and TLS over memory BIOs.

Owns: reading as much as there is, decrypting all of it, writing it in one go. Must never know HTTP.

Why not ``trio.SSLStream``: it yields one TLS record per call and locks on every one, which costs eight times as much
per streamed event. Here one ``recv`` takes what the kernel holds, every record in it is decrypted, and what is written
leaves in one ``send``.

Invariants
- One task reads and one task writes a stream at a time. Decrypting and encrypting are synchronous, so a reader and a
  writer never meet inside OpenSSL.
- A write that was cancelled or failed leaves the stream broken for good: the peer may hold half a record.
- End of file without the peer's close_notify is remembered in ``truncated``, because an attacker can forge it.
"""

from __future__ import annotations

import socket
import ssl
import struct
from typing import Any

import trio
from trio.lowlevel import notify_closing, wait_readable, wait_writable

from dbproxy.errors import PeerError

#: The most that one ``receive`` returns, in bytes. Enough for a burst, small enough to stay fair and in the cache.
RECEIVE_SIZE = 262144

# Shared by all streams: filled and emptied between two awaits, never across one.
_cipher = bytearray(RECEIVE_SIZE)
_cipher_view = memoryview(_cipher)
_CLEAR_SIZE = RECEIVE_SIZE + 32768
_clear = bytearray(_CLEAR_SIZE)
_clear_view = memoryview(_clear)


class ConnectionBroken(PeerError):
    """The peer reset the connection, broke TLS, or an earlier write was interrupted."""


class SocketStream:
    """A plain byte stream over a connected, non-blocking socket.

    ``prefix`` is what was already received from the peer, for example behind a CONNECT head.
    """

    __slots__ = ("_broken", "_closed", "_prefix", "bytes_in", "bytes_out", "eof", "sock", "truncated")

    secure = False

    def __init__(self, sock: socket.socket, prefix: bytes = b"") -> None:
        self.sock = sock
        self.eof = False
        self.truncated = False
        self.bytes_in = 0
        self.bytes_out = 0
        self._prefix = prefix
        self._closed = False
        self._broken = False

    @property
    def closed(self) -> bool:
        """Whether ``close`` or ``abort`` was called."""
        return self._closed

    @property
    def broken(self) -> bool:
        """Whether a write failed or was interrupted: nothing more can be sent on it."""
        return self._broken

    def unread(self, data: bytes) -> None:
        """Put bytes back in front of what will be received next."""
        if data:
            self._prefix = data + self._prefix

    @property
    def buffered(self) -> bool:
        """Whether ``receive`` would return without waiting."""
        return bool(self._prefix)

    async def receive(self) -> bytes:
        """The next bytes, up to RECEIVE_SIZE; ``b""`` at the end of the stream. Raises ConnectionBroken."""
        if self._prefix:
            data, self._prefix = self._prefix, b""
            await trio.lowlevel.checkpoint()
            return data
        size = await self._fill()
        return bytes(_cipher_view[:size])

    async def send(self, data: bytes) -> None:
        """Write all of ``data``; returns when the kernel took it. Raises ConnectionBroken."""
        if self._broken:
            raise ConnectionBroken("an earlier write on this connection was interrupted")
        await self._push(data)

    def send_nowait(self, data: bytes) -> bytes:
        """Write what the kernel takes at once; returns the rest."""
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            return data
        except OSError as error:
            self._broken = True
            raise ConnectionBroken(f"connection lost: {error.strerror or error}") from None
        self.bytes_out += sent
        return data[sent:]

    async def _fill(self) -> int:
        """Receive into the shared buffer; 0 at the end of the stream."""
        if self._closed:
            raise ConnectionBroken("the connection is closed")
        sock = self.sock
        while True:
            try:
                await wait_readable(sock)
                size = sock.recv_into(_cipher)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                self._broken = True
                raise ConnectionBroken(f"connection lost: {error.strerror or error}") from None
            except trio.ClosedResourceError:
                raise ConnectionBroken("the connection was closed here") from None
            if not size:
                self.eof = True
            self.bytes_in += size
            return size

    async def _push(self, data: bytes) -> None:
        sock = self.sock
        size = len(data)
        self._broken = True  # until the whole of it is out: a cancelled write is a broken connection
        try:
            sent = sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            raise ConnectionBroken(f"connection lost: {error.strerror or error}") from None
        if sent < size:
            view = memoryview(data)
            while sent < size:
                try:
                    await wait_writable(sock)
                    sent += sock.send(view[sent:])
                except (BlockingIOError, InterruptedError):
                    continue
                except OSError as error:
                    raise ConnectionBroken(f"connection lost: {error.strerror or error}") from None
                except trio.ClosedResourceError:
                    raise ConnectionBroken("the connection was closed here") from None
        self.bytes_out += size
        self._broken = False

    async def send_eof(self) -> None:
        """Half-close: the peer sees the end of our data and may still send."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise ConnectionBroken(f"connection lost: {error.strerror or error}") from None
        await trio.lowlevel.checkpoint()

    def is_quiet(self) -> bool:
        """Whether the peer neither ended the idle stream nor sent anything."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return not self._prefix
        except OSError:
            return False
        return False

    def drop(self) -> None:
        """Close without a proper end: inside TLS the peer sees a truncated stream."""
        SocketStream.close(self)

    def close(self) -> None:
        """Close at once; what the kernel holds still goes out. Never blocks, may be called twice."""
        if not self._closed:
            self._closed = True
            notify_closing(self.sock)
            self.sock.close()

    def abort(self) -> None:
        """Close with a reset, so that the peer cannot take what it got for the whole."""
        if not self._closed:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                pass
            self.drop()  # a close_notify in front of the reset would say that this was all


class TlsStream(SocketStream):
    """TLS over a socket, either side, by ``ssl.SSLObject`` and two memory BIOs."""

    __slots__ = ("_incoming", "_outgoing", "_read", "_unsent", "_writing", "tls")

    secure = True

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
        prefix: bytes = b"",
    ) -> None:
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        # One call per record: past the method of ssl.SSLObject, which only hands its arguments on.
        self._read = getattr(self.tls, "_sslobj", self.tls).read
        self._unsent = b""
        self._writing = False
        if prefix:
            self._incoming.write(prefix)
            self.bytes_in += len(prefix)

    async def handshake(self, turn: trio.CapacityLimiter | None = None) -> None:
        """Complete the handshake. Raises ssl.SSLError as OpenSSL says it, or ConnectionBroken. Put a deadline on it.

        ``turn`` bounds how many handshakes compute in one round of the event loop. It is never held while the peer is
        waited for: a few peers that stall would keep out all others.
        """
        tls = self.tls
        while True:
            try:
                if turn is None or self.bytes_out:
                    tls.do_handshake()  # what is left costs little (after a HelloRetryRequest, which is rare, not so)
                else:
                    async with turn:
                        tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                size = await self._fill()
                if size:
                    self._incoming.write(_cipher_view[:size])
                else:
                    self._incoming.write_eof()
                continue
            except ssl.SSLError:
                # The alert that explains it to the peer is in the outgoing BIO.
                try:
                    await self._flush()
                except ConnectionBroken:
                    pass
                raise
            break
        await self._flush()
        # Data that came with the client's last flight.
        early = self._decrypt()
        if early:
            self._prefix = bytes(_clear_view[:early])

    async def receive(self) -> bytes:
        """Decrypted bytes; ``b""`` at the end. Raises ConnectionBroken, also on bad records."""
        if self._prefix:
            data, self._prefix = self._prefix, b""
            await trio.lowlevel.checkpoint()
            return data
        while True:
            if self.eof:
                await trio.lowlevel.checkpoint()
                return b""
            size = await self._fill()
            if size:
                self._incoming.write(_cipher_view[:size])
            else:
                self.truncated = True
                return b""
            got = self._decrypt()
            data = bytes(_clear_view[:got]) if got else b""
            if self._outgoing.pending:
                self._flush_nowait()
            if got:
                return data

    def _decrypt(self) -> int:
        """Decrypt what was received into the shared buffer; returns how much. Notes the peer's close_notify."""
        tls, incoming, view, read = self.tls, self._incoming, _clear_view, self._read
        room = _CLEAR_SIZE
        got = 0
        step: Any
        try:
            while True:
                step = read(room - got, view[got:] if got else view)
                if not step:
                    self.eof = True
                    break
                got += step
                if (not incoming.pending and not tls.pending()) or got == room:
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.eof = True
        except ssl.SSLError as error:
            self._broken = True
            if not got:
                raise ConnectionBroken(f"TLS failed: {error.reason or error}") from None
            self.eof = self.truncated = True
        return got

    def _flush_nowait(self) -> None:
        """Send what OpenSSL itself wants to say (key updates), unless a write of ours is under way."""
        if self._writing:
            return
        self._unsent += self._outgoing.read()
        try:
            self._unsent = self.send_nowait(self._unsent)
        except ConnectionBroken:
            self._unsent = b""

    async def _flush(self) -> None:
        data = self._unsent + self._outgoing.read()
        self._unsent = b""
        if data:
            await self._push(data)

    async def send(self, data: bytes) -> None:
        """Encrypt and write all of ``data``; returns when the kernel took it."""
        if self._broken:
            raise ConnectionBroken("an earlier write on this connection was interrupted")
        if len(data) <= RECEIVE_SIZE:
            await self._send_piece(data)
        else:
            # Encrypting a held 32 MB body in one go would keep it in memory twice more.
            view = memoryview(data)
            for at in range(0, len(data), RECEIVE_SIZE):
                await self._send_piece(view[at : at + RECEIVE_SIZE])

    async def _send_piece(self, data: bytes | memoryview) -> None:
        size = len(data)
        try:
            sent = self.tls.write(data)
            while sent < size:
                sent += self.tls.write(memoryview(data)[sent:])
        except ssl.SSLError as error:
            self._broken = True
            raise ConnectionBroken(f"TLS failed: {error.reason or error}") from None
        out = self._outgoing.read()
        if self._unsent:
            out, self._unsent = self._unsent + out, b""
        self._writing = True
        try:
            await self._push(out)
        finally:
            self._writing = False

    async def send_eof(self) -> None:
        """Say close_notify and half-close; the peer may still send."""
        try:
            self.tls.unwrap()
        except (ssl.SSLError, ValueError):
            pass
        await self._flush()
        await super().send_eof()

    def is_quiet(self) -> bool:
        """Whether the peer neither ended the idle stream nor sent data; TLS of its own (tickets) is taken in."""
        try:
            size = self.sock.recv_into(_cipher)
        except (BlockingIOError, InterruptedError):
            return not self.eof
        except OSError:
            return False
        if not size:
            return False
        self._incoming.write(_cipher_view[:size])
        try:
            return not self._decrypt() and not self.eof
        except ConnectionBroken:
            return False

    def close(self) -> None:
        """Say close_notify if the kernel takes it at once, then close."""
        if not self._closed and not self._broken and not self._writing and not self.truncated:
            try:
                self.tls.unwrap()
            except (ssl.SSLError, ValueError):
                pass
            out = self._unsent + self._outgoing.read()
            try:
                self.send_nowait(out)
            except ConnectionBroken:
                pass
        super().close()


async def close_gracefully(stream: SocketStream, seconds: float) -> None:
    """Close so that the peer still gets our last bytes although it is sending to us.

    Closing a socket with unread input makes the kernel reset the connection, and the reset can overtake the answer on
    its way (RFC 9112 section 9.6). So: half-close, read and drop for at most ``seconds``, then close.
    """
    with trio.move_on_after(seconds):
        try:
            if isinstance(stream, TlsStream):
                try:
                    stream.tls.unwrap()
                except (ssl.SSLError, ValueError):
                    pass
                await stream._flush()
            stream.sock.shutdown(socket.SHUT_WR)
            while not stream.eof and await stream._fill():
                pass
        except (ConnectionBroken, OSError):
            pass
    stream.drop()


def plain_socket(sock: trio.socket.SocketType) -> socket.socket:
    """Take the standard-library socket out of a trio socket, which must not be used afterwards."""
    plain = socket.socket(fileno=sock.detach())
    plain.setblocking(False)
    return plain
