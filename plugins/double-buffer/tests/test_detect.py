"""Which requests ask for a summary, and which only look like it."""

from __future__ import annotations

import json

import pytest
from dbproxy_double_buffer.buffers import Buffer, Buffers, Checkpoint, Served, Shelf
from dbproxy_double_buffer.detect import compact_request, compact_trigger, without_instruction
from dbproxy_double_buffer.history import Historian
from dbproxy_double_buffer.phases import Event, Phase
from dbproxy_double_buffer.summary import extract, harmless, judge
from dbproxy_double_buffer.wall import Observation

from dbproxy.api import Fields

FULL = (
    "Your task is to create a detailed summary of the conversation so far, paying attention.\n"
    "<analysis>think</analysis>\n<summary>write</summary>"
)
NEW = "CRITICAL: Respond with TEXT ONLY. Do NOT call any tools.\n\n" + FULL + "\n\nREMINDER: Do NOT call any tools."
PARTIAL = FULL.replace("the conversation so far", "the RECENT portion of the conversation")
UP_TO = FULL.replace(
    "the conversation so far", "this conversation. This summary will be placed at the start of a continuing session"
)
CLASS = Fields.of([(b"x-claude-code-request-class", b"compaction"), (b"x-claude-code-compaction", b"auto")])
MAIN = Fields.of([(b"x-claude-code-request-class", b"main")])
NONE = Fields.of([])


def ask(text: str, fields: Fields = NONE):
    return compact_request([{"role": "user", "content": "hello"}, {"role": "user", "content": text}], fields)


@pytest.mark.parametrize("text", [FULL, NEW])
@pytest.mark.parametrize(("fields", "trigger"), [(CLASS, "auto"), (NONE, "unknown")])
def test_both_wordings_with_and_without_headers(text, fields, trigger):
    found = ask(text, fields)
    assert (found.kind, found.trigger, found.words, found.servable) == ("full", trigger, "", True)


def test_the_header_says_that_it_is_none():
    assert ask(FULL, MAIN) is None
    assert compact_trigger(MAIN) == ""


def test_n12_text_that_contains_the_phrase_is_no_compact_request():
    assert ask("Please explain: " + FULL) is None
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": FULL}]}
    assert compact_request([result], NONE) is None
    words = {"role": "user", "content": [{"type": "text", "text": FULL}, {"type": "text", "text": "what is this?"}]}
    assert compact_request([words], NONE) is None
    assert compact_request([{"role": "user", "content": FULL}, {"role": "assistant", "content": "ok"}], NONE) is None


@pytest.mark.parametrize(("text", "kind"), [(PARTIAL, "partial"), (UP_TO, "up_to")])
def test_n17_other_kinds_are_not_answered_with_a_full_summary(text, kind):
    found = ask(text, CLASS)
    assert (found.kind, found.servable) == (kind, False)


def test_n17_the_users_instructions_are_not_ignored():
    found = ask(NEW.replace("\n\nREMINDER", "\n\nAdditional Instructions:\nkeep the tests\n\nREMINDER"), CLASS)
    assert (found.words, found.servable) == ("keep the tests", False)


def test_an_unknown_instruction_under_the_header_goes_to_the_model():
    found = ask("Summarise, in a new way.", CLASS)
    assert (found.kind, found.servable) == ("unknown", False)


def test_c12_results_beside_the_instruction_stay():
    result = {"type": "tool_result", "tool_use_id": "t", "content": "42"}
    messages = [{"role": "user", "content": [result, {"type": "text", "text": FULL}]}]
    assert compact_request(messages, NONE).servable
    assert without_instruction(messages) == [{"role": "user", "content": [result]}]
    own = [{"role": "user", "content": "a"}, {"role": "user", "content": FULL}, {"role": "system", "content": "n"}]
    assert without_instruction(own) == [own[0], own[2]]


def test_a_compact_request_has_the_chain_of_its_history():
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    result = {"type": "tool_result", "tool_use_id": "t", "content": "42"}
    historian = Historian()

    def read(messages, fields=NONE):
        return historian.read(json.dumps({"model": "m", "stream": True, "messages": messages}).encode(), fields)

    plain = read([*talk, {"role": "user", "content": [result]}])
    asked = read([*talk, {"role": "user", "content": [result, {"type": "text", "text": FULL}]}], CLASS)
    assert plain.request is None
    assert asked.request is not None
    assert asked.chains == plain.chains
    assert (asked.model, asked.stream, len(asked.spans)) == ("m", True, 3)
    own = read([*talk, {"role": "user", "content": FULL}], CLASS)
    assert own.chains == read(talk).chains
    assert historian.read(b"[]", NONE) is None


def checkpoint(chain: bytes, **more) -> Checkpoint:
    facts = {"messages": 2, "exchange": "e", "model": "m", "account": "a", "analysis": "", "summary": "s", "tokens": 9}
    return Checkpoint(id="c", chain=chain, made=1.0, seconds=2.0, **{**facts, **more})


def test_n7_a_checkpoint_fits_only_a_history_that_holds_it():
    buffer = Buffer("c", "main")
    buffer.add(checkpoint(b"1" * 16))
    buffer.add(checkpoint(b"2" * 16))
    assert buffer.fitting([b"0" * 16, b"1" * 16, b"2" * 16])[1] == 3
    assert buffer.fitting([b"0" * 16, b"1" * 16, b"x" * 16]) == (buffer.checkpoints[0], 2)
    assert buffer.fitting([b"0" * 16]) is None


def test_n10_buffers_survive_on_disk_and_age(tmp_path):
    shelf = Shelf(tmp_path / "buffers")
    buffer = Buffer("c/../x", "main", Phase.CHECKPOINTING, tokens=5, last_seen=100.0)
    buffer.add(checkpoint(b"1" * 16, summary="a\ud800b"))
    buffer.served = Served("c", b"1" * 16, b"mark", "text", 3, 4.0, {"x": 1})
    buffer.observed = [Observation(5, "auto", 1.0)]
    shelf.save("c/../x", [buffer.to_json()], 100.0)
    [file] = (tmp_path / "buffers").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    [back] = shelf.load(150.0, 100.0)
    assert (back.phase, back.checkpoints, back.served, back.observed) == (
        Phase.WAL_ACTIVE, buffer.checkpoints, buffer.served, buffer.observed,
    )  # fmt: skip
    assert shelf.load(201.0, 100.0) == []
    assert not file.exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format":1}', '{"format":1,"saved":100,"buffers":[{}]}'])
def test_a_bad_file_is_as_none(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    assert Shelf(tmp_path).load(100.0, 100.0) == []


def test_n19_idle_buffers_are_forgotten():
    moved = []
    buffers = Buffers(lambda buffer, before, event: moved.append((before, event)))
    buffer = buffers.get("c", "main")
    buffers.move(buffer, Event.THRESHOLD)
    buffer.last_seen = 10.0
    assert buffers.expire(20.0, 50.0) == []
    assert buffers.expire(61.0, 50.0) == ["c"]
    assert len(buffers) == 0
    assert moved[-1] == (Phase.CHECKPOINT_PENDING, Event.RESET)


def text(value: str, **more) -> dict:
    return {"content": [{"type": "text", "text": value}], "stop_reason": "end_turn", **more}


GOOD = "<analysis>a</analysis>\n<summary>" + "long enough " * 30 + "</summary>"


def test_a_good_summary_passes():
    assert judge(text(GOOD), complete=True).ok
    assert extract(GOOD).analysis == "a"


@pytest.mark.parametrize(
    ("message", "complete"),
    [
        (text(""), True),
        (text(GOOD), False),
        (text(GOOD, stop_reason="max_tokens"), True),
        (text(GOOD, stop_reason="refusal"), True),
        (text("<summary>too short</summary>"), True),
        (text(GOOD.removesuffix("</summary>")), True),
        ({"content": [{"type": "compaction", "content": None}], "stop_reason": "end_turn"}, True),
        ({"content": [*text(GOOD)["content"], {"type": "tool_use"}], "stop_reason": "tool_use"}, True),
        ({"content": None, "stop_reason": "end_turn"}, True),
        ({}, True),
    ],
)
def test_n8_what_is_no_summary_is_never_served(message, complete):
    assert not judge(message, complete=complete).ok


def test_tags_and_dollars_are_made_harmless():
    facts = "see $' and $& </summary> <analysis> <Summary>"
    new, old = harmless(facts, (2, 1, 329)), harmless(facts, (2, 1, 112))
    assert "</summary>" not in new
    assert "<analysis>" not in new
    assert "$' and $&" in new
    assert "$$' and $$&" in old
