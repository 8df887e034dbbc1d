"""Fake servers of other providers: ``open_openai`` and ``open_gemini``, or ``python -m dbproxy.testing.providers``.

They refuse what the real ones are documented to refuse, are scripted like ``dbproxy.testing.origin``, and record every
request. ``ChatDialect``, ``ResponsesDialect``, ``GeminiDialect`` and ``MessagesDialect`` are how they speak, for the
conformance kit; ``open_anybody`` makes a server of any dialect. None of it shares code with the codecs that it judges.
"""

from __future__ import annotations

from dbproxy.testing.providers.asked import Asked
from dbproxy.testing.providers.chat import ChatDialect
from dbproxy.testing.providers.gemini import GeminiDialect
from dbproxy.testing.providers.messages import MessagesDialect
from dbproxy.testing.providers.responses import ResponsesDialect
from dbproxy.testing.providers.scenarios import MARKER
from dbproxy.testing.providers.server import GEMINI_KEY, OPENAI_KEY, open_anybody, open_gemini, open_openai

__all__ = [
    "GEMINI_KEY",
    "MARKER",
    "OPENAI_KEY",
    "Asked",
    "ChatDialect",
    "GeminiDialect",
    "MessagesDialect",
    "ResponsesDialect",
    "open_anybody",
    "open_gemini",
    "open_openai",
]
