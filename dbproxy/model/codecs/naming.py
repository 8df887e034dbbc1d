"""Names and ids that both sides take: tool names and call ids, shortened or spelled otherwise, and back.

Pure. Sources: seed-001 sections 3.1, 3.3 and cases 17, 18, 77. Invariants: the same name is written the same way in
every request (a prompt cache depends on it); what was changed comes back exactly as it was; two names never become one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+\Z")
#: Gemini wants a letter or an underscore first.
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
_STRANGE: Final = re.compile(r"[^A-Za-z0-9_-]")
_DIGEST: Final = 8  # hexadecimal digits
_FOLDED: Final = "dbpid_"


class ToolNames:
    """Tool names as the other side takes them. ``limit`` is the longest name, ``pattern`` what may stand in one."""

    def __init__(self, names: Iterable[str] = (), *, limit: int = 64) -> None:
        self._limit = limit
        self._back: dict[str, str] = {}
        for name in names:
            self.out(name)

    def out(self, name: str) -> str:
        """The name for the other side: itself if it can be, else its tail with a digest."""
        short = name
        if len(name) > self._limit or not _NAME.match(name):
            digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
            tail = _STRANGE.sub("_", name)[-(self._limit - _DIGEST - 1) :]
            if not _NAME.match(tail):
                tail = "_" + tail[1:]
            short = f"{tail}_{digest}"
        self._back[short] = name
        return short

    def back(self, short: str) -> str:
        """The client's name of a tool that the model called; a name that nobody gave out stays as it is."""
        return self._back.get(short, short)


def client_id(upstream: str) -> str:
    """An upstream's call id as the client may see it: the Messages API allows letters, digits, ``_`` and ``-``."""
    if _PLAIN.match(upstream) and not upstream.startswith(_FOLDED):
        return upstream
    return _FOLDED + base64.urlsafe_b64encode(upstream.encode("utf-8", "surrogatepass")).decode().rstrip("=")


def upstream_id(client: str, *, limit: int = 64) -> str:
    """The upstream's own id back from what the client sends; one that would be too long becomes a digest of itself."""
    found = client
    if client.startswith(_FOLDED):
        folded = client[len(_FOLDED) :]
        try:
            found = base64.urlsafe_b64decode(folded + "=" * (-len(folded) % 4)).decode("utf-8", "surrogatepass")
        except (binascii.Error, ValueError):
            found = client
    if not found or len(found) > limit:
        return "call_" + hashlib.sha256(client.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return found
