"""Verifying finds every kind of damage, and nothing where there is none."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

import captured
import pytest
import storekit

from dbproxy.model.record import RequestBody
from dbproxy.store.reader import Reader

if TYPE_CHECKING:
    from pathlib import Path

DAMAGE = {
    "a message's bytes": "UPDATE blob SET data = x'28b52ffd' WHERE id = (SELECT blob FROM node WHERE id = {tip})",
    "another message": "UPDATE node SET blob = (SELECT template FROM exchange WHERE id = '{id}') WHERE id = {tip}",
    "a missing message": "DELETE FROM node WHERE id = {tip}",
    "a missing blob": "DELETE FROM blob WHERE id = (SELECT blob FROM node WHERE id = {tip})",
    "a wrong patch": "UPDATE node SET patch = x'0a4161' WHERE id = {tip}",
    "a missing template": "UPDATE exchange SET template = NULL WHERE id = '{id}'",
    "another digest": "UPDATE exchange SET body_sha256 = zeroblob(32) WHERE id = '{id}'",
    "no digest": "UPDATE exchange SET body_sha256 = NULL WHERE id = '{id}'",
    "a wrong answer": "UPDATE blob SET data = x'00' WHERE id = (SELECT message FROM exchange WHERE id = '{id}')",
}


def test_all_is_exact_page_after_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dbproxy.store.verify._PAGE", 5)
    made = captured.fill(tmp_path / "db.sqlite")
    with Reader.open(made.path) as reader:
        checks = list(reader.verify())
        assert [check.exchange for check in checks] == sorted(made.ids.values())
        assert {check.result for check in checks} == {"exact"}
        assert [check.exchange for check in reader.verify(since=made["rewind"])] == [made["rewind"], made["other"]]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_the_others_are_still_checked(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "db.sqlite"
    with storekit.store_at(path) as store:
        for number in range(1, 6):
            store.append(storekit.opened(number, storekit.talk(f"hello {number}", "yes", f"more {number}")))
            store.append(storekit.closed(number, f"answer {number}"))
        assert store.flush(10)
    with storekit.look(path) as connection:
        id = storekit.make_id(3)
        (tip,) = connection.execute("SELECT tip FROM exchange WHERE id = ?", [id]).fetchone()
        connection.execute(DAMAGE[damage].format(id=id, tip=tip))
    with Reader.open(path) as reader:
        checks = list(reader.verify())
    assert [check.result for check in checks] == ["exact", "exact", "wrong", "exact", "exact"]
    assert checks[2].detail


def test_what_was_not_kept_or_changed_on_purpose_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    with storekit.store_at(path) as store:
        store.append(storekit.opened(1))
        body = storekit.talk("x")
        kept = storekit.opened(2, body).body
        assert kept is not None
        inexact = RequestBody(body, kept.sha256, kept.parts, inexact=True)
        store.append(dataclasses.replace(storekit.opened(2), body=inexact))
        store.append(storekit.opened(3, b""))
        assert store.flush(10)
    with Reader.open(path) as reader:
        assert Counter(check.result for check in reader.verify()) == {"absent": 1, "inexact": 1, "exact": 1}


def test_what_comes_meanwhile_is_left_for_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    with storekit.store_at(path) as store:
        for number in range(1, 4):
            store.append(storekit.opened(number, storekit.talk(f"hello {number}")))
        assert store.flush(10)
        with Reader.open(path) as reader:
            checks = reader.verify()
            assert next(checks).result == "exact"
            store.append(storekit.opened(4, storekit.talk("late")))
            assert store.flush(10)
            assert len(list(checks)) == 2
            assert len(list(reader.verify())) == 4


def test_an_empty_file_has_nothing_to_check(tmp_path: Path) -> None:
    with storekit.store_at(tmp_path / "db.sqlite") as store:
        assert store.flush(10)
    with Reader.open(tmp_path / "db.sqlite") as reader:
        assert list(reader.verify()) == []
        assert reader.exchanges() == []
        assert reader.conversations() == []
        assert reader.usage_rows() == []
        assert reader.search("x").hits == ()
        assert reader.size().oldest is None
