"""What else the design of the double buffer promises: swaps put by, summaries asked for ahead, modes, odd histories."""

from __future__ import annotations

import json

import pytest
from buffertalk import FULL, HALF, OVER, bash, compact_once, compactions, opening, text_of, until
from dbproxy_double_buffer.prompt import OWN_INSTRUCTION

from dbproxy.testing.conversation import Failure, Thread


async def test_a_client_that_goes_on_without_it_rolls_the_swap_back(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        await compact_once(talk)  # and then the person pressed Esc
        assert w.phase(talk) == "PROVISIONAL"
        await w.turn(talk, OVER + 500, "I changed my mind")
        (event,) = await w.told("swap_rejected")
        assert event["reason"] == "the client went on without it"
        assert w.phase(talk) == "WAL_ACTIVE"
        await talk.compact("manual")
        assert "I changed my mind" in bytes(compactions(talk)[-1].answer_body).decode()
        await w.turn(talk, 3_000, "on")
        await w.told("swap_confirmed")
        await w.reach(talk, "IDLE")


async def test_a_client_that_asks_ahead_and_takes_it_later_confirms_then(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        ahead = text_of(await compact_once(talk))
        await w.turn(talk, OVER + 500, "one more before the swap")
        await w.told("swap_rejected")
        summary = ahead.partition("<summary>")[2].partition("</summary>")[0].strip()
        talk.main.messages = [
            {
                "role": "user",
                "content": [
                    {
                        "type": "text",
                        "text": "This session is being continued from a previous conversation that ran out of context. "
                        f"Summary:\n{summary}",
                    }
                ],
            },
            *talk.main.messages[-2:],
        ]
        talk.main.compacted = "auto"
        await w.turn(talk, 4_000, "on")
        await w.told("swap_confirmed")
        await w.reach(talk, "IDLE")


async def test_a_clients_own_summary_ahead_of_time_is_not_paid_for_again(world):
    async with world() as w:
        talk = w.talk()
        await w.turn(talk, HALF)
        await compact_once(talk)  # the client's precompute; the model answers, and the history goes on
        await w.told("compaction_observed")
        await w.turn(talk, OVER, "on with the whole history")
        await w.turn(talk, OVER + 1, "and on")
        assert not w.own()
        assert not w.buffer(talk).observed  # that was no wall


async def test_an_observed_compaction_is_the_wall_from_then_on(world):
    async with world() as w:
        talk = w.talk()
        await w.turn(talk, HALF)
        await talk.compact("auto")
        await w.turn(talk, 3_000, "on")
        await w.turn(talk, int(HALF * 0.71))
        await w.reach(talk, "WAL_ACTIVE")


async def test_the_log_that_outgrows_its_budget_is_summed_up_again(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        await w.turn(talk, OVER + 49_000)
        assert len(w.own()) == 1
        await w.turn(talk, OVER + 51_000, "PAST")
        await until(lambda: w.plugin.checkpoints.made == 2)
        assert w.phase(talk) == "SWAP_READY"
        await talk.compact("manual")
        assert "ORIGIN-SUMMARY 2" in opening(talk)


async def test_while_a_newer_checkpoint_is_made_the_older_one_is_served(world):
    async with world() as w:
        talk = w.talk()
        w.model.summaries = ["good", "hung"]
        await w.checkpointed(talk)
        await w.turn(talk, OVER + 51_000, "PAST")
        await until(lambda: len(w.own()) == 2)
        await talk.compact("manual")
        assert "ORIGIN-SUMMARY 1" in opening(talk)
        assert w.phase(talk) == "PROVISIONAL"
        assert w.buffer(talk).running is None
        await w.turn(talk, 3_000, "on")
        await w.reach(talk, "IDLE")


async def test_when_a_newer_checkpoint_fails_the_older_one_is_still_good(world):
    async with world() as w:
        talk = w.talk()
        w.model.summaries = ["good", "empty"]
        await w.checkpointed(talk)
        await w.turn(talk, OVER + 51_000, "PAST")
        await w.told("checkpoint_failed")
        assert w.phase(talk) == "WAL_ACTIVE"
        await talk.compact("manual")
        assert "ORIGIN-SUMMARY 1" in opening(talk)


@pytest.mark.parametrize("settings", [{"buffer": "off"}, {"buffer": "observe"}, {"passthrough": "true"}])
async def test_other_modes_make_no_call_and_change_no_byte(world, settings):
    async with world(**settings) as w:
        talk = w.talk()
        await w.turn(talk, OVER)
        await w.turn(talk, FULL - 30_000)
        await talk.compact("manual")
        assert not w.own()
        assert len(w.native()) == 1
        assert [a.body for a in talk.client.attempts] == [r.body for r in w.origin.requests]
        if "passthrough" in settings:
            assert all(
                a.answer_body == bytes(r.sent.body)
                for a, r in zip(talk.client.attempts, w.origin.requests, strict=True)
            )
            assert not any(name.startswith("x-dbproxy") for a in talk.client.attempts for name, _ in a.fields)
        assert bool(w.events("checkpoint_observed")) is (settings.get("buffer") == "observe")


async def test_below_the_floor_nothing_is_done(world):
    async with world(compact_trigger_tokens="800000") as w:
        talk = w.talk()
        await w.turn(talk, OVER)
        assert not w.own()


async def test_the_instruction_asks_for_what_the_client_wants():
    assert "<analysis>" in OWN_INSTRUCTION
    assert "<summary>" in OWN_INSTRUCTION


async def test_a_reactive_compaction_keeps_the_last_exchange_and_gets_the_swap(world):
    """API error 400 prompt is too long: the client compacts what stands before the last exchange (client facts 4.2)."""
    from dbproxy.testing.origin import fail

    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        w.model.says.extend([bash("kept"), fail(400, "prompt is too long: 1208310 tokens > 1000000 maximum")])
        w.model.tokens = OVER
        await talk.ask("too much")
        assert talk.compactions == 1
        assert "ORIGIN-SUMMARY 1" in opening(talk)
        assert not w.native()


async def test_the_thread_of_a_session_that_ended_is_no_base(world):
    """A history that ends with the assistant cannot be the base of a checkpoint: nothing is sent."""
    async with world() as w:
        talk = w.talk()
        prefilled = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "{"}]
        w.model.tokens = OVER
        body = {**talk._body(Thread(), prefilled, "main"), "stream": True}
        encoded = json.dumps(body).encode()
        await talk.client.request(
            "POST",
            "/v1/messages?beta=true",
            talk._fields(talk.main, "main", "", "", len(encoded)),
            encoded,
            kind="main",
            take=lambda _, data: None,
        )
        await w.quiet()
        assert not w.own()


async def test_a_failed_compaction_of_the_clients_own_holds_no_checkpoint_back(world):
    async with world() as w:
        talk = w.talk()
        await w.turn(talk, HALF)
        w.model.summaries = ["error_500", "error_500", "error_500", "error_500", "good"]
        with pytest.raises(Failure):
            await talk.compact("auto")
        await w.turn(talk, OVER, "on")
        await w.prepared(talk)
