"""Windows, shares and totals out of rows: nothing is said that no answer has said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model.record import RateLimit
from dbproxy.model.usage_report import Charge, Total, figures, shares, total, windows
from dbproxy.store.rows import LimitRow, UsageRow

NOW = 1_784_550_000.0
END = NOW + 3600


def said(
    at=NOW, used=0.5, *, window="5h", account="a", resets=END, status="allowed", exchange="", quota=None, left=None
):
    return LimitRow(exchange or f"x{at}", account, at, window, status, used, resets, quota, left)


def test_the_last_word_on_each_window_counts() -> None:
    seen = [
        said(NOW - 10, 0.4),
        said(NOW - 5, 0.5),
        said(NOW - 7, 0.1, window="7d", resets=NOW + 86_400),
        said(NOW - 9, 0.9, account="b", status="allowed_warning"),
        said(NOW - 5, None, window="unified", status="allowed"),
    ]
    found = windows(seen, NOW)
    assert [(w.account, w.window, w.utilization) for w in found] == [
        ("a", "unified", None),
        ("a", "5h", 0.5),
        ("a", "7d", 0.1),
        ("b", "5h", 0.9),
    ]
    assert [w.status for w in found] == ["allowed", "allowed", "allowed", "allowed_warning"]
    assert (found[1].resets, found[1].began, found[1].seen) == (END, END - 5 * 3600, NOW - 5)
    assert (found[2].began, found[0].began) == (NOW - 6 * 86_400, None)


def test_nothing_is_said_about_a_window_that_nobody_spoke_of() -> None:
    (found,) = windows([said(NOW - 20_000, 0.97, resets=NOW, status="rejected", quota=10, left=3)], NOW)
    assert found.over
    assert (found.utilization, found.remaining, found.status) == (None, None, "")
    assert found.resets == NOW
    (running,) = windows([said(resets=NOW + 1, status="rejected", quota=10, left=3)], NOW)
    assert not running.over
    assert (running.utilization, running.remaining, running.quota, running.status) == (0.5, 3, 10, "rejected")


def test_missing_figures_stay_missing() -> None:
    (found,) = windows([said(used=None, resets=None, window="30d")], NOW)
    assert (found.utilization, found.resets, found.began, found.quota, found.over) == (None, None, None, None, False)
    (negative,) = windows([said(used=-1.0, resets=0.0)], NOW)
    assert (negative.utilization, negative.resets) == (None, None)
    assert windows([], NOW) == ()


def test_a_rise_is_split_by_cost_between_two_statements() -> None:
    seen = [said(100.0, 0.10), said(200.0, 0.20), said(300.0, 0.20), said(400.0, 0.26)]
    spent = [
        Charge("c0", "early", 90.0, 9.0),
        Charge("c1", "one", 150.0, 3.0),
        Charge("c2", "two", 199.0, 1.0),
        Charge("c3", "one", 250.0, 1.0),
        Charge("c4", "two", 399.0, 2.0),
        Charge("c5", "late", 500.0, 9.0),
    ]
    found = shares(seen, spent)
    assert found is not None
    assert found.estimate is True
    assert (found.account, found.window, found.resets) == ("a", "5h", END)
    assert dict(found.sessions) == {
        "one": pytest.approx(0.10 * 3 / 4 + 0.06 * 1 / 3),
        "two": pytest.approx(0.10 * 1 / 4 + 0.06 * 2 / 3),
    }
    assert found.before == pytest.approx(0.10)
    assert found.elsewhere == 0


def test_an_answers_own_cost_belongs_to_the_next_statement() -> None:
    seen = [said(100.0, 0.1, exchange="own0"), said(200.0, 0.2, exchange="own1"), said(300.0, 0.5)]
    spent = [Charge("own0", "first", 100.0, 1.0), Charge("own1", "second", 200.0, 1.0)]
    found = shares(seen, spent)
    assert found is not None
    assert dict(found.sessions) == {"first": pytest.approx(0.1), "second": pytest.approx(0.3)}


def test_a_rise_without_a_cost_of_ours_is_elsewhere() -> None:
    spent = [Charge("c1", "free", 150.0, 0.0)]
    found = shares([said(100.0, 0.1), said(200.0, 0.4)], spent)
    assert found is not None
    assert (found.sessions, found.elsewhere) == ((), pytest.approx(0.3))


def test_only_the_last_window_and_out_of_order_answers() -> None:
    seen = [
        said(50.0, 0.9, resets=60.0),
        said(100.0, 0.1, resets=END - 1),
        said(200.0, 0.3),
        said(210.0, 0.2),  # a slower answer's older figure
        said(300.0, 0.4),
        said(310.0, None),
    ]
    spent = [Charge("c", "s", 205.0, 1.0)]
    found = shares(seen, spent)
    assert found is not None
    assert (found.before, found.elsewhere) == (pytest.approx(0.1), pytest.approx(0.2))
    assert dict(found.sessions) == {"s": pytest.approx(0.1)}
    assert shares([said(used=None)], spent) is None
    assert shares([said(resets=None)], spent) is None
    assert shares([], spent) is None


AT = st.floats(0, 1000)
STATEMENTS = st.lists(st.builds(said, AT, st.floats(0, 1), exchange=st.sampled_from("abc")), max_size=8)
CHARGES = st.lists(st.builds(Charge, st.sampled_from("abcd"), st.sampled_from("st"), AT, st.floats(0, 10)), max_size=8)


@given(STATEMENTS, CHARGES)
def test_shares_add_up_to_the_highest_statement(seen, spent) -> None:
    found = shares(seen, spent)
    if found is None:
        assert seen == []
        return
    assert all(part > 0 for _, part in found.sessions)
    whole = found.before + found.elsewhere + sum(part for _, part in found.sessions)
    assert whole == pytest.approx(max(limit.utilization for limit in seen))


def row(**figures_: object) -> UsageRow:
    base = dict.fromkeys(UsageRow.__slots__, 0) | {"keys": ("k",), "cost_usd": None, "first": 1.0, "last": 2.0}
    return UsageRow(**(base | figures_))


def test_totals() -> None:
    rows = [
        row(exchanges=2, input_tokens=5, cost_usd=0.5, cache_write_1h=7),
        row(exchanges=1, unpriced=1, errors=1),
        row(cost_usd=0.25, cache_read=3, output_tokens=4),
    ]
    found = total(rows)
    assert found == Total(
        exchanges=3,
        errors=1,
        input_tokens=5,
        output_tokens=4,
        cache_read=3,
        cache_write_1h=7,
        cost_usd=0.75,
        unpriced=1,
    )
    assert figures(found)["prompt_tokens"] == 15
    assert total([row(unpriced=2)]).cost_usd is None
    assert total([row(cost_usd=0.0)]).cost_usd == 0
    assert total([]) == Total()


def test_the_record_and_the_row_speak_of_the_same_things() -> None:
    assert set(RateLimit.__slots__) - set(LimitRow.__slots__) == {"limit"}  # "quota" in SQL
