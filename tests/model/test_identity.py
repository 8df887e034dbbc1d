"""The linking hash: the same for the same turn under other bytes, another one for everything else."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.exchange import Fields
from dbproxy.model.identity import LinkHashes, link_hash, link_items, without_reminders
from dbproxy.model.messages import MessagesRequest
from dbproxy.model.parts import put_together, take_apart

MARK = {"type": "ephemeral"}
REMINDER = "<system-reminder>\nThe date is today.\n</system-reminder>"


def encoded(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def message(role: str, content: Any, **more: Any) -> bytes:
    return encoded({"role": role, "content": content, **more})


def user(*blocks: Any) -> bytes:
    return message("user", [text(block) if isinstance(block, str) else block for block in blocks])


def assistant(*blocks: Any) -> bytes:
    return message("assistant", [text(block) if isinstance(block, str) else block for block in blocks])


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def call(id: str = "toolu_1", name: str = "Bash", **input: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": input}


def result(content: Any = "ok", id: str = "toolu_1", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": content, **more}


SAME = {
    "a string and a list": [message("user", "hi"), user("hi"), user(text("hi", cache_control=MARK))],
    # seed-003 9.5: a reminder inside a string and inside a list gives one hash
    "a reminder in a string": [
        message("user", REMINDER + "\nplease"),
        message("user", "please" + REMINDER),
        user(REMINDER, "please"),
        user("please", "\n" + REMINDER + "\n"),
        user("please"),
        message("user", "please"),
    ],
    # seed-003 9.5: a dropped thinking block keeps the link
    "thinking": [
        assistant({"type": "thinking", "thinking": "hm", "signature": "c2ln"}, "yes", call(command="ls")),
        assistant("yes", {"type": "redacted_thinking", "data": "eA=="}, call(command="ls")),
        assistant("yes", call(command="ls")),
    ],
    "empty items and blanks": [user("", "hi", "  "), user(" hi\n"), user("hi")],
    "line ends": [user("a\r\nb"), user("a\nb")],
    "a tool's result": [
        user(result("out")),
        user(result([text("out")])),
        user(result([text("out"), text("\n" + REMINDER)])),
        user(result("out\n" + REMINDER, cache_control=MARK)),
        user(result([text("out", cache_control=MARK)], is_error=False)),
    ],
    "the order of keys": [
        assistant(call(a=1, b={"c": [1.0], "d": None})),
        message(
            "assistant",
            [{"input": {"b": {"d": None, "c": [1]}, "a": 1}, "name": "Bash", "id": "toolu_1", "type": "tool_use"}],
        ),
    ],
    "escapes": [b'{"role":"user","content":"\\u0068i \\u00fc"}', '{"role":"user","content":"hi ü"}'.encode()],
    "message keys": [user("hi"), message("user", "hi", output_config={}, cache_control=MARK)],
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_turn(name: str) -> None:
    hashes = {link_hash(span) for span in SAME[name]}
    assert len(hashes) == 1
    assert len(hashes.pop() or b"") == 16


def test_different_turns() -> None:
    spans = [
        user("hi"),
        assistant("hi"),
        message("system", "hi"),
        user("hi", "hi"),
        user("h", "i"),
        user("h\ni"),
        user("Hi"),
        user(result("hi")),
        user(result("hi", "toolu_2")),
        user(result([text("h"), text("i")])),
        user(result("")),
        user(result([{"type": "image", "source": {"data": "a"}}])),
        user({"type": "image", "source": {"type": "base64", "data": "a"}}),
        user({"type": "image", "source": {"type": "base64", "data": "b"}}),
        user({"type": "document", "source": {"type": "base64", "data": "b"}}),
        assistant(call(command="ls")),
        assistant(call(command="ls ")),
        assistant(call("toolu_2", command="ls")),
        assistant(call(name="Read", command="ls")),
        assistant({**call(command="ls"), "type": "server_tool_use"}),
        user({"type": "container_upload", "file_id": "1"}),
        user({"type": "container_upload", "file_id": "2"}),
        message("user", ["hi"]),
        user("<system-reminder>never closed"),
    ]
    hashes = [link_hash(span) for span in spans]
    assert None not in hashes
    assert len(set(hashes)) == len(hashes)


def test_what_takes_no_part() -> None:
    spans = [
        user(),
        user("", " \n"),
        user(REMINDER),
        message("user", REMINDER + REMINDER),
        message("system", []),
        assistant({"type": "thinking", "thinking": "hm", "signature": ""}),
        message("user", None),
        message("user", {"type": "text", "text": "hi"}),
        b"{}",
        b"[]",
        b"7",
        b"{",
        b"",
    ]
    assert [link_hash(span) for span in spans] == [None] * len(spans)


def test_hashes_are_the_same_in_every_process_and_version() -> None:
    """Databases hold them."""
    assert (link_hash(user("hi", result("x"), call(a=1.5))) or b"").hex() == "bfe652b3aade46f2327d16055d4c1c9c"


def test_reminders() -> None:
    assert without_reminders("a \n" + REMINDER + " b " + REMINDER) == "a b"
    assert (
        without_reminders("<system-reminder>a<system-reminder>b</system-reminder>c</system-reminder>")
        == "c</system-reminder>"
    )
    assert without_reminders("</system-reminder> a <system-reminder>") == "</system-reminder> a <system-reminder>"


@pytest.mark.parametrize("unit", ["<system-reminder>", "</system-reminder>", " ", REMINDER, "\r\n", "<"])
def test_time_is_linear(unit: str) -> None:
    span = message("user", unit * (1_000_000 // len(unit)))
    begun = time.perf_counter()
    link_hash(span)
    assert time.perf_counter() - begun < 2


def test_values_that_no_encoder_takes() -> None:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    spans = [
        assistant(call(n=10**400)),
        assistant(call(n=-(10**400))),
        assistant(call(n=2**70)),
        b'{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"n","input":{"\\ud800":1e300}}]}',
        assistant(call(deep=deep)),
        message("user", "half \ud83d"),
    ]
    hashes = [link_hash(span) for span in spans]
    assert None not in hashes
    assert len(set(hashes)) == len(hashes)


# --- histories ---


def test_a_pair_sent_twice_takes_part_once() -> None:
    """seed-003 2.3 and 9.5: a client that sends a tool call and its result again has not gone on."""
    pair = [assistant("I look", call(command="ls")), user(result("ok"))]
    spans = [user("go"), *pair, *pair, assistant("done")]
    hashes = LinkHashes().of(spans)
    assert [found is None for found in hashes] == [False, False, False, True, True, False]
    assert LinkHashes.chain(hashes) == LinkHashes.chain(LinkHashes().of([user("go"), *pair, assistant("done")]))


def test_a_new_text_beside_a_repeated_result_takes_part() -> None:
    spans = [assistant(call(command="ls")), user(result("ok")), user(result("ok"), "and now this")]
    assert None not in LinkHashes().of(spans)


def test_one_new_id_is_enough() -> None:
    spans = [
        assistant(call("a")),
        assistant(call("a"), call("b")),
        user(result(id="a")),
        user(result(id="a"), result(id="b")),
    ]
    assert None not in LinkHashes().of(spans)
    # Calls and results are counted apart.
    assert None not in LinkHashes().of([assistant(call("a")), user(result(id="a"))])


def test_messages_without_tools_may_repeat() -> None:
    assert LinkHashes().of([user("go on"), assistant("ok"), user("go on")]).count(None) == 0


def test_a_chain_is_that_of_its_beginning_and_more() -> None:
    hashes = LinkHashes().of([user("a"), message("system", []), assistant("b"), user("c")])
    chain = LinkHashes.chain(hashes)
    assert len(chain) == 3
    assert LinkHashes.chain(hashes[:3]) == chain[:2]
    assert LinkHashes.chain(hashes[3:], chain[1]) == chain[2:]
    assert len(set(chain)) == 3
    # Two turns are not one, nor the other way round.
    assert LinkHashes.chain(hashes[::-1])[-1] != chain[-1]
    assert LinkHashes.chain([]) == []


spoken = st.sampled_from(
    [
        user("a"),
        user(result()),
        assistant("a", call()),
        assistant(call("b")),
        user(REMINDER),
        message("system", "s"),
        b"{",
        b"1",
    ]
)


@given(st.lists(st.lists(spoken, max_size=8), max_size=4), st.sampled_from([0, 700, 1 << 20]))
def test_remembering_changes_nothing(histories: list[list[bytes]], limit: int) -> None:
    remembering = LinkHashes(limit=limit)
    for history in histories:
        assert remembering.of(history) == LinkHashes().of(history)


def test_an_instruction_inside_the_last_message() -> None:
    """Client facts 3.1: the summarising instruction is put behind the tool results of the last user message."""
    role, items = link_items(user(result("ok"), text("words", cache_control=MARK)))
    other_role, other = link_items(user(result([text("ok")]), "words", "Your task is to create a detailed summary"))
    assert (role, items) == (other_role, other[: len(items)])
    assert len(other) == len(items) + 1


def test_seed_000_n13_json_user_id_rotating_cch_and_moving_marks_keep_one_identity() -> None:
    """Item N13 of seed-000: JSON user_id plus rotating cch plus moving cache_control keeps one identity."""
    session = "01234567-89ab-cdef-0123-456789abcdef"
    said = ["first", "second", "third", "fourth"]

    def request(turn: int) -> bytes:
        history: list[dict[str, Any]] = []
        for number, words in enumerate(said[: turn + 1]):
            last = number == turn
            history.append({"role": "user", "content": [text(words, cache_control=MARK)] if last else words})
            if not last:
                history.append({"role": "assistant", "content": [text(f"answer {number}")]})
        return encoded(
            {
                "model": "m",
                "system": [
                    text(
                        f"x-anthropic-billing-header: cc_version=2.1.329.7b2; cc_entrypoint=cli; cch={turn * 7919:05x};"
                    ),
                    text(
                        "You are Claude Code.", cache_control=MARK if turn % 2 else {"type": "ephemeral", "ttl": "1h"}
                    ),
                ],
                "messages": history,
                "metadata": {"user_id": json.dumps({"device_id": "d", "account_uuid": "a", "session_id": session})},
            }
        )

    bodies = [request(turn) for turn in range(len(said))]
    views = [MessagesRequest(body) for body in bodies]
    assert {view.session(Fields.of([])) for view in views} == {session}
    assert len({view.system for view in views}) == 1
    hashes = LinkHashes()
    chains = [LinkHashes.chain(hashes.of(view.spans)) for view in views]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(chains))
    taken = [parts for parts in map(take_apart, bodies) if parts is not None]
    assert [put_together(parts) for parts in taken] == bodies
    for shorter, longer in itertools.pairwise(taken):
        kept = [part.digest for part in longer.messages]
        assert kept[: len(shorter.messages)] == [part.digest for part in shorter.messages]
        assert [part.digest for part in longer.system] == [part.digest for part in shorter.system]
