"""How hard to think: budgets and words both ways, and the nearest word that a model takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model.codecs.effort import WORDS, budget_of, effort_of, nearest, word_of


@pytest.mark.parametrize(
    ("budget", "word"),
    [
        (0, "none"),
        (-1, "none"),
        (512, "minimal"),
        (1024, "low"),
        (1025, "medium"),
        (8192, "medium"),
        (8193, "high"),
        (24576, "high"),
        (24577, "xhigh"),
        (128_000, "xhigh"),
    ],
)
def test_case_25_budgets_are_words(budget, word):
    assert word_of(budget) == word


def test_words_are_budgets_that_mean_the_same_word():
    for word in WORDS:
        assert word_of(budget_of(word)) == {"max": "xhigh"}.get(word, word)
    assert budget_of("unheard of") == budget_of("medium")


@pytest.mark.parametrize(
    ("thinking", "asked", "word", "budget"),
    [
        (None, None, "", None),
        (None, "low", "low", None),
        ({"type": "disabled"}, "high", "none", 0),
        ({"type": "enabled", "budget_tokens": 31_999}, None, "xhigh", 31_999),
        ({"type": "enabled", "budget_tokens": 31_999}, "low", "low", 31_999),
        ({"type": "enabled"}, None, "medium", None),
        ({"type": "adaptive"}, None, "medium", None),
        ({"type": "adaptive"}, "max", "max", None),
        ({"type": "between_tools"}, "unheard of", "medium", None),
        ({"type": "unheard of"}, None, "", None),
        ("adaptive", None, "", None),
    ],
)
def test_what_a_body_asks_for(thinking, asked, word, budget):
    assert effort_of({"thinking": thinking, "output_config": {"effort": asked}}) == (word, budget)


@pytest.mark.parametrize(
    ("word", "supported", "found"),
    [
        ("max", ("low", "medium", "high"), "high"),
        ("medium", ("low", "high"), "low"),
        ("minimal", ("low", "high"), "low"),
        ("low", ("none", "high"), "high"),
        ("none", ("none", "low"), "none"),
        ("none", ("minimal", "high"), "minimal"),
        ("none", ("medium", "high"), ""),
        ("high", (), ""),
        ("", ("low",), ""),
        ("unheard of", ("low",), ""),
        ("high", ("unheard of",), ""),
    ],
)
def test_case_26_the_nearest_word_is_the_strongest_that_is_not_above(word, supported, found):
    assert nearest(word, supported) == found


@given(st.sampled_from([*WORDS, "", "unheard of"]), st.lists(st.sampled_from([*WORDS, "unheard of"])))
def test_a_word_that_is_not_supported_is_never_given(word, supported):
    found = nearest(word, supported)
    assert found == "" or found in supported
    if word in supported and word in WORDS:
        assert found == word
