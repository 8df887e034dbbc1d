"""How hard a model shall think: budgets of tokens to words and back, and the nearest word that a model takes.

Pure tables and arithmetic. Source: seed-001 section 3.2. Invariant: `nearest` never gives a word that is not supported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Every word, in rising order.
WORDS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_CEILINGS: Final = ((512, "minimal"), (1024, "low"), (8192, "medium"), (24576, "high"))
_BUDGETS: Final = {
    "none": 0,
    "minimal": 512,
    "low": 1024,
    "medium": 8192,
    "high": 24576,
    "xhigh": 32768,
    "max": 32768,
}


def word_of(budget: int) -> str:
    """The word for a budget of thinking tokens."""
    if budget <= 0:
        return "none"
    return next((word for most, word in _CEILINGS if budget <= most), "xhigh")


def budget_of(word: str) -> int:
    """Thinking tokens for a word; those of medium for one that is unknown."""
    return _BUDGETS.get(word, _BUDGETS["medium"])


def effort_of(body: dict[str, Any]) -> tuple[str, int | None]:
    """The word ("" where the client asks for nothing) and the budget of a Messages body."""
    thinking = shapes.mapping(body.get("thinking"))
    asked = shapes.text(shapes.mapping(body.get("output_config")).get("effort"))
    kind = thinking.get("type")
    if kind == "disabled":
        return "none", 0
    if kind == "enabled":
        budget = shapes.count(thinking.get("budget_tokens"))
        return (asked if asked in WORDS else word_of(budget) if budget else "medium"), budget or None
    if kind in ("adaptive", "between_tools"):
        return (asked if asked in WORDS else "medium"), None
    return (asked if asked in WORDS else ""), None


def nearest(word: str, supported: Sequence[str]) -> str:
    """The strongest supported word that is not above ``word``, else the weakest one; "" where none applies.

    For ``none``: ``none`` itself, else the weakest that there is only if it is ``minimal`` or ``low``, else nothing.
    """
    known = [one for one in WORDS if one in supported]
    if not word or not known or word not in WORDS:
        return ""
    if word == "none":
        return known[0] if known[0] in ("none", "minimal", "low") else ""
    below = [one for one in known if one != "none" and WORDS.index(one) <= WORDS.index(word)]
    if below:
        return below[-1]
    return next((one for one in known if one != "none"), "")
