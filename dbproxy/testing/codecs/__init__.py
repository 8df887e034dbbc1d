"""The conformance kit for codecs: every case of the acceptance list that any dialect must pass.

A codec's author writes a `Dialect` (how the server spells answers, how it reads requests) and runs ``cases`` in pytest
or ``failures`` by itself; ``docs/providers-writing.md`` shows both. Our own codecs pass the same kit.
"""

from __future__ import annotations

from dbproxy.testing.codecs.bench import (
    Bench,
    Failed,
    Heard,
    Step,
    Written,
    bits,
    call,
    done,
    say,
    think,
    verdict,
    whole,
)
from dbproxy.testing.codecs.case import Case
from dbproxy.testing.codecs.dialect import WORDS, Counts, Dialect, Said, Seen, Speech
from dbproxy.testing.codecs.kit import Bound, cases, failures, left_out
from dbproxy.testing.codecs.mutate import mutated, mutated_document
from dbproxy.testing.codecs.shapes import BROKEN, SHAPES, Shape, broken_of, shapes_of

__all__ = [
    "BROKEN",
    "SHAPES",
    "WORDS",
    "Bench",
    "Bound",
    "Case",
    "Counts",
    "Dialect",
    "Failed",
    "Heard",
    "Said",
    "Seen",
    "Shape",
    "Speech",
    "Step",
    "Written",
    "bits",
    "broken_of",
    "call",
    "cases",
    "done",
    "failures",
    "left_out",
    "mutated",
    "mutated_document",
    "say",
    "shapes_of",
    "think",
    "verdict",
    "whole",
]
