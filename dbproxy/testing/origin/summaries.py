"""Answers to a request for a summary: good ones, the odd ones of client facts 4.4, and every failure of section 5.

Pure. The good text is long enough to be a summary of something, and says which one it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dbproxy.testing.origin.events import thinking, tool_use
from dbproxy.testing.origin.script import Answer, fail, say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_STORY: Final = (
    "   What was asked for stands here at some length, because a summary of a long talk is no single line: the files "
    "that were read, the decisions that were made and why, the errors that were met, and the step that comes next.\n"
)
#: Longer than any test or client waits.
_HUNG: Final = 100_000.0


def summary_text(number: int = 1, *, says: str = "") -> str:
    """A good summary in the client's form; ``number`` tells it from others."""
    told = f"ORIGIN-SUMMARY {number}: {says or 'a listing was asked for and done.'}"
    return (
        f"<analysis>\nThe user asked for a listing (summary {number}).\n</analysis>\n\n"
        f"<summary>\n1. Primary Request and Intent:\n   {told}\n{_STORY}</summary>"
    )


def _rate_limit(options: Mapping[str, Any]) -> Answer:
    after = str(options.get("retry_after", 3))
    return fail(429, "Rate limited", fields=(("retry-after", after),))


def _empty_no_block(_: Mapping[str, Any]) -> Answer:
    return Answer(blocks=())


#: By name; each gets the scenario's options.
FAILURES: Final[Mapping[str, Callable[[Mapping[str, Any]], Answer]]] = {
    "empty": lambda _: say(""),
    "no_block": _empty_no_block,
    "blank": lambda _: say("<analysis>x</analysis>\n<summary>\n \n</summary>"),
    "short": lambda _: say("<summary>Nothing much.</summary>"),
    "refusal": lambda _: say("I will not.", stop_reason="refusal"),
    "tool": lambda _: say(tool_use("Bash", {"command": "echo no", "description": "wrong"})),
    "max_tokens": lambda _: say("<analysis>x</analysis><summary>cut here" * 30, stop_reason="max_tokens"),
    "window": lambda _: say(summary_text(), stop_reason="model_context_window_exceeded"),
    "null_compaction": lambda _: Answer(blocks=({"type": "compaction", "content": None},), stop_reason="compaction"),
    "unclosed": lambda _: say("<analysis>x</analysis>\n<summary>\n" + _STORY * 3),
    "cut": lambda _: say(summary_text(), cut_after=3),
    "reset": lambda _: say(summary_text(), cut_after=3, cut_how="rst"),
    "cut_early": lambda _: Answer(cut_after=-1),
    "reset_early": lambda _: Answer(cut_after=-1, cut_how="rst"),
    "error_event": lambda _: say(summary_text(), error_after=0),
    "error_late": lambda _: say(summary_text(), error_after=4),
    "rate_limit": _rate_limit,
    "rate_limit_bare": lambda _: fail(429, "Rate limited"),
    "no_retry": lambda _: fail(429, "Rate limited", fields=(("x-should-retry", "false"),)),
    "error_400": lambda _: fail(400, "bad request"),
    "too_long": lambda _: fail(400, "prompt is too long: 208310 tokens > 200000 maximum"),
    "error_401": lambda _: fail(401, "invalid x-api-key"),
    "error_403": lambda _: fail(403, "no"),
    "error_404": lambda _: fail(404, "model: none"),
    "error_413": lambda _: fail(413, "Request exceeds the maximum size"),
    "error_500": lambda _: fail(500, "Internal server error"),
    "error_503": lambda _: fail(503, "unavailable"),
    "error_529": lambda _: fail(529, "Overloaded"),
    "hung": lambda _: say(summary_text(), head_delay=_HUNG),
    "stalled": lambda _: say(summary_text(), stall_after=2, stall=_HUNG),
    "not_http": lambda _: Answer(raw=b"\x00\x01not http\r\n\r\n"),
    "not_events": lambda _: Answer(events=(b"event: message_start\ndata: {broken\n\n", b"data: [1,2\n\n")),
    "html": lambda _: Answer(body=b"<html>bad gateway</html>", status=502, content_type="text/html"),
}
#: What the client takes although it is not what was asked for (client facts 4.4).
ODD: Final[Mapping[str, Callable[[Mapping[str, Any]], Answer]]] = {
    "summary_only": lambda _: say("<summary>ORIGIN-SUMMARY only.\n" + _STORY * 2 + "</summary>"),
    "no_tags": lambda _: say("ORIGIN-SUMMARY without any tags.\n" + _STORY * 2),
    "thinking": lambda _: say(thinking("hm"), summary_text()),
}


def summary_answer(kind: str, number: int, options: Mapping[str, Any]) -> Answer:
    """The ``number``-th summary: a ``good`` one, or of another kind by its name. ``options``: ``seconds`` before its
    first byte, ``text`` instead of ours, ``retry_after`` of a rate limit."""
    if kind == "good":
        made = say(str(options["text"]) if options.get("text") else summary_text(number))
    else:
        made = {**FAILURES, **ODD}[kind](options)
    seconds = float(options.get("seconds", 0.0))
    return made.but(first_byte_delay=seconds) if seconds and made.head_delay == 0.0 else made
