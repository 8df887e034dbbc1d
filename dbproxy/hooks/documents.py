"""Small files that plugins keep: written whole or not at all, or a line at a time.

Its functions block: call them in a thread. Invariants: nobody but the user can read what is written (0600, in folders
made 0700); a file that cannot be read is as none.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def write_document(file: Path, document: object) -> None:
    """Put a JSON document in the place of ``file``: a reader sees the old one or the new one. Raises OSError."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogatepass") as stream:
            json.dump(document, stream)
        part.replace(file)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def read_document(file: Path) -> dict[str, Any]:
    """A JSON object that was kept; an empty one where there is none, or none that can be read."""
    try:
        found = json.loads(file.read_text("utf-8", "surrogatepass"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def stamp_of(file: Path) -> tuple[int, int] | None:
    """What changes whenever a document is written anew, None without a file."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_ino


def append_line(file: Path, line: object) -> None:
    """Add one JSON line to ``file``. Raises OSError."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
