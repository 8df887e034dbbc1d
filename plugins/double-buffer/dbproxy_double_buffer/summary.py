"""Summaries: which answers are good ones, what of them is served, and how texts are made harmless for the client.

Pure. Invariant: nothing that `judge` refuses is ever served.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbproxy_double_buffer.wall import Version

_ANALYSIS: Final = re.compile(r"<analysis>(.*?)</analysis>", re.DOTALL)
_SUMMARY: Final = re.compile(r"<summary>(.*)</summary>", re.DOTALL)
_TAG: Final = re.compile(r"<(?=/?(?:analysis|summary)\b)", re.IGNORECASE)
#: A summary shorter than this is no summary of a context worth compacting (characters).
SHORTEST: Final = 200
_SHORT: Final = "too short"
#: From this version on the client puts a summary in without expanding ``$`` sequences: measured, 2.1.267 expands them.
PLAIN_DOLLARS_SINCE: Final = (2, 1, 268)
#: Looks like "<" and is no tag to anybody.
_BRACKET: Final = "‹"


@dataclass(frozen=True, slots=True)
class Summary:
    """What a model wrote: its ``analysis`` ("" if there is none) and the summary itself."""

    analysis: str
    summary: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reason`` says in a few words what is wrong with an answer, "" for a good one."""

    reason: str = ""

    @property
    def ok(self) -> bool:
        return not self.reason

    @property
    def taken(self) -> bool:
        """Would the client take it as the answer to its own request? It asks for no length (client facts 4.4)."""
        return self.reason in ("", _SHORT)


def text_of(message: Mapping[str, Any]) -> str:
    """The text blocks of an answer, joined."""
    blocks = message.get("content")
    found = blocks if isinstance(blocks, list) else []
    return "".join(
        block["text"]
        for block in found
        if isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)
    )


def has_tool_call(message: Mapping[str, Any]) -> bool:
    """Does the answer call a tool instead of writing?"""
    blocks = message.get("content")
    return any(
        isinstance(b, dict) and b.get("type") == "tool_use" for b in (blocks if isinstance(blocks, list) else [])
    )


def judge(message: Mapping[str, Any], *, complete: bool) -> Verdict:
    """Is this answer to a checkpoint request a summary? Empty, refused, cut off, tool-calling and too short ones are
    not."""
    if not complete:
        return Verdict("cut off")
    reason = message.get("stop_reason")
    if reason == "refusal":
        return Verdict("refused")
    if reason == "tool_use" or has_tool_call(message):
        return Verdict("called a tool")
    if reason in ("max_tokens", "model_context_window_exceeded", "pause_turn"):
        return Verdict(f"stopped by {reason}")
    if reason not in ("end_turn", "stop_sequence"):
        return Verdict(f"stopped by {str(reason)[:40]}")
    text = text_of(message).strip()
    if not text:
        return Verdict("empty")
    if "<summary>" in text and "</summary>" not in text:
        return Verdict("cut off")
    found = extract(text).summary
    if not found:
        return Verdict("empty")
    if len(found) < SHORTEST:
        return Verdict(_SHORT)
    return Verdict()


def extract(text: str) -> Summary:
    """The parts of an answer; where the tags are missing all of it is the summary."""
    analysis, summary = _ANALYSIS.search(text), _SUMMARY.search(text)
    if summary is None:
        rest = text if analysis is None else text[: analysis.start()] + text[analysis.end() :]
        return Summary(analysis[1].strip() if analysis else "", rest.strip())
    before = text[: summary.start()]
    analysis = _ANALYSIS.search(before)
    return Summary(analysis[1].strip() if analysis else "", summary[1].strip())


def harmless(text: str, version: Version) -> str:
    """``text`` as it can stand inside or behind the tags: without tags, and with ``$`` as the version wants it.

    Up to 2.1.267 the client puts the summary in with a function that expands ``$&``, ``$'``, ``$$`` and the like; there
    ``$$`` is what comes out as ``$``. An unknown client is taken for a new one.
    """
    text = _TAG.sub(_BRACKET, text)
    return text if not version or version >= PLAIN_DOLLARS_SINCE else text.replace("$", "$$")
