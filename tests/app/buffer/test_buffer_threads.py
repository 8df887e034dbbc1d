"""Message threads: requests with new messages only, whose checkpoint and swap stand on the rebuilt history."""

from __future__ import annotations

import json

from buffertalk import OVER, compactions, until

from dbproxy.testing.conversation import INSTRUCTION
from dbproxy.testing.origin import say

THREADS = "message-threads-2026-08-12"


class Threaded:
    """The client's way with threads (API facts 2.6): the first request whole, then what is new."""

    def __init__(self, world, talk):
        self.world, self.talk = world, talk
        self.previous = ""
        self.first = {}

    async def send(self, *messages, kind="main", whole=False):
        given = [{"role": "user", "content": [{"type": "text", "text": text}]} for text in messages]
        body = {**self.talk._body(self.talk.main, given, kind), "stream": True}
        if whole:
            body["thread"] = {"type": "create"}
        else:
            body["thread"] = {"type": "continue", "previous_message_id": self.previous}
            body["system"] = body["system"][:1]
            del body["tools"]
        encoded = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        why = "auto" if kind == "compaction" else ""
        fields = [
            (name, f"{value},{THREADS}" if name == "anthropic-beta" else value)
            for name, value in self.talk._fields(self.talk.main, kind, why, "", len(encoded))
        ]
        got = bytearray()
        sent = await self.talk.client.request(
            "POST", "/v1/messages?beta=true", fields, encoded, kind=kind, take=lambda _, data: got.extend(data)
        )
        assert sent.status == 200
        self.previous = json.loads(bytes(got).decode().split("data: ")[1].split("\n")[0])["message"]["id"]
        await self.world.quiet()
        return bytes(got).decode()


async def test_a_thread_gets_a_checkpoint_of_its_whole_history_and_a_swap(world):
    async with world() as w:
        talk = w.talk()
        thread = Threaded(w, talk)
        w.model.says.extend([say("FIRST-ANSWER"), say("SECOND-ANSWER"), say("THIRD-ANSWER")])
        w.model.tokens = 3_000
        await thread.send("FIRST-WORDS", whole=True)
        w.model.tokens = OVER
        await thread.send("SECOND-WORDS")
        await until(lambda: w.plugin.checkpoints.made == 1, lambda: str(w.events("checkpoint_failed")))
        (made,) = w.own()
        assert "thread" not in made.json
        assert len(made.json["tools"]) == 3
        assert len(made.json["system"]) == 3
        told = json.dumps(made.json["messages"])
        assert all(words in told for words in ("FIRST-WORDS", "FIRST-ANSWER", "SECOND-WORDS"))
        assert "SECOND-ANSWER" not in told
        await thread.send("THIRD-WORDS")
        answer = await thread.send(INSTRUCTION, kind="compaction")
        assert "ORIGIN-SUMMARY 1" in answer
        assert all(words in answer for words in ("SECOND-ANSWER", "THIRD-WORDS", "THIRD-ANSWER"))
        assert "FIRST-WORDS" not in answer
        assert not thread.previous.startswith("msg_")  # no thread can be anchored on it
        assert not w.native()


async def test_a_thread_whose_history_is_not_stored_is_passed_on(world):
    async with world() as w:
        talk = w.talk()
        thread = Threaded(w, talk)
        thread.previous = "msg_unknown"
        w.model.tokens = OVER
        await thread.send("WORDS")
        await thread.send(INSTRUCTION, kind="compaction")
        assert len(w.native()) == 1
        assert w.native()[0].body == compactions(talk)[0].body
        assert not w.own()
