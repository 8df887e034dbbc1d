"""Pruning: what goes, what stays, what search says afterwards, and writers that do not notice."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import captured
import pytest
import storekit
from hypothesis import given, settings
from hypothesis import strategies as st

from dbproxy.model.record import RateLimit
from dbproxy.store import retention
from dbproxy.store.reader import Reader
from dbproxy.store.retention import prune
from dbproxy.store.rows import Unreadable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = storekit.START + 100


def aged(number: int) -> float:
    """The age of exchange ``number``, and a bit less."""
    return NOW - storekit.START - number - 0.5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Five conversations of two turns each; the words of each are its own."""
    path = tmp_path / "db.sqlite"
    with storekit.store_at(path) as store:
        number = 0
        for name in ("ada", "bob", "cid", "dan", "eva"):
            said: list[str] = []
            for turn in range(2):
                number += 1
                said.append(f"{name} asks {turn}: " + " ".join(f"{name}{n}" for n in range(200)))
                link = storekit.link(number, f"c-{name}", parent=storekit.make_id(number - turn))
                limits = (RateLimit("5h", "allowed", number / 10, NOW),)
                store.append(storekit.opened(number, storekit.talk(*said, system=[{"text": name}]), link=link))
                store.append(storekit.closed(number, f"{name} hears {turn}", limits=limits, cost_usd=1.0))
                said.append(f"{name} hears {turn}")
        assert store.flush(10)
    return path


def noisy(path: Path, exchanges: int) -> Path:
    """Exchanges that share nothing and hardly compress: some 30 KB each."""
    noise = random.Random(1)
    with storekit.store_at(path) as store:
        for number in range(1, exchanges + 1):
            store.append(storekit.opened(number, storekit.talk(noise.randbytes(30_000).hex())))
            store.append(storekit.closed(number, "x"))
        assert store.flush(20)
    return path


def count(path: Path, table: str) -> int:
    return int(storekit.rows(path, f"SELECT count(*) FROM {table}")[0][0])


def hits(path: Path, query: str) -> int:
    with Reader.open(path) as reader:
        return len(reader.search(query, limit=100).hits)


def leftovers(path: Path) -> dict[str, int]:
    """Content that nothing refers to; the last row of a table may stay."""
    with storekit.look(path) as connection:
        connection.execute("CREATE TEMP TABLE live(id INTEGER PRIMARY KEY)")
        connection.execute(
            "INSERT INTO live WITH RECURSIVE up(id) AS (SELECT tip FROM exchange UNION"
            " SELECT n.parent FROM up JOIN node n ON n.id = up.id) SELECT id FROM up WHERE id > 0"
        )
        used = {id for (id,) in connection.execute("SELECT blob FROM node")}
        for (items,) in connection.execute("SELECT items FROM list"):
            used |= {id for id, _ in json.loads(items)}
        for row in connection.execute("SELECT template, message, stream FROM exchange"):
            used |= set(row)
        used |= {base for (base,) in connection.execute("SELECT base FROM blob")}
        nodes = connection.execute("SELECT count(*) FROM node WHERE id NOT IN (SELECT id FROM live)").fetchone()[0]
        lists = connection.execute(
            "SELECT count(*) FROM list WHERE id NOT IN (SELECT coalesce(system_list, 0) FROM exchange"
            " UNION SELECT coalesce(tool_list, 0) FROM exchange)"
        ).fetchone()[0]
        blobs = sum(id not in used for (id,) in connection.execute("SELECT id FROM blob"))
        return {"node": nodes, "list": lists, "blob": blobs}


def nothing_dangles(path: Path) -> None:
    """Whatever is in the file finds what it refers to: also a history that no exchange has, for one may come."""
    for table, column, target in (("node", "parent", "node"), ("node", "blob", "blob"), ("blob", "base", "blob")):
        sql = f"SELECT count(*) FROM {table} WHERE {column} > 0 AND {column} NOT IN (SELECT id FROM {target})"
        assert storekit.rows(path, sql) == [(0,)], f"{table}.{column}"
    items = "SELECT json_extract(value, '$[0]') AS blob FROM list, json_each(CAST(items AS TEXT))"
    assert storekit.rows(path, f"SELECT count(*) FROM ({items}) WHERE blob NOT IN (SELECT id FROM blob)") == [(0,)]


def index_is_sound(path: Path) -> None:
    """Every row of the index is of a blob that is there, and SQLite finds the index whole."""
    with storekit.look(path) as connection:
        lost = "SELECT count(*) FROM found_in WHERE blob NOT IN (SELECT id FROM blob)"
        assert connection.execute(lost).fetchone() == (0,)
        connection.execute("INSERT INTO search(search) VALUES ('integrity-check')")
        words = connection.execute("SELECT rowid FROM search WHERE search MATCH 'asks OR hears'").fetchall()
        found = connection.execute("SELECT blob FROM found_in").fetchall()
        assert sorted(words) == sorted(found)


def test_bodies_go_by_age_and_facts_stay(path: Path) -> None:
    assert hits(path, "ada7") == 2
    done = prune(path, older_than=aged(4), clock=lambda: NOW)
    assert done.exchanges == 4
    assert done.blobs >= 8
    assert not done.dry_run
    with Reader.open(path) as reader:
        rows = reader.exchanges()
        assert [row.body_kind for row in rows] == ["parts"] * 6 + ["pruned"] * 4
        assert reader.usage_rows()[0].cost_usd == 10.0
        assert reader.request_body(storekit.make_id(4)) is None
        assert reader.response_message(storekit.make_id(4)) is None
        assert not reader.exchange(storekit.make_id(4)).has_request
        assert {check.result for check in reader.verify()} == {"exact", "absent"}
        assert len(reader.conversations()) == 5
    assert storekit.assert_sound(path) == 6
    assert hits(path, "ada7") == hits(path, "bob7") == 0
    assert hits(path, "cid7") == 2
    assert sum(leftovers(path).values()) == 0
    index_is_sound(path)
    again = prune(path, older_than=aged(4), clock=lambda: NOW)
    assert (again.exchanges, again.blobs) == (0, 0)
    assert str(again) == "nothing to remove"


def test_facts_go_where_asked(path: Path) -> None:
    done = prune(path, older_than=aged(3), keep_facts=False, clock=lambda: NOW)
    assert done.exchanges == 3
    assert count(path, "exchange") == 7
    assert count(path, "rate_limit") == 7
    with Reader.open(path) as reader:
        assert [row.id for row in reader.conversations()] == ["c-eva", "c-dan", "c-cid", "c-bob"]
        # Its first turn went; what the second one carries of it is found there.
        found = {hit.exchange for hit in reader.search("bob7").hits}
        assert found == {storekit.make_id(4)}
    assert storekit.assert_sound(path) == 7
    assert sum(leftovers(path).values()) == 0
    index_is_sound(path)


def test_what_a_kept_exchange_shares_stays_and_is_found_there(path: Path) -> None:
    prune(path, older_than=aged(3), clock=lambda: NOW)
    with Reader.open(path) as reader:
        (first, second) = sorted(reader.search('"bob asks"').hits, key=lambda hit: hit.cursor)
        assert first.exchange == second.exchange == storekit.make_id(4)
        assert reader.request_body(storekit.make_id(4)) is not None
    assert storekit.assert_sound(path) == 7


def test_size_takes_the_oldest_until_it_is_enough(tmp_path: Path) -> None:
    path = noisy(tmp_path / "db.sqlite", 30)
    target = 700_000
    planned = prune(path, max_bytes=target, dry_run=True)
    assert planned.dry_run
    assert storekit.assert_sound(path) == 30
    done = prune(path, max_bytes=target)
    assert 1 <= planned.exchanges <= done.exchanges < 20
    assert done.file_bytes <= target
    assert done.file_bytes > target - 150_000  # and not much more than that
    with Reader.open(path) as reader:
        kinds = [row.body_kind for row in reader.exchanges()]
    assert kinds == sorted(kinds)  # parts before pruned: only the oldest went
    assert storekit.assert_sound(path) == 30 - done.exchanges


def test_a_size_that_cannot_be_reached_takes_all_bodies_and_no_facts(path: Path) -> None:
    done = prune(path, max_bytes=1)
    assert done.exchanges == 10
    assert count(path, "exchange") == 10
    assert storekit.assert_sound(path) == 0


def test_nothing_goes_that_nobody_asked_for(path: Path) -> None:
    done = prune(path)
    assert (done.exchanges, done.blobs) == (0, 0)
    assert prune(path, max_bytes=1 << 40).exchanges == 0
    assert prune(path, older_than=10_000, clock=lambda: NOW).exchanges == 0
    assert storekit.assert_sound(path) == 10
    index_is_sound(path)


def test_a_rehearsal_changes_nothing_and_says_what_would_go(path: Path) -> None:
    before = storekit.rows(path, "SELECT * FROM exchange")
    planned = prune(path, older_than=aged(4), dry_run=True, clock=lambda: NOW)
    assert storekit.rows(path, "SELECT * FROM exchange") == before
    assert planned.exchanges == 4
    assert planned.freed_bytes > 0
    done = prune(path, older_than=aged(4), clock=lambda: NOW)
    assert (done.exchanges, done.blobs) == (planned.exchanges, planned.blobs)
    assert str(planned).startswith("would be removed: 4 bodies of exchanges")


def test_open_exchanges_are_left_alone(path: Path) -> None:
    with storekit.store_at(path) as store:
        store.append(storekit.opened(11, storekit.talk("still going")))
        assert store.flush(10)
        prune(path, older_than=0.0, clock=lambda: NOW + 1e6, keep_facts=False)
        assert count(path, "exchange") == 1
        assert storekit.body_of(path, 11) == storekit.talk("still going")
        store.append(storekit.closed(11, "done"))
        assert store.flush(10)
    assert storekit.assert_sound(path) == 1


def test_the_file_gets_smaller(tmp_path: Path) -> None:
    path = noisy(tmp_path / "db.sqlite", 59)
    done = prune(path, older_than=aged(50), clock=lambda: NOW)
    assert done.freed_bytes > 1_000_000
    assert done.file_bytes < 600_000
    assert path.stat().st_size < 600_000


def test_a_run_that_is_stopped_anywhere_leaves_a_whole_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(retention, "SLICE", 2)
    whole = path.read_bytes()
    for steps in range(0, 60, 2):
        # Asked to stop from then on, or just once.
        calls = iter(range(10_000))
        asked = (lambda: next(calls) >= steps) if steps % 4 else (lambda: next(calls) == steps)  # noqa: B023
        path.write_bytes(whole)
        prune(path, older_than=aged(7), clock=lambda: NOW, stop=asked)
        kept = storekit.assert_sound(path)
        assert 3 <= kept <= 10
        nothing_dangles(path)
        with Reader.open(path) as reader:
            assert {check.result for check in reader.verify()} <= {"exact", "absent"}
        prune(path, older_than=aged(7), clock=lambda: NOW)
        assert storekit.assert_sound(path) == 3
        assert sum(leftovers(path).values()) == 0
        index_is_sound(path)


def between_slices(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Call ``act`` wherever others may write: behind every slice."""
    real = retention._Run._slice

    @contextlib.contextmanager
    def slice_and_act(run: Any) -> Any:
        with real(run):
            yield
        act()

    monkeypatch.setattr(retention._Run, "_slice", slice_and_act)


@pytest.mark.parametrize("cut", [8, 10])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_writers_bring_back_to_life_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, cut: int
) -> None:
    """Between any two slices clients send old conversations again, and other histories with the same messages."""
    monkeypatch.setattr(retention, "SLICE", 1)
    old = [json.loads(storekit.body_of(path, number) or b"") for number in range(1, 11)]
    number = iter(range(20, 10_000))
    chosen = random.Random(seed)
    with storekit.store_at(path) as store:

        def write() -> None:
            if chosen.random() < 0.2:
                body = dict(chosen.choice(old))
                if chosen.random() < 0.5:
                    body["messages"] = [*body["messages"], {"role": "assistant", "content": f"new {chosen.random()}"}]
                if chosen.random() < 0.3:
                    body["messages"] = body["messages"][::-1]
                here = next(number)
                store.append(storekit.opened(here, json.dumps(body, separators=(",", ":")).encode()))
                if chosen.random() < 0.5:
                    store.append(storekit.closed(here, chosen.choice(["ada hears 0", "bob hears 1", "else"])))
            assert store.flush(10)

        between_slices(monkeypatch, write)
        prune(path, older_than=aged(cut), clock=lambda: NOW)
    nothing_dangles(path)
    with Reader.open(path) as reader:
        assert [check for check in reader.verify() if check.result == "wrong"] == []
        assert len(reader.exchanges(limit=1000)) > 10
    storekit.assert_sound(path)
    monkeypatch.undo()
    prune(path)
    storekit.assert_sound(path)
    assert sum(leftovers(path).values()) <= 1  # the last row of a table may stay


@pytest.mark.parametrize("slices", range(0, 60, 4))
def test_an_exchange_that_is_finished_meanwhile_keeps_what_it_names(
    path: Path, monkeypatch: pytest.MonkeyPatch, slices: int
) -> None:
    """Rows that were there before the sweep, and name content only during it; and old messages in a new order."""
    monkeypatch.setattr(retention, "SLICE", 1)
    body = storekit.body_of(path, 3) or b""
    turned = json.loads(storekit.body_of(path, 6) or b"")
    turned["messages"].reverse()
    with storekit.store_at(path) as store:
        store.append(storekit.closed(15, "its end came first"))
        store.append(storekit.opened(16))
        assert store.flush(10)
        calls = iter(range(10_000))

        def finish() -> None:
            if next(calls) == slices:
                store.append(storekit.opened(15, body))
                store.append(storekit.closed(16, "bob hears 1"))
                store.append(storekit.opened(17, json.dumps(turned, separators=(",", ":")).encode()))
                assert store.flush(10)

        between_slices(monkeypatch, finish)
        prune(path, older_than=aged(10), clock=lambda: NOW)
    nothing_dangles(path)
    with Reader.open(path) as reader:
        assert [check for check in reader.verify() if check.result == "wrong"] == []
        if next(calls) > slices:
            assert reader.request_body(storekit.make_id(15)) == body
            assert reader.response_message(storekit.make_id(16)) == storekit.answer("bob hears 1")


@pytest.mark.parametrize("slices", range(0, 30, 3))
def test_a_half_made_history_keeps_what_it_hangs_on(path: Path, monkeypatch: pytest.MonkeyPatch, slices: int) -> None:
    """A writer may commit nodes before the exchange that they are for."""
    monkeypatch.setattr(retention, "SLICE", 1)
    calls = iter(range(10_000))

    def hang_on() -> None:
        if next(calls) == slices:
            with storekit.look(path) as connection:
                connection.execute(
                    "INSERT INTO node(hash, parent, depth, blob)"
                    " SELECT randomblob(16), id, depth + 1, blob FROM node ORDER BY depth, id LIMIT 1"
                )

    between_slices(monkeypatch, hang_on)
    prune(path, older_than=aged(10), clock=lambda: NOW)
    nothing_dangles(path)


def test_writers_beside_a_run_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    failed: list[Exception] = []
    with storekit.store_at(path) as store:
        for number in range(1, 150):
            store.append(storekit.opened(number, storekit.talk("hi", "yes", f"question {number % 20}")))
            store.append(storekit.closed(number, f"answer {number % 10}"))
        assert store.flush(20)
        over = threading.Event()

        def run() -> None:
            try:
                while not over.is_set():
                    prune(path, older_than=0.0, clock=lambda: storekit.START + 200)
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        for number in range(300, 500):
            store.append(storekit.opened(number, storekit.talk("hi", "yes", f"question {number % 20}")))
            store.append(storekit.closed(number, f"answer {number % 10}"))
            if number % 10 == 0:
                assert store.flush(20)
        assert store.flush(20)
        over.set()
        thread.join(30)
        assert store.state == ""
    assert not failed
    assert storekit.assert_sound(path) == 200


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=5), min_size=1, max_size=10),
    st.integers(0, 10),
    st.booleans(),
)
def test_what_is_kept_is_exact_and_nothing_else_is_left(
    tmp_path_factory: pytest.TempPathFactory, talks: list[list[str]], cut: int, keep_facts: bool
) -> None:
    path = tmp_path_factory.mktemp("prune") / "db.sqlite"
    with storekit.store_at(path) as store:
        for number, texts in enumerate(talks, 1):
            store.append(storekit.opened(number, storekit.talk(*(f"asks {text}" for text in texts))))
            store.append(storekit.closed(number, f"hears {texts[-1]}"))
        assert store.flush(10)
    prune(path, older_than=aged(cut), keep_facts=keep_facts, clock=lambda: NOW)
    assert storekit.assert_sound(path) == max(0, len(talks) - cut)
    last = {"node": 1, "list": 1, "blob": 3}  # the last rows stay, and what they refer to
    left = leftovers(path)
    assert left["node"] <= 5
    assert left["list"] <= last["list"]
    assert left["blob"] <= last["blob"]
    index_is_sound(path)


# ---- refusals


def test_files_that_cannot_be_pruned(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unreadable, match="nothing was captured yet"):
        prune(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()
    rubbish = tmp_path / "rubbish.sqlite"
    rubbish.write_bytes(b"rubbish" * 2000)
    with pytest.raises(Unreadable, match="cannot be pruned"):
        prune(rubbish)
    monkeypatch.setattr(retention, "_BUSY_SECONDS", 0.05)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unreadable, match="locked by another program"):
            prune(path, older_than=0.0)
        other.execute("ROLLBACK")
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(Unreadable, match="version 99"):
        prune(path, older_than=0.0)
    assert count(path, "node") > 0


def test_one_run_at_a_time(path: Path) -> None:
    from dbproxy.store import files

    with files.opening(files.beside(path, ".prune"), 1.0), pytest.raises(Unreadable, match="being pruned already"):
        prune(path, older_than=0.0, stop=lambda: True)


def test_a_whole_capture_goes_and_comes_again(tmp_path: Path) -> None:
    made = captured.fill(tmp_path / "db.sqlite")
    prune(made.path, older_than=0.0, keep_facts=False)
    with Reader.open(made.path) as reader:
        assert reader.exchanges() == []
        assert reader.conversations() == []
        assert reader.search("zebras").hits == ()
        assert reader.limits() == []
    for table in ("point", "agent", "conversation", "found_in"):
        assert count(made.path, table) <= 2, table
    again = captured.fill(made.path)
    with Reader.open(made.path) as reader:
        for name, id in again.ids.items():
            assert reader.request_body(id) == again.bodies[name]
