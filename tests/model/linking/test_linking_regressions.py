"""Questions that other linkers answered wrong, each under the name of its item: seed-003 2.8 and 9.5, seed-000 N6, N7
and N13. The replays are synthetic twins of the ones described there."""

from __future__ import annotations

from typing import Any

import pytest
from linktalk import CLIENT, INSTRUCTION, OTHER, SESSION, Talk, call, launched, result, said, user

from dbproxy.model.link import Edge, RequestKind

SUMMARISER = "You are a helpful AI assistant tasked with summarizing conversations."
OLD = {"user-agent": "claude-cli/1.0.60 (external, cli)"}


def nameless() -> Talk:
    """A client that names no session."""
    return Talk(session=None, headers=dict(OLD))


def old_continuation(analysis: str, summary: str) -> str:
    return (
        "This session is being continued from a previous conversation that ran out of context. The conversation is "
        f"summarized below:\nAnalysis:\n{analysis}\n\nSummary:\n{summary}\nPlease continue the conversation from where "
        "we left it off without asking the user any further questions."
    )


def test_replay_a_branches_compaction_and_what_follows_it() -> None:
    """One session, one request of it missing: two turns that leave the same parent, a third that leaves it with its
    reminders moved, a compaction, the session that quotes the summary, and its next turn."""
    talk = nameless()
    parent = talk.ask([user("<system-reminder>a</system-reminder>", "start")])
    answer = talk.reply(parent, "first answer")
    child = talk.ask([user("<system-reminder>a</system-reminder>", "start"), answer, user("second")])
    other = talk.ask([user("<system-reminder>a</system-reminder>", "start"), answer, user("another second")])
    moved = talk.ask([user("start"), answer, user("<system-reminder>a</system-reminder>", "a third second")])
    assert [link.branch for link in (parent, child, other, moved)] == [1, 1, 2, 3]
    assert [link.parent for link in (child, other, moved)] == [parent.exchange] * 3
    assert [link.edge for link in (child, other, moved)] == [Edge.NEXT, Edge.REWIND, Edge.REWIND]
    unseen = [user("start"), answer, user("a third second"), said("x"), user("y"), said("z")]
    aside = talk.ask([*unseen, user(INSTRUCTION)], system=SUMMARISER)
    assert (aside.kind, aside.edge, aside.parent) == (RequestKind.COMPACTION, Edge.ASIDE, moved.exchange)
    talk.reply(
        aside, "<analysis>\nThought.\n</analysis>\n\n<summary>\n1. The user wants\n   a thing done well.\n</summary>"
    )
    quoted = [user(old_continuation("Thought.", "1. The user wants\n   a thing done well."))]
    after = talk.ask(quoted)
    assert (after.conversation, after.edge, after.parent) == (parent.conversation, Edge.COMPACTED, aside.exchange)
    assert after.kind is RequestKind.AFTER_COMPACTION
    quoted += [talk.reply(after, "going on"), user("next")]
    follow = talk.ask(quoted)
    assert (follow.conversation, follow.branch, follow.parent) == (parent.conversation, after.branch, after.exchange)
    assert (follow.kind, follow.edge) == (RequestKind.MAIN, Edge.NEXT)


@pytest.mark.parametrize("tool", ["Task", "Agent"])
def test_replay_b_a_task_its_first_request_and_its_second_turn(tool: str) -> None:
    talk = nameless()
    history = [user("go")]
    for turn in range(10):
        link = talk.ask(history)
        history += [talk.reply(link, f"answer {turn}"), user(f"question {turn}")]
    spawner = talk.ask(history)
    talk.reply(spawner, call("toolu_1", "Look into the tests.\r\nAll of them.", "general-purpose", tool))
    asked = [user("<system-reminder>" + "x" * 22_000 + "</system-reminder>", "Look into the tests.\nAll of them. ")]
    first = talk.ask(asked, tools=[{"name": "Read"}])
    assert (first.conversation, first.edge, first.parent) == (spawner.conversation, Edge.SPAWN, spawner.exchange)
    assert first.kind is RequestKind.SUBAGENT
    assert first.agent is not None
    assert (first.agent.type, first.agent.number, first.agent.tool_use_id) == ("general-purpose", 1, "toolu_1")
    second = talk.ask([*asked, talk.reply(first, "reading"), user("result")], tools=[{"name": "Read"}])
    assert (second.thread, second.parent, second.branch) == (first.thread, first.exchange, 1)


def test_another_prompt_is_no_subtask() -> None:
    talk = nameless()
    spawner = talk.ask([user("go")])
    talk.reply(spawner, call("toolu_1", "one prompt", tool="Task"))
    other = talk.ask([user("another prompt")])
    assert other.conversation != spawner.conversation
    assert other.thread == "main"


def test_a_main_turn_after_a_subtask_is_no_subtask() -> None:
    """seed-003 2.8.4."""
    talk = Talk()
    first = talk.ask([user("go")])
    answer = talk.reply(first, call("toolu_1", "prompt"))
    sub = talk.ask([user("prompt")], tools=[{"name": "Read"}])
    talk.reply(sub, "done")
    main = talk.ask([user("go"), answer, user(result("toolu_1", "done"))])
    assert (main.thread, main.kind, main.agent, main.parent) == ("main", RequestKind.MAIN, None, first.exchange)


@pytest.mark.parametrize("named", [True, False])
def test_three_parallel_identical_subtasks_are_three(named: bool) -> None:
    """seed-003 9.5 and 2.8.3: distinct threads and numbers, whenever they start."""
    talk = Talk()
    first = talk.ask([user("go")])
    answer = talk.reply(first, *(call(f"toolu_{i}", "the same") for i in range(3)))
    seen = []
    for i in range(3):
        headers = {"x-claude-code-agent-id": f"agent{i}"} if named else {}
        link = talk.ask([user("the same")], headers=headers, tools=[{"name": "Read"}])
        if i == 1:
            talk.ask([user("go"), answer, user("meanwhile")])
        seen.append(link)
    now = [talk.now_of(link) for link in seen]
    assert len({link.thread for link in now}) == 3
    assert [link.agent.number for link in now if link.agent] == [1, 2, 3]
    assert {link.parent for link in now} == {first.exchange}


def test_agent_ids_in_the_result_set_equal_prompts_right() -> None:
    """Tried by order first; the ids that the client reports later are the truth, and all links are corrected."""
    talk = Talk()
    first = talk.ask([user("go")])
    answer = talk.reply(first, call("toolu_1", "same"), call("toolu_2", "same"))
    left = talk.ask([user("same")], headers={"x-claude-code-agent-id": "aaa"})
    right = talk.ask([user("same")], headers={"x-claude-code-agent-id": "bbb"})
    guessed = [link.agent.tool_use_id for link in map(talk.now_of, (left, right)) if link.agent]
    assert guessed == ["toolu_1", "toolu_2"]
    talk.ask([user("go"), answer, user(launched("toolu_1", "bbb"), launched("toolu_2", "aaa"))])
    told = {link.thread: link.agent for link in map(talk.now_of, (left, right)) if link.agent}
    assert (told["aaa"].tool_use_id, told["aaa"].number) == ("toolu_2", 2)
    assert (told["bbb"].tool_use_id, told["bbb"].number) == ("toolu_1", 1)


def test_a_background_agents_notification_tells_its_call() -> None:
    talk = Talk()
    first = talk.ask([user("go")])
    answer = talk.reply(first, call("toolu_1", "a"), call("toolu_2", "a"))
    agent = talk.ask([user("rephrased beyond recognition")], headers={"x-claude-code-agent-id": "zzz"})
    assert talk.now_of(agent).agent.number == 0  # type: ignore[union-attr]
    note = (
        "<system-reminder>note\n<task-notification>\n<task-id>zzz</task-id>\n<tool-use-id>toolu_2</tool-use-id>\n"
        "<status>completed</status></task-notification></system-reminder>"
    )
    talk.ask([user("go"), answer, user(result("toolu_1", "x"), result("toolu_2", "x")), said("ok"), user(note)])
    found = talk.now_of(agent)
    assert found.agent is not None
    assert (found.agent.number, found.agent.tool_use_id, found.parent) == (2, "toolu_2", first.exchange)
    assert ("call", "agent id in the tool result") in [(one.question, one.source) for one in found.evidence]


def test_retry_is_not_a_branch() -> None:
    """seed-003 9.5 and 2.8.1: after a failure, while one is open, and not streamed."""
    talk = Talk()
    one = talk.ask([user("go")])
    two = talk.ask([user("go")])
    talk.reply(one, ok=False)
    talk.reply(two, "half", ok=False)
    three = talk.ask([user("go")], stream=False, max_tokens=64000)
    assert [(link.edge, link.branch, link.attempt) for link in (one, two, three)] == [
        (Edge.ROOT, 1, 1),
        (Edge.RETRY, 1, 2),
        (Edge.RETRY, 1, 3),
    ]
    answer = talk.reply(three, "whole")
    four = talk.ask([user("go"), answer, user("more")])
    assert (four.edge, four.branch, four.parent, four.attempt) == (Edge.NEXT, 1, three.exchange, 1)


def test_reminder_in_a_string_or_in_a_list_gives_one_hash() -> None:
    talk = Talk()
    first = talk.ask([user("<system-reminder>a</system-reminder>", "go")])
    answer = talk.reply(first, "yes")
    second = talk.ask([{"role": "user", "content": "<system-reminder>b</system-reminder>go"}, answer, user("on")])
    assert (second.edge, second.parent) == (Edge.NEXT, first.exchange)


def test_a_dropped_thinking_block_keeps_the_link() -> None:
    talk = Talk()
    first = talk.ask([user("go")])
    answer = talk.reply(first, {"type": "thinking", "thinking": "hm", "signature": "s"}, "yes")
    second = talk.ask([user("go"), answer, user("on")])
    third = talk.ask([user("go"), said("yes"), user("on"), said("b"), user("more")])
    assert (third.edge, third.parent) == (Edge.NEXT, second.exchange)


def test_system_messages_in_mid_conversation_keep_the_link() -> None:
    """seed-003 2.8.6: also two user messages behind each other."""
    talk = Talk()
    note = {"role": "system", "content": "<total_tokens>1000</total_tokens>"}
    history = [user("go"), note]
    first = talk.ask(history)
    history += [talk.reply(first, "yes"), user("on"), user("and on"), note]
    second = talk.ask(history)
    history += [talk.reply(second, "yes yes"), {"role": "system", "content": []}, user("further")]
    third = talk.ask(history)
    assert [link.parent for link in (second, third)] == [first.exchange, second.exchange]
    assert {link.branch for link in (first, second, third)} == {1}


def test_a_missing_request_in_between_still_links() -> None:
    talk = Talk()
    first = talk.ask([user("go")])
    later = talk.ask([user("go"), said("a"), user("b"), said("c"), user("d"), said("e"), user("f")])
    assert (later.edge, later.parent, later.branch) == (Edge.NEXT, first.exchange, 1)


def test_both_continuation_wordings_link() -> None:
    """seed-003 9.5; the new wording is also replayed from captures."""
    for text in (
        old_continuation("A.\n\nSummary:\nnot this one", "It is about tests, and they are green."),
        "This session is being continued from a previous conversation that ran out of context. The summary below "
        "covers the earlier portion of the conversation.\n\nSummary:\nIt is about tests, and they are green.\n\nGo on.",
    ):
        talk = Talk()
        first = talk.ask([user("go")])
        aside = talk.ask([user("go"), talk.reply(first, "yes"), user(INSTRUCTION)])
        talk.reply(aside, "<analysis>A</analysis><summary>It is about tests,\nand they are green.</summary>")
        # The words decide, not what came last.
        other = talk.ask([user("go"), said("yes"), user("x"), said("y"), user(INSTRUCTION)])
        talk.reply(other, "<summary>About something else.</summary>")
        after = talk.ask([user(text)])
        assert (after.edge, after.parent, after.branch) == (Edge.COMPACTED, aside.exchange, 2)


def test_a_summary_whose_dollars_the_client_put_in_as_patterns_is_found() -> None:
    """Up to 2.1.267 ``$$`` in a summary comes out as ``$`` (client facts 4.3)."""
    talk = Talk()
    first = talk.ask([user("go")])
    aside = talk.ask([user("go"), talk.reply(first, "yes"), user(INSTRUCTION)])
    talk.reply(aside, "<summary>It costs $$5 or $$' altogether.</summary>")
    other = talk.ask([user("go"), said("yes"), user("x"), said("y"), user(INSTRUCTION)])
    talk.reply(other, "<summary>About something else.</summary>")
    after = talk.ask([user(old_continuation("-", "It costs $5 or $' altogether."))])
    assert (after.edge, after.parent) == (Edge.COMPACTED, aside.exchange)


def test_a_failed_compaction_is_nothing_to_go_on_from() -> None:
    talk = Talk()
    first = talk.ask([user("go")])
    good = talk.ask([user("go"), talk.reply(first, "yes"), user(INSTRUCTION)])
    talk.reply(good, "<summary>Said.</summary>")
    bad = talk.ask([user("go"), said("yes"), user("more"), said("y"), user(INSTRUCTION)])
    talk.reply(bad, ok=False)
    after = talk.ask([user(old_continuation("-", "Said otherwise by a hook."))])
    assert (after.edge, after.parent) == (Edge.COMPACTED, good.exchange)


def test_header_only_linking_with_empty_bodies() -> None:
    """seed-003 9.5: nothing but headers to go by."""
    talk = Talk()
    named = {"x-claude-code-request-class": "main"}
    sub = {
        "x-claude-code-request-class": "subagent",
        "x-claude-code-agent-id": "a1",
        "x-claude-code-agent-type": "Plan",
    }
    first = talk.ask([], headers=named)
    talk.reply(first)
    agent = talk.ask([], headers=sub)
    nested = talk.ask([], headers=sub | {"x-claude-code-agent-id": "a2", "x-claude-code-parent-agent-id": "a1"})
    second = talk.ask([], headers=named)
    assert (first.conversation, first.thread, first.edge) == (SESSION, "main", Edge.ROOT)
    assert (second.edge, second.parent, second.branch) == (Edge.NEXT, first.exchange, 1)
    assert (agent.thread, agent.kind) == ("a1", RequestKind.SUBAGENT)
    assert agent.agent is not None
    assert agent.agent.type == "Plan"
    assert (nested.thread, nested.kind) == ("a2", RequestKind.NESTED)
    assert nested.agent is not None
    assert nested.agent.parent_thread == "a1"


def test_repeated_tool_ids_keep_the_link() -> None:
    """seed-003 2.3: a client sent a pair of tool call and result twice."""
    talk = Talk()
    first = talk.ask([user("go")])
    used = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}}
    answer = talk.reply(first, used)
    pair = [answer, user(result("toolu_1", "a"))]
    second = talk.ask([user("go"), *pair, *pair])
    assert (second.edge, second.parent, len(second.points)) == (Edge.NEXT, first.exchange, 2)
    third = talk.ask([user("go"), *pair, *pair, talk.reply(second, "ok"), user("more")])
    assert (third.edge, third.parent) == (Edge.NEXT, second.exchange)


def test_n6_interleaved_subagent_traffic_never_moves_the_main_line_nor_the_reverse() -> None:
    talk = Talk()
    history: list[dict[str, Any]] = [user("go")]
    main = talk.ask(history)
    calls = [call(f"toolu_{i}", f"task {i}") for i in range(2)]
    history.append(talk.reply(main, *calls))
    history.append(user(*(launched(f"toolu_{i}", f"agent{i}") for i in range(2))))
    lines: dict[str, list[dict[str, Any]]] = {f"agent{i}": [user(f"task {i}")] for i in range(2)}
    last = {"main": main.exchange}
    for turn in range(4):
        for agent, line in lines.items():
            link = talk.ask(line, headers={"x-claude-code-agent-id": agent})
            assert (link.thread, link.branch) == (agent, 1)
            if turn:
                assert (link.edge, link.parent) == (Edge.NEXT, last[agent])
            last[agent] = link.exchange
            line += [talk.reply(link, "same words"), user("same question")]
        link = talk.ask(history)
        assert (link.thread, link.branch, link.edge, link.parent) == ("main", 1, Edge.NEXT, last["main"])
        last["main"] = link.exchange
        history += [talk.reply(link, "same words"), user("same question")]


def test_n7_a_rewound_or_forked_history_is_another_branch() -> None:
    """So a checkpoint of the tail that was left can be told not to fit, and an earlier one found by its parent."""
    talk = Talk()
    history = [user("a")]
    asked = []
    for turn in range(4):
        link = talk.ask(history)
        asked.append(link)
        history += [talk.reply(link, f"answer {turn}"), user(f"question {turn}")]
    rewound = talk.ask([*history[:4], user("something else")])
    assert (rewound.edge, rewound.branch, rewound.parent) == (Edge.REWIND, 2, asked[1].exchange)
    assert [point.depth for point in rewound.points] == [5]
    shared = {point.chain for link in asked[:2] for point in link.points}
    left = {point.chain for link in asked[2:] for point in link.points}
    assert not shared & {point.chain for point in rewound.points}
    forked = talk.ask([*history[:6], user("elsewhere")], session=OTHER)
    assert (forked.conversation, forked.edge, forked.parent) == (OTHER, Edge.FORK, asked[2].exchange)
    assert forked.branch == 1
    assert {point.chain for point in forked.points} & left  # a fork holds its history itself
    back = talk.ask(history)
    assert (back.branch, back.edge, back.parent) == (1, Edge.NEXT, asked[3].exchange)


def test_n13_json_user_id_rotating_billing_block_and_moving_cache_marks_keep_one_identity() -> None:
    talk = Talk(session=None)
    account = "11111111-2222-4333-8444-555555555555"
    history: list[dict[str, Any]] = [user("go")]
    found = []
    for turn in range(4):
        billing = (
            f"x-anthropic-billing-header: cc_version=2.1.329.7b2; cc_entrypoint=cli; cch={turn:05x}; "
            f"cc_prev_req=req_{turn}; cc_prompt_id=p{turn}; cc_turn_index={turn};"
        )
        user_id = f'{{"device_id":"d","account_uuid":"{account}","session_id":"{SESSION}"}}'
        if turn == 3:
            user_id = f"user_d_account_{account}_session_{SESSION}"
        marked = {**history[-1], "content": [{**history[-1]["content"][0], "cache_control": {"type": "ephemeral"}}]}
        link = talk.ask(
            [*history[:-1], marked],
            system=[{"type": "text", "text": billing}, {"type": "text", "text": "You are."}],
            metadata={"user_id": user_id},
        )
        found.append(link)
        history[-1] = {"role": "user", "content": history[-1]["content"][0]["text"]}
        history += [talk.reply(link, f"answer {turn}"), user(f"question {turn}")]
    assert {(link.conversation, link.thread, link.branch) for link in found} == {(SESSION, "main", 1)}
    assert [link.parent for link in found[1:]] == [link.exchange for link in found[:-1]]
    assert {one.source for link in found for one in link.evidence if one.question == "session"} == {"metadata.user_id"}


def test_old_tool_results_that_the_client_clears_are_no_rewind() -> None:
    talk = Talk()
    history: list[dict[str, Any]] = [user("go")]
    for turn in range(5):
        link = talk.ask(history)
        used = {"type": "tool_use", "id": f"toolu_{turn}", "name": "Bash", "input": {"n": turn}}
        history += [talk.reply(link, used), user(result(f"toolu_{turn}", "much output"))]
    last = talk.ask(history)
    answer = talk.reply(last, "I see")
    history[2] = user(result("toolu_0", "[cleared]"))
    history += [answer, user("thanks")]
    cleared = talk.ask(history)
    assert (cleared.edge, cleared.branch, cleared.parent) == (Edge.NEXT, 1, last.exchange)
    after = talk.ask([*history, talk.reply(cleared, "welcome"), user("bye")])
    assert (after.edge, after.branch, after.parent) == (Edge.NEXT, 1, cleared.exchange)
    again = talk.restarted().ask([*history, said("welcome"), user("bye bye")])
    assert (again.edge, again.branch, again.parent) == (Edge.REWIND, 2, cleared.exchange)


def test_an_interrupted_answer_goes_on() -> None:
    """Client facts 5: the partial text comes back, then a note, then the new prompt."""
    talk = Talk()
    first = talk.ask([user("go")])
    partial = talk.reply(first, "I wi", ok=False)
    second = talk.ask([user("go"), partial, user("[Request interrupted by user]", "stop")])
    assert (second.edge, second.parent, second.branch) == (Edge.NEXT, first.exchange, 1)


def test_clients_that_name_no_session_are_told_apart() -> None:
    """The same first words by many; the answers, the account and the program tell who goes on."""
    talk = nameless()
    starts = [talk.ask([user("hi")], account=f"acct{i % 2}") for i in range(6)]
    assert len({link.conversation for link in starts}) == 6
    answers = [talk.reply(link, f"hello {i}") for i, link in enumerate(starts)]
    for i in (3, 0, 5):
        on = talk.ask([user("hi"), answers[i], user("how are you")], account=f"acct{i % 2}")
        assert (on.conversation, on.parent) == (starts[i].conversation, starts[i].exchange)
    foreign = talk.ask([user("hi"), answers[1], user("how are you")], account="somebody else")
    assert foreign.conversation not in {link.conversation for link in starts}
    program = talk.ask([user("hi"), answers[1], user("how are you")], account="acct1", headers={"user-agent": "curl/8"})
    assert program.conversation not in {link.conversation for link in starts}
    retried = talk.ask([user("new")])
    talk.reply(retried, ok=False)
    again = talk.ask([user("new")])
    assert (again.conversation, again.edge, again.attempt) == (retried.conversation, Edge.RETRY, 2)


def test_a_side_request_of_a_client_without_session_belongs_nowhere() -> None:
    talk = nameless()
    link = talk.ask([user("x")], path="/v1/messages/count_tokens?beta=true")
    assert (link.conversation, link.thread, link.branch, link.kind) == ("", "", 0, RequestKind.COUNT_TOKENS)


def test_odd_session_ids_do_not_become_ids() -> None:
    for odd in ("x" * 500, "a\tb"):
        link = Talk().ask([user("hi")], headers={"user-agent": CLIENT}, session=odd)
        assert link.conversation.startswith("c-")
        assert len(link.conversation) == 18


@pytest.mark.parametrize("known", [True, False])
def test_message_threads_are_rebuilt_from_the_stored_chain(known: bool) -> None:
    """API facts 2.6: a continuation carries only what is new."""
    talk = Talk()
    first = talk.ask([user("go")], thread={"type": "create"})
    answer = talk.reply(first, "yes", id="msg_1")
    if not known:
        talk = talk.restarted()
    second = talk.ask([user("on")], thread={"type": "continue", "previous_message_id": "msg_1"})
    assert (second.edge, second.branch, second.parent) == (Edge.NEXT, 1, first.exchange)
    assert [point.depth for point in second.points] == [2, 3]
    talk.reply(second, "yes again", id="msg_2")
    refused = talk.ask([user("further")], thread={"type": "continue", "previous_message_id": "msg_2"})
    assert refused.parent == second.exchange
    talk.reply(refused, ok=False)
    history = [user("go"), answer, user("on"), said("yes again"), user("further")]
    whole = talk.ask(history, thread={"type": "create"})
    assert (whole.edge, whole.branch, whole.attempt, whole.parent) == (Edge.RETRY, 1, 2, refused.exchange)
    last = talk.ask([*history, talk.reply(whole, "done", id="msg_3"), user("bye")])
    assert (last.edge, last.branch, last.parent) == (Edge.NEXT, 1, whole.exchange)


def test_a_refused_continuation_whose_history_reads_otherwise_is_still_a_retry() -> None:
    """The client may word an earlier answer otherwise than the stream did; the thread's chain could not know."""
    talk = Talk()
    first = talk.ask([user("go")], thread={"type": "create"})
    talk.reply(first, "yes", id="msg_1")
    second = talk.ask([user("on")], thread={"type": "continue", "previous_message_id": "msg_1"})
    talk.reply(second, ok=False)
    whole = talk.ask([user("go"), said("yes, but written otherwise"), user("on")], thread={"type": "create"})
    assert (whole.edge, whole.branch, whole.attempt) == (Edge.RETRY, 1, 2)
    history = [user("go"), said("yes, but written otherwise"), user("on"), talk.reply(whole, "ok"), user("bye")]
    last = talk.ask(history)
    assert (last.edge, last.branch, last.parent) == (Edge.NEXT, 1, whole.exchange)


def test_a_message_thread_without_a_stored_chain_is_said_to_be_so() -> None:
    talk = Talk()
    link = talk.ask([user("on")], thread={"type": "continue", "previous_message_id": "msg_unknown"})
    assert (link.conversation, link.edge, link.parent) == (SESSION, Edge.ROOT, "")
    said_so = [(one.question, one.answer, one.detail) for one in link.evidence if one.question == "history"]
    assert said_so == [("history", "not stored", "msg_unknown")]
    talk.reply(link, "ok", id="msg_a")
    on = talk.ask([user("more")], thread={"type": "continue", "previous_message_id": "msg_a"})
    assert (on.edge, on.parent, on.branch) == (Edge.NEXT, link.exchange, 1)


def test_agents_in_a_message_thread_are_found() -> None:
    talk = Talk()
    first = talk.ask([user("go")], thread={"type": "create"})
    talk.reply(first, call("toolu_1", "task"), id="msg_1")
    agent = talk.ask([user("task")], headers={"x-claude-code-agent-id": "a1"}, thread={"type": "create"})
    talk.reply(agent, "working", id="msg_2")
    on = talk.ask(
        [user("more")],
        headers={"x-claude-code-agent-id": "a1"},
        thread={"type": "continue", "previous_message_id": "msg_2"},
    )
    assert (on.thread, on.parent, on.edge) == ("a1", agent.exchange, Edge.NEXT)
    main = talk.ask([user(launched("toolu_1", "a1"))], thread={"type": "continue", "previous_message_id": "msg_1"})
    assert (main.thread, main.parent, main.edge) == ("main", first.exchange, Edge.NEXT)
    found = talk.now_of(on).agent
    assert found is not None
    assert (found.number, found.tool_use_id, found.name) == (1, "toolu_1", "code-reviewer")


def test_forked_history_keeps_agents_numbered_by_the_transcript() -> None:
    """A proxy that joins late reads earlier calls out of the transcript."""
    talk = Talk()
    history = [user("go"), said(call("toolu_1", "old")), user(launched("toolu_1", "gone")), said("x"), user("again")]
    first = talk.ask(history)
    talk.reply(first, call("toolu_2", "new"))
    agent = talk.ask([user("new")], headers={"x-claude-code-agent-id": "fresh"})
    assert agent.agent is not None
    assert (agent.agent.number, agent.agent.tool_use_id) == (2, "toolu_2")


def test_an_agent_is_known_before_its_callers_answer_is_over() -> None:
    """Tools may start while the answer still streams; what is found later corrects all of the agent's links."""
    talk = Talk()
    first = talk.ask([user("go")])
    agent = talk.ask([user("task")], headers={"x-claude-code-agent-id": "a1", "x-claude-code-agent-type": "custom"})
    assert agent.agent is not None
    assert (agent.parent, agent.agent.number, agent.agent.name) == ("", 0, "")
    second = talk.ask(
        [user("task"), talk.reply(agent, "reading"), user("result")], headers={"x-claude-code-agent-id": "a1"}
    )
    talk.reply(first, call("toolu_1", "task", "reviewer"))
    for link in map(talk.now_of, (agent, second)):
        assert link.agent is not None
        assert (link.agent.number, link.agent.name, link.agent.tool_use_id) == (1, "reviewer", "toolu_1")
    assert talk.now_of(agent).parent == first.exchange
    assert talk.now_of(agent).points == agent.points
    assert talk.now_of(second).parent == agent.exchange


def test_two_agents_that_start_agents_at_once_do_not_shift_each_others_numbers() -> None:
    """seed-003 2.8.3."""
    orders = ([0, 1], [1, 0])
    seen = []
    for order in orders:
        talk = Talk()
        first = talk.ask([user("go")], id="e0")
        talk.reply(first, call("toolu_a", "left", "general-purpose"), call("toolu_b", "right", "general-purpose"))
        outer = [
            talk.ask([user(prompt)], id=f"e{i + 1}", headers={"x-claude-code-agent-id": f"out{i}"})
            for i, prompt in enumerate(("left", "right"))
        ]
        for i in order:
            talk.reply(outer[i], call(f"toolu_in{i}", "inner"))
        for i in order:
            named = {"x-claude-code-agent-id": f"in{i}", "x-claude-code-parent-agent-id": f"out{i}"}
            talk.ask([user("inner")], id=f"e{i + 5}", headers=named)
        seen.append({id: link.agent for id, link in sorted(talk.links.items())})
    assert seen[0] == seen[1]
    assert [seen[0][id].number for id in ("e1", "e2", "e5", "e6") if seen[0][id]] == [1, 2, 1, 1]  # type: ignore[union-attr]
