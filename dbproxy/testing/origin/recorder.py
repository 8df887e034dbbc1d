"""Writes what the fake API saw into a folder, for tests that run it as a process of its own.

``NNNNNN.head`` and ``NNNNNN.body`` are the request's exact bytes (the body with its framing), ``NNNNNN.json`` the
rest. Files are written by a thread; what is still queued at the end is written before ``close`` returns.
"""

from __future__ import annotations

import json
import queue
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from dbproxy.testing.origin.received import Received


class Recorder:
    """One folder, one writer thread."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._queue: queue.SimpleQueue[tuple[int, bytes, bytes, dict[str, Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="origin recorder", daemon=True)
        self._thread.start()

    def note(self, request: Received) -> None:
        """Queue a finished request; never blocks."""
        sent = request.sent
        about = {
            "number": request.number,
            "connection": request.connection.number,
            "tls": request.connection.tls,
            "alpn": request.connection.alpn,
            "server_name": request.connection.server_name,
            "time": request.time,
            "method": request.method,
            "target": request.target,
            "fields": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.fields],
            "trailers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.trailers],
            "size": request.size,
            "sha256": request.digest,
            "complete": request.complete,
            "role": request.role,
            "answer": {
                "status": sent.status,
                "head": sent.head.decode("latin-1"),
                "body": bytes(sent.body).decode("latin-1"),  # one character a byte
                "complete": sent.complete,
            },
        }
        self._queue.put((request.number, request.head, request.framed or request.body, about))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            number, head, body, about = item
            stem = self.folder / f"{number:06d}"
            stem.with_suffix(".head").write_bytes(head)
            stem.with_suffix(".body").write_bytes(body)
            # Last and by renaming: whoever sees the .json finds all three whole.
            partial = stem.with_suffix(".part")
            partial.write_text(json.dumps(about, indent=1), "utf-8")
            partial.rename(stem.with_suffix(".json"))

    def close(self, seconds: float = 5.0) -> None:
        """Write what is queued and end the thread."""
        self._queue.put(None)
        self._thread.join(seconds)
