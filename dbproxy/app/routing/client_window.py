"""The context window that a client reckons with, which need not be the model's: by its version, betas and variables.

Imports nothing that waits. Sources: client facts 4.2, and what 2.1.329 and 2.1.112 were seen to do with models whose
names they do not know. Invariant: 0 for whoever does not compact by itself, since nothing depends on it then.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dbproxy.app.proxy import Proxy
    from dbproxy.exchange import Exchange, Fields

#: What a client takes for the window of a model that it does not know, and since when for the large one.
_SMALL, _LARGE, _LARGE_SINCE = 200_000, 1_000_000, (2, 1, 300)
_LARGE_BETA: Final = b"context-1m-2025-08-07"
_VARIABLES: Final = ("CLAUDE_CODE_AUTO_COMPACT_WINDOW", "CLAUDE_CODE_MAX_CONTEXT_TOKENS")
_USER_AGENT: Final = re.compile(r"claude-(?:cli|code)/(\d+)\.(\d+)\.(\d+)")


def client_version(fields: Fields) -> tuple[int, int, int] | None:
    """The version of Claude Code that sends these fields; None for any other program."""
    found = _USER_AGENT.search((fields.get(b"user-agent") or b"").decode("latin-1"))
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def client_window(proxy: Proxy, exchange: Exchange, model: str) -> int:
    """The window (tokens) that the client of this exchange reckons with for ``model``; 0 if it does not compact."""
    version = client_version(exchange.request.fields)
    if version is None:
        return 0
    long = _LARGE_BETA in exchange.request.fields.tokens(b"anthropic-beta")
    if model.startswith("claude-"):
        window = proxy.archive.window(model, long=long)
    else:
        window = _LARGE if version >= _LARGE_SINCE else _SMALL
    scope = proxy.scopes.known(exchange.scope) if exchange.scope else None
    for name in _VARIABLES:
        said = scope.client.get(name, "") if scope is not None else ""
        if said.isascii() and said.isdigit() and 0 < int(said) < (window or 1 << 40):
            window = int(said)
    return window
