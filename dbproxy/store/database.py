"""An open database file, as the writer's thread uses it, and what its errors mean.

Owns transactions, signs of life, the training of dictionaries, and the judgement of SQLite's errors. Blocks. Imports
base, model and store. Invariants: a batch is written whole or nothing of it but content, which is harmless on its own.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from typing import TYPE_CHECKING, Final, Protocol

from dbproxy.store import files, migrations, schema
from dbproxy.store.blobs import BlobWriter, Codec, train
from dbproxy.store.records import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dbproxy.model.record import Record

#: Seconds that others may be kept from writing by a history of very many new messages.
HOLD: Final = 0.25
#: Seconds between two signs of life, and after how many without one a process counts as dead.
ALIVE_EVERY: Final = 30.0
DEAD_AFTER: Final = 180.0
#: Pages (of 4 KB) that closing may rewrite: some milliseconds.
TIDY_PAGES: Final = 256


class Waiting(Protocol):
    """A record to be written, and how many bytes of transcript it lost while it waited."""

    record: Record
    shed: int


class DamagedSearch(sqlite3.DatabaseError):
    """The search index contradicts itself; the rest of the file may be well."""


class Database:
    """An open database file. For one thread."""

    def __init__(
        self,
        path: Path,
        *,
        redact: Callable[[str], str],
        index: bool,
        busy_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        """Open, make or migrate it. Raises sqlite3.Error, OSError, UnusableFile."""
        self._clock = clock
        with files.opening(path, busy_seconds):
            files.make(path)
            self.identity = files.identity(path)
            self._connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
            try:
                migrations.tune(self._connection, busy_seconds)
                migrations.migrate(self._connection, path)
                files.make(path)  # the companions are there now
                self._codec = Codec(self._connection)
                self._codec.use_newest()
                self._blobs = BlobWriter(self._connection, self._codec)
                self._process = self._register()
            except UnicodeDecodeError as error:
                # From SQLite's own words about a damaged schema.
                self._connection.close()
                raise sqlite3.DatabaseError("the schema is damaged") from error
            except BaseException:
                self._connection.close()
                raise
        self._recorder = Recorder(
            self._connection,
            self._codec,
            self._blobs,
            process=self._process,
            redact=redact,
            index=index,
        )
        self._begun = 0.0
        self._looked_after = 0.0

    def write(self, batch: Sequence[Waiting]) -> None:
        """Write a batch in one transaction, or nothing of it but content. Raises sqlite3.Error."""
        self._begin()
        try:
            for entry in batch:
                self._recorder.write(entry.record, entry.shed, self._breathe)
            self._connection.execute("COMMIT")
        except UnicodeDecodeError as error:
            self.rollback()
            raise sqlite3.DatabaseError("a text in the file is damaged") from error
        except sqlite3.DatabaseError as error:
            self.rollback()
            # The index writes late, so its errors meet any statement. Constraints of tables have codes of their own.
            if getattr(error, "sqlite_errorcode", 0) in (sqlite3.SQLITE_CORRUPT_VTAB, sqlite3.SQLITE_CONSTRAINT):
                raise DamagedSearch(str(error)) from error
            raise
        except BaseException:
            self.rollback()
            raise
        self._learn()

    def rollback(self) -> None:
        """Undo what was not committed."""
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        self._recorder.forget()

    def look_after(self, busy: bool) -> None:
        """Now and then: a sign of life while exchanges are open, and those of dead processes are lost."""
        if time.monotonic() - self._looked_after < ALIVE_EVERY:
            return
        self._looked_after = time.monotonic()
        now = self._clock()
        if busy:
            self._connection.execute("UPDATE process SET seen = ? WHERE id = ?", (now, self._process))
        lost = "state = 'open' AND process NOT IN (SELECT id FROM process WHERE seen > ? OR id = ?)"
        values = (now - DEAD_AFTER, self._process)
        if self._connection.execute(f"SELECT 1 FROM exchange WHERE {lost} LIMIT 1", values).fetchone():
            self._connection.execute(f"UPDATE exchange SET state = 'lost' WHERE {lost}", values)

    def tidy(self) -> None:
        """Before a file in good order is closed: what the search index has in pieces is joined, free pages go."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("INSERT INTO search(search, rank) VALUES ('merge', ?)", (-TIDY_PAGES,))
            # executescript, since execute stops after the first page: this pragma gives rows without columns.
            self._connection.executescript(f"PRAGMA incremental_vacuum({TIDY_PAGES})")

    def close(self) -> None:
        """Close it; the last connection to a file brings the write-ahead log home."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def renew_search(self) -> None:
        """Start the search index anew. Raises sqlite3.Error."""
        self._begin()
        try:
            self._connection.execute("DROP TABLE search")
            self._connection.execute("DELETE FROM found_in")
            self._connection.execute(schema.SEARCH)
            self._connection.execute("COMMIT")
        except BaseException:
            self.rollback()
            raise

    def _register(self) -> int:
        now = self._clock()
        self._connection.execute(
            "DELETE FROM process WHERE seen < ? AND id NOT IN (SELECT process FROM exchange WHERE state = 'open')",
            (now - 86400,),
        )
        row = self._connection.execute(
            "INSERT INTO process(pid, started, seen) VALUES (?, ?, ?)", (os.getpid(), now, now)
        )
        assert row.lastrowid is not None
        return row.lastrowid

    def _begin(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._begun = time.monotonic()

    def _breathe(self) -> bool:
        """Let other writers in after a while. What is committed so far is content, which is harmless on its own, and
        whole records of this batch, which may be written again."""
        if time.monotonic() - self._begun < HOLD:
            return False
        self._connection.execute("COMMIT")
        self._begin()
        return True

    def _learn(self) -> None:
        if not self._blobs.wants_training():
            return
        data = train(self._blobs.samples())
        self._blobs.trained()
        if data is None:
            return
        self._begin()
        try:
            self._blobs.add_dictionary(data, self._clock())
            self._connection.execute("COMMIT")
        except BaseException:
            self.rollback()
            raise
        self._codec.use_newest()


def _code(error: Exception) -> int:
    """The primary result code of SQLite, 0 if it is not SQLite's."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF if isinstance(code, int) else 0


def is_busy(error: Exception) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_damage(error: Exception) -> bool:
    """Does the file contradict itself, as far as one can tell from an error?

    Without a code it was found by us or by Python's module (missing tables, texts that are none); a plain error from
    statements that never change means that the schema is not what it should be.
    """
    return isinstance(error, sqlite3.DatabaseError) and _code(error) in (
        0,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    )


def is_of_a_record(error: Exception) -> bool:
    """Is it a record that SQLite does not want, rather than the file?"""
    if isinstance(error, sqlite3.InterfaceError | sqlite3.ProgrammingError):
        return True  # a value of a type that cannot be bound
    return isinstance(error, sqlite3.Error) and _code(error) in (
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_TOOBIG,
    )


def is_damaged(path: Path) -> bool:
    """Look at the whole file; only done once damage was met."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA busy_timeout = 1000")
        migrations.migrate(connection, path)
        (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except UnicodeDecodeError:
        return True
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            return True
        raise
    except migrations.UnusableFile:
        return False
    finally:
        connection.close()
    return bool(answer != "ok")


def explain(error: Exception) -> str:
    """What to tell a person."""
    if isinstance(error, migrations.UnusableFile):
        return str(error)
    if isinstance(error, files.Locked) or is_busy(error):
        return "another process holds the database file; records wait in memory"
    if _code(error) == sqlite3.SQLITE_FULL:
        return "the disk is full; free some space, or run: dbproxy log prune"
    if _code(error) in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"the database file cannot be written ({error}); check the rights of the data directory"
    if isinstance(error, OSError):
        return f"the database file cannot be opened: {error.strerror or error}"
    return f"the database file cannot be written: {error}"
