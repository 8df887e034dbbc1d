"""Limits from header fields: what is said is taken, what is not said is absent."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.exchange import Fields
from dbproxy.model.limits import overall_status, rate_limits
from dbproxy.model.record import RateLimit


def read(*fields: tuple[str, str]) -> dict[str, RateLimit]:
    made = Fields.of((name.encode(), value.encode("latin-1")) for name, value in fields)
    return {limit.window: limit for limit in rate_limits(made)}


def unified(**fields: str) -> dict[str, RateLimit]:
    return read(*((f"Anthropic-RateLimit-Unified-{name.replace('__', '-')}", value) for name, value in fields.items()))


def test_both_windows_of_a_subscription() -> None:
    """As captured: a 0..1 fraction and epoch seconds per window, and a verdict over all."""
    found = unified(
        status="allowed",
        reset="1784560000",
        **{"representative-claim": "five_hour", "fallback-percentage": "0.5"},
        **{"5h__status": "allowed", "5h__utilization": "0.42", "5h__reset": "1784560000"},
        **{"7d__status": "allowed", "7d__utilization": "0.18", "7d__reset": "1784900000"},
        **{"overage__status": "rejected", "overage__disabled-reason": "org_level_disabled"},
    )
    assert found == {
        "unified": RateLimit("unified", "allowed", resets=1784560000),
        "5h": RateLimit("5h", "allowed", 0.42, 1784560000),
        "7d": RateLimit("7d", "allowed", 0.18, 1784900000),
        "overage": RateLimit("overage", "rejected"),
    }


@pytest.mark.parametrize("status", ["allowed", "allowed_warning", "rejected"])
def test_a_verdict_is_handed_on_as_sent(status) -> None:
    found = unified(status=status, **{"7d_oi__status": status, "7d_oi__utilization": "0.91"})
    assert overall_status(found.values()) == status
    assert found["7d_oi"] == RateLimit("7d_oi", status, 0.91)


def test_a_window_that_is_not_mentioned_is_absent() -> None:
    found = unified(status="allowed", **{"5h__utilization": "0.1", "5h__reset": "1784560000"})
    assert set(found) == {"unified", "5h"}
    assert (found["5h"].status, found["unified"].utilization) == ("", -1.0)
    assert overall_status(()) == ""
    assert read(("content-type", "text/html")) == {}


def test_a_window_that_nobody_knows_yet_is_taken_as_it_is() -> None:
    found = unified(**{"30d_x__utilization": "0.5", "grace__5h-utilization": "0.2", "overage__period": "monthly"})
    assert found == {
        "30d_x": RateLimit("30d_x", utilization=0.5),
        "grace-5h": RateLimit("grace-5h", utilization=0.2),
    }


def test_the_buckets_of_an_api_key() -> None:
    found = read(
        ("anthropic-ratelimit-requests-limit", "4000"),
        ("anthropic-ratelimit-requests-remaining", "3999"),
        ("anthropic-ratelimit-requests-reset", "2026-11-20T12:00:00Z"),
        ("anthropic-ratelimit-input-tokens-remaining", "0"),
        ("anthropic-priority-output-tokens-limit", "10"),
        ("anthropic-fast-input-tokens-limit", "20"),
        ("anthropic-organization-id", "x"),
    )
    assert found == {
        "requests": RateLimit("requests", resets=1795176000, limit=4000, remaining=3999),
        "input-tokens": RateLimit("input-tokens"),
        "priority-output-tokens": RateLimit("priority-output-tokens", limit=10),
        "fast-input-tokens": RateLimit("fast-input-tokens", limit=20),
    }


@pytest.mark.parametrize("value", ["", "x", "-1", "nan", "inf", "1e99", "0.5.5", "\xff"])
def test_a_number_that_cannot_be_read_is_not_given(value) -> None:
    found = unified(**{"5h__utilization": value, "5h__reset": value, "5h__status": "allowed"})
    assert found["5h"] == RateLimit("5h", "allowed")


@pytest.mark.parametrize("value", ["2026-11-20T12:00:00", "2026-99-99T00:00:00Z", "2026", "0001-01-01T00:00:00+23:00"])
def test_a_moment_that_cannot_be_placed_is_not_a_reset(value) -> None:
    resets = read(("anthropic-ratelimit-requests-reset", value))["requests"].resets
    assert resets in (0.0, 2026.0)


def test_a_status_is_a_word() -> None:
    assert unified(status="<script>alert(1)</script>")["unified"].status == ""
    assert unified(status="a" * 41)["unified"].status == ""


def test_of_two_equal_fields_the_first_counts() -> None:
    name = "anthropic-ratelimit-unified-status"
    assert read((name, "allowed"), (name, "rejected"))["unified"].status == "allowed"


def test_a_flood_of_windows_is_bounded() -> None:
    fields = [(f"anthropic-ratelimit-unified-w{n}-status", "allowed") for n in range(1000)]
    assert len(read(*fields)) == 32


NAMES = st.sampled_from(["5h-", "7d-", "", "overage-", "requests-"]).flatmap(
    lambda window: st.sampled_from(["status", "utilization", "reset", "limit", "remaining", "x"]).map(
        lambda field: f"{window}{field}"
    )
)
PREFIXES = st.sampled_from(["anthropic-ratelimit-unified-", "anthropic-ratelimit-", "anthropic-fast-"])
VALUES = st.text(alphabet="0123456789-:TZ.+e ", max_size=30) | st.text(st.characters(max_codepoint=255), max_size=20)


@given(st.lists(st.tuples(st.builds(str.__add__, PREFIXES, NAMES), VALUES), max_size=12))
def test_any_fields(fields) -> None:
    for limit in read(*fields).values():
        assert limit.utilization == -1 or 0 <= limit.utilization < math.inf
        assert 0 <= limit.resets < math.inf
        assert limit.limit >= 0
        assert limit.remaining >= 0
