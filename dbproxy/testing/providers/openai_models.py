"""What OpenAI's models refuse, for the fake server: a table of its own, apart from the one that our codecs use.

Sources: API facts 5.1 and 5.2, seed-001 3.1 and 3.2. Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from dbproxy.testing.providers.objections import Objection, one_of

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Models that exist; others get 404.
KNOWN: Final = ("gpt-*", "o1*", "o3*", "o4*", "chatgpt-*", "codex-*")
_REASONING: Final = re.compile(r"(?:o[134](?:-|\Z)|gpt-[5-9](?!.*chat)|codex-)")
#: Words of effort by model, first match counts (seed-001 3.2; codex#6647 for gpt-5 and none) [iss; 5.6 and 6: unsure].
_EFFORTS: Final = (
    (re.compile(r"o[134]"), ("low", "medium", "high")),
    (re.compile(r"gpt-5(?:-|\Z)"), ("minimal", "low", "medium", "high")),
    (re.compile(r"gpt-5\.1"), ("none", "low", "medium", "high")),
    (re.compile(r"gpt-5\.[2-5]"), ("none", "low", "medium", "high", "xhigh")),
    (re.compile(r""), ("none", "low", "medium", "high", "xhigh", "max")),
)
#: The longest answer in tokens (openclaude#58 for gpt-4o) [iss, docs].
_LONGEST: Final = ((re.compile(r"gpt-4o"), 16_384), (re.compile(r"gpt-4\.1"), 32_768), (re.compile(r"o[134]"), 100_000))
_MOST: Final = 128_000
#: These refuse tools together with an effort on Chat Completions (pipecat#4043, openai-openapi#541) [iss].
_TOOLS_OR_EFFORT: Final = re.compile(r"gpt-(?:5\.[2-9]|[6-9])(?!.*chat)")
#: With these even an effort that is not named counts, since they reason unless told not to (litellm PR#34569) [iss].
_ALWAYS: Final = re.compile(r"gpt-(?:5\.[6-9]|[6-9])(?!.*chat)")
_ONE_BY_ONE: Final = re.compile(r"o[134](?:-|\Z)")


def reasons(model: str) -> bool:
    """Is it a reasoning model? They refuse what shapes sampling (LL #13381) [iss, docs]."""
    return bool(_REASONING.match(model))


def effort(model: str, word: Any, where: str) -> None:
    """Object to an effort that the model does not know."""
    one_of(word, ("none", "minimal", "low", "medium", "high", "xhigh", "max"), where)
    allowed = next(words for pattern, words in _EFFORTS if pattern.match(model))
    if word not in allowed:
        listed = ", ".join(f"'{one}'" for one in allowed)
        raise Objection(
            f"Unsupported value: '{where}' does not support '{word}' with this model. Supported values are: {listed}.",
            param=where,
            code="unsupported_value",
        )


def sampling(model: str, body: dict[str, Any], refused: Iterable[str]) -> None:
    """Object to what a reasoning model does not take."""
    if not reasons(model):
        return
    for key in ("temperature", "top_p"):
        if body.get(key, 1) != 1:
            raise Objection(
                f"Unsupported value: '{key}' does not support {body[key]} with this model. Only the default (1) value "
                "is supported.",
                param=key,
                code="unsupported_value",
            )
    for key in refused:
        if key in body:
            raise Objection(
                f"Unsupported parameter: '{key}' is not supported with this model.",
                param=key,
                code="unsupported_parameter",
            )


def tools_or_effort(model: str, word: str | None) -> None:
    """Object to tools on Chat Completions beside this effort (None: not named)."""
    counts = _TOOLS_OR_EFFORT.match(model) and (word is not None or _ALWAYS.match(model))
    if counts and word != "none":
        raise Objection(
            f"Function tools with reasoning_effort are not supported for {model} in /v1/chat/completions. Please use "
            "/v1/responses instead.",
            param="reasoning_effort",
        )


def parallel(model: str, body: dict[str, Any]) -> None:
    """Object to the switch for parallel calls where the model has none [iss]."""
    if "parallel_tool_calls" in body and _ONE_BY_ONE.match(model):
        raise Objection(
            "Unsupported parameter: 'parallel_tool_calls' is not supported with this model.",
            param="parallel_tool_calls",
            code="unsupported_parameter",
        )


def longest(model: str, tokens: Any, where: str) -> None:
    """Object to a limit above the model's own."""
    most = next((limit for pattern, limit in _LONGEST if pattern.match(model)), _MOST)
    if tokens is not None and tokens > most:
        raise Objection(
            f"{where} is too large: {tokens}. This model supports at most {most} completion tokens, whereas you "
            f"provided {tokens}.",
            param=where,
            code="invalid_value",
        )
