"""Usage: reading, merging, sums, and any shape."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model.usage import Usage, merge, total

COUNTS = st.integers(0, 10**9)
KEYS = [
    "input_tokens",
    "output_tokens",
    "cache_creation",
    "cache_creation_input_tokens",
    "iterations",
    "server_tool_use",
    "speed",
    "type",
]
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)),
    max_leaves=10,
)


def test_a_full_report() -> None:
    usage = Usage.of(
        {
            "input_tokens": 10,
            "output_tokens": 20,
            "cache_read_input_tokens": 300,
            "cache_creation_input_tokens": 50,
            "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
            "output_tokens_details": {"thinking_tokens": 7},
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
            "service_tier": "standard",
            "speed": "fast",
            "inference_geo": "us",
        }
    )
    assert usage == Usage(10, 20, 300, 20, 30, 7, 2, 1, "standard", "fast", "us")
    assert (usage.cache_write, usage.prompt_tokens, usage.context_tokens) == (50, 360, 380)
    assert usage.billed() == (usage,)


def test_cache_writes_without_a_split_live_five_minutes() -> None:
    assert Usage.of({"cache_creation_input_tokens": 50}).cache_write_5m == 50
    partial = Usage.of({"cache_creation_input_tokens": 50, "cache_creation": {"ephemeral_1h_input_tokens": 20}})
    assert (partial.cache_write_5m, partial.cache_write_1h) == (30, 20)
    split_only = Usage.of({"cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2}})
    assert (split_only.cache_write_5m, split_only.cache_write_1h) == (1, 2)


def test_iterations_are_billed_instead_of_the_top_level() -> None:
    usage = Usage.of(
        {"input_tokens": 1, "iterations": [{"type": "compaction", "input_tokens": 9, "model": "m"}, "junk", {}]}
    )
    assert usage.billed() == (Usage(input_tokens=9, kind="compaction", model="m"), Usage())
    assert total(usage.billed()).input_tokens == 9


def test_counts_that_are_no_counts_are_zero() -> None:
    for value in (True, -5, 1.5, "7", None, [], {}):
        assert Usage.of({"input_tokens": value}) == Usage()
    for value in (None, 5, "x", []):
        assert Usage.of(value) == Usage()


@given(ANY)
def test_any_shape_is_read(value: object) -> None:
    usage = Usage.of(value)
    assert usage.context_tokens >= 0
    assert all(not part.iterations for part in usage.iterations)


def nested(depth: int) -> object:
    value: object = {}
    for _ in range(depth):
        value = {"iterations": [value]}
    return value


def test_nested_iterations_do_not_nest() -> None:
    assert Usage.of(nested(5000)).iterations == (Usage(),)


def test_merge_keeps_what_zero_and_null_would_erase() -> None:
    known = {"input_tokens": 5, "cache_creation": {"a": 1, "b": 2}, "speed": "fast", "iterations": [{}], "new": None}
    update = {
        "input_tokens": 0,
        "cache_creation": {"a": 3, "b": 0},
        "speed": None,
        "iterations": [],
        "new": 0,
        "more": "x",
    }
    merged = merge(known, update)
    assert merged == {
        "input_tokens": 5,
        "cache_creation": {"a": 3, "b": 2},
        "speed": "fast",
        "iterations": [{}],
        "new": 0,
        "more": "x",
    }
    assert known["cache_creation"] == {"a": 1, "b": 2}


@given(st.dictionaries(st.sampled_from(KEYS), ANY, max_size=5), st.dictionaries(st.sampled_from(KEYS), ANY, max_size=5))
def test_merge_loses_no_key_and_repeats_itself(known: dict[str, object], update: dict[str, object]) -> None:
    merged = merge(known, update)
    assert set(merged) == set(known) | set(update)
    assert json.dumps(merge(merged, update)) == json.dumps(merged)


@given(st.lists(st.builds(Usage, *[COUNTS] * 8), max_size=4))
def test_total_adds_counts(parts: list[Usage]) -> None:
    assert total(parts).prompt_tokens == sum(part.prompt_tokens for part in parts)
    assert total(parts).web_fetch_requests == sum(part.web_fetch_requests for part in parts)
