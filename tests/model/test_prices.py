"""Prices: the shipped table by hand-computed bills, every rule that makes two requests differ, and users' own files."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.errors import ConfigError
from dbproxy.model.accumulate import Accumulator
from dbproxy.model.prices import Prices
from dbproxy.model.usage import Usage

SHIPPED = Prices.load()
MILLION = 1_000_000


def at(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()


NOW = at("2026-11-20")
TOML = """
[models."my-model"]
input = 1
output = 2.5
context = 32000
aliases = ["arn:my-own"]

[models."claude-opus-5-5"]
prices = [
  { input = 4, output = 20, cache_read = 0.2 },
  { from = 2026-12-01, input = 3, output = 15, cache_read = 0.15, over = [{ tokens = 10, input = 6, output = 30 }] },
]
"""


@pytest.mark.parametrize(
    ("model", "usage", "usd"),
    [
        ("claude-opus-5-5", Usage(input_tokens=MILLION), 4),
        ("claude-opus-5-5", Usage(output_tokens=MILLION), 20),
        ("claude-opus-5-5", Usage(cache_read=MILLION), 0.20),
        ("claude-opus-5-5", Usage(cache_write_5m=MILLION), 5),
        ("claude-opus-5-5", Usage(cache_write_1h=MILLION), 8),
        ("claude-fable-5-2", Usage(1, 1, 1, 1, 1), (8 + 40 + 0.2 + 10 + 16) / MILLION),
        ("claude-fable-5-1", Usage(cache_read=MILLION), 0.25),
        ("claude-opus-5", Usage(1, 1, 1, 1, 1), (5 + 25 + 0.5 + 6.25 + 10) / MILLION),
        ("claude-sonnet-5", Usage(1, 1, 1, 1, 1), (2 + 10 + 0.2 + 2.5 + 4) / MILLION),
        ("claude-sonnet-4-6", Usage(1, 1, 1, 1, 1), (3 + 15 + 0.3 + 3.75 + 6) / MILLION),
        ("claude-haiku-4-5-20251001", Usage(1, 1, 1, 1, 1), (1 + 5 + 0.1 + 1.25 + 2) / MILLION),
        ("gpt-6.1-sol", Usage(1, 1, 1), (2 + 10 + 0.1) / MILLION),
    ],
)
def test_the_shipped_rates(model, usage, usd) -> None:
    cost = SHIPPED.cost(model, usage, NOW)
    assert cost.usd == pytest.approx(usd)
    assert cost.missing == ""


def test_hour_long_cache_writes_cost_more_than_short_ones() -> None:
    """Item 9.5: the 5m/1h split. A report without a split is taken as the default lifetime."""
    split = {"cache_creation_input_tokens": 1000, "cache_creation": {"ephemeral_1h_input_tokens": 800}}
    assert SHIPPED.cost("claude-sonnet-4-5", Usage.of(split), NOW).usd == pytest.approx(
        (200 * 3.75 + 800 * 6) / MILLION
    )
    whole = Usage.of({"cache_creation_input_tokens": 1000})
    assert SHIPPED.cost("claude-sonnet-4-5", whole, NOW).usd == pytest.approx(1000 * 3.75 / MILLION)


def test_an_aborted_stream_costs_what_it_has_used_so_far() -> None:
    """Item 9.5: the stream ends behind message_start, the answer's tokens so far are billed."""
    accumulator = Accumulator()
    usage = {"input_tokens": 100, "cache_read_input_tokens": 50_000, "output_tokens": 3}
    start = {"type": "message_start", "message": {"id": "m", "content": [], "usage": usage}}
    accumulator.feed(b"message_start", json.dumps(start).encode())
    assert not accumulator.complete
    cost = SHIPPED.cost("claude-opus-5-5", accumulator.usage, NOW)
    assert cost.usd == pytest.approx((100 * 4 + 50_000 * 0.2 + 3 * 20) / MILLION)


@pytest.mark.parametrize(
    ("model", "day", "cache_read"),
    [
        ("claude-sonnet-5-5", "2026-10-06", 0.2),
        ("claude-sonnet-5-5", "2026-10-07", 0.1),
        ("gemini-4-argon", "2026-11-30", 0.1),
        ("gemini-4-argon", "2026-12-01", 0.2),
        ("gemini-3.7-flash", "2026-12-31", 0.075),
        ("gemini-3.7-flash", "2027-01-01", 0.15),
    ],
)
def test_the_price_is_that_of_the_requests_day(model, day, cache_read) -> None:
    cost = SHIPPED.cost(model, Usage(cache_read=MILLION), at(day))
    assert cost.usd == pytest.approx(cache_read)
    if day.endswith(("-07", "-01")):
        assert cost.row == f"{model}@{day}"
        assert SHIPPED.cost(model, Usage(cache_read=MILLION), at(day) - 1).row == model


@pytest.mark.parametrize(
    ("hour", "usd"),
    [("00:59:59", 0.66), ("01:00:00", 1.32), ("03:59:59", 1.32), ("04:00:00", 0.66), ("06:00:00", 1.32)],
)
def test_some_prices_hold_by_the_hour(hour, usd) -> None:
    cost = SHIPPED.cost("deepseek-v4-pro", Usage(input_tokens=MILLION), at(f"2026-11-20T{hour}"))
    assert cost.usd == pytest.approx(usd)


def test_a_long_prompt_reprices_the_whole_request() -> None:
    """Haiku 5.5: every token of a request whose prompt, caches included, has more than 100,000 tokens."""
    short = Usage(input_tokens=40_000, cache_read=50_000, cache_write_5m=10_000, output_tokens=1000)
    long = Usage(input_tokens=40_001, cache_read=50_000, cache_write_5m=10_000, output_tokens=1000)
    low = (40_000 * 0.1 + 50_000 * 0.01 + 10_000 * 0.125 + 1000 * 0.5) / MILLION
    high = (40_001 * 0.5 + 50_000 * 0.05 + 10_000 * 0.625 + 1000 * 2.5) / MILLION
    assert SHIPPED.cost("claude-haiku-5-5", short, NOW).usd == pytest.approx(low)
    found = SHIPPED.cost("claude-haiku-5-5", long, NOW)
    assert found.usd == pytest.approx(high)
    assert found.row == "claude-haiku-5-5/over-100000"
    # An answer however long never makes a request a long one.
    talkative = SHIPPED.cost("claude-haiku-5-5", Usage(output_tokens=MILLION), NOW)
    assert talkative.usd == pytest.approx(0.5)


def test_claude_4_6_lost_its_surcharge_for_long_prompts() -> None:
    usage = Usage(input_tokens=300_000)
    assert SHIPPED.cost("claude-opus-4-6", usage, at("2026-03-12")).usd == pytest.approx(3.0)
    assert SHIPPED.cost("claude-opus-4-6", usage, at("2026-03-13")).usd == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("model", "rates"),
    [
        ("claude-fable-5-2", (16, 80, 0.4, 20, 32)),
        ("claude-opus-5-5", (8, 40, 0.4, 10, 16)),
        ("claude-opus-5", (10, 50, 1, 12.5, 20)),
        ("claude-opus-4-8", (10, 50, 1, 12.5, 20)),
    ],
)
def test_fast_mode(model, rates) -> None:
    """The cache's factors stand on fast mode's input price."""
    cost = SHIPPED.cost(model, Usage(1, 1, 1, 1, 1, speed="fast"), NOW)
    assert cost.usd == pytest.approx(sum(rates) / MILLION)
    assert cost.row == f"{model}/fast"
    assert SHIPPED.cost(model, Usage(1, speed="standard"), NOW).row == model


def test_batches_cost_half_and_their_searches_do_not() -> None:
    usage = Usage(input_tokens=MILLION, web_search_requests=100)
    assert SHIPPED.cost("claude-opus-5-5", usage, NOW).usd == pytest.approx(4 + 1)
    assert SHIPPED.cost("claude-opus-5-5", usage, NOW, batch=True).usd == pytest.approx(2 + 1)
    by_tier = Usage(input_tokens=MILLION, service_tier="batch")
    assert SHIPPED.cost("claude-opus-5-5", by_tier, NOW).usd == pytest.approx(2)
    assert SHIPPED.cost("claude-opus-5-5", by_tier, NOW, batch=True).usd == pytest.approx(2)


def test_inference_in_one_place_costs_its_factor() -> None:
    def usage(geo: str) -> Usage:
        return Usage(input_tokens=MILLION, inference_geo=geo)

    assert SHIPPED.cost("claude-opus-5-5", usage("us"), NOW).usd == pytest.approx(4.4)
    assert SHIPPED.cost("claude-opus-5-5", usage("global"), NOW).usd == pytest.approx(4)
    assert SHIPPED.cost("claude-haiku-4-5", usage("not_available"), NOW).usd == pytest.approx(1)
    assert SHIPPED.cost("claude-opus-5-5", usage("moon"), NOW).usd is None


def test_each_iteration_is_billed_by_its_own_model_and_size() -> None:
    """API facts 1.5: the top-level figures leave compaction out; the bill is the sum over the iterations."""
    usage = Usage.of(
        {
            "input_tokens": 10,
            "output_tokens": 20,
            "speed": "fast",
            "server_tool_use": {"web_search_requests": 3},
            "iterations": [
                {"type": "compaction", "input_tokens": 60_000, "output_tokens": 2000},
                {"type": "message", "input_tokens": 10, "output_tokens": 20},
                {"type": "advisor_message", "model": "claude-haiku-5-5", "speed": "standard", "input_tokens": 60_000},
            ],
        }
    )
    cost = SHIPPED.cost("claude-opus-5-5", usage, NOW)
    opus = (60_010 * 8 + 2020 * 40) / MILLION
    haiku = 60_000 * 0.1 / MILLION  # each is its own prompt: together they would pass the border
    assert cost.usd == pytest.approx(opus + haiku + 3 * 0.01)
    assert cost.row == "claude-opus-5-5/fast + claude-haiku-5-5"


@pytest.mark.parametrize(
    ("model", "usage", "missing"),
    [
        ("claude-opus-9", Usage(1), "model claude-opus-9"),
        ("claude-opus-5-9", Usage(1), "model claude-opus-5-9"),  # never the price of claude-opus-5
        ("claude-opus", Usage(1), "model claude-opus"),
        ("us.anthropic.claude-opus-4-6-v1:0", Usage(1), "model us.anthropic.claude-opus-4-6-v1:0"),
        ("", Usage(1), "model unnamed"),
        ("claude-sonnet-5-5", Usage(1, speed="fast"), "fast mode of claude-sonnet-5-5"),
        ("claude-sonnet-5-5", Usage(1, speed="warp"), "speed warp of claude-sonnet-5-5"),
        ("claude-sonnet-5-5", Usage(1, service_tier="flex"), "service tier flex of claude-sonnet-5-5"),
        ("kimi-k2", Usage(cache_read=1), "cached tokens of kimi-k2"),
        ("kimi-k2", Usage(1, service_tier="batch"), "batches of kimi-k2"),
        ("kimi-k2", Usage(web_search_requests=1), "web searches of kimi-k2"),
        ("claude-opus-5-5", Usage(iterations=(Usage(1), Usage(1, model="other"))), "model other"),
    ],
)
def test_what_is_not_known_has_no_price(model, usage, missing) -> None:
    cost = SHIPPED.cost(model, usage, NOW)
    assert (cost.usd, cost.row, cost.missing) == (None, "", missing)


@pytest.mark.parametrize(
    ("spelling", "id"),
    [
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("claude-opus-5-5[1m]", "claude-opus-5-5"),
        ("claude-sonnet-4-6-20260101[1M]", "claude-sonnet-4-6"),
        ("claude-opus-4-20250514", "claude-opus-4-0"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4-0"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku"),
        ("anthropic/claude-sonnet-4.5", "claude-sonnet-4-5"),
        ("anthropic.claude-opus-4-6-v1:0", "claude-opus-4-6"),
        ("claude-haiku-4-5@20251001", "claude-haiku-4-5"),
        ("gpt-6-sol-2026-10-01", "gpt-6-sol"),
        ("models/gemini-3.7-flash", "gemini-3.7-flash"),
        ("glm-5.3", "GLM-5.3"),
        ("claude-opus-5-6-20270101", None),
        ("claude-opus-5-55", None),
        ("x" * 100_000, None),
    ],
)
def test_the_spellings_of_a_model(spelling, id) -> None:
    assert SHIPPED.resolve(spelling) == id


def test_windows() -> None:
    assert SHIPPED.window("claude-opus-5-5") == 1_000_000
    assert SHIPPED.window("claude-sonnet-4-5-20250929") == 200_000
    # The client takes 200k for Sonnet 4.6 unless it asked for the long window (client facts 4.2).
    assert SHIPPED.window("claude-sonnet-4-6") == 200_000
    assert SHIPPED.window("claude-sonnet-4-6", long=True) == 1_000_000
    assert SHIPPED.window("claude-sonnet-4-6[1m]") == 1_000_000
    assert SHIPPED.window("claude-opus-9") is None
    assert SHIPPED.window("kimi-k2") is None
    assert SHIPPED.max_output("claude-haiku-4-5") == 64_000
    assert SHIPPED.max_output("kimi-k2") is None


def test_the_shipped_file_is_compact_and_sound() -> None:
    import dbproxy.model

    path = Path(dbproxy.model.__file__).parent / "data" / "prices.json"
    assert path.stat().st_size < 60_000
    document = json.loads(path.read_text())
    assert SHIPPED.as_of == document["as_of"] >= "2026-11-20"
    for name, entry in document["models"].items():
        assert SHIPPED.resolve(name) == name
        for alias in entry.get("aliases", ()):
            assert SHIPPED.resolve(alias) is not None
        if entry["provider"] == "anthropic":
            for row in entry["prices"]:
                if name != "claude-3-haiku":
                    assert row["cache_write_5m"] == pytest.approx(1.25 * row["input"])
                    assert row["cache_write_1h"] == pytest.approx(2 * row["input"])
                assert row["cache_read"] < row["input"] < row["output"]
        for row in entry["prices"]:
            for dearer in [*row.get("over", []), *([row["fast"]] if "fast" in row else [])]:
                assert dearer["input"] >= row["input"]


def test_a_users_file_lies_over_the_shipped_one() -> None:
    prices = Prices.load(TOML.encode())
    for name in ("my-model", "MY-MODEL", "arn:my-own", "my-model-20260101"):
        assert prices.cost(name, Usage(MILLION, MILLION), NOW).usd == pytest.approx(3.5)
    assert prices.cost("my-model", Usage(1), NOW).row == "user:my-model"
    assert prices.window("my-model") == 32_000
    assert prices.cost("claude-opus-5-5", Usage(cache_read=MILLION), NOW).usd == pytest.approx(0.2)
    later = prices.cost("claude-opus-5-5", Usage(10), at("2026-12-01"))
    assert (later.usd, later.row) == (pytest.approx(30 / MILLION), "user:claude-opus-5-5@2026-12-01")
    assert prices.cost("claude-opus-5-5", Usage(11), at("2026-12-01")).usd == pytest.approx(66 / MILLION)
    # What the file does not mention stays, whatever it replaces: window and factors, but no price.
    assert prices.window("claude-opus-5-5") == 1_000_000
    assert prices.cost("claude-opus-5-5", Usage(1, inference_geo="us"), NOW).usd == pytest.approx(4.4 / MILLION)
    assert prices.cost("claude-opus-5-5", Usage(1, speed="fast"), NOW).usd is None
    assert prices.cost("claude-opus-5", Usage(1), NOW).row == "claude-opus-5"
    assert SHIPPED.cost("claude-opus-5-5", Usage(1), NOW).row == "claude-opus-5-5"


def test_the_example_of_the_page_on_usage_loads() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "usage.md"
    example = page.read_text().partition("```toml\n")[2].partition("```")[0]
    prices = Prices.load(example.encode())
    assert prices.cost("my-deployment", Usage(output_tokens=MILLION), NOW).usd == pytest.approx(5)
    assert prices.cost("claude-opus-5-5", Usage(200_001), at("2027-01-01")).usd == pytest.approx(200_001 * 6 / MILLION)


def test_a_users_file_may_be_json_and_may_name_a_snapshot() -> None:
    entry = {"input": 0, "output": 0, "hours": ["22:00-02:00"]}
    text = json.dumps({"models": {"claude-haiku-4-5-20251001": entry, "claude-opus-5": {"aliases": ["mine"]}}})
    prices = Prices.load(b"\xef\xbb\xbf" + text.encode())
    assert prices.window("claude-haiku-4-5-20251001") == 200_000
    assert prices.cost("claude-haiku-4-5-20251001", Usage(1), at("2026-11-20T23:00")).usd == 0
    assert prices.cost("claude-haiku-4-5-20251001", Usage(1), at("2026-11-20T01:59")).usd == 0
    assert prices.cost("claude-haiku-4-5-20251001", Usage(1), at("2026-11-20T02:00")).usd is None
    assert prices.cost("claude-haiku-4-5", Usage(1), NOW).row == "claude-haiku-4-5"
    assert prices.cost("mine", Usage(1), NOW).row == "claude-opus-5"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[models", "cannot be read"),
        ("{", "cannot be read"),
        ("\xff", "cannot be read"),
        ("[model.x]\ninput=1", "unknown key 'model', did you mean 'models'"),
        ("models = 3", "must be a table of models"),
        ("[models]\nx = 3", "must be a table of models"),
        ("[models.x]\ninput=1", "the price 'output' is missing"),
        ("[models.x]\ninput=1\nouput=2", "unknown key 'ouput', did you mean 'output'"),
        ("[models.x]\ninput=-1\noutput=2", "input must be a number, zero or more, not -1"),
        ("[models.x]\ninput=nan\noutput=2", "input must be a number"),
        ("[models.x]\ninput=true\noutput=2", "input must be a number"),
        ("[models.x]\ninput='1'\noutput=2", "input must be a number"),
        ("[models.x]\ncontext=-5", "context must be a whole number"),
        ("[models.x]\ninput=1\noutput=1\nprices=[]", "not in both"),
        ("[models.x]\nprices=[]", "must be a list of rows"),
        ("[models.x]\nprices=[3]", "a table was expected"),
        ("[models.x]\naliases='y'", "must be a list of names"),
        ("[models.x]\ngeo=3", "must be a table of factors"),
        ("[models.x]\ninput=1\noutput=1\nfrom='soon'", "'from' must be a date like"),
        ("[models.x]\ninput=1\noutput=1\nhours=['1-2']", "'hours' must be UTC times"),
        ("[models.x]\ninput=1\noutput=1\nover=3", "'over' must be a list"),
        ("[models.x]\ninput=1\noutput=1\nover=[{input=1, output=1}]", "tokens must be a whole number"),
        ("[models.x]\ninput=1\noutput=1\nfast={input=1}", "the price 'output' is missing"),
    ],
)
def test_a_bad_file_says_what_is_wrong_and_where(text, complaint) -> None:
    with pytest.raises(ConfigError) as raised:
        Prices.load(text.encode("latin-1"), "prices.toml")
    assert complaint in str(raised.value)
    assert "prices.toml" in str(raised.value)
    assert raised.value.hint


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_file_is_read_or_refused(data) -> None:
    try:
        Prices.load(data)
    except ConfigError:
        pass


COUNTS = st.integers(0, 10**7)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)


@given(USAGES, USAGES, st.sampled_from(["claude-opus-5-5", "claude-haiku-5-5"]))
def test_cost_is_never_negative_and_never_falls_with_more_tokens(usage, more, model) -> None:
    sum_ = Usage(*(getattr(usage, name) + getattr(more, name) for name in Usage.__slots__[:5]))
    low, high = (SHIPPED.cost(model, it, NOW).usd for it in (usage, sum_))
    assert low is not None
    assert high is not None
    assert 0 <= low <= high * (1 + 1e-9)
    assert math.isfinite(high)


@given(st.text(max_size=60), USAGES, st.floats(-1e12, 1e12))
def test_any_model_and_time(model, usage, when) -> None:
    cost = SHIPPED.cost(model, usage, when)
    assert (cost.usd is None) == bool(cost.missing)
    SHIPPED.window(model)
