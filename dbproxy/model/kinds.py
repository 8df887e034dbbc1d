"""Which of the client's requests is this one? Headers first, then the marks that each kind leaves in its body.

Owns the table of kinds (client facts 3.3 and 4.1). Looks at one request alone: whether an agent without headers speaks,
or whether a turn is the first after a compaction, is for linking to find out. Never does I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dbproxy.model.link import Evidence, RequestKind
from dbproxy.model.messages import header

if TYPE_CHECKING:
    from dbproxy.exchange import Fields
    from dbproxy.model.messages import MessagesRequest

#: What the client calls the tool that starts agents (client facts 3.1).
AGENT_TOOLS: Final = frozenset({"Agent", "Task"})
CLASS: Final = b"x-claude-code-request-class"
FIRST_PARTY_CLASS: Final = b"x-claude-1p-request-class"
AGENT_ID: Final = b"x-claude-code-agent-id"
PARENT_AGENT_ID: Final = b"x-claude-code-parent-agent-id"
AGENT_TYPE: Final = b"x-claude-code-agent-type"
COMPACTED: Final = b"x-claude-code-context-compacted"
COMPACTED_FIRST_PARTY: Final = b"x-cc-context-compacted"  # repeats it towards api.anthropic.com

_TITLE_SYSTEM: Final = ("You are naming a coding session", "Generate a concise, sentence-case title")
_TITLE_USER: Final = "Please write a 5-10 word title"
_TOPIC: Final = "Analyze if this message indicates a new conversation topic"
_CLASSIFIER: Final = b"auto-mode-classifier-"  # judges tool calls in auto mode, with the web tools' class
_WEB_TOOLS: Final = frozenset({"web_search", "web_fetch"})
_SPEAKERS: Final = {
    "main": RequestKind.MAIN,
    "subagent": RequestKind.SUBAGENT,
    "workflow": RequestKind.SUBAGENT,
}


def classify(view: MessagesRequest, fields: Fields, path: str = "/v1/messages") -> tuple[RequestKind, str, Evidence]:
    """The request's kind, its compaction (``manual``, ``auto``, ``reactive``, ``unknown`` or "") and why.

    ``path`` is the request's target; a query does not matter.
    """
    kind, compaction, source, detail = _classify(view, fields, path)
    return kind, compaction, Evidence("kind", str(kind), source, detail)


def _classify(view: MessagesRequest, fields: Fields, path: str) -> tuple[RequestKind, str, str, str]:
    if path.partition("?")[0].rstrip("/").endswith("/count_tokens"):
        return RequestKind.COUNT_TOKENS, "", "path", ""
    named = header(fields, CLASS)
    compaction = view.compaction(fields)
    if compaction:
        source = "header" if named == "compaction" or compaction != "unknown" else "instruction in the last message"
        return RequestKind.COMPACTION, compaction, source, compaction
    if view.max_tokens == 0:
        return RequestKind.WARMUP, "", "body", "max_tokens 0"
    if named in _SPEAKERS:
        return _speaker(_SPEAKERS[named], fields, named)
    if named:
        kind, source = _side(view, fields)
        return kind, "", source if kind is not RequestKind.AUXILIARY else "header", named
    if header(fields, AGENT_ID):
        return _speaker(RequestKind.SUBAGENT, fields, "")
    return _by_marks(view, fields)


def _speaker(kind: RequestKind, fields: Fields, named: str) -> tuple[RequestKind, str, str, str]:
    """A request with a class header or an agent's: its own speech, or the first after a compaction."""
    compacted = header(fields, COMPACTED) or header(fields, COMPACTED_FIRST_PARTY)
    if compacted:
        return RequestKind.AFTER_COMPACTION, compacted, "header", f"context-compacted {compacted}"
    if kind is RequestKind.MAIN and header(fields, AGENT_ID):
        kind = RequestKind.SUBAGENT
    if kind is RequestKind.SUBAGENT and header(fields, PARENT_AGENT_ID):
        kind = RequestKind.NESTED
    return kind, "", "header", named or "agent-id"


def _side(view: MessagesRequest, fields: Fields) -> tuple[RequestKind, str]:
    """Which side request, by the marks in its body; the two web tools come with the first-party class ``main``."""
    if _is_quota(view):
        return RequestKind.QUOTA, "body"
    if _is_title(view):
        return RequestKind.TITLE, "body"
    if _is_topic(view):
        return RequestKind.TOPIC, "body"
    if any(token.startswith(_CLASSIFIER) for token in fields.tokens(b"anthropic-beta")):
        return RequestKind.AUXILIARY, "header"
    if view.tool_names and _WEB_TOOLS.issuperset(view.tool_names):
        return RequestKind.WEB, "tools"
    if not view.tool_names and header(fields, FIRST_PARTY_CLASS) == "main":
        return RequestKind.WEB, "header"
    return RequestKind.AUXILIARY, "body"


def _by_marks(view: MessagesRequest, fields: Fields) -> tuple[RequestKind, str, str, str]:
    """A request without any class header."""
    if view.continues is not None:  # system and tools are left out of it (API facts 2.6), so marks say nothing
        return RequestKind.MAIN, "", "default", "message thread"
    if not view.is_claude_code(fields):  # the marks are its own; another program may ask for a title and mean it
        return RequestKind.MAIN, "", "default", "another program"
    kind, source = _side(view, fields)
    if kind is not RequestKind.AUXILIARY:
        return kind, "", source, ""
    if view.message_count == 1 and view.last_user_text.strip() == "Warmup":
        return RequestKind.WARMUP, "", "body", "Warmup"
    if view.is_subagent:
        return RequestKind.SUBAGENT, "", "billing block", "cc_is_subagent"
    if not view.tool_names:
        return RequestKind.AUXILIARY, "", "body", "no tools"
    return RequestKind.MAIN, "", "default", ""


def _is_quota(view: MessagesRequest) -> bool:
    return view.max_tokens == 1 and view.message_count == 1 and view.last_user_text.strip() == "quota"


def _is_title(view: MessagesRequest) -> bool:
    if view.tool_names:
        return False
    if any(text.startswith(_TITLE_SYSTEM) for text in view.system):
        return True
    if _TITLE_USER in view.last_user_text:
        return True
    return list(view.answer_properties) == ["title"]


def _is_topic(view: MessagesRequest) -> bool:
    return not view.tool_names and any(_TOPIC in text for text in view.system)
