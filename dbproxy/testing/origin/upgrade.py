"""The fake API's upgraded connections: an echo of bytes, or of WebSocket frames (RFC 6455, frames only).

For api.anthropic.com's WebSocket paths (anthropic-api 4.5); what matters to a proxy is that bytes pass both ways.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from dbproxy.testing.origin.answering import head_bytes

if TYPE_CHECKING:
    from dbproxy.testing.origin.connection import Peer
    from dbproxy.testing.origin.received import Received

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accept_key(key: str) -> str:
    """The Sec-WebSocket-Accept value for a client's key."""
    return base64.b64encode(hashlib.sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest()).decode()


def unmasked(buffer: bytearray) -> bytes | None:
    """Take one complete frame off ``buffer`` and return it as a server sends it, or None if more is needed."""
    if len(buffer) < 2:
        return None
    masked, length, at = buffer[1] & 0x80, buffer[1] & 0x7F, 2
    if length >= 126:
        width = 2 if length == 126 else 8
        if len(buffer) < at + width:
            return None
        length = int.from_bytes(buffer[at : at + width], "big")
        at += width
    mask_size = 4 if masked else 0
    if len(buffer) < at + mask_size + length:
        return None
    mask = bytes(buffer[at : at + mask_size])
    payload = bytes(buffer[at + mask_size : at + mask_size + length])
    if mask:
        payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    head = bytes([buffer[0], buffer[1] & 0x7F]) + bytes(buffer[2:at])
    del buffer[: at + mask_size + length]
    return head + payload


async def serve(peer: Peer, request: Received, kind: str, *, first: bytes) -> None:
    """Answer 101 and echo until the client ends the connection or closes the WebSocket."""
    fields = [("upgrade", request.header("upgrade") or "echo"), ("connection", "Upgrade")]
    key = request.header("sec-websocket-key")
    if key:
        fields.append(("sec-websocket-accept", accept_key(key)))
    request.sent.status = 101
    request.sent.head = head_bytes(101, "Switching Protocols", fields)
    await peer.send(request.sent.head)
    buffer = bytearray()
    data = first or await peer.more()
    while data:
        if kind == "echo":
            await _echo(peer, request, data)
        else:
            buffer += data
            while (frame := unmasked(buffer)) is not None:
                await _echo(peer, request, frame)
                if frame[0] & 0x0F == 8:  # close
                    request.sent.complete = True
                    return
        data = await peer.more()
    request.sent.complete = True


async def _echo(peer: Peer, request: Received, data: bytes) -> None:
    request.sent.framed += data
    request.sent.size += len(data)
    await peer.send(data)
