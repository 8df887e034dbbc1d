"""``<think>`` tags are found wherever a text is cut, and nothing else is touched."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model.codecs.chat.tags import ThinkTags


def _read(*pieces):
    tags = ThinkTags()
    found = [one for piece in pieces for one in tags.feed(piece)] + tags.rest()
    joined: list[tuple[bool, str]] = []
    for thought, text in found:
        assert text
        if joined and joined[-1][0] == thought:
            joined[-1] = (thought, joined[-1][1] + text)
        else:
            joined.append((thought, text))
    return joined


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("plain < text", [(False, "plain < text")]),
        ("<think>a</think>b", [(True, "a"), (False, "b")]),
        ("\n <think>\na\n</think>\n\nb", [(False, "\n "), (True, "a\n"), (False, "b")]),
        ("<think>a</think>b\n<think>c</think>d", [(True, "a"), (False, "b\n"), (True, "c"), (False, "d")]),
        ("<think></think>b", [(False, "b")]),
        ("<think>a</think><think>b</think>c", [(True, "ab"), (False, "c")]),
        ("<think>a <think> b</think>c", [(True, "a <think> b"), (False, "c")]),
        # A template that wrote the opening tag itself: the closing one is not shown.
        ("a\n</think>\n\nb", [(False, "a\nb")]),
        # A text that speaks of the tag.
        ("Use `<think>` and `</think>`.", [(False, "Use `<think>` and `</think>`.")]),
        ("a <think>b", [(False, "a <think>b")]),
        ("<thinking>a", [(False, "<thinking>a")]),
        ("<think>a</thin", [(True, "a</thin")]),
        ("<thi", [(False, "<thi")]),
        ("", []),
    ],
)
def test_thoughts_stand_between_tags_that_begin_a_line(text, parts):
    assert _read(text) == parts


@given(st.lists(st.sampled_from(["<think>", "</think>", "\n", " ", "a", "<", "</", "think>", "b\n"])), st.data())
def test_where_a_text_is_cut_makes_no_difference(parts, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert _read(*pieces) == _read(text)


def test_text_is_not_held_back_longer_than_it_could_become_a_tag():
    tags = ThinkTags()
    assert tags.feed("Hello") == [(False, "Hello")]
    assert tags.feed("\n<th") == [(False, "\n")]
    assert tags.feed("e>") == [(False, "<the>")]


def test_time_grows_with_the_text_only():
    began = time.perf_counter()
    _read("<think>\n</think>\n" * 60_000)
    _read(" <" * 500_000)
    assert time.perf_counter() - began < 10
