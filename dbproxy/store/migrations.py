"""Brings a database file to the version of this program, or says why it cannot be used.

Owns the order of the steps and what is checked of a file before it is written to. Imports ``schema`` and base only.
Invariants: a file of a newer version or of another program is never changed; a step is done whole or not at all, after
a copy of the file was kept; two processes that come at once do it once.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING, Final

import zstandard

from dbproxy.errors import DbproxyError
from dbproxy.store import files, schema
from dbproxy.store.vocabulary import VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


class UnusableFile(DbproxyError):
    """The database is healthy, but not for us: of a newer version, or another program's."""


def _with_routes(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE exchange ADD COLUMN provider TEXT NOT NULL DEFAULT ''")
    connection.execute("ALTER TABLE exchange ADD COLUMN route BLOB")


#: From which version, and how to the next. A step runs inside a transaction and must not end it.
STEPS: Final[Mapping[int, Callable[[sqlite3.Connection], None]]] = {1: _with_routes}


def tune(connection: sqlite3.Connection, busy_seconds: float) -> None:
    """Settings of a connection that writes. Raises UnusableFile before it changes anything, sqlite3.Error."""
    connection.execute(f"PRAGMA busy_timeout = {int(busy_seconds * 1000)}")
    check(connection)
    connection.execute("PRAGMA cell_size_check = ON")  # a damaged page is said to be one before it is written to
    if connection.execute("PRAGMA page_count").fetchone() == (0,):
        # Has no effect later; and the mode of the journal is written to the file.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last batches, never the file
    connection.execute("PRAGMA journal_size_limit = 16777216")
    connection.execute("PRAGMA foreign_keys = OFF")  # references are made by one writer; checking costs every batch
    connection.execute("PRAGMA cache_size = -4096")


def migrate(
    connection: sqlite3.Connection,
    path: Path,
    *,
    version: int = schema.VERSION,
    steps: Mapping[int, Callable[[sqlite3.Connection], None]] = STEPS,
) -> None:
    """Make the tables of an empty file, or bring an older one here. Call it under ``files.opening``.

    Raises UnusableFile, and sqlite3.DatabaseError where the file is damaged.
    """
    found = _version(connection, version)
    if found == version:
        _expect_tables(connection)
        return
    if found:
        _keep_copy(connection, path, found)
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = _version(connection, version)
        if found == 0:
            _create(connection)
            found = schema.VERSION
        while found < version:
            steps[found](connection)
            found += 1
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def check(connection: sqlite3.Connection) -> None:
    """Raise UnusableFile for a file that this program must not use."""
    _version(connection, schema.VERSION)


def _version(connection: sqlite3.Connection, ours: int) -> int:
    """The version of the file, 0 for an empty one."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != schema.APPLICATION_ID:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables or application or version:
            raise UnusableFile(
                "the database file belongs to another program", hint="Move it away, or set DBPROXY_DATA_DIR"
            )
        return 0
    if version > ours:
        raise UnusableFile(
            f"the database file is of version {version}, this dbproxy writes version {ours}",
            hint="Update dbproxy, or move the file away to start a new one",
        )
    return int(version)


def _create(connection: sqlite3.Connection) -> None:
    for statement in _statements(schema.TABLES):
        connection.execute(statement)
    frame = zstandard.ZstdCompressor(level=19).compress(VOCABULARY)
    connection.execute("INSERT INTO dictionary(id, made, data) VALUES (1, ?, ?)", (time.time(), frame))


def _statements(script: str) -> list[str]:
    """The statements of a script without comments; ``executescript`` would end our transaction."""
    found, current = [], ""
    for line in script.splitlines():
        current += line.partition("--")[0].rstrip() + "\n"
        if sqlite3.complete_statement(current):
            found.append(current.strip())
            current = ""
    return found


def _expect_tables(connection: sqlite3.Connection) -> None:
    """A file that lacks tables of its version is damaged, whatever it says of itself."""
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    missing = _TABLES - names
    if missing:
        raise sqlite3.DatabaseError(f"the tables {', '.join(sorted(missing))} are missing")


def _keep_copy(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Copy the file as it was before a step changes it. Raises OSError, sqlite3.Error."""
    target = files.beside(path, f".v{version}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
    files.make(target)
    with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy:
        connection.backup(copy)


_TABLES: Final = frozenset(
    {"blob", "node", "list", "dictionary", "process", "conversation", "agent", "exchange"}
    | {"point", "rate_limit", "shed", "search", "found_in"}
)
