"""Requests to another Claude: at the client's own upstream byte for byte, with a key of ours without its account."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dbproxy_providers import Providers
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.api import App, ProviderCall
from dbproxy.api.codecs import Translation, Unroutable, join_signature, read_request
from dbproxy.api.dialects import NATIVE

SYSTEM = (
    b'[{"type":"text","text":"x-anthropic-billing-header: cc_version=2.1.329.7b2; cch=abcde;"}, {"type": "text",'
    b' "text":"You are a Claude agent.", "cache_control":{"type":"ephemeral","scope":"global"}}]'
)
#: As the client writes it, and oddly spaced, so that what was written anew shows.
BODY = (
    b'{ "model":"claude-opus-5-5","max_tokens" : 32000,\n "messages":[{"role":"user","content":"a \\u00e9 \xc3\xa9"} ],'
    b'"system":' + SYSTEM + b', "unknown_key": {"x" : [1.50, 1e3, "\\ud83d"]}, "stream":true }'
)


def provider(table: object = None, **env: str) -> Any:
    class Settings:
        def settings(self, exchange: object) -> dict[str, object]:
            return {"providers": {} if table is None else {"anthropic": table}}

    app = App("1.2.3", None, lambda event, **fields: None, Settings())  # type: ignore[arg-type]
    return {found.name: found for found in Providers(lambda: env).providers(app)}["anthropic"]


def call(body: bytes, model: str, table: object = None, **env: str) -> tuple[ProviderCall, Translation]:
    asked, found = read_request(body), provider(table, **env)
    can = found.capabilities(model)
    translation = Translation(asked.model, model, "routed_x", capabilities=can, family=can.family or "anthropic")
    return found.call(asked, translation), translation


def written(**values: object) -> bytes:
    plain = {"model": "claude-opus-5-5", "max_tokens": 32000, "messages": [{"role": "user", "content": "a"}]}
    return json.dumps({**plain, **values}).encode()


def test_case_2_and_29_only_the_model_differs():
    made, translation = call(BODY, "claude-opus-5")
    assert made.as_client
    assert (made.url, made.codec, len(made.fields), made.secrets) == ("", None, 0, ())
    assert made.body == BODY.replace(b'"claude-opus-5-5"', b'"claude-opus-5"')
    assert SYSTEM in made.body
    assert translation.notes == []


def test_case_37_the_clients_mark_falls_away_and_nothing_else():
    for model in ("claude-opus-5-5", "claude-opus-5-5[1m]"):
        assert call(BODY.replace(b"opus-5-5", b"opus-5-5[1m]"), model)[0].body == BODY
    assert call(BODY, "claude-opus-5-5")[0].body == BODY


def test_what_another_model_wants_is_all_that_changes():
    body = BODY.replace(
        b'"stream":true }',
        b'"thinking" : {"type":"adaptive"},  "output_config":{"effort":"xhigh"},"temperature":1, "stream":true }',
    ).replace(b": 32000", b": 128000")
    made, translation = call(body, "claude-haiku-4-5")
    found, before = json.loads(made.body), json.loads(body)
    assert found["model"] == "claude-haiku-4-5"
    assert found["max_tokens"] == 64000
    assert found["thinking"] == {"type": "enabled", "budget_tokens": 32768}
    assert "output_config" not in found
    assert {**found, **{name: before[name] for name in ("model", "max_tokens", "thinking", "output_config")}} == before
    # Members and blanks around them are as they were.
    head = (
        body[: body.index(b'"thinking"')].replace(b"claude-opus-5-5", b"claude-haiku-4-5").replace(b"128000", b"64000")
    )
    assert made.body.startswith(
        head + b'"thinking" : {"type":"enabled","budget_tokens":32768},"temperature":1, "stream"'
    )
    assert len(translation.notes) == 3


@pytest.mark.parametrize(
    ("model", "asked", "thinking", "effort"),
    [
        (
            "claude-opus-5",
            {"type": "adaptive", "display": "omitted"},
            {"type": "adaptive", "display": "omitted"},
            "xhigh",
        ),
        ("claude-sonnet-4-6", {"type": "adaptive"}, {"type": "adaptive"}, "high"),
        ("claude-opus-4-5", {"type": "adaptive"}, {"type": "enabled", "budget_tokens": 31999}, "high"),
        ("claude-opus-5", {"type": "enabled", "budget_tokens": 9000}, {"type": "adaptive"}, "xhigh"),
        ("claude-fable-5-2", {"type": "disabled"}, None, "xhigh"),
        ("claude-haiku-5-5", {"type": "disabled"}, {"type": "disabled"}, "high"),
    ],
)
def test_thinking_and_effort_as_the_model_takes_them(model, asked, thinking, effort):
    body = written(thinking=asked, output_config={"effort": "xhigh"}, max_tokens=40000)
    found = json.loads(call(body, model)[0].body)
    if thinking is not None and "budget_tokens" in thinking:
        thinking = {**thinking, "budget_tokens": found["thinking"]["budget_tokens"]}
        assert 1024 <= thinking["budget_tokens"] < 40000
    assert found.get("thinking") == thinking
    assert found["output_config"] == {"effort": effort}


def test_a_key_that_the_other_way_of_thinking_needs_is_added():
    found = call(
        written(model="claude-haiku-4-5", thinking={"type": "enabled", "budget_tokens": 31999}), "claude-opus-5"
    )
    assert json.loads(found[0].body)["output_config"]["effort"] in ("high", "xhigh")


def test_case_33_what_others_thought_is_taken_out_and_the_rest_of_the_history_stays():
    foreign = {"type": "thinking", "thinking": "hm", "signature": join_signature("openai", "gAAAA")}
    own = {"type": "thinking", "thinking": "so", "signature": "EqQBCkgI"}
    history = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [own, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": [foreign, {"type": "text", "text": "d"}]},
        {"role": "user", "content": "e"},
    ]
    pieces = [json.dumps(message, indent=1).encode() for message in history]
    body = b'{"model": "claude-opus-5-5", "max_tokens": 9, "messages": [' + b" , ".join(pieces) + b"]}"
    for model in ("claude-opus-5", "claude-opus-5-5"):
        made = call(body, model)[0].body
        assert b"gAAAA" not in made
        assert json.loads(made)["messages"][3]["content"] == [{"type": "text", "text": "d"}]
        for kept in (0, 1, 2, 4):
            assert pieces[kept] in made, kept


def test_system_messages_become_the_users_where_they_are_refused():
    history = [
        {"role": "user", "content": "a"},
        {"role": "system", "content": "env"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    kept, translation = call(written(messages=history), "claude-opus-4-8")
    assert json.loads(kept.body)["messages"] == history
    assert translation.notes == []
    made, translation = call(written(messages=history), "claude-haiku-4-5")
    assert [message["role"] for message in json.loads(made.body)["messages"]] == ["user", "assistant", "user"]
    assert b"env" in made.body
    assert len(translation.notes) == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"claude-opus-5-5","model":"x","messages":[]}',
        b'{"mod\\u0065l":"claude-opus-5-5","messages":[]}',
    ],
)
def test_a_body_that_reads_two_ways_is_left_alone(body):
    with pytest.raises(Unroutable, match="cannot be changed safely"):
        call(body, "claude-opus-5")


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=6).map("x_".__add__), _json, max_size=5), st.booleans())
def test_whatever_else_a_body_holds_stays(others, spaced):
    body = json.dumps(
        {**others, "model": "claude-opus-5-5", "messages": [], "max_tokens": 5},
        separators=(" , ", "  : ") if spaced else (",", ":"),
        ensure_ascii=spaced,
    )
    made = call(body.encode(), "claude-opus-5")[0].body
    assert made == body.replace('"claude-opus-5-5"', '"claude-opus-5"').encode()


# ---- with a key of our own


def test_a_key_or_an_address_makes_it_a_provider_like_others():
    made, _ = call(written(stream=True), "claude-haiku-4-5", {"key_env": "K"}, K="own-key")
    assert not made.as_client
    assert (made.url, made.codec, made.secrets) == ("https://api.anthropic.com/v1/messages", NATIVE, ("own-key",))
    assert made.fields.get(b"x-api-key") == b"own-key"
    made, _ = call(written(), "claude-haiku-4-5", {"base_url": "https://gw.example/x"})
    assert made.url == "https://gw.example/x/v1/messages"
    assert b"x-api-key" not in made.fields.names


def test_a_key_that_is_not_there_never_turns_into_the_clients_own():
    found = provider({"key_env": "K"}, ANTHROPIC_API_KEY="client")
    assert found.unready() == "the variable K is not set"
    with pytest.raises(Unroutable):
        call(written(), "claude-haiku-4-5", {"key_env": "K"}, ANTHROPIC_API_KEY="client")
    assert "no key" in provider({"base_url": "https://api.anthropic.com"}).unready()


def test_case_28_with_our_key_the_clients_account_stays_at_home():
    account = "11111111-2222-3333-4444-555555555555"
    user = json.dumps({"device_id": "d" * 64, "account_uuid": account, "session_id": "s"})
    body = written(metadata={"user_id": user}, safeguards=[{"type": "x"}], fallback_credit_token="t", unknown_key=1)
    made, _ = call(body, "claude-haiku-4-5", {"key_env": "K"}, K="own-key")
    found = json.loads(made.body)
    assert account.encode() not in made.body
    assert len(found["metadata"]["user_id"]) == 32
    assert {"safeguards", "fallback_credit_token"}.isdisjoint(found)
    assert found["unknown_key"] == 1
    assert b"anthropic-beta" not in made.fields.names


def test_case_40_the_betas_are_those_of_the_body():
    body = written(
        system=json.loads(SYSTEM),
        thinking={"type": "adaptive", "display": "updates", "block_binding": {}},
        context_management={"edits": [{"type": "clear_thinking_20251015"}]},
        output_config={"task_budget": {"type": "tokens", "total": 1}},
        messages=[
            {"role": "user", "content": "a"},
            {
                "role": "system",
                "content": [{"type": "tool_removal", "name": "x"}],
                "output_config": {},
                "clear_at": "never",
            },
        ],
    )
    made, _ = call(body, "claude-opus-5-5", {"key_env": "K"}, K="own-key")
    betas = (made.fields.get(b"anthropic-beta") or b"").decode().split(",")
    assert sorted(betas) == [
        "context-management-2025-06-27",
        "mid-conversation-output-config-2026-07-01",
        "mid-conversation-system-clear-at-2026-08-21",
        "mid-conversation-tool-changes-2026-07-01",
        "prompt-caching-scope-2026-01-05",
        "task-budgets-2026-03-13",
        "thinking-binding-controls-2026-08-01",
        "thinking-display-updates-2026-08-18",
    ]
