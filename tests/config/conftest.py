"""A home, a project in it, and the files that settings come from."""

from __future__ import annotations

import pytest


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    (folder / ".config" / "dbproxy").mkdir(parents=True)
    return folder


@pytest.fixture
def env(home):
    return {"HOME": str(home)}


@pytest.fixture
def project(home):
    folder = home / "project"
    (folder / ".git").mkdir(parents=True)
    return folder


@pytest.fixture
def user_file(home):
    return home / ".config" / "dbproxy" / "config.toml"
