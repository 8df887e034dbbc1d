"""``dbproxy routes``: the rules as they hold here, and what they make of a request, without sending anything."""

from __future__ import annotations

import base64
import json
import re
import socket
from dataclasses import replace
from pathlib import Path

import captured
import pytest

from dbproxy.app.routing.rehearsal import Captured, as_agent, read_captured
from dbproxy.errors import DbproxyError
from dbproxy.model.link import RequestKind
from dbproxy.paths import make_private

KEY = "dummy-key-for-tests"
TOOL = {"name": "Read", "description": "Reads.", "input_schema": {"type": "object", "properties": {}}}
BODY = {
    "model": "claude-opus-5-5",
    "max_tokens": 200_000,
    "stream": True,
    "system": [{"type": "text", "text": "You are a Claude agent."}, {"type": "text", "text": "You review.\n\nNotes."}],
    "messages": [{"role": "user", "content": "review it"}],
    "tools": [TOOL],
}
ROUTES = """
[routes]
code-reviewer = "openai:gpt-5.5"
Explore = ["nobody:x", "ollama:qwen3"]
"kind:title" = { to = "haiku", fallback = false }
scout = "claude"
"""


@pytest.fixture
def rules(shell):
    """A project with rules, and a key for one of the providers."""
    (shell.cwd / "dbproxy.toml").write_text(ROUTES)
    shell.env["OPENAI_API_KEY"] = KEY
    return shell


@pytest.fixture
def body(shell):
    """A captured request."""
    file = shell.cwd / "request.json"
    file.write_text(json.dumps(BODY))
    return file


def trial(shell, *words, **how):
    done = shell.run("routes", "test", *map(str, words), **how)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def told(shell, *words, **how):
    return json.loads(trial(shell, *words, "--json", **how))


# ---- list


def test_no_rules(shell):
    done = shell.run("routes", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "no rules: every request goes where the client sends it\n"


def test_rules_stand_in_order_with_their_state_and_where_they_came_from(rules, own_home):
    user = own_home / ".config" / "dbproxy" / "config.toml"
    user.parent.mkdir(parents=True)
    user.write_text('[routes]\nwriter = "groq:x"\nCode-Reviewer = "gemini:y"\n')
    done = rules.run("routes", "list", DBPROXY_ROUTES="planner:gpt-4o")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "RULE",
        "planner",
        "code-reviewer",
        "Explore",
        "kind:title",
        "scout",
        "writer",
    ]
    assert "gpt-4o" in lines[1]
    assert "ready" in lines[1]
    assert "environment (DBPROXY_ROUTES)" in lines[1]
    assert f"project ({rules.cwd / 'dbproxy.toml'})" in lines[2]
    assert "nobody:x, ollama:qwen3" in lines[3]
    assert "ready" in lines[3]  # one of its targets can be asked
    assert "haiku (no way back)" in lines[4]
    assert "refused: 'groq:x': no provider 'groq' is known" in lines[6]
    assert f"user ({user})" in lines[6]
    assert KEY not in done.stdout


def test_the_list_for_scripts(rules):
    done = rules.run("routes", "list", "--json", OPENAI_API_KEY="")
    found = json.loads(done.stdout)
    assert [(rule["key"], rule["targets"], rule["fallback"]) for rule in found] == [
        ("code-reviewer", ["openai:gpt-5.5"], True),
        ("Explore", ["nobody:x", "ollama:qwen3"], True),
        ("kind:title", ["haiku"], False),
        ("scout", ["claude"], True),
    ]
    assert "OPENAI_API_KEY" in found[0]["refused"]
    assert found[1]["refused"] == ""


def test_what_a_project_file_may_not_say_is_said(shell):
    (shell.cwd / "dbproxy.toml").write_text('[providers.evil]\nbase_url = "https://evil.test"\n[routes]\na = "evil:x"')
    done = shell.run("routes", "list")
    assert done.returncode == 0
    assert "ignored providers" in done.stderr
    assert "no provider 'evil' is known" in done.stdout


# ---- test


def test_a_rule_that_fits(rules, body):
    out = trial(rules, body, "--agent", "code-reviewer").splitlines()
    assert out[0] == (
        "It goes to openai:gpt-5.5 by the rule code-reviewer = openai:gpt-5.5, because the agent is named "
        "code-reviewer, as the command line says."
    )
    assert out[1].startswith("It is a turn of the agent code-reviewer, as the command line says, and asks for claude-")
    assert "openai:gpt-5.5 would get " in out[2]
    assert out[2].endswith(" bytes (responses): https://api.openai.com/v1/responses.")
    assert out[3].startswith("The prompt has about ")
    assert any(line.startswith("Translated: max_tokens") for line in out)
    assert out[-1] == "If that fails, the upstream that the client chose answers."
    assert KEY not in "".join(out)


def test_the_same_for_scripts(rules, body):
    found = told(rules, body, "--agent", "code-reviewer")
    (attempt,) = found["attempts"]
    assert (found["outcome"], found["rule"], found["fallback"]) == ("routed", "code-reviewer = openai:gpt-5.5", True)
    assert attempt["target"] == "openai:gpt-5.5"
    assert attempt["dialect"] == "responses"
    assert 0 < attempt["tokens"] < 1000 < attempt["window"]
    assert attempt["size"] > 100
    assert attempt["declined"] == ""


@pytest.mark.parametrize(
    ("words", "outcome", "reason"),
    [
        (["--type", "Explore"], "routed", "the agent's type is Explore, as the header x-claude-code-agent-type says"),
        (["--type", "Plan"], "stays", "no rule fits"),
        (["--agent", "somebody"], "stays", "no rule fits"),
        (["--agent", "scout"], "declined", "the rule says so"),
        (["--agent", "x", "--model", "openai:gpt-4o"], "routed", "it asks for the model openai:gpt-4o"),
        ([], "stays", "no rule is for such a request"),
    ],
)
def test_what_becomes_of_a_request(rules, body, words, outcome, reason):
    found = told(rules, body, *words)
    assert (found["outcome"], found["reason"]) == (outcome, reason)


def test_an_agent_is_known_by_its_file_and_its_file_may_say_where_it_goes(rules, body):
    agents = rules.cwd / ".claude" / "agents"
    agents.mkdir(parents=True)
    (agents / "reviewer.md").write_text("---\nname: code-reviewer\n---\nYou review.")
    assert told(rules, body)["reason"] == "the agent is named code-reviewer, as the agent file says"
    (agents / "reviewer.md").write_text("---\nname: other\n# route: ollama:qwen3\n---\nYou review.")
    found = told(rules, body)
    assert (found["rule"], found["attempts"][0]["target"]) == ("route in reviewer.md = ollama:qwen3", "ollama:qwen3")


def test_without_a_key_it_says_so(rules, body):
    out = trial(rules, body, "--agent", "code-reviewer", OPENAI_API_KEY="")
    assert out.startswith(
        "It stays where the client sends it by the rule code-reviewer = openai:gpt-5.5, because no key"
    )


def test_a_request_from_standard_input_and_in_a_message_thread(rules):
    out = trial(rules, "-", "--agent", "code-reviewer", stdin=json.dumps({**BODY, "thread": {"type": "create"}}))
    assert "It belongs to a message thread: the client is asked for its whole history first." in out


def test_what_a_provider_declines(rules, body):
    search = {**BODY, "tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}
    found = told(rules, "-", "--agent", "code-reviewer", stdin=json.dumps(search))
    assert found["outcome"] == "declined"
    assert "server tool code_execution" in found["reason"]


def test_passthrough_is_said(rules, body):
    found = told(rules, body, "--agent", "code-reviewer", DBPROXY_PASSTHROUGH="1")
    assert (found["outcome"], found["reason"]) == ("stays", "passthrough is on, and no rule acts")


def test_requests_from_the_record(rules):
    made = captured.fill(make_private(rules.data) / "dbproxy.sqlite")
    (rules.cwd / "dbproxy.toml").write_text('[routes]\nzebra-scout = "openai:gpt-5.5"\n"kind:nested" = "ollama:qwen3"')
    found = told(rules, "--exchange", made["scout"])
    assert found["reason"] == "the agent is named zebra-scout"
    assert told(rules, "--exchange", made["nested"])["rule"] == "kind:nested = ollama:qwen3"
    assert told(rules, "--exchange", made["compaction"])["outcome"] == "stays"
    assert told(rules, "--exchange", made["title"], "--model", "openai:gpt-4o")["outcome"] == "stays"
    assert told(rules, "--exchange", made["second"][:-2])["who"] == "a turn of the main conversation"
    exported = rules.run("log", "export", made["scout"])
    found = told(rules, "-", "--agent", "zebra-scout", stdin=exported.stdout)
    assert (found["outcome"], found["model"]) == ("routed", "claude-opus-5-5")
    assert told(rules, "-", stdin=exported.stdout)["who"] == "a turn of an agent whose name nobody knows"


def test_nothing_is_sent_and_nothing_is_kept(rules, body):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        rules.env["OPENAI_BASE_URL"] = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        out = trial(rules, body, "--agent", "code-reviewer")
        assert f"http://127.0.0.1:{server.getsockname()[1]}/v1/" in out
        with pytest.raises(TimeoutError):
            server.accept()
    assert not rules.data.exists()


# ---- the page on routing


def test_every_rule_of_the_page_can_be_followed(shell):
    page = (Path(__file__).resolve().parents[2] / "docs" / "routing.md").read_text("utf-8")
    examples = re.findall(r"```toml\n(\[routes\].*?)```", page, re.DOTALL)
    assert len(examples) >= 2
    for example in examples:
        (shell.cwd / "dbproxy.toml").write_text(example)
        done = shell.run("routes", "list", "--json", OPENAI_API_KEY=KEY, GEMINI_API_KEY=KEY)
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        assert len(found) >= 2
        assert [rule["refused"] for rule in found] == [""] * len(found)


def test_the_older_tools_form_of_the_page(shell):
    done = shell.run("routes", "list", "--json", SUBAGENT_MAPPINGS="code-reviewer:gpt-5.5,Explore:haiku")
    assert [(rule["key"], rule["targets"]) for rule in json.loads(done.stdout)] == [
        ("code-reviewer", ["gpt-5.5"]),
        ("Explore", ["haiku"]),
    ]


# ---- somebody else's plugins

PROVIDER = """
from types import SimpleNamespace
from dbproxy.api import Fields, ProviderCall, ProviderLimits, hookimpl
from dbproxy.api.codecs import Capabilities
from dbproxy.api.dialects import CHAT


class Mine:
    name, limits = "mine", ProviderLimits()

    def unready(self):
        return ""

    def capabilities(self, model):
        return Capabilities(context=1000, output=10)

    def decline(self, request, model):
        return "it is Monday" if model == "lazy" else ""

    def call(self, request, translation):
        if translation.model == "broken":
            raise ZeroDivisionError("a secret place")
        body = CHAT.write(request, translation)
        return ProviderCall(body, "https://mine.test/v1?key=my-secret-key", Fields.of([]), CHAT, ("my-secret-key",))


@hookimpl
def providers(app):
    return [Mine()]
"""


@pytest.fixture
def plugins(rules):
    folder = make_private(make_private(rules.data) / "plugins")
    (folder / "mine.py").write_text(PROVIDER)
    (rules.cwd / "dbproxy.toml").write_text('[routes]\nx = "mine:eager"\ny = ["mine:lazy"]\nz = "mine:broken"')
    return folder


def test_a_provider_of_somebody_elses_is_asked_too(rules, body, plugins):
    out = trial(rules, body, "--agent", "x")
    assert "mine:eager would get " in out
    assert "https://mine.test/v1?key=***" in out
    assert "my-secret-key" not in out
    assert "of its 1,000" in out
    assert told(rules, body, "--agent", "y")["reason"] == "it is Monday"
    assert "mine:broken would not be asked: the provider failed: ZeroDivisionError" in trial(
        rules, body, "--agent", "z"
    )


def test_a_plugin_that_fails_is_said_and_the_rest_goes_on(rules, body, plugins):
    (plugins / "bad.py").write_text("from dbproxy.api import hookimpl\n\n@hookimpl\ndef providers(app):\n    1 / 0\n")
    (plugins / "worse.py").write_text("1 / 0\n")
    (plugins / "other.py").write_text(
        "from dbproxy.api import hookimpl\n\n@hookimpl\ndef startup(app):\n    open('started', 'w').close()\n"
    )
    done = rules.run("routes", "test", str(body), "--agent", "x")
    assert done.returncode == 0
    assert "the plugin worse failed" in done.stderr
    assert "the plugin bad failed" in done.stderr
    assert "mine:eager would get " in done.stdout
    assert not (rules.cwd / "started").exists()  # it neither routes nor brings providers


def test_without_a_plugin_that_follows_rules(rules, body):
    for words in (["list"], ["test", str(body)]):
        done = rules.run("routes", *words, "--plugins-disabled", "subagent-routing")
        assert (done.returncode, done.stdout) == (1, "")
        assert "no plugin follows rules" in done.stderr


# ---- wrong input


@pytest.mark.parametrize(
    "words",
    [
        ["test"],
        ["test", "a", "--exchange", "last"],
        ["list", "--colour"],
        ["test", "a", "--agent", "x", "--type", "Explore"],
    ],
)
def test_wrong_usage(shell, words):
    done = shell.run("routes", *words)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no JSON object"),
        ("[]", "is no JSON object"),
        ("no json", "is no JSON object"),
        ("{}", "is no Messages request"),
        ('{"messages": 5}', "is no Messages request"),
        ('{"exchange": {}, "request": null}', "is no Messages request"),
        ('{"exchange": {"id": "x"}, "request": null}', "was not kept"),
        ('{"exchange": {"id": "x"}, "request": {"base64": "?"}}', "was not kept"),
        ('{"exchange": {"id": "x"}, "request": 5}', "was not kept"),
        ('{"exchange": {"id": "x"}, "request_headers": []}', "the facts of a request and not its body"),
        ('{"exchange": {"id": "x"}}\n{"exchange": {"id": "y"}}\n', "holds 2 requests"),
    ],
)
def test_files_that_hold_no_request(text, said):
    with pytest.raises(DbproxyError, match=said):
        read_captured(text.encode(), "file", "/here")


def test_a_file_that_holds_no_request_is_one_line_on_stderr(shell):
    (shell.cwd / "file").write_text("{}")
    done = shell.run("routes", "test", "file")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "dbproxy: file is no Messages request. Its body needs `messages`\n"


def test_files_that_cannot_be_read(shell):
    for name in ("missing", "."):
        done = shell.run("routes", "test", name)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"cannot read {name}" in done.stderr
    assert shell.run("routes", "test", "--exchange", "last").returncode == 1
    done = shell.run("routes", "test", "-", stdin='{"exchange": {"id": "x"}, "request": {"a": 1}}')
    assert (done.returncode, done.stdout) == (1, "")
    assert "no Messages request" in done.stderr


def test_an_exported_request_in_base64():
    raw = b'{"messages":[]}'
    line = {"exchange": {"kind": "nested", "client": "c/1", "project": "/p", "path": "/v1/x", "compaction": "auto"}}
    found = read_captured(json.dumps({**line, "request": {"base64": base64.b64encode(raw).decode()}}).encode(), "f", "")
    assert found == Captured(raw, "/v1/x", (("user-agent", "c/1"),), RequestKind.NESTED, "auto", project="/p")
    plain = read_captured(json.dumps({**line, "request": {"messages": []}}).encode(), "f", "")
    assert plain == replace(found, body=b'{"messages":[]}')
    assert read_captured(b'{"messages":[]}', "f", "/here") == Captured(b'{"messages":[]}', project="/here")


def test_a_model_cannot_be_put_into_what_is_no_object():
    with pytest.raises(DbproxyError, match="cannot be changed"):
        as_agent(Captured(b"[]"), model="x")
    assert as_agent(Captured(b"{}", kind=RequestKind.COMPACTION), name="x").kind is RequestKind.COMPACTION
