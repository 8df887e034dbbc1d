"""Whatever befalls the file, the store says so, keeps what it can, loses nothing that fits, and heals by itself."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from storekit import States, assert_sound, body_of, closed, look, make_id, opened, row, rows, store_at, talk

from dbproxy.store import schema

SUPPORT = Path(__file__).resolve().parent.parent / "support"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dbproxy.sqlite"


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        pause.wait(0.01)


def script(path, text, **more):
    """Run Python in a process of its own; what it printed."""
    code = textwrap.dedent(text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), str(SUPPORT.parent.parent)])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True, timeout=60, **more
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_locked_file_is_waited_for(path):
    states = States()
    with store_at(path, on_state=states, busy_seconds=0.05) as store:
        store.append(opened(1))
        assert store.flush(10)
        with look(path) as other:
            other.execute("BEGIN IMMEDIATE")
            store.append(opened(2, talk("kept")))
            until(lambda: "another process" in store.state)
            assert store.counts.failures > 0
            other.execute("ROLLBACK")
        assert store.flush(10)
        assert store.state == ""
    assert len(states.said) == 2
    assert states.said[1] == ""
    assert body_of(path, 2) == talk("kept")


def test_a_full_disk_degrades_and_heals(path):
    """The size of files is limited: SQLite is told as by a full disk."""
    out = script(
        path,
        """
        import resource, sys, time
        from pathlib import Path
        from storekit import *
        import longtalk
        path = Path(sys.argv[1])
        with store_at(path) as store:
            store.append(opened(0))
            assert store.flush(10)
            resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
            words = longtalk.Words(1)
            for number in range(1, 60):
                store.append(opened(number, talk(words.random.randbytes(20_000).hex())))
            end = time.monotonic() + 10
            while not store.state and time.monotonic() < end:
                time.sleep(0.01)
            print(store.state)
            assert store.counts.queued > 0
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert store.flush(30), store.state
            assert store.state == ""
            assert store.counts.errors == store.counts.shed_facts == 0
        assert assert_sound(path) == 59
        """,
    )
    assert "full" in out or "cannot be written" in out


def test_a_folder_that_cannot_be_written(path):
    out = script(
        path,
        """
        import os, sys, time
        from pathlib import Path
        from storekit import *
        path = Path(sys.argv[1])
        if os.geteuid() == 0:
            os.chown(path.parent, 65534, 65534)
            for folder in path.parents:
                if not os.stat(folder).st_mode & 1 and folder != path.parent:
                    os.chmod(folder, 0o711)
            os.setuid(65534)
        os.chmod(path.parent, 0o500)
        with store_at(path) as store:
            store.append(opened(1))
            end = time.monotonic() + 10
            while not store.state and time.monotonic() < end:
                time.sleep(0.01)
            print(store.state)
            os.chmod(path.parent, 0o700)
            assert store.flush(20), store.state
            os.chmod(path, 0o400)
        """,
    )
    assert "cannot be" in out
    assert rows(path, "SELECT count(*) FROM exchange") == [(1,)]


def test_a_folder_that_is_not_there_yet(tmp_path):
    path = tmp_path / "later" / "dbproxy.sqlite"
    with store_at(path) as store:
        store.append(opened(1))
        until(lambda: store.state != "")
        path.parent.mkdir()
        assert store.flush(10)
    assert rows(path, "SELECT count(*) FROM exchange") == [(1,)]


def test_a_newer_file_is_refused_and_left_alone(path):
    with store_at(path) as store:
        store.append(opened(1))
    with look(path) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    before = path.read_bytes()
    with store_at(path) as store:
        store.append(opened(2))
        until(lambda: store.state != "")
        assert "Update dbproxy" in store.state
        assert not store.flush(0.3)
    assert path.read_bytes() == before
    assert store.counts.shed_facts == 1


def test_another_programs_database_is_left_alone(path):
    with look(path) as connection:
        connection.execute("CREATE TABLE theirs(x)")
    before = path.read_bytes()
    with store_at(path) as store:
        store.append(opened(1))
        until(lambda: store.state != "")
        assert "another program" in store.state
    assert path.read_bytes() == before
    assert [name.name for name in path.parent.glob("*corrupt*")] == []


@pytest.mark.parametrize("content", [b"no database at all " * 500, b"SQLite format 3\0" + b"\xff" * 9000, b"x" * 100])
def test_what_is_no_database_is_put_aside(path, content):
    path.write_bytes(content)
    states = States()
    with store_at(path, on_state=states, clock=lambda: 0.0) as store:
        store.append(opened(1, talk("kept")))
        assert store.flush(10)
        assert store.state == ""
    assert body_of(path, 1) == talk("kept")
    assert path.with_name("dbproxy.sqlite.corrupt-19700101T000000").read_bytes() == content
    assert "dbproxy.sqlite.corrupt-19700101T000000" in states.said[0]


def test_a_file_without_its_tables_is_put_aside(path):
    with store_at(path) as store:
        store.append(opened(1))
    with look(path) as connection:
        connection.execute("DROP TABLE node")
    with store_at(path) as store:
        store.append(opened(2))
        assert store.flush(10)
    assert len(list(path.parent.glob("*corrupt*"))) == 1
    assert rows(path, "SELECT id FROM exchange") == [(make_id(2),)]


def test_a_dictionary_that_cannot_be_read(path):
    with store_at(path) as store:
        store.append(opened(1))
    with look(path) as connection:
        connection.execute("UPDATE dictionary SET data = x'00'")
    with store_at(path) as store:
        store.append(opened(2, talk("x")))
        assert store.flush(10)
    assert body_of(path, 2) == talk("x")


def test_a_damaged_search_index_is_started_anew(path):
    with store_at(path) as store:
        store.append(opened(1, talk("walrus")))
    with look(path) as connection:
        connection.execute("UPDATE search_data SET block = x'ffffffff' WHERE id > 0")
    states = States()
    with store_at(path, on_state=states) as store:
        for number in range(2, 40):
            store.append(opened(number, talk(f"penguin {number} walrus")))
            assert store.flush(10)
        assert store.counts.errors == 0
    assert len(list(path.parent.glob("*corrupt*"))) == 0
    assert assert_sound(path) == 39


@pytest.mark.parametrize("way", ["zeros", "noise", "swapped"])
def test_damage_at_every_page(path, tmp_path, way):
    """One page of the file is broken: the store goes on, with this file or a new one, and stays well."""
    with store_at(path) as store:
        for number in range(12):
            store.append(opened(number, talk(*(f"text {n} " * 80 for n in range(number + 1)))))
            store.append(closed(number, f"answer {number}"))
    good = path.read_bytes()
    size = 4096
    pages = len(good) // size
    assert pages > 20
    for page in range(pages):
        file = tmp_path / f"page-{page}" / "dbproxy.sqlite"
        file.parent.mkdir()
        at = page * size
        bad = {
            "zeros": bytes(size),
            "noise": bytes((n * 89 + page) & 0xFF for n in range(size)),
            "swapped": good[(page + 7) % pages * size :][:size],
        }[way]
        file.write_bytes(good[:at] + bad + good[at + size :])
        with store_at(file) as store:
            for number in range(20, 23):
                store.append(opened(number, talk(*(f"text {n} " * 80 for n in range(number - 5)), "new")))
                store.append(closed(number, "new"))
            assert store.flush(20), (page, store.state)
            assert store.state == "", (page, store.state)
            assert store.counts.errors == 0, page
        with look(file) as connection:
            try:
                found = connection.execute("SELECT count(*) FROM exchange WHERE id >= ?", (make_id(20),)).fetchone()[0]
            except sqlite3.DatabaseError:
                continue  # damage that writing did not meet: `log verify` tells
        assert found == 3 or page > 0, page


def test_a_file_that_is_deleted_or_replaced_is_noticed(path):
    with store_at(path) as store:
        store.append(opened(1))
        assert store.flush(10)
        for name in path.parent.glob("dbproxy.sqlite*"):
            name.unlink()
        store.append(opened(2))
        assert store.flush(10)
        path.rename(path.with_name("away"))
        store.append(opened(3))
        assert store.flush(10)
    assert rows(path, "SELECT id FROM exchange") == [(make_id(3),)]


def test_two_processes_meet_one_damaged_file(path):
    path.write_bytes(b"no database " * 1000)
    with store_at(path) as one, store_at(path) as two:
        one.append(opened(1))
        two.append(opened(2))
        assert one.flush(20)
        assert two.flush(20)
    assert len(list(path.parent.glob("*.corrupt-*"))) == 1
    assert [row(path, n)["state"] for n in (1, 2)] == ["open", "open"]


def test_closing_gives_up_in_time(path):
    with look(path) as other:
        other.execute("CREATE TABLE theirs(x)")
    with store_at(path) as store:
        store.append(opened(1))
        began = time.monotonic()
        assert not store.close(0.5)
        assert time.monotonic() - began < 3
        assert store.counts.shed_facts == 1
