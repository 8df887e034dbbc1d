"""A file is made, brought here or refused; each step is done whole or not at all."""

from __future__ import annotations

import contextlib
import sqlite3
import threading

import pytest

from dbproxy.store import files, schema
from dbproxy.store.migrations import UnusableFile, check, migrate, tune
from dbproxy.store.reader import Reader


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dbproxy.sqlite"


@contextlib.contextmanager
def connected(path):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        tune(connection, 5.0)
        yield connection


def pragma(connection, name):
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def test_a_new_file(path):
    with connected(path) as connection:
        migrate(connection, path)
        assert pragma(connection, "user_version") == schema.VERSION
        assert pragma(connection, "application_id") == schema.APPLICATION_ID
        assert pragma(connection, "journal_mode") == "wal"
        assert pragma(connection, "auto_vacuum") == 2
        assert not connection.in_transaction
        check(connection)
        migrate(connection, path)  # once more changes nothing
        assert connection.execute("SELECT count(*) FROM dictionary").fetchone() == (1,)


def test_steps_are_done_in_order_after_a_copy(path):
    with connected(path) as connection:
        migrate(connection, path)
        connection.execute("INSERT INTO process(pid, started, seen) VALUES (1, 2, 3)")
        steps = {
            schema.VERSION: lambda c: c.execute("CREATE TABLE one(x)"),
            schema.VERSION + 1: lambda c: c.execute("INSERT INTO one SELECT pid FROM process"),
        }
        migrate(connection, path, version=schema.VERSION + 2, steps=steps)
        assert pragma(connection, "user_version") == schema.VERSION + 2
        assert connection.execute("SELECT x FROM one").fetchall() == [(1,)]
    (copy,) = path.parent.glob(f"dbproxy.sqlite.v{schema.VERSION}-*")
    assert copy.stat().st_mode & 0o777 == 0o600
    with contextlib.closing(sqlite3.connect(copy)) as old:
        assert old.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
        assert old.execute("SELECT pid FROM process").fetchall() == [(1,)]


def test_a_step_that_fails_changes_nothing(path):
    def broken(connection):
        connection.execute("CREATE TABLE half(x)")
        raise ValueError("in the middle")

    with connected(path) as connection:
        migrate(connection, path)
        with pytest.raises(ValueError, match="in the middle"):
            migrate(connection, path, version=schema.VERSION + 1, steps={schema.VERSION: broken})
        assert pragma(connection, "user_version") == schema.VERSION
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)


def test_newer_and_foreign_files_are_refused(path):
    with connected(path) as connection:
        migrate(connection, path)
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
        with pytest.raises(UnusableFile, match="Update dbproxy"):
            migrate(connection, path)
        with pytest.raises(UnusableFile):
            check(connection)
    other = path.with_name("other")
    with connected(other) as connection:
        connection.execute("PRAGMA user_version = 7")
        with pytest.raises(UnusableFile, match="another program"):
            migrate(connection, other)


def test_a_file_without_its_tables_counts_as_damaged(path):
    with connected(path) as connection:
        migrate(connection, path)
        connection.execute("DROP TABLE exchange")
        with pytest.raises(sqlite3.DatabaseError, match="exchange"):
            migrate(connection, path)


def test_two_at_once_make_it_once(path):
    failures = []

    def work():
        try:
            with files.opening(path, 10), connected(path) as connection:
                migrate(connection, path)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with connected(path) as connection:
        assert connection.execute("SELECT count(*) FROM dictionary").fetchone() == (1,)


def test_the_lock_is_given_up_with_its_holder_and_not_waited_for_long(path):
    with files.opening(path, 1), pytest.raises(files.Locked), files.opening(path, 0.05):
        pass
    with files.opening(path, 0.05):
        pass


def test_damaged_files_never_overwrite_one_another(path):
    for number in range(3):
        path.write_bytes(b"%d" % number)
        path.with_name("dbproxy.sqlite-wal").write_bytes(b"wal %d" % number)
        files.put_aside(path, 0.0)
    found = sorted(name.name for name in path.parent.glob("*corrupt-19700101T000000*"))
    assert len(found) == 6
    assert sum(name.endswith("-wal") for name in found) == 3


def test_a_file_from_before_routes_gets_their_columns_and_keeps_its_rows(path):
    with connected(path) as connection:
        migrate(connection, path)
        columns = "id, state, started, method, host, path, via"
        connection.execute(f"INSERT INTO exchange({columns}) VALUES ('a', 'closed', 1, 'POST', '', '', '')")
        before = connection.execute("SELECT * FROM exchange").fetchone()
        new = [row[1] for row in connection.execute("PRAGMA table_info(exchange)")]
        for column in ("provider", "route"):
            connection.execute(f"ALTER TABLE exchange DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 1")
        migrate(connection, path)
        assert pragma(connection, "user_version") == schema.VERSION
        assert [row[1] for row in connection.execute("PRAGMA table_info(exchange)")] == new, "in a new file's order"
        assert connection.execute("SELECT * FROM exchange").fetchone() == before
    with Reader.open(path) as reader:
        assert reader.exchange("a").route is None
