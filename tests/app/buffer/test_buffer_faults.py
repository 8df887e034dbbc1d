"""Whatever happens to a checkpoint, the client sees what it would have seen without us: client facts 4.4 and 5."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
import trio
from buffertalk import FULL, HALF, NEAR, OVER, bash, compactions, opening, until

from dbproxy.testing.conversation import Failure
from dbproxy.testing.origin import Answer, say
from dbproxy.testing.origin.events import encode, message_events
from dbproxy.testing.origin.summaries import FAILURES, ODD, summary_answer

ENDLESS = ("hung", "stalled")


@pytest.mark.parametrize("kind", sorted(FAILURES))
async def test_an_upstream_that_fails_a_checkpoint_in_any_way_is_never_seen_by_the_client(world, quick, kind):
    """The checkpoint fails so and stays so; the client's own requests are answered, its compaction by the model."""
    async with world(buffer_hold_seconds="0.1", buffer_native_after_seconds="0.05") as w:
        talk = w.talk(max_retries=0)  # any error that it saw would end it
        w.model.summaries = [kind]
        w.model.options = {"retry_after": 0.01}
        w.model.says.extend([bash("one"), bash("two")])
        w.model.tokens = OVER
        await talk.ask("a round of tools")
        await w.turn(talk, OVER + 10, "and one more")
        if kind not in ENDLESS:
            await w.told("checkpoint_failed")
            await w.reach(talk, "IDLE")
        assert not w.buffer(talk).checkpoints
        w.model.summaries = [summary_answer("good", 99, {})]
        await talk.compact("auto")
        assert "ORIGIN-SUMMARY 99" in opening(talk)
        assert await w.turn(talk, 3_000, "on", say("On.")) == "On."
        assert {a.status for a in talk.client.attempts} == {200}
        assert not w.events("buffer_crashed", "plugin_failed")
        assert w.phase(talk) == "IDLE"


@pytest.mark.parametrize("kind", sorted(FAILURES))
async def test_a_model_that_fails_the_clients_own_request_is_seen_as_it_is(world, kind):
    """Nothing was prepared: what the client gets is byte for byte what the API said, error or not."""
    if kind in ENDLESS:
        kind = "cut"
    async with world() as w:
        talk = w.talk(max_retries=0)
        await w.turn(talk, HALF)
        w.model.summaries = [kind]
        with suppress(Failure):  # what the strict client makes of it is its own business
            await talk.compact("auto")
        sent, native = compactions(talk)[0], w.native()[0]
        assert sent.status in (native.sent.status, 502)
        if native.sent.complete:
            assert bytes(sent.answer_body) == bytes(native.sent.body)
        w.model.summaries = ["good"]
        await w.turn(talk, OVER, "on")
        await w.prepared(talk)


#: Client facts 4.4, every row in which we are the answering side: the client must take what we send, in one request.
@pytest.mark.parametrize("summary", ["good", *sorted(ODD)])
@pytest.mark.parametrize("stream", [True, False])
async def test_what_we_answer_is_taken_at_once_in_each_form(world, summary, stream):
    async with world() as w:
        talk = w.talk(max_retries=0)
        w.model.summaries = [summary]
        await w.checkpointed(talk)
        if not stream:
            # The client repeats without stream after a broken one (client facts 4.4): it gets the same answer.
            import dbproxy.testing.conversation as conversation

            made = conversation._Tries
            talk_tries = lambda limit, kind: made(limit, kind, stream=False)  # noqa: E731
            conversation._Tries = talk_tries
            try:
                await talk.compact("auto")
            finally:
                conversation._Tries = made
        else:
            await talk.compact("auto")
        assert "ORIGIN-SUMMARY" in opening(talk)
        (sent,) = compactions(talk)
        assert sent.field("content-type").startswith("text/event-stream" if stream else "application/json")
        assert not w.native()


async def test_a_client_that_is_made_to_wait_hears_pings(world, monkeypatch):
    """Client facts 4.4: silence with pings is accepted; 180 s without a byte are not."""
    monkeypatch.setattr("dbproxy_double_buffer.swap.PING_EVERY", 0.1)
    async with world(buffer_hold_seconds="0.05") as w:
        talk = w.talk(max_retries=0)
        w.model.options = {"seconds": 1.5}
        await w.turn(talk, OVER)
        talk.client.idle_seconds = 0.6
        await talk.compact("auto")
        body = bytes(compactions(talk)[0].answer_body)
        assert body.count(b"event: ping") >= 4
        assert "ORIGIN-SUMMARY 1" in opening(talk)


async def test_a_race_that_both_lose_is_a_broken_stream_and_the_next_try_goes_to_the_model(world, quick):
    async with world(buffer_hold_seconds="0.05", buffer_native_after_seconds="0.05") as w:
        talk = w.talk(max_retries=2)
        late = summary_answer("empty", 1, {"seconds": 1.2})
        w.model.summaries = [late, "error_500", "good"]
        await w.turn(talk, OVER)
        await talk.compact("auto")
        first, second = compactions(talk)
        assert first.status == 200
        assert not first.complete  # never a clean end
        assert second.complete
        assert "ORIGIN-SUMMARY 3" in opening(talk)


@pytest.mark.parametrize("broken", ["cut", "unfinished"])
async def test_a_native_answer_that_breaks_off_in_a_race_never_ends_cleanly(world, broken):
    async with world(buffer_hold_seconds="0.05", buffer_native_after_seconds="0.05") as w:
        talk = w.talk(max_retries=2)
        late = summary_answer("empty", 1, {"seconds": 1.2})
        half = [encode(event) for event in message_events(say("<summary>half").blocks, model="claude-opus-5-5")[:3]]
        # Cut on the wire, or ended in good order before its last event.
        w.model.summaries = [late, "cut" if broken == "cut" else Answer(events=tuple(half)), "good"]
        await w.turn(talk, OVER)
        await talk.compact("auto")
        assert [a.complete for a in compactions(talk)] == [False, True]


async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind(world):
    async with world(buffer_hold_seconds="0.1") as w:
        talk = w.talk()
        w.model.options = {"seconds": 1.2}
        await w.turn(talk, OVER)
        for pause in (0.05, 0.4):  # while the head is held, and in the stream
            with trio.move_on_after(pause):
                await talk.compact("auto")
        await w.reach(talk, "WAL_ACTIVE")
        assert w.plugin.swaps == 0
        await talk.compact("auto")
        assert "ORIGIN-SUMMARY 1" in opening(talk)
        assert not w.events("plugin_failed", "buffer_crashed")


@pytest.mark.parametrize("pause", [0.0, 0.005, 0.012, 0.02, 0.03, 0.05, 0.08, 0.15])
async def test_a_reset_at_any_moment_costs_the_summary_and_nothing_else(world, pause):
    async with world() as w:
        talk = w.talk(max_retries=0)
        w.model.options = {"seconds": 0.04}

        async def resets():
            await trio.sleep(pause)
            w.plugin.conversation_reset(None)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(resets)
            w.model.tokens = OVER
            await talk.ask("first")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(resets)
            await talk.compact("auto")
        assert "ORIGIN-SUMMARY" in opening(talk)
        await w.turn(talk, OVER, "on")
        await w.turn(talk, OVER + 1_000, "and on")  # a reset in the middle of a look may cost that look
        await w.prepared(talk)
        assert not w.events("buffer_crashed", "plugin_failed")


async def test_a_disk_that_takes_nothing_costs_the_memory_of_restarts_and_nothing_else(world, tmp_path):
    folder = tmp_path / "data" / "plugin-data" / "double-buffer"
    folder.mkdir(parents=True)
    (folder / "buffers").write_text("not a folder")
    (folder / "swaps.jsonl").mkdir()
    async with world() as w:
        talk = w.talk(max_retries=0)
        await w.checkpointed(talk)
        await talk.compact("auto")
        assert "ORIGIN-SUMMARY 1" in opening(talk)
        assert not w.native()
        await w.turn(talk, 3_000, "on")
        await w.reach(talk, "IDLE")
        assert (await w.told("buffer_not_kept"))[0]["reason"]


async def test_broken_bodies_are_the_upstreams_business(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        for body in (
            b"",
            b"[1,2]",
            b'{"messages": null}',
            b'{"messages": "x", "model": 1}',
            b"\xff{",
            b'{"messages": [1]}',
        ):
            fields = [
                (name, "compaction" if name == "x-claude-code-request-class" else value)
                for name, value in talk._fields(talk.main, "main", "auto", "", len(body))
            ]
            got = await talk.client.request(
                "POST", "/v1/messages?beta=true", fields, body, kind="odd", take=lambda _, data: None
            )
            assert got.status in (200, 400)
        assert not w.events("plugin_failed", "buffer_crashed")
        await talk.compact("auto")
        assert "ORIGIN-SUMMARY 1" in opening(talk)


async def test_resets_of_the_clients_connection_during_the_live_answer(world):
    """The live answer breaks off beyond the threshold: nothing is summarised that the client does not have."""
    async with world() as w:
        talk = w.talk(max_retries=2)
        w.model.tokens = OVER
        w.model.says.append(say("cut " * 400, cut_after=4))
        assert await talk.ask("first") == "Well done."
        await w.reach(talk, "WAL_ACTIVE")
        assert len(w.own()) == 1
        await talk.compact("auto")
        assert "ORIGIN-SUMMARY 1" in opening(talk)


async def test_a_checkpoint_holds_no_place_of_the_clients_in_the_pool(world):
    """Ordinary answers beside hung checkpoints of many conversations."""
    async with world() as w:
        w.model.summaries = ["hung"]
        talks = [w.talk(max_retries=0) for _ in range(12)]
        w.model.tokens = OVER
        async with trio.open_nursery() as nursery:
            for talk in talks:
                nursery.start_soon(talk.ask, "go")
        await until(lambda: len(w.own()) == 12)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for talk in talks:
                nursery.start_soon(talk.ask, "on")
        assert trio.current_time() - began < 2.0


async def test_a_long_tool_round_over_the_wall_twice_without_a_pause(world):
    """The client does not wait for us: answers follow each other at once, through two compactions."""
    async with world() as w:
        talk = w.talk(max_retries=0)
        w.model.tokens = OVER
        steps = [OVER, OVER + 10_000, NEAR, FULL, 3_000, HALF, OVER, NEAR, FULL, 3_000]
        for number, tokens in enumerate(steps):
            usage = {"input_tokens": 10, "cache_read_input_tokens": tokens, "output_tokens": 5}
            w.model.says.append(bash(f"step {number}").but(usage=usage, head_delay=0.06))
        await talk.ask("a long run")
        assert talk.compactions == 2
        assert not w.events("buffer_crashed", "plugin_failed")
        texts = [bytes(sent.answer_body).decode() for sent in compactions(talk)]
        assert "ORIGIN-SUMMARY 1" in texts[0]
        assert "step 3" in texts[0]
        assert len(w.native()) == 0
        assert json.dumps(talk.main.messages)
