"""Makes the file smaller: bodies by age and by size, then the content that nothing refers to any more.

Owns what may go and in which order. Runs beside proxies that write the same file, in slices, so that none of them
waits long. Blocks: call it in a thread. Invariants: nothing that a kept exchange refers to is removed, also if that
exchange came while this ran; a message goes only after all that follow it; facts stay unless asked otherwise; exchanges
that are still open are left alone; one run at a time; ended at any moment, the file is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sqlite3
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import zstandard

from dbproxy.model.parts import search_text
from dbproxy.model.redact import redact_text
from dbproxy.store import files, migrations
from dbproxy.store.blobs import BlobReader
from dbproxy.store.database import explain, is_busy
from dbproxy.store.reader import id_at
from dbproxy.store.rows import Unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Rows changed in one transaction: some 10 ms for which others cannot write.
SLICE: Final = 250
_BUSY_SECONDS: Final = 10.0
_PAGES: Final = 2000  # given back to the system in one go
#: A node's row with its share of the indices, beside its content, about.
_NODE_BYTES: Final = 90
_ROUNDS: Final = 4


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, or would be: exchanges whose bodies (or all) went, pieces of content, and bytes."""

    exchanges: int
    blobs: int
    freed_bytes: int  # estimated for a dry run
    file_bytes: int  # afterwards
    facts: bool  # were the facts removed, too?
    dry_run: bool

    def __str__(self) -> str:
        what = "exchanges" if self.facts else "bodies of exchanges"
        if not self.exchanges and not self.blobs:
            return "nothing to remove"
        done = "would be removed" if self.dry_run else "removed"
        about = "about " if self.dry_run else ""
        return (
            f"{done}: {self.exchanges} {what}, {self.blobs} pieces of content; "
            f"{about}{self.freed_bytes / 1e6:.1f} MB less, {about}{self.file_bytes / 1e6:.1f} MB left"
        )


def prune(
    path: Path,
    *,
    older_than: float | None = None,
    max_bytes: int | None = None,
    keep_facts: bool = True,
    dry_run: bool = False,
    redact: Callable[[str], str] = lambda text: redact_text(text)[0],
    clock: Callable[[], float] = time.time,
    stop: Callable[[], bool] = lambda: False,
) -> Pruned:
    """Remove what is older than ``older_than`` seconds, then the oldest until the file has ``max_bytes`` or less.

    Bodies, answers and streams go; facts stay where ``keep_facts``. Content that nothing refers to goes in any case.
    ``redact`` is the one that the search index was written with. ``stop`` is asked between slices; what was done by
    then stays done. Raises Unreadable where the file cannot be opened or written, or another run is under way.
    """
    if not path.exists():
        raise Unreadable(f"nothing was captured yet: {path} does not exist")
    with _explained(path), files.opening(files.beside(path, ".prune"), 0.0 if stop() else 1.0):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
        with contextlib.closing(connection):
            migrations.check(connection)
            migrations.tune(connection, _BUSY_SECONDS)
            run = _Run(connection, keep_facts=keep_facts, redact=redact, stop=stop)
            cutoff = id_at(clock() - older_than) if older_than is not None else ""
            if dry_run:
                return run.rehearse(cutoff, max_bytes)
            return run.perform(cutoff, max_bytes)


class _Run:
    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        keep_facts: bool,
        redact: Callable[[str], str],
        stop: Callable[[], bool],
    ) -> None:
        self._connection = connection
        self._keep_facts = keep_facts
        self._redact = redact
        self._stop = stop
        self._ended = False
        self._may_go = "state <> 'open'"
        if keep_facts:
            self._may_go += f" AND ({_HAS_CONTENT})"
        connection.executescript(_SCRATCH)

    # ---- what would go

    def rehearse(self, cutoff: str, max_bytes: int | None) -> Pruned:
        """Count without changing anything."""
        with self._snapshot():
            cutoff = self._cutoff(cutoff, max_bytes)
            exchanges, blobs, freed = self._estimate(cutoff)
            return Pruned(exchanges, blobs, freed, max(0, self._used() - freed), not self._keep_facts, dry_run=True)

    def _cutoff(self, cutoff: str, max_bytes: int | None) -> str:
        """The id before which must go all, so that the age and the size are kept; within a snapshot."""
        if max_bytes is None or self._used() - self._estimate(cutoff)[2] <= max_bytes:
            return cutoff
        sql = f"SELECT id FROM exchange WHERE id >= ? AND {self._may_go} ORDER BY id"
        ids = [id for (id,) in self._connection.execute(sql, (cutoff,))]
        low, high = 0, len(ids)  # so many of them go: too few, enough (or all there are)
        while high - low > 1 and high - low > len(ids) // 100:
            middle = (low + high) // 2
            if self._used() - self._estimate(_behind(ids, middle))[2] <= max_bytes:
                high = middle
            else:
                low = middle
        return _behind(ids, high) if ids else cutoff

    def _estimate(self, cutoff: str) -> tuple[int, int, int]:
        """Exchanges, blobs and bytes that would go with all before ``cutoff``; within a snapshot."""
        one = self._connection.execute
        goes = f"id < ? AND {self._may_go}"
        count, facts = one(f"SELECT count(*), total({_FACT_BYTES}) FROM exchange WHERE {goes}", (cutoff,)).fetchone()
        self._mark(f"NOT ({goes})", (cutoff,))
        nodes = one("SELECT count(*) FROM node WHERE id NOT IN (SELECT id FROM live_node)").fetchone()[0]
        blobs, data = one(
            "SELECT count(*), coalesce(sum(length(data) + 40), 0) FROM blob WHERE id NOT IN (SELECT id FROM live_blob)"
        ).fetchone()
        return count, blobs, data + nodes * _NODE_BYTES + (0 if self._keep_facts else int(facts))

    # ---- doing it

    def perform(self, cutoff: str, max_bytes: int | None) -> Pruned:
        """Remove, sweep and give the space back."""
        before = self._file()
        exchanges = blobs = 0
        for _ in range(_ROUNDS):
            with self._snapshot():
                upto = self._cutoff(cutoff, max_bytes)
            went = self._remove(upto)
            blobs += self._sweep()
            exchanges += went
            self._shrink()
            # An estimate may miss; what is left may be facts, which do not go by size.
            if max_bytes is None or not went or self._used() <= max_bytes or self._stopped():
                break
        after = self._file()
        return Pruned(exchanges, blobs, max(0, before - after), after, not self._keep_facts, dry_run=False)

    def _remove(self, cutoff: str) -> int:
        """Take the content, or everything, of the exchanges before ``cutoff``."""
        gone, at = 0, ""
        sql = f"SELECT id FROM exchange WHERE id > ? AND id < ? AND {self._may_go} ORDER BY id LIMIT {SLICE}"
        while not self._stopped():
            with self._slice():
                ids = [id for (id,) in self._connection.execute(sql, (at, cutoff))]
                if not ids:
                    break
                at = ids[-1]
                if self._keep_facts:
                    self._connection.executemany(_STRIP, ((id,) for id in ids))
                else:
                    self._forget(ids)
                gone += len(ids)
        return gone

    def _forget(self, ids: list[str]) -> None:
        """Remove exchanges whole, and conversations of which nothing is left."""
        marks = ", ".join("?" * len(ids))
        one = self._connection.execute
        touched = one(f"SELECT DISTINCT conversation FROM exchange WHERE id IN ({marks})", ids).fetchall()
        for conversation, id in one(f"SELECT conversation, id FROM exchange WHERE id IN ({marks})", ids).fetchall():
            one("DELETE FROM point WHERE conversation = ? AND exchange = ?", (conversation, id))
        for table, column in (("exchange", "id"), ("rate_limit", "exchange"), ("shed", "exchange")):
            one(f"DELETE FROM {table} WHERE {column} IN ({marks})", ids)
        for (conversation,) in touched:
            if one("SELECT 1 FROM exchange WHERE conversation = ? LIMIT 1", (conversation,)).fetchone() is None:
                for table, column in (("conversation", "id"), ("agent", "conversation"), ("point", "conversation")):
                    one(f"DELETE FROM {table} WHERE {column} = ?", (conversation,))

    def _sweep(self) -> int:
        """Remove content that nothing refers to. What writers add meanwhile is looked at before every slice."""
        one = self._connection.execute
        with self._snapshot():
            self._mark("1", ())
            for table, order in (("node", "depth DESC"), ("list", "id"), ("blob", "base IS NULL")):
                one(f"DELETE FROM dead_{table}")
                one(
                    f"INSERT INTO dead_{table}(id) SELECT id FROM main.{table}"
                    f" WHERE id NOT IN (SELECT id FROM live_{table}) ORDER BY {order}"
                )
            self._homes()
            one("DELETE FROM unfinished")
            one("INSERT INTO unfinished SELECT rowid FROM exchange WHERE state <> 'closed' OR method = ''")
            seen = _Seen.now(self._connection)
        swept = 0
        for table, remove in (("node", self._drop), ("list", self._drop), ("blob", self._drop_blobs)):
            at = 0
            sql = f"SELECT place, id FROM dead_{table} WHERE place > ? ORDER BY place LIMIT {SLICE}"
            while not self._stopped():
                with self._slice():
                    seen = self._spare(seen)
                    rows = one(sql, (at,)).fetchall()
                    if not rows:
                        break
                    at = rows[-1][0]
                    numbers = [id for _, id in rows]
                    remove(table, numbers)
                    swept += len(numbers) if table == "blob" else 0
        self._move_home()
        return swept

    def _drop(self, table: str, numbers: list[int]) -> None:
        self._connection.executemany(f"DELETE FROM main.{table} WHERE id = ?", ((number,) for number in numbers))

    def _drop_blobs(self, table: str, numbers: list[int]) -> None:
        """Blobs leave the search index first, which wants to be told the words that go."""
        one = self._connection.execute
        blobs = BlobReader(self._connection)
        for number in numbers:
            if one("SELECT 1 FROM found_in WHERE blob = ?", (number,)).fetchone() is None:
                continue
            with contextlib.suppress(KeyError, ValueError, zstandard.ZstdError):  # damaged: the words stay, unfound
                words = self._redact(search_text(blobs.blob(number))[1])
                one("INSERT INTO search(search, rowid, text) VALUES ('delete', ?, ?)", (number, words))
            one("DELETE FROM found_in WHERE blob = ?", (number,))
        self._drop(table, numbers)

    def _homes(self) -> None:
        """Content that stays, but was first seen in an exchange that lost its own, is found in another one; in a
        snapshot, the change itself in slices afterwards."""
        one = self._connection.execute
        one("DELETE FROM home")
        one(
            "INSERT INTO home(blob, was) SELECT f.blob, f.exchange FROM found_in f"
            " LEFT JOIN exchange e ON e.id = f.exchange"
            " WHERE (e.id IS NULL OR (e.tip IS NULL AND e.message IS NULL)) AND f.blob IN (SELECT id FROM live_blob)"
        )
        lost = {blob: blob for (blob,) in one("SELECT blob FROM home")}
        lost |= dict(one("SELECT b.id, b.base FROM blob b JOIN home h ON h.blob = b.base").fetchall())
        if not lost:
            return
        seen: set[int] = set()
        for id, tip, message in one(
            "SELECT id, tip, message FROM exchange WHERE tip IS NOT NULL OR message IS NOT NULL ORDER BY id"
        ).fetchall():
            found = [message] if message in lost else []
            node = tip
            while node is not None and node not in seen:
                seen.add(node)
                row = one("SELECT parent, blob FROM node WHERE id = ?", (node,)).fetchone()
                if row is None:
                    break
                node = row[0]
                if row[1] in lost:
                    found.append(row[1])
            for blob in found:
                one("UPDATE home SET exchange = ? WHERE blob = ? AND exchange IS NULL", (id, lost[blob]))

    def _move_home(self) -> None:
        at = 0
        sql = f"SELECT blob, was, exchange FROM home WHERE blob > ? AND exchange > '' ORDER BY blob LIMIT {SLICE}"
        while not self._stopped():
            with self._slice():
                rows = self._connection.execute(sql, (at,)).fetchall()
                if not rows:
                    break
                at = rows[-1][0]
                self._connection.executemany(
                    "UPDATE found_in SET exchange = ? WHERE blob = ? AND exchange = ?",
                    ((exchange, blob, was) for blob, was, exchange in rows),
                )

    def _shrink(self) -> None:
        """Removed words leave the index for good; free pages go back to the system."""
        one = self._connection.execute
        merge = -_PAGES // 4  # negative: begin even where few pieces wait
        while not self._stopped():
            changes = self._connection.total_changes
            one("INSERT INTO search(search, rank) VALUES ('merge', ?)", (merge,))
            merge = abs(merge)
            if self._connection.total_changes - changes < 2:  # as SQLite's manual says
                break
        free = math.inf
        while not self._stopped() and 0 < (left := one("PRAGMA freelist_count").fetchone()[0]) < free:
            free = left
            # Not execute, which stops after the first page: the pragma gives rows without columns.
            self._connection.executescript(f"PRAGMA incremental_vacuum({_PAGES})")
        one("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    # ---- what lives

    def _mark(self, kept: str, values: tuple[object, ...]) -> None:
        """Note everything that exchanges which meet ``kept`` refer to; within a snapshot."""
        one = self._connection.execute
        for table in ("node", "list", "blob"):
            one(f"DELETE FROM live_{table}")
        # The last row of a table stays with all it refers to: its number must not be given again while this runs.
        tips = f"SELECT tip FROM exchange WHERE {kept} UNION SELECT max(id) FROM node"
        one(f"INSERT OR IGNORE INTO live_node {_UP.format(tips)}", values)
        for table in ("list", "blob"):
            one(f"INSERT OR IGNORE INTO live_{table} SELECT id FROM main.{table} ORDER BY id DESC LIMIT 1")
        for kind, columns in _REFERENCES:
            for column in columns:
                sql = f"SELECT {column} FROM exchange WHERE {column} > 0 AND {kept}"
                one(f"INSERT OR IGNORE INTO live_{kind} {sql}", values)
        one("INSERT OR IGNORE INTO live_blob SELECT n.blob FROM live_node l JOIN node n ON n.id = l.id")
        one(f"INSERT OR IGNORE INTO live_blob {_ITEMS.format('l.id IN (SELECT id FROM live_list)')}")
        one("INSERT OR IGNORE INTO live_blob SELECT base FROM blob WHERE base > 0 AND id IN (SELECT id FROM live_blob)")

    def _spare(self, seen: _Seen) -> _Seen:
        """Take out of the dead what rows refer to that were written since ``seen``. Inside the slice's transaction."""
        one = self._connection.execute
        version = _version(self._connection)
        if version == seen.version:
            return seen
        fresh = "(rowid > ? OR rowid IN (SELECT id FROM unfinished))"
        exchange, node, items, blob = (seen.exchange,), (seen.node,), (seen.list,), (seen.blob,)
        tips = f"SELECT tip FROM exchange WHERE {fresh} UNION SELECT parent FROM node WHERE id > ?"
        one(f"INSERT OR IGNORE INTO live_node {_UP.format(tips)}", exchange + node)
        for kind, columns in _REFERENCES:
            for column in columns:
                sql = f"SELECT {column} FROM exchange WHERE {column} > 0 AND {fresh}"
                one(f"INSERT OR IGNORE INTO live_{kind} {sql}", exchange)
        one("INSERT OR IGNORE INTO live_blob SELECT blob FROM node WHERE id > ?", node)
        one(f"INSERT OR IGNORE INTO live_blob {_ITEMS.format('l.id > ?')}", items)
        one("INSERT OR IGNORE INTO live_blob SELECT base FROM blob WHERE base > 0 AND id > ?", blob)
        # What came back to life keeps alive what it refers to itself.
        one(f"INSERT OR IGNORE INTO live_blob {_ITEMS.format(_REVIVED.format('list', 'l.id'))}")
        one(f"INSERT OR IGNORE INTO live_blob SELECT blob FROM node WHERE {_REVIVED.format('node', 'id')}")
        one(f"INSERT OR IGNORE INTO live_blob SELECT base FROM blob WHERE base > 0 AND {_REVIVED.format('blob', 'id')}")
        for table in ("node", "list", "blob"):
            one(f"DELETE FROM dead_{table} WHERE id IN (SELECT id FROM live_{table})")
        return dataclasses.replace(seen, version=version)

    # ---- transactions

    def _stopped(self) -> bool:
        """Once asked to stop, nothing more is begun: what comes later relies on what came before."""
        self._ended = self._ended or self._stop()
        return self._ended

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[None]:
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def _slice(self) -> Iterator[None]:
        """A transaction; behind it a pause in which others write."""
        began = time.monotonic()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
        threading.Event().wait(min(1.0, time.monotonic() - began))

    def _used(self) -> int:
        page, count, free = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_size", "page_count", "freelist_count")
        )
        return int(page * (count - free))

    def _file(self) -> int:
        page, count = (self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count"))
        return int(page * count)


def _behind(ids: list[str], count: int) -> str:
    """An id behind the first ``count`` of ``ids``, and not behind the next one."""
    return ids[count] if count < len(ids) else ids[-1] + "~"


def _version(connection: sqlite3.Connection) -> int:
    """Changes when another connection has written."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


@dataclass(frozen=True, slots=True)
class _Seen:
    """How far the file was looked at: the last row of each table, and the version that others count up."""

    version: int
    exchange: int
    node: int
    list: int
    blob: int

    @classmethod
    def now(cls, connection: sqlite3.Connection) -> _Seen:
        last = (
            connection.execute(f"SELECT coalesce(max(rowid), 0) FROM main.{table}").fetchone()[0]
            for table in ("exchange", "node", "list", "blob")
        )
        return cls(_version(connection), *last)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except files.Locked as error:
        raise Unreadable(f"{path} is being pruned already", hint="Wait until that is done") from error
    except (sqlite3.Error, OSError, migrations.UnusableFile) as error:
        if is_busy(error):
            raise Unreadable(f"{path} is locked by another program", hint="Try again when it is done") from error
        raise Unreadable(f"{path} cannot be pruned: {explain(error)}") from error


_HAS_CONTENT: Final = "template IS NOT NULL OR tip IS NOT NULL OR message IS NOT NULL OR stream IS NOT NULL"
_FACT_BYTES: Final = (
    "300 + coalesce(length(request_headers), 0) + coalesce(length(response_headers), 0) "
    " + coalesce(length(evidence), 0) + coalesce(length(route), 0)"
)
_STRIP: Final = """
UPDATE exchange SET body_kind = CASE WHEN body_kind IN ('parts', 'raw') THEN 'pruned' ELSE body_kind END,
  template = NULL, system_list = NULL, tool_list = NULL, tip = NULL, message = NULL, stream = NULL
WHERE id = ?
"""
#: What an exchange refers to, by kind.
_REFERENCES: Final = (("list", ("system_list", "tool_list")), ("blob", ("template", "message", "stream")))
#: Nodes and all before them.
_UP: Final = """
WITH RECURSIVE up(id) AS ({} UNION SELECT n.parent FROM up JOIN node n ON n.id = up.id) SELECT id FROM up WHERE id > 0
"""
#: The blobs of lists.
_ITEMS: Final = """
SELECT json_extract(j.value, '$[0]') FROM list l, json_each(CAST(l.items AS TEXT)) j WHERE {}
"""
_REVIVED: Final = "{1} IN (SELECT d.id FROM dead_{0} d JOIN live_{0} USING (id))"
_SCRATCH: Final = """
PRAGMA temp_store = MEMORY;
CREATE TEMP TABLE live_node(id INTEGER PRIMARY KEY);
CREATE TEMP TABLE live_list(id INTEGER PRIMARY KEY);
CREATE TEMP TABLE live_blob(id INTEGER PRIMARY KEY);
CREATE TEMP TABLE dead_node(place INTEGER PRIMARY KEY, id INTEGER NOT NULL UNIQUE);
CREATE TEMP TABLE dead_list(place INTEGER PRIMARY KEY, id INTEGER NOT NULL UNIQUE);
CREATE TEMP TABLE dead_blob(place INTEGER PRIMARY KEY, id INTEGER NOT NULL UNIQUE);
CREATE TEMP TABLE unfinished(id INTEGER PRIMARY KEY);
CREATE TEMP TABLE home(blob INTEGER PRIMARY KEY, was TEXT NOT NULL, exchange TEXT);
"""
