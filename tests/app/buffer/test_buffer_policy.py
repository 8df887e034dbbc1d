"""Another policy in place of ours, by public hooks alone: it keeps the end of a conversation and asks no model."""

from __future__ import annotations

import json

from buffertalk import NEAR, compactions, opening

from dbproxy.api import Fields, LocalResponse, encode_event, hookimpl


class KeepTheEnd:
    """Answers a compact request with the last texts of its own history."""

    dbproxy_api = (1, 1)

    def __init__(self, texts=6):
        self.texts = texts
        self.swaps = 0

    @hookimpl
    def startup(self, app):
        self.services = app.services

    @staticmethod
    def asked(exchange):
        return exchange.request.fields.get(b"x-claude-code-request-class") == b"compaction"

    @hookimpl
    def wants_body(self, exchange):
        return True if self.asked(exchange) else None

    @hookimpl
    async def intercept_request(self, exchange):
        held = self.services.request_body(exchange) if self.asked(exchange) else None
        if held is None:
            return None
        request = json.loads(await held.read())
        contents = [message["content"] for message in request["messages"]]
        blocks = [b for c in contents for b in (c if isinstance(c, list) else [{"type": "text", "text": c}])]
        texts = [block["text"] for block in blocks if block["type"] == "text"][:-1]  # the last one is the instruction
        self.swaps += 1
        return self.answer(request["model"], "<summary>" + "\n".join(texts[-self.texts :]) + "</summary>")

    @staticmethod
    def answer(model, text):
        usage = {"input_tokens": 1, "output_tokens": 1}
        message = {"id": "end_1", "type": "message", "role": "assistant", "model": model, "content": []}
        message |= {"stop_reason": None, "stop_sequence": None, "usage": usage}
        told = {"stop_reason": "end_turn", "stop_sequence": None}
        events = [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": told, "usage": usage},
            {"type": "message_stop"},
        ]
        body = b"".join(encode_event(event["type"].encode(), json.dumps(event).encode()) for event in events)
        return LocalResponse(200, Fields.of([(b"content-type", b"text/event-stream")]), body)


async def test_another_policy_takes_the_place_of_ours(world):
    policy = KeepTheEnd()
    async with world(plugins=[("keep-the-end", policy)]) as w:
        talk = w.talk()
        for number in range(4):
            await w.turn(talk, NEAR, f"words number {number}")
        await talk.compact("manual")
        assert policy.swaps == 1
        assert len(compactions(talk)) == 1
        assert not w.own()  # no checkpoint was made
        assert not w.native()  # and no model was asked
        assert "words number 3" in opening(talk)
        assert "words number 0" not in opening(talk)
        assert await talk.ask("and on") == "Well done."
        assert not w.events("checkpoint_started", "swap_executed")
