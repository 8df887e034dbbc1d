"""Requests to Claude: another model at the client's own upstream, or its API with a key of ours.

Owns the bytes; what the model itself wants different is decided where all requests to Claude are made (`claude_body`).
Pure. Sources: cases 28 and 29, API facts 4.5 (what a gateway must leave alone), the SDK's types (what wants a beta).
Invariants: a member, or a message, that need not change keeps its bytes; with our own key nothing goes along that tells
whose account the client has.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from dbproxy.api import json_array, json_members
from dbproxy.api.codecs import Unroutable, bare_model
from dbproxy.api.dialects import claude_body, without_foreign_thinking

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbproxy.api.codecs import Request, Translation


#: Keys that the API takes with a beta only.
_BETAS: Final = {
    "context_management": "context-management-2025-06-27",
    "mcp_servers": "mcp-client-2025-11-20",
    "fallbacks": "server-side-fallback-2026-07-01",
    "compaction": "compact-2026-09-04",
    "speed": "fast-mode-2026-02-01",
}
#: Keys that are between the client's account and its upstream.
_OF_THE_ACCOUNT: Final = (b"safeguards", b"fallback_credit_token", b"billing_policy", b"diagnostics")


def for_another_claude(request: Request, translation: Translation) -> bytes:
    """The body for ``translation.model``. Raises Unroutable where the client's body cannot be changed safely."""
    raw = request.raw
    if translation.model == bare_model(request.model):
        fitted = {**(without_foreign_thinking(raw, everything=False) or raw), "model": translation.model}
    else:
        fitted = claude_body(request, translation)
    # What was left as it is, is the same object still.
    changed = {name: fitted.get(name) for name in raw if fitted.get(name) is not raw[name]}
    values = {name.encode(): None if name not in fitted else _json(value) for name, value in changed.items()}
    if "messages" in changed:
        values[b"messages"] = _messages(request, fitted["messages"])
    added = {name: value for name, value in fitted.items() if name not in raw}
    found = _edited(request.body, values, added)
    if found is None:
        raise Unroutable("its body holds a key twice, or written in escapes, and cannot be changed safely")
    return found


def for_another_account(body: bytes, request: Request) -> tuple[bytes, bytes]:
    """(the body, the betas that it needs, as one header's value) for Claude's API with a key of our own.

    The client's own header is not sent on, so the betas are those of what stands in the body.
    """
    values: dict[bytes, bytes | None] = {name: None for name in _OF_THE_ACCOUNT if name.decode() in request.raw}
    if "metadata" in request.raw:
        values[b"metadata"] = _json({"user_id": request.user}) if request.user else None
    found = _edited(body, values, {})
    return body if found is None else found, ",".join(_betas(request.raw)).encode()


def _betas(raw: Mapping[str, Any]) -> list[str]:
    found = [beta for name, beta in _BETAS.items() if raw.get(name)]
    thinking, config = _mapping(raw.get("thinking")), _mapping(raw.get("output_config"))
    system = [message for message in map(_mapping, raw["messages"]) if message.get("role") == "system"]
    scoped = [
        block for block in map(_mapping, _list(raw.get("system"))) if _mapping(block.get("cache_control")).get("scope")
    ]
    wanted = {
        "thinking-display-updates-2026-08-18": thinking.get("display") == "updates",
        "thinking-binding-controls-2026-08-01": "block_binding" in thinking,
        "task-budgets-2026-03-13": "task_budget" in config,
        "prompt-caching-scope-2026-01-05": scoped,
        "mid-conversation-output-config-2026-07-01": any("output_config" in message for message in system),
        "mid-conversation-system-clear-at-2026-08-21": any("clear_at" in message for message in system),
        "mid-conversation-tool-changes-2026-07-01": any(map(_changes_tools, system)),
    }
    return [*found, *(beta for beta, wants in wanted.items() if wants)]


def _changes_tools(message: Mapping[str, Any]) -> bool:
    kinds = {_mapping(block).get("type") for block in _list(message.get("content"))}
    return not kinds.isdisjoint(("tool_addition", "tool_removal"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


# ---- bytes


def _json(value: object) -> bytes:
    # Halves of surrogate pairs, which a client may have cut, are JSON as escapes only.
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def _messages(request: Request, messages: list[Any]) -> bytes:
    """The array of messages, with the bytes of those that did not change."""
    before = request.raw["messages"]
    array = json_array(_value(request.body, b"messages"))
    elements = array.elements if array is not None else []
    known = {id(message): element for message, element in zip(before, elements, strict=False)}
    return b"[" + b",".join(known.get(id(message)) or _json(message) for message in messages) + b"]"


def _value(text: bytes, name: bytes) -> bytes:
    return next((text[member.start : member.end] for member in json_members(text) or () if member.key == name), b"")


def _edited(text: bytes, values: Mapping[bytes, bytes | None], added: Mapping[str, object]) -> bytes | None:
    """The JSON object with these values in place of its own (None takes a member out) and these members at its end; all
    else keeps its bytes. None for what is no object, or where a member that changes cannot be told for sure."""
    members = json_members(text)
    if not members or not values.keys() <= {member.key for member in members}:
        return None
    pieces = [text[: members[0].at]]
    for place, member in enumerate(members):
        value = values.get(member.key, text[member.start : member.end])
        if value is not None:
            before = text[members[place - 1].end : member.at] if len(pieces) > 1 else b""
            pieces.append(before + text[member.at : member.start] + value)
    pieces.extend(b"," + _json(name) + b":" + _json(value) for name, value in added.items())
    return b"".join([*pieces, text[members[-1].end :]])
