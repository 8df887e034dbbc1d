"""Where files lie on each system, and that private ones are private."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path, PurePosixPath

import pytest

from dbproxy import paths
from dbproxy.errors import ConfigError
from dbproxy.paths import Paths, default_data_dir, make_private, trust_file, user_config_file, write_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o777])
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_the_layout():
    found = Paths(Path("/d"))
    assert found.ca == Path("/d/ca")
    assert found.log_file == Path("/d/logs/dbproxy.jsonl")
    assert found.plugins == Path("/d/plugins")
    assert found.control_token == Path("/d/run/control-token")
    assert found.daemon_state == Path("/d/run/daemon.json")
    assert found.scopes == Path("/d/run/scopes")
    assert found.status == Path("/d/run/status")
    assert found.database == Path("/d/dbproxy.sqlite")


@pytest.mark.parametrize(
    ("platform", "env", "data", "config"),
    [
        ("linux", {"HOME": "/h"}, "/h/.local/share/dbproxy", "/h/.config/dbproxy/config.toml"),
        (
            "linux",
            {"HOME": "/h", "XDG_DATA_HOME": "/x", "XDG_CONFIG_HOME": "/c"},
            "/x/dbproxy",
            "/c/dbproxy/config.toml",
        ),
        # The XDG specification: relative values are to be ignored.
        ("linux", {"HOME": "/h", "XDG_DATA_HOME": "x"}, "/h/.local/share/dbproxy", "/h/.config/dbproxy/config.toml"),
        (
            "darwin",
            {"HOME": "/h"},
            "/h/Library/Application Support/dbproxy",
            "/h/Library/Application Support/dbproxy/config.toml",
        ),
        ("win32", {"LOCALAPPDATA": "/l", "APPDATA": "/a", "USERPROFILE": "/u"}, "/l/dbproxy", "/a/dbproxy/config.toml"),
        ("win32", {"USERPROFILE": "/u"}, "/u/AppData/Local/dbproxy", "/u/AppData/Roaming/dbproxy/config.toml"),
    ],
)
def test_each_system_has_its_places(platform, env, data, config):
    assert PurePosixPath(default_data_dir(env, platform)) == PurePosixPath(data)
    assert PurePosixPath(user_config_file(env, platform)) == PurePosixPath(config)
    assert trust_file(env, platform).parent == user_config_file(env, platform).parent


def test_two_users_have_two_folders():
    assert default_data_dir({"HOME": "/a"}) != default_data_dir({"HOME": "/b"})


def test_without_home_the_password_database_is_asked(monkeypatch):
    assert paths.home({}).is_absolute()

    def nothing():
        raise RuntimeError

    monkeypatch.setattr(Path, "home", nothing)
    with pytest.raises(ConfigError, match="DBPROXY_DATA_DIR"):
        paths.home({"HOME": "relative"})


def test_every_folder_that_we_make_is_private(tmp_path, umask):
    found = Paths(tmp_path / "deep" / "data")
    found.create()
    found.create()
    for folder in (
        tmp_path / "deep",
        found.data_dir,
        found.ca,
        found.logs,
        found.plugins,
        found.run,
        found.scopes,
        found.status,
    ):
        assert mode(folder) == 0o700


def test_a_folder_that_was_too_open_or_too_closed_is_made_right(tmp_path):
    for number in (0o777, 0o750, 0o500):
        tmp_path.joinpath("d").mkdir(exist_ok=True)
        tmp_path.joinpath("d").chmod(number)
        assert mode(make_private(tmp_path / "d")) == 0o700


def test_a_new_folder_is_private_from_its_first_moment(tmp_path, monkeypatch):
    def too_late(_self, _mode):
        raise AssertionError("it was open until now")

    monkeypatch.setattr(Path, "chmod", too_late)
    before = os.umask(0)
    try:
        make_private(tmp_path / "a" / "b")
    finally:
        os.umask(before)


def test_parents_that_exist_are_left_alone(tmp_path):
    tmp_path.chmod(0o755)
    make_private(tmp_path / "d")
    assert mode(tmp_path) == 0o755


def test_a_link_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match=r"symbolic link.*DBPROXY_DATA_DIR"):
        make_private(tmp_path / "run")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="symbolic link"):
        make_private(tmp_path / "dangling")


def test_the_user_may_move_the_data_directory_by_a_link_but_nothing_below(tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    Paths(tmp_path / "data").create()
    assert mode(tmp_path / "disk" / "run") == 0o700
    (tmp_path / "disk" / "ca").rmdir()
    (tmp_path / "disk" / "ca").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="symbolic link"):
        Paths(tmp_path / "data").create()
    monkeypatch.setattr(paths.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="data is a symbolic link"):
        Paths(tmp_path / "data").create()


def test_a_file_in_the_way_is_said(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match=r"in the way.*DBPROXY_DATA_DIR"):
        make_private(tmp_path / "run")
    with pytest.raises(ConfigError, match="DBPROXY_DATA_DIR"):
        make_private(tmp_path / "run" / "below")


def test_a_folder_of_somebody_else_is_refused(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(paths.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match=r"belongs to another user \(uid \d+\).*DBPROXY_DATA_DIR"):
        make_private(tmp_path / "run")


def test_a_read_only_home_is_said_with_what_to_do():
    # /proc refuses new folders to everyone, the superuser included.
    with pytest.raises(ConfigError, match=r"cannot make the folder /proc/dbproxy.*Set DBPROXY_DATA_DIR"):
        make_private(Path("/proc/dbproxy/run"))
    with pytest.raises(ConfigError, match=r"cannot write /proc/.*Set DBPROXY_DATA_DIR"):
        write_private(Path("/proc/dbproxy-file"), b"")


def test_a_private_file_is_private_and_whole(tmp_path, umask):
    file = tmp_path / "f"
    write_private(file, b"one")
    assert (file.read_bytes(), mode(file)) == (b"one", 0o600)
    file.chmod(0o644)
    write_private(file, "zwei ü")
    assert (file.read_text(encoding="utf-8"), mode(file)) == ("zwei ü", 0o600)
    assert [item.name for item in tmp_path.iterdir()] == ["f"]


def test_a_link_in_place_of_a_private_file_is_replaced_not_followed(tmp_path):
    (tmp_path / "victim").write_text("keep")
    (tmp_path / "f").symlink_to(tmp_path / "victim")
    write_private(tmp_path / "f", b"secret")
    assert (tmp_path / "victim").read_text() == "keep"
    assert not (tmp_path / "f").is_symlink()


def test_a_write_that_fails_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    file = tmp_path / "f"
    write_private(file, b"old")

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths.os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        write_private(file, b"new")
    assert file.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["f"]


def test_readers_see_old_or_new_and_nothing_between(tmp_path):
    file = tmp_path / "f"
    write_private(file, b"a" * 10_000)
    stop = threading.Event()
    seen: set[bytes] = set()

    def read():
        while not stop.is_set():
            seen.add(file.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for letter in b"bcde" * 5:
            write_private(file, bytes([letter]) * 10_000)
    finally:
        stop.set()
        reader.join(10)
    assert {(len(content), len(set(content))) for content in seen} == {(10_000, 1)}
