"""What a target's text means, when a rule is refused, and which requests a target cannot take."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from dbproxy_subagent_routing.rules import read_rules
from dbproxy_subagent_routing.targets import (
    NO_KEY,
    auto_mode,
    by_own_model,
    is_foreign_name,
    meant,
    objection,
    reasons,
    refusal,
    rule_of_file,
    too_long_to_sum_up,
    unusable,
)

from dbproxy.api import AgentFile, ProviderCall, ProviderLimits, Target
from dbproxy.api.codecs import Capabilities, Request, prompt_tokens, read_request


@dataclass
class Provider:
    name: str
    not_ready: str = ""
    keyless: bool = False
    declines: str = ""
    can: Capabilities = field(default_factory=Capabilities)
    limits: ProviderLimits = field(default_factory=ProviderLimits)

    def unready(self) -> str:
        if self.not_ready == "raise":
            raise OSError("a key file that went away, at a place that is nobody's business")
        return self.not_ready

    def capabilities(self, model: str) -> Capabilities:
        return self.can

    def decline(self, request: Request, model: str) -> str:
        if self.declines == "raise":
            raise ZeroDivisionError
        return self.declines

    def call(self, request: Request, translation: object) -> ProviderCall:
        raise NotImplementedError


def known(*providers: Provider) -> dict[str, Provider]:
    return {provider.name: provider for provider in providers}


OPENAI, CLAUDE, BARE = Provider("openai"), Provider("anthropic"), Provider("gemini", "GEMINI_API_KEY is not set")
BROKEN = Provider("broken", "raise")
ALL = known(OPENAI, CLAUDE, BARE, BROKEN)


def request(*, tokens: int = 10, max_tokens: int | None = 100, **more: object) -> Request:
    text = "x" * round(3.5 * tokens)
    body = {"model": "claude-opus-5-5", "messages": [{"role": "user", "content": text}], **more}
    return read_request(json.dumps({**body, "max_tokens": max_tokens} if max_tokens is not None else body).encode())


# ---- what is meant


@pytest.mark.parametrize(
    ("text", "target", "said"),
    [
        ("openai:gpt-5.5", "openai:gpt-5.5", ""),
        ("gpt-4o", "openai:gpt-4o", ""),
        ("gemini:gemini-3", "gemini:gemini-3", "GEMINI_API_KEY is not set"),
        ("groq:llama", None, "no provider 'groq' is known"),
        ("llama", None, "Write PROVIDER:llama"),
        ("deepseek-chat", "deepseek:deepseek-chat", "there is no provider deepseek"),
        ("broken:x", "broken:x", "the provider failed: OSError"),
    ],
)
def test_a_target_or_why_not(text, target, said):
    one = meant(text, ALL)
    assert (str(one.target) if one.target else None) == target
    assert said in one.reason
    assert bool(said) == bool(one.reason)
    assert "nobody's business" not in one.reason


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("openai:gpt-5.5", ""),
        ("claude", ""),
        ("Claude", ""),
        (["gemini:gemini-3", "openai:gpt-5.5"], ""),
        ("gemini:gemini-3", "GEMINI_API_KEY is not set"),
        (["gemini:a", "gemini:b"], "GEMINI_API_KEY is not set"),
        (["gemini:a", "groq:b"], "GEMINI_API_KEY is not set; 'groq:b': no provider"),
        ([], "it names no target"),
    ],
)
def test_case_39_a_rule_is_refused_if_none_of_its_targets_can_be_asked(value, said):
    (rule,) = read_rules({"code-reviewer": value})
    assert refusal(rule, ALL).startswith(said)
    assert bool(refusal(rule, ALL)) == bool(said)


def test_reasons_are_said_once():
    assert reasons(["a", "b", "a"]) == "a; b"


# ---- what an agent's file and a request itself may say


@pytest.mark.parametrize(
    ("route", "model", "rule"),
    [
        ("openai:gpt-5.5", "", "route in r.md = openai:gpt-5.5"),
        ("openai:gpt-5.5", "gemini:x", "route in r.md = openai:gpt-5.5"),
        ("nonsense", "", "route in r.md = nonsense"),  # refused with a reason, not passed over
        ("", "openai:gpt-5.5", "model in r.md = openai:gpt-5.5"),
        ("", "gpt-4o", "model in r.md = gpt-4o"),
        ("", "anthropic:claude-haiku-4-5", "model in r.md = anthropic:claude-haiku-4-5"),
        ("", "deepseek-chat", "model in r.md = deepseek-chat"),
        ("", "haiku", None),
        ("", "inherit", None),
        ("", "claude-haiku-4-5", None),
        ("", "claude-opus-5-5[1m]", None),
        ("", "us.anthropic.claude-opus-5-5-v1:0", None),
        ("", "", None),
    ],
)
def test_what_an_agents_file_says(route, model, rule):
    made = rule_of_file(AgentFile("reviewer", "You review.", "project", "r.md", model, route), ALL)
    assert (str(made) if made is not None else None) == rule


@pytest.mark.parametrize(
    ("model", "moved"),
    [
        ("openai:gpt-5.5", True),
        ("openai,gpt-5.5", True),
        ("OpenAI: gpt-5.5[1m]", True),
        ("openai/gpt-5.5", False),  # an id of the upstream's own, for all we know
        ("anthropic/claude-opus-5.5:beta", False),
        ("gpt-5.5", False),
        ("groq:llama", False),
        ("claude-opus-5-5", False),
        ("", False),
    ],
)
def test_a_request_may_ask_for_a_providers_model_itself(model, moved):
    found = by_own_model(model, ALL)
    assert (found is not None) is moved
    if found is not None:
        assert meant(found.rule.targets[0], ALL).target == Target("openai", "gpt-5.5")


# ---- what a target cannot take

TARGET = Target("openai", "gpt-5.5")


def test_case_39_a_key_of_ours_is_for_requests_that_prove_whose_they_are():
    assert objection(TARGET, OPENAI, request(), authorised=True) == ""
    assert objection(TARGET, OPENAI, request(), authorised=False) == NO_KEY
    assert objection(TARGET, Provider("ollama", keyless=True), request(), authorised=False) == ""
    assert unusable(TARGET, ALL, authorised=True) == ""
    assert unusable(TARGET, ALL, authorised=False) == NO_KEY
    assert unusable(Target("ollama", "x"), known(Provider("ollama", keyless=True)), authorised=False) == ""
    assert unusable(Target("gemini", "x"), ALL, authorised=True) == "GEMINI_API_KEY is not set"
    assert unusable(Target("gone", "x"), ALL, authorised=True) == "there is no provider gone"


def test_what_the_provider_cannot_do():
    assert objection(TARGET, Provider("openai", declines="a PDF"), request(), authorised=True) == "a PDF"
    failed = objection(TARGET, Provider("openai", declines="raise"), request(), authorised=True)
    assert failed == "the provider failed: ZeroDivisionError"


@pytest.mark.parametrize(
    ("context", "output", "tokens", "max_tokens", "fits"),
    [
        (0, 0, 900_000, 64_000, True),  # nobody knows its window
        (1000, 0, 700, 64_000, True),  # a quarter at most is kept free
        (1000, 0, 760, 64_000, False),
        (1000, 0, 760, 100, True),
        (1000, 0, 950, 100, False),
        (1000, 100, 850, 64_000, True),
        (1000, 100, 950, 64_000, False),
        (1000, 900, 700, 64_000, True),
        (1000, 0, 700, None, True),
        (1000, 0, 800, None, False),
    ],
)
def test_prompt_and_answer_have_to_fit_the_window(context, output, tokens, max_tokens, fits):
    can = Capabilities(context=context, output=output)
    asked = request(tokens=tokens, max_tokens=max_tokens)
    assert abs(prompt_tokens(asked) - tokens) <= 10
    said = objection(TARGET, Provider("openai", can=can), asked, authorised=True)
    assert (said == "") is fits
    if not fits:
        assert said.startswith("the context is too large for openai:gpt-5.5: about ")
        assert said.endswith(" of answer, of 1,000")


@pytest.mark.parametrize(
    ("context", "trigger", "fits"),
    [
        (0, "auto", True),
        (0, "reactive", False),
        (50_000, "manual", True),
        (48_500, "", True),
        (47_500, "auto", False),
        (900_000, "reactive", False),
    ],
)
def test_a_history_is_summed_up_where_it_grew_if_it_fits(context, trigger, fits):
    provider = Provider("openai", can=Capabilities(context=context))
    said = too_long_to_sum_up(TARGET, provider, request(tokens=40_000, max_tokens=64_000), trigger)
    assert (said == "") is fits


def test_the_reason_of_auto_mode_names_the_tool():
    assert "each use of Bash" in auto_mode("Bash")


@pytest.mark.parametrize(
    ("model", "window", "foreign"),
    [
        ("claude-opus-5-5", 1_000_000, False),
        ("Claude-Opus-5-5", 1_000_000, False),
        ("claude-on-gpt", 0, True),
        ("gpt-4o", 128_000, True),
        ("openai:gpt-5", 0, True),
    ],
)
def test_what_is_no_name_of_claudes(model, window, foreign):
    assert is_foreign_name(model, window) is foreign
