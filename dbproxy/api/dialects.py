"""The dialects that dbproxy speaks, for providers: import it where a request is put into words, not at the start.

Re-exports only; loading it takes some ten milliseconds that a start can do without. Invariant: ``__all__`` is the whole
surface, pinned by a test.
"""

from __future__ import annotations

from dbproxy.model.codecs.chat import CHAT
from dbproxy.model.codecs.gemini import GEMINI
from dbproxy.model.codecs.native import NATIVE
from dbproxy.model.codecs.native.request import claude_body
from dbproxy.model.codecs.responses import RESPONSES
from dbproxy.model.codecs.thinking import without_foreign_thinking

__all__ = ["CHAT", "GEMINI", "NATIVE", "RESPONSES", "claude_body", "without_foreign_thinking"]
