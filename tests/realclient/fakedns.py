"""A name server for the island: every name is 127.0.0.1, and every question is noted.

A client that goes past its proxy must ask for a name, so the notes show it.
"""

from __future__ import annotations

import socket
import struct
import threading

_A = 1
_HEADER = 12
_SHORT_TTL = 5


class FakeDns:
    """Answers on 127.0.0.1:53 from a thread until the process ends. `asked` holds the names in order."""

    def __init__(self, port: int = 53) -> None:
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, name="fake dns", daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, peer = self._socket.recvfrom(4096)
            try:
                name, answer = reply(query)
            except (IndexError, struct.error, UnicodeDecodeError):
                continue
            self.asked.append(name)
            self._socket.sendto(answer, peer)


def reply(query: bytes) -> tuple[str, bytes]:
    """The name that is asked for and the answer: 127.0.0.1 for an address, an empty one for all else."""
    labels, position = [], _HEADER
    while length := query[position]:
        labels.append(query[position + 1 : position + 1 + length].decode("ascii"))
        position += 1 + length
    (kind,) = struct.unpack_from(">H", query, position + 1)
    question = query[_HEADER : position + 5]
    record = struct.pack(">HHHIH4s", 0xC00C, _A, 1, _SHORT_TTL, 4, socket.inet_aton("127.0.0.1")) if kind == _A else b""
    head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, 1 if record else 0, 0, 0)
    return ".".join(labels), head + question + record
