"""Linking stays small, survives any body and any store, and never raises."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linktalk import INSTRUCTION, SESSION, Talk, call, continuation, launched, result, said, user

from dbproxy.exchange import Fields
from dbproxy.model.identity import LinkHashes
from dbproxy.model.link import Agent, Edge, RequestKind
from dbproxy.model.linking import chains
from dbproxy.model.linking.history import StoredConversation, StoredExchange, StoredPoint
from dbproxy.model.linking.linker import Linker
from dbproxy.model.messages import MessagesRequest

WORDS = [
    "role",
    "user",
    "assistant",
    "system",
    "content",
    "type",
    "text",
    "tool_use",
    "tool_result",
    "id",
    "name",
    "Agent",
]
WORDS += ["input", "prompt", "subagent_type", "tool_use_id", "agentId: x", "thread", "continue", "previous_message_id"]
WORDS += ["messages", "tools", "metadata", "user_id", "msg_1", "\ud800", INSTRUCTION, continuation("words"), ""]
SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | st.sampled_from(WORDS)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5)
)
BLOCKS = st.one_of(
    VALUES,
    st.builds(call, st.sampled_from(["t1", "t2"]), st.sampled_from(["p", "q", "\ud800"])),
    st.builds(launched, st.sampled_from(["t1", "t2"]), st.sampled_from(["a1", "a2"])),
    st.builds(lambda text: {"type": "text", "text": text}, st.sampled_from(WORDS)),
)
MESSAGES = VALUES | st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system"]) | VALUES,
        "content": st.lists(BLOCKS, max_size=4) | VALUES,
    }
)
BODIES = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGES, max_size=5) | VALUES},
    optional={"thread": VALUES, "metadata": VALUES, "system": VALUES, "tools": VALUES, "diagnostics": VALUES},
)
HINTS = ["session-id", "agent-id", "parent-agent-id", "agent-type", "request-class", "compaction", "context-compacted"]
NAMED = st.dictionaries(
    st.sampled_from(["user-agent", *(f"x-claude-code-{hint}" for hint in HINTS)]),
    st.sampled_from(["main", "subagent", "compaction", "a1", "a2", "s1", "claude-cli/2", "custom", "auto"]),
)


def ask(linker: Linker, id: str, body: bytes, named: dict[str, str]) -> None:
    fields = Fields.of([(name.encode(), value.encode()) for name, value in named.items()])
    links = linker.request(id, 1.0, MessagesRequest(body), fields, account="a")
    assert links[0].exchange == id


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(BODIES, NAMED, VALUES, st.booleans()), max_size=8))
def test_no_body_and_no_answer_makes_it_fail(steps: list[tuple[Any, dict[str, str], Any, bool]]) -> None:
    linker = Linker(limit=2)
    for number, (body, named, content, ok) in enumerate(steps):
        ask(linker, f"e{number}", json.dumps(body).encode(), named)
        linker.answer(f"e{number}", {"id": "msg_1", "role": "assistant", "content": content}, ok=ok)
        linker.expire(1e12)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=100))
def test_no_bytes_make_it_fail(body: bytes) -> None:
    ask(Linker(), "e1", body, {"x-claude-code-session-id": SESSION})


class Broken(Talk):
    """A history whose rows fit nothing."""

    rows: StoredConversation | None = None

    def conversation(self, conversation: str) -> StoredConversation | None:
        return self.rows and replace(self.rows, id=conversation)

    def holding(self, chains: Any, *, account: str, limit: int) -> list[str]:
        return ["x", "x", SESSION]

    def answered(self, message_id: str) -> tuple[str, str] | None:
        return ("x", "unknown")

    def message(self, exchange: str) -> bytes | None:
        return b'{"content": [7, {"type": "tool_use", "name": "Agent", "id": 5}]'


POINTS = st.builds(
    StoredPoint,
    st.sampled_from(["main", "a1", ""]),
    st.integers(-1, 3),
    st.integers(-1, 4),
    st.sampled_from([b"", b"x" * 16, b"y" * 16, b"z" * 15]),
    st.sampled_from(["e1", "e2", "e3", "none"]),
)
EXCHANGES = st.builds(
    StoredExchange,
    st.sampled_from(["e1", "e2", "e3"]),
    st.floats(0, 10),
    st.sampled_from(["main", "a1", ""]),
    st.integers(-1, 3),
    st.sampled_from(["main", "subagent", "compaction", "title", "unheard of"]),
    parent=st.sampled_from(["", "e1", "e2", "e3", "none"]),
    edge=st.sampled_from(["root", "next", "rewind", "spawn", "unheard of"]),
    outcome=st.sampled_from(["", "ok", "cut"]),
)
AGENTS = st.builds(
    Agent,
    st.sampled_from(["a1", "main", "t1"]),
    number=st.integers(0, 3),
    parent_thread=st.sampled_from(["main", "a1", "zz"]),
    tool_use_id=st.sampled_from(["", "t1"]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(POINTS, max_size=8), st.lists(EXCHANGES, max_size=5), st.lists(AGENTS, max_size=3), NAMED)
def test_no_stored_rows_make_it_fail(
    points: list[StoredPoint], exchanges: list[StoredExchange], agents: list[Agent], named: dict[str, str]
) -> None:
    history = Broken()
    history.rows = StoredConversation("", "a", "claude-cli", tuple(exchanges), tuple(points), tuple(agents))
    linker = Linker(history)
    messages = [[user("a")], [user("a"), said("b"), user(continuation("c"))], [user("a"), said("b"), user(INSTRUCTION)]]
    for number, body in enumerate(messages):
        ask(linker, f"n{number}", json.dumps({"messages": body}).encode(), named)
        linker.answer(f"n{number}", {"content": [call("t1", "p")]}, ok=True)
    thread = {"type": "continue", "previous_message_id": "msg"}
    ask(linker, "n9", json.dumps({"messages": [user("a")], "thread": thread}).encode(), named)


def test_idle_conversations_are_small() -> None:
    """1,000 idle ones are to stay below 20 MB; measured with 200 turns each: 14 MB."""
    linker = Linker()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(5):
        history = [user(f"start {number}")]
        for turn in range(100):
            fields = Fields.of(
                [(b"x-claude-code-session-id", b"s%d" % number), (b"x-claude-code-request-class", b"main")]
            )
            id = f"{number:04x}{turn:08x}c0ffee"
            linker.request(id, 1.0, MessagesRequest(json.dumps({"messages": history}).encode()), fields)
            answer = {"id": f"msg_{id}", "role": "assistant", "content": [{"type": "text", "text": f"{turn}"}]}
            linker.answer(id, answer, ok=True, request_id=f"req_{id}")
            history += [said(f"{turn}"), user(f"{turn} more")]
    del history, answer
    linker._hashes = LinkHashes()  # what the hashes remember has a bound of its own
    linker._memo = chains.ChainMemo()
    large = tracemalloc.get_traced_memory()[0] - before
    assert linker.expire(1e6) == 5
    small = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert small < 5 * 20_000 < large


def test_a_history_of_a_hundred_thousand_messages() -> None:
    messages = [user("a") if i % 2 == 0 else said(f"b{i}") for i in range(100_001)]
    talk = Talk()
    first = talk.ask(messages)
    assert len(first.points) == 100_001
    second = talk.ask([*messages, said("c"), user("d")])
    assert (second.edge, len(second.points)) == (Edge.NEXT, 2)


def test_the_oldest_conversations_are_dropped_and_come_back_from_the_history() -> None:
    talk = Talk()
    talk.linker = Linker(talk, limit=3)
    first = talk.ask([user("a")], session="s0")
    answer = talk.reply(first, "b")
    for number in range(1, 9):
        talk.ask([user("x")], session=f"s{number}")
    assert len(talk.linker) == 3
    on = talk.ask([user("a"), answer, user("c")], session="s0")
    assert (on.edge, on.parent, on.conversation) == (Edge.NEXT, first.exchange, "s0")
    assert len(talk.linker) == 3


def test_forget() -> None:
    talk = Talk()
    for number in range(3):
        talk.ask([user("a")], session=f"s{number}")
    assert talk.linker.forget("s1") == 1
    assert talk.linker.forget("zz") == 0
    again = talk.ask([user("a")], session="s1")
    assert (again.edge, again.attempt) == (Edge.ROOT, 1)
    assert talk.linker.forget("") == 3
    assert len(talk.linker) == 0


def test_a_conversation_with_an_exchange_under_way_is_not_made_small() -> None:
    talk = Talk()
    link = talk.ask([user("a")])
    assert talk.linker.expire(talk.now + 1000) == 0
    talk.reply(link, "b")
    assert talk.linker.expire(talk.now + 1000) == 1
    assert talk.linker.expire(talk.now + 1000) == 0
    assert talk.ask([user("a"), said("b"), user("c")]).parent == link.exchange


def test_many_agents_and_many_calls_stay_bounded() -> None:
    talk = Talk()
    history = [user("go"), said(*(call(f"t{i}", f"p{i}") for i in range(5000)))]
    history.append(user(*(result(f"t{i}", "done") for i in range(5000))))
    link = talk.ask(history)
    assert link.kind is RequestKind.MAIN
    conversation = talk.linker._memory.get(SESSION)
    assert conversation is not None
    assert len(conversation.spawns) == 4096


@pytest.mark.parametrize("length", [0, 1, 2, 7, 64])
def test_chains_share_what_they_share(length: int) -> None:
    left = chains.extend(b"", [bytes([i]) * 16 for i in range(64)])
    right = chains.extend(b"", [bytes([i]) * 16 for i in range(length)] + [b"!" * 16])
    assert chains.common(left, right) == length
    assert chains.common(right, left) == length
    memo = chains.ChainMemo()
    for hashes in ([bytes([i]) * 16 for i in range(n)] for n in (64, length, 64, length + 1)):
        assert memo.chain("x", b"", hashes) == chains.extend(b"", hashes)
        assert memo.chain("x", b"s" * 16, hashes) == chains.extend(b"s" * 16, hashes)


def test_very_many_attempts_are_counted_and_not_all_remembered() -> None:
    talk = Talk()
    first = talk.ask([user("go")])
    talk.reply(first, ok=False)
    answered = talk.ask([user("go")])
    answer = talk.reply(answered, "whole")
    waits = talk.ask([user("go")])  # its answer may still come
    for number in range(4, 200):
        again = talk.ask([user("go")])
        assert (again.edge, again.attempt) == (Edge.RETRY, number)
        talk.reply(again, ok=False)
    conversation = talk.linker._memory.get(SESSION)
    assert conversation is not None
    kept = [node.id for node in conversation.threads["main"].nodes()]
    assert len(kept) <= 35
    assert {first.exchange, answered.exchange, waits.exchange, again.exchange} <= set(kept)
    on = talk.ask([user("go"), answer, user("more")])
    assert (on.edge, on.parent) == (Edge.NEXT, answered.exchange)
