"""Answers of every shape, for checks that run over all of them: reads of any size, mutations, the official SDKs.

Owns the table `SHAPES`, written as steps that any dialect can spell. Must never import a codec. Source: seed-001 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dbproxy.testing.codecs.bench import USUAL, bits, call, done, say, think, whole
from dbproxy.testing.codecs.dialect import Counts

if TYPE_CHECKING:
    from dbproxy.testing.codecs.bench import Step
    from dbproxy.testing.codecs.dialect import Dialect

_WORDS: Final = 'Grüße, 漢字, 🙂, \\ and "quotes"\n\tand\r\nlines'


@dataclass(frozen=True, slots=True)
class Shape:
    """An answer. ``stop`` is None where it breaks off; ``needs`` are words of the dialect's ``can``."""

    name: str
    steps: tuple[Step, ...]
    stop: str | None = "end_turn"
    tokens: Counts | None = USUAL
    needs: frozenset[str] = frozenset()

    @property
    def breaks(self) -> bool:
        """Does it end in an error?"""
        return self.stop is None


def _shape(name: str, *steps: Step | list[Step], needs: str = "", **how: object) -> Shape:
    flat = tuple(step for given in steps for step in (given if isinstance(given, list) else [given]))
    words = frozenset(word for word in needs.split(", ") if word)
    return Shape(name, flat, needs=words, **how)  # type: ignore[arg-type]


def _in_turn(*lanes: list[Step]) -> list[Step]:
    return [lane[at] for at in range(max(map(len, lanes))) for lane in lanes if at < len(lane)]


_READ: Final = {"file_path": "/x/ä.py", "limit": 20}

#: Every shape.
SHAPES: Final = (
    _shape("one text", say("Hello.")),
    _shape("a text in pieces", *(say(part) for part in ("He", "llo", " ", "there", "."))),
    _shape("every kind of character", *(say(part) for part in (_WORDS, "", _WORDS[::-1], "\u2028", "e\u0301"))),
    _shape("a long text", *(say("word " * 200) for _ in range(20))),
    _shape("nothing"),
    _shape("thinking, then text", think("Hm, "), think("well."), say("Yes."), needs="thinking"),
    _shape("thinking alone", think("Hm."), needs="thinking"),
    _shape("thinking, text, thinking, text", think("a"), say("b"), think("c"), say("d"), needs="thinking"),
    _shape("thinking, then a call", think("Hm."), whole(0, "Read", _READ), stop="tool_use", needs="thinking"),
    _shape("one call", whole(0, "Read", _READ), stop="tool_use"),
    _shape("one call in pieces", bits(0, "Read", _READ, size=2), stop="tool_use", needs="pieces"),
    _shape("a text and a call", say("I look."), whole(0, "Read", _READ), stop="tool_use"),
    _shape("a text, a call in pieces", say("I look."), bits(0, "Bash", {"c": _WORDS}), stop="tool_use", needs="pieces"),
    _shape("text, call, text", say("a"), whole(0, "Read", _READ), say("b"), stop="tool_use"),
    _shape("three calls", *(whole(key, "Read", {"n": key}) for key in range(3)), stop="tool_use"),
    _shape(
        "three calls in turn",
        say("Three:"),
        _in_turn(*(bits(key, name, {"n": key, "t": _WORDS}) for key, name in enumerate(("Read", "Bash", "Read")))),
        stop="tool_use",
        needs="pieces, interleaved",
    ),
    _shape("a call without arguments", call(0, id="call_0", name="Now", arguments="{}"), done(0), stop="tool_use"),
    _shape("a call without any piece", call(0, id="call_0", name="Now"), done(0), stop="tool_use", needs="pieces"),
    _shape(
        "a name in pieces",
        *(call(0, id="call_0", name="Re"), call(0, name="ad"), call(0, arguments="{}"), done(0)),
        stop="tool_use",
        needs="pieces, late names",
    ),
    _shape("a call without an id", call(0, name="Read", arguments="{}"), done(0), stop="tool_use", needs="no ids"),
    _shape("calls behind an ordinary end", say("Look:"), whole(0, "Read", _READ)),
    _shape("an end for calls that never came", say("Nothing."), stop="tool_use"),
    _shape("cut by the limit", say("And th"), stop="max_tokens"),
    _shape(
        "a call cut by the limit",
        *(say("I write."), call(0, id="call_0", name="Write", arguments='{"text": "and th')),
        stop="max_tokens",
        needs="pieces",
    ),
    _shape("a refusal", say("I would rather"), stop="refusal", needs="refusal"),
    _shape("a refusal without a word", stop="refusal", needs="refusal"),
    _shape("no counts", say("Hello."), tokens=None, needs="no usage"),
    _shape("large counts", say("Hello."), tokens=Counts(input=1_000_000, output=128_000, cache_read=900_000)),
)

#: Answers that break off: each must end in an error.
BROKEN: Final = (
    _shape("broken off in a text", say("Half a sen"), stop=None),
    _shape("broken off in thinking", think("Hm"), stop=None, needs="thinking"),
    _shape("broken off behind a call", whole(0, "Read", _READ), stop=None),
    _shape("broken off in a call", call(0, id="call_0", name="Read", arguments='{"a'), stop=None, needs="pieces"),
)


def shapes_of(dialect: Dialect) -> list[Shape]:
    """Those of `SHAPES` that this dialect can say."""
    return [shape for shape in SHAPES if dialect.can >= shape.needs]


def broken_of(dialect: Dialect) -> list[Shape]:
    """Those of `BROKEN` that this dialect can say."""
    return [shape for shape in BROKEN if dialect.can >= shape.needs]
