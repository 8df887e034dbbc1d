"""The conformance kit's way in: every case for a codec, run one by one or all at once.

Owns `cases` and `failures`. Invariant: a case that does not apply is named with its reason, never passed over silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dbproxy.testing.codecs import requests, streams
from dbproxy.testing.codecs.bench import Bench
from dbproxy.testing.codecs.case import ALL, Case
from dbproxy.testing.codecs.dialect import WORDS

if TYPE_CHECKING:
    from dbproxy.model.codecs import Codec
    from dbproxy.testing.codecs.dialect import Dialect

_MODULES = (requests, streams)  # imported for the cases that they define


@dataclass(frozen=True, slots=True)
class Bound:
    """A case with the codec that it checks."""

    case: Case
    bench: Bench

    def __str__(self) -> str:
        return str(self.case)

    def run(self) -> None:
        """Raises AssertionError with what was expected and what came; whatever the codec raises comes through."""
        self.case.check(self.bench)


def cases(codec: Codec, dialect: Dialect) -> list[Bound]:
    """Every case that applies. Raises ValueError where the dialect names cases or words that do not exist, since a
    misspelt one would leave something unchecked."""
    bench, gone = Bench(codec, dialect), left_out(dialect)
    return [Bound(case, bench) for case in ALL if str(case) not in gone]


def left_out(dialect: Dialect) -> dict[str, str]:
    """The cases that do not apply to this dialect, each with the reason. Raises ValueError as `cases` does."""
    strange = sorted((dialect.can - WORDS) | (set(dialect.exempt) - {str(case) for case in ALL}))
    if strange:
        raise ValueError(f"the dialect {dialect.name} names what does not exist: {', '.join(strange)}")
    found = {}
    for case in ALL:
        if missing := sorted(case.needs - dialect.can):
            found[str(case)] = f"{dialect.name} has no {', '.join(missing)}"
    return {**found, **dialect.exempt}


def failures(codec: Codec, dialect: Dialect) -> list[str]:
    """Run every case that applies; one line for each that failed, by number and name."""
    found = []
    for bound in cases(codec, dialect):
        try:
            bound.run()
        except Exception as error:  # a codec may raise anything; each case is told by itself
            what = str(error) if isinstance(error, AssertionError) else repr(error)
            found.append(f"{bound}: {what}")
    return found
