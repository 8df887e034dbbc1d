"""``dbproxy explain``: the evidence as sentences, for every kind of request and every end."""

from __future__ import annotations

import json
from dataclasses import replace

import captured
import pytest
from captured import CONVERSATION

from dbproxy.app.explaining import sentences
from dbproxy.model.link import Edge, RequestKind
from dbproxy.paths import make_private
from dbproxy.store.reader import Reader
from dbproxy.store.rows import EvidenceRow


@pytest.fixture
def made(shell):
    return captured.fill(make_private(shell.data) / "dbproxy.sqlite")


def explain(shell, id):
    done = shell.run("explain", id)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_an_agents_request(shell, made):
    out = explain(shell, made["scout"]).splitlines()
    assert out[0] == (
        f"{made['scout']} is a turn of a subagent in conversation {CONVERSATION}, agent zebra-scout #1 of type custom."
    )
    assert out[1] == f"It is an agent's first request; the answer of {made['second']} started the agent."
    assert out[2] == f"Session: {CONVERSATION}, as the x-claude-code-session-id header says."
    assert "It cost $0.012500 by the price of claude-opus-5-5." in out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("first", "it begins its thread"),
        ("second", "the same history, its answer, and more"),
        ("nested", "an agent that another agent started"),
        ("retried", "once more (attempt 2), so it begins no branch"),
        ("failed", "was answered with an error (status 529) after 0.90 s"),
        ("compaction", "asks for a summary of the conversation (auto)"),
        ("compaction", "No price is known for unknown-model."),
        ("after", "It starts from the summary that {compaction} asked for."),
        ("rewind", "It leaves the history of {first} at an earlier point, so it begins branch 3."),
        ("title", "a side request that names the session"),
        ("title", "moves none"),
    ],
)
def test_every_kind_has_its_sentence(shell, made, name, said):
    assert said.format(**made.ids) in explain(shell, made[name])


def test_ids_may_be_prefixes_or_last_and_json_is_for_scripts(shell, made):
    done = shell.run("explain", "last", "--json")
    told = json.loads(done.stdout)
    assert told["exchange"] == made["other"]
    assert told["evidence"][1] == {
        "question": "kind",
        "answer": "main",
        "source": "x-claude-code-request-class header",
        "detail": "main",
    }
    assert explain(shell, made["other"][:-1] + "C").startswith(made["other"])
    assert explain(shell, "req_12").startswith(made["other"])


@pytest.mark.parametrize("words", [[], ["a", "b"], ["--colour", "x"]])
def test_wrong_usage(shell, words):
    done = shell.run("explain", *words)
    assert (done.returncode, done.stdout) == (2, "")


def test_unknown_ids_and_no_file(shell):
    done = shell.run("explain", "last")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing was captured yet" in done.stderr
    captured.fill(make_private(shell.data) / "dbproxy.sqlite")
    done = shell.run("explain", "zzz")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_whatever_was_recorded_makes_sentences(shell, made):
    with Reader.open(made.path) as reader:
        detail = reader.exchange(made["scout"])

    def told(**changes):
        return " ".join(sentences(replace(detail, exchange=replace(detail.exchange, **changes))))

    for kind in [*RequestKind, "newer"]:
        for edge in [*Edge, "newer"]:
            for parent in ("", "p"):
                assert told(kind=str(kind), edge=str(edge), parent=parent).startswith(made["scout"])
    assert "was not linked" in told(kind="", parent="", edge="")
    assert "is under way" in told(state="open", outcome="")
    assert "its proxy was killed" in told(state="lost", outcome="")
    assert "was aborted by the client" in told(outcome="aborted", first_byte_ms=None, duration_ms=None)
    assert "ended as newer: why" in told(outcome="newer", status=0, duration_ms=None, error="why")
    assert "removed by `log prune`" in told(body_kind="pruned")
    assert "more came than could be written" in told(body_kind="shed")
    assert "not the exact bytes" in told(body_inexact=True)
    assert "asked for as alias" in told(model_asked="alias")
    odd = replace(detail, evidence=(EvidenceRow("agent", "", "spawn ledger", "toolu_1"),), agent=None)
    assert "Agent: not known, as the spawn ledger says (toolu_1)." in sentences(odd)
