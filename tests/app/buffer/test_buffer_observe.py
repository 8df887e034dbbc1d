"""Observe mode: what would have been served stands beside what the client got, and nothing changes or is spent."""

from __future__ import annotations

import json

from buffertalk import HALF, NEAR, OVER, compactions, opening, until

from dbproxy.testing.origin.summaries import summary_answer


async def observed(w):
    """The lines that observe mode wrote, and the events beside them."""
    file = w.rig.data_dir / "plugin-data" / "double-buffer" / "swaps.jsonl"
    await until(lambda: file.exists() and file.read_text().endswith("\n"), lambda: "no record")
    assert file.stat().st_mode & 0o777 == 0o600
    return [json.loads(line) for line in file.read_text().splitlines()], await w.told("compaction_observed")


def nothing_changed(w, talk):
    (native,) = w.native()
    (sent,) = compactions(talk)
    assert sent.body == native.body
    assert bytes(sent.answer_body) == bytes(native.sent.body)
    assert not w.own()
    assert w.plugin.swaps == 0


async def test_without_a_checkpoint_what_the_client_got_is_written_down(world):
    async with world(buffer="observe") as w:
        talk = w.talk()
        await w.turn(talk, OVER)
        w.model.summaries = [summary_answer("good", 1, {"seconds": 0.4})]
        await talk.compact("auto")
        (line,), (event,) = await observed(w)
        nothing_changed(w, talk)
        assert line["mode"] == "observe"
        assert line["conv_id"] == talk.session
        assert (line["trigger"], line["tokens"], line["would"]) == ("auto", OVER, None)
        assert 0.3 < line["seconds"] < 5.0
        assert line["summary_bytes"] > 200
        assert line["summary_tokens"] > 0
        assert {name: event[name] for name in ("tokens", "seconds", "summary_bytes")} == {
            name: line[name] for name in ("tokens", "seconds", "summary_bytes")
        }
        assert not [name for name in event if name.startswith("would_")]


async def test_what_a_checkpoint_would_have_given_stands_beside_it(world):
    async with world(tls=False) as w:
        talk = w.talk()
        await w.checkpointed(talk)
        await w.turn(talk, NEAR, "PLANTED " * 3_000)
        session, messages = talk.session, talk.main.messages
    async with world(tls=False, buffer="observe", buffer_log_tokens="2000") as w:
        talk = w.talk()
        talk.session, talk.main.messages = session, messages
        await talk.compact("auto")
        (line,), (event,) = await observed(w)
        nothing_changed(w, talk)
        assert "ORIGIN-SUMMARY 1" in opening(talk)
        would = line["would"]
        assert line["tokens"] == NEAR
        assert (would["log_messages"], would["kept"], len(would["shortened"])) == (3, 2, 1)
        assert would["shortened"][0]["what"] == "user words"
        assert 0 < would["log_tokens"] <= 2_000
        assert would["tokens_after"] > would["log_tokens"]
        assert (event["would_checkpoint"], event["would_shortened"]) == (would["checkpoint"], 1)
        assert "PLANTED" not in json.dumps(line)


async def test_when_nothing_is_observed_nothing_is_written(world):
    """A compaction of the model's in another mode is told, and is no record of a swap."""
    async with world() as w:
        talk = w.talk()
        await w.turn(talk, HALF)
        await talk.compact("manual")
        await w.told("compaction_observed")
        await w.quiet()
        assert not (w.rig.data_dir / "plugin-data" / "double-buffer" / "swaps.jsonl").exists()
