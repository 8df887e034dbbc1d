"""The model's name: put in another's place, and read from the beginning of an answer."""

from __future__ import annotations

import json

import pytest
from dbproxy_subagent_routing.naming import model_of_start, with_model
from hypothesis import given
from hypothesis import strategies as st

values = st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=5)


@given(
    st.dictionaries(st.text().filter(lambda key: key != "model"), values, max_size=4),
    st.text(),
    st.integers(0, 4),
    st.integers(0, 2),
)
def test_every_other_byte_stays(others, model, place, indent):
    pairs = list(others.items())
    pairs.insert(place, ("model", "openai:gpt-5"))
    body = json.dumps(dict(pairs), indent=indent or None, ensure_ascii=bool(indent)).encode()
    changed = with_model(body, "openai:gpt-5", model)
    assert changed is not None
    assert json.loads(changed) == {**dict(pairs), "model": model}
    start = changed.index(json.dumps(model).encode(), max(0, body.index(b'"openai:gpt-5"')))
    assert changed[:start] + b'"openai:gpt-5"' + changed[start + len(json.dumps(model)) :] == body


@pytest.mark.parametrize("body", [b"{}", b"[]", b"", b'{"models":"x"}', b'{"model":"y"}', b'{"model":null}'])
def test_where_it_is_not_named_none_is_put(body):
    assert with_model(body, "x", "claude-opus-5-5") is None


@pytest.mark.parametrize(
    ("data", "model"),
    [
        ({"type": "message_start", "message": {"model": "claude-opus-5-5-20260101"}}, "claude-opus-5-5-20260101"),
        ({"message": {"model": "gpt-5"}}, ""),
        ({"message": {"model": 5}}, ""),
        ({"message": {}}, ""),
        ({"message": "x"}, ""),
        ([], ""),
    ],
)
def test_the_model_of_claudes_that_answers(data, model):
    assert model_of_start(json.dumps(data).encode()) == model
    assert model_of_start(b"{") == ""
