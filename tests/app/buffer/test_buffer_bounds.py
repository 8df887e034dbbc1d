"""N6 to N14, N17, N19, N21 to N24: what the first double buffer got wrong, with a real proxy and a strict client."""

from __future__ import annotations

import json

import pytest
import trio
from buffertalk import FULL, HALF, NEAR, OVER, WALL, Model, bash, compact_once, compactions, opening, text_of, until
from dbproxy_double_buffer import DoubleBuffer

from dbproxy.testing.conversation import INSTRUCTION
from dbproxy.testing.origin import say, tool_use
from dbproxy.testing.origin.summaries import summary_answer


def delegate(prompt):
    given = {"description": "Look", "prompt": prompt, "subagent_type": "code-reviewer"}
    return say("I delegate.", tool_use("Agent", given))


class ByRole(Model):
    """Answers to each speaker by itself: ``main`` and ``sub`` are (answer, tokens), one after the other."""

    def __init__(self, main, sub):
        super().__init__()
        self.main, self.sub = list(main), list(sub)

    def __call__(self, request):
        queue = {"main": self.main, "subagent": self.sub}.get(request.role)
        if not queue:
            return super().__call__(request)
        answer, self.tokens = queue.pop(0) if len(queue) > 1 else queue[0]
        return answer.but(usage=self.usage())


async def test_n6_a_subagent_compacts_from_its_own_checkpoint_and_the_main_line_from_its_own(world):
    """Both fill up at the same time; each gets the summary of what it said itself."""
    model = ByRole(
        main=[(delegate("SUBPROMPT one"), OVER), (say("Main is done."), NEAR)],
        sub=[(bash("s"), OVER), (bash("t").but(head_delay=0.2), NEAR), (bash("u"), FULL), (say("Sub is done."), 3_000)],
    )
    asked = []

    def by_speaker(request):
        if request.role == "compaction":
            agent = request.header("x-claude-code-agent-id") or ""
            asked.append(agent)
            return summary_answer(
                "good", 1, {"text": f"<summary>{'SUB' if agent else 'MAIN'}-SUMMARY {'x' * 300}</summary>"}
            )
        return model(request)

    async with world(model=by_speaker) as w:
        talk = w.talk()
        await talk.ask("delegate it")
        await w.quiet()
        await talk.compact("auto")
        sent = compactions(talk)
        assert len(sent) == 2
        texts = [bytes(attempt.answer_body).decode() for attempt in sent]
        assert "SUB-SUMMARY" in texts[0]
        assert "MAIN-SUMMARY" not in texts[0]
        assert "MAIN-SUMMARY" in texts[1]
        assert "SUB-SUMMARY" not in texts[1]
        assert not w.native()
        assert set(map(bool, asked)) == {False, True}  # on a slow machine the full log is summed up once more
        buffers = {b.thread for b in w.plugin.buffers.of(talk.session)}
        assert len(buffers) == 2


async def test_n6_a_full_subagent_moves_nothing_of_the_main_line(world):
    model = ByRole(main=[(delegate("SUBPROMPT"), HALF), (say("Main is done."), HALF)], sub=[(say("Sub."), OVER)])
    async with world(model=model) as w:
        talk = w.talk()
        await talk.ask("delegate it")
        await until(lambda: w.plugin.checkpoints.made == 1)
        await w.quiet()
        assert w.phase(talk) == "IDLE"
        assert w.own()[0].header("x-claude-code-agent-id")
        await talk.compact("manual")
        assert len(w.native()) == 1


async def test_n7_after_a_rewind_the_checkpoint_of_the_undone_branch_is_not_served(world):
    async with world() as w:
        talk = w.talk()
        await w.turn(talk, HALF, "the common beginning")
        kept = list(talk.main.messages)
        await w.turn(talk, OVER, "the branch that is undone")
        await w.reach(talk, "WAL_ACTIVE")
        talk.main.messages = kept
        await w.turn(talk, HALF, "another branch")
        assert w.phase(talk) == "IDLE"
        await talk.compact("manual")
        assert len(w.native()) == 1
        assert "ORIGIN-SUMMARY 2" in opening(talk)


async def test_n7_after_a_rewind_a_new_checkpoint_is_made_of_the_new_branch(world):
    async with world() as w:
        talk = w.talk()
        await w.turn(talk, HALF, "the common beginning")
        kept = list(talk.main.messages)
        await w.checkpointed(talk)
        talk.main.messages = kept
        await w.turn(talk, OVER + 1_000, "another branch")
        await until(lambda: w.plugin.checkpoints.made == 2)
        await talk.compact("manual")
        assert "ORIGIN-SUMMARY 2" in opening(talk)
        assert not w.native()


async def test_n7_a_rewind_behind_an_older_checkpoint_falls_back_to_it(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)  # summary 1
        kept = list(talk.main.messages)
        await w.turn(talk, OVER + 60_000, "so much more that the log outgrows its budget")
        await until(lambda: w.plugin.checkpoints.made == 2)
        talk.main.messages = kept
        await w.turn(talk, OVER + 1_000, "PLANTED on the other branch")
        assert w.phase(talk) in ("WAL_ACTIVE", "SWAP_READY")
        await talk.compact("manual")
        assert "ORIGIN-SUMMARY 1" in opening(talk)
        assert "PLANTED on the other branch" in bytes(compactions(talk)[0].answer_body).decode()
        assert "outgrows" not in bytes(compactions(talk)[0].answer_body).decode()
        assert not w.native()


async def test_n7_coming_back_to_the_first_branch_its_checkpoint_fits_again(world):
    async with world() as w:
        talk = w.talk()
        await w.turn(talk, HALF, "the common beginning")
        common = list(talk.main.messages)
        await w.checkpointed(talk)
        first = list(talk.main.messages)
        talk.main.messages = common
        await w.turn(talk, HALF, "another branch")
        assert w.phase(talk) == "IDLE"
        talk.main.messages = first
        await talk.compact("manual")
        assert "ORIGIN-SUMMARY 1" in opening(talk)
        assert w.phase(talk) == "PROVISIONAL"


BAD = ["empty", "no_block", "blank", "short", "refusal", "tool", "max_tokens", "window", "null_compaction", "unclosed"]


@pytest.mark.parametrize("kind", BAD)
async def test_n8_a_summary_that_is_none_is_a_failure_and_is_never_served(world, kind):
    async with world() as w:
        talk = w.talk()
        w.model.summaries = [kind]
        await w.turn(talk, OVER)
        (event,) = await w.told("checkpoint_failed")
        assert event["reason"]
        await w.reach(talk, "IDLE")
        assert not w.buffer(talk).checkpoints
        w.model.summaries = [summary_answer("good", 77, {})]
        await talk.compact("manual")
        assert "ORIGIN-SUMMARY 77" in opening(talk)
        assert len(w.native()) == 1


async def test_n9_a_repeated_compact_request_gets_the_same_answer_until_it_is_taken(world):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        first = await compact_once(talk)
        w.buffer(talk).bytes_per_token = 5.0  # what would be written now differs
        w.buffer(talk).checkpoints[-1] = w.buffer(talk).checkpoints[-1]
        again = await compact_once(talk)
        assert text_of(first) == text_of(again)
        assert "ORIGIN-SUMMARY 1" in text_of(first)
        assert len(await w.told("swap_executed")) == 1
        await talk.compact("auto")
        await w.turn(talk, 3_000, "taken")
        await w.told("swap_confirmed")
        assert w.plugin.swaps == 1
        assert not w.native()


async def test_n10_a_restart_between_checkpoint_and_compact_still_swaps(world):
    async with world(tls=False) as w:
        talk = w.talk()
        await w.checkpointed(talk)
        session, messages, client = talk.session, talk.main.messages, talk.client.attempts
    async with world(tls=False) as w:
        talk = w.talk()
        talk.session, talk.main.messages = session, messages
        talk.client.attempts.extend(client)
        await talk.compact("auto")
        assert "ORIGIN-SUMMARY 1" in opening(talk)
        assert not w.native()
        await w.turn(talk, 3_000, "on")
        await w.reach(talk, "IDLE")
        await w.told("swap_confirmed")


async def test_n10_a_restart_between_swap_and_confirmation_still_confirms(world):
    async with world(tls=False) as w:
        talk = w.talk()
        await w.checkpointed(talk)
        await talk.compact("auto")
        await w.quiet()
        session, messages = talk.session, talk.main.messages
    async with world(tls=False) as w:
        talk = w.talk()
        talk.session, talk.main.messages = session, messages
        await until(lambda: w.phase(talk) == "PROVISIONAL")
        await w.turn(talk, 3_000, "on")
        await w.told("swap_confirmed")
        await w.reach(talk, "IDLE")


class Clock:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


async def test_n11_failures_open_a_breaker_and_a_retry_after_is_honoured(world, quick):
    clock = Clock()
    async with world(plugin=DoubleBuffer(clock)) as w:
        talk = w.talk()
        w.model.summaries = ["error_400"]
        for number in range(8):
            await w.turn(talk, OVER + number)
        assert len(w.own()) == 3  # one a turn, until the breaker opened
        assert (await w.told("checkpoint_postponed"))[-1]["reason"].startswith("paused after failures (status 400")
        clock.now += 61
        await w.turn(talk, OVER + 10)
        await w.turn(talk, OVER + 11)
        assert len(w.own()) == 4
        clock.now += 125
        w.model.summaries = ["rate_limit"]
        w.model.options = {"retry_after": 900}
        await w.turn(talk, OVER + 12)
        assert len(w.own()) == 5
        clock.now += 890
        await w.turn(talk, OVER + 13)
        assert len(w.own()) == 5
        clock.now += 3_600
        w.model.summaries = ["good"]
        await w.turn(talk, OVER + 14)
        await w.reach(talk, "WAL_ACTIVE")


async def test_n11_a_short_retry_after_is_waited_for(world):
    async with world() as w:
        talk = w.talk()
        w.model.summaries = ["rate_limit", "good"]
        w.model.options = {"retry_after": 2.3}  # more than we would wait by ourselves
        began = trio.current_time()
        await w.checkpointed(talk)
        assert trio.current_time() - began > 2.3
        assert len(w.own()) == 2


async def test_n11_a_refused_credential_is_not_used_again_and_another_one_is(world, quick):
    async with world() as w:
        talk = w.talk()
        w.model.summaries = ["error_401", "good"]
        await w.turn(talk, OVER)
        await w.told("checkpoint_failed")
        await w.turn(talk, OVER + 1)
        assert len(w.own()) == 1
        assert (await w.told("checkpoint_postponed"))[-1]["reason"] == "the credential was refused"
        talk.settings = type(talk.settings)(key="sk-ant-api03-newer", time_scale=0.01)
        await w.turn(talk, OVER + 2)
        await w.reach(talk, "WAL_ACTIVE")
        assert w.own()[-1].header("x-api-key") == "sk-ant-api03-newer"


async def test_n11_the_daily_budget_stops_checkpoints(world):
    async with world(buffer_daily_tokens="740000") as w:
        talk = w.talk()
        w.model.summaries = [summary_answer("good", 1, {}).but(usage={"input_tokens": 20_000, "output_tokens": 900})]
        await w.checkpointed(talk)
        other = w.talk()
        await w.turn(other, OVER)
        assert len(w.own()) == 1
        assert "budget" in (await w.told("checkpoint_postponed"))[-1]["reason"]


LIMITED = {"fields": (("anthropic-ratelimit-unified-status", "allowed_warning"),)}


async def test_n11_nothing_is_spent_while_the_accounts_window_is_nearly_spent(world):
    async with world() as w:
        talk = w.talk()
        warned = say("x").but(**LIMITED)
        await w.turn(talk, OVER, "warned", warned)
        assert not w.own()
        assert "nearly spent" in (await w.told("checkpoint_observed"))[0]["reason"]
        await w.turn(talk, OVER, "well again")
        await w.reach(talk, "WAL_ACTIVE")


@pytest.mark.parametrize("where", ["user", "tool", "quoted"])
async def test_n12_text_that_holds_the_instruction_is_sent_on(world, where):
    async with world() as w:
        talk = w.talk(hints=False)
        await w.checkpointed(talk)
        if where == "tool":
            w.model.says.extend([bash(INSTRUCTION), say("From the model.")])
            said = await talk.ask("show it")
        else:
            prefix = "Please explain: " if where == "quoted" else "> "
            w.model.ordinary = "Thanks."
            said = await w.turn(talk, OVER, f"{prefix}{INSTRUCTION}\nThanks.", say("From the model."))
        assert said == "From the model."
        assert w.phase(talk) == "WAL_ACTIVE"
        await talk.compact("manual")  # found by its text alone: no header says so
        assert "ORIGIN-SUMMARY 1" in opening(talk)
        assert not w.native()


async def test_n13_the_identity_holds_over_moving_marks_and_a_changing_attribution(world):
    async with world() as w:
        talk = w.talk()
        for number in range(5):
            await w.turn(talk, OVER + number, f"turn {number}")
        assert len(w.plugin.buffers) == 1
        assert len(w.own()) == 1
        billing = {r.json["system"][0]["text"] for r in w.origin.requests if r.role == "main"}
        assert len(billing) > 1


async def test_n14_a_native_compaction_starts_no_checkpoint_and_its_end_is_not_held_back(world):
    async with world() as w:
        talk = w.talk()
        await w.turn(talk, HALF)
        huge = {"input_tokens": 10, "cache_read_input_tokens": FULL, "output_tokens": 900}
        w.model.summaries = [summary_answer("good", 1, {}).but(usage=huge, gap=0.02)]
        await talk.compact("auto")
        (sent,) = compactions(talk)
        (native,) = w.native()
        assert sent.finished_at - native.sent.finished_at < 0.1
        await w.quiet()
        assert not w.own()


PARTIAL = INSTRUCTION.replace("the conversation so far", "the RECENT portion of the conversation")
UP_TO = INSTRUCTION.replace(
    "the conversation so far",
    "this conversation. This summary will be placed at the start of a continuing session",
)
WORDS = INSTRUCTION.replace("REMINDER:", "Additional Instructions:\nKeep the file names.\n\nREMINDER:")


@pytest.mark.parametrize("instruction", [PARTIAL, UP_TO, WORDS, "Summarise in a way nobody has seen."])
@pytest.mark.parametrize("hints", [True, False])
async def test_n17_other_requests_for_summaries_go_to_the_model_as_they_are(world, instruction, hints):
    async with world() as w:
        talk = w.talk(hints=hints)
        await w.checkpointed(talk)
        history = [*talk.main.messages, {"role": "user", "content": [{"type": "text", "text": instruction}]}]
        sent = await compact_once(talk, messages=history)
        arrived = w.origin.requests[-1]
        assert arrived.body == sent.body
        assert bytes(sent.answer_body) == bytes(arrived.sent.body)
        assert w.plugin.swaps == 0


async def test_n19_idle_conversations_are_forgotten(world, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("dbproxy_double_buffer._CHORES_EVERY", 0.05)
    async with world(plugin=DoubleBuffer(clock), conversation_ttl_seconds="7200") as w:
        talk = w.talk()
        await w.checkpointed(talk)
        folder = w.rig.data_dir / "plugin-data" / "double-buffer" / "buffers"
        await until(lambda: len(list(folder.iterdir())) == 1)
        assert all(file.stat().st_mode & 0o777 == 0o600 for file in folder.iterdir())
        clock.now += 7_100
        await w.quiet()
        assert len(w.plugin.buffers) == 1
        clock.now += 200
        await until(lambda: len(w.plugin.buffers) == 0)
        await until(lambda: not list(folder.iterdir()))
        await talk.compact("manual")
        assert len(w.native()) == 1


@pytest.mark.parametrize(
    ("model", "wall"),
    [("claude-opus-5-5", WALL), ("claude-sonnet-4-6", 167_000)],
)
async def test_n21_each_window_makes_its_checkpoint_near_its_own_wall(world, model, wall):
    async with world() as w:
        talk = w.talk(model=model)
        await w.turn(talk, int(wall * 0.69))
        assert w.phase(talk) == "IDLE"
        await w.turn(talk, int(wall * 0.71))
        await w.reach(talk, "WAL_ACTIVE")


async def test_n22_a_hung_checkpoint_delays_no_byte(world):
    async with world() as w:
        talk = w.talk()
        w.model.summaries = ["hung"]
        await w.turn(talk, OVER)
        assert w.phase(talk) == "CHECKPOINTING"
        for number in range(3):
            began = trio.current_time()
            w.model.says.append(say("quick " * 50, gap=0.005))
            await talk.ask(f"turn {number}")
            sent = talk.client.attempts[-1]
            assert sent.finished_at - began < 0.5
            upstream = w.origin.requests[-1].sent
            assert sent.finished_at - upstream.finished_at < 0.1
        assert w.phase(talk) == "CHECKPOINTING"


async def test_n22_a_checkpoint_that_never_ends_is_given_up_at_its_deadline(world):
    async with world() as w:
        w.plugin.checkpoints._deadline = 0.2
        talk = w.talk()
        w.model.summaries = ["stalled"]
        await w.turn(talk, OVER)
        (event,) = await w.told("checkpoint_failed")
        assert "in time" in event["reason"] or "finish" in event["reason"]
        await w.reach(talk, "IDLE")


async def test_n23_concurrent_compact_requests_all_get_the_answer_and_one_checkpoint_is_used(world):
    async with world() as w:
        talk = w.talk()
        w.model.options = {"seconds": 1.0}
        await w.turn(talk, OVER)
        got = []

        async def ask():
            got.append(text_of(await compact_once(talk)))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask)
        assert len(got) == 4
        assert len(set(got)) == 1
        assert "ORIGIN-SUMMARY 1" in got[0]
        assert len(w.own()) == 1
        assert not w.native()
        assert len(await w.told("swap_executed")) == 1


@pytest.mark.parametrize("when", ["held", "raced"])
async def test_n24_a_reset_while_it_waits_sends_the_request_on(world, when):
    hold = "20" if when == "held" else "0.05"
    async with world(buffer_hold_seconds=hold) as w:
        talk = w.talk()
        w.model.summaries = ["hung", "good"]
        await w.turn(talk, OVER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.compact, "auto")
            await trio.sleep(0.3)
            assert not talk.compactions
            assert w.plugin.conversation_reset(talk.session) == [talk.session]
        assert "ORIGIN-SUMMARY 2" in opening(talk)
        assert len(compactions(talk)) == 1
        assert w.phase(talk) == "IDLE"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ("", 401),
        ("Authorization: Bearer wrong\r\n", 401),
        ("Authorization: Bearer {token}\r\nOrigin: https://evil.example\r\n", 403),
        ("Authorization: Bearer {token}\r\nHost: evil.example\r\n", 421),
        ("Authorization: Bearer {token}\r\n", 200),
    ],
)
async def test_n20_a_reset_needs_the_token_and_no_foreign_page_can_ask_for_it(world, fields, status):
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        token = (w.rig.data_dir / "run" / "control-token").read_text().strip()
        host = "" if "Host:" in fields else f"Host: 127.0.0.1:{w.rig.running.port}\r\n"
        stream = await w.rig.plain()
        await stream.send_all(
            f"POST /v1/_reset HTTP/1.1\r\n{host}{fields.format(token=token)}"
            "Connection: close\r\nContent-Length: 2\r\n\r\n{}".encode()
        )
        got = b"".join([piece async for piece in stream])
        assert int(got.split()[1]) == status
        assert (w.phase(talk) == "IDLE") is (status == 200)


async def test_n20_what_a_model_is_called_is_data_and_never_markup(world):
    async with world() as w:
        talk = w.talk(model="<img src=x onerror=alert(1)>")
        await w.turn(talk, OVER)
        token = (w.rig.data_dir / "run" / "control-token").read_text().strip()
        for path in ("/health", "/api/conversations", "/api/exchanges"):
            stream = await w.rig.plain()
            await stream.send_all(
                f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{w.rig.running.port}\r\nAuthorization: Bearer {token}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            head, _, body = b"".join([piece async for piece in stream]).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"content-type: application/json" in head.lower()
            json.loads(body)
