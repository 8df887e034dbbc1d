"""Tables and trees on a terminal: cut to its width there, whole everywhere else; colours only there.

Owns widths, colours and what may reach a terminal. Knows nothing of what it shows. Invariant: no control character of
captured text reaches the terminal, where it could move the cursor or worse.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36", "match": "1;33"}
_NARROWEST = 40


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where output goes. ``width`` is 0 where nothing needs to be cut."""

    width: int = 0
    colour: bool = False

    @classmethod
    def of_stdout(cls, env: Mapping[str, str] | None = None) -> Terminal:
        """The terminal that stdout is; a file or a pipe is told everything, without colours."""
        env = os.environ if env is None else env
        if not sys.stdout.isatty():
            return cls()
        colour = "NO_COLOR" not in env and env.get("TERM", "") not in ("", "dumb")
        return cls(max(_NARROWEST, shutil.get_terminal_size((100, 24)).columns), colour)

    def paint(self, text: str, colour: str) -> str:
        """``text`` in a colour, if this terminal shows any."""
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.colour and text and colour else text

    def cut(self, text: str, taken: int = 0) -> str:
        """``text`` as it fits behind ``taken`` cells."""
        return shorten(text, max(8, self.width - taken)) if self.width else text


@dataclass(frozen=True, slots=True)
class Column:
    """One column. ``least`` is how narrow it may become, 0 for as wide as its content; ``right`` aligns numbers."""

    title: str
    right: bool = False
    least: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """A text and its colour."""

    text: str
    colour: str = ""


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]], terminal: Terminal) -> list[str]:
    """The lines of a table with a heading. What is no ``Cell`` is shown as text; empty columns are left out."""
    cells = [[item if isinstance(item, Cell) else Cell(str(item)) for item in row] for row in rows]
    cells = [[Cell(clean(cell.text), cell.colour) for cell in row] for row in cells]
    shown = [index for index in range(len(columns)) if any(row[index].text for row in cells)]
    widths = {
        index: max(cells_of(columns[index].title), *(cells_of(row[index].text) for row in cells)) for index in shown
    }
    _fit(columns, widths, terminal.width)
    head = [_aligned(Cell(columns[index].title, "dim"), widths[index], columns[index], terminal) for index in shown]
    lines = ["  ".join(head).rstrip()]
    for row in cells:
        made = [_aligned(row[index], widths[index], columns[index], terminal) for index in shown]
        lines.append("  ".join(made).rstrip())
    return lines


def _fit(columns: Sequence[Column], widths: dict[int, int], width: int) -> None:
    """Narrow the columns that may be, the widest first, until all fit."""
    while width and sum(widths.values()) + 2 * (len(widths) - 1) > width:
        able = [index for index in widths if columns[index].least and widths[index] > columns[index].least]
        if not able:
            return
        widest = max(able, key=lambda index: widths[index])
        widths[widest] -= 1


def _aligned(cell: Cell, width: int, column: Column, terminal: Terminal) -> str:
    text = shorten(cell.text, width)
    gap = " " * (width - cells_of(text))
    painted = terminal.paint(text, cell.colour)
    return gap + painted if column.right else painted + gap


def cells_of(text: str) -> int:
    """How many cells of a terminal ``text`` takes."""
    if text.isascii():
        return len(text)
    wide = sum(1 for char in text if unicodedata.east_asian_width(char) in "WF")
    return len(text) + wide - sum(1 for char in text if unicodedata.combining(char))


def shorten(text: str, width: int) -> str:
    """``text`` within ``width`` cells, with an ellipsis where something is missing."""
    if cells_of(text) <= width:
        return text
    kept, taken = "", 0
    for char in text:
        taken += cells_of(char)
        if taken > width - 1:
            break
        kept += char
    return kept + "…"


def clean(text: str) -> str:
    """``text`` on one line, without anything that a terminal would act on."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in text)


def clean_lines(text: str) -> str:
    """The same for text of several lines."""
    return "\n".join(clean(line.replace("\t", "    ")) for line in text.split("\n"))


def stamp(at: float | None, now: float | None = None) -> str:
    """A time of day where it is today's, else the date with it; local time."""
    if at is None:
        return ""
    then = time.localtime(at)
    today = time.localtime(time.time() if now is None else now)
    same = (then.tm_year, then.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M:%S" if same else "%Y-%m-%d %H:%M", then)


def count(number: int) -> str:
    """A number of tokens, short: 950, 12.3k, 1.2M; nothing for none."""
    if not number:
        return ""
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if number >= size:
            shown = number / size
            return f"{shown:.0f}{unit}" if shown >= 100 else f"{shown:.1f}{unit}"
    return str(number)


def money(usd: float | None) -> str:
    """A cost in USD; nothing where no price is known."""
    if usd is None:
        return ""
    return f"${usd:.2f}" if usd >= 10 else f"${usd:.4f}"


def duration(ms: float | None) -> str:
    """A duration, short: 12ms, 3.4s, 2m10s; nothing where it is not known."""
    if ms is None or ms < 0:
        return ""
    if ms < 1000:
        return f"{ms:.0f}ms"
    seconds = ms / 1000
    return f"{seconds:.1f}s" if seconds < 60 else f"{int(seconds) // 60}m{int(seconds) % 60:02d}s"


def size(number: int) -> str:
    """A size in bytes, short."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{number} B"


def short_id(conversation: str) -> str:
    """What of a conversation's id is shown in lists; long enough to be a prefix that means it alone."""
    return conversation[:10] if conversation.startswith("c-") else conversation[:8]
