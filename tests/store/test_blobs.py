"""Content is kept once and comes back byte for byte, whatever was swept, trained or written by others meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time

import longtalk
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from dbproxy.model.parts import Piece, put_together, take_apart
from dbproxy.store import blobs, schema
from dbproxy.store.blobs import BlobReader, BlobWriter, Codec, pack_stream, train, unpack_stream
from dbproxy.store.migrations import migrate, tune


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dbproxy.sqlite"


@contextlib.contextmanager
def writer_at(path):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        tune(connection, 5.0)
        migrate(connection, path)
        codec = Codec(connection)
        codec.use_newest()
        yield connection, codec, BlobWriter(connection, codec)


def message(text, role="user", patch=None):
    canonical = longtalk.compact({"role": role, "content": text})
    return Piece(canonical, hashlib.sha256(canonical).digest()[:16], patch)


def read(connection, tip):
    return [(m.canonical, m.patch) for m in BlobReader(connection).history(tip)]


def expected(pieces):
    return [(p.canonical, p.patch) for p in pieces]


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=4000), base=st.binary(min_size=1, max_size=4000), value=st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
))  # fmt: skip
def test_codec_restores(data, base, value):
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for _ in range(2):
            connection.execute("CREATE TABLE IF NOT EXISTS dictionary(id INTEGER PRIMARY KEY, made, data)")
            codec = Codec(connection)
            codec.use_newest()
            frame = codec.compress(data)
            assert codec.restore(frame, codec.current) == data
            assert codec.restore(codec.compress_with(data, base), None, base) == data
            packed = codec.pack(value)
            assert Codec(connection).unpack(packed) == value
            raw = zstandard.ZstdCompressor().compress(base * 20)
            connection.execute("INSERT OR REPLACE INTO dictionary(id, made, data) VALUES (300, 0, ?)", (raw,))


@given(pieces=st.lists(st.tuples(st.integers(0, 10**7).map(lambda n: n / 100), st.binary(max_size=50))))
def test_streams_restore(pieces):
    assert unpack_stream(pack_stream(pieces)) == pieces


def test_a_blob_is_kept_once_and_bases_do_not_chain(path):
    with writer_at(path) as (connection, _, writer):
        texts = [longtalk.Words(n).prose(3000).encode() for n in (1, 1, 2)]
        first, again, _other = (writer.put(text) for text in texts)
        assert (first.fresh, again.fresh, first.id) == (True, False, again.id)
        near = writer.put(texts[0] + b" and more", base=first.id)
        nearer = writer.put(texts[0] + b" and much more", base=near.id)
        assert near.delta
        assert nearer.delta
        assert connection.execute("SELECT DISTINCT base FROM blob WHERE base NOT NULL").fetchall() == [(first.id,)]
        unlike = writer.put(longtalk.Words(9).code(3000).encode(), base=first.id)
        gone = writer.put(b"its base was swept", base=99_999)
        reader = BlobReader(connection)
        assert reader.blob(near.id) == texts[0] + b" and more"
        assert reader.blob(nearer.id) == texts[0] + b" and much more"
        assert reader.blob(unlike.id) == longtalk.Words(9).code(3000).encode()
        assert reader.blob(gone.id) == b"its base was swept"
        with pytest.raises(KeyError):
            reader.blob(99_999)


def test_histories_share_what_they_share(path):
    words = longtalk.Words(1)
    with writer_at(path) as (connection, _, writer):
        pieces = [message(words.prose(200)) for _ in range(20)]
        tip = writer.put_history(pieces)
        assert writer.put_history(pieces) == tip
        longer = [*pieces[:-1], message("last", patch=b"\1\2"), message("more")]
        other = writer.put_history(longer)
        assert read(connection, tip) == expected(pieces)
        assert read(connection, other) == expected(longer)
        assert connection.execute("SELECT count(*) FROM node").fetchone() == (22,)
        assert writer.put_history([]) is None
    with writer_at(path) as (connection, _, writer):  # one that remembers nothing
        assert writer.put_history(pieces) == tip
        assert writer.put_history(longer[:5]) is not None
        assert connection.execute("SELECT count(*) FROM node").fetchone() == (22,)


def test_a_patch_tells_nodes_apart(path):
    with writer_at(path) as (connection, _, writer):
        ways = [[message("x")], [message("x", patch=b"")], [message("x", patch=b"\0")]]
        tips = [writer.put_history(way) for way in ways]
        assert len(set(tips)) == 3
        assert [read(connection, tip) for tip in tips] == [expected(way) for way in ways]
        assert connection.execute("SELECT count(*) FROM blob").fetchone() == (1,)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_turns_and_any_sweeping_between_them(data, tmp_path_factory):
    """Another process may take away whatever nothing refers to; what is written afterwards is whole again."""
    path = tmp_path_factory.mktemp("any") / "x.sqlite"
    with writer_at(path) as (connection, _, writer):
        histories: list[list[Piece]] = [[]]
        for step in range(data.draw(st.integers(1, 12))):
            base = data.draw(st.sampled_from(histories))
            kept = base[: data.draw(st.integers(0, len(base)))]
            more = [message(f"{step} {n}", patch=data.draw(st.sampled_from([None, b"\1"]))) for n in range(3)]
            pieces = kept + more
            histories.append(pieces)
            tip = writer.put_history(pieces)
            assert read(connection, tip) == expected(pieces)
            if data.draw(st.booleans()):
                depth = data.draw(st.integers(0, 6))
                connection.execute("DELETE FROM node WHERE depth > ?", (depth,))
                connection.execute("DELETE FROM blob WHERE id NOT IN (SELECT blob FROM node)")


def test_a_long_history_lets_others_in(path):
    breaths = []
    with writer_at(path) as (connection, _, writer):
        pieces = [message(f"m {n}") for n in range(2000)]

        def breathe():
            breaths.append(1)
            if len(breaths) == 3:  # and somebody sweeps what is half made
                connection.execute("DELETE FROM node")
                connection.execute("DELETE FROM blob")
            return True

        tip = writer.put_history(pieces, breathe=breathe)
        assert len(breaths) == 3
        assert read(connection, tip) == expected(pieces)


def test_lists_keep_their_order_and_marks(path):
    with writer_at(path) as (connection, _, writer):
        pieces = [message("b"), message("a", patch=b"\0\xff"), message("b")]
        number = writer.put_list(pieces)
        assert writer.put_list(pieces) == number
        assert writer.put_list(pieces[::-1]) == number  # the middle one stays in the middle
        assert writer.put_list(pieces[:2]) != number
        assert writer.put_list([]) is None
        found = BlobReader(connection).pieces(number)
        assert expected(found) == expected(pieces)


def test_dictionaries_are_trained_and_old_content_stays_readable(path):
    words = longtalk.Words(5)
    with writer_at(path) as (connection, codec, writer):
        kept = {}
        sizes = []
        for n in range(300):
            text = longtalk.compact({"role": "user", "content": words.code(1500)})
            kept[writer.put(text).id] = text
            if writer.wants_training():
                data = train(writer.samples())
                assert data is not None
                writer.add_dictionary(data, 1.0)
                codec.use_newest()
                sizes.append(n)
        assert len(sizes) == 1
        assert codec.current == 2
        before, after = connection.execute(
            "SELECT avg(length(data)) FILTER (WHERE dictionary = 1), avg(length(data)) FILTER (WHERE dictionary = 2)"
            " FROM blob"
        ).fetchone()
        assert after < before * 0.95
    with contextlib.closing(sqlite3.connect(path)) as connection:
        reader = BlobReader(connection)
        assert {number: reader.blob(number) for number in kept} == kept
        connection.execute("DELETE FROM dictionary WHERE id = 2")
        with pytest.raises(KeyError, match="dictionary 2"):
            BlobReader(connection).blob(max(kept))
    assert train([b"too", b"little"]) is None


def test_damage_is_told(path):
    with writer_at(path) as (connection, _, writer):
        tip = writer.put_history([message("a" * 100), message("b" * 100)])
        connection.execute("UPDATE blob SET data = substr(data, 1, 8)")
        with pytest.raises(zstandard.ZstdError):
            read(connection, tip)
        connection.execute("DELETE FROM node WHERE depth = 1")
        with pytest.raises(KeyError):
            read(connection, tip)


def test_bodies_of_all_kinds(path):
    turn = list(longtalk.Talk().take(3))[-1]
    parts = take_apart(turn.body)
    assert parts is not None
    assert put_together(parts) == turn.body
    with writer_at(path) as (connection, _, writer):
        where = (
            writer.put(parts.template).id,
            writer.put_list(parts.system),
            writer.put_list(parts.tools),
            writer.put_history(parts.messages),
        )
        reader = BlobReader(connection)
        assert reader.body("parts", *where) == turn.body
        assert reader.body("raw", where[0], None, None, None) == parts.template
        assert reader.body("shed", *where) is None
        assert reader.body("none", None, None, None, None) is None


def test_a_history_of_100_000_messages(path):
    """Once slow, then as quick as its new messages; the one after a restart reads, and writes nothing."""
    pieces = [message(f"message {n}", "assistant" if n % 2 else "user") for n in range(100_000)]
    with writer_at(path) as (connection, _, writer):
        connection.execute("BEGIN")
        writer.put_history(pieces)
        connection.execute("COMMIT")
        more = [*pieces, message("one more")]
        began = time.thread_time()
        tip = writer.put_history(more)
        assert time.thread_time() - began < 0.5
        assert connection.execute("SELECT count(*), max(depth) FROM node").fetchone() == (100_001, 100_001)
        assert read(connection, tip) == expected(more)
        assert writer._remembered <= blobs.REMEMBERED or len(writer._histories) == 1


def test_every_column_that_packs_is_named_in_the_schema():
    """Whoever sweeps dictionaries looks for the word."""
    packed = [line.split()[0] for line in schema.TABLES.splitlines() if "-- packed" in line]
    assert packed == ["evidence", "request_headers", "response_headers", "route"]
    assert json.loads(blobs.to_json("\ud800")) == "\ud800"
