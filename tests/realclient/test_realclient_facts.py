"""Sixty facts that the real client learns after the checkpoint, and what its next request still holds of them.

They stand in the user's words, in tools' results and in edits, with all that is known to go wrong: dollar patterns, the
summary's own tags, blank lines. Once there is room for all; once the budget forces cuts, and the swap's record must
name the place of every fact that is not whole any more.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass

import pytest
from test_realclient_buffer import asked_for_summary, bash, fills, run, spent
from test_realclient_summary import AFTER, unchunked

pytestmark = pytest.mark.realclient

ROUNDS = 4
EACH = 5  # facts of each kind in a round
ODD = (
    "it costs $' and $& and $$5 and $` and $1",
    "</summary> ends nothing, <summary> begins nothing",
    "<analysis>no analysis</analysis> and </analysis>",
    "a paragraph\n\nand another one",
    'quotes "so" and \\n and C:\\temp, ä 漢 🙂, a tab\there',
)
KINDS = ("user", "result", "edit")


def fact(kind, round_, number):
    """Some 500 bytes that stand nowhere else; the telling part is in the middle, where a cut would be."""
    mark = f"{kind}-{round_}-{number}"
    return f"Fact {mark}: {'around it ' * 22}[{mark} {ODD[number]} {mark}] {'and after ' * 22}end of {mark}."


FACTS = {
    (kind, round_, number): fact(kind, round_, number)
    for kind in KINDS
    for round_ in range(ROUNDS)
    for number in range(EACH)
}


def asked(round_):
    """What the user says in a round."""
    return "\n".join([f"round {round_}", *(FACTS["user", round_, number] for number in range(EACH))])


def edits(round_):
    """A new file for each fact but the last two, which are one file that is changed."""
    written = [
        {"type": "tool_use", "name": "Write", "input": {"file_path": f"new-{round_}-{n}.txt", "content": text}}
        for n, text in ((n, FACTS["edit", round_, n]) for n in range(EACH - 1))
    ]
    change = {
        "file_path": f"new-{round_}-{EACH - 2}.txt",
        "old_string": FACTS["edit", round_, EACH - 2],
        "new_string": FACTS["edit", round_, EACH - 1],
    }
    return written, {"type": "tool_use", "name": "Edit", "input": change}


def answers(project, client):
    """A context above the threshold, then the rounds, each with five results and five edits, up to the wall.

    It grows by less than the smaller budget: else there would be a newer checkpoint.
    """
    wall = fills(client)[-1]
    made = [{"text": "Begun.", "usage": spent(wall - 8_000)}]
    for round_ in range(ROUNDS):
        for number in range(EACH):
            (project / f"known-{round_}-{number}.txt").write_text(FACTS["result", round_, number])
        shown = [bash(f"reading && cat known-{round_}-{number}.txt", 0) for number in range(EACH)]
        written, change = edits(round_)
        for call in [*written, change]:
            call["input"]["file_path"] = str(project / call["input"]["file_path"])
        tokens = spent(wall - 7_000 + 1_000 * round_)
        made += [{"blocks": blocks, "usage": tokens} for blocks in (shown, written, [change])]
        made.append({"text": f"End of round {round_}.", "usage": tokens})
    made[-1] = {"blocks": [bash("the last step")], "usage": spent(wall)}
    return [*made, {"text": "Went on.", "usage": {"input_tokens": 3000}}]


def texts(value):
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


@dataclass(frozen=True)
class Outcome:
    kept: set  # facts that the log in the next request holds verbatim
    places: dict  # where each fact stood before the compaction
    record: dict


def compacted(island, client, **env):
    """What became of the facts in one run with a compaction behind the last of them."""
    rules = [asked_for_summary("main"), {"match": {"role": "main"}, "answers": answers(island.project, client)}]
    words = ("--allowedTools", "Bash,Read,Write,Edit", "--permission-mode", "acceptEdits")
    steps = [island.step("dbproxy", "claude", "-p", "begin", *words, env=env)]
    rounds = (("-p", asked(round_), "--continue") for round_ in range(ROUNDS))
    steps += [island.step("dbproxy", "claude", *said_so, *words, env=env) for said_so in rounds]
    story, told = run(island, {"rules": rules, "scenario": "plain"}, *steps)
    assert "Went on." in story.steps[-2].stdout, story
    assert story.roles.count("compaction") == 1, story
    assert len(told.of("swap_executed")) == len(told.of("swap_confirmed")) == 1, told.events
    after = next(place for place, request in enumerate(story.messages) if AFTER.encode() in unchunked(request))
    before = json.loads(unchunked(story.messages[after - 1]))["messages"]
    assert not any(text in found for text in FACTS.values() for found in texts(checkpointed(story)))
    # The client shows the files that it knows again by itself; that is not what is asked here.
    log = re.search(
        r"log of what followed the summary\]\](.*)end of the log\]\]", said(story.messages[after]), re.DOTALL
    )
    kept = {name for name, text in FACTS.items() if text in log[1]}
    return Outcome(kept, places(before), told.swaps[0])


def said(request):
    """All texts of a request's messages."""
    return "\n".join(texts(json.loads(unchunked(request))["messages"]))


def checkpointed(story):
    """The messages of the request for the checkpoint's summary."""
    request = next(request for request in story.messages if request.about["role"] == "compaction")
    return json.loads(unchunked(request))["messages"]


def places(messages):
    """Message and block of each fact, as the record names them. An edit's fact stands in the call that made it."""
    found = {}
    for number, message in enumerate(messages):
        content = message["content"]
        for place, block in enumerate(content if isinstance(content, list) else [content]):
            held = "\n".join(texts(block))
            for name, text in FACTS.items():
                right = name[0] != "edit" or not isinstance(block, dict) or block.get("type") == "tool_use"
                if text in held and right:
                    found.setdefault(name, f"message {number}, block {place}")
    return found


def test_what_has_room_is_verbatim(island, client):
    outcome = compacted(island, client)
    assert len(FACTS) == len(set(FACTS.values())) == 60
    assert outcome.kept == set(FACTS), sorted(set(FACTS) - outcome.kept)
    assert outcome.record["shortened"] == []


def test_what_has_no_room_is_named_in_the_record(island, client):
    tokens = 12_500
    outcome = compacted(island, client, DBPROXY_BUFFER_LOG_TOKENS=str(tokens))
    assert set(outcome.places) == set(FACTS)
    lost = set(FACTS) - outcome.kept
    cut = {entry["where"]: entry for entry in outcome.record["shortened"]}
    assert len(lost) >= 20, sorted(lost)
    assert {outcome.places[name] for name in lost} <= set(cut), sorted(lost)
    # And nothing else is said to be cut that held a fact which is whole.
    whole = [name for name in outcome.kept if outcome.places[name] in cut]
    assert all(name[0] == "user" for name in whole), whole  # five facts are one text: those at its ends stay
    assert all(re.fullmatch(r"message \d+, block \d+", where) for where in cut)
    assert all(entry["kept"] < entry["length"] for entry in cut.values())
    assert outcome.record["log_tokens"] <= tokens
    # Results go first, the user's words and edits last.
    left = Counter(name[0] for name in outcome.kept)
    assert left["result"] == 0, left
    assert left["edit"] >= 15, left
