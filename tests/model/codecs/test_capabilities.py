"""What models can do: the table as shipped agrees with itself and with the table of prices; overrides are checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.errors import ConfigError
from dbproxy.model.codecs import effort
from dbproxy.model.codecs.capabilities import Capabilities, capabilities

DATA = Path(capabilities.__wrapped__.__code__.co_filename).parents[1] / "data"
TABLE = json.loads((DATA / "capabilities.json").read_text("utf-8"))
PRICES = json.loads((DATA / "prices.json").read_text("utf-8"))["models"]
SECTIONS = {name: section for name, section in TABLE.items() if name != "as_of"}
#: Sections by the name that the table of prices has for whom they belong to.
OWNERS = {
    "openai": "openai",
    "google": "gemini",
    "anthropic": "anthropic",
    "deepseek": "deepseek",
    "moonshotai": "moonshot",
    "zai": "zai",
    "minimax": "minimax",
}
EVERY_ROW = [
    (name, row)
    for name, section in SECTIONS.items()
    for row in [{"match": ["(defaults)"], **section["defaults"]}, *section["models"]]
]


def test_every_provider_has_a_section():
    assert set(SECTIONS) == {
        *("openai", "gemini", "anthropic", "deepseek", "moonshot", "zai", "minimax", "openrouter"),
        *("ollama", "lmstudio", "vllm", "llama.cpp", "messages", "compatible"),
    }


@pytest.mark.parametrize(("section", "row"), EVERY_ROW, ids=lambda value: value if isinstance(value, str) else "")
def test_every_row_is_sound(section, row):
    where = f"{section}: {row['match']}"
    assert row.get("source"), where
    assert all(pattern == pattern.lower() for pattern in row["match"]), f"{where}: ids are compared in lower case"
    values = {name: value for name, value in row.items() if name not in ("match", "source", "like")}
    assert values or "like" in row, f"{where} says nothing"
    found = Capabilities().overridden(values, where)  # raises for a name or a value that does not exist
    assert found.api in ("messages", "chat", "responses", "gemini")
    assert found.reasoning in ("", "reasoning_content", "reasoning", "think")
    assert found.thinking in ("", "adaptive", "enabled", "budget", "level")
    assert list(found.efforts) == sorted(found.efforts, key=effort.WORDS.index), where
    assert row.get("like", section) in SECTIONS, where


@pytest.mark.parametrize(
    ("owner", "model", "known"),
    [
        (entry["provider"], name, entry)
        for main, entry in PRICES.items()
        if entry.get("provider") in OWNERS and "context" in entry
        for name in (main, *entry.get("aliases", ()))
        # Open weights, which OpenAI does not serve; and ids with a dash for the dot, which it does not know.
        if not name.startswith(("gpt-oss", "gpt-5-1", "gpt-5-2-", "gpt-5-3", "gpt-5-4", "gpt-5-5", "gpt-5-6"))
    ],
)
def test_no_window_is_larger_than_the_table_of_prices_knows(owner, model, known):
    can = capabilities(OWNERS[owner], model)
    assert 0 < can.context <= known["context"]
    # What is kept for the answer is the only difference, chat models of OpenAI aside (their aliases tell no window).
    if "chat" not in model and "gpt-5.3" not in model and owner != "deepseek":
        assert can.context >= known["context"] - max(can.output, 2000)
    if "output" in known:
        assert can.output == known["output"]


@pytest.mark.parametrize("model", [name for name, entry in PRICES.items() if entry.get("provider") == "anthropic"])
def test_fast_mode_is_known_where_it_has_a_price(model):
    if "mythos" not in model:  # not offered to everybody
        fast = any("fast" in row for row in PRICES[model].get("prices", [PRICES[model]]))
        assert ("speed" not in capabilities("anthropic", model).refuses) == fast


@pytest.mark.parametrize(
    ("model", "context", "output", "efforts"),
    [
        ("gpt-3.5-turbo", 16385, 4096, ()),
        ("gpt-4o", 128000, 16384, ()),
        ("gpt-4o-mini-2024-07-18", 128000, 16384, ()),
        ("gpt-4.1", 1000000, 32768, ()),
        ("o1", 200000, 100000, ("low", "medium", "high")),
        ("o4-mini", 200000, 100000, ("low", "medium", "high")),
        ("gpt-5", 272000, 128000, ("minimal", "low", "medium", "high")),
        ("gpt-5-2025-08-07", 272000, 128000, ("minimal", "low", "medium", "high")),
        ("gpt-5.1", 272000, 128000, ("none", "low", "medium", "high")),
        ("gpt-5.4", 922000, 128000, ("none", "low", "medium", "high", "xhigh")),
        ("gpt-5.6-terra", 922000, 128000, ("none", "low", "medium", "high", "xhigh", "max")),
        ("gpt-6.1-sol", 922000, 128000, ("none", "low", "medium", "high", "xhigh", "max")),
    ],
)
def test_openai_models(model, context, output, efforts):
    can = capabilities("openai", model)
    assert (can.context, can.output, can.efforts) == (context, output, efforts)
    reasons = model.startswith(("o", "gpt-5", "gpt-6"))
    assert (can.max_tokens_key == "max_completion_tokens") == reasons
    assert ({"temperature", "top_p", "stop"} <= can.refuses) == reasons


@pytest.mark.parametrize("model", ["gpt-5.2", "gpt-5.4", "gpt-5.4-mini", "gpt-5.5", "gpt-5.6-sol", "gpt-6-luna"])
def test_case_27_the_families_that_want_responses_for_tools_and_effort(model):
    assert not capabilities("openai", model).tools_with_effort
    assert capabilities("openai", "gpt-5").tools_with_effort


@pytest.mark.parametrize("model", ["o1-pro", "o3-pro", "gpt-5-codex", "gpt-5-pro", "gpt-5.3-codex", "gpt-5.5-pro"])
def test_models_of_responses_alone(model):
    assert capabilities("openai", model).api == "responses"


@pytest.mark.parametrize(
    ("model", "kind", "weakest"),
    [
        ("gemini-2.5-flash", "budget", "none"),
        ("gemini-2.5-pro", "budget", "minimal"),
        ("gemini-3-pro-preview", "level", "low"),
        ("gemini-3.5-flash", "level", "minimal"),
        ("gemini-3.8-flash", "level", "low"),
        ("gemini-4-argon", "level", "low"),
    ],
)
def test_gemini_thinks_by_budget_or_by_level(model, kind, weakest):
    can = capabilities("gemini", model)
    assert (can.thinking, can.efforts[0], can.output) == (kind, weakest, 65536)


@pytest.mark.parametrize(
    ("model", "thinking", "efforts"),
    [
        ("claude-opus-5-5", "adaptive", ("low", "medium", "high", "xhigh", "max")),
        ("claude-fable-5-2", "adaptive", ("low", "medium", "high", "xhigh", "max")),
        ("claude-haiku-5-5", "adaptive", ("none", "low", "medium", "high", "xhigh", "max")),
        ("claude-sonnet-4-6", "adaptive", ("none", "low", "medium", "high", "max")),
        ("claude-opus-4-5-20251101", "enabled", ("none", "low", "medium", "high")),
        ("claude-haiku-4-5-20251001", "enabled", ("none",)),
        ("claude-3-5-haiku", "", ()),
    ],
)
def test_claude_thinks_in_one_way_each(model, thinking, efforts):
    can = capabilities("anthropic", model)
    assert (can.thinking, can.efforts) == (thinking, efforts)


def test_servers_on_this_machine_promise_nothing():
    for server in ("ollama", "lmstudio", "vllm", "llama.cpp", "compatible", "a name that has no section"):
        can = capabilities(server, "some-model")
        assert (can.context, can.output, can.images, can.documents) == (0, 0, False, False), server
        assert not can.reliable_json
        assert can.tools
    assert capabilities("ollama", "qwen3-vl:8b").images


def test_case_35_thoughts_that_must_come_back_are_marked():
    for section, model in (
        ("deepseek", "deepseek-v4-pro"),
        ("moonshot", "kimi-k2.6"),
        ("compatible", "deepseek-v4-pro"),
    ):
        can = capabilities(section, model)
        assert (can.reasoning, can.echo) == ("reasoning_content", True)


def test_a_model_passed_on_by_another_server_is_the_same_but_for_the_dialect():
    home, away = capabilities("anthropic", "claude-opus-4-5"), capabilities("openrouter", "anthropic/claude-opus-4.5")
    assert (away.context, away.output, away.thinking) == (home.context, home.output, home.thinking)
    assert (away.api, away.family, away.web_search) == ("messages", "", False)
    assert capabilities("openrouter", "openai/gpt-6-sol:floor").context == 922000
    gateway = capabilities("compatible", "gpt-5.4")
    assert gateway.api == "chat"
    assert gateway.refuses == capabilities("openai", "gpt-5.4").refuses | capabilities("compatible", "x").refuses


def test_overrides_win_key_by_key():
    can = capabilities("openai", "gpt-4o").overridden({"output": 4096, "efforts": ["low"], "refuses": ["stop"]}, "here")
    assert (can.output, can.efforts, can.refuses, can.context) == (4096, ("low",), frozenset({"stop"}), 128000)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"contxt": 1}, "unknown capability 'contxt'"),
        ({"context": "many"}, "context must be a whole number"),
        ({"context": True}, "context must be a whole number"),
        ({"context": -1}, "context must be a whole number"),
        ({"images": 1}, "images must be true or false"),
        ({"efforts": "low"}, "efforts must be a list"),
        ({"refuses": [1]}, "refuses must be a list"),
        ({"api": 1}, "api must be a text"),
    ],
)
def test_a_wrong_override_says_what_is_wrong_and_where(changes, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Capabilities().overridden(changes, "[providers.x]")
    assert "[providers.x]" in str(caught.value)


@given(st.sampled_from([*SECTIONS, "nowhere"]), st.text(max_size=40))
def test_any_model_has_an_answer(section, model):
    can = capabilities(section, model)
    assert effort.nearest("max", can.efforts) in ("", *can.efforts)
