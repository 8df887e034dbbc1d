"""What the comparison lets pass of a proxy with a double buffer: its checkpoints and its swaps, and nothing else."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace

import pytest

from dbproxy.testing.compare import Checkpoint, compare

ASKED = json.dumps({"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "go"}]}]}).encode()
MORE = b', {"type": "text", "text": "sum it up"}'
SUMMED = ASKED.replace(b'"go"}', b'"go"}' + MORE)


def sent(number, kind, body=ASKED, *, complete=True):
    """An attempt as the agent reports it."""
    texts = {"head": b"POST /v1/messages HTTP/1.1\r\n", "answer_head": b"HTTP/1.1 200 OK\r\n", "answer_body": b"yes"}
    coded = {name: base64.b64encode(text).decode() for name, text in {**texts, "body": body}.items()}
    about = {"method": "POST", "target": "/v1/messages", "left": False, "complete": complete}
    return {"number": number, "kind": kind, "key": f"key-{number}", **about, **coded}


def got(number, key="", body=ASKED, kind="main"):
    """A request as the API recorded it."""
    fields = {"x-client-request-id": key, "x-claude-code-request-class": kind}
    return SimpleNamespace(
        number=number,
        method="POST",
        path="/v1/messages",
        target="/v1/messages",
        head=b"POST /v1/messages HTTP/1.1\r\n",
        body=body,
        header=fields.get,
        sent=SimpleNamespace(head=b"HTTP/1.1 200 OK\r\n", body=b"yes", complete=True),
    )


def test_a_checkpoint_and_a_swap_are_known_as_such():
    attempts = [sent(1, "main"), sent(2, "compaction")]
    found = compare(attempts, [got(1, "key-1"), got(2, "own", SUMMED, "compaction")], buffered=True)
    assert found.same
    assert [line.swapped for line in found.lines] == [False, True]
    assert found.checkpoints == (Checkpoint(1, len(SUMMED), len(MORE), 3),)


def test_without_a_buffer_neither_passes():
    attempts = [sent(1, "main"), sent(2, "compaction")]
    found = compare(attempts, [got(1, "key-1"), got(2, "own", SUMMED, "compaction")])
    assert not found.same
    assert found.unmatched == ("POST /v1/messages",)
    assert found.lines[1].differences == ("it never reached the API",)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (SUMMED.replace(b'"m"', b'"n"'), "compaction"),
        (SUMMED.replace(b'"go"', b'"so"'), "compaction"),
        (SUMMED, "main"),
        (ASKED, "compaction"),
        (b"", "compaction"),
    ],
)
def test_any_other_request_of_the_proxys_is_too_much(body, kind):
    found = compare([sent(1, "main")], [got(1, "key-1"), got(2, "own", body, kind)], buffered=True)
    assert not found.same
    assert found.unmatched == ("POST /v1/messages",)


@pytest.mark.parametrize("attempt", [sent(1, "main"), sent(1, "compaction", complete=False)])
def test_what_never_reached_the_api_and_is_no_swap_is_a_difference(attempt):
    assert not compare([attempt], [], buffered=True).same
