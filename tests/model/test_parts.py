"""Bodies taken apart and put together: every byte comes back, and a message is itself wherever the marks stand."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model import parts as module
from dbproxy.model.parts import SEARCH_LIMIT, Parts, Piece, apply, piece, put_together, search_text, take_apart

MARK = {"type": "ephemeral"}
COMPACT = (",", ":")
SPACED = (", ", ": ")


def compact(value: Any) -> bytes:
    """As the client writes it."""
    return json.dumps(value, separators=COMPACT, ensure_ascii=False).encode("utf-8", "surrogatepass")


def canonical(value: Any) -> bytes:
    return piece(compact(value)).canonical


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def apart(body: bytes) -> Parts:
    found = take_apart(body)
    assert found is not None
    assert put_together(found) == body
    return found


# --- JSON as text, in every way that the grammar allows ---

blank = st.sampled_from(["", "", "", " ", "\n  ", "\t", "\r\n"])
odd_strings = st.sampled_from(
    [
        '"\\ud83d"',
        '"\\uDE00 lone"',
        '"\\ud83d\\ude00"',
        '"\\u0063ache_control"',
        '"\\/\\"\\\\"',
        '"\\\\ud800"',
        '"\U0001f600"',
    ]
)
numbers = st.sampled_from(["0", "-0", "1.0", "0.10", "1e400", "-1E-7", "1" + "0" * 40, "12345678901234567890.5"])
string_texts = odd_strings | st.text(max_size=12).map(
    lambda words: json.dumps(words, ensure_ascii=any(0xD800 <= ord(letter) < 0xE000 for letter in words))
)
key_texts = string_texts | st.sampled_from(
    [f'"{key}"' for key in ("cache_control", "type", "text", "content", "role", "input", "tool_use_id")]
)
scalars = st.sampled_from(["true", "false", "null", '"text"', '"tool_result"', "{}", "[ ]"]) | numbers | string_texts


@st.composite
def array_texts(draw: st.DrawFn, items: st.SearchStrategy[str]) -> str:
    found = draw(st.lists(items, max_size=4))
    between = [draw(blank) + item + draw(blank) for item in found]
    return "[" + (",".join(between) or draw(blank)) + "]"


@st.composite
def object_texts(draw: st.DrawFn, items: st.SearchStrategy[str]) -> str:
    found = draw(st.lists(st.tuples(key_texts, items), max_size=5))
    if not draw(st.booleans()):
        found = list({key: (key, item) for key, item in found}.values())
    between = [draw(blank) + key + draw(blank) + ":" + draw(blank) + item + draw(blank) for key, item in found]
    return "{" + (",".join(between) or draw(blank)) + "}"


json_texts = st.recursive(scalars, lambda items: array_texts(items) | object_texts(items), max_leaves=20)


@st.composite
def body_texts(draw: st.DrawFn) -> str:
    lists = array_texts(json_texts)
    members = [
        ("messages", draw(lists)),
        ("system", draw(lists | string_texts)),
        ("tools", draw(lists)),
        ("model", draw(string_texts)),
        ("metadata", draw(json_texts)),
        ("big", '"' + "x" * draw(st.integers(0, 600)) + '"'),
    ]
    order = draw(st.permutations(members))[: draw(st.integers(1, 6))]
    if draw(st.integers(0, 9)) == 0:
        order.append(order[0])
    between = [draw(blank) + f'"{key}"' + draw(blank) + ":" + draw(blank) + value + draw(blank) for key, value in order]
    return draw(blank) + "{" + ",".join(between) + "}" + draw(blank)


@given(body_texts())
def test_every_body_comes_back(body: str) -> None:
    sent = body.encode("utf-8", "surrogatepass")
    found = take_apart(sent)
    if found is not None:
        assert put_together(found) == sent
        for part in (*found.system, *found.tools, *found.messages):
            assert piece(apply(part.canonical, part.patch)) == part


@given(st.lists(json_texts, max_size=6), st.sampled_from([",", ", ", ",\n    ", " ,"]), blank)
def test_every_list_of_messages_is_taken_apart(messages: list[str], between: str, edge: str) -> None:
    sent = ('{"messages":[' + edge + between.join(messages) + edge + '],"model":"m"}').encode("utf-8", "surrogatepass")
    found = apart(sent)
    assert [apply(part.canonical, part.patch) for part in found.messages] == [
        message.encode("utf-8", "surrogatepass") for message in messages
    ]


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda words: words.encode("utf-8", "surrogatepass")))
def test_noise_is_left_whole(noise: bytes) -> None:
    assert take_apart(noise) is None
    assert take_apart(b'{"messages":[' + noise + b"1x]}") is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"messages":{}}',
        b'{"messages":"none"}',
        b'{"messages":[],"messages":[1]}',
        b'{"model":"a","messages":[],"model":"a"}',
        b'{"messages":["\x01"]}',
        b'{"messages":[1,]}',
        b'{"messages":[]} {}',
        b'\xef\xbb\xbf{"messages":[]}',
        b'{"messages":[' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
    ],
)
def test_what_is_no_messages_body_is_left_whole(body: bytes) -> None:
    assert take_apart(body) is None


def test_bytes_that_are_no_text_come_back() -> None:
    apart(b'{"messages":[{"role":"user","content":"\xff\xfe"}],"model":"\x80"}')


def test_a_hundred_thousand_messages() -> None:
    body = compact({"messages": [{"role": "user", "content": str(i % 7)} for i in range(100_000)]})
    found = apart(body)
    assert len({part.digest for part in found.messages}) == 7


def test_the_same_bytes_are_one_piece() -> None:
    history = [user(text(f"turn {i}"), text("more")) for i in range(5)]
    first, second = apart(compact({"messages": history[:4]})), apart(compact({"messages": history}))
    assert first.messages == second.messages[:4]
    assert first.messages[0].canonical is second.messages[0].canonical


# --- identity ---


def marked(message: dict[str, Any], where: int, place: str, mark: Any) -> dict[str, Any]:
    """``message`` with a mark on block ``where``, as the block's first, last or middle key."""
    blocks = list(message["content"])
    items = list(blocks[where].items())
    at = {"first": 0, "middle": 1, "last": len(items)}[place]
    blocks[where] = dict([*items[:at], ("cache_control", mark), *items[at:]])
    return {**message, "content": blocks}


words = st.text(max_size=10)
blocks = st.one_of(
    words.map(text),
    st.builds(lambda w: {"type": "tool_result", "tool_use_id": w, "content": [text(w), text(w)]}, words),
    st.builds(lambda w: {"type": "tool_use", "id": w, "name": w, "input": {"cache_control": MARK, "x": w}}, words),
    st.just({"type": "image", "source": {"type": "base64", "data": "AAAA"}}),
)


@given(
    st.lists(blocks, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["first", "middle", "last"])), max_size=3),
    st.sampled_from([MARK, {"type": "ephemeral", "ttl": "1h"}, None, []]),
    st.sampled_from([COMPACT, SPACED]),
)
def test_a_message_is_itself_wherever_the_marks_stand(
    content: list[Any], marks: list[tuple[int, str]], mark: Any, separators: tuple[str, str]
) -> None:
    plain = user(*content)
    other = plain
    for where, place in marks:
        if "cache_control" not in other["content"][where % len(content)]:
            other = marked(other, where % len(content), place, mark)
    one, two = (json.dumps(each, separators=separators).encode() for each in (plain, other))
    assert piece(one).digest == piece(two).digest
    assert apply(piece(two).canonical, piece(two).patch) == two


def test_one_text_in_a_list_is_the_text() -> None:
    plain = canonical({"role": "user", "content": "hello"})
    assert plain == b'{"role":"user","content":"hello"}'
    assert canonical(user(text("hello"))) == plain
    assert canonical(user(text("hello", cache_control=MARK))) == plain
    assert canonical(user({"cache_control": MARK, "text": "hello", "type": "text"})) == plain
    # More than a text is more than a text.
    assert canonical(user(text("hello", citations=[]))) != plain
    assert canonical(user(text("hello"), text("hello"))) != plain
    assert canonical(user({"type": "text", "text": 1})) == compact(user({"type": "text", "text": 1}))


def test_only_real_marks_are_cut() -> None:
    given = {"command": "grep cache_control", "cache_control": MARK, "deep": [{"cache_control": MARK}]}
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "n", "input": given}]}
    assert canonical(call) == compact(call)
    tool = {"name": "n", "input_schema": {"properties": {"cache_control": {}}}}
    assert canonical({**tool, "cache_control": MARK}) == canonical(tool) == compact(tool)
    # Of blocks only those that a tool gave back are looked into.
    other = user({"type": "some_result", "content": [text("a", cache_control=MARK)]}, text("b"))
    assert canonical(other) == compact(other)
    said = {"role": "user", "content": '{"cache_control":{"type":"ephemeral"}}'}
    assert canonical(said) == compact(said)


def test_marks_at_every_level_are_cut() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [text("a"), text("b", cache_control=MARK)]}
    message = {"role": "user", "cache_control": MARK, "content": [result, text("c", cache_control=MARK)]}
    assert canonical(message) == compact(
        {"role": "user", "content": [{**result, "content": [text("a"), text("b")]}, text("c")]}
    )
    assert canonical(text("You are", cache_control=MARK)) == compact(text("You are"))
    assert canonical({"cache_control": MARK}) == b"{}"


def test_a_key_twice_is_nobodys_to_judge() -> None:
    span = b'{"role":"user","content":[{"type":"text","text":"a","cache_control":1,"cache_control":2}]}'
    assert piece(span).canonical == span


# --- templates ---


def body(number: int, **more: Any) -> bytes:
    return compact(
        {
            "model": "m",
            "system": [
                text(f"x-anthropic-billing-header: cc_version=2.1.329.7b2; cch={number:05x};"),
                text("You are Claude Code.", cache_control=MARK),
                text("Rules."),
            ],
            "tools": [{"name": "Bash"}],
            "messages": [user(text("hi"))],
            **more,
        }
    )


def test_the_billing_line_is_in_the_template() -> None:
    one, two = apart(body(1)), apart(body(2))
    assert (one.system, one.tools, one.messages) == (two.system, two.tools, two.messages)
    assert [part.canonical for part in one.system] == [compact(text("You are Claude Code.")), compact(text("Rules."))]
    assert one.template != two.template
    assert b"cch=00001" in one.template


def test_a_template_does_not_grow_with_the_history() -> None:
    long = [user(text(str(i))) for i in range(500)]
    assert len(apart(body(1, messages=long)).template) == len(apart(body(1)).template)
    spaced = json.dumps({"messages": long}).encode()
    assert len(apart(spaced).template) < 40
    indented = json.dumps({"messages": long}, indent=2).encode()
    assert len(apart(indented).template) < 60


def test_only_a_billing_line_or_nothing_at_all() -> None:
    billing = text("x-anthropic-billing-header: a")
    assert apart(body(1, system=[billing])).system == ()
    assert len(apart(body(1, system=[billing, billing, text("x")])).system) == 1
    # Not at the beginning: a block like any other.
    assert len(apart(body(1, system=[text("x"), billing])).system) == 2
    assert len(apart(body(1, system=[text("speaks of x-anthropic-billing-header:")])).system) == 1
    assert apart(body(1, system=[], tools=[])).tools == ()
    assert apart(body(1, system="You are", tools=None)).system == ()
    apart(json.dumps({"system": [billing], "messages": []}, indent=1).encode())


def test_parts_that_do_not_belong_together() -> None:
    found = apart(b'{"messages":[1 ,2,3]}')
    with pytest.raises(ValueError, match="another list"):
        put_together(Parts(found.template, messages=found.messages[:2]))


# --- patches ---


def test_a_usual_mark_costs_two_bytes() -> None:
    patch = piece(compact(user(text("a"), text("b", cache_control=MARK)))).patch
    assert patch is not None
    assert len(patch) == 2
    # A plain text that was a list with a mark.
    patch = piece(compact(user(text("a" * 300, cache_control=MARK)))).patch
    assert patch is not None
    assert len(patch) <= 6


@pytest.mark.parametrize("patch", [b"\xff", b"\x01", b"\x05\x00", b"\x00\x3f", b"\x00\x45abc", b"\x80" * 12 + b"\x01"])
def test_a_damaged_patch_is_an_error(patch: bytes) -> None:
    with pytest.raises(ValueError, match="patch"):
        apply(b"abc", patch)


def test_no_patch_is_no_change() -> None:
    assert apply(b"abc", None) == b"abc"
    assert piece(b"1") == Piece(b"1", piece(b"1").digest, None)
    assert len(piece(b"1").digest) == 16


def test_the_usual_insertions_are_only_appended_to() -> None:
    """Files hold their numbers."""
    assert module._USUAL[:3] == (
        b',"cache_control":{"type":"ephemeral"}',
        b',"cache_control":{"type":"ephemeral","ttl":"1h"}',
        b'[{"type":"text","text":',
    )
    assert len(module._USUAL) <= 64
    assert apply(b'{"a":"b"}', b"\x08\x00\x01\x41x") == b'{"a":"b","cache_control":{"type":"ephemeral"}}x'


def test_from_several_threads() -> None:
    bodies = [body(i, messages=[user(text(f"{i} {k}", cache_control=MARK)) for k in range(50)]) for i in range(20)]
    wrong: list[int] = []

    def work(start: int) -> None:
        for k in range(20):
            number = (start + k) % 20
            found = take_apart(bodies[number])
            if found is None or put_together(found) != bodies[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


# --- words ---


def test_words_of_messages() -> None:
    message = {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "let me see", "signature": "c2lnbmF0dXJl"},
            {"type": "redacted_thinking", "data": "ZGF0YQ=="},
            text("I read it"),
            {
                "type": "tool_use",
                "id": "toolu_1",
                "name": "Edit",
                "input": {"file_path": "/a/b.py", "n": 1, "e": [{"o": "old"}]},
            },
        ],
    }
    role, found = search_text(compact(message))
    assert role == "assistant"
    assert found.split("\n") == ["let me see", "I read it", "Edit", "/a/b.py", "old"]
    assert search_text(b'{"role":"user","content":"plain"}') == ("user", "plain")
    results = user(
        {"type": "tool_result", "tool_use_id": "t", "content": "out"},
        {
            "type": "tool_result",
            "tool_use_id": "t",
            "content": [text("first"), {"type": "image", "source": {"data": "iVBOR"}}],
        },
        {
            "type": "web_search_tool_result",
            "content": [{"type": "web_search_result", "title": "T", "url": "U", "encrypted_content": "E"}],
        },
        {"type": "document", "title": "D", "source": {"type": "text", "data": "inside"}},
        {"type": "document", "source": {"type": "base64", "data": "JVBERi0="}},
        {"type": "something new", "text": "?"},
        "no block",
    )
    assert search_text(compact(results)) == ("user", "out\nfirst\nT\nU\nD\ninside")


def test_words_of_what_is_no_message() -> None:
    assert search_text(compact(text("You are"))) == ("system", "You are")
    assert search_text(compact({"name": "Bash", "description": "Runs", "input_schema": {}})) == ("tool", "Bash\nRuns")
    assert search_text(b"nothing") == ("", "")
    assert search_text(b'{"role":1,"content":2}') == ("", "")


def test_words_are_bounded_and_hold_no_data() -> None:
    many = user(*[text(f"{i} " + "word " * 1000) for i in range(100)])
    _, found = search_text(compact(many))
    assert SEARCH_LIMIT - 5100 < len(found) <= SEARCH_LIMIT
    assert search_text(compact(user(text("a " + "QUJD" * 100 + "== b"))))[1] == "a   b"
    assert search_text(b'{"role":"user","content":"half \\ud83d"}') == ("user", "half \ufffd")


@given(json_texts)
def test_words_of_anything(value: str) -> None:
    for span in (value, '{"role":"user","content":' + value + "}"):
        role, found = search_text(span.encode("utf-8", "surrogatepass"))
        (role + found).encode()
