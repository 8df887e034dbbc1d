"""The messages of a Chat request: everything that was said, in order, as the server wants it told."""

from __future__ import annotations

import json

import pytest
from asking import ask, tool_result, tool_use, user
from asking import assistant as said
from chattalk import a_translation, sent

from dbproxy.model.codecs.request import INTERRUPTED, NO_OUTPUT, Unroutable
from dbproxy.model.codecs.vault import Kept, Vault, join_signature

BILLING = "x-anthropic-billing-header: cc_version=2.1.329.7b2; cc_entrypoint=cli; cch=abcde;"
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "BBBB"}}
REDIRECT = {"type": "document", "source": {"type": "url", "url": "https://files.example/a.pdf"}}
MARK = {"cache_control": {"type": "ephemeral"}}


def _messages(*messages, translation=None, **fields):
    return sent(ask(*messages, **fields), translation)["messages"]


def _thought(text, signature):
    return {"type": "thinking", "thinking": text, "signature": signature}


# ---- the system prompt


def test_case_1_the_billing_line_of_a_plain_system_prompt_is_gone():
    messages = _messages(user("hi"), system=f"{BILLING}\nBe brief.\nBe kind.")
    assert messages[0] == {"role": "system", "content": "Be brief.\nBe kind."}
    assert len(messages) == 2


def test_case_3_system_blocks_are_parts_of_one_message_without_billing_or_marks():
    blocks = [{"type": "text", "text": text} | MARK for text in (BILLING, "You are an agent.", "Review code.")]
    messages = _messages(user("hi"), system=blocks)
    assert messages[0] == {
        "role": "system",
        "content": [{"type": "text", "text": "You are an agent."}, {"type": "text", "text": "Review code."}],
    }
    assert [message["role"] for message in messages] == ["system", "user"]
    assert "billing" not in json.dumps(messages)
    assert "cache_control" not in json.dumps(messages)


def test_a_model_that_listens_to_developers_hears_one():
    messages = _messages(user("hi"), system="Be brief.", translation=a_translation(developer=True))
    assert messages[0] == {"role": "developer", "content": "Be brief."}


def test_case_4_a_system_message_in_the_middle_stays_there_as_the_developer_s():
    history = (user("a"), said("b"), {"role": "system", "content": "Now in French."}, user("c"))
    messages = _messages(*history, translation=a_translation(developer=True))
    assert [(message["role"], message["content"]) for message in messages] == [
        ("user", "a"),
        ("assistant", "b"),
        ("developer", "Now in French."),
        ("user", "c"),
    ]


def test_case_4_a_system_message_in_the_middle_stays_there_as_a_reminder_where_only_the_first_may_be_one():
    history = (user("a"), said("b"), {"role": "system", "content": "Now in French."}, user("c"))
    messages = _messages(*history, system="Be brief.")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert [part["text"] for part in messages[3]["content"]] == [
        "<system-reminder>\nNow in French.\n</system-reminder>",
        "c",
    ]


def test_case_4_a_system_message_between_calls_and_results_comes_behind_the_results():
    history = (user("a"), said(tool_use("t1")), {"role": "system", "content": "Hurry."}, user(tool_result("t1")))
    messages = _messages(*history, translation=a_translation(developer=True))
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "developer"]


# ---- calls and results


def test_case_5_text_and_calls_are_one_message():
    history = (user("a"), said("Look:", tool_use("t1", path="x"), tool_use("t2", "Bash", command="ls")))
    message = _messages(*history)[1]
    assert message == {
        "role": "assistant",
        "content": "Look:",
        "tool_calls": [
            {"id": "t1", "type": "function", "function": {"name": "Read", "arguments": '{"path":"x"}'}},
            {"id": "t2", "type": "function", "function": {"name": "Bash", "arguments": '{"command":"ls"}'}},
        ],
    }


def test_calls_without_a_text_have_no_content():
    assert _messages(user("a"), said(tool_use("t1")), user(tool_result("t1")))[1]["content"] is None


def test_case_7_results_come_before_what_the_user_says():
    messages = _messages(user("a"), said(tool_use("t1")), user("And?", tool_result("t1", "ok")))
    assert messages[2:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "ok"},
        {"role": "user", "content": "And?"},
    ]


def test_results_stand_in_the_order_of_their_calls():
    history = (said(tool_use("t1"), tool_use("t2")), user(tool_result("t2", "two"), tool_result("t1", "one")))
    messages = _messages(user("a"), *history)
    assert [message.get("content") for message in messages[2:]] == ["one", "two"]


def test_case_8_an_error_is_marked():
    messages = _messages(user("a"), said(tool_use("t1")), user(tool_result("t1", "boom", is_error=True)))
    assert messages[2]["content"] == "Error: boom"


def test_case_9_a_picture_in_a_result_is_shown_in_the_next_message():
    result = tool_result("t1", [{"type": "text", "text": "See"}, PNG])
    messages = _messages(user("a"), said(tool_use("t1")), user(result, "What is it?"))
    assert [message["role"] for message in messages[2:]] == ["tool", "user"]
    assert messages[2]["content"] == "See\n\n[image: see the next message]"
    kinds = [part["type"] for part in messages[3]["content"]]
    assert kinds == ["text", "image_url", "text", "text"]
    before, picture, _, last = messages[3]["content"]
    assert "Read (t1)" in before["text"]
    assert picture["image_url"] == {"url": "data:image/png;base64,AAAA"}
    assert last["text"] == "What is it?"


def test_pictures_of_several_results_are_told_apart():
    results = [tool_result(id, [PNG, PNG]) for id in ("t1", "t2")]
    messages = _messages(user("a"), said(tool_use("t1"), tool_use("t2")), user(*results))
    assert [message["role"] for message in messages[2:]] == ["tool", "tool", "user"]
    assert [part["type"] for part in messages[4]["content"]] == [
        *("text", "image_url", "image_url"),
        *("text", "image_url", "image_url"),
        "text",
    ]


@pytest.mark.parametrize("content", [None, [], "", [{"type": "text", "text": ""}]])
def test_case_10_an_empty_result_has_a_placeholder(content):
    result = tool_result("t1", content)
    if content is None:
        del result["content"]
    assert _messages(user("a"), said(tool_use("t1")), user(result))[2]["content"] == NO_OUTPUT


def test_case_11_a_loaded_tool_is_named():
    result = tool_result("t1", [{"type": "tool_reference", "tool_name": "WebFetch"}])
    messages = _messages(user("a"), said(tool_use("t1", "ToolSearch")), user(result))
    assert messages[2]["content"] == "[Loaded tool: WebFetch]"


def test_case_12_a_call_that_never_got_a_result_gets_one():
    messages = _messages(user("a"), said(tool_use("t1"), tool_use("t2")), user(tool_result("t1", "ok"), "go on"))
    assert messages[2:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "ok"},
        {"role": "tool", "tool_call_id": "t2", "content": f"Error: {INTERRUPTED}"},
        {"role": "user", "content": "go on"},
    ]


def test_a_result_that_belongs_to_no_call_is_told_by_the_user():
    messages = _messages(user("a", tool_result("t9", "lost")))
    assert [message["role"] for message in messages] == ["user"]
    assert "lost" in json.dumps(messages)


def test_ids_are_the_upstream_s_own_and_never_too_long():
    long = "toolu_" + "x" * 60
    history = (said(tool_use(long), tool_use("dbpid_Y2FsbF9hYjpjLzE")), user(tool_result(long)))
    messages = _messages(user("a"), *history)
    ids = [call["id"] for call in messages[1]["tool_calls"]]
    assert ids == [message["tool_call_id"] for message in messages[2:]]
    assert len(ids[0]) <= 40
    assert ids[1] == "call_ab:c/1"


# ---- other blocks


def test_pictures_are_parts_of_the_user_s_message():
    linked = {"type": "image", "source": {"type": "url", "url": "https://pictures.example/a.png"}}
    assert _messages(user("Compare", PNG, linked | MARK))[0]["content"] == [
        {"type": "text", "text": "Compare"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "https://pictures.example/a.png"}},
    ]


@pytest.mark.parametrize(
    ("title", "name"), [("Report", "Report.pdf"), ("Report.pdf", "Report.pdf"), (None, "document.pdf")]
)
def test_case_31_a_pdf_is_a_file_part(title, name):
    block = PDF | ({"title": title} if title else {})
    assert _messages(user(block), translation=a_translation(documents=True))[0]["content"] == [
        {"type": "file", "file": {"filename": name, "file_data": "data:application/pdf;base64,BBBB"}}
    ]


def test_case_31_a_pdf_in_a_result_follows_it():
    history = (user("a"), said(tool_use("t1")), user(tool_result("t1", [PDF])))
    messages = _messages(*history, translation=a_translation(documents=True))
    assert messages[2]["content"] == "[file: see the next message]"
    assert [part["type"] for part in messages[3]["content"]] == ["text", "file", "text"]


@pytest.mark.parametrize(
    ("block", "can", "why"),
    [
        (PNG, {"images": False}, "no images"),
        (PDF, {}, "no documents"),
        (REDIRECT, {"documents": True}, "URL"),
        ({"type": "image", "source": {"type": "file", "file_id": "file_1"}}, {}, "uploaded"),
    ],
)
@pytest.mark.parametrize("within", [False, True])
def test_a_block_that_the_model_cannot_take_makes_the_request_unroutable(block, can, why, within):
    history = (said(tool_use("t1")), user(tool_result("t1", [block]))) if within else (user(block),)
    with pytest.raises(Unroutable, match=why):
        _messages(user("a"), *history, translation=a_translation(**can))


def test_documents_of_text_and_search_results_are_texts():
    document = {"type": "document", "title": "Notes", "source": {"type": "text", "data": "one"}}
    found = {"type": "search_result", "title": "T", "source": "S", "content": [{"type": "text", "text": "two"}]}
    parts = _messages(user(document, found))[0]["content"]
    assert [part["text"] for part in parts] == ["[Notes]\none", "[T] S\ntwo"]


def test_case_32_a_thought_of_claude_s_is_told_to_nobody():
    history = (user("a"), said(_thought("secret plan", "EqQBCg"), "b", tool_use("t1")), user(tool_result("t1")))
    for translation in (a_translation(), a_translation(echo=True)):
        assert "secret plan" not in json.dumps(_messages(*history, translation=translation))


def test_case_32_a_turn_of_nothing_but_thoughts_is_left_out():
    redacted = {"type": "redacted_thinking", "data": "xxxx"}
    messages = _messages(user("a"), said(_thought("hm", "EqQBCg"), redacted), user("b"))
    assert messages == [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]


def test_case_36_empty_texts_are_removed():
    messages = _messages(user("a", ""), said("", "b"), user("", "c"))
    assert [message["content"] for message in messages] == ["a", "b", "c"]


def test_blocks_that_nobody_knows_are_shown_as_text():
    messages = _messages(user("a"), said({"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}))
    assert messages[1]["content"] == "[web_search: {}]"
    assert "new" in json.dumps(_messages(user({"type": "hologram", "data": "new"})))


def test_a_server_that_takes_no_parts_gets_strings():
    translation = a_translation(refuses=frozenset({"content_parts"}))
    history = (user("a", "b"), said("c", "d"), user("e", PNG))
    messages = _messages(
        *history, system=[{"type": "text", "text": "1"}, {"type": "text", "text": "2"}], translation=translation
    )
    assert [message["content"] for message in messages[:3]] == ["1\n\n2", "a\n\nb", "c\n\nd"]
    assert isinstance(messages[3]["content"], list)


def test_texts_of_one_turn_stay_apart():
    messages = _messages(user("a", "b"), said("c", "d"))
    assert [[part["text"] for part in message["content"]] for message in messages] == [["a", "b"], ["c", "d"]]


def test_halves_of_characters_do_not_break_the_body():
    assert "x" in json.dumps(_messages(user("x\ud83d"), said(tool_use("t1", path="\udc00"))))


# ---- what has to be brought back


def _second_turn(*blocks, family="openai", vault=None, echo=True):
    translation = a_translation(echo=echo, vault=vault)
    translation.family = family
    return _messages(user("a"), said(*blocks), user(tool_result("t1")), translation=translation)[1]


def test_case_35_the_thought_before_a_call_is_echoed_to_its_own_family():
    thought = _thought("I shall read.", join_signature("deepseek", ""))
    assert _second_turn(thought, tool_use("t1"), family="deepseek")["reasoning_content"] == "I shall read."


def test_case_35_the_thought_is_found_by_the_call_s_id_where_the_client_lost_it():
    vault = Vault()
    vault.put("t1", Kept("deepseek", "", "I shall read."))
    assert _second_turn(tool_use("t1"), family="deepseek", vault=vault)["reasoning_content"] == "I shall read."
    # What another family thought is not for this one. Empty it must not be.
    assert _second_turn(tool_use("t1"), family="kimi", vault=vault)["reasoning_content"] == " "


def test_case_35_the_thought_of_another_family_is_not_echoed():
    for signature in ("", "EqQBCg", join_signature("kimi", "")):
        for family in ("deepseek", ""):
            message = _second_turn(_thought("secret plan", signature), tool_use("t1"), family=family)
            assert message["reasoning_content"] == " "


def test_case_35_nothing_is_echoed_where_nobody_asks_or_nothing_was_called():
    thought = _thought("I shall read.", join_signature("openai", ""))
    assert "reasoning_content" not in _second_turn(thought, tool_use("t1"), echo=False)
    assert "reasoning_content" not in _second_turn(thought, "no call")


def test_what_a_server_wants_back_with_a_call_comes_back():
    vault = Vault()
    vault.put("t1/extra", Kept("openai", '{"google":{"thought_signature":"c2ln"}}'))
    call = _second_turn(tool_use("t1"), vault=vault)["tool_calls"][0]
    assert call["extra_content"] == {"google": {"thought_signature": "c2ln"}}
    assert "extra_content" not in _second_turn(tool_use("t1"), family="kimi", vault=vault)["tool_calls"][0]
