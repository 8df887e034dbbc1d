"""packaging/install.sh: for one user, whole or not at all, and undone to the last folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.frozen, pytest.mark.timeout(400)]
INSTALLER = Path(__file__).resolve().parents[2] / "packaging" / "install.sh"


@pytest.fixture
def home(tmp_path):
    """A home with a space in its name, and something in it that is not ours."""
    folder = tmp_path / "a home"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture
def install(home, start):
    def run(*words, **variables):
        return start("sh", INSTALLER, *words, **({"HOME": str(home), "DBPROXY_LISTEN": "127.0.0.1:0"} | variables))

    return run


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def another_build(built, folder, name):
    """The same program under another build's name."""
    shutil.copytree(built.folder, folder, symlinks=True)
    (folder / "BUILD").write_text(name + "\n")
    return folder


@pytest.mark.parametrize("kind", ["folder", "archive", "single"])
def test_there_and_back_again(built, home, install, start, kind):
    before = contents(home)
    done = install(getattr(built, kind))
    assert (done.returncode, done.stderr) == (0, ""), done
    assert built.name in done.stdout
    assert "is not on your PATH" in done.stdout
    assert sorted(path.name for path in (home / ".local/share/dbproxy-app").iterdir()) == [built.name, "made-folders"]
    program = home / ".local/bin/dbproxy"
    assert start(program, "--version").stdout.startswith("dbproxy ")
    assert "not running" in start(home / ".local/bin/claude-db-proxy", "status").stdout
    done = install("--uninstall")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert contents(home) == before


def test_the_folder_brings_its_own_installer(built, home, start):
    done = start("sh", built.folder / "install.sh", HOME=str(home), PATH=f"{home}/.local/bin:{os.defpath}")
    assert done.returncode == 0, done
    assert "not on your PATH" not in done.stdout
    installed = home / ".local/share/dbproxy-app" / built.name / "install.sh"
    assert start("sh", installed, "--uninstall", HOME=str(home)).returncode == 0
    assert contents(home) == ["notes.txt"]


def test_what_was_there_before_stays(built, home, install):
    (home / ".local/bin").mkdir(parents=True)
    (home / ".local/bin/other").write_text("mine")
    before = contents(home)
    assert install(built.folder).returncode == 0
    assert install("--uninstall").returncode == 0
    assert contents(home) == before


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_a_foreign_command_of_that_name_is_not_replaced(built, home, install, kind):
    command = home / ".local/bin/dbproxy"
    command.parent.mkdir(parents=True)
    if kind == "file":
        command.write_text("mine")
    else:
        command.symlink_to(home / "notes.txt" if kind == "link" else "/nowhere/dbproxy")
    before = contents(home)
    done = install(built.folder)
    assert done.returncode == 1
    assert "not ours" in done.stderr
    assert contents(home) == before


def test_a_newer_version_stands_beside_the_older_while_that_runs(built, home, install, start, tmp_path):
    newer = another_build(built, tmp_path / "newer", "9.9.9-eeeeeeeeeeee")
    program = home / ".local/bin/dbproxy"
    assert install(built.folder).returncode == 0
    assert start(program, "start", HOME=str(home)).returncode == 0
    try:
        done = install(newer)
        assert done.returncode == 0, done
        assert os.readlink(program).endswith("/9.9.9-eeeeeeeeeeee/dbproxy")
        assert (home / ".local/share/dbproxy-app" / built.name / "BUILD").is_file()
        assert "running" in start(program, "status", HOME=str(home)).stdout
    finally:
        done = install("--uninstall")
    # The data folder stays, as it does without an installer; of the program nothing does.
    assert "stopped" in done.stdout, done
    assert not (home / ".local/share/dbproxy-app").exists()
    assert (home / ".local/share/dbproxy").is_dir()
    assert not (home / ".local/bin").exists()


def test_installing_the_same_again_changes_nothing(built, home, install):
    install(built.folder)
    before = contents(home)
    assert install(built.folder).returncode == 0
    assert contents(home) == before
    install("--uninstall")
    assert contents(home) == ["notes.txt"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nothing", "is not there"),
        (lambda folder: folder, "no folder of a built dbproxy"),
        (lambda folder: written(folder / "x.tar.gz", b"no archive"), "no archive of a built dbproxy"),
        (lambda folder: written(folder / "x", b"#!/bin/sh\n"), "neither a folder, an archive nor an executable"),
    ],
    ids=["missing", "empty folder", "bad archive", "foreign file"],
)
def test_what_cannot_be_installed_is_said(home, install, tmp_path, make, words):
    folder = tmp_path / "what"
    folder.mkdir()
    done = install(make(folder))
    assert done.returncode == 1, done
    assert words in done.stderr
    assert not (home / ".local/bin/dbproxy").is_symlink()
    install("--uninstall")
    assert contents(home) == ["notes.txt"]


def written(path, data):
    path.write_bytes(data)
    return path


def test_a_name_that_leads_elsewhere_is_refused(built, home, install, tmp_path):
    done = install(another_build(built, tmp_path / "evil", "../../evil"))
    assert done.returncode == 1
    assert "strangely" in done.stderr
    assert not (home / ".local/evil").exists()


def test_a_full_disk_leaves_nothing_half(built, home, install, place, start):
    (home / ".local").mkdir()
    command = [*place, "--full", home / ".local", "--", "sh", INSTALLER, built.folder]
    done = start(*command, HOME=str(home))
    assert done.returncode != 0
    assert done.stderr != ""
    assert contents(home / ".local") == []


def test_wrong_words(install):
    assert install("--nonsense").returncode == 2
    assert "install.sh --uninstall" in install("--help").stdout
    assert install("--uninstall").returncode == 1
    assert subprocess.run(["sh", "-n", str(INSTALLER)], check=False).returncode == 0
