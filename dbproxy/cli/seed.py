"""``claude-db-proxy``: the command line of the older tool, in words of ours.

Owns the translation, nothing else. Invariant: what is not one of the old subcommands is Claude's and stays as it is,
but for ``--full-access``, which that tool spelled for ``--dangerously-skip-permissions``.
"""

from __future__ import annotations

SUBCOMMANDS = frozenset({"status", "logs", "dashboard", "start", "stop", "help", "uninstall"})


def translate(words: list[str]) -> list[str]:
    """The words for ``dbproxy`` that do what ``claude-db-proxy WORDS`` did."""
    if words and words[0] in SUBCOMMANDS:
        if words == ["logs"]:
            return ["logs", "-f", "-n", "50"]
        return words
    end = words.index("--") if "--" in words else len(words)
    swapped = ["--dangerously-skip-permissions" if word == "--full-access" else word for word in words[:end]]
    return ["claude", *swapped, *words[end:]]
