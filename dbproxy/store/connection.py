"""A read-only connection to the database file, safe beside a proxy that writes it.

Owns opening, the time limit of a query, and what a person is told when the file cannot be read. Never writes.
Invariants: every failure of SQLite leaves here as ``Unreadable``; several reads within ``snapshot`` see one state of
the file; a file that was moved aside and begun anew is noticed and opened again.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from dbproxy.store.rows import NothingCaptured, Unreadable
from dbproxy.store.schema import APPLICATION_ID, VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

#: Virtual machine steps between two looks at the clock: some tenths of a millisecond.
_STEPS: Final = 20_000
_BUSY_SECONDS: Final = 5.0
_LARGEST: Final = 2**63 - 1


class Connection:
    """One read-only connection. Any thread may use it; they take turns."""

    def __init__(self, path: Path, *, seconds: float = 10.0) -> None:
        """Open ``path``. ``seconds`` is how long a single query may take. Raises Unreadable."""
        self.path = path
        self.seconds = seconds
        self.generation = 0  # counts the files opened here; what was remembered of an earlier one is void
        self._turn = threading.RLock()
        self._until = float("inf")
        self._depth = 0
        self._identity: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        with self._turn:
            self._open()

    def close(self) -> None:
        """Give the file back. A closed connection opens again when it is used."""
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of one query. Raises Unreadable, also where it takes longer than the limit."""
        with self._turn, self._explained():
            connection = self._ready()
            self._until = time.monotonic() + self.seconds
            try:
                return _executed(connection, sql, values).fetchall()
            finally:
                self._until = float("inf")

    def row(self, sql: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """The first row of a query, None if there is none. Raises Unreadable."""
        found = self.rows(sql, values)
        return found[0] if found else None

    def each(
        self, sql: str, values: Sequence[object] = (), *, many: int = 256, until: float | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """The rows of one query as they are found, without holding them all; only within a ``snapshot``. The time limit
        is ``until`` (monotonic), or counts anew for every ``many`` rows. Raises Unreadable."""
        with self._explained():
            cursor = None
            while True:
                self._until = time.monotonic() + self.seconds if until is None else until
                try:
                    if cursor is None:
                        cursor = _executed(self._ready(), sql, values)
                    some = cursor.fetchmany(many)
                finally:
                    self._until = float("inf")
                if not some:
                    return
                yield from some

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside is of one moment, whatever is written meanwhile. May be nested."""
        with self._turn:
            if self._depth == 0:
                with self._explained():
                    self._ready().execute("BEGIN")
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and self._connection is not None:
                    with contextlib.suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """SQLite's own connection, for those that read content with it; within a ``snapshot``. What runs inside counts
        as one query. Raises Unreadable."""
        with self.snapshot(), self._explained():
            self._until = time.monotonic() + self.seconds
            try:
                yield self._ready()
            finally:
                self._until = float("inf")

    # ---- opening

    def _ready(self) -> sqlite3.Connection:
        if self._depth == 0 and (self._connection is None or self._identity != self._look()):
            self.close()
            self._open()
        if self._connection is None:
            raise Unreadable(f"{self.path} was closed while it was read")
        return self._connection

    def _look(self) -> tuple[int, int]:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            raise NothingCaptured(
                f"nothing was captured yet: {self.path} does not exist",
                hint="Start a session with `dbproxy claude`, or set DBPROXY_DATA_DIR to where the capture is",
            ) from None
        except OSError as error:
            raise Unreadable(f"{self.path} cannot be read: {error.strerror}", hint="Check its permissions") from error
        return found.st_dev, found.st_ino

    def _open(self) -> None:
        self._identity = self._look()
        where = f"file:{quote(str(self.path.absolute()))}?mode=ro"
        with self._explained():
            try:
                self._connection = self._connected(where)
            except sqlite3.OperationalError:
                # The log's index file cannot be made in a folder that is not ours to write. Then nobody writes either.
                self._connection = self._connected(where + "&immutable=1")
        self.generation += 1

    def _connected(self, where: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            where, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            self._check(connection)
            connection.execute("PRAGMA mmap_size = 268435456")
            connection.execute("PRAGMA cache_size = -16384")
            connection.set_progress_handler(self._overdue, _STEPS)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        empty = not version and not application
        if empty and connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
            raise NothingCaptured(
                f"nothing was captured yet: {self.path} is empty", hint="Start a session with `dbproxy claude`"
            )
        if application != APPLICATION_ID:
            raise Unreadable(
                f"{self.path} is a database of another program", hint="Move it away, or set DBPROXY_DATA_DIR"
            )
        if version > VERSION:
            raise Unreadable(
                f"{self.path} was written by a newer dbproxy (format {version}, this one reads {VERSION})",
                hint="Update dbproxy",
            )
        if version < VERSION:
            raise Unreadable(
                f"{self.path} was written by an older dbproxy (format {version}, this one reads {VERSION})",
                hint="Start the proxy once with `dbproxy start`: it brings the file up to date",
            )

    def _overdue(self) -> int:
        return time.monotonic() > self._until

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if "interrupted" in text:
                raise Unreadable(
                    f"the query took longer than {self.seconds:g} s",
                    hint="Narrow it: a conversation, or a shorter time",
                ) from error
            if "locked" in text or "busy" in text:
                raise Unreadable(
                    f"{self.path} is locked by another program", hint="Try again when it is done"
                ) from error
            raise Unreadable(
                f"{self.path} cannot be read: {text}", hint="Check its permissions and the disk"
            ) from error
        except sqlite3.DatabaseError as error:
            raise Unreadable(
                f"{self.path} is damaged: {error}",
                hint="The proxy puts a damaged file aside and starts a new one; restart it with `dbproxy restart`",
            ) from error


def within(column: str, folder: str) -> tuple[str, list[object]]:
    """The condition that a path is ``folder`` or lies below it, and its values."""
    bare = folder.rstrip("/\\")
    return (
        f"({column} IN (?, ?) OR substr({column}, 1, ?) IN (?, ?))",
        [folder, bare, len(bare) + 1, bare + "/", bare + "\\"],
    )


def _executed(connection: sqlite3.Connection, sql: str, values: Sequence[object]) -> sqlite3.Cursor:
    try:
        return connection.execute(sql, values)
    except (UnicodeEncodeError, OverflowError):  # asked for what no row can hold; as such it is looked for
        return connection.execute(sql, [_storable(value) for value in values])


def _storable(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return max(-_LARGEST, min(_LARGEST, value)) if isinstance(value, int) else value
