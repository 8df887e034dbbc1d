"""The fake API's prompt cache: what is read, written and paid in full, by the rules of API facts 2.5 to 2.7."""

from __future__ import annotations

import json

import pytest
import trio

from dbproxy.errors import ConfigError
from dbproxy.testing.origin import Rule, Script, open_origin, say, script_from
from dbproxy.testing.origin.api import BUILT_IN
from dbproxy.testing.origin.prompt_cache import minimum
from dbproxy.testing.origin.summaries import FAILURES, ODD, summary_answer, summary_text

MARK = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}
LONG = "Be of use. " * 1000


def block(text, mark=None):
    return {"type": "text", "text": text, **({"cache_control": mark} if mark else {})}


def body(*texts, system_mark=MARK, **more):
    """A request of user texts, the last one marked."""
    blocks = [block(text, MARK if number == len(texts) - 1 else None) for number, text in enumerate(texts)]
    system = [
        block(f"x-anthropic-billing-header: cch={len(json.dumps(texts))}"),
        block(LONG, system_mark),
    ]
    messages = [{"role": "user", "content": [item]} for item in blocks]
    return {"model": "claude-opus-5-5", "max_tokens": 9, "system": system, "messages": messages, **more}


class Asker:
    """Asks the fake API over a real connection and gives the answer's usage."""

    def __init__(self, origin):
        self.origin = origin

    async def __call__(self, given, *, key="sk-ant-1", betas="a", status=200):
        async with await trio.open_tcp_stream("127.0.0.1", self.origin.port) as stream:
            sent = json.dumps(given).encode()
            await stream.send_all(
                f"POST /v1/messages HTTP/1.1\r\nHost: h\r\nx-api-key: {key}\r\nanthropic-version: 1\r\n"
                f"anthropic-beta: {betas}\r\nConnection: close\r\nContent-Length: {len(sent)}\r\n\r\n".encode()
                + sent
            )
            got = b"".join([piece async for piece in stream])
        head, _, rest = got.partition(b"\r\n\r\n")
        assert head.split()[1] == b"%d" % status, got
        return json.loads(rest).get("usage") or json.loads(rest)


@pytest.fixture
async def ask():
    async with open_origin({"cache": True}) as origin:
        yield Asker(origin)


def read(usage):
    return usage["cache_read_input_tokens"]


def written(usage):
    return usage["cache_creation_input_tokens"]


def total(usage):
    return usage["input_tokens"] + read(usage) + written(usage)


async def test_the_next_turn_reads_what_the_last_one_wrote(ask):
    first = await ask(body("one"))
    assert read(first) == 0
    assert written(first) > 2000
    second = await ask(body("one", "two"))
    assert read(second) == written(first)
    assert 0 < written(second) < 50
    assert total(second) == read(second) + written(second)  # the last mark stands at the end


async def test_what_stands_behind_the_last_mark_is_paid_in_full(ask):
    first = await ask(body("one"))
    more = body("one")
    more["messages"][0]["content"].append(block("Now write a summary. " * 20))
    second = await ask(more)
    assert read(second) == total(first)
    assert written(second) == 0
    assert 100 < second["input_tokens"] < 130


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"metadata": {"user_id": "x"}}, "all"),
        ({"max_tokens": 99}, "all"),
        ({"tool_choice": {"type": "none"}}, "system"),
        ({"thinking": {"type": "adaptive"}}, "system"),
        ({"output_config": {"effort": "low"}}, "system"),
        ({"speed": "fast"}, "nothing"),
        ({"tools": [{"name": "Other"}]}, "nothing"),
        ({"model": "claude-sonnet-5-5"}, "nothing"),
    ],
)
async def test_what_breaks_the_cache_and_what_does_not(ask, change, kept):
    first = await ask(body("one " * 99))
    second = await ask({**body("one " * 99), **change})
    if kept == "all":
        assert read(second) == total(first)
    else:
        assert (read(second) > 0) is (kept == "system")
        assert read(second) < total(first)


async def test_keys_and_betas_share_nothing(ask):
    await ask(body("one"))
    assert read(await ask(body("one"), key="sk-ant-2")) == 0
    assert read(await ask(body("one"), betas="a,b")) == 0
    assert read(await ask(body("one"))) > 0


async def test_a_text_and_a_list_of_one_text_are_the_same(ask):
    await ask(body("one"))
    plain = body("one", "two")
    plain["messages"][0]["content"] = "one"
    assert read(await ask(plain)) > 2000


async def test_a_short_prefix_is_not_cached():
    async with open_origin({"cache": 400}) as origin:
        ask = Asker(origin)
        usage = await ask(body("one"))
        assert written(usage) == 0
        assert read(await ask(body("one"))) == 0
    assert minimum("claude-opus-4-7") == 2048
    assert minimum("claude-opus-5-5") == minimum("unknown") == 1024
    assert minimum("claude-opus-5-20260101") == 512


async def test_a_lookup_walks_back_twenty_blocks(ask):
    first = await ask(body("one", system_mark=None))
    far = ["one", *(f"more {n}" for n in range(21))]
    assert read(await ask(body(*far[:-1], system_mark=None))) == total(first)
    async with open_origin({"cache": True}) as origin:
        fresh = Asker(origin)
        await fresh(body("one", system_mark=None))
        assert read(await fresh(body(*far, system_mark=None))) == 0


async def test_an_entry_is_readable_once_its_answer_has_begun():
    slow = Rule((say("x", head_delay=0.2), say("y")))
    async with open_origin(Script(rules=(slow,), cache=True)) as origin:
        ask = Asker(origin)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, body("one"))
            await origin.wait_requests(1)
            assert read(await ask(body("one", "two"))) == 0
        assert read(await ask(body("one", "two", "three"))) > 0


async def test_too_many_marks_and_a_wrong_order_are_400(ask):
    five = body(*"abcde")
    for message in five["messages"]:
        message["content"][0]["cache_control"] = MARK
    told = await ask(five, status=400)
    assert "maximum of 4 blocks with cache_control" in told["error"]["message"]
    late = body("one")
    late["messages"][0]["content"][0]["cache_control"] = HOUR
    assert "ttl='1h'" in (await ask(late, status=400))["error"]["message"]
    assert any(rule.name == "cache marks" for rule in BUILT_IN)


async def test_an_hour_is_written_as_an_hour(ask):
    usage = await ask(body("one", system_mark=HOUR))
    assert usage["cache_creation"]["ephemeral_1h_input_tokens"] > 2000
    assert 0 < usage["cache_creation"]["ephemeral_5m_input_tokens"] < 50


async def test_a_failure_leaves_nothing_and_the_script_wins():
    from dbproxy.testing.origin import fail

    rules = (Rule((fail(500, "no"), say("a"), say("b", usage={"cache_read_input_tokens": 7}))),)
    async with open_origin(Script(rules=rules, cache=True)) as origin:
        ask = Asker(origin)
        await ask(body("one"), status=500)
        assert read(await ask(body("one"))) == 0
        assert read(await ask(body("one"))) == 7


async def test_a_continued_thread_reads_what_the_thread_wrote(ask):
    opening = body("one", thread={"type": "create"})
    async with open_origin({"cache": True}) as origin:
        fresh = Asker(origin)
        await fresh(opening)
        identity = json.loads(bytes(origin.requests[0].sent.body))["id"]
        following = body("two", thread={"type": "continue", "previous_message_id": identity})
        del following["system"]
        assert read(await fresh(following)) > 2000


@pytest.mark.parametrize(("ttl", "seconds", "hit"), [(MARK, 299, True), (MARK, 301, False), (HOUR, 3599, True)])
def test_lifetimes_count_from_the_start_and_from_each_hit(ttl, seconds, hit):
    from dbproxy.testing.origin.prompt_cache import PromptCache
    from dbproxy.testing.origin.received import Connection, Received

    def request(*texts):
        made = body(*texts, system_mark=ttl)
        got = Received(1, Connection(1, False, 0.0), 0.0, "POST", "/v1/messages", "HTTP/1.1", b"", [])
        got.body = json.dumps(made).encode()
        got.sent.first_at = 0.0
        return got

    cache = PromptCache()
    cache.pay(request("one"), 0.0)
    # Only the system's mark can match: the message is another one.
    assert (cache.pay(request("other"), seconds).read > 0) is hit
    if hit:
        assert cache.pay(request("third"), 2 * seconds).read > 0


def test_the_switch_is_checked():
    assert script_from({"cache": 3.5}).cache == 3.5
    for wrong in ("yes", -1):
        with pytest.raises(ConfigError, match="cache"):
            script_from({"cache": wrong})


def test_summaries_come_in_all_kinds():
    assert "ORIGIN-SUMMARY 7" in summary_text(7)
    for kind in ["good", *FAILURES, *ODD]:
        made = summary_answer(kind, 1, {"seconds": 2})
        assert made.first_byte_delay == (0.0 if kind == "hung" else 2.0)
    assert dict(summary_answer("rate_limit", 1, {"retry_after": 9}).fields)["retry-after"] == "9"
    assert summary_answer("good", 1, {"text": "mine"}).blocks[0]["text"] == "mine"
