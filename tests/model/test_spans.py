"""Spans are exact, and what is remembered of earlier bodies changes nothing but the time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model import spans
from dbproxy.model.memo import Memo, Runs
from dbproxy.model.spans import Array, Body, Member, array, members, read

if TYPE_CHECKING:
    import random


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs()
    monkeypatch.setattr(spans, "_runs", runs)
    return runs


def encoded(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def history(*turns: int, before: Any = 0) -> bytes:
    messages = [{"role": "user", "content": f"turn {number} " + "x" * 50} for number in turns]
    return encoded({"model": "m", "system": before, "messages": messages, "tools": [{"name": "Bash"}], "stream": True})


def told(body: Body | None) -> Any:
    if body is None:
        return None
    arrays = {key: body.array(key) for key in (b"messages", b"system", b"tools")}
    return body.text, list(body.members.items()), arrays


def afresh(text: bytes) -> Any:
    """The same without any memory."""
    found = members(text)
    if found is None or any(b"\\" in member.key for member in found):
        return None
    body = Body(text, found)
    for key in (b"messages", b"system", b"tools"):
        raw = body.raw(key)
        body._arrays[key] = array(raw) if raw and raw.startswith(b"[") else None
    return told(body)


def test_members_and_their_places() -> None:
    text = b' { "a" : [1, 2 ] ,"b\\n":"x"\n}'
    assert members(text) == [Member(b"a", 3, 9, 16), Member(b"b\\n", 18, 24, 27)]
    assert members(b"{}") == members(b" { } ") == []
    for wrong in (
        b"",
        b"[]",
        b"1",
        b"{",
        b'{"a":1,"a":1}',
        b'{"a":1,"b":2,"a":3}',
        b'{"a":1}x',
        b'{"a":"\\ud800" "b"}',
    ):
        assert members(wrong) is None


def test_escaped_halves_of_characters() -> None:
    r"""``\ud83d`` alone is JSON, though no character; ``\\ud83d`` is a backslash and letters."""
    for text in (rb'{"a":"\ud83d","b":["\uDE00"]}', rb'{"a":"\\\ud83d","\udc00":1}', rb'{"a":"\\ud83d\ud83d\ude00"}'):
        found = members(text)
        assert found is not None
        assert [json.loads(text[member.start : member.end]) for member in found] == list(json.loads(text).values())
    assert array(rb'["\ud83d" , "\udE00"]') == Array([rb'"\ud83d"', rb'"\udE00"'], [b"[", b" , ", b"]"])


def test_arrays_and_their_gaps() -> None:
    assert array(b"[]") == Array([], None)
    assert array(b"[ ]") == Array([], [b"[", b" ]"])
    assert array(b"[1,2]") == Array([b"1", b"2"], None)
    assert array(b"[1, 2\n]") == Array([b"1", b"2"], [b"[", b", ", b"\n]"])
    found = array(b"[ 10,[2] ]")
    assert found is not None
    assert list(found.places(100)) == [(102, b"10"), (105, b"[2]")]
    found = array(b"[10,2]")
    assert found is not None
    assert list(found.places(7)) == [(8, b"10"), (11, b"2")]
    for wrong in (b"", b"{}", b"[", b"[1,]", b"[1 2]"):
        assert array(wrong) is None


def test_a_body_with_an_escaped_key_is_left_alone() -> None:
    assert read(b'{"mess\\u0061ges":[]}') is None
    assert read(b'{"messages":[],"messages":[]}') is None


# --- memory ---


def test_what_repeats_is_the_same_object(fresh: Runs) -> None:
    first, second = read(history(1, 2, 3)), read(history(1, 2, 3, 4, 5))
    assert first is not None
    assert second is not None
    one, two = first.array(b"messages"), second.array(b"messages")
    assert one is not None
    assert two is not None
    assert all(a is b for a, b in zip(one.elements, two.elements, strict=False))
    # And after a rewind.
    third = read(history(1, 2, 9))
    fourth = read(history(9, 3))
    assert third is not None
    assert fourth is not None
    assert told(third) == afresh(third.text)
    again = fourth.array(b"messages")
    assert again is not None
    assert again.elements[1] is one.elements[2]


def test_only_what_is_new_is_parsed(fresh: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    told(read(history(*range(1000))))
    seen: list[int] = []
    real = spans.members

    def counted(text: bytes) -> list[Member] | None:
        seen.append(len(text))
        return real(text)

    monkeypatch.setattr(spans, "members", counted)
    body = read(history(*range(1001)))
    assert body is not None
    assert len(seen) == 1
    assert seen[0] < 300


WRONG = [
    b'{"messages":[{"a":1},]}',
    b'{"messages":[{"a":1},{"a":2},]}',
    b'{"messages":[{"a":1}{"a":2}]}',
    b'{"messages":[{"a":1},{"a":2}',
    b'{"messages":[{"a":1}',
    b'{"messages":[{"a":1},',
    b'{"messages":[{"a":1}}]',
    b'{"messages":[{"a":1},,{"a":2}]}',
    b'{"messages":[{"a":1}]]}',
    b'{"messages":[{"a":1}],}',
    b'"messages":[{"a":1},{"a":2}]}',
    b'{"x":1 "messages":[{"a":1},{"a":2}]}',
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_json_stays_none(fresh: Runs, text: bytes) -> None:
    assert told(read(b'{"messages":[{"a":1},{"a":2}]}'))
    assert told(read(b'{"messages":[{"a":1},{"a":1}]}'))
    assert read(text) is None


ODD = [
    b'{"x":{"messages":[{"a":1},{"a":2}]},"messages":[{"a":2}]}',
    b'{"x":{"messages":[{"a":1},{"a":2}]}}',
    b'{"messages":[{"a":1},{"a":2}],"messages":[]}',
    b'{"messages":[{"a":1} ,{"a":2}]}',
    b'{"messages":[{"a":1}, {"a":2}]}',
    b'{"messages":[{"a":1},{"a":2} ]}',
    b'{"messages":[ {"a":1}]}',
    b'{"messages":[{"a":1},1,12]}',
    b'{"messages":[{"a":1},{"a":2}],"tools":[{"a":1},{"a":2}],"system":[{"a":2},{"a":1}]}',
    b' {"messages":[{"a":1},{"a":2}],"system":"\\"messages\\":[{"}\n',
    b'{"system":"\\"messages\\":[{\\"a\\":1}","messages":[{"a":1}]}',
    b'{"messages":[]}',
    b'{"messages":[12,2]}',
    b'{"messages":[1,1]}',
    b'{"tools":[12,2],"messages":[1,2]}',
    b'{"tools":[1]}',
]


@pytest.mark.parametrize("text", ODD)
def test_odd_bodies_read_as_if_never_seen_before(fresh: Runs, text: bytes) -> None:
    for seen in (b'{"messages":[{"a":1},{"a":2}]}', b'{"messages":[1,2],"tools":[1,2]}', text):
        told(read(seen))
        assert told(read(text)) == afresh(text)


turns = st.lists(st.integers(0, 3), max_size=6)


@given(st.lists(turns, max_size=6), st.randoms(use_true_random=False), st.sampled_from([0, 1500, 1 << 20]))
def test_remembering_changes_nothing(histories: list[list[int]], chance: random.Random, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "_runs", Runs(limit=limit))
        for numbers in histories:
            text = history(*numbers, before=[{"a": 1}, {"a": 2}])
            assert told(read(text)) == afresh(text)
            # And with a piece missing, doubled or moved.
            start, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
            for other in (
                text[:start] + text[end:],
                text[:end] + text[start:],
                text[:start] + b" ,]}{"[chance.randrange(5) :][:1] + text[start:],
            ):
                assert told(read(other)) == afresh(other)


def test_a_busy_memory_is_done_without() -> None:
    text = history(1, 2, 3)
    expected = afresh(text)
    assert spans._runs.baton.take()
    try:
        assert told(read(text)) == expected
    finally:
        spans._runs.baton.give_back()


def test_a_run_is_bounded() -> None:
    runs = Runs(limit=100_000)
    beginning = [b'{"start":1}', b'{"next":1}']
    for abandoned in (b'{"never":1}', b'{"again":1}'):
        runs.follow(b"[]", 1)
        runs.learn([beginning[0], abandoned])
    runs.follow(b"[]", 1)
    runs.learn(beginning)
    for number in range(2000):
        # One beginning, and every time another end.
        begun, _ = runs.follow(b"[" + b",".join(beginning) + b",]", 1)
        assert begun == beginning
        runs.learn(b'{"%d-%d":"%s"}' % (number, index, b"x" * 500) for index in range(5))
    kept = [runs._first, *runs._young.values(), *runs._old.values()]
    waiting = list(kept)
    seen: dict[int, Any] = {}
    while waiting:
        known = waiting.pop()
        if id(known) not in seen:
            seen[id(known)] = known
            waiting += known.after
    assert set(seen) == set(map(id, kept))
    assert sum(len(known.span) for known in seen.values()) <= 100_000
    # What is forgotten holds on to nothing, so that it goes at once.
    young = set(map(id, runs._young.values()))
    gone = [known for known in runs._old.values() if id(known) not in young]
    runs._grow_older()
    assert gone
    assert not any(known.after for known in gone)
    # Too big to be kept at all.
    big = b'{"a":"' + b"x" * 60_000 + b'"}'
    assert runs.learn([big, b'{"b":1}']) == [big, b'{"b":1}']
    assert big not in [*runs._young, *runs._old]


def test_a_memo_is_bounded_and_works_once() -> None:
    worked: list[bytes] = []

    def work(span: bytes) -> int:
        worked.append(span)
        return len(span)

    memo = Memo(work, limit=10_000)
    assert memo.of([b"a", b"bb", b"a"]) == [1, 2, 1]
    assert memo.of([b"bb"]) == [2]
    assert worked == [b"a", b"bb"]
    for number in range(100):
        memo.of([b"%04d" % number + b"x" * 200, b"a"])
    assert worked.count(b"a") == 1
    assert sum(map(len, memo._young)) + sum(map(len, memo._old)) < 10_000
    memo.of([b"bb"])
    assert worked.count(b"bb") == 2
    # A second thread does the work itself.
    assert memo._baton.take()
    assert not memo._baton.take()
    assert memo.of([b"bb", b"bb"]) == [2, 2]
    assert worked.count(b"bb") == 4
    memo._baton.give_back()
    assert memo.of([b"bb"]) == [2]
    assert worked.count(b"bb") == 4
    assert memo.of([b"y" * 6000] * 2) == [6000] * 2
    assert worked.count(b"y" * 6000) == 2
