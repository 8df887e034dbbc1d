"""C1 to C19, C22, C23: what the first double buffer did and ours keeps, through a real proxy with a strict client."""

from __future__ import annotations

import json

import pytest
import trio
from buffertalk import FULL, HALF, NEAR, OVER, WALL, bash, compactions, opening, until

from dbproxy.testing.conversation import Failure
from dbproxy.testing.origin import say, tool_use
from dbproxy.testing.origin.grammar import check_stream
from dbproxy.testing.origin.summaries import summary_answer, summary_text


async def test_c1_below_the_threshold_nothing_happens(world):
    async with world() as w:
        talk = w.talk()
        await w.turn(talk, WALL // 4)
        await w.turn(talk, HALF)
        await w.turn(talk, 676_000)  # 69.9%
        assert w.phase(talk) == "IDLE"
        assert not w.own()
        assert len(w.origin.requests) == 3


async def test_c2_the_answer_that_crosses_the_threshold_makes_one_checkpoint(world):
    async with world() as w:
        talk = w.talk()
        w.model.options = {"seconds": 1.0}
        began = trio.current_time()
        await w.turn(talk, 677_000)  # 70.01%
        assert trio.current_time() - began < 1.0  # the client's answer did not wait for the summary
        await w.reach(talk, "WAL_ACTIVE")
        await w.turn(talk, 678_000)
        (made,) = w.own()
        live = next(r for r in w.origin.requests if r not in w.own())
        for name in ("x-api-key", "anthropic-version", "anthropic-beta", "user-agent", "x-claude-code-session-id"):
            assert made.header(name) == live.header(name)
        assert made.target == live.target
        assert made.query == "beta=true"
        for name in ("model", "system", "tools", "thinking", "max_tokens", "context_management", "output_config"):
            assert made.json[name] == live.json[name]
        before, after = live.json["messages"], made.json["messages"]
        if live.json["messages"][-1]["role"] == "system":
            assert after[:-1] == before
        else:
            assert after[:-1] == before[:-1]
        assert "detailed summary" in json.dumps(after[-1])
        assert made.role == "compaction"
        for name in ("x-claude-code-prompt-id", "x-claude-code-prev-tool-durations", "x-claude-code-context-compacted"):
            assert made.header(name) is None
        assert made.header("x-client-request-id") != live.header("x-client-request-id")


async def test_c3_a_finished_checkpoint_starts_the_log_without_another_request(world):
    async with world() as w:
        talk = w.talk()
        w.model.options = {"seconds": 0.8}
        await w.turn(talk, OVER)
        assert w.phase(talk) == "CHECKPOINTING"
        asked = len(talk.client.attempts)
        await w.reach(talk, "WAL_ACTIVE")
        assert len(talk.client.attempts) == asked
        assert [e["to_phase"] for e in await w.told("phase_transition", 3)] == [
            "CHECKPOINT_PENDING",
            "CHECKPOINTING",
            "WAL_ACTIVE",
        ]
        assert len(await w.told("wal_started")) == 1


async def test_c4_past_the_swap_threshold_a_swap_is_ready_and_requests_go_on(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        said = await w.turn(talk, NEAR, "more", say("From the model itself."))
        await w.reach(talk, "SWAP_READY")
        assert said == "From the model itself."
        assert await w.turn(talk, NEAR, "and more", say("Again.")) == "Again."
        assert len([r for r in w.origin.requests if r.role == "main"]) == 3
        assert len(w.own()) == 1


async def test_c5_a_compact_request_without_stream_gets_a_message(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        await w.turn(talk, NEAR, "the second words: PLANTED")
        await w.reach(talk, "SWAP_READY")
        from dbproxy.testing.conversation import _with_instruction

        body = talk._body(talk.main, _with_instruction(talk.main.messages), "compaction")
        encoded = json.dumps({**body, "stream": False}).encode()
        fields = talk._fields(talk.main, "compaction", "auto", "", len(encoded))
        got = bytearray()
        answer = await talk.client.request(
            "POST", "/v1/messages?beta=true", fields, encoded, kind="compaction", take=lambda _, data: got.extend(data)
        )
        assert answer.status == 200
        assert answer.field("content-type") == "application/json"
        message = json.loads(got)
        assert (message["type"], message["role"], message["stop_reason"]) == ("message", "assistant", "end_turn")
        (block,) = message["content"]
        assert block["type"] == "text"
        assert "ORIGIN-SUMMARY 1" in block["text"]
        assert "the second words: PLANTED" in block["text"]
        assert message["model"] == "claude-opus-5-5"
        assert message["usage"]["output_tokens"] > 0
        assert not message["id"].startswith("msg_")
        assert answer.field("request-id") is None
        assert not w.native()


async def test_c6_a_stream_has_the_six_events_in_order(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        await talk.compact("manual")
        (sent,) = compactions(talk)
        check_stream(bytes(sent.answer_body))
        events = [json.loads(line[6:]) for line in sent.answer_body.decode().splitlines() if line.startswith("data: ")]
        kinds = [event["type"] for event in events if event["type"] != "ping"]
        assert kinds[:2] == ["message_start", "content_block_start"]
        assert set(kinds[2:-3]) == {"content_block_delta"}
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert events[-2]["delta"]["stop_reason"] == "end_turn"
        assert not w.native()


async def test_c7_delivered_is_provisional_and_idle_once_confirmed_and_the_next_cycle_runs(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        await talk.compact("manual")
        assert w.phase(talk) == "PROVISIONAL"
        await w.turn(talk, 3_000, "after the first")
        await w.reach(talk, "IDLE")
        assert len(await w.told("swap_confirmed")) == 1
        await w.turn(talk, OVER, "filling again")
        await w.reach(talk, "WAL_ACTIVE")
        await talk.compact("manual")
        assert "ORIGIN-SUMMARY 2" in opening(talk)


async def test_c8_below_the_swap_threshold_a_compact_request_swaps_early(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        assert w.phase(talk) == "WAL_ACTIVE"
        await talk.compact("manual")
        assert "ORIGIN-SUMMARY 1" in opening(talk)
        assert not w.native()


async def test_c9_while_the_checkpoint_runs_the_answer_waits_and_is_a_swap(world):
    async with world() as w:
        talk = w.talk()
        w.model.options = {"seconds": 1.0}
        await w.turn(talk, OVER)
        assert w.phase(talk) == "CHECKPOINTING"
        began = trio.current_time()
        await talk.compact("auto")
        assert 0.1 < trio.current_time() - began < 5.0
        assert "ORIGIN-SUMMARY 1" in opening(talk)
        assert not w.native()


async def test_c9_the_wait_is_bounded_then_the_head_comes_and_the_model_is_asked_too(world):
    async with world(buffer_hold_seconds="0.1", buffer_native_after_seconds="0.1") as w:
        talk = w.talk()
        w.model.summaries = ["hung", "good"]
        await w.turn(talk, OVER)
        assert w.phase(talk) == "CHECKPOINTING"
        await talk.compact("auto")
        assert "ORIGIN-SUMMARY 2" in opening(talk)  # the model's own answer to the client's request
        assert w.phase(talk) == "IDLE"
        assert len(compactions(talk)) == 1
        check_stream(bytes(compactions(talk)[0].answer_body))
        assert not w.buffer(talk).checkpoints


async def test_c9_after_the_bound_the_checkpoint_may_still_win(world):
    async with world(buffer_hold_seconds="0.05", buffer_native_after_seconds="30") as w:
        talk = w.talk()
        w.model.options = {"seconds": 1.0}
        await w.turn(talk, OVER)
        await talk.compact("auto")
        assert "ORIGIN-SUMMARY 1" in opening(talk)
        (sent,) = compactions(talk)
        check_stream(bytes(sent.answer_body))
        assert not w.native()
        assert len(w.own()) == 1
        assert w.phase(talk) == "PROVISIONAL"


async def test_c10_without_a_checkpoint_the_request_goes_on_as_it_is_and_the_state_is_reset(world):
    async with world() as w:
        talk = w.talk()
        await w.turn(talk, HALF)
        await talk.compact("manual")
        (native,) = w.native()
        assert native.body == compactions(talk)[0].body
        assert "ORIGIN-SUMMARY 1" in opening(talk)
        await w.told("compaction_observed")
        assert w.phase(talk) == "IDLE"
        assert not w.own()


async def test_c11_one_answer_past_both_thresholds_and_a_later_compact_request_swaps(world):
    async with world() as w:
        talk = w.talk()
        await w.turn(talk, 960_000)
        await w.reach(talk, "SWAP_READY")
        await talk.compact("manual")
        assert "ORIGIN-SUMMARY 1" in opening(talk)
        assert not w.native()


async def test_c12_results_beside_the_instruction_are_in_the_log_and_the_instruction_is_not(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        # The call's answer is beyond the wall: the client compacts as soon as the tool's result is there.
        full = bash("PLANTED-RESULT $' $& </summary>").but(
            usage={"input_tokens": 10, "cache_read_input_tokens": FULL, "output_tokens": 5}
        )
        w.model.says.extend([full])
        w.model.tokens = 3_000
        await talk.ask("run something")
        assert talk.compactions == 1
        text = opening(talk)
        assert "PLANTED-RESULT $' $& </summary>" in bytes(compactions(talk)[0].answer_body).decode()
        assert "PLANTED-RESULT" in json.loads(compactions(talk)[0].body)["messages"][-1]["content"][0]["content"]
        assert "ORIGIN-SUMMARY 1" in text
        assert "TEXT ONLY" not in bytes(compactions(talk)[0].answer_body).decode()
        assert not w.native()


async def test_c13_a_checkpoint_never_holds_a_tool_use_without_its_result(world):
    async with world() as w:
        talk = w.talk()
        w.model.tokens = OVER
        w.model.says.extend([bash("one"), bash("two"), bash("three")])
        await talk.ask("a long tool round")
        await w.quiet()
        (made,) = w.own()
        calls = {
            b["id"] for m in made.messages for b in m["content"] if isinstance(b, dict) and b["type"] == "tool_use"
        }
        results = {
            b["tool_use_id"]
            for m in made.messages
            for b in m["content"]
            if isinstance(b, dict) and b["type"] == "tool_result"
        }
        assert calls == results


async def test_c13_the_checkpoint_is_made_inside_a_tool_round(world):
    async with world() as w:
        talk = w.talk()
        w.model.tokens = OVER
        w.model.says.extend([bash("one").but(gap=0.02), bash("two").but(gap=0.02), say("x", head_delay=0.3)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.ask, "a long tool round")
            await w.reach(talk, "WAL_ACTIVE")
            assert not talk.answers


async def test_c14_the_request_after_a_swap_confirms_it(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        await talk.compact("auto")
        assert w.phase(talk) == "PROVISIONAL"
        assert await w.turn(talk, 3_000, "go on", say("Gone on.")) == "Gone on."
        await w.reach(talk, "IDLE")
        (event,) = await w.told("swap_confirmed")
        assert event["by"] == "words"
        following = w.origin.requests[-1]
        assert "ORIGIN-SUMMARY 1" in following.first_text
        assert following.sent.status == 200


async def test_c15_context_management_reaches_the_api(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        edits = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
        assert [r.json["context_management"] for r in w.origin.requests] == [edits] * len(w.origin.requests)


@pytest.mark.parametrize("failure", ["reset_early", "cut_early", "reset", "cut", "error_503"])
async def test_c16_one_broken_connection_is_made_good_by_one_more_try(world, quick, failure):
    async with world() as w:
        talk = w.talk()
        w.model.summaries = [failure, "good"]
        await w.checkpointed(talk)
        assert len(w.own()) == 2
        assert len(await w.told("checkpoint_started", 2)) == 2
        await talk.compact("manual")
        assert "ORIGIN-SUMMARY 2" in opening(talk)


async def test_c16_a_failure_that_stays_ends_it_after_few_tries(world, quick):
    async with world() as w:
        talk = w.talk()
        w.model.summaries = ["reset_early"]
        await w.turn(talk, OVER)
        await w.told("checkpoint_failed")
        await w.reach(talk, "IDLE")
        assert len(w.own()) == 3


async def test_c16_a_500_is_not_tried_again_blindly(world):
    async with world() as w:
        talk = w.talk()
        w.model.summaries = ["error_500"]
        await w.turn(talk, OVER)
        await w.reach(talk, "CHECKPOINT_PENDING")  # it waits for two seconds first
        assert len(w.own()) == 1


async def test_c17_side_requests_change_nothing(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        before = w.buffer(talk).tokens, w.phase(talk), w.buffer(talk).checkpoints
        for kind in ("auxiliary", "side_reply"):
            body = talk._body(talk.main, [{"role": "user", "content": f"[SUGGESTION MODE: {kind}]"}], "main")
            body["tools"] = []
            encoded = json.dumps({**body, "stream": True}).encode()
            w.model.tokens = 12_345
            fields = [
                (name, kind if name == "x-claude-code-request-class" else value)
                for name, value in talk._fields(talk.main, "main", "", "", len(encoded))
            ]
            await talk.client.request(
                "POST", "/v1/messages?beta=true", fields, encoded, kind="side", take=lambda _, data: None
            )
        await w.quiet()
        assert (w.buffer(talk).tokens, w.phase(talk), w.buffer(talk).checkpoints) == before
        await talk.compact("manual")
        assert "SUGGESTION" not in opening(talk)


async def test_c18_another_model_has_its_own_checkpoint(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        first = w.buffer(talk).newest
        talk.settings = type(talk.settings)(**{**_settings(talk), "model": "claude-sonnet-5-5"})
        await w.turn(talk, OVER + 1_000, "with another model")
        await until(lambda: w.buffer(talk).newest is not first)
        assert [c.model for c in w.buffer(talk).checkpoints] == ["claude-opus-5-5", "claude-sonnet-5-5"]
        await talk.compact("manual")
        assert "ORIGIN-SUMMARY 2" in opening(talk)


async def test_c18_a_checkpoint_of_another_model_is_not_served(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        talk.settings = type(talk.settings)(**{**_settings(talk), "model": "claude-sonnet-5-5"})
        await talk.compact("manual")
        assert len(w.native()) == 1


def _settings(talk):
    return {name: getattr(talk.settings, name) for name in talk.settings.__dataclass_fields__}


async def _reset(w, body):
    stream = await w.rig.plain()
    token = (w.rig.data_dir / "run" / "control-token").read_text().strip()
    sent = json.dumps(body)
    await stream.send_all(
        f"POST /v1/_reset HTTP/1.1\r\nHost: 127.0.0.1:{w.rig.running.port}\r\nAuthorization: Bearer {token}\r\n"
        f"Connection: close\r\nContent-Length: {len(sent)}\r\n\r\n{sent}".encode()
    )
    got = b"".join([piece async for piece in stream])
    return int(got.split()[1]), json.loads(got.partition(b"\r\n\r\n")[2])


async def test_c19_reset(world):
    async with world() as w:
        one, other = w.talk(), w.talk()
        await w.checkpointed(one)
        await w.checkpointed(other)
        assert await _reset(w, {"conv_id": one.session[:13]}) == (200, {"status": "reset", "conv_id": one.session})
        assert w.phase(one) == "IDLE"
        assert w.phase(other) == "WAL_ACTIVE"
        assert (await _reset(w, {"conv_id": "no-such"}))[0] == 404
        status, told = await _reset(w, {})
        assert (status, told["status"]) == (200, "reset_all")
        assert told["count"] >= 1
        assert w.phase(other) == "IDLE"
        await one.compact("manual")
        assert len(w.native()) == 1  # what was forgotten is not served


async def test_c22_the_status_line_shows_the_phase(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        file = w.rig.data_dir / "run" / "status" / talk.session
        await until(lambda: file.exists() and file.read_text().startswith("ON WAL_ACTIVE "), lambda: "no such line")


@pytest.mark.parametrize("kind", ["key", "bearer"])
async def test_c23_both_kinds_of_credentials_make_checkpoints(world, kind):
    async with world() as w:
        talk = w.talk(key="sk-ant-api03-mine")
        if kind == "bearer":
            given = talk._fields
            talk._fields = lambda *a: [
                ("authorization", "Bearer sk-ant-oat01-mine") if name == "x-api-key" else (name, value)
                for name, value in given(*a)
            ]
        await w.checkpointed(talk)
        (made,) = w.own()
        assert made.header("x-api-key") == (None if kind == "bearer" else "sk-ant-api03-mine")
        assert made.header("authorization") == ("Bearer sk-ant-oat01-mine" if kind == "bearer" else None)
        await talk.compact("manual")
        assert "ORIGIN-SUMMARY 1" in opening(talk)
        kept = [path for path in (w.rig.data_dir / "plugin-data").rglob("*") if path.is_file()]
        assert kept
        assert not [path for path in kept if b"mine" in path.read_bytes()]


async def test_two_full_cycles_in_one_conversation_with_two_summaries(world):
    async with world() as w:
        talk = w.talk()
        for cycle in (1, 2):
            w.model.tokens = OVER
            w.model.says.extend([bash(f"cycle {cycle}"), say("Ready.", head_delay=0.05)])
            await talk.ask(f"prompt of cycle {cycle}")
            await w.reach(talk, "WAL_ACTIVE")
            await w.turn(talk, NEAR, f"FACT-{cycle}")
            await w.reach(talk, "SWAP_READY")
            w.model.says.extend([bash("over").but(usage={"input_tokens": 1, "cache_read_input_tokens": FULL})])
            w.model.tokens = 3_000
            await talk.ask("one step too far")
            assert talk.compactions == cycle
            assert f"ORIGIN-SUMMARY {cycle}" in opening(talk)
            await w.reach(talk, "IDLE")
        confirmed = await w.told("swap_confirmed", 2)
        assert len({event["checkpoint"] for event in confirmed}) == 2
        assert len(w.events("swap_executed")) == 2
        assert len(w.own()) == 2
        assert not w.native()
        bodies = [bytes(sent.answer_body).decode() for sent in compactions(talk)]
        assert "FACT-1" in bodies[0]
        assert "FACT-2" in bodies[1]
        assert "FACT-1" not in bodies[1].partition("</summary>")[0]


async def test_what_the_swap_says_stands_in_the_record(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        await w.turn(talk, NEAR, "x" * 2_000)
        await talk.compact("manual")
        (event,) = await w.told("swap_executed")
        assert event["tokens_before"] == NEAR
        assert 0 < event["tokens_after"] < 5_000
        assert event["log_messages"] == 3
        line = json.loads((w.rig.data_dir / "plugin-data" / "double-buffer" / "swaps.jsonl").read_text())
        assert line["conv_id"] == talk.session
        assert "x" * 100 not in json.dumps(line)


@pytest.mark.parametrize("summary", ["summary_only", "no_tags", "thinking"])
async def test_odd_summaries_that_the_client_would_take_are_good_checkpoints(world, summary):
    async with world() as w:
        talk = w.talk()
        w.model.summaries = [summary]
        await w.checkpointed(talk)
        await talk.compact("manual")
        assert "ORIGIN-SUMMARY" in opening(talk)
        assert len(compactions(talk)) == 1


async def test_a_tool_call_instead_of_a_summary_is_refused_and_asked_again(world):
    async with world() as w:
        talk = w.talk()
        w.model.summaries = [say(tool_use("Bash", {"command": "ls"}, call_id="toolu_1")), "good"]
        await w.checkpointed(talk)
        first, second = w.own()
        more = second.json["messages"][len(first.json["messages"]) :]
        assert [m["role"] for m in more] == ["assistant", "user"]
        assert more[1]["content"][0] == {
            "type": "tool_result",
            "tool_use_id": "toolu_1",
            "is_error": True,
            "content": "Tools cannot be used here. Write the summary as text.",
        }
        await talk.compact("manual")
        assert "ORIGIN-SUMMARY 2" in opening(talk)


async def test_the_clients_own_instruction_is_learned_and_used(world):
    async with world() as w:
        first = w.talk()
        await w.turn(first, HALF)
        await first.compact("manual")  # the model's answer; the instruction is known from here on
        await w.told("compaction_observed")
        second = w.talk()
        await w.checkpointed(second)
        (made,) = w.own()
        assert "Wrap your thoughts in <analysis></analysis>" in json.dumps(made.json["messages"][-1])


async def test_a_summary_with_tags_dollars_and_blank_lines_arrives_whole(world):
    told = "first\n\n\n\nA $' and $& and $` and $$ and $1.\n" + "B" * 300
    async with world() as w:
        talk = w.talk()
        w.model.summaries = [say(f"<analysis>a</analysis>\n<summary>\n{told}\n</summary>")]
        await w.checkpointed(talk)
        await talk.compact("manual")
        assert "A $' and $& and $` and $$ and $1.\n" + "B" * 300 in opening(talk)


async def test_a_client_that_is_not_answered_fails_loudly_here(world):
    """The scripted agent is strict: what it accepts from us, it would refuse in a worse form."""
    async with world(buffer="off") as w:
        talk = w.talk()
        w.model.summaries = ["empty"]
        await w.turn(talk, OVER)
        with pytest.raises(Failure):
            await talk.compact("manual")
        assert not w.own()


def test_the_models_summaries_differ():
    assert summary_text(1) != summary_text(2)
    assert summary_answer("good", 3, {}).blocks[0]["text"] == summary_text(3)
