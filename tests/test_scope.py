"""Launch scopes: the record on disk and the daemon's look-up of it."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.scope import Scope, Scopes, new_id, new_secret

FULL = {
    "cwd": "/home/ä",
    "pid": 4711,
    "pid_identity": "99",
    "created": 12.5,
    "settings": {"passthrough": True, "labels": {"a": "b"}},
    "client": {"DISABLE_AUTO_COMPACT": "1"},
    "parent_proxy": "http://u:p@corp:1",
    "no_proxy": "*",
    "extra_ca": ("/a.pem", "/b.pem"),
    "labels": {"team": "x"},
    "root": "ab" * 32,
}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "scopes"


def make(**values):
    return Scope(**{"id": new_id(), "secret": new_secret(), **values})


def test_a_scope_survives_the_disk(folder):
    scope = make(**FULL)
    path = scope.save(folder)
    assert Scope.from_json(path.read_bytes()) == scope
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert Scopes(folder).lookup(scope.id, scope.secret) == scope


def test_id_and_secret_are_url_safe_and_never_the_same():
    made = {(new_id(), new_secret()) for _ in range(200)}
    assert len(made) == 200
    for user, password in made:
        assert all(character.isascii() and (character.isalnum() or character in "-_") for character in user + password)
        assert len(password) >= 32


def test_the_secret_and_the_parents_password_stay_out_of_repr():
    scope = make(parent_proxy="http://u:hidden@corp:1")
    assert scope.secret not in repr(scope)
    assert "hidden" not in repr(scope)


def test_a_wrong_secret_or_id_names_no_scope(folder):
    scope, other = make(), make()
    scope.save(folder)
    other.save(folder)
    scopes = Scopes(folder)
    for user, password in [
        (scope.id, other.secret),
        (scope.id, ""),
        (scope.id, "ü\udcff"),
        ("nobody-at-all", scope.secret),
    ]:
        assert scopes.lookup(user, password) is None
    assert scopes.lookup(scope.id, scope.secret) == scope


@pytest.mark.parametrize("user", ["", "..", "../../etc/passwd", "a/b", "x" * 65, "s-\x00123456", ".hidden-file"])
def test_a_name_from_the_wire_is_never_a_path(folder, user, tmp_path):
    assert Scopes(folder).lookup(user, "x") is None
    outside = make(id="../outside-scope")
    folder.mkdir(parents=True, exist_ok=True)
    outside.save(folder)
    assert (tmp_path / "run" / "outside-scope.json").exists()
    assert Scopes(folder).lookup(outside.id, outside.secret) is None


@given(st.text(), st.text())
def test_no_credentials_make_the_lookup_raise(user, password):
    assert Scopes(Path("/nonexistent")).lookup(user, password) is None


def test_a_record_renamed_to_another_id_is_not_that_scope(folder):
    scope = make()
    path = scope.save(folder)
    path.rename(folder / "s-000000000000.json")
    assert Scopes(folder).lookup("s-000000000000", scope.secret) is None


def test_a_second_lookup_reads_nothing_and_a_changed_file_is_seen(folder, monkeypatch):
    scope = make()
    path = scope.save(folder)
    scopes = Scopes(folder)
    first = scopes.lookup(scope.id, scope.secret)
    with monkeypatch.context() as patch:
        patch.setattr(Scope, "from_json", lambda data: pytest.fail("the file was read again"))
        assert scopes.lookup(scope.id, scope.secret) is first
    Scope(id=scope.id, secret="another", cwd="/new").save(folder)
    assert scopes.lookup(scope.id, scope.secret) is None
    assert scopes.lookup(scope.id, "another").cwd == "/new"
    path.unlink()
    assert scopes.lookup(scope.id, "another") is None


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b'{"id": 1, "secret": "x"}', b"\xff", b'{"id":"s-1","secret":"x","settings":[]}']
)
def test_a_broken_record_is_no_scope(folder, data):
    folder.mkdir(parents=True)
    (folder / "s-00000000.json").write_bytes(data)
    assert Scopes(folder).lookup("s-00000000", "x") is None
    assert list(Scopes(folder).all()) == []


def test_keys_of_a_newer_version_are_ignored(folder):
    scope = make()
    raw = json.loads(scope.to_json()) | {"tomorrow": 1}
    assert Scope.from_json(json.dumps(raw).encode()) == scope


def test_garbage_is_what_is_dead_unused_and_old(folder):
    dead, living, fresh = make(pid=1), make(pid=2), make(pid=3)
    for scope in (dead, living, fresh):
        scope.save(folder)
    (folder / f"{dead.id}.ca.pem").write_text("x")
    now = (folder / f"{dead.id}.json").stat().st_mtime
    os.utime(folder / f"{fresh.id}.json", (now + 80, now + 80))
    scopes = Scopes(folder)
    alive = lambda pid, identity: pid == 2  # noqa: E731
    assert scopes.collect_garbage(now + 50, alive, grace=60) == ()
    assert scopes.collect_garbage(now + 100, alive, grace=60) == (dead.id,)
    assert {scope.id for scope in scopes.all()} == {living.id, fresh.id}
    assert not (folder / f"{dead.id}.ca.pem").exists()


def test_a_scope_that_is_still_used_is_kept_although_its_process_is_gone(folder):
    scope = make(pid=1)
    path = scope.save(folder)
    os.utime(path, (0, 0))
    scopes = Scopes(folder)
    scopes.lookup(scope.id, scope.secret)
    assert scopes.collect_garbage(time.time(), lambda pid, identity: False, grace=60) == ()
    assert Scopes(folder).collect_garbage(time.time(), lambda pid, identity: False, grace=60) == (scope.id,)


def test_the_folder_may_be_missing(folder):
    assert Scopes(folder).collect_garbage(0, lambda pid, identity: True) == ()
    assert list(Scopes(folder).all()) == []
