"""Capture in trouble, and what it must not let out: secrets, stores that stall, raise or are full, bodies without end.

Whatever happens to the records, requests are answered as if there were none.
"""

from __future__ import annotations

import gzip
import json
import sqlite3
import threading
from contextlib import closing

import trio
from blackbox import read_response, request
from rig import read_answer

from dbproxy.api import ExchangeClosed, ExchangeOpened, RequestKind, hookimpl
from dbproxy.app import capture as capturing
from dbproxy.store.reader import Reader
from dbproxy.testing.origin import say

SESSION = "01234567-89ab-cdef-0123-456789abcdef"
SESSION_FIELD = f"x-claude-code-session-id: {SESSION}\r\n"
# In parts, so that searches for real keys find none here.
KEY = "-".join(["sk", "ant", "api03", "MARKkey0123456789abcdefghijklmn"])
GITHUB = "ghp_" + "MARKgithub0123456789abcdefghijklmnopq"


def body_of(text="hello", **more):
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": "claude-opus-5-5", "max_tokens": 9, "messages": messages, **more}).encode()


async def ask(r, body=None, *, extra=""):
    stream = await r.tls()
    await stream.send_all(request(body=body or body_of(stream=True), extra=SESSION_FIELD + extra))
    answered = await read_response(stream)
    assert answered.status == 200
    return answered


async def health(r):
    stream = await r.plain()
    await stream.send_all(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    return json.loads((await read_answer(stream))[1])


async def until(condition):
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.01)


class Keeper:
    """A plugin's store, in memory."""

    def __init__(self):
        self.records = []
        self.state = ""
        self.closed = 0

    @hookimpl
    def open_storage(self, app):
        return self

    def append(self, record, /):
        self.records.append(record)

    def counts(self):
        return {"records": len(self.records)}

    def flush(self, timeout, /):
        return True

    def close(self, timeout, /):
        self.closed += 1

    def of(self, kind):
        return [record for record in self.records if isinstance(record, kind)]


# ---- secrets


def everything(folder):
    """All rows of the database, blobs decompressed by the reader, and the raw files."""
    found = [path.read_bytes() for path in folder.glob("dbproxy.sqlite*")]
    with Reader.open(folder / "dbproxy.sqlite") as reader:
        for row in reader.exchanges():
            found += [reader.request_body(row.id) or b"", reader.response_message(row.id) or b""]
            found += [repr(reader.exchange(row.id)).encode(), *(piece.data for piece in reader.stream(row.id) or ())]
    with closing(sqlite3.connect(folder / "dbproxy.sqlite")) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                found.append(repr(row).encode())
    return b"\n".join(found)


async def test_redacted_messages_hold_no_secret_anywhere(rig):
    text = f"my key is {KEY}, push with {GITHUB}"
    answer = say(f"Use {KEY}", {"type": "tool_use", "id": "t", "name": "Bash", "input": {"command": f"echo {GITHUB}"}})
    async with rig(answer, redact_messages="true", capture_stream="true") as r:
        body = body_of(text, stream=True, system=f"token {KEY}")
        await ask(r, body, extra=f"authorization: Bearer {KEY}\r\nx-custom-auth: {GITHUB}\r\n")
        (received,) = r.origin.requests
        assert received.body == body  # only what is kept is changed
        assert await r.proxy.archive.flush(10)
        with Reader.open(r.data_dir / "dbproxy.sqlite") as reader:
            (row,) = reader.exchanges()
            kept = json.loads(reader.request_body(row.id))
            assert kept["messages"][0]["content"].startswith("my key is ")
            assert row.body_inexact
            assert reader.exchange(row.id).message_inexact
            assert [check.result for check in reader.verify()] == ["inexact"]
            assert row.conversation == SESSION  # linked by what was really sent
            assert reader.search("push").hits
    assert b"MARK" not in everything(r.data_dir)


async def test_without_that_bodies_are_exact_and_headers_and_index_are_clean(rig):
    async with rig(say("Hi."), capture_stream="true") as r:
        body = body_of(f"my key is {KEY} indeed", stream=True)
        await ask(r, body, extra=f"authorization: Bearer {KEY}\r\nCookie: a={GITHUB}\r\n")
        assert await r.proxy.archive.flush(10)
        with Reader.open(r.data_dir / "dbproxy.sqlite") as reader:
            (row,) = reader.exchanges()
            assert reader.request_body(row.id) == body
            detail = reader.exchange(row.id)
            headers = dict(detail.request_headers)
            assert headers["authorization"].startswith("hmac:")
            assert headers["x-api-key"].startswith("hmac:")
            assert "MARK" not in repr(detail)
            (hit,) = reader.search("indeed").hits
            assert "MARK" not in hit.snippet
            assert reader.search("MARKkey0123456789abcdefghijklmn").hits == ()


class Names:
    """A redactor of a plugin's."""

    def __init__(self, fails=False):
        self.fails = fails
        self.asked = set()

    @hookimpl
    def redactor(self, app):
        return self.without

    def without(self, where, text):
        self.asked.add(where)
        if self.fails:
            raise RuntimeError("not now")
        return text.replace("Rumpelstilzchen", "[name]")


async def test_a_plugin_takes_more_out(rig):
    names = Names()
    async with rig(say("Hi Rumpelstilzchen."), plugins=(("names", names),), redact_messages="true") as r:
        await ask(r, body_of("I am Rumpelstilzchen", stream=True))
        assert await r.proxy.archive.flush(10)
    assert names.asked == {"search", "message"}
    assert b"Rumpelstilzchen" not in everything(r.data_dir)


async def test_a_redactor_that_fails_loses_the_text_and_not_the_facts(rig):
    async with rig(say("Hi."), plugins=(("names", Names(fails=True)),), redact_messages="true") as r:
        await ask(r, body_of("I am Rumpelstilzchen", stream=True))
        assert await r.proxy.archive.flush(10)
        with Reader.open(r.data_dir / "dbproxy.sqlite") as reader:
            (row,) = reader.exchanges()
            assert (row.outcome, row.status) == ("ok", 200)
    assert b"Rumpelstilzchen" not in everything(r.data_dir)


async def test_a_body_that_cannot_be_read_is_not_kept_where_it_must_be_redacted(rig):
    async with rig(say("Hi."), redact_messages="true") as r:
        await ask(r, KEY.encode(), extra="content-encoding: gzip\r\n")
        assert await r.proxy.archive.flush(10)
        with Reader.open(r.data_dir / "dbproxy.sqlite") as reader:
            (row,) = reader.exchanges()
            assert row.body_kind == "none"
    assert b"MARK" not in everything(r.data_dir)


# ---- stores that do not work


async def test_records_go_to_a_plugins_store_in_order(rig):
    keeper = Keeper()
    async with rig(say("Hi."), plugins=(("keeper", keeper),)) as r:
        await ask(r)
        await ask(r)
        assert await r.proxy.archive.flush(10)
        assert [type(record) for record in keeper.records] == [ExchangeOpened, ExchangeClosed] * 2
        assert keeper.records[0].link.conversation == SESSION
        assert keeper.records[0].body.raw == body_of(stream=True)
        assert not (r.data_dir / "dbproxy.sqlite").exists()
    assert keeper.closed == 1


async def test_a_store_that_stands_still_delays_nobody(rig):
    """Half a minute of a stalled store is nothing that a client could notice: here it stalls until all are answered."""
    go_on = threading.Event()

    class Stalled(Keeper):
        def append(self, record, /):
            assert go_on.wait(60)
            super().append(record)

    keeper = Stalled()
    async with rig(say("Hi."), plugins=(("keeper", keeper),)) as r:
        try:
            with trio.fail_after(20):
                for _ in range(20):
                    await ask(r)
            assert len(r.origin.requests) == 20
            assert keeper.records == []
        finally:
            go_on.set()
        assert await r.proxy.archive.flush(10)
        assert len(keeper.of(ExchangeOpened)) == len(keeper.of(ExchangeClosed)) == 20
        assert r.proxy.archive.capture.held == 0


async def test_what_is_held_for_a_store_that_stands_still_is_bounded(rig, monkeypatch):
    monkeypatch.setattr(capturing, "HELD_LIMIT", 200_000)
    go_on = threading.Event()

    class Stalled(Keeper):
        def append(self, record, /):
            assert go_on.wait(60)
            super().append(record)

    keeper = Stalled()
    async with rig(say("Hi."), plugins=(("keeper", keeper),)) as r:
        try:
            for _ in range(6):
                await ask(r, body_of("x" * 60_000, stream=True))
            assert r.proxy.archive.capture.held <= 200_000
            assert r.proxy.archive.capture.shed == 3
        finally:
            go_on.set()
        assert await r.proxy.archive.flush(10)
        # Transcripts are lost, facts are not.
        assert [record.body is not None for record in keeper.of(ExchangeOpened)] == [True] * 3 + [False] * 3
        assert {record.outcome for record in keeper.of(ExchangeClosed)} == {"ok"}
        assert r.proxy.archive.capture.held == 0
        await ask(r, body_of("y" * 60_000, stream=True))
        assert await r.proxy.archive.flush(10)
        assert keeper.of(ExchangeOpened)[-1].body is not None


async def test_at_the_end_everything_is_written_first(rig):
    class Slow(Keeper):
        written = 0

        def append(self, record, /):
            threading.Event().wait(0.05)
            super().append(record)

        def close(self, timeout, /):
            self.written = len(self.records)

    keeper = Slow()
    async with rig(say("Hi."), plugins=(("keeper", keeper),)) as r:
        for _ in range(4):
            await ask(r)
    assert keeper.written == 8


async def test_at_the_end_the_file_is_whole(rig):
    async with rig(say("Hi.")) as r:
        await ask(r)
        assert await r.proxy.archive.flush(10)
        r.proxy.archive.forget(None)
        await ask(r)  # linked by what the file says, which is open for reading from now on
    assert sorted(path.name for path in r.data_dir.glob("dbproxy.sqlite*")) == ["dbproxy.sqlite", "dbproxy.sqlite.lock"]
    with Reader.open(r.data_dir / "dbproxy.sqlite") as reader:
        assert [check.result for check in reader.verify()] == ["exact", "exact"]
        assert [(row.state, row.edge) for row in reader.exchanges()] == [("closed", "retry"), ("closed", "root")]


async def test_a_store_that_raises_is_counted_and_nothing_else(rig):
    class Raising(Keeper):
        def append(self, record, /):
            super().append(record)
            raise OSError("no")

    keeper = Raising()
    async with rig(say("Hi."), plugins=(("keeper", keeper),)) as r:
        for _ in range(3):
            await ask(r)
        await until(lambda: len(keeper.records) == 6)
        assert await r.proxy.archive.flush(10)
        assert r.proxy.archive.analyst.errors == 6
        assert r.proxy.archive.capture.held == 0


async def test_what_is_wrong_with_a_store_is_said(rig):
    keeper = Keeper()
    async with rig(say("Hi."), plugins=(("keeper", keeper),)) as r:
        assert (await health(r))["status"] == "ok"
        keeper.state = "the tape is full"
        found = await health(r)
        assert (found["status"], found["problems"]) == ("degraded", {"capture": "the tape is full"})
        await ask(r)
        keeper.state = ""
        assert (await health(r))["status"] == "ok"


async def test_tools_that_cannot_be_had_are_said_and_cost_no_request(rig, monkeypatch):
    from dbproxy.app.archive import Archive

    def broken(self):
        raise ImportError("there is no sqlite here")

    monkeypatch.setattr(Archive, "_tools", broken)
    async with rig(say("Hi.")) as r:
        await ask(r)
        await until(lambda: r.proxy.archive.state)
        found = await health(r)
        assert found["status"] == "degraded"
        assert found["problems"]["capture"].startswith("capture could not start: ImportError")
        await ask(r)
        assert await r.proxy.archive.flush(10)
        assert r.proxy.archive.capture.held == 0


async def test_a_disk_that_is_full_degrades_and_heals(rig, monkeypatch):
    full = threading.Event()
    from dbproxy.store.database import Database

    write = Database.write

    def failing(self, batch):
        if full.is_set():
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return write(self, batch)

    monkeypatch.setattr(Database, "write", failing)
    async with rig(say("Hi.")) as r:
        await ask(r)
        assert await r.proxy.archive.flush(10)
        full.set()
        await ask(r)
        await until(lambda: r.proxy.archive.state)
        found = await health(r)
        assert found["status"] == "degraded"
        assert "the disk is full" in found["problems"]["capture"]
        full.clear()
        await until(lambda: not r.proxy.archive.state)
        assert (await health(r))["status"] == "ok"
        assert await r.proxy.archive.flush(10)
        with Reader.open(r.data_dir / "dbproxy.sqlite") as reader:
            assert [row.outcome for row in reader.exchanges()] == ["ok", "ok"]
            assert [check.result for check in reader.verify()] == ["exact", "exact"]


async def test_bodies_of_32_mb_are_kept(rig):
    text = "lorem ipsum dolor " * (32 * 1024 * 1024 // 18)
    async with rig(say("Hi.")) as r:
        body = body_of(text, stream=True)
        assert len(body) > 32_000_000
        await ask(r, body)
        assert await r.proxy.archive.flush(30)
        with Reader.open(r.data_dir / "dbproxy.sqlite") as reader:
            (row,) = reader.exchanges()
            assert reader.request_body(row.id) == body
            assert (row.bytes_up, row.outcome) == (len(body), "ok")
        assert r.proxy.archive.capture.held == 0


async def test_of_an_answer_without_end_only_the_facts_are_kept(rig, monkeypatch):
    monkeypatch.setattr(capturing, "ANSWER_LIMIT", 50_000)
    async with rig(say("word " * 20_000)) as r:
        await ask(r)
        assert await r.proxy.archive.flush(10)
        assert r.proxy.archive.capture.shed == 1
        with Reader.open(r.data_dir / "dbproxy.sqlite") as reader:
            (row,) = reader.exchanges()
            assert reader.response_message(row.id) is None
            assert row.bytes_down > 100_000
            assert row.outcome == "ok"


async def test_a_bomb_is_no_body(rig, monkeypatch):
    from dbproxy.app import analyst

    monkeypatch.setattr(analyst, "DECODED_LIMIT", 1_000_000)
    bomb = gzip.compress(b" " * 5_000_000)
    async with rig(say("Hi.")) as r:
        await ask(r, bomb, extra="content-encoding: gzip\r\n")
        assert await r.proxy.archive.flush(10)
        with Reader.open(r.data_dir / "dbproxy.sqlite") as reader:
            (row,) = reader.exchanges()
            assert reader.request_body(row.id) == bomb
            assert reader.exchange(row.id).body_coding == "gzip"
        assert r.proxy.archive.analyst.errors == 0


# ---- calls of our own


class Caller:
    """Asks something of its own for the sake of every request that it sees."""

    def __init__(self):
        self.answers = []
        self.links = []

    @hookimpl
    async def startup(self, app):
        self.services = app.services

    @hookimpl
    async def intercept_request(self, exchange):
        self.links.append(await self.services.link(exchange, 5.0))
        body = body_of("sum it up", stream=True)
        head = exchange.request
        async with self.services.send(exchange, head, body, purpose="checkpoint", deadline=10.0) as answer:
            self.answers.append((answer.head.status, await answer.body()))


async def test_a_call_of_our_own_is_captured_and_is_no_turn(rig):
    caller = Caller()
    async with rig(say("Hi."), plugins=(("caller", caller),)) as r:
        await ask(r)
        await ask(r)
        assert [status for status, _ in caller.answers] == [200, 200]
        assert all(b"message_stop" in body for _, body in caller.answers)
        assert [link.conversation for link in caller.links] == [SESSION, SESSION]
        assert await r.proxy.archive.flush(10)
        assert [json.loads(received.body)["messages"][0]["content"] for received in r.origin.requests] == [
            "sum it up",
            "hello",
        ] * 2
        with Reader.open(r.data_dir / "dbproxy.sqlite") as reader:
            tree = reader.conversation(SESSION)
            mains = [row for branch in tree.main.branches for row in branch.exchanges]
            assert [(row.kind, row.edge) for row in mains] == [("main", "root"), ("main", "retry")]
            assert [(row.kind, row.branch) for row in tree.asides] == [(RequestKind.OWN, 0)] * 2
            assert [row.parent for row in tree.asides] == [row.id for row in mains]
            own = tree.asides[0]
            assert reader.request_body(own.id) == body_of("sum it up", stream=True)
            assert json.loads(reader.response_message(own.id))["content"] == [{"type": "text", "text": "Hi."}]
            assert own.output_tokens > 0
            assert [one.detail for one in reader.evidence(own.id)] == ["checkpoint"]
            assert tree.conversation.turns == 2
