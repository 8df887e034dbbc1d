"""Models as people write them: which provider is meant, and what is said where nobody can know."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dbproxy.errors import ConfigError
from dbproxy.model.codecs.targets import bare_model, parse_target

KNOWN = ("openai", "gemini", "anthropic", "deepseek", "moonshot", "zai", "minimax", "openrouter", "ollama", "MyGateway")


@pytest.mark.parametrize(
    "text",
    ["gpt-5[1m]", "openai:gpt-5", "openai,gpt-5", "openai/gpt-5", " openai : gpt-5[1M] ", "OpenAI:gpt-5", "gpt-5"],
)
def test_case_37_every_spelling_is_the_same_model(text):
    assert parse_target(text, KNOWN) == ("openai", "gpt-5")


@pytest.mark.parametrize(
    ("text", "provider", "model"),
    [
        ("o1", "openai", "o1"),
        ("o3-mini", "openai", "o3-mini"),
        ("o4-mini", "openai", "o4-mini"),
        ("chatgpt-4o-latest", "openai", "chatgpt-4o-latest"),
        ("codex-mini-latest", "openai", "codex-mini-latest"),
        ("gpt-6.1-sol", "openai", "gpt-6.1-sol"),
        ("ft:gpt-4o:org::id", "openai", "ft:gpt-4o:org::id"),
        ("gemini-3.8-flash", "gemini", "gemini-3.8-flash"),
        ("models/gemini-2.5-pro", "gemini", "models/gemini-2.5-pro"),
        ("gemini-2.5-flash-preview:thinking", "gemini", "gemini-2.5-flash-preview:thinking"),
        ("claude-haiku-4-5", "anthropic", "claude-haiku-4-5"),
        ("deepseek-v4-pro", "deepseek", "deepseek-v4-pro"),
        ("kimi-k3", "moonshot", "kimi-k3"),
        ("moonshot-v1-128k", "moonshot", "moonshot-v1-128k"),
        ("glm-5.3", "zai", "glm-5.3"),
        ("GLM-5.3", "zai", "GLM-5.3"),
        ("MiniMax-M3", "minimax", "MiniMax-M3"),
        ("haiku", "anthropic", "claude-haiku-5-5"),
        ("Opus[1m]", "anthropic", "claude-opus-5-5"),
        ("anthropic:sonnet", "anthropic", "claude-sonnet-5-5"),
        ("anthropic/fable", "anthropic", "claude-fable-5-2"),
        ("openrouter/anthropic/claude-opus-5.5", "openrouter", "anthropic/claude-opus-5.5"),
        ("openrouter:openai/gpt-6-sol:floor", "openrouter", "openai/gpt-6-sol:floor"),
        ("openrouter:opus", "openrouter", "opus"),
        ("ollama:qwen3:8b", "ollama", "qwen3:8b"),
        ("ollama/qwen3:8b", "ollama", "qwen3:8b"),
        ("mygateway:gpt-5", "MyGateway", "gpt-5"),
        ("anthropic:claude-opus-5-5[1m]", "anthropic", "claude-opus-5-5"),
    ],
)
def test_what_is_meant(text, provider, model):
    assert parse_target(text, KNOWN) == (provider, model)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no model is named"),
        ("[1m]", "no model is named"),
        ("openai", "is a provider"),
        ("openai:", "names no model. Write openai:MODEL"),
        ("openai:[1m]", "names no model"),
        ("groq:llama-4", "[providers.groq]"),
        ("qwen3:8b", "as in ollama:qwen3:8b"),
        ("qwen3", "Write PROVIDER:qwen3, as in ollama:qwen3"),
        ("gpt-oss-20b", "does not tell which provider"),  # OpenAI's name, and everybody's server but theirs
        ("ollama-model", "does not tell which provider"),
    ],
)
def test_what_nobody_can_know_is_an_error_with_advice(text, said):
    with pytest.raises(ConfigError) as caught:
        parse_target(text, KNOWN)
    assert said in str(caught.value)
    assert caught.value.hint


def test_only_known_providers_count_in_front():
    assert parse_target("gpt-5", ()) == ("openai", "gpt-5")
    with pytest.raises(ConfigError, match="no provider 'openai' is known"):
        parse_target("openai:gpt-5", ())


def test_a_window_is_no_part_of_the_id():
    assert bare_model("claude-opus-5-5[1m]") == "claude-opus-5-5"
    assert bare_model("model[beta]") == "model[beta]"


@given(st.text(max_size=40) | st.sampled_from(KNOWN).flatmap(lambda name: st.text(max_size=20).map(f"{name}:".__add__)))
@example("gpt-5[1m] [1m]")
@example("ollama: [1m]:x")
def test_it_answers_or_says_why(text):
    provider, model, advice = answered(text)
    assert advice or (provider in KNOWN and model and model == bare_model(model))


def answered(text: str) -> tuple[str, str, str]:
    try:
        return (*parse_target(text, KNOWN), "")
    except ConfigError as error:
        return "", "", error.hint
