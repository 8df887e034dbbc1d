"""The executable routes to a built-in provider by a rule, and to somebody else's, a file in the plugin folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request

import pytest
import trio

from dbproxy.testing.origin import say
from dbproxy.testing.origin.grammar import check_stream
from dbproxy.testing.providers import open_openai

pytestmark = [pytest.mark.frozen, pytest.mark.timeout(300)]
CLIENT_KEY, KEY = "client-key-1", "openai-key-1"

PLUGIN = """\
from dbproxy.api import Fields, ProviderCall, ProviderLimits, hookimpl
from dbproxy.api.codecs import Capabilities
from dbproxy.api.dialects import CHAT


class Mine:
    name = "mine"
    limits = ProviderLimits()
    keyless = True

    def unready(self):
        return ""

    def capabilities(self, model):
        return Capabilities(context=100_000)

    def decline(self, request, model):
        return ""

    def call(self, request, translation):
        fields = Fields.of([(b"content-type", b"application/json"), (b"authorization", b"Bearer %s")])
        return ProviderCall(CHAT.write(request, translation), "%s/v1/chat/completions", fields, CHAT)


@hookimpl
def providers(app):
    return [Mine()]
"""


def asked(port, model):
    """What the proxy answers a base-URL client."""
    body = {"model": model, "max_tokens": 64, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    fields = {"content-type": "application/json", "x-dbproxy-key": CLIENT_KEY, "x-api-key": "nobody-s"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/messages", json.dumps(body).encode(), fields, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return check_stream(answer.read()), answer.headers


async def test_it_routes_to_a_built_in_provider_and_to_somebody_else_s(built, own_home, start):
    data = own_home / "data"
    (data / "plugins").mkdir(parents=True)
    config = own_home / ".config" / "dbproxy"
    config.mkdir(parents=True)
    async with open_openai(say("from another model"), key=KEY) as openai:
        (data / "plugins" / "mine.py").write_text(PLUGIN % (KEY, openai.url))
        rules = [
            f'client_key = "{CLIENT_KEY}"',
            "[providers.openai]",
            f'base_url = "{openai.url}/v1"',
            'key_env = "SOME_KEY"',
            "[routes]",
            '"model:claude-one" = "openai:gpt-4o"',
            '"model:claude-two" = "mine:gpt-4o"',
        ]
        (config / "config.toml").write_text("\n".join(rules) + "\n")
        env = {"HOME": str(own_home), "PATH": os.defpath, "DBPROXY_DATA_DIR": str(data), "SOME_KEY": KEY}
        command = [str(built.program), "serve", "--listen", "127.0.0.1:0", "--upstream-url", "http://127.0.0.1:9"]
        process = subprocess.Popen(command, env=env, start_new_session=True)
        try:
            record = data / "run" / "daemon.json"
            with trio.fail_after(30):
                while not record.exists():
                    await trio.sleep(0.05)
                port = int(json.loads(record.read_text())["listen"][0].rpartition(":")[2])
            for model, target in (("claude-one", "openai:gpt-4o"), ("claude-two", "mine:gpt-4o")):
                message, head = await trio.to_thread.run_sync(asked, port, model)
                assert message["content"] == [{"type": "text", "text": "from another model"}]
                assert head["x-dbproxy-routed-model"] == target
            assert len(openai.requests) == 2
            assert all("nobody-s" not in repr(one.fields) for one in openai.requests)
            await trio.sleep(0.5)  # the record is written a moment later
            said = await trio.to_thread.run_sync(
                lambda: start(built.program, "explain", "last", DBPROXY_DATA_DIR=str(data))
            )
            assert "It was answered by gpt-4o at mine by the rule model:claude-two = mine:gpt-4o" in said.stdout
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
