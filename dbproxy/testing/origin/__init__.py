"""A fake Messages API for tests, the demo and benchmarks: ``open_origin``, or ``python -m dbproxy.testing.origin``.

Its HTTP is its own, over h11 and apart from ``dbproxy.wire``, since it is the oracle that the proxy is measured by.
"""

from __future__ import annotations

from dbproxy.testing.origin.events import text, thinking, tool_use
from dbproxy.testing.origin.received import Connection, Received, Sent
from dbproxy.testing.origin.script import Answer, Match, Rule, Script, document, fail, say, script_from
from dbproxy.testing.origin.server import Origin, open_origin

__all__ = [
    "Answer",
    "Connection",
    "Match",
    "Origin",
    "Received",
    "Rule",
    "Script",
    "Sent",
    "document",
    "fail",
    "open_origin",
    "say",
    "script_from",
    "text",
    "thinking",
    "tool_use",
]
