"""The size of a prompt, guessed: all of it counts, and it is never nothing."""

from __future__ import annotations

import json

from asking import ask, tool_result, tool_use, user
from asking import assistant as said
from chattalk import READ

from dbproxy.model.codecs.estimate import prompt_tokens, text_tokens
from dbproxy.model.codecs.request import read_request

PROSE = "The quick brown fox jumps over the lazy dog, and nobody has ever asked it why. " * 50


def _tokens(*messages, **fields):
    return prompt_tokens(read_request(json.dumps(ask(*messages, **fields)).encode()))


def test_nothing_is_one_token():
    assert _tokens() == 1
    assert text_tokens(0) == 0
    assert text_tokens(1) == 1


def test_english_prose_is_guessed_a_little_too_large():
    # 18 tokens a sentence with the tokenizers of the day.
    assert 18 * 50 <= _tokens(user(PROSE)) <= 18 * 50 * 1.5


def test_every_part_of_a_request_counts():
    base = _tokens(user("a"))
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 100_000}}
    document = {"type": "document", "source": {"type": "base64", "data": "A" * 200_000}}
    for messages, fields in (
        ([user("a" * 400)], {}),
        ([user("a")], {"system": "s" * 400}),
        ([user("a")], {"tools": [READ | {"description": "d" * 400}]}),
        ([user("a"), said(tool_use("t1", path="p" * 400)), user(tool_result("t1"))], {}),
        ([user("a"), said(tool_use("t1")), user(tool_result("t1", "r" * 400))], {}),
        ([user("a", picture)], {}),
        ([user("a", document)], {}),
    ):
        assert _tokens(*messages, **fields) > base + 80
    # A picture costs by its size on the screen, not by its bytes; a document by its pages.
    assert _tokens(user("a", picture)) < base + 2_000
    assert _tokens(user("a", document)) > base + 5_000


def test_halves_of_characters_break_nothing():
    assert _tokens(user("\ud83d" * 10)) > 1
