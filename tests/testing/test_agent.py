"""The scripted agent: its retry rules and its strictness, each as measured of the real client."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import trio
from mitm import open_mitm

from dbproxy.testing.agent import main as agent_main
from dbproxy.testing.agent import parser, work
from dbproxy.testing.compare import compare, head_lines
from dbproxy.testing.conversation import Failure, HttpError, TooLong, _NotAStream, _Tries
from dbproxy.testing.http_client import Broken, Silent, Way
from dbproxy.testing.origin import Answer, Match, Rule, document, fail, open_origin, say, text
from dbproxy.testing.origin.events import encode, message_events
from dbproxy.testing.origin.grammar import StreamError

MAIN = Match(role="main")
# Ends as its framing promises, and yet is not whole.
CLEANLY_CUT = tuple(encode(event) for event in message_events([text("x")], model="m")[:-1])


async def session(script, *words, environ=None, retries=3):
    async with open_origin(script) as origin:
        options = parser().parse_args(["--time-scale", "0.01", *words])
        given = {"ANTHROPIC_BASE_URL": origin.url, "CLAUDE_CODE_GATEWAY_HINT_HEADERS": "1"}
        given |= {"CLAUDE_CODE_MAX_RETRIES": str(retries)} | (environ or {})
        with trio.fail_after(20):
            report = await work(options, given)
        await origin.wait_answered()
        return report, [request for request in origin.requests if request.is_messages]


# What it goes on after (client facts 5)


@pytest.mark.parametrize(
    "answers",
    [
        [fail(500, "x"), fail(502, "x"), fail(503, "x")],
        [fail(429, "x", fields=(("retry-after", "3"),))] * 2,
        [fail(429, "x")] * 3,
        [fail(529, "x")] * 2,
        [fail(401, "x")] * 3,
        [fail(400, "x")] * 5,
        [fail(404, "x")],
        [say("x" * 900, cut_after=4), say("x", cut_after=0), say("x", cut_after=-1)],
        [say("x", cut_after=0, cut_how="rst")],
        [say("x" * 900, error_after=0)],
        [say("x" * 900, error_after=4)],
        [say("x", stall_after=1, stall=60)],
        [say("x", head_delay=60)],
        [Answer(status=502, body=b"<html>bad gateway</html>", content_type="text/html")],
    ],
)
async def test_recovers(answers):
    rule = Rule((*answers, say("Recovered.")), MAIN)
    report, requests = await session([rule])
    assert report["failure"] == ""
    assert report["answers"] == ["Recovered."]
    assert len(requests) == len(answers) + 1


@pytest.mark.parametrize(
    ("answer", "tries"),
    [
        (fail(500, "x"), 4),
        (fail(529, "x"), 3),
        (fail(500, "x", fields=(("x-should-retry", "false"),)), 1),
        (fail(429, "x", fields=(("retry-after", "3600"),)), 1),
        (fail(403, "x"), 1),
        (fail(413, "x"), 1),
        (fail(404, "x"), 2),
        (fail(400, "x"), 6),
        (say("x" * 900, cut_after=4), 4),
        (say("x" * 900, cut_after=7), 4),  # all events but the end
        (Answer(events=(b"event: message_stop\ndata: {}\n\n",)), 1),
        (Answer(events=(b"garbage\n\n",)), 1),
        (Answer(events=CLEANLY_CUT), 4),
        (document({"type": "error"}), 2),
        (document(["no message"]), 2),
        (Answer(events=()), 4),
    ],
)
async def test_gives_up(answer, tries):
    report, requests = await session([Rule((answer,), MAIN)])
    assert report["failure"]
    assert len(requests) == tries


async def test_a_retry_has_the_same_bytes_and_a_new_id():
    """Client facts 1.4."""
    _, requests = await session([Rule((fail(500, "x"), say("ok")), MAIN)])
    first, second = requests
    assert first.body == second.body
    assert first.header("x-client-request-id") != second.header("x-client-request-id")
    assert first.header("x-claude-code-prompt-id") == second.header("x-claude-code-prompt-id")


async def test_falls_back_to_no_stream():
    """After an error event behind content, and for a whole message to a stream request (client facts 4.4, 5)."""
    _, requests = await session([Rule((say("x" * 900, error_after=4), say("ok")), MAIN)])
    assert [request.stream for request in requests] == [True, False]
    assert requests[1].json["max_tokens"] == 64_000


@pytest.mark.parametrize("why", ["auto", "manual", "reactive"])
async def test_compaction_and_the_first_request_after_it(why):
    scenario = {"auto": "autocompact", "manual": "tools", "reactive": "too_long"}[why]
    words = ["--compact"] if why == "manual" else []
    report, requests = await session(scenario, *words)
    assert report["failure"] == ""
    assert report["compactions"] == 1
    asked = next(request for request in requests if request.role == "compaction")
    assert asked.header("x-claude-code-compaction") == why
    assert "create a detailed summary" in asked.last_text
    assert asked.tools == ["Agent", "Bash", "Read"]
    if why != "manual":
        after = requests[-1]
        assert after.header("x-claude-code-context-compacted") == why
        assert "ORIGIN-SUMMARY" in after.first_text
        assert "<summary>" not in after.first_text
        assert after.tool_results == (1 if why == "reactive" else 0)


@pytest.mark.parametrize(
    ("summary", "asked", "good"),
    [
        ("good", 1, True),
        ("summary_only", 1, True),
        ("thinking", 1, True),
        ("no_tags", 2, True),
        ("cut", 2, True),
        ("error_500", 3, True),
        ("empty", 1, False),
        ("no_block", 1, False),
        ("tool", 1, False),
        ("max_tokens", 4, False),
        ("cut_always", 4, False),
        ("error_400", 8, False),
    ],
)
async def test_takes_and_refuses_summaries_as_the_real_client_does(summary, asked, good):
    """Client facts 4.4."""
    report, requests = await session({"scenario": "autocompact", "options": {"summary": summary}})
    assert sum(request.role == "compaction" for request in requests) == asked
    assert (report["failure"] == "") is good
    if good:
        assert "ORIGIN-SUMMARY" in requests[-1].first_text


async def test_the_head_stands_in_the_clients_order():
    """Client facts 1.4: Title-Case first, then lower case, then the connection's fields."""
    _, requests = await session("plain")
    names = [name.decode() for name, _ in requests[0].fields]
    assert names[:4] == ["Accept", "Content-Type", "User-Agent", "X-Claude-Code-Session-Id"]
    assert names[-4:] == ["Connection", "Host", "Accept-Encoding", "Content-Length"]
    lower = [name for name in names if name == name.lower()]
    assert lower == sorted(lower)


async def test_subagents_speak_at_the_same_time_on_tunnels_of_their_own():
    rules = {"scenario": "agent", "options": {"agents": 2}, "rules": []}
    report, requests = await session(rules)
    assert report["failure"] == ""
    subs = [request for request in requests if request.role == "subagent"]
    assert len({request.header("x-claude-code-agent-id") for request in subs}) == 2
    assert len({request.connection.number for request in subs}) == 2
    assert all("Agent" not in request.tools for request in subs)
    assert "cc_is_subagent=true" in subs[0].system_text
    assert len({request.header("x-claude-code-session-id") for request in requests}) == 1


async def test_a_failing_subagent_fails_the_session():
    rules = [{"match": {"role": "subagent"}, "answer": {"status": 403, "fail": {}}}]
    report, _ = await session({"scenario": "agent", "options": {"agents": 2}, "rules": rules})
    assert "403" in report["failure"]


async def test_each_turn_continues_the_one_before():
    """The messages of a request are a strict prefix of the next, less the moving mark (client facts 3.1)."""
    _, requests = await session("tools", "-p", "one", "-p", "two")

    def plain(message):
        content = message["content"]
        if isinstance(content, list):
            content = [{k: v for k, v in block.items() if k != "cache_control"} for block in content]
            if len(content) == 1 and content[0]["type"] == "text":
                content = content[0]["text"]
        return {**message, "content": content}

    for earlier, later in itertools.pairwise(requests):
        old = [plain(m) for m in earlier.json["messages"]]
        assert [plain(m) for m in later.json["messages"]][: len(old)] == old
    marks = [json.dumps(request.json["messages"]).count("cache_control") for request in requests]
    assert marks == [1] * len(requests)


async def test_verifies_certificates(tmp_path):
    async with open_origin(tls=True) as origin, open_mitm(origin) as (port, _, heads):
        wrong = tmp_path / "wrong.pem"
        wrong.write_bytes(origin.ca_pem)
        environ = {"https_proxy": f"http://127.0.0.1:{port}", "NODE_EXTRA_CA_CERTS": str(wrong)}
        environ["CLAUDE_CODE_MAX_RETRIES"] = "1"
        with trio.fail_after(20):
            report = await work(parser().parse_args(["--time-scale", "0.001"]), environ)
        assert "cannot connect" in report["failure"]
        assert len(heads) == 4
        assert origin.requests == []


async def test_a_refused_tunnel_is_told():
    async def refuse(stream):
        await stream.receive_some(4096)
        await stream.send_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, refuse, 0)
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(20):
            report = await work(
                parser().parse_args(["--time-scale", "0.001"]),
                {"HTTPS_PROXY": f"http://127.0.0.1:{port}", "CLAUDE_CODE_MAX_RETRIES": "1"},
            )
        assert "refused the tunnel: HTTP/1.1 407" in report["failure"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({"HTTPS_PROXY": "http://a:b%40@127.0.0.1:99"}, ("127.0.0.1", 99)),
        ({"https_proxy": "127.0.0.1:98", "HTTPS_PROXY": "http://other:1"}, ("127.0.0.1", 98)),
        ({"HTTPS_PROXY": "http://x:1", "NO_PROXY": "localhost,127.0.0.1"}, ("x", 1)),
        ({"HTTPS_PROXY": "http://x:1", "NO_PROXY": ".anthropic.com"}, None),
        ({"HTTPS_PROXY": "http://x:1", "no_proxy": "*"}, None),
        ({"HTTPS_PROXY": "http://x:1", "ANTHROPIC_BASE_URL": "http://127.0.0.1:8"}, None),
        ({}, None),
    ],
)
def test_the_way_follows_the_environment(environ, proxy):
    """Client facts 1.3."""
    way = Way.of(environ)
    assert way.proxy == proxy
    if "a:b" in environ.get("HTTPS_PROXY", ""):
        assert base64.b64decode(way.proxy_authorization.removeprefix("Basic ")) == b"a:b@"


def test_waits_double_up_to_half_a_minute():
    """Client facts 5: 0.6, 1.2, 2.3, 4.4, 9.5, 19, 32, 36, 38, 35 s, then exit 1."""
    tries = _Tries(10, "main")
    waits = [tries.after(Broken("x")) for _ in range(10)]
    assert waits == pytest.approx([0.55, 1.1, 2.2, 4.4, 8.8, 17.6, 35.2, 35.2, 35.2, 35.2])
    with pytest.raises(Failure):
        tries.after(Broken("x"))


def test_what_each_error_does_to_the_next_try():
    def status(code, text="", **fields):
        pairs = [(name.replace("_", "-"), value) for name, value in fields.items()]
        return HttpError(
            SimpleNamespace(status=code, field=lambda name: dict(pairs).get(name)),
            text,
        )

    assert _Tries(9, "main").after(status(429, retry_after="3")) == 3
    with pytest.raises(TooLong):
        _Tries(9, "main").after(status(400, "prompt is too long: 2 tokens > 1 maximum"))
    for error in (_NotAStream(), Silent(), StreamError({}, after_content=True), status(404)):
        tries = _Tries(9, "main")
        assert tries.after(error) == 0
        assert not tries.stream
    tries = _Tries(9, "main")
    assert tries.after(StreamError({}, after_content=False)) > 0
    assert tries.stream


def test_main_reports_and_exits(tmp_path, capsys):
    assert agent_main(["--need-proxy"], {}) == 1
    assert "no proxy is set" in capsys.readouterr().err


def test_as_a_process_against_the_origin_as_a_process(tmp_path):
    record, ca = tmp_path / "record", tmp_path / "ca.pem"
    command = [sys.executable, "-W", "error", "-m"]
    origin = subprocess.Popen(
        [
            *[*command, "dbproxy.testing.origin", "--until-eof", "--scenario", "tools"],
            *["--tls-port", "0", "--port", "0", "--record", str(record), "--ca", str(ca)],
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        ready = json.loads(origin.stdout.readline())
        report = tmp_path / "report.json"
        environ = {"ANTHROPIC_BASE_URL": f"https://127.0.0.1:{ready['tls_port']}", "NODE_EXTRA_CA_CERTS": str(ca)}
        done = subprocess.run(
            [*command, "dbproxy.testing.agent", "--report", str(report)],
            env=environ,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "All done.\n", "")
    finally:
        origin.stdin.close()
        assert origin.wait(10) == 0
        origin.stdout.close()
    attempts = json.loads(report.read_text())["attempts"]
    assert len(attempts) == 5
    for attempt in attempts:
        stem = record / f"{attempt['number']:06d}"
        assert stem.with_suffix(".head").read_bytes() == base64.b64decode(attempt["head"])
        assert stem.with_suffix(".body").read_bytes() == base64.b64decode(attempt["body"])
        about = json.loads(stem.with_suffix(".json").read_text())
        assert about["answer"]["body"].encode("latin-1") == base64.b64decode(attempt["answer_body"])
        assert about["answer"]["complete"] is True
        assert about["tls"] is True


# The comparison itself


async def compared(change):
    async with open_origin("plain") as origin:
        environ = {"ANTHROPIC_BASE_URL": origin.url, "CLAUDE_CODE_MAX_RETRIES": "0"}
        report = await work(parser().parse_args(["--time-scale", "0.01"]), environ)
        await origin.wait_answered()
        change(origin.requests, report["attempts"])
        return compare(report["attempts"], origin.requests, authority="upstream.test:1")


def test_hop_by_hop_lines_are_left_out():
    head = b"GET / HTTP/1.1\r\nConnection: x\r\nA:  b \r\nX-Dbproxy-Phase: idle\r\n\r\n"
    assert head_lines(head, drop=b"x-dbproxy-") == [b"GET / HTTP/1.1", b"A:  b "]
    assert len(head_lines(head)) == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r, a: None, ""),
        (lambda r, a: setattr(r[2], "head", r[2].head.replace(b"Accept: ", b"Accept:")), "request head"),
        (lambda r, a: setattr(r[2], "head", r[2].head.replace(b"x-app: cli\r\n", b"")), "request head"),
        (lambda r, a: setattr(r[2], "head", r[2].head.replace(b"\r\n\r\n", b"\r\nVia: us\r\n\r\n")), "request head"),
        (lambda r, a: setattr(r[2], "body", r[2].body + b" "), "request body"),
        (lambda r, a: r[2].sent.body.append(1), "answer body"),
        (lambda r, a: setattr(r[2].sent, "complete", False), "cut answer"),
        (lambda r, a: r.pop(), "never reached"),
        (lambda r, a: a.pop(), "unmatched"),
    ],
)
async def test_every_kind_of_difference_is_told(change, told):
    found = await compared(change)
    assert found.same is (told == "")
    differences = [text for line in found.lines for text in line.differences]
    if told == "unmatched":
        assert found.unmatched == ("POST /v1/messages",)
    elif told:
        assert len(differences) == 1
        assert told in differences[0]
