"""What a case of the kit is: a number of the acceptance list, a name, and a check on a `Bench`.

Values and the list that the modules of cases fill. Must never import those modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.testing.codecs.bench import Bench


@dataclass(frozen=True, slots=True)
class Case:
    """One check. ``number`` is that of seed-001 section 7, 0 for one of our own; ``needs`` are words of a dialect's
    ``can`` without which it does not apply."""

    number: int
    name: str
    check: Callable[[Bench], None]
    needs: frozenset[str] = frozenset()

    def __str__(self) -> str:
        name = "_".join("".join(c for c in self.name if c.isalnum() or c in " _").split())
        return f"case_{self.number:02}_{name}" if self.number else name


#: Every case, in the order of the modules that define them.
ALL: list[Case] = []


def case(number: int, name: str, *needs: str) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    """Make the function a case; its docstring says more where the name does not say all."""

    def add(check: Callable[[Bench], None]) -> Callable[[Bench], None]:
        ALL.append(Case(number, name, check, frozenset(needs)))
        return check

    return add
