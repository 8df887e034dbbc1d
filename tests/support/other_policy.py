"""A buffer policy of somebody else's, over the same public hooks: the words of the user alone, and no model call."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from dbproxy.api import Fields, LocalResponse, encode_event, hookimpl, json_array, json_members

if TYPE_CHECKING:
    from dbproxy.api import App, Exchange, Services


class WordsOfTheUser:
    """Answers each compact request with what the user said, oldest first."""

    services: Services

    @hookimpl
    def startup(self, app: App) -> None:
        assert app.services is not None
        self.services, self.emit = app.services, app.emit

    @hookimpl
    def wants_body(self, exchange: Exchange) -> bool | None:
        return exchange.request.fields.get(b"x-claude-code-request-class") == b"compaction" or None

    @hookimpl
    async def intercept_request(self, exchange: Exchange) -> LocalResponse | None:
        if exchange.body is None or exchange.request.fields.get(b"x-claude-code-compaction") is None:
            return None
        members = {m.key: exchange.body[m.start : m.end] for m in json_members(exchange.body) or ()}
        array = json_array(members[b"messages"])
        messages = [json.loads(span) for span in array.elements] if array is not None else []
        words = [
            block["text"]
            for message in messages[:-1]
            if message["role"] == "user"
            for block in ([{"text": message["content"]}] if isinstance(message["content"], str) else message["content"])
            if "text" in block
        ]
        link = await self.services.link(exchange, 1.0)
        self.emit("words_served", conv_id=link.conversation if link else "", words=len(words))
        text = "<analysis>none</analysis>\n<summary>\nThe user said:\n" + "\n".join(words) + "\n</summary>"
        usage = {"input_tokens": 1, "output_tokens": 1}
        message = {"id": "words_1", "type": "message", "role": "assistant", "model": json.loads(members[b"model"])}
        events = [
            {"type": "message_start", "message": {**message, "content": [], "stop_reason": None, "usage": usage}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
            {"type": "message_stop"},
        ]
        body = b"".join(encode_event(str(event["type"]).encode(), json.dumps(event).encode()) for event in events)
        return LocalResponse(200, Fields.of([(b"Content-Type", b"text/event-stream")]), body)
