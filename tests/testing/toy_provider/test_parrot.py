"""The Parrot provider passes the conformance kit, and a fake Parrot answers it."""

import json

import httpx2
import pytest
import trio
from parrot_dialect import ParrotDialect
from parrot_provider import CODEC

from dbproxy.api.codecs import MessageWriter, Translation, read_request
from dbproxy.testing.codecs import cases, verdict
from dbproxy.testing.providers import open_anybody

ASK = {"model": "claude-x", "max_tokens": 99, "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("case", cases(CODEC, ParrotDialect()), ids=str)
def test_the_codec(case):
    case.run()


async def test_a_fake_parrot_answers():
    script = {"rules": [{"match": {"text": "hi"}, "answer": {"text": "Hello!"}}]}
    async with open_anybody(ParrotDialect(), "/squawk", script) as server:
        translation = Translation(asked="claude-x", model="macaw-1", message_id="m1")
        body = CODEC.write(read_request(json.dumps(ASK).encode()), translation)
        url, fields = f"{server.url}/squawk", {"Content-Type": "application/json"}
        answer = await trio.to_thread.run_sync(lambda: httpx2.post(url, content=body, headers=fields))
    writer = MessageWriter(translation)
    CODEC.document(answer.content, translation, writer)
    message, error = verdict(writer.take())
    assert (message["content"], error) == ([{"type": "text", "text": "Hello!"}], None)
