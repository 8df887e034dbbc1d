"""What has to be brought back is remembered by the call it came with, for its own family alone, and not for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model.codecs.vault import Kept, Vault, join_signature, split_signature


def test_only_the_family_that_made_it_gets_it_back():
    vault = Vault()
    vault.put("t1", Kept("gemini", "c2ln", "hm"))
    assert vault.get("t1", "gemini") == Kept("gemini", "c2ln", "hm")
    assert vault.get("t1", "openai") is None
    assert vault.get("t2", "gemini") is None


def test_the_last_word_about_a_call_counts():
    vault = Vault()
    vault.put("t1", Kept("gemini", "one"))
    vault.put("t1", Kept("gemini", "two"))
    assert vault.get("t1", "gemini") == Kept("gemini", "two")
    assert len(vault) == 1


def test_the_oldest_are_forgotten():
    vault = Vault(limit=3_000)
    for number in range(100):
        vault.put(f"t{number}", Kept("f", "x" * 300))
    assert 0 < len(vault) < 10
    assert vault.get("t0", "f") is None
    assert vault.get("t99", "f") is not None


def test_what_is_put_again_is_young_again():
    vault = Vault(limit=1_500)
    for call in ("a", "b", "a", "c"):
        vault.put(call, Kept("f", "x" * 300))
    assert vault.get("a", "f") is not None
    assert vault.get("b", "f") is None


def test_one_that_is_larger_than_all_there_is_room_for_costs_nothing_but_itself():
    vault = Vault(limit=1_000)
    vault.put("a", Kept("f", "x" * 2_000))
    assert len(vault) == 0
    vault.put("b", Kept("f", "x"))
    assert vault.get("b", "f") is not None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=400)), max_size=30))
def test_there_is_never_more_than_there_is_room_for(puts):
    vault = Vault(limit=1_000)
    for call, payload in puts:
        vault.put(call, Kept("f", payload))
        kept = [found for name in "abc" if (found := vault.get(name, "f")) is not None]
        assert sum(len(found.payload) for found in kept) <= 1_000
        assert len(kept) == len(vault)


@pytest.mark.parametrize(
    ("signature", "parts"),
    [
        ("", ("", "")),
        ("EqQBCkYIBRgC+/=", ("claude", "EqQBCkYIBRgC+/=")),
        ("openai#gAAAA#x", ("openai", "gAAAA#x")),
        ("deepseek#", ("deepseek", "")),
    ],
)
def test_whose_a_signature_is(signature, parts):
    assert split_signature(signature) == parts


@given(st.text(st.characters(exclude_characters="#"), min_size=1), st.text())
def test_a_signature_is_taken_apart_as_it_was_put_together(family, payload):
    assert split_signature(join_signature(family, payload)) == (family, payload)
