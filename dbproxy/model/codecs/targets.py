"""A model as people write it (``gpt-5``, ``openai:gpt-5``, ``openai,gpt-5``, ``openai/gpt-5[1m]``): who serves it.

Owns that spelling (``parse_target``) and the families by which a bare name tells its provider. Pure. Sources: seed-001
1.11 (prefixes, and why they were too few), case 37; the client's aliases: client facts 3.1. Invariants: what is not
known is an error that says what to write instead, never a guess; behind the provider's name the id stays as it stands.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from dbproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

_WINDOW: Final = re.compile(r"(?:\s*\[\d+[km]\])+\s*$", re.IGNORECASE)
_HEAD: Final = re.compile(r"([^:,/]+)\s*[:,/]\s*(.*)", re.DOTALL)

#: Ids that tell who serves them. Open weights (gpt-oss, llama, qwen, ...) have many hosts and are not among them.
_FAMILIES: Final = (
    ("openai", ("gpt-[0-9]*", "gpt-chat-*", "chatgpt-*", "codex-*", "o[134]", "o[134]-*", "ft:gpt-*", "ft:o[134]-*")),
    ("gemini", ("gemini-*", "models/gemini-*", "tunedmodels/*")),
    ("anthropic", ("claude-*",)),
    ("deepseek", ("deepseek-*",)),
    ("moonshot", ("kimi-*", "moonshot-*")),
    ("zai", ("glm-*",)),
    ("minimax", ("minimax-*",)),
)

#: The names by which the client knows the newest model of each line, and the API does not (as of 2.1.329).
_ALIASES: Final = {
    "opus": "claude-opus-5-5",
    "sonnet": "claude-sonnet-5-5",
    "haiku": "claude-haiku-5-5",
    "fable": "claude-fable-5-2",
}
_CLAUDE: Final = "anthropic"


def parse_target(text: str, providers: Iterable[str]) -> tuple[str, str]:
    """(provider, model) for what a person wrote; ``providers`` are the names of those that are known.

    The provider's name may stand in front, with ``:``, ``,`` or ``/`` behind it; without one the model's family tells.
    A mark of the client's for a window (``[1m]``) falls away. Raises ConfigError with what to write instead.
    """
    written = bare_model(text)
    if not written:
        raise ConfigError("no model is named", hint="Write PROVIDER:MODEL, as in openai:gpt-5")
    known = {name.lower(): name for name in providers}
    parts = _HEAD.fullmatch(written)
    head = parts[1].strip().lower() if parts else ""
    if parts and head in known:
        if not parts[2]:
            raise ConfigError(f"{text!r} names no model", hint=f"Write {known[head]}:MODEL")
        model = parts[2]
        return known[head], _ALIASES.get(model.lower(), model) if head == _CLAUDE else model
    if written.lower() in known:
        raise ConfigError(f"{text!r} is a provider, not a model", hint=f"Write {known[written.lower()]}:MODEL")
    if written.lower() in _ALIASES:
        return _CLAUDE, _ALIASES[written.lower()]
    for provider, patterns in _FAMILIES:
        if any(fnmatchcase(written.lower(), pattern) for pattern in patterns):
            return provider, written
    if parts and parts[2]:
        name = parts[1].strip()
        raise ConfigError(
            f"{text!r}: no provider {name!r} is known",
            hint=f"Give it a table [providers.{name}] with base_url, or name the one that serves this model, as in "
            f"ollama:{written}",
        )
    raise ConfigError(
        f"{text!r} does not tell which provider serves it", hint=f"Write PROVIDER:{written}, as in ollama:{written}"
    )


def bare_model(text: str) -> str:
    """The id without the mark for a larger window that the client puts behind it (``gpt-5[1m]`` is ``gpt-5``)."""
    return _WINDOW.sub("", text).strip()
