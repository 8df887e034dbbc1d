"""What the 200-turn conversation of the performance facts, section 10, costs on disk: 95 MB become less than one."""

from __future__ import annotations

import longtalk
from storekit import assert_sound, rows, store_at


def test_two_hundred_turns_take_less_than_a_megabyte(tmp_path):
    """With answers, headers, evidence, limits and the search index; a turn adds what it adds, not what it repeats."""
    path = tmp_path / "dbproxy.sqlite"
    raw = 0
    with store_at(path) as store:
        for turn in longtalk.Talk().take(200):
            raw += len(turn.body)
            for record in longtalk.records(turn):
                store.append(record)
            assert store.flush(10)
        assert len(turn.body) > 890_000
    assert raw > 95_000_000
    assert path.stat().st_size <= 1_000_000
    assert assert_sound(path) == 200
    # One user message, its marked form, and one answer each; the last answer was never sent.
    assert rows(path, "SELECT count(*) FROM node") == [(598,)]
