"""Pins: held, bounded, forgotten when nobody uses them, and the same after they were kept."""

from __future__ import annotations

import json

import pytest
from dbproxy_subagent_routing import pins as module
from dbproxy_subagent_routing.pins import Pin, Pins
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.api import Target

DAY = 86_400.0
GPT = Target("openai", "gpt-5.5")


def pin(thread: str = "a1", conversation: str = "s-1", **how: object) -> Pin:
    return Pin(conversation, thread, **{"targets": (GPT,), "rule": "x = y", "reason": "why", "used": 1000.0, **how})


def test_a_thread_is_held_where_it_was_put():
    pins = Pins()
    pins.put(pin())
    assert pins.get(("s-1", "a1"), 1000.0) == pin()
    assert pins.get(("s-1", "a2"), 1000.0) is None
    assert pins.get(("s-2", "a1"), 1000.0) is None
    assert pins.get(None, 1000.0) is None
    assert pins.peek(("s-1", "a1")) == pin()
    assert pins.peek(("s-1", "a2")) is None
    assert pins.peek(None) is None
    assert pins.touches("s-1")
    assert not pins.touches("s-2")
    assert pins.touches("")
    assert not Pins().touches("")


def test_what_is_used_does_not_expire():
    pins = Pins()
    pins.put(pin("busy"))
    pins.put(pin("idle"))
    for hour in range(30):
        assert pins.get(("s-1", "busy"), 1000.0 + hour * 3600)
    pins.expire(1000.0 + DAY + 1, DAY)
    assert [one.thread for one in pins] == ["busy"]


def test_there_is_something_to_keep_after_each_change_and_not_after_each_use():
    pins = Pins()
    assert not pins.changed
    pins.put(pin())
    assert pins.changed
    pins.changed = False
    pins.get(("s-1", "a1"), 1001.0)
    pins.expire(1001.0, DAY)
    assert not pins.changed
    pins.get(("s-1", "a1"), 1000.0 + 601)
    assert pins.changed
    pins.changed = False
    pins.expire(1000.0 + 3 * DAY, DAY)
    assert pins.changed


def test_the_longest_unused_goes_first(monkeypatch):
    monkeypatch.setattr(module, "MOST", 3)
    pins = Pins()
    for thread in ("a", "b", "c"):
        pins.put(pin(thread))
    pins.get(("s-1", "a"), 1000.0)
    pins.put(pin("d"))
    assert sorted(one.thread for one in pins) == ["a", "c", "d"]
    for thread in ("p", "q", "r", "s"):
        pins.pass_by(("s-1", thread))
    assert [pins.passed(("s-1", thread)) for thread in "pqrs"] == [False, True, True, True]


def test_an_agent_that_was_passed_by_is_not_once_it_is_pinned():
    pins = Pins()
    pins.pass_by(("s-1", "a1"))
    assert pins.passed(("s-1", "a1"))
    assert not pins.passed(None)
    pins.put(pin())
    assert not pins.passed(("s-1", "a1"))


texts = st.text(max_size=8)
made = st.builds(
    Pin,
    texts,
    texts,
    st.lists(st.builds(Target, texts, texts), max_size=3).map(tuple),
    texts,
    texts,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    texts,
    st.floats(0, 2e9),
)


@given(st.lists(made, max_size=5, unique_by=lambda one: one.place))
def test_what_was_kept_is_the_same_again(listed):
    first, second = Pins(), Pins()
    for one in listed:
        first.put(one)
    second.take(json.loads(json.dumps(first.to_json())), 2e9, 3e9)
    assert {one.place: one for one in second} == {one.place: one for one in listed}
    assert not second.changed


def test_what_is_known_here_stands_and_what_is_old_is_left():
    pins = Pins()
    pins.put(pin(reason="mine"))
    other = Pins()
    for one in (pin(reason="theirs"), pin("a2"), pin("old", used=10.0)):
        other.put(one)
    pins.take(other.to_json(), 1000.0, 100.0)
    assert {one.thread: one.reason for one in pins} == {"a1": "mine", "a2": "why"}


@pytest.mark.parametrize(
    "kept",
    [
        {},
        {"pins": None},
        {"pins": 5},
        {"pins": [5, {}, {"conversation": "x"}, None]},
        {"pins": [{**pin().to_json(), "targets": [["a"]]}]},
        {"pins": [{**pin().to_json(), "used": "soon"}]},
    ],
)
def test_what_cannot_be_read_is_no_pin(kept):
    pins = Pins()
    pins.take(kept, 1000.0, DAY)
    assert len(pins) == 0


def test_no_more_are_taken_over_than_are_kept(monkeypatch):
    monkeypatch.setattr(module, "MOST", 2)
    pins = Pins()
    pins.take({"pins": [pin(str(number)).to_json() for number in range(5)]}, 1000.0, DAY)
    assert len(pins) == 2
