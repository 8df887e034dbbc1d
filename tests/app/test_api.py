"""What was captured, over HTTP: lists page by page, exact bodies, trees, search, sums; who may ask; bad questions."""

from __future__ import annotations

import hashlib
import json
import threading

import captured
import pytest
import trio
from captured import CONVERSATION, OTHER
from rig import HOST, read_all, read_exactly, read_head

from dbproxy.paths import make_private


async def ask(r, path, *fields, method="GET", token=True):
    """(status, headers, body) of one request on a connection of its own."""
    stream = await r.plain()
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{r.running.port}", *fields, "Connection: close"]
    if token:
        lines.append(f"Authorization: Bearer {r.proxy.token}")
    await stream.send_all("\r\n".join([*lines, "", ""]).encode("latin-1"))
    head, _, body = (await read_all(stream)).partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    return int(first.split(" ")[1]), {k.lower(): v for k, _, v in (line.partition(": ") for line in rest)}, body


async def get(r, path):
    status, headers, body = await ask(r, path)
    assert status == 200, body
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    return json.loads(body)


async def refused(r, path, status):
    got, headers, body = await ask(r, path)
    assert got == status, body
    assert headers["x-dbproxy-error"] == "1"
    message = json.loads(body)["error"]["message"]
    assert message.startswith("dbproxy: ")
    return message


@pytest.fixture
def made(tmp_path):
    return captured.fill(make_private(tmp_path / "data") / "dbproxy.sqlite")


# -- exchanges --------------------------------------------------------------------------------------------------------


async def test_the_newest_exchanges_page_by_page(rig, made):
    async with rig() as r:
        everything = (await get(r, "/api/exchanges"))["exchanges"]
        assert [row["id"] for row in everything] == sorted(made.ids.values(), reverse=True)
        assert everything[-1]["input_tokens"] == 100
        seen, cursor = [], ""
        while cursor is not None:
            page = await get(r, f"/api/exchanges?limit=5{cursor and f'&before={cursor}'}")
            assert len(page["exchanges"]) <= 5
            seen += page["exchanges"]
            cursor = page["next"]
        assert seen == everything
        newer = await get(r, f"/api/exchanges?after={made['after']}")
        assert [row["id"] for row in newer["exchanges"]] == [made["rewind"], made["other"]]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("kind=title", ["title"]),
        ("kind=title,compaction", ["compaction", "title"]),
        ("outcome=error", ["failed"]),
        ("model=unknown", ["compaction"]),
        (f"conversation={OTHER}", ["other"]),
        ("conversation=0f3b", ["other"]),
        ("conversation=last", ["other"]),
        ("project=/home/user/farm", ["other"]),
        ("thread=a33", ["nested"]),
        ("since=1760000011", ["other", "rewind"]),
        ("since=2025-10-09T08:53:31%2B00:00&kind=main", ["other", "rewind"]),
        ("until=1760000002", ["first"]),
        ("since=30m", []),
        ("account=nobody", []),
    ],
)
async def test_filters(rig, made, query, names):
    async with rig() as r:
        found = await get(r, f"/api/exchanges?{query}")
        assert [row["id"] for row in found["exchanges"]] == [made[name] for name in names]


async def test_one_exchange(rig, made):
    async with rig() as r:
        detail = await get(r, f"/api/exchanges/{made['scout']}")
        assert detail["exchange"]["id"] == made["scout"]
        assert detail["agent"]["name"] == "zebra-scout"
        assert detail["labels"] == {"team": "blue"}
        assert dict(detail["request_headers"])["authorization"].startswith("hmac:")
        assert [item["question"] for item in detail["evidence"]] == ["session", "kind"]
        assert (await get(r, f"/api/exchanges/{made['scout'][:17]}"))["exchange"]["id"] == made["scout"]
        assert (await get(r, "/api/exchanges/last"))["exchange"]["id"] == made["other"]
        assert (await get(r, f"/api/exchanges/req_{4}"))["exchange"]["id"] == made["scout"]


async def test_bodies_come_back_byte_for_byte(rig, made):
    async with rig() as r:
        for name, raw in made.bodies.items():
            status, headers, body = await ask(r, f"/api/exchanges/{made[name]}/request")
            assert (status, body) == (200, raw)
            assert headers["x-dbproxy-sha256"] == hashlib.sha256(raw).hexdigest()
            assert headers["x-dbproxy-exchange"] == made[name]
            assert headers["x-content-type-options"] == "nosniff"
            assert "sandbox" in headers["content-security-policy"]
            assert "x-dbproxy-inexact" not in headers
        status, headers, body = await ask(r, f"/api/exchanges/{made['first']}/request", method="HEAD")
        assert (status, body, int(headers["content-length"])) == (200, b"", len(made.bodies["first"]))


async def test_answers_streams_and_histories(rig, made):
    async with rig() as r:
        answer = await get(r, f"/api/exchanges/{made['first']}/response")
        assert answer["content"] == [{"type": "text", "text": "There are two zebras."}]
        assert (await get(r, f"/api/exchanges/{made['failed']}/response"))["error"]["type"] == "overloaded_error"
        stream = await get(r, f"/api/exchanges/{made['first']}/stream")
        assert stream["pieces"] == [{"at_ms": 1.0, "text": "event: ping\n"}, {"at_ms": 2.5, "text": "data: {}\n\n"}]
        history = await get(r, f"/api/exchanges/{made['retried']}/messages")
        assert [message["role"] for message in history["messages"]] == ["user", "assistant"] * 3
        assert "not kept" in await refused(r, f"/api/exchanges/{made['second']}/stream", 404)


async def test_explaining(rig, made):
    async with rig() as r:
        told = await get(r, f"/api/exchanges/{made['scout']}/explain")
        assert told["exchange"] == made["scout"]
        assert "agent zebra-scout #1" in told["sentences"][0]
        assert made["second"] in told["sentences"][1]


# -- conversations, search, sums --------------------------------------------------------------------------------------


async def test_conversations_page_by_page(rig, made):
    async with rig() as r:
        page = await get(r, "/api/conversations?limit=1")
        assert [row["id"] for row in page["conversations"]] == [OTHER]
        page = await get(r, f"/api/conversations?limit=1&before={page['next']}")
        row = page["conversations"][0]
        assert (row["id"], row["title"], row["agents"], row["compactions"]) == (CONVERSATION, "Zebras", 3, 1)
        page = await get(r, f"/api/conversations?limit=1&before={page['next']}")
        assert page == {"conversations": [], "next": None}
        farm = await get(r, "/api/conversations?project=/home/user/farm")
        assert [row["id"] for row in farm["conversations"]] == [OTHER]
        assert "cursor" in await refused(r, "/api/conversations?before=x", 404)


async def test_a_conversation_is_a_tree(rig, made):
    async with rig() as r:
        tree = await get(r, "/api/conversations/0f3a")
        main = tree["main"]
        edges = [branch["exchanges"][0]["edge"] for branch in main["branches"]]
        assert edges == ["root", "compacted", "rewind"]
        assert [agent["agent"]["name"] or agent["agent"]["type"] for agent in main["agents"]] == [
            "zebra-scout",
            "Explore",
        ]
        assert main["agents"][0]["agents"][0]["agent"]["type"] == "general-purpose"
        assert [row["id"] for row in tree["asides"]] == [made["title"]]


async def test_search(rig, made):
    async with rig() as r:
        found = await get(r, "/api/search?q=giraffes")
        assert {hit["exchange"] for hit in found["hits"]} == {made["rewind"]}
        for hit in found["hits"]:
            assert [hit["snippet"][start:end].lower() for start, end in hit["marks"]] == ["giraffes"]
        assert (await get(r, "/api/search?q=giraffes&conversation=0f3b"))["hits"] == []
        first = await get(r, "/api/search?q=zebras&limit=1")
        assert len(first["hits"]) == 1
        rest = await get(r, f"/api/search?q=zebras&limit=1&before={first['next']}")
        assert rest["hits"][0] != first["hits"][0]


async def test_sums(rig, made):
    async with rig() as r:
        report = await get(r, "/api/usage?by=model")
        rows = {row["model"]: row for row in report["rows"]}
        assert rows[captured.MODEL]["exchanges"] == 11
        assert rows["unknown-model"]["cost_usd"] is None
        assert report["total"]["cost_usd"] == pytest.approx(0.125)
        only = await get(r, "/api/usage?by=agent&conversation=0f3b&kind=main")
        assert only["total"]["exchanges"] == 1
        assert "day" in await refused(r, "/api/usage?by=colour", 400)


# -- who may ask, and what -----------------------------------------------------------------------------------------

PATHS = [
    "/api/exchanges",
    "/api/exchanges/last",
    "/api/exchanges/last/request",
    "/api/exchanges/last/response",
    "/api/exchanges/last/stream",
    "/api/exchanges/last/messages",
    "/api/exchanges/last/explain",
    "/api/conversations",
    "/api/conversations/last",
    "/api/search?q=zebras",
    "/api/usage",
    "/api/events",
]


@pytest.mark.parametrize("path", PATHS)
async def test_every_endpoint_needs_the_token_and_our_own_page(rig, made, path):
    async with rig() as r:
        for fields, status in (
            ((), 401),
            (("Authorization: Bearer wrong",), 401),
            (("Origin: http://evil.example",), 403),
            (("Sec-Fetch-Site: cross-site",), 403),
        ):
            got, _, body = await ask(r, path, *fields, token=False)
            assert got == status
            assert b"zebra" not in body
        got, headers, _ = await ask(r, path, method="POST")
        assert (got, headers["allow"]) == (405, "GET, HEAD")
        assert not r.origin.requests


@pytest.mark.parametrize("path", [path for path in PATHS if "last" in path])
async def test_before_anything_was_captured(rig, path):
    async with rig() as r:
        assert "nothing was captured yet" in await refused(r, path, 404)


@pytest.mark.parametrize("path", ["/api/exchanges", "/api/conversations", "/api/search?q=x", "/api/usage"])
async def test_lists_of_nothing(rig, path):
    async with rig() as r:
        with trio.fail_after(5):
            while (await ask(r, path))[0] == 404:  # the file is about to be made
                await trio.sleep(0.01)
        assert [] in (await get(r, path)).values()


@pytest.mark.parametrize(
    ("path", "status", "advice"),
    [
        ("/api/exchanges?limit=0", 400, "1 to 500"),
        ("/api/exchanges?limit=501", 400, "1 to 500"),
        ("/api/exchanges?limit=" + "9" * 5000, 400, "1 to 500"),
        ("/api/exchanges?limit=x", 400, "1 to 500"),
        ("/api/exchanges?limit=%D9%A1", 400, "1 to 500"),
        ("/api/exchanges?colour=red", 400, "Known: "),
        ("/api/exchanges?kind=main&kind=title", 400, "once"),
        ("/api/exchanges?since=yesterday", 400, "7d"),
        ("/api/exchanges?since=99999999999999d", 400, "7d"),
        ("/api/exchanges?until=9999-99-99", 400, "until"),
        ("/api/exchanges?kind=%ff", 400, "UTF-8"),
        ("/api/exchanges?before=1&after=1", 400, "together"),
        ("/api/exchanges?conversation=nobody", 404, "conversations list"),
        ("/api/exchanges?" + "&".join(f"a{n}=1" for n in range(40)), 400, "query"),
        ("/api/exchanges/zzz", 404, "log list"),
        ("/api/exchanges/0199c82c", 404, "Give more"),
        ("/api/exchanges/%00", 404, "log list"),
        ("/api/exchanges/%F0%9F%A6%93", 404, "log list"),
        ("/api/exchanges/last?x=1", 400, "Known: none"),
        ("/api/conversations/0f3", 404, "Give more"),
        ("/api/conversations?limit=-1", 400, "1 to 500"),
        ("/api/search", 400, "no word"),
        ("/api/search?q=%22%22*", 400, "no word"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_questions_are_answered_with_advice(rig, made, path, status, advice):
    async with rig() as r:
        assert advice in await refused(r, path, status)
        assert r.proxy.counters.crashes_total == 0


@pytest.mark.parametrize(
    "text", ['"', "a OR", "NEAR(", "* *a", "a AND NOT", "-zebra", "role:", "{a b}", "a\x00b", "^a"]
)
async def test_any_text_can_be_searched_for(rig, made, text):
    from urllib.parse import quote

    async with rig() as r:
        status, _, _ = await ask(r, f"/api/search?q={quote(text)}+zebras")
        assert status == 200


@pytest.mark.parametrize(
    "path",
    ["/api/claude_code/metrics", "/api/hello", "/api", "/api/exchanges/", "/api/exchanges/a/b", "/api/oauth/usage"],
)
async def test_other_paths_are_the_clients(rig, made, path):
    async with rig() as r:
        stream = await r.plain()
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        await read_head(stream)
        assert [request.target for request in r.origin.requests] == [path]


# -- the loop and the file ------------------------------------------------------------------------------------------


async def test_a_slow_question_ends_at_its_deadline_and_holds_nothing_up(rig, made, monkeypatch):
    monkeypatch.setattr("dbproxy.app.api.DEADLINE", 0.3)
    waiting, go_on = threading.Event(), threading.Event()

    def slow(self, **how):
        waiting.set()
        go_on.wait(10)
        return []

    monkeypatch.setattr("dbproxy.store.reader.Reader.exchanges", slow)
    async with rig() as r:
        try:
            with trio.fail_after(5):
                assert "limit" in await refused(r, "/api/exchanges", 504)
                assert waiting.is_set()
                assert (await ask(r, "/health"))[0] == 200  # meanwhile the thread still reads
        finally:
            go_on.set()


async def test_a_file_that_cannot_be_read_is_no_crash_but_advice(rig, made, monkeypatch):
    monkeypatch.setattr("dbproxy.store.connection.VERSION", 0)
    async with rig() as r:
        assert "newer dbproxy" in await refused(r, "/api/exchanges", 503)
        assert r.proxy.counters.crashes_total == 0


async def test_many_questions_on_one_connection(rig, made):
    async with rig() as r:
        stream = await r.plain()
        for _ in range(5):
            await stream.send_all(
                f"GET /api/exchanges?limit=1 HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: Bearer {r.proxy.token}\r\n\r\n".encode()
            )
            head, rest = await read_head(stream)
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            assert made["other"].encode() in await read_exactly(stream, size, rest)
        assert r.proxy.counters.connections_total == 1
