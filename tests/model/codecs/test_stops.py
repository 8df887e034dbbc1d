"""Stop sequences are found in a text as it streams, and nothing of one ever comes out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model.codecs.stops import StopScanner


def _read(stops, pieces):
    scanner = StopScanner(stops)
    out = ""
    for piece in pieces:
        text, found = scanner.feed(piece)
        out += text
        if found:
            return out, found
    return out + scanner.rest(), ""


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "found"),
    [
        (["END"], ["one END two"], "one ", "END"),
        (["END"], ["one E", "N", "D two"], "one ", "END"),
        (["END"], ["one E", "N", "d two"], "one ENd two", ""),
        (["END"], ["one EN"], "one EN", ""),
        (["b", "ab"], ["xab"], "x", "ab"),
        (["ab", "abc"], ["xabc"], "x", "abc"),
        (["aab"], ["aaab"], "a", "aab"),
        (["aab"], ["a", "a", "a", "b"], "a", "aab"),
        (["", "x"], ["axb"], "a", "x"),
        ([], ["a", "b"], "ab", ""),
    ],
)
def test_the_earliest_sequence_ends_the_text(stops, pieces, text, found):
    assert _read(stops, pieces) == (text, found)


def test_no_more_is_held_back_than_could_become_a_sequence():
    scanner = StopScanner(["END"])
    assert scanner.feed("one EN") == ("one ", "")
    assert scanner.feed("x") == ("ENx", "")


LETTERS = st.text("ab", max_size=12)


@given(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3), LETTERS, st.data())
def test_where_a_text_is_cut_makes_no_difference(stops, text, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    out, found = _read(stops, pieces)
    places = [text.find(stop) for stop in stops if stop in text]
    assert bool(found) == bool(places)
    if not found:
        assert out == text
        return
    assert not any(stop in out for stop in stops)
    assert text.startswith(out + found)
