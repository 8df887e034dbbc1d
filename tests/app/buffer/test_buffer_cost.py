"""What a checkpoint costs against the fake API's prompt cache, and what another policy over the same hooks can do."""

from __future__ import annotations

import json

import pytest
from buffertalk import OVER, Model, compactions, opening
from other_policy import WordsOfTheUser

from dbproxy.testing.origin.prompt_cache import PromptCache
from dbproxy.testing.origin.received import Connection, Received

#: Four tokens a byte: a talk of 180 KB stands for one of 720,000 tokens.
SCALE = 0.25
#: Prices over that of an input token (API facts 2.5).
READ, WRITE = 0.1, 1.25


class Counted(Model):
    """Leaves all counts to the cache."""

    def __init__(self):
        super().__init__()
        self.counts = False


def price(usage):
    return (
        usage["input_tokens"] + READ * usage["cache_read_input_tokens"] + WRITE * usage["cache_creation_input_tokens"]
    )


def usage_of(request):
    for line in bytes(request.sent.body).decode().splitlines():
        if line.startswith("data: ") and '"message_start"' in line:
            return json.loads(line[6:])["message"]["usage"]
    raise AssertionError("no message_start")


def total(usage):
    return usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]


async def filled(w, talk):
    """Fill a conversation until its checkpoint is there; the request that it stands on, and the checkpoint's."""
    for number in range(4):
        await w.turn(talk, 0, f"turn {number}: " + "some words of length " * 2_200)
        if w.own():
            break
    await w.prepared(talk)
    live = [r for r in w.origin.requests if r.role == "main"][-1]
    (made,) = w.own()
    return live, made


async def test_a_checkpoint_reads_the_cached_prefix_and_pays_in_full_only_for_its_instruction(world):
    async with world(model=Counted(), cache=SCALE) as w:
        talk = w.talk()
        live, made = await filled(w, talk)
        before, ours = usage_of(live), usage_of(made)
        assert total(before) > 677_000
        assert ours["cache_read_input_tokens"] == total(before)
        assert ours["cache_creation_input_tokens"] == 0
        asked = made.json["messages"][-1]["content"]
        instruction = asked if isinstance(asked, str) else asked[-1]["text"]
        assert ours["input_tokens"] == pytest.approx(len(json.dumps(instruction)) / SCALE, rel=0.1)
        (event,) = await w.told("checkpoint_completed")
        assert event["cache_read"] == ours["cache_read_input_tokens"]
        assert event["cache_write"] == 0
        assert event["input_tokens"] == ours["input_tokens"]
        assert event["cache_share"] > 0.95


async def test_the_first_way_of_making_checkpoints_costs_many_times_as_much(world):
    """The same request as the first double buffer sent it: no thinking, few tokens, an edit, its own user agent."""
    async with world(model=Counted(), cache=SCALE) as w:
        talk = w.talk()
        live, made = await filled(w, talk)
        cache = w.origin.api.prompt_cache
        assert isinstance(cache, PromptCache)
        body = {name: live.json[name] for name in ("model", "messages", "system", "tools")}
        edits = {"edits": [{"type": "compact_20260112", "pause_after_compaction": True}]}
        first = Received(9_999, Connection(1, False, 0.0), made.time, "POST", "/v1/messages", "HTTP/1.1", b"", [])
        first.fields = [*made.fields]
        first.body = json.dumps({**body, "max_tokens": 4096, "context_management": edits}).encode()
        theirs = cache.pay(first, made.time).usage()
        assert total(theirs) == pytest.approx(total(usage_of(live)), rel=0.01)
        assert price(theirs) > 6 * price(usage_of(made))


async def test_the_turn_after_a_checkpoint_reads_the_cache_as_if_there_had_been_none(world):
    async with world(model=Counted(), cache=SCALE) as w:
        talk = w.talk()
        live, _ = await filled(w, talk)
        await w.turn(talk, 0, "go on")
        following = [r for r in w.origin.requests if r.role == "main"][-1]
        assert usage_of(following)["cache_read_input_tokens"] >= 0.99 * total(usage_of(live))


async def test_one_prefix_is_paid_for_once(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        for number in range(5):
            await w.turn(talk, OVER + number)
        await talk.compact("manual")
        assert len(w.own()) == 1
        assert not w.native()


async def test_another_policy_replaces_ours_over_the_same_hooks(world):
    policy = WordsOfTheUser()
    async with world(plugins=(("words", policy),)) as w:
        talk = w.talk(max_retries=0)
        await w.turn(talk, OVER, "keep this: PLANTED")
        await talk.compact("manual")
        assert "keep this: PLANTED" in opening(talk)
        assert await w.turn(talk, 3_000, "on") == "Well done."
        assert len(compactions(talk)) == 1
        assert not w.native()
        assert not w.own()
        assert (await w.told("words_served"))[0]["conv_id"] == talk.session
        assert not w.events("checkpoint_started", "phase_transition", "swap_executed")


async def test_both_at_once_the_first_that_answers_wins_and_nothing_breaks(world):
    from dbproxy_double_buffer import DoubleBuffer

    async with world(plugins=(("words", WordsOfTheUser()), ("ours", DoubleBuffer()))) as w:
        talk = w.talk(max_retries=0)
        await w.turn(talk, OVER, "PLANTED")
        await talk.compact("manual")
        assert "Summary:" in opening(talk)
        assert await w.turn(talk, 3_000, "on") == "Well done."
        assert not w.events("plugin_failed", "buffer_crashed")
