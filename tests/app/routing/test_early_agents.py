"""An agent that is started by a block of an answer which is still under way is known at its first request."""

from __future__ import annotations

import json

import pytest
import trio
from blackbox import read_response, request

from dbproxy.api import hookimpl
from dbproxy.testing.origin import Answer, say, tool_use

SESSION = "01234567-89ab-cdef-0123-456789abcdef"
HEAD = f"User-Agent: claude-cli/2.1.329 (external, cli)\r\nx-claude-code-session-id: {SESSION}\r\n"
MAIN = HEAD + "x-claude-code-request-class: main\r\n"
AGENT = (
    HEAD + "x-claude-code-request-class: subagent\r\n"
    "x-claude-code-agent-id: a1b2\r\nx-claude-code-agent-type: custom\r\n"
)
CALL = {"subagent_type": "plug:reviewer", "prompt": "Look at the code.", "description": "review"}


def body(text, **more):
    said = {
        "model": "claude-opus-5-5",
        "max_tokens": 64,
        "stream": True,
        "messages": [{"role": "user", "content": text}],
    }
    return json.dumps(said | more).encode()


class Asker:
    """Holds every request and asks for its place."""

    def __init__(self):
        self.links = []

    @hookimpl
    def startup(self, app):
        self.services = app.services

    @hookimpl
    def wants_body(self, exchange):
        return True

    @hookimpl
    async def intercept_request(self, exchange):
        self.links.append(await self.services.link(exchange, 5.0))


OLDER = HEAD.replace("2.1.329", "2.1.112")


async def test_an_agent_of_an_older_client_is_known_by_its_prompt_though_the_answer_s_end_is_late(rig):
    """2.1.112 waits for message_stop, but that may be here before the end of the answer's framing."""
    whole = say(tool_use("Task", CALL))
    asker = Asker()

    def script(received):
        # The last event has gone out; the end of the chunks has not.
        return whole.but(stall_after=5, stall=30.0) if "go" in received.last_text else say("done")

    async with rig(script, plugins=(("asker", asker),)) as r:
        main, agent = await r.tls(), await r.tls()
        tools = [
            {"name": "Task", "input_schema": {"type": "object"}},
            {"name": "Read", "input_schema": {"type": "object"}},
        ]
        await main.send_all(request(body=body("go", tools=tools), extra=OLDER))
        got = b""
        with trio.fail_after(10):
            while b"content_block_stop" not in got:
                got += await main.receive_some()
            await trio.sleep(0.1)
            await agent.send_all(request(body=body("Look at the code.", tools=tools[1:]), extra=OLDER))
            await read_response(agent)
        first, second = asker.links
        assert first.thread == "main"
        assert second.agent is not None
        assert second.agent.name == "plug:reviewer"


@pytest.mark.parametrize("coding", ["", "gzip"])
async def test_the_name_is_known_before_the_answer_that_gave_it_has_ended(rig, coding):
    paused = Answer(
        blocks=(tool_use("Agent", CALL), *say("and more, later").blocks), coding=coding, stall_after=5, stall=30.0
    )
    asker = Asker()

    def script(received):
        return paused if received.header("x-claude-code-request-class") == "main" else say("done")

    async with rig(script, plugins=(("asker", asker),)) as r:
        main, agent = await r.tls(), await r.tls()
        await main.send_all(request(body=body("go"), extra=MAIN))
        await r.proxy.archive.flush(1)
        got = b""
        with trio.fail_after(10):
            while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < 150:
                got += await main.receive_some()
            await trio.sleep(0.1)
            await agent.send_all(request(body=body("Look at the code."), extra=AGENT))
            await read_response(agent)
        first, second = asker.links
        assert first.thread == "main"
        assert (second.agent.name, second.agent.type, second.agent.tool_use_id != "") == (
            "plug:reviewer",
            "custom",
            True,
        )
