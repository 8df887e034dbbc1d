"""The answer: tags, dollars and blank lines as each client handles them, and the API's grammar to the letter.

What the clients do is measured in tests/realclient/test_realclient_summary.py; `seen` is the model of it.
"""

from __future__ import annotations

import json
import time

import pytest
from dbproxy_double_buffer.answer import (
    DELTA,
    FORMS,
    as_events,
    as_json,
    believable_usage,
    first_words,
    form,
    new_id,
    seen,
    spaced,
    swap_text,
)
from dbproxy_double_buffer.log import Log, render
from dbproxy_double_buffer.summary import PLAIN_DOLLARS_SINCE, Summary
from dbproxy_double_buffer.wall import Client
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.api import Accumulator, SseSplitter, Usage
from dbproxy.testing.origin.grammar import check_stream

VERSIONS = [(2, 0, 77), (2, 1, 112), (2, 1, 267), (2, 1, 268), (2, 1, 329), ()]
NASTY = 'a $\' b $& c $$ d $` e $1 </summary> f <analysis>g</analysis> <summary>h</summary> \\ "q" ä漢🙂'
MODEL = "claude-opus-5-5"


def client(version: tuple[int, ...]) -> Client:
    return Client(version, MODEL)


def log_of(*texts: str) -> Log:
    return render([{"role": "user", "content": text} for text in texts], 10**9, 3.5)


@pytest.mark.parametrize(
    ("version", "expands", "kept"),
    [((1, 0, 128), True, True), ((2, 0, 77), True, True), ((2, 1, 0), True, False), ((2, 1, 267), True, False)],
)
def test_forms_of_old_clients(version, expands, kept):
    assert (form(version).expands, form(version).analysis_kept) == (expands, kept)


def test_forms_of_new_and_unknown_clients():
    assert form((2, 1, 268)) is form((2, 1, 329)) is form((3, 0)) is form(()) is FORMS[-1]
    assert not FORMS[-1].expands
    assert FORMS[-1].since == PLAIN_DOLLARS_SINCE
    assert all(known.evidence for known in FORMS)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_log_is_verbatim_in_the_clients_next_request(version):
    log = log_of(NASTY, "two\n\nlines", "$'", "x")
    text = swap_text(Summary("thoughts $& </analysis>", "told $' $$ $& </summary> <summary>"), log, client(version))
    after = seen(text, version)
    for fact in (NASTY, "two\n\nlines", "$'"):
        assert fact in after
    assert log.text.strip() in after
    assert "told $' $$ $& ‹/summary> ‹summary>" in after
    assert ("thoughts $& ‹/analysis>" in after) is form(version).analysis_kept
    assert text.count("<analysis>") == 1 + log.text.count("<analysis>")


@pytest.mark.parametrize("version", VERSIONS)
def test_an_analysis_in_the_log_is_safe_where_the_summary_had_none(version):
    text = swap_text(Summary("", "S"), log_of("<analysis>the user's</analysis>"), client(version))
    assert text.startswith("<analysis>\nThe summary")
    assert "<analysis>the user's</analysis>" in seen(text, version)


def test_an_empty_log_leaves_the_tags_alone():
    assert (
        swap_text(Summary("a", " s\n"), Log(), client(())) == "<analysis>\na\n</analysis>\n\n<summary>\ns\n</summary>"
    )


def test_no_line_is_lost_between_blank_ones():
    text = swap_text(Summary("a", "s\n\n\n\nt"), log_of("u\n\n\n\n\nv"), client(()))
    after = seen(text, ())
    assert "u\n\n \n \n \nv" in after
    assert "s\n\n \n \nt" in after
    assert spaced("a\n\nb\nc") == "a\n\nb\nc"


@given(st.text("ab \n\r\t$'&`<>/", max_size=80), st.sampled_from(VERSIONS))
def test_spaced_text_is_not_changed_by_any_client(content, version):
    text = swap_text(Summary("a", "s"), log_of(f"B{content}E"), client(version))
    assert spaced(f"B{content}E") in seen(text, version)
    assert spaced(content).count("\n") == content.count("\n")
    assert spaced(content).replace(" ", "") == content.replace(" ", "")


@given(st.text("ab $'&`<>/\n1", min_size=1, max_size=60), st.sampled_from(VERSIONS))
def test_a_summary_reads_the_same_in_every_client(content, version):
    text = swap_text(Summary("x", f"S {content} S"), log_of("tail"), client(version))
    after = seen(text, version)
    assert after.count("Summary:\n") == 1
    assert f"Summary:\n{spaced(f'S {content} S')}\n\n[[" in after
    words = first_words(text, version)
    assert words in after
    assert words.startswith("S")
    assert "\n\n" not in words


def test_events_keep_the_grammar():
    text = swap_text(Summary("a", NASTY), log_of("long " * 5000, NASTY), client(()))
    usage = believable_usage(120_000, 900)
    events = as_events(text, MODEL, usage, "dbproxy_1")
    message = check_stream(b"".join(events))
    assert message["content"] == [{"type": "text", "text": text}]
    assert (message["id"], message["model"], message["stop_reason"]) == ("dbproxy_1", MODEL, "end_turn")
    kinds = [SseSplitter().feed(event)[0].name.decode() for event in events]
    assert kinds[:3] == ["message_start", "content_block_start", "ping"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    assert len(kinds) == 6 + -(-len(text) // DELTA)
    assert json.loads(as_json(text, MODEL, usage, "dbproxy_1")) == {
        **message,
        "usage": usage,
        "stop_sequence": None,
    }


def test_the_context_that_the_answer_reports_is_the_one_given():
    accumulator = Accumulator()
    for event in as_events("text", MODEL, believable_usage(120_000, 900), new_id()):
        for found in SseSplitter().feed(event):
            accumulator.feed(found.name, found.data)
    assert accumulator.complete
    usage = accumulator.usage
    assert (usage.input_tokens, usage.cache_read, usage.output_tokens) == (1, 119_999, 900)
    assert accumulator.message["content"] == [{"type": "text", "text": "text"}]


def test_what_the_checkpoint_spent_is_what_is_reported():
    spent = {"input_tokens": 1500, "cache_read_input_tokens": 110_000, "output_tokens": 4000, "service_tier": None}
    usage = Usage.of(believable_usage(5, 5, spent))
    assert (usage.input_tokens, usage.cache_read, usage.output_tokens) == (1500, 110_000, 4000)
    assert believable_usage(0, 0)["output_tokens"] == 1
    assert believable_usage(5, 5, spent)["service_tier"] == "standard"


def test_an_id_that_could_anchor_a_thread_and_an_empty_answer_are_refused():
    with pytest.raises(ValueError, match="id"):
        as_events("text", MODEL, {}, "msg_123")
    with pytest.raises(ValueError, match="empty"):
        as_json(" \n", MODEL, {}, new_id())
    assert not new_id().startswith("msg_")
    assert new_id() != new_id()


def test_half_of_a_surrogate_pair_does_not_break_the_answer():
    events = as_events("x\ud83dy", MODEL, believable_usage(1, 1), new_id())
    assert check_stream(b"".join(events))["content"][0]["text"] == "x\ud83dy"


def test_a_swap_of_a_large_request_costs_little():
    turn = {"type": "tool_result", "tool_use_id": "t", "content": "line of output\n" * 500}
    messages = [{"role": "user", "content": [turn]} for _ in range(120)]
    best = 9.0
    for _ in range(5):
        began = time.perf_counter()
        text = swap_text(Summary("a", "s" * 20_000), render(messages, 50_000, 3.5), client((2, 1, 112)))
        as_events(text, MODEL, believable_usage(1, 1), new_id())
        best = min(best, time.perf_counter() - began)
    assert best < 0.1  # a bound against accidents (3 ms were measured); the figure stands in the benchmark
