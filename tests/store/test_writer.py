"""The store keeps what it is given, whatever the order, and never makes its caller wait or fail."""

from __future__ import annotations

import dataclasses
import hashlib
import stat
import threading
import time

import longtalk
import pytest
from storekit import (
    START,
    States,
    answer,
    assert_sound,
    body_of,
    closed,
    link,
    look,
    make_id,
    opened,
    row,
    rows,
    store_at,
    talk,
)

from dbproxy.model.link import Agent, Edge, Evidence, Point, RequestKind
from dbproxy.model.record import ExchangeLinked, ExchangeOpened, RateLimit, RequestBody, StreamPiece
from dbproxy.model.usage import Usage
from dbproxy.store import Store
from dbproxy.store.blobs import BlobReader


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dbproxy.sqlite"


def test_an_exchange_is_kept_whole(path):
    body = talk("how are you", system="be kind", metadata={"user_id": "u"})
    usage = Usage.of(
        {
            "input_tokens": 3,
            "output_tokens": 5,
            "cache_read_input_tokens": 7,
            "cache_creation_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
            "iterations": [{"type": "message", "input_tokens": 1, "output_tokens": 2}],
        }
    )
    pieces = (StreamPiece(0.5, b"event: a\n\n"), StreamPiece(12.25, b""), StreamPiece(90.0, b"event: b\n\n"))
    with store_at(path) as store:
        store.append(
            opened(
                1,
                body,
                scope="s",
                project="/p",
                labels=(("team", "a"),),
                client="agent/1",
                account="hmac:1",
                model="m",
                streamed=True,
                message_count=1,
                headers=(("X-One", "1"), ("x-one", "2")),
                link=link(1, evidence=(Evidence("kind", "main", "header", "h"),)),
            )
        )
        store.append(
            closed(
                1,
                "fine",
                error="",
                first_byte_ms=100.0,
                bytes_up=10,
                bytes_down=20,
                headers=(("Date", "now"),),
                model="m-1",
                message_id="msg_1",
                request_id="req_1",
                stop_reason="end_turn",
                usage=usage,
                cost_usd=0.5,
                priced_by="m",
                stream=pieces,
            )
        )
        assert store.flush(10)
        assert store.counts.written == 2
        assert store.counts.queued == 0
    found = row(path, 1)
    expected = {
        "state": "closed",
        "started": START + 1,
        "finished": START + 3,
        "labels": '{"team":"a"}',
        "client": "agent/1",
        "account": "hmac:1",
        "conversation": "c-1",
        "thread": "main",
        "kind": "main",
        "edge": "root",
        "model_asked": "m",
        "streamed": 1,
        "body_kind": "parts",
        "body_sha256": hashlib.sha256(body).digest(),
        "status": 200,
        "outcome": "ok",
        "first_byte_ms": 100.0,
        "duration_ms": 2000.0,
        "bytes_up": 10,
        "bytes_down": 20,
        "model": "m-1",
        "message_id": "msg_1",
        "request_id": "req_1",
        "stop_reason": "end_turn",
        "input_tokens": 3,
        "output_tokens": 5,
        "cache_read": 7,
        "cache_write_5m": 10,
        "cache_write_1h": 20,
        "cost_usd": 0.5,
        "iterations": '[{"kind":"message","input_tokens":1,"output_tokens":2}]',
    }
    assert {name: found[name] for name in expected} == expected
    assert body_of(path, 1) == body
    with look(path) as connection:
        reader = BlobReader(connection)
        assert reader.codec.unpack(found["request_headers"]) == [["X-One", "1"], ["x-one", "2"]]
        assert reader.codec.unpack(found["response_headers"]) == [["Date", "now"]]
        assert reader.codec.unpack(found["evidence"]) == [["kind", "main", "header", "h"]]
        assert reader.blob(found["message"]) == answer("fine")
        assert reader.stream(found["stream"]) == [(p.at_ms, p.data) for p in pieces]
    assert rows(path, "SELECT id, project, client, started, last FROM conversation") == [
        ("c-1", "/p", "agent/1", START + 1, START + 3)
    ]


def test_a_body_that_is_no_messages_request_is_kept_as_it_is(path):
    for number, body in enumerate((b"", b"\xff\x00 no json", b"[1,2]", b'{"messages":[', b"null")):
        with store_at(path) as store:
            store.append(opened(number, body))
        assert row(path, number)["body_kind"] == "raw"
        assert body_of(path, number) == body


def test_records_in_any_order_and_twice_give_the_same_row(path, tmp_path):
    place = link(1, points=(Point(1, b"a" * 16),))
    records = (opened(1, talk("hello"), client="x", link=None), ExchangeLinked(place), closed(1, "hi"))
    orders = ((0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 0, 1, 1, 2, 2), (0, 1, 2, 0, 1, 2), (2, 0, 1, 2), (1, 2, 0))
    seen = []
    for order in orders:
        file = tmp_path / f"{'-'.join(map(str, order))}.sqlite"
        with store_at(file) as store:
            for n in order:
                store.append(records[n])
                assert store.flush(10)
            assert store.counts.errors == 0
        found = row(file, 1)
        for column in ("template", "system_list", "tool_list", "tip", "message"):
            found.pop(column)  # row ids depend on the order
        seen.append(
            (found, body_of(file, 1), rows(file, "SELECT * FROM conversation"), rows(file, "SELECT * FROM point"))
        )
        assert rows(file, "SELECT count(*) FROM blob") == [(3,)]
    assert all(entry == seen[0] for entry in seen)


def test_a_later_link_replaces_the_earlier_one(path):
    agent = Agent("a1", type="general", parent_thread="main")
    with store_at(path) as store:
        store.append(opened(1, talk("x"), link=link(1, "wrong", points=(Point(1, b"p" * 16),))))
        store.append(opened(2, talk("y"), link=link(2, "right")))
        better = link(
            1,
            "right",
            thread="a1",
            kind=RequestKind.SUBAGENT,
            edge=Edge.SPAWN,
            parent=make_id(2),
            agent=agent,
            points=(Point(1, b"q" * 16),),
        )
        store.append(ExchangeLinked(better))
        named = dataclasses.replace(better, agent=Agent("a1", name="reviewer", number=1, tool_use_id="t"))
        store.append(ExchangeLinked(named))
        store.append(ExchangeLinked(dataclasses.replace(better, agent=Agent("a1"))))
    assert rows(path, "SELECT id FROM conversation") == [("right",)]
    assert rows(path, "SELECT conversation, thread, chain FROM point") == [("right", "a1", b"q" * 16)]
    # What was known of an agent is not lost to a link that knows less.
    assert rows(path, "SELECT type, name, number, tool_use_id FROM agent") == [("general", "reviewer", 1, "t")]
    found = row(path, 1)
    assert (found["thread"], found["kind"], found["edge"], found["parent"]) == ("a1", "subagent", "spawn", make_id(2))


def test_a_fork_names_where_it_comes_from_and_a_title_is_kept(path):
    with store_at(path) as store:
        store.append(opened(1, link=link(1, "one")))
        store.append(opened(2, link=link(2, "two", parent=make_id(1), edge=Edge.FORK)))
        store.append(opened(3, link=link(3, "one", thread="", branch=0, kind=RequestKind.TITLE, edge=Edge.ASIDE)))
        store.append(closed(3, '{"title": "Mend  the\\n roof"}'))
        store.append(opened(4, link=link(4, "two", thread="", branch=0, kind=RequestKind.TITLE, edge=Edge.ASIDE)))
        store.append(closed(4, "Plain words"))
    assert rows(path, "SELECT id, forked_from, title FROM conversation ORDER BY id") == [
        ("one", "", "Mend the roof"),
        ("two", "one", "Plain words"),
    ]


def test_limits_are_written_when_they_change_or_after_a_while(path):
    five, week = RateLimit("5h", "allowed", 0.25, 100.0), RateLimit("7d", "allowed", -1.0)
    with store_at(path) as store:
        for number in range(5):
            store.append(opened(number, account="acc"))
            store.append(closed(number, limits=(five, week)))
        store.append(closed(5, finished=START + 60, limits=(dataclasses.replace(five, utilization=0.26),)))
        store.append(closed(6, finished=START + 500, limits=(dataclasses.replace(five, utilization=0.26),)))
    found = rows(path, "SELECT window, account, utilization, resets, quota FROM rate_limit ORDER BY at, window")
    assert found == [
        ("5h", "acc", 0.25, 100.0, None),
        ("7d", "acc", None, None, None),
        ("5h", "", 0.26, 100.0, None),
        ("5h", "", 0.26, 100.0, None),
    ]


def test_clocks_that_jump_lose_nothing(path):
    with store_at(path) as store:
        store.append(opened(100, started=START + 100))
        store.append(opened(2, started=START - 1e6))
        store.append(closed(2, finished=START - 2e6, duration_ms=-1.0))
        store.append(opened(4, started=4e10))
        store.append(opened(5, started=float("nan"), link=None))
        store.append(opened(6, started=float("inf")))
        assert store.flush(10)
        assert store.counts.errors == 0
    assert rows(path, "SELECT count(*) FROM exchange") == [(5,)]
    assert rows(path, "SELECT started, last FROM conversation") == [(START - 1e6, float("inf"))]
    assert_sound(path)


def test_values_that_sqlite_cannot_hold_are_mended(path):
    with store_at(path) as store:
        store.append(opened(1, project="/home/\udcff", headers=(("x", "\ud800"),), labels=(("a", "\udfff"),)))
        store.append(closed(1, error="\ud83d", bytes_up=2**80, usage=Usage(input_tokens=2**70), cost_usd=float("nan")))
        store.append(opened(2, talk("surrogate \ud83d alone")))
        raw = b'{"model":"m","messages":[{"role":"user","content":"\\ud83d and \\udc00"}]}'
        store.append(opened(3, raw))
        assert store.flush(10)
        assert store.counts.errors == 0
    found = row(path, 1)
    assert found["project"] == "/home/\\udcff"
    assert found["input_tokens"] == found["bytes_up"] == 2**63 - 1
    with look(path) as connection:
        assert BlobReader(connection).codec.unpack(found["request_headers"]) == [["x", "\ud800"]]
    assert body_of(path, 3) == raw


def test_a_record_that_cannot_be_written_takes_no_other_with_it(path):
    bad = opened(2, client=object())
    with store_at(path, batch_seconds=0.2) as store:
        for record in (opened(1, talk("a")), bad, object(), opened(3, talk("b"))):
            store.append(record)  # type: ignore[arg-type]
        assert store.flush(10)
        counts = store.counts
        assert (counts.written, counts.errors, counts.queued, counts.queued_bytes) == (2, 2, 0, 0)
        assert store.state == ""
    assert rows(path, "SELECT count(*) FROM exchange") == [(2,)]


def test_words_are_found_and_redacted_before_they_reach_the_disk(path):
    def redact(text):
        return text.replace("hunter2", "***")

    with store_at(path, redact=redact) as store:
        store.append(opened(1, talk("the password is hunter2, dear walrus")))
        store.append(closed(1, "a penguin answers"))
        store.append(opened(2, talk("the password is hunter2, dear walrus", "a penguin answers", "next")))
    with look(path) as connection:

        def hits(word):
            sql = "SELECT f.exchange, f.role FROM search JOIN found_in f ON f.blob = search.rowid WHERE search MATCH ?"
            return connection.execute(sql, (word,)).fetchall()

        assert hits("walrus") == [(make_id(1), "user")]
        assert hits("penguin")[0] == (make_id(1), "assistant")
        assert hits("hunter2") == []


def test_a_redaction_that_fails_costs_only_the_index(path):
    def redact(text):
        raise RuntimeError("plugin")

    with store_at(path, redact=redact) as store:
        store.append(opened(1, talk("text")))
        assert store.flush(10)
        assert store.counts.errors == 0
    assert body_of(path, 1) == talk("text")
    assert rows(path, "SELECT count(*) FROM found_in") == [(0,)]


def test_an_answer_that_returns_as_a_message_is_neither_kept_nor_indexed_twice(path):
    text = longtalk.Words(3).prose(6000)
    with store_at(path) as store:
        store.append(opened(1, talk("begin")))
        store.append(closed(1, text))
        blocks = [{"type": "text", "text": text}, {"type": "tool_use", "id": "t", "name": "Bash", "input": {}}]
        messages = [{"role": "user", "content": "begin"}, {"role": "assistant", "content": blocks}]
        body = longtalk.compact({"model": "m", "messages": messages})
        store.append(opened(2, body, link=link(2, parent=make_id(1), edge=Edge.NEXT)))
    assert body_of(path, 2) == body
    ((size,),) = rows(path, "SELECT length(data) FROM blob WHERE base IS NOT NULL AND size > 5000")
    assert size < 200
    assert rows(path, "SELECT count(*) FROM found_in") == [(2,)]


def test_the_file_and_its_companions_are_private(path):
    with store_at(path) as store:
        store.append(opened(1))
        assert store.flush(10)
        for name in path.parent.iterdir():
            assert stat.S_IMODE(name.stat().st_mode) == 0o600, name
    path.chmod(0o644)
    with store_at(path) as store:
        store.append(opened(2))
        assert store.flush(10)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_open_exchanges_of_a_dead_process_are_lost_and_may_still_end(path):
    now = [START]
    with store_at(path, clock=lambda: now[0]) as store:
        store.append(opened(1))
        assert store.flush(10)
    now[0] += 60
    with store_at(path, clock=lambda: now[0]) as store:
        store.append(opened(2))
        assert store.flush(10)
    assert [row(path, n)["state"] for n in (1, 2)] == ["open", "open"]
    now[0] += 150
    with store_at(path, clock=lambda: now[0]) as store:
        assert store.flush(10)
        store.append(opened(3))
        assert store.flush(10)
        assert [row(path, n)["state"] for n in (1, 2, 3)] == ["lost", "open", "open"]
        store.append(closed(1))
    assert row(path, 1)["state"] == "closed"


def test_a_full_queue_sheds_transcripts_before_facts(path):
    """Held up by another process, a store keeps what it can: facts last."""
    big = "x" * 40_000
    with store_at(path, queue_bytes=200_000, busy_seconds=0.05) as store:
        store.append(opened(0))
        assert store.flush(10)
        with look(path) as other:
            other.execute("BEGIN IMMEDIATE")
            for number in range(1, 11):
                store.append(opened(number, talk(big)))
            for number in range(1, 61):
                store.append(closed(number, "short"))
            counts = store.counts
            assert counts.queued_bytes <= 200_000
            assert counts.shed_transcripts >= 6
            assert counts.shed_facts == 0
            for number in range(100, 300):
                store.append(opened(number))
            counts = store.counts
            assert counts.queued_bytes <= 200_000
            assert counts.shed_facts > 0
            other.execute("ROLLBACK")
        assert store.flush(20)
        after = store.counts
        assert after.queued == after.queued_bytes == after.errors == 0
    kinds = [row(path, number)["body_kind"] for number in range(1, 11)]
    assert "shed" in kinds
    assert after.written + after.shed_facts == 1 + 10 + 60 + 200
    assert sum(bytes_ for (bytes_,) in rows(path, "SELECT bytes FROM shed")) >= 40_000 * kinds.count("shed")
    assert_sound(path)


def test_what_waits_longer_keeps_its_transcript(path):
    with store_at(path, queue_bytes=200_000, busy_seconds=0.05) as store:
        store.append(opened(0))
        assert store.flush(10)
        with look(path) as other:
            other.execute("BEGIN IMMEDIATE")
            for number in range(1, 11):
                store.append(opened(number, talk("x" * 40_000)))
            assert store.counts.shed_transcripts == 6
            other.execute("ROLLBACK")
        assert store.flush(20)
    assert [row(path, number)["body_kind"] for number in range(1, 11)] == ["parts"] * 4 + ["shed"] * 6


def test_an_exchange_opens_and_closes_once(path):
    with store_at(path) as store:
        store.append(opened(1, talk("first")))
        store.append(opened(1, talk("second"), method="PUT"))
        store.append(closed(1, "first"))
        store.append(closed(1, "second", outcome="error", limits=(RateLimit("5h"),)))
    found = row(path, 1)
    assert (found["method"], found["outcome"]) == ("POST", "ok")
    assert body_of(path, 1) == talk("first")
    assert rows(path, "SELECT count(*) FROM rate_limit") == [(0,)]


def test_append_never_waits_for_the_file(path):
    with store_at(path, busy_seconds=5.0) as store:
        assert store.flush(10)
        with look(path) as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.perf_counter()
            for number in range(1000):
                store.append(opened(number))
            assert time.perf_counter() - began < 1.0
            assert not store.flush(0.05)
            other.execute("ROLLBACK")
        assert store.flush(20)
        assert store.counts.written == 1000


def test_many_threads_append_at_once(path):
    with store_at(path) as store:

        def work(first):
            for number in range(first, first + 100):
                store.append(opened(number, talk("same", "words", str(number % 7))))
                store.append(closed(number, "end"))

        threads = [threading.Thread(target=work, args=(n * 1000,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.flush(20)
        assert store.counts.written == 1200
    assert assert_sound(path) == 600


def test_two_stores_on_one_file_share_what_they_keep(path):
    turns = list(longtalk.Talk(growth=1500, setup=4000).take(30))
    with store_at(path) as one, store_at(path) as two:
        for turn in turns:
            for record in longtalk.records(turn):
                (one if turn.number % 2 else two).append(record)
            if turn.number % 5 == 0:
                assert one.flush(20)
                assert two.flush(20)
        assert one.flush(20)
        assert two.flush(20)
        assert one.counts.errors == two.counts.errors == one.counts.failures == 0
    assert assert_sound(path) == 30
    # Each turn adds its user message and its answer once, and the marked form of one message.
    assert rows(path, "SELECT count(*) FROM node") == [(30 * 2 - 1 + 29,)]


def test_after_closing_nothing_is_taken_but_counted(path):
    store = Store.open(path, redact=str)
    store.append(opened(1))
    assert store.close(10)
    store.append(opened(2))
    assert store.counts.shed_facts == 1
    assert rows(path, "SELECT count(*) FROM exchange") == [(1,)]
    assert store.flush(0.1)


def test_a_body_of_32_mb_and_its_answer(path):
    text = longtalk.Words(1).prose(100_000)
    body = longtalk.compact(
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": text * 330}]}]}
    )
    with store_at(path) as store:
        store.append(opened(1, body))
        store.append(ExchangeOpened(**{**_fields(opened(2)), "body": RequestBody(body, hashlib.sha256(body).digest())}))
        assert store.flush(30)
        assert store.counts.errors == 0
    assert body_of(path, 1) == body
    assert row(path, 2)["body_kind"] == "raw"
    assert body_of(path, 2) == body


def test_states_are_told_once(path):
    states = States()
    with store_at(path, on_state=states) as store:
        for number in range(5):
            store.append(opened(number))
            assert store.flush(10)
    assert states.said == []


def _fields(record):
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
