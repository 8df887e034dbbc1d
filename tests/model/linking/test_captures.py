"""The captured runs of the real client link as reviewed by hand, in order and in every order that parallel requests
could have arrived in (client facts 3 and 4)."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from linktalk import CAPTURES, Talk, captured, short

from dbproxy.model.messages import MessagesRequest

EXPECTED: dict[str, dict[str, list[Any]]] = json.loads((CAPTURES / "expected.json").read_text("utf-8"))
Event = tuple[str, dict[str, Any]]


def run(events: list[Event], talk: Talk | None = None) -> Talk:
    talk = talk or Talk()
    for what, exchange in events:
        if what == "ask":
            view = MessagesRequest(json.dumps(exchange["body"]).encode())
            talk.send(exchange["id"], exchange["at"], view, dict(exchange["headers"]), exchange["path"], "acct")
        else:
            talk.end(exchange["id"], exchange["answer"], ok=exchange["ok"], request_id=exchange["request_id"])
    return talk


def result(talk: Talk) -> dict[str, list[Any]]:
    return {id: short(link) for id, link in sorted(talk.links.items())}


def in_order(name: str) -> list[Event]:
    return [(what, exchange) for exchange in captured(name) for what in ("ask", "answer")]


def lane(exchange: dict[str, Any], expected: list[Any]) -> str:
    """Requests of one lane follow each other; those of two lanes run at the same time."""
    thread = str(expected[0])
    return thread or f"beside {exchange['id']}"


def shuffled(name: str, rng: random.Random) -> list[Event]:
    """A random order in which the events of a run could have come: each lane in order, an agent not before the request
    whose answer starts it; with an id of its own it may come before that answer's end."""
    links = EXPECTED[name]
    lanes: dict[str, list[Event]] = {}
    for exchange in captured(name):
        expected = links[exchange["id"]]
        lanes.setdefault(lane(exchange, expected), []).extend([("ask", exchange), ("answer", exchange)])
    after: dict[str, tuple[str, str]] = {}
    for exchange in captured(name):
        expected = links[exchange["id"]]
        if expected[4] == "spawn":
            named = any(header.lower() == "x-claude-code-agent-id" for header, _ in exchange["headers"])
            after[exchange["id"]] = ("ask" if named else "answer", expected[5])
    done: set[tuple[str, str]] = set()
    events: list[Event] = []
    while lanes:
        ready = [key for key, rest in lanes.items() if rest[0][0] != "ask" or _may(rest[0][1], after, done)]
        key = rng.choice(ready)
        what, exchange = lanes[key].pop(0)
        done.add((what, exchange["id"]))
        events.append((what, exchange))
        if not lanes[key]:
            del lanes[key]
    return events


def _may(exchange: dict[str, Any], after: dict[str, tuple[str, str]], done: set[tuple[str, str]]) -> bool:
    return exchange["id"] not in after or after[exchange["id"]] in done


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_in_order(name: str) -> None:
    assert result(run(in_order(name))) == EXPECTED[name]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_in_any_order_of_parallel_requests(name: str) -> None:
    rng = random.Random(name)
    for _ in range(20):
        events = shuffled(name, rng)
        assert result(run(events)) == EXPECTED[name], [(what, exchange["id"]) for what, exchange in events]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_with_a_restart_anywhere(name: str) -> None:
    events = in_order(name)
    places = {i for i in range(1, len(events)) if events[i][0] == "ask"}
    for cut in sorted(places) if len(places) < 12 else sorted(places)[::5]:
        before = run(events[:cut])
        found, expected = result(run(events[cut:], before.restarted())), dict(EXPECTED[name])
        for id, link in expected.items():
            if link[2] == "compaction":  # its messages are no part of a branch, so its repeats are counted per process
                expected[id], found[id] = [*link[:6], *link[7:]], [*found[id][:6], *found[id][7:]]
        assert found == expected, cut


def test_every_capture_has_its_expected_results_and_no_secret() -> None:
    names = {path.stem for path in CAPTURES.glob("*.json")} - {"expected"}
    assert names == set(EXPECTED)
    for path in CAPTURES.glob("*.json"):
        text = path.read_text("utf-8")
        assert not [word for word in ("sk-ant", "Bearer", "/home/", "/tmp/") if word in text]
    assert sum(path.stat().st_size for path in CAPTURES.iterdir()) < 600_000
