"""The answer to a compact request: the text in the tags that the client wants, as a stream or as one JSON document.

Owns what is known of the client's handling of that text (`FORMS`, measured with the real clients and kept true by
tests/realclient/test_realclient_summary.py), and the shape of the answer. Pure. Invariants: inside the tags stands
nothing that would end or repeat them or that the client would expand; the log stands behind them byte for byte; one
text block, ``end_turn``; an id never begins with ``msg_``, so that nobody can anchor a thread on it (API facts 2.6).
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dbproxy_double_buffer.summary import PLAIN_DOLLARS_SINCE, harmless

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbproxy_double_buffer.log import Log
    from dbproxy_double_buffer.summary import Summary
    from dbproxy_double_buffer.wall import Client, Version


@dataclass(frozen=True, slots=True)
class Form:
    """What clients of one generation, from version ``since`` on, make of the answer before it becomes message 0.

    All take the first ``<analysis>...</analysis>`` wherever it stands, and the first ``<summary>...</summary>``; a run
    of line feeds becomes two; blanks at both ends go; what stands before, between and behind the tags stays.
    """

    since: Version
    analysis_kept: bool  # as "Analysis:" before the summary; else it is dropped
    expands: bool  # "$&", "$'", "$`" and "$$" inside the tags are taken for patterns of a replacement
    evidence: str


FORMS: Final = (
    Form((), True, True, "2.0.77 measured; 1.0.128 has the same headings (client facts 4.3)"),
    Form((2, 1), False, True, "2.1.112, 113, 160, 197, 260, 265, 266 and 267 measured"),
    Form(PLAIN_DOLLARS_SINCE, False, False, "2.1.268, 277, 294 and 329 measured"),
)
#: How much text one delta carries (characters).
DELTA: Final = 8192
_NO_ANALYSIS: Final = "The summary below was made while the work went on."
_ANALYSIS: Final = re.compile(r"<analysis>(.*?)</analysis>", re.DOTALL)
_SUMMARY: Final = re.compile(r"<summary>(.*?)</summary>", re.DOTALL)
_BLANK_LINES: Final = re.compile(r"\n{3,}")


def form(version: Version) -> Form:
    """The newest form that is known for this version; an unknown client is taken for a new one."""
    if not version:
        return FORMS[-1]
    return next(known for known in reversed(FORMS) if version >= known.since)


def swap_text(summary: Summary, log: Log, client: Client) -> str:
    """The text that is served. The analysis is never empty: where there is none, the client would take one that
    happens to stand in the log."""
    analysis = harmless(summary.analysis.strip() or _NO_ANALYSIS, client.version)
    told = harmless(summary.summary.strip(), client.version)
    tail = f"\n\n{log.text}" if log.text else ""
    return spaced(f"<analysis>\n{analysis}\n</analysis>\n\n<summary>\n{told}\n</summary>{tail}")


def spaced(text: str) -> str:
    """``text`` with a blank in every second and later blank line of a row: all clients make one line of empty ones,
    and lines would be lost where they count (measured: lines with a blank stay)."""
    return _BLANK_LINES.sub(lambda found: "\n\n" + " \n" * (len(found[0]) - 2), text)


def seen(text: str, version: Version) -> str:
    """What the client's next request will hold of an answer: its summary heading, the summary and the log."""
    how = form(version)
    found = _ANALYSIS.search(text)
    if found is not None:
        kept = f"Analysis:\n{_as_replacement(found[1].strip(), text, found, how)}" if how.analysis_kept else ""
        text = text[: found.start()] + kept + text[found.end() :]
    found = _SUMMARY.search(text)
    if found is not None:
        kept = f"Summary:\n{_as_replacement(found[1].strip(), text, found, how)}"
        text = text[: found.start()] + kept + text[found.end() :]
    return re.sub(r"\n{2,}", "\n\n", text).strip()


def first_words(text: str, version: Version, limit: int = 120) -> str:
    """How the summary in an answer begins in the client's next request, up to its first blank line: proof of a swap."""
    start = text.find("<summary>") + len("<summary>")
    inside = text[start : text.index("</summary>", start)].strip().partition("\n\n")[0]
    return (inside.replace("$$", "$") if form(version).expands else inside)[:limit]


def _as_replacement(new: str, text: str, found: re.Match[str], how: Form) -> str:
    """``new`` as JavaScript's String.replace puts it in for a match of a pattern without groups."""
    if not how.expands:
        return new
    parts = {"$$": "$", "$&": found[0], "$`": text[: found.start()], "$'": text[found.end() :]}
    return re.sub(r"\$[$&`']", lambda match: parts[match[0]], new)


def believable_usage(context_tokens: int, output_tokens: int, spent: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The answer's ``usage``: ``spent``, what the checkpoint's own answer reported, so that the client's cost figures
    stay those of the account.

    Without it: a context of so many tokens out of the cache, as the client's own request would have had. Measured with
    2.1.112 and 2.1.329: the client adds these counts to its cost and to nothing else; neither the size of the context
    after the compaction nor the next trigger comes from them (client facts 4.2).
    """
    usage: dict[str, Any] = {
        "input_tokens": min(context_tokens, 1),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": max(context_tokens - 1, 0),
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": max(output_tokens, 1),
        "service_tier": "standard",
    }
    return usage | {name: value for name, value in (spent or {}).items() if value is not None}


def new_id() -> str:
    """An id for an answer of ours."""
    return f"dbproxy_{uuid.uuid4().hex[:24]}"


def as_json(text: str, model: str, usage: Mapping[str, Any], message_id: str) -> bytes:
    """The answer to a request without ``stream``. Raises ValueError for an empty text or an id that could anchor."""
    return _encode(_message(text, model, usage, message_id))


def as_events(text: str, model: str, usage: Mapping[str, Any], message_id: str) -> list[bytes]:
    """The answer as stream events, in the order of API facts 1.6. Raises as `as_json` does."""
    whole = _message(text, model, usage, message_id)
    start = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    final = {
        name: usage[name]
        for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
        if name in usage
    }
    pieces = [text[place : place + DELTA] for place in range(0, len(text), DELTA)]
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    return [
        _event({"type": "message_start", "message": start}),
        _event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        _event({"type": "ping"}),
        *(
            _event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}})
            for piece in pieces
        ),
        _event({"type": "content_block_stop", "index": 0}),
        _event({"type": "message_delta", "delta": delta, "usage": final}),
        _event({"type": "message_stop"}),
    ]


def _message(text: str, model: str, usage: Mapping[str, Any], message_id: str) -> dict[str, Any]:
    if not text.strip():
        raise ValueError("an empty answer would end the client's run (client facts 4.4)")
    if message_id.startswith("msg_"):
        raise ValueError("the id of an answer of ours must not look like the API's")
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": dict(usage),
    }


def _event(value: Mapping[str, Any]) -> bytes:
    return b"event: " + str(value["type"]).encode() + b"\ndata: " + _encode(value) + b"\n\n"


def _encode(value: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can carry
        return json.dumps(value, separators=(",", ":")).encode()
