"""Full-text search: what a person typed, as a query that cannot fail, and hits with the words around them.

Owns the query language (words, "phrases", beginnings*, role:, project:, conversation:) and snippets. The index knows
which messages hold which words, not where: phrases, and every hit, are checked against the text itself, so that an
index that is behind or ahead of the content never shows a wrong hit. Never writes. Invariants: no text is an invalid
query; a search ends after its time whatever it is asked, and says that it is not complete.
"""

from __future__ import annotations

import re
import sqlite3
import time
import unicodedata
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import zstandard

from dbproxy.model.parts import search_text
from dbproxy.model.redact import redact_text
from dbproxy.store.connection import within
from dbproxy.store.rows import Found, Hit, UnknownId, Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dbproxy.store.blobs import BlobReader
    from dbproxy.store.connection import Connection
    from dbproxy.store.content import Content

#: Words of one query; the others are left out.
MOST_WORDS: Final = 32
_LONGEST_QUERY: Final = 4096
_CANDIDATES: Final = 256  # looked up in one go
_AROUND: Final = 2000  # characters around a match that are looked at for secrets
_BEFORE: Final = 60  # characters of a snippet before the first match
_AFTER: Final = 160
_FILTERS: Final = ("role", "project", "conversation", "thread", "kind")
# A filter with its value, a quoted phrase (an unclosed one runs to the end), or a word; a star behind any of them.
_TERM: Final = re.compile(r'(?:(?P<filter>[a-z]+):(?=\S))?(?:"(?P<phrase>[^"]*)"?|(?P<word>[^\s"]+))(?P<star>\*)?')


@dataclass(frozen=True, slots=True)
class Term:
    """One word, or words that stand next to one another. ``star`` says that the last one is a beginning."""

    words: tuple[str, ...]
    star: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """A query as it was understood: all terms must be found, all filters hold."""

    terms: tuple[Term, ...] = ()
    filters: tuple[tuple[str, str], ...] = ()

    @property
    def match(self) -> str:
        """As the index takes it: every word quoted. Phrases become their words, for the index knows no places."""
        words = {
            f'"{word}"' + ("*" if term.star and place == len(term.words) - 1 else ""): None
            for term in self.terms
            for place, word in enumerate(term.words)
        }
        return " ".join(words)


def understand(text: str) -> Query:
    """Read what a person typed. Never raises."""
    raw: list[tuple[str, bool]] = []
    filters: list[tuple[str, str]] = []
    for found in _TERM.finditer(text[:_LONGEST_QUERY]):
        name = found["filter"]
        value = found["phrase"] if found["phrase"] is not None else found["word"]
        if name in _FILTERS:
            filters.append((name, value))
        else:
            star = found["star"] is not None or (found["phrase"] is None and value.endswith("*"))
            raw.append((f"{name} {value}" if name else value, star))
    terms: list[Term] = []
    room = MOST_WORDS
    for words, (_, star) in zip(tokens([value for value, _ in raw]), raw, strict=True):
        kept = tuple(words[:room])
        if kept:
            terms.append(Term(kept, star and len(kept) == len(words)))
            room -= len(kept)
    return Query(tuple(terms), tuple(filters))


def tokens(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text exactly as the index cuts them, because it is asked."""
    found: list[list[str]] = [[] for _ in texts]
    with closing(sqlite3.connect(":memory:")) as scratch:
        scratch.execute("CREATE VIRTUAL TABLE cut USING fts5(text, tokenize='unicode61')")
        scratch.execute("CREATE VIRTUAL TABLE word USING fts5vocab(cut, 'instance')")
        for place, text in enumerate(texts):
            clean = text.encode("utf-8", "replace").decode().replace("\0", " ")
            scratch.execute("INSERT INTO cut(rowid, text) VALUES (?, ?)", (place, clean))
        for place, word in scratch.execute("SELECT doc, term FROM word ORDER BY doc, offset"):
            found[place].append(word)
    return found


# ---- texts


class _Folding(dict[int, str]):
    """Each character as the index folds it: lower case, without its accent. One for one, so that places stay."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        folded = unicodedata.normalize("NFD", character.lower())[:1] or character
        self[code] = folded
        return folded


_FOLDING: Final = _Folding()


def fold(text: str) -> str:
    """The text in lower case and without accents, of the same length."""
    return text.lower() if text.isascii() else text.translate(_FOLDING)


@lru_cache(maxsize=256)
def pattern(term: Term, plain: bool = False) -> re.Pattern[str]:
    """Finds a term in a folded text; ``plain`` for one of ASCII only, which has no accents left over."""
    end = r"[^\W_]*" if term.star else r"(?![^\W_])"
    if not plain:
        words = ["[\u0300-\u036f]*".join(map(re.escape, word)) for word in term.words]
        return re.compile(r"(?<![^\W_])" + r"[\W_]+".join(words) + end)
    # Begins with its first word, which is found much faster than a condition that holds nearly everywhere.
    first = re.escape(term.words[0])
    return re.compile(
        rf"{first}(?<![^\W_]{first})" + "".join(r"[\W_]+" + re.escape(word) for word in term.words[1:]) + end
    )


def holds(query: Query, text: str) -> bool:
    """Do all terms stand in a text? Single words of other scripts are left to the index, whose Unicode is older."""
    folded, plain = fold(text), text.isascii()
    return all(
        pattern(term, plain).search(folded) is not None
        for term in query.terms
        if len(term.words) > 1 or term.words[0].isascii()
    )


def might_hold(query: Query, content: bytes) -> bool:
    """Can the phrases stand in a message, by a look at its JSON? Some ten times as fast as to read it; never wrong when
    it says no."""
    phrases = [term for term in query.terms if len(term.words) > 1]
    if not phrases or _HIDDEN.search(content):
        return True
    text = fold(content.decode("utf-8", "replace"))
    plain = text.isascii()
    return all(_pair(term.words[0], term.words[1], plain).search(text) is not None for term in phrases)


#: Letters that JSON hides behind an escape; those of control characters are no letters.
_HIDDEN: Final = re.compile(rb"\\u(?!00[01])")


@lru_cache(maxsize=256)
def _pair(first: str, second: str, plain: bool) -> re.Pattern[str]:
    """A word of JSON text with another one, or the end of its string, behind it."""
    accents = "" if plain else "[\u0300-\u036f]*"
    one, two = (accents.join(map(re.escape, word)) for word in (first, second))
    return re.compile(rf'{one}(?:\\u00[01][0-9a-f]|\\[^u]|[^\w\\"]|_)*(?:"|{two})')


def snippet(query: Query, text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """What stands around the first match, on one line and without secrets, and where its matches are."""
    patterns = [pattern(term) for term in query.terms]
    folded = fold(text)
    first = min((found.start() for one in patterns if (found := one.search(folded))), default=0)
    # Secrets are looked for in more than is shown, lest a cut makes one unrecognisable.
    start = max(0, first - _AROUND)
    window = redact_text(text[start : first + _AROUND])[0]
    folded = fold(window)
    near = min(first - start, len(window))
    found_near = [m.start() for one in patterns for m in one.finditer(folded)]
    centre = min(found_near, key=lambda place: abs(place - near), default=near)
    begin, end = max(0, centre - _BEFORE), min(len(window), centre + _AFTER)
    begin = _word_edge(window, begin) if begin else 0
    shown = " ".join(window[begin:end].split())
    head = "… " if begin or start else ""
    tail = " …" if end < len(window) or start + len(window) < len(text) else ""
    line = head + shown + tail
    folded = fold(line)
    marks = sorted({m.span() for one in patterns for m in one.finditer(folded)})
    return line, _apart(marks)


def _word_edge(text: str, place: int) -> int:
    """The next beginning of a word, if one is near."""
    space = text.find(" ", place, place + 20)
    return place if space < 0 else space + 1


def _apart(marks: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Sorted spans without those that overlap an earlier one."""
    kept: list[tuple[int, int]] = []
    for start, end in marks:
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return tuple(kept)


# ---- the search


def search(
    connection: Connection,
    content: Content,
    text: str,
    *,
    filters: Iterable[tuple[str, str]] = (),
    before: str | None = None,
    limit: int = 20,
    seconds: float = 5.0,
) -> Found:
    """Hits for what a person typed, the newest content first; within a snapshot of ``connection``.

    Raises Unreadable, and UnknownId for a cursor that is none.
    """
    query = understand(text)
    if not query.terms:
        return Found((), True, "")
    deadline = time.monotonic() + seconds
    wanted = (*query.filters, *filters)
    hits: list[Hit] = []
    seen: set[tuple[str, str, int]] = set()
    last = _cursor(before)
    try:
        candidates = connection.each(
            "SELECT rowid FROM search WHERE search MATCH ? AND rowid < ? ORDER BY rowid DESC",
            [query.match, last],
            many=_CANDIDATES,
            until=deadline,
        )
        many = 2 * limit
        while numbers := [number for (number,) in islice(candidates, many)]:
            places = _places(connection, numbers, wanted)
            with content.reading("the index") as (_, blobs):
                for row in places:
                    hit = _hit(query, row, blobs, seen)
                    last = row[0]
                    if hit is not None:
                        hits.append(hit)
                    if len(hits) == limit or time.monotonic() > deadline:
                        return Found(tuple(hits), False, str(last))
            last = numbers[-1]
            many = _CANDIDATES
    except Unreadable:
        if time.monotonic() < deadline:
            raise
        return Found(tuple(hits), False, str(last))
    return Found(tuple(hits), True, "")


def _cursor(text: str | None) -> int:
    if text is None:
        return 2**62
    try:
        return min(max(0, int(text)), 2**62)
    except ValueError:
        raise UnknownId(f"{text[:40]!r} is no place in a search", hint="Take the cursor of the page before") from None


def _places(
    connection: Connection, numbers: Sequence[int], filters: Iterable[tuple[str, str]]
) -> list[tuple[Any, ...]]:
    """Blob, exchange and what the filters look at, for those of ``numbers`` that they let through, in their order."""
    where = ""
    values: list[object] = []
    for name, value in filters:
        if not value:
            continue
        if name == "project":
            condition, more = within("e.project", value)
            where += f" AND {condition}"
            values += more
        elif name == "conversation":
            where += " AND substr(e.conversation, 1, ?) = ?"
            values += [len(value), value]
        else:
            where += f" AND {'f.role' if name == 'role' else 'e.' + name} = ?"
            values.append(value)
    marks = ", ".join("?" * len(numbers))
    return connection.rows(
        "SELECT f.blob, f.exchange, f.role, e.conversation, e.thread, e.project, e.started"
        " FROM found_in f JOIN exchange e ON e.id = f.exchange"
        f" WHERE f.blob IN ({marks}){where} ORDER BY f.blob DESC",
        [*numbers, *values],
    )


def _hit(query: Query, row: tuple[Any, ...], blobs: BlobReader, seen: set[tuple[str, str, int]]) -> Hit | None:
    """One candidate with its snippet; None if its text was there before, or does not hold the phrases, or is gone."""
    number, exchange, role, conversation, thread, project, started = row
    try:
        content = blobs.blob(number)
        if not might_hold(query, content):
            return None
        _, text = search_text(content)
    except (KeyError, ValueError, zstandard.ZstdError):  # the index is ahead of a sweep, or the content is damaged
        return None
    same = (conversation, role, hash(text))
    if same in seen or not holds(query, text):
        return None
    seen.add(same)
    line, marks = snippet(query, text)
    return Hit(exchange, conversation, thread, project, started, role, line, marks, str(number))
