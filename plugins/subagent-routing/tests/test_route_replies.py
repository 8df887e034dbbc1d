"""What is answered here has the shape of the Messages API's own answers."""

from __future__ import annotations

import json

import anthropic
import pytest
from dbproxy_subagent_routing.replies import Alias, as_it_came, more_models, one_model, thread_refused, token_count

from dbproxy.api import Fields, LocalResponse, Target
from dbproxy.api.codecs import Capabilities

GPT = Target("openai", "gpt-5.5")
ALIAS = Alias("claude-on-gpt", GPT, Capabilities(context=400_000, output=128_000))
UPSTREAM = {
    "data": [{"type": "model", "id": "claude-opus-5-5", "display_name": "Opus", "created_at": "2026-01-01T00:00:00Z"}],
    "has_more": False,
    "first_id": "claude-opus-5-5",
    "last_id": "claude-opus-5-5",
}


def said(response: LocalResponse) -> dict[str, object]:
    assert response.fields.get(b"content-type") == b"application/json"
    found = json.loads(response.body)
    assert isinstance(found, dict)
    return found


def test_a_thread_is_refused_in_the_words_that_the_client_knows():
    response = thread_refused(GPT)
    assert response.status == 400
    error = said(response)["error"]
    assert isinstance(error, dict)
    assert error["type"] == "invalid_request_error"
    assert error["details"] == {"error_code": "thread_unsupported_request"}
    assert error["message"].startswith("capability_rejected: beta_header:message-threads-2026-08-12")


@pytest.mark.parametrize(("tokens", "scale", "told"), [(1000, 1.0, 1000), (1000, 2.5, 2500), (3, 0.1, 1)])
def test_case_41_a_count_is_a_whole_number(tokens, scale, told):
    response = token_count(tokens, scale)
    assert (response.status, said(response)) == (200, {"input_tokens": told})
    assert anthropic.types.MessageTokensCount.model_validate(said(response)).input_tokens == told


def test_case_41_a_model_by_a_rule_stands_behind_the_upstreams():
    made = more_models("limit=1000", json.dumps(UPSTREAM).encode(), [ALIAS])
    assert made is not None
    listed = json.loads(made)
    assert [model["id"] for model in listed["data"]] == ["claude-opus-5-5", "claude-on-gpt"]
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, "claude-opus-5-5", "claude-on-gpt")
    model = anthropic.types.ModelInfo.model_validate(listed["data"][1])
    assert (model.id, model.display_name, model.type) == ("claude-on-gpt", "gpt-5.5 (openai)", "model")
    assert (listed["data"][1]["max_input_tokens"], listed["data"][1]["max_tokens"]) == (400_000, 128_000)
    assert said(one_model(ALIAS)) == listed["data"][1]


def test_an_empty_list_gets_them_too():
    made = json.loads(more_models("", json.dumps({**UPSTREAM, "data": []}).encode(), [ALIAS]) or b"")
    assert (made["first_id"], made["last_id"]) == ("claude-on-gpt", "claude-on-gpt")


def test_what_is_not_known_is_not_told():
    assert set(Alias("a", GPT, Capabilities()).to_json()) == {
        "type",
        "id",
        "display_name",
        "created_at",
        "lifecycle",
    }


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("", {**UPSTREAM, "has_more": True}),
        ("before_id=x", UPSTREAM),
        ("", {"data": None}),
        ("", []),
        ("", {**UPSTREAM, "data": [{"id": "claude-on-gpt"}]}),
    ],
)
def test_other_pages_and_other_answers_are_left_alone(query, body):
    assert more_models(query, json.dumps(body).encode(), [ALIAS]) is None
    assert more_models(query, b"no json", [ALIAS]) is None
    assert more_models("", json.dumps(UPSTREAM).encode(), []) is None


def test_an_answer_that_was_read_here_goes_on_without_its_coding():
    fields = Fields.of(
        [
            (b"Content-Type", b"application/json"),
            (b"Content-Encoding", b"gzip"),
            (b"Content-Length", b"3"),
            (b"x", b"y"),
        ]
    )
    response = as_it_came(404, fields, b"{}")
    assert (response.status, response.body) == (404, b"{}")
    assert list(response.fields.pairs()) == [(b"content-type", b"application/json"), (b"x", b"y")]
