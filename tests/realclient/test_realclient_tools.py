"""Programs that the agent's shell starts reach the API through the environment that they inherit."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.realclient

# Proxy-aware Node programs open the tunnel themselves; its own fetch reads HTTPS_PROXY only from Node 24 on.
NODE = """
const http = require('http'), https = require('https');
const proxy = new URL(process.env.HTTPS_PROXY);
const auth = Buffer.from(decodeURIComponent(proxy.username) + ':' + decodeURIComponent(proxy.password));
const headers = { 'Proxy-Authorization': 'Basic ' + auth.toString('base64') };
const target = 'api.anthropic.com:443';
http.request({ host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: target, headers })
  .on('connect', (answer, socket) => {
    https.get({ host: 'api.anthropic.com', path: '/api/hello?by=node', socket, agent: false }, (reply) => {
      reply.on('data', (data) => process.stdout.write(data)).on('end', () => process.exit(0));
    });
  }).end();
"""
PYTHON = """
import urllib.request
print(urllib.request.urlopen("https://api.anthropic.com/api/hello?by=python", timeout=20).read().decode())
"""
COMMANDS = {
    "python": "python3 reach.py",
    "curl": "curl -sS --max-time 20 'https://api.anthropic.com/api/hello?by=curl'",
    "node": "node reach.js",
}


@pytest.mark.parametrize("tool", COMMANDS)
def test_a_program_of_the_agents_shell_reaches_the_api(island, tool):
    (island.project / "reach.py").write_text(PYTHON)
    (island.project / "reach.js").write_text(NODE)
    call = {"type": "tool_use", "name": "Bash", "input": {"command": COMMANDS[tool], "description": "reach"}}
    first = {"match": {"role": "main", "tool_results": 0}, "answer": {"blocks": [call]}}
    agent = island.step("dbproxy", "claude", "-p", "please do it", "--allowedTools", "Bash")
    story = island.run({"rules": [first], "scenario": "plain"}, agent, island.step("dbproxy", "stop"))
    assert [step.code for step in story.steps] == [0, 0], story
    reached = [request for request in story.requests if request.about["target"] == f"/api/hello?by={tool}"]
    assert len(reached) == 1, story
    results = story.messages[-1].body
    assert b'message\\":\\"hello' in results.replace(b" ", b""), (results[-2000:], str(story))
